"""Which units of which orbits are to be removed, and what that leaves of every dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchorbit.arguments import Attr, ByMode, Ref
from torchorbit.containers import map_together
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.shapes import pick
from torchorbit.labels import FROZEN_HERE, OTHER, Array, Dim, JoinedMask, Mask, arrays_of
from torchorbit.operators import Labelled
from torchorbit.operators.labelling import Part
from torchorbit.orbits.orbit import Orbit, Orbits


class Selection:
    """Units to remove.

    Args:
        removed: orbit -> positions of the units to remove, from 0 to ``orbit.width - 1``, in any order.
        dag: the graph that they are removed from.
        allow_empty: whether an orbit may lose all of its units.

    Attributes:
        removed: orbit -> positions of the units to remove.
        emptied: the orbits that lose all of their units.
        orbits: those of the graph; None while nothing is removed and `adopt` was not called.
        keep: for each reading, for every unit whether it is kept.

    Raises:
        ArgumentError: an orbit is of another graph, or of this one before it was pruned or a layer was replaced; a
            position is out of range or given twice; or nothing of an orbit would be left.
        ArgumentTypeError: something is no orbit, or positions are no integers.
    """

    def __init__(self, removed: Mapping[Orbit, Iterable[int]], dag: DagModule, *, allow_empty: bool = False):
        if not isinstance(removed, Mapping):
            raise ArgumentTypeError(
                f"removed is a {type(removed).__name__}, expected a dict of orbits and positions of units"
            )
        self.removed = {_orbit(orbit): _positions(orbit, indices, allow_empty) for orbit, indices in removed.items()}
        self.emptied = [orbit for orbit, positions in self.removed.items() if len(positions) == orbit.width]
        self.orbits: Orbits | None = None
        self.keep: list[Mask] = []
        self._known: dict[tuple[int, ...], tuple[list[Dim], Mask | None]] = {}
        self._first_paths: dict[int, str] = {}
        for orbit in self.removed:
            if orbit.orbits.model.dag is not dag:
                raise ArgumentError(f"{orbit!r} is an orbit of another graph; call find_orbits on this one")
            if orbit.orbits.model.source is not dag.graph:
                raise ArgumentError(f"{orbit!r} was found before this graph was pruned; call find_orbits again")
            if self.orbits is not None and orbit.orbits is not self.orbits:
                raise ArgumentError("the orbits come from two calls of find_orbits; use those of one")
            self.orbits = orbit.orbits
        if self.orbits is not None:
            self.adopt(self.orbits)

    def adopt(self, orbits: Orbits) -> None:
        """Take the orbits from which units are removed.

        Raises:
            ArgumentError: a parameter or buffer is of another shape than when they were found.
        """
        self.orbits = orbits
        orbits.model.look_again()
        for path, known in orbits.readings[0].attributes.items():
            shape = tuple(orbits.model.tensor_at(path).shape)
            if shape != known.shape:
                raise ArgumentError(
                    f"'{path}' is of shape {shape}, and was of {known.shape} when the orbits were found; call "
                    "find_orbits again"
                )
        self.keep = [np.ones(count, bool) for count in orbits.counts]
        for orbit, positions in self.removed.items():
            self.keep[orbit.reading][orbit.components[positions]] = False
        self._first_paths = orbits.first_paths()

    def at(self, orbits: Orbits) -> Selection:
        """The same where the graph was read at other sizes.

        What is removed of parameters is the same. A unit goes of which any of that is part; what may not be removed at
        these sizes stays, but for the parameters themselves.

        Args:
            orbits: the readings of the graph at these sizes.
        """
        assert self.orbits is not None
        result = copy(self)
        result.orbits, result._known = orbits, {}
        result._first_paths = orbits.first_paths()
        result.keep = []
        for number, (before, after) in enumerate(zip(self.orbits.readings, orbits.readings, strict=True)):
            component = orbits.components[number]
            gone = np.zeros(len(component), bool)
            for path, known in after.attributes.items():
                for old, new in zip(before.attributes[path].dims, known.dims, strict=True):
                    for ours, theirs in zip(arrays_of(old), arrays_of(new), strict=True):
                        gone[theirs[~self.keep[number][self.orbits.components[number][ours]]]] = True
            units = np.zeros(orbits.counts[number], bool)
            units[component[gone]] = True
            units[component[0]] = False
            result.keep.append(~(gone | units[component]))
        orbits.components = [np.arange(len(component), dtype=np.int32) for component in orbits.components]
        return result

    def mask(self, dims: list[Dim]) -> Mask | None:
        """What is kept of a dimension.

        Args:
            dims: its labels in every reading.

        Returns:
            For every position whether it is kept; None when all are.
        """
        key = tuple([id(dim) for dim in dims])
        if key in self._known:
            return self._known[key][1]
        kept: Mask | None = None
        assert self.orbits is not None
        for dim, keep, component in zip(dims, self.keep, self.orbits.components, strict=True):
            for array in arrays_of(dim):
                mask = keep[component[array]]
                kept = mask if kept is None else kept & mask
        if kept is not None and kept.all():
            kept = None
        elif kept is not None and any(_is_joined(array) for dim in dims for array in arrays_of(dim)):
            kept = kept.view(JoinedMask)
        self._known[key] = (dims, kept)  # the arrays stay alive, so that their ids stay theirs
        return kept

    def parts(self, dims: list[Dim]) -> list[tuple[Part, Mask | None]] | None:
        """The dimensions that are folded into one, where inputs decide how long some of them are.

        Args:
            dims: the labels of that one in every reading.

        Returns:
            For each of them where it comes from, and what is kept of it; None where nothing is folded like that.
        """
        assert self.orbits is not None
        readings = self.orbits.readings
        places = (reading.folded_at(dim) for reading, dim in zip(readings, dims, strict=True))
        at = next((place for place in places if place is not None), None)
        of_readings = [reading.parts.get(at, ()) for reading in readings] if at is not None else []
        finest = max(of_readings, key=len, default=())
        whole = [
            Part("", -1, 1, _product(finest), dim) for dim in dims
        ]  # as a reading knows it that has no parts of it
        aligned = [_aligned(parts or (one,), finest) for parts, one in zip(of_readings, whole, strict=False)]
        found: list[tuple[Part, Mask | None]] = []
        for parts in zip(*[parts for parts in aligned if parts is not None], strict=True):
            known = next((part for part in parts if part.vertex or not part.free), None)
            if known is None or None in aligned:
                return None
            found.append((known, self.mask([part.dim for part in parts])))
        return found or None

    def masks(self, values: list[Labelled]) -> list[Mask | None]:
        """What is kept of every dimension of a tensor, given what every reading knows of it."""
        return [self.mask([value.dims[axis] for value in values]) for axis in range(len(values[0].shape))]

    def kept(self, values: list[Any] | None) -> Any:
        """What is kept of every dimension of a value, given what every reading knows of it.

        Returns:
            `masks` of a tensor, of a container those of what it holds; None for what is no tensor.
        """
        if values is None:
            return None
        return map_together(lambda found: self.masks(found) if isinstance(found[0], Labelled) else None, values)

    def known(self, arg: Any) -> list[Any] | None:
        """What every reading knows of an argument that is a tensor, in evaluation; None where it is no such."""
        if isinstance(arg, Ref):
            return [pick(value, arg.index) for value in self.of(arg.vertex)]
        if isinstance(arg, Attr):
            return self.of_tensor(arg.path)
        return self.known(arg.evaluation) if isinstance(arg, ByMode) else None

    def dims_of(self, arg: Any, axis: int) -> list[Dim]:
        """The labels of a dimension of an argument that is a tensor, in every reading."""
        values = self.known(arg)
        return [] if values is None else [value.dims[axis] for value in values]

    def masks_of(self, arg: Any) -> Any:
        """What is kept of the dimensions of an argument that is a tensor; None where it is no such."""
        return self.kept(self.known(arg))

    def of(self, name: str) -> list[Any]:
        """What every reading knows of a vertex's result."""
        assert self.orbits is not None
        return [reading.values[name] for reading in self.orbits.readings]

    def of_tensor(self, path: str) -> list[Labelled] | None:
        """What every reading knows of a parameter or buffer; None where no vertex reads it."""
        assert self.orbits is not None
        first = self.first_path(path)
        return None if first is None else [reading.attributes[first] for reading in self.orbits.readings]

    def first_path(self, path: str) -> str | None:
        """The path by which a vertex reads a parameter or buffer first; it may have several, or none."""
        assert self.orbits is not None
        return self._first_paths.get(id(self.orbits.model.tensor_at(path)))


