"""Scores: how much the model needs each unit of each orbit."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import tabulate
from torch import nn

from torchorbit.errors import ArgumentError, ScoresError
from torchorbit.files import replace_bytes
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.removal.history import Description

Divisor = Literal["sum", "mean", "max", "l2", "standard"]
Normalization = Literal["auto", "sum", "mean", "max", "l2", "standard"]
Array = NDArray[np.float64]

_FORMAT = "torchorbit-scores"


class Scores(Mapping[Orbit, Array]):
    """A score for every unit of every orbit: the lower, the sooner it goes.

    A mapping from orbits to arrays as long as the orbit is wide. Prints as a table.

    Args:
        orbits: what `torchorbit.find_orbits` found.
        values: orbit -> scores of its units; every orbit needs some.
        criterion: what made them: a `Description` of it, or its name.
        samples: over how many samples they are a mean; 0 where no data was looked at.
        comparable: whether those of different orbits can be compared as they are, as changes of the loss can.

    Raises:
        ArgumentError: an orbit has no scores, too few or too many, or some that are no number.
    """

    def __init__(
        self,
        orbits: Orbits,
        values: Mapping[Orbit, ArrayLike],
        *,
        criterion: str | Description,
        samples: int = 0,
        comparable: bool = False,
    ):
        self.orbits = orbits
        self.description = Description(criterion, known=False) if isinstance(criterion, str) else criterion
        self.samples = samples
        self.comparable = comparable
        self._values: dict[Orbit, Array] = {}
        for orbit in orbits:
            if orbit not in values:
                raise ArgumentError(
                    f"{criterion}: {orbit!r} has no scores; every orbit needs one for each of its units"
                )
            array = np.asarray(values[orbit], np.float64)
            if array.shape != (orbit.width,):
                raise ArgumentError(
                    f"{criterion}: {orbit!r} has scores of shape {array.shape}, expected ({orbit.width},)"
                )
            if np.isnan(array).any():
                raise ArgumentError(
                    f"{criterion}: {int(np.isnan(array).sum())} of the {orbit.width} scores of {orbit!r} are no "
                    "number; look for losses, activations or weights that are not finite"
                )
            self._values[orbit] = array

    @property
    def criterion(self) -> str:
        """What made them, in words."""
        return str(self.description)

    def __getitem__(self, orbit: Orbit) -> Array:
        return self._values[orbit]

    def __iter__(self) -> Iterator[Orbit]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def normalized(self, how: Normalization | None = "auto", *, globally: bool = False) -> Scores:
        """Make scores of different orbits comparable.

        Args:
            how: ``"auto"`` leaves those that are comparable as they are, and takes the mean for others. Otherwise what
                to divide by: the ``"sum"``, ``"mean"``, ``"max"`` or ``"l2"`` norm of the absolute scores.
                ``"standard"`` subtracts the mean and divides by the standard deviation; None leaves them as they are.
            globally: take it over all orbits together rather than over each by itself.

        Raises:
            ArgumentError: there is no such normalization.
        """
        if how is None or (how == "auto" and self.comparable):
            return self
        divisor: Divisor = "mean" if how == "auto" else how
        everything = np.concatenate([*self._values.values(), np.empty(0)]) if globally else None
        values = {orbit: normalized(scores, divisor, everything) for orbit, scores in self.items()}
        return Scores(self.orbits, values, criterion=self.description, samples=self.samples, comparable=self.comparable)

    def of_channels(self, module: nn.Module | str, dim: int = 0) -> Array:
        """The scores of a layer's channels, in their order (what TorchPruner's ``run(module)`` returns).

        Args:
            module: a layer of the graph, its path, or the path of a parameter or buffer, as for
                `torchorbit.plan`.
            dim: 0 for the channels that the layer gives, 1 for those that it takes; of a tensor, the dimension.

        Returns:
            An array with the score of the unit that each channel belongs to; infinite where it may not be removed.
            A channel that also belongs to a unit around it (a whole head) has the score of its own unit.

        Raises:
            ArgumentError: there is no such module or dimension.
            ArgumentTypeError: ``module`` is neither.
        """
        from torchorbit.orbits.channels import Channels  # it knows more of a graph than scores have to

        channels = Channels.of(self.orbits, module, dim)
        found = np.full(channels.length, np.inf)
        for index, owner in enumerate(channels.owners()):
            if owner is not None:
                found[index] = self[owner[0]][owner[1]]
        return found

    def merged(self, *others: Scores) -> Scores:
        """The scores over all samples that these and others have seen, say in several processes.

        Raises:
            ArgumentError: they are of different criteria or orbits.
        """
        for other in others:
            if other.criterion != self.criterion:
                raise ArgumentError(f"scores by {other.criterion} and by {self.criterion} cannot be merged")
            if _description(other.orbits) != _description(self.orbits):
                raise ArgumentError("the scores are of different orbits; they can be merged when the model is the same")
        parts = [self, *others]
        samples = sum(part.samples for part in parts)
        weights = [part.samples / samples if samples else 1 / len(parts) for part in parts]
        values = {
            orbit: sum(
                (weight * part[part.orbits[orbit.index]] for weight, part in zip(weights, parts, strict=True)),
                np.zeros(orbit.width),
            )
            for orbit in self.orbits
        }
        return Scores(self.orbits, values, criterion=self.description, samples=samples, comparable=self.comparable)

    def save(self, path: str | Path) -> None:
        """Write the scores to a file (a zip of numpy arrays, no pickle); one that is there is replaced in one step."""
        about = {
            "format": _FORMAT,
            "version": 1,
            "criterion": self.description.data(),
            "samples": self.samples,
            "comparable": self.comparable,
            "orbits": _description(self.orbits),
        }
        arrays: dict[str, Any] = {f"orbit{orbit.index}": scores for orbit, scores in self.items()}
        buffer = io.BytesIO()
        np.savez(buffer, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
        replace_bytes(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path, orbits: Orbits) -> Scores:
        """Read scores that `save` wrote.

        Args:
            path: the file.
            orbits: those of the same graph, maybe in another process.

        Raises:
            OSError: there is no such file.
            ScoresError: it holds no scores, or those of another graph.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(bytes(file["about"]))
                if about["format"] != _FORMAT or about["version"] != 1:
                    found = f"{about['format']} version {about['version']}"
                    raise ScoresError(f"'{path}' is a file of {found:.100}, expected {_FORMAT} version 1")
                same = about["orbits"] == _description(orbits)
                values = {orbit: file[f"orbit{orbit.index}"] for orbit in orbits} if same else {}
            if not same:
                raise ScoresError(
                    f"'{path}' holds scores for the orbits of another model, of one of other sizes, or that were found "
                    "with something else frozen"
                )
            return cls(
                orbits,
                values,
                criterion=_criterion(about["criterion"]),
                samples=int(about["samples"]),
                comparable=bool(about["comparable"]),
            )
        except ScoresError:
            raise
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            reason = "it is no zip of arrays" if "pickle" in str(error) else error
            raise ScoresError(f"'{path}' holds no scores that `Scores.save` wrote: {reason}") from None

    def __str__(self) -> str:
        rows = [
            (orbit.index, orbit.width, ", ".join(orbit.sources[:2]), scores.min(), np.median(scores), scores.max())
            for orbit, scores in self.items()
        ]
        title = f"{self.criterion}, {self.samples} samples" if self.samples else self.criterion
        headers = ("orbit", "width", "sources", "least", "median", "greatest")
        return f"{title}\n{tabulate(rows, headers=headers, floatfmt='.4g')}"


