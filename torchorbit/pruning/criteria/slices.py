"""The weights of the units of an orbit, tensor by tensor, as criteria look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.labels import arrays_of
from torchorbit.orbits.orbit import Orbit, Orbits

#: Which slices of a unit count: ``"all"`` that it owns of parameters, or only those of its ``"sources"``, the kernels
#: of the layers that produce its channels.
Over = Literal["all", "sources"]
#: How what the tensors of a unit say becomes one number.
Reduction = Literal["mean", "sum", "max"]


@dataclass(frozen=True, slots=True)
class WeightRows:
    """What the units of an orbit own of one dimension of a parameter.

    Attributes:
        tensor: its path.
        dim: the dimension along which it is cut.
        width: number of units of the orbit.
        rows: the whole parameter in float64, of shape (positions along the dimension, numbers at each); complex
            numbers are pairs of real ones.
        positions: which rows units own, of shape (owned,).
        units: which unit owns each of them, of the same shape. Where a dimension has several labels (a table of
            weights), a position may belong to several units.
    """

    tensor: str
    dim: int
    width: int
    rows: Tensor
    positions: Tensor
    units: Tensor

    def summed(self, values: Tensor) -> Tensor:
        """Sum what every position of the dimension has over the positions of each unit, to shape (width,)."""
        return values.new_zeros(self.width).index_add_(0, self.units, values[self.positions])

    def greatest(self, values: Tensor) -> Tensor:
        """The greatest of what the positions of each unit have, at least 0, of shape (width,)."""
        return values.new_zeros(self.width).scatter_reduce_(0, self.units, values[self.positions], "amax")

    def counts(self) -> Tensor:
        """How many positions each unit owns, of shape (width,)."""
        return torch.bincount(self.units, minlength=self.width)

    def stacked(self) -> Tensor:
        """The numbers of every unit in a row, of shape (width, most positions of a unit x numbers at each).

        Where a unit owns fewer positions than another, zeros follow.
        """
        order = torch.argsort(self.units, stable=True)
        units, counts = self.units[order], self.counts()
        rank = torch.arange(len(units), device=units.device) - (counts.cumsum(0) - counts)[units]
        most = int(counts.max()) if len(counts) else 0
        stack = self.rows.new_zeros(self.width, most, self.rows.shape[1])
        stack[units, rank] = self.rows[self.positions[order]]
        return stack.reshape(self.width, -1)


class OrbitWeights:
    """Gives the slices of the units of orbits.

    Args:
        orbits: of a graph with weights.

    Raises:
        ArgumentError: the graph is on the meta device.
    """

    def __init__(self, orbits: Orbits):
        require_weights(orbits)
        self.orbits = orbits
        self._kernels = [self._produced(number) for number in range(len(orbits.readings))]

    def of(self, orbit: Orbit, over: Over = "all") -> list[WeightRows]:
        """What the units of an orbit own, one entry for every dimension of a parameter.

        A parameter that is read under several names is there once. Buffers are left out.

        Args:
            orbit: one of the orbits.
            over: ``"sources"`` leaves out all but the kernels of layers that produce the orbit's channels, along the
                dimension of their outputs; biases are no kernels. An orbit that no layer produces (a position
                embedding's, say) has all of its slices there.
        """
        found = self._all(orbit)
        if over == "sources":
            kernels = self._kernels[orbit.reading]
            found = [key for key in found if key[0] in kernels] or found
        return [self._slices(orbit, key, owned) for key, owned in found]

    def _all(self, orbit: Orbit) -> list[tuple[tuple[str, int], list[NDArray[Any]]]]:
        """(Path, dimension) of parameters -> for every position the unit that owns it or -1, once per label."""
        orbits = self.orbits
        place = np.full(orbits.counts[orbit.reading], -1)
        place[orbit.components] = np.arange(orbit.width)
        units = place[orbits.positions[orbit.reading]]
        touched = np.zeros(len(units) + 1, np.int64)
        np.cumsum(units >= 0, out=touched[1:])
        found: dict[tuple[str, int], list[NDArray[Any]]] = {}
        for part in orbits.parts:
            stop = part.start + part.length
            if touched[part.start] != touched[stop] and part.path in orbits.trainable:
                found.setdefault((part.path, part.axis), []).append(units[part.start : stop])
        return list(found.items())

    def _slices(self, orbit: Orbit, key: tuple[str, int], owned: list[NDArray[Any]]) -> WeightRows:
        path, dim = key
        tensor = self.orbits.model.tensor_at(path).detach()
        rows = tensor.movedim(dim, 0)
        if rows.is_complex():
            rows = torch.view_as_real(rows)
        rows = rows.reshape(len(rows), -1).double()
        pairs = np.concatenate([np.stack([np.flatnonzero(units >= 0), units[units >= 0]]) for units in owned], axis=1)
        if len(owned) > 1:
            pairs = np.unique(pairs, axis=1)  # a unit may own a position by more than one of its labels
        positions, units = torch.from_numpy(pairs).to(rows.device)
        return WeightRows(path, dim, orbit.width, rows, positions, units)

    def _produced(self, number: int) -> set[tuple[str, int]]:
        """The dimensions of parameters along which layers give their outputs."""
        reading = self.orbits.readings[number]
        made = np.zeros(reading.labels.count, bool)
        for _, labels in reading.sources:
            made[labels] = True
        made[:2] = False  # what is frozen
        return {
            (path, axis)
            for path, value in reading.attributes.items()
            for axis, dim in enumerate(value.dims)
            if any(made[labels].any() for labels in arrays_of(dim))
        }


def require_weights(orbits: Orbits) -> None:
    """Refuse a graph without weights.

    Raises:
        ArgumentError: the graph is on the meta device.
    """
    if any(parameter.is_meta for parameter in orbits.model.dag.parameters()):
        raise ArgumentError(
            "the graph is on the meta device, where weights have no magnitude: give it weights, or choose what goes by "
            "find_orbits and remove_channels"
        )


def reduced(parts: Iterator[Tensor] | list[Tensor], reduce: Reduction, width: int) -> NDArray[np.float64]:
    """Make one number for every unit of what each of its tensors says.

    Args:
        parts: a tensor of shape (width,) for every tensor of the orbit; units of an orbit without any have 0.
        reduce: how.
        width: number of units.
    """
    arrays = [part.cpu().numpy() for part in parts]
    if not arrays:
        return np.zeros(width)
    function: Any = {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce]
    return np.asarray(function(np.stack(arrays), axis=0), np.float64)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse what is none of the values of a ``Literal``.

    Raises:
        ArgumentError: it is none of them.
    """
    if value not in get_args(choices):
        raise ArgumentError(f"{name}={value!r}, expected one of {', '.join(map(repr, get_args(choices)))}")
