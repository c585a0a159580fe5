"""Orbits: families of units that prune as one vector."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from torchorbit.labels import Array, Dim, arrays_of
from torchorbit.operators import Reading
from torchorbit.orbits.costs import Costs
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.streams import Role, role_of
from torchorbit.orbits.tokens import is_of_tokens, weights_of


@dataclass(frozen=True, slots=True)
class Slice:
    """What a unit, an orbit or a group of frozen channels owns of one dimension of a parameter or buffer.

    Attributes:
        tensor: its path, as in ``state_dict()``; of several that by which a vertex reads it first.
        dim: the dimension along which it is cut.
        indices: positions along that dimension, ascending.
        shape: of the slice.
        values: the numbers, a copy; None unless `torchorbit.inspect.unit_slices` was asked for them.
    """

    tensor: str
    dim: int
    indices: tuple[int, ...]
    shape: tuple[int, ...]
    values: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, tensor: str, dim: int, indices: tuple[int, ...], whole: tuple[int, ...]) -> Slice:
        """The slice of a tensor of shape ``whole``."""
        return cls(tensor, dim, indices, (*whole[:dim], len(indices), *whole[dim + 1 :]))

    @property
    def mapping(self) -> list[list[tuple[int, int]] | None]:
        """For every dimension None, or pairs of a position in the tensor and its position in the slice."""
        pairs = [(index, position) for position, index in enumerate(self.indices)]
        return [pairs if dim == self.dim else None for dim in range(len(self.shape))]


class Orbit:
    """A family of units that prune as one vector.

    Made by `torchorbit.find_orbits`. ``orbit.width`` units can be removed one by one, down to one.

    Attributes:
        orbits: those of the graph, of which this is one.
        index: position among them.
        reading: the reading in which it was found: 0 for channels, 1 for what is around them where a dimension is
            split (whole heads, whole groups), and so on.
        components: the unit numbers, in the order of the channels.
    """

    def __init__(self, orbits: Orbits, index: int, reading: int, components: Array):
        self.orbits = orbits
        self.index = index
        self.reading = reading
        self.components = components

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.components)

    def __len__(self) -> int:
        return self.width

    @property
    def kind(self) -> str:
        """What its units are: ``"channels"``, ``"groups"`` of them (heads, say), ``"reading 2"`` and deeper; or tokens.

        ``"tokens"`` are learned ones, registers and queries say: parameters hold them, and no layer makes or takes
        them.
        """
        if is_of_tokens(self):
            return "tokens"
        return "channels" if self.reading == 0 else "groups" if self.reading == 1 else f"reading {self.reading}"

    @cached_property
    def role(self) -> Role:
        """Where its channels are: in a residual ``"stream"``, to which several blocks add, or ``"inner"`` to one.

        Whatever goes of a stream, all blocks on it lose; channels within a block are cheaper. A stream is where what
        is made at different depths is added. Gates that are multiplied by what they gate, and parallel layers that
        take in the same, make none.
        """
        return role_of(self)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Everything of parameters and buffers that the whole orbit owns."""
        return tuple(owned_slices(self.orbits, np.isin(self.orbits.positions[self.reading], self.components)))

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the vertices that produce its channels."""
        return self._touching(self.orbits.readings[self.reading].sources)

    @cached_property
    def sinks(self) -> tuple[str, ...]:
        """Names of the vertices that consume them."""
        return self._touching(self.orbits.readings[self.reading].sinks)

    def _touching(self, places: list[tuple[str, Array]]) -> tuple[str, ...]:
        component = self.orbits.components[self.reading]
        return tuple(dict.fromkeys([name for name, dim in places if np.isin(component[dim], self.components).any()]))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters that go when the whole orbit goes."""
        share: dict[str, dict[int, int]] = {}
        for piece in self.slices:
            share.setdefault(piece.tensor, {})[piece.dim] = len(piece.indices)
        total = 0
        trainable = self.orbits.trainable
        for path, cut in share.items():
            if path in trainable:
                shape = self.orbits.model.tensor_at(path).shape
                left = 1
                for axis, length in enumerate(shape):
                    left *= length - cut.get(axis, 0)
                total += int(np.prod(shape)) - left
        return total

    @cached_property
    def flops(self) -> float:
        """FLOPs (two per multiply-accumulate, one sample) of what runs on its channels, as far as they make them up."""
        kept = np.ones(self.orbits.counts[self.reading], bool)
        kept[self.components] = False
        return self.orbits.flops_saved({self.reading: kept})

    def __repr__(self) -> str:
        return f"Orbit({self.index}, width={self.width})"

    def __str__(self) -> str:
        names = self.sources or tuple(dict.fromkeys([piece.tensor for piece in self.slices]))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        sinks = ", ".join(self.sinks[:3]) + (f" and {len(self.sinks) - 3} more" if len(self.sinks) > 3 else "")
        arrow = f" -> {sinks}" if sinks else ""
        return (
            f"orbit {self.index}: {self.width} {self.kind} ({self.role}), {shown}{arrow}; "
            f"{self.parameters / 1e6:.3f} M parameters, {self.flops / 1e9:.3f} GFLOPs"
        )