def normalized(scores: Array, how: Divisor, base: Array | None = None) -> Array:
    """Normalize scores, as `Scores.normalized` does.

    Args:
        scores: of some units.
        how: what to divide by.
        base: all the scores that they are normalized over; by default they themselves.

    Raises:
        ArgumentError: there is no such normalization.
    """
    if how not in _DIVISORS and how != "standard":
        raise ArgumentError(f"how={how!r}, expected one of {', '.join([*_DIVISORS, 'standard'])}, or None")
    base = scores if base is None else base
    if how == "standard":
        return (scores - base.mean()) / (base.std() or 1.0)
    return scores / (_DIVISORS[how](np.abs(base)) or 1.0)


_DIVISORS: dict[str, Any] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "l2": np.linalg.norm,
}


def _criterion(data: Any) -> Description | str:
    """What a file says of the criterion.

    Raises:
        ArgumentError: it is no description.
    """
    if isinstance(data, str):
        return data
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not isinstance(data.get("options"), dict):
        raise ArgumentError(f"the criterion is {data!r:.100}, expected its name and its options")
    return Description(data["name"], data["options"], data.get("known") is not False)


def _description(orbits: Orbits) -> list[list[Any]]:
    """What tells the orbits of one graph from those of another."""
    found = []
    for orbit in orbits:
        first = orbit.slices[0] if orbit.slices else None
        found.append([orbit.width, orbit.reading, first.tensor if first else "", first.dim if first else 0])
    return found