def _aligned(parts: Sequence[Part], finest: Sequence[Part]) -> list[Part] | None:
    """What is folded into a dimension as one reading knows it, in as many parts as another does.

    Returns:
        Parts like ``finest``, without labels where several of them are one in this reading; None where it has labels
        for those.
    """
    result: list[Part] = []
    for part in parts:
        inside, lengths = 0, [1] * len(part.lengths)
        while lengths != list(part.lengths):
            if len(result) + inside == len(finest):
                return None
            lengths = [a * b for a, b in zip(lengths, finest[len(result) + inside].lengths, strict=True)]
            inside += 1
        if inside == 1:
            result.append(part)
        elif isinstance(part.dim, np.ndarray):
            return None
        else:
            result += [replace(other, vertex="", dim=OTHER) for other in finest[len(result) : len(result) + inside]]
    return result if len(result) == len(finest) else None


def _product(parts: Sequence[Part]) -> tuple[int, ...]:
    """How long a dimension is into which some are folded, at each of the sizes that are known."""
    return tuple([math.prod(lengths) for lengths in zip(*[part.lengths for part in parts], strict=True)])


def _is_joined(array: Array) -> bool:
    """Whether channels stand once beside positions that have no labels of their own.

    Where there is a copy of them for every sample or place, all of it is there as often, and a share of it is removed.
    """
    labelled = array[array > FROZEN_HERE]
    return 0 < len(labelled) < len(array) and len(np.unique(labelled)) == len(labelled)