@dataclass(slots=True)
class TensorDimension:
    """Where the labels of one dimension of a parameter or buffer lie; those that are tied as a whole share them."""

    path: str
    axis: int
    start: int
    length: int


class Orbits(Sequence[Orbit]):
    """The orbits of a graph. Prints as a table.

    Attributes:
        model: the graph as it was read.
        readings: what each reading found.
        components: for each reading, label -> unit; 0 is what may not be removed.
        counts: for each reading, the number of its units, 0 counted as one.
        parts: the dimensions of parameters and buffers.
        positions: for each reading, the unit at every position of ``parts``; 0 where there is none.
        unruled: names of operators that have no rule; what they touch is frozen.
        fixed: what the caller wanted frozen, as `torchorbit.orbits.discovery.find_orbits` understood it.
        dead: dimensions of parameters, as (path, dimension), that were left unlabelled since no reading can prune them.
    """

    fixed: Any = None
    dead: set[tuple[str, int]]

    def __init__(self, model: FlatModel, readings: list[Reading]):
        self.model = model
        self.readings = readings
        self.components = [reading.labels.components() for reading in readings]
        _keep_pieces(readings, self.components)
        self.counts = [int(component.max(initial=0)) + 1 for component in self.components]
        self.unruled = tuple(dict.fromkeys([name for reading in readings for name in reading.unruled]))
        self.parts, self.positions = _lay_out(readings, self.components)
        self.dead = set()
        self._orbits: list[Orbit] = []

    @classmethod
    def of(cls, model: FlatModel, readings: list[Reading]) -> Orbits:
        """Gather units into orbits, and leave out those that are found twice."""
        orbits = cls(model, readings)
        families: list[tuple[int, Array]] = []
        for number, reading in enumerate(readings):
            families += [(number, units) for units in _families(orbits, number, reading)]
        for number, units in _distinct(orbits, families):
            orbits._orbits.append(Orbit(orbits, len(orbits._orbits), number, units))
        return orbits

    @overload
    def __getitem__(self, index: int) -> Orbit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Orbit]: ...
    def __getitem__(self, index: int | slice) -> Orbit | Sequence[Orbit]:
        return self._orbits[index]

    def __len__(self) -> int:
        return len(self._orbits)

    def __contains__(self, orbit: object) -> bool:
        return isinstance(orbit, Orbit) and orbit.orbits is self

    @property
    def units(self) -> int:
        """Number of units in all orbits."""
        return sum(orbit.width for orbit in self)

    def of_tensor(self, path: str, dim: int = 0) -> list[Orbit]:
        """The orbits that own something of one dimension of a parameter or buffer.

        Args:
            path: its path, as in ``state_dict()``, or one of them where it has several.
            dim: the dimension; 0 is the output of a layer, 1 its input.
        """
        if not any(part.path == path for part in self.parts):
            try:
                path = self.first_paths().get(id(self.model.tensor_at(path)), path)
            except AttributeError:
                return []
        return [orbit for orbit in self if any(piece.tensor == path and piece.dim == dim for piece in orbit.slices)]

    def first_paths(self) -> dict[int, str]:
        """Id of a parameter or buffer -> the path by which a vertex reads it first."""
        found: dict[int, str] = {}
        for path in self.readings[0].attributes:
            found.setdefault(id(self.model.tensor_at(path)), path)
        return found

    @cached_property
    def weights(self) -> list[set[int]]:
        """For each reading, see `torchorbit.orbits.tokens.weights_of`."""
        return [weights_of(self, reading) for reading in self.readings]

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Paths of the parameters, buffers left out."""
        return frozenset(name for name, _ in self.model.dag.named_parameters(remove_duplicate=False))

    @cached_property
    def prunable_proportion(self) -> float:
        """FLOPs of the vertices of which any operand or the result has channels in an orbit, over all FLOPs.

        The figure that torch-dag publishes for the models that it supports.
        """
        used = [self._in_an_orbit(number) for number in range(len(self.readings))]
        costs = self.costs.each()
        touched = [
            costs[name]
            for name, arrays in self.costs.labels()
            if any(used[number][array].any() for number, array in arrays)
        ]
        return sum(touched) / sum(costs.values()) if any(costs.values()) else 0.0

    def _in_an_orbit(self, number: int) -> Any:
        """For every label of a reading, whether it is that of a unit of an orbit."""
        units = np.zeros(self.counts[number], bool)
        for orbit in self:
            if orbit.reading == number:
                units[orbit.components] = True
        return units[self.components[number]]

    @cached_property
    def costs(self) -> Costs:
        """What every vertex costs, whatever is removed."""
        return Costs(self)

    def flops_saved(self, keep: dict[int, Any]) -> float:
        """FLOPs that go when what ``keep`` leaves out is removed; it says for readings which units are kept."""
        return self.costs.total() - self.costs.total(keep)

    def __str__(self) -> str:
        rows = [
            (
                orbit.index,
                orbit.width,
                orbit.kind,
                orbit.role,
                ", ".join(orbit.sources[:2]) + (", ..." if len(orbit.sources) > 2 else ""),
                ", ".join(orbit.sinks[:2]) + (", ..." if len(orbit.sinks) > 2 else ""),
                f"{orbit.parameters / 1e6:.3f}",
                f"{orbit.flops / 1e9:.3f}",
            )
            for orbit in self
        ]
        table = tabulate(
            rows,
            headers=("orbit", "width", "unit", "role", "sources", "sinks", "M parameters", "GFLOPs"),
            disable_numparse=True,
        )
        if self.unruled:
            table += f"\nfrozen for want of a rule: {', '.join(self.unruled)}"
        return table


def owned_slices(orbits: Orbits, owned: NDArray[np.bool_]) -> Iterator[Slice]:
    """The slices of parameters and buffers at certain places.

    Args:
        orbits: of a graph.
        owned: for every place of ``orbits.positions``, whether it is one of them.
    """
    touched = np.zeros(len(owned) + 1, np.int64)
    np.cumsum(owned, out=touched[1:])
    shapes = orbits.readings[0].attributes
    for part in orbits.parts:
        stop = part.start + part.length
        if touched[part.start] != touched[stop]:
            indices = tuple(np.flatnonzero(owned[part.start : stop]).tolist())
            yield Slice.of(part.path, part.axis, indices, shapes[part.path].shape)


def _keep_pieces(readings: list[Reading], components: list[Array]) -> None:
    """Freeze units with which nothing might be left of a piece, though each orbit keeps some of its units in it.

    Where a slice cuts through groups, ``[a0 a1 b0]`` of two groups of two, whole groups (``a``) and channels in them
    (``0``) could go such that only ``b1`` is left. The units of the outer reading are then frozen.
    """
    for place in dict.fromkeys([place for reading in readings[1:] for place in reading.pieces]):
        inner: NDArray[np.int64] | None = None
        for component, reading in zip(components, readings, strict=True):
            piece = reading.pieces.get(place)
            if piece is None:
                continue
            units = component[piece].astype(np.int64)
            if inner is None:
                inner = units
            elif ((inner == 0) & (units == 0)).any() or _are_independent(inner, units):
                inner = inner * (units.max() + 1) + units
            else:
                component[np.isin(component, units)] = 0


def _are_independent(inner: NDArray[np.int64], outer: NDArray[np.int64]) -> bool:
    """Whether every unit of one reading stands in a piece together with every unit of another."""
    run = int(np.argmax(outer != outer[0])) or len(outer)
    if len(outer) % run == 0:
        inner_runs, outer_runs = inner.reshape(-1, run), outer.reshape(-1, run)
        if (inner_runs == inner[:run]).all() and (outer_runs == outer_runs[:, :1]).all():
            return True
    both = len(np.unique(inner * (outer.max() + 1) + outer))
    return both == len(np.unique(inner)) * len(np.unique(outer))


def _lay_out(readings: list[Reading], components: list[Array]) -> tuple[list[TensorDimension], list[Array]]:
    """Lay the labels of all dimensions one after the other, what was tied as a whole once."""
    parts: list[TensorDimension] = []
    seen: set[int] = set()
    places: dict[tuple[int, ...], int] = {}
    columns: list[list[Array]] = [[] for _ in readings]
    end = 0
    for path, first in readings[0].attributes.items():
        if id(first) in seen:
            continue
        seen.add(id(first))
        values = [reading.attributes[path] for reading in readings]
        for axis, length in enumerate(first.shape):
            for arrays in _layers([value.dims[axis] for value in values], length):
                arrays = [reading.labels.whole(array) for reading, array in zip(readings, arrays, strict=True)]
                key = tuple([id(array) for array in arrays])
                start = places.get(key)
                if start is None:
                    start = places[key] = end
                    end += length
                    for column, array in zip(columns, arrays, strict=True):
                        column.append(array)
                parts.append(TensorDimension(path, axis, start, length))
    laid = [np.concatenate(column) if column else np.empty(0, np.int32) for column in columns]
    return parts, [component[labels] for component, labels in zip(components, laid, strict=True)]


def _layers(dims: list[Dim], length: int) -> list[list[Array]]:
    """The arrays of one dimension in all readings, as often as it has several labels at a position."""
    if all(type(dim) is np.ndarray for dim in dims):
        return [dims]  # type: ignore[list-item]
    found = [list(arrays_of(dim)) for dim in dims]
    nothing = np.zeros(length, np.int32) if any(found) else None
    return [
        [arrays[layer] if layer < len(arrays) else nothing for arrays in found]  # type: ignore[misc]
        for layer in range(max(map(len, found)))
    ]


def _families(orbits: Orbits, number: int, reading: Reading) -> list[Array]:
    """Units that own slices of the same dimensions, and stand in the same pieces of them, form an orbit."""
    component, positions = orbits.components[number], orbits.positions[number]
    count = orbits.counts[number]
    given = _given(orbits, number, reading, count)
    runs = [positions[start : start + length] for start, length in {(part.start, part.length) for part in orbits.parts}]
    runs += [component[piece] for piece in reading.pieces.values()]
    marks = np.random.default_rng(0).integers(1, 2**62, size=len(runs), dtype=np.uint64)
    signature = np.zeros(count, np.uint64)
    for mark, run in zip(marks, runs, strict=True):
        signature[run] += mark
    units = np.flatnonzero(np.bincount(positions, minlength=count))
    units = units[(units != 0) & ~given[units]]
    order = np.argsort(signature[units], kind="stable")
    ordered = units[order]
    borders = [0, *(np.flatnonzero(np.diff(signature[ordered])) + 1).tolist(), len(ordered)]
    families = [ordered[start:stop] for start, stop in itertools.pairwise(borders) if stop - start > 1]
    return sorted(families, key=lambda family: int(family[0]))


def _given(orbits: Orbits, number: int, reading: Reading, count: int) -> Any:
    """Which units only buffers and other constants produce, and layers take in.

    They are the model's input, as its images are: coordinates, of which a small network makes a position bias.
    """
    component, positions = orbits.components[number], orbits.positions[number]
    consumed = {id(dim) for _, dim in reading.sinks}
    held: dict[int, int] = {}
    made: dict[int, int] = {}
    for part in orbits.parts:
        if part.path in orbits.model.buffers:
            held[part.start] = part.length
        elif id(reading.attributes[part.path].dims[part.axis]) not in consumed:
            made[part.start] = part.length
    result = np.zeros(count, bool)
    for start, length in held.items():
        if start not in made:
            result[positions[start : start + length]] = True
    for name in orbits.model.constants.ends:
        for dim in reading.values[name].dims:
            if isinstance(dim, np.ndarray):
                result[component[dim]] = True
    if result.any():
        for start, length in made.items():
            result[positions[start : start + length]] = False
        for _, dim in reading.sources:
            result[component[dim]] = False
    return result


def _distinct(orbits: Orbits, families: list[tuple[int, Array]]) -> list[tuple[int, Array]]:
    """Leave out what another reading finds as well: the same units, or unions of its units."""
    kept = [(number, units) for number, units in families if number == 0]
    for number in range(1, len(orbits.readings)):
        for candidate in [units for n, units in families if n == number]:
            kept.append((number, candidate))
        fine = list(range(number))
        kept = _without_unions(orbits, kept, number, fine)
    return kept


def _without_unions(
    orbits: Orbits, kept: list[tuple[int, Array]], number: int, others: list[int]
) -> list[tuple[int, Array]]:
    result = kept
    for other in others:
        coarse = _unions(orbits, number, other, _all_units(orbits, kept, other))
        result = [(n, units) for n, units in result if n != number or not coarse[units].all()]
        coarse = _unions(orbits, other, number, _all_units(orbits, result, number))
        result = [(n, units) for n, units in result if n != other or not coarse[units].all()]
    return result


def _all_units(orbits: Orbits, kept: list[tuple[int, Array]], number: int) -> Any:
    """Which units of a reading belong to an orbit that is kept."""
    used = np.zeros(orbits.counts[number], bool)
    for n, units in kept:
        if n == number:
            used[units] = True
    return used


def _unions(orbits: Orbits, coarse: int, fine: int, used: Any) -> Any:
    """For every unit of one reading, whether it is a union of (kept) units of another one."""
    ours, theirs = orbits.positions[coarse], orbits.positions[fine]
    around = np.zeros(len(used), np.int32)
    around[theirs] = ours  # for every unit of the fine reading, one of the coarse that it meets
    inside = used.copy()
    inside[theirs[around[theirs] != ours]] = False  # it meets another one, too
    result = np.ones(orbits.counts[coarse], bool)
    result[ours[~inside[theirs]]] = False
    result[0] = False
    return result