def _orbit(orbit: Any) -> Orbit:
    if not isinstance(orbit, Orbit):
        raise ArgumentTypeError(f"{orbit!r} is no Orbit; find_orbits gives them")
    return orbit


def _positions(orbit: Orbit, indices: Iterable[int], allow_empty: bool) -> NDArray[np.int64]:
    if not isinstance(indices, Iterable):
        raise ArgumentTypeError(f"{orbit!r}: positions are {indices!r}, expected an iterable of integers")
    listed = indices.tolist() if hasattr(indices, "tolist") else list(indices)
    if not isinstance(listed, list):
        raise ArgumentTypeError(
            f"{orbit!r}: positions are {indices!r}, expected an iterable of integers; write [{listed}]"
        )
    if not all(isinstance(index, (int, np.integer)) and not isinstance(index, bool) for index in listed):
        raise ArgumentTypeError(f"{orbit!r}: positions are {listed[:5]}, expected integers")
    wrong = [index for index in listed if not 0 <= index < orbit.width]
    if wrong:
        raise ArgumentError(f"{orbit!r} has units 0 to {orbit.width - 1}, given {wrong[:5]}")
    if len(set(listed)) != len(listed):
        raise ArgumentError(f"{orbit!r}: a unit is given twice")
    if len(listed) == orbit.width and not allow_empty:
        raise ArgumentError(
            f"{orbit!r} ({', '.join(orbit.sources[:3])}) would lose all of its {orbit.width} units; keep one, or let "
            "remove_channels(..., allow_empty=True) remove the whole branch"
        )
    return np.array(listed, np.int64)
