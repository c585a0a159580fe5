"""Which channels of a model are frozen, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from torchorbit.arguments import Attr, Ref
from torchorbit.labels import Array, arrays_of
from torchorbit.operators import Labelled, Reading
from torchorbit.orbits.causes import Causes, Freeze, Reason, RecordedLabels
from torchorbit.orbits.discovery import read_again
from torchorbit.orbits.lookups import current
from torchorbit.orbits.orbit import Orbits, Slice

_Mask = NDArray[np.bool_]
_SHOWN = 3  # names in a cell of a table


@dataclass(frozen=True, slots=True)
class FrozenGroup:
    """Channels that may not be removed for the same reasons, and stand in the same tensors.

    Attributes:
        width: how many there are; those that are tied to each other count once.
        reasons: why; several where several things freeze them.
        slices: what they own of parameters and buffers.
        sources: names of the vertices that produce them.
        sinks: names of the vertices that consume them.
        space: whether they are no channels but places in the kernels of convolutions.
    """

    width: int
    reasons: tuple[Reason, ...]
    slices: tuple[Slice, ...]
    sources: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    space: bool = False

    def __str__(self) -> str:
        tensors = [f"{piece.tensor} (dimension {piece.dim})" for piece in self.slices]
        why = "; ".join([reason.text for reason in self.reasons])
        return f"{self.width} frozen, {_shown(tensors)}: {why}"


class FrozenGroups(Sequence[FrozenGroup]):
    """Groups of frozen channels, in the order in which the model uses their parameters. Prints as a table.

    Made by `frozen_groups`.
    """

    def __init__(self, groups: Sequence[FrozenGroup], vertices: _Values):
        self._groups = list(groups)
        self._vertices = vertices

    @overload
    def __getitem__(self, index: int) -> FrozenGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FrozenGroup]: ...
    def __getitem__(self, index: int | slice) -> FrozenGroup | Sequence[FrozenGroup]:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def of_tensor(self, path: str, dim: int | None = None) -> list[FrozenGroup]:
        """The groups that own something of a parameter or buffer, or of one dimension of it."""
        return [
            group for group in self if any(piece.tensor == path and dim in (None, piece.dim) for piece in group.slices)
        ]

    def reasons(self, path: str, dim: int, index: int) -> tuple[Reason, ...]:
        """Why one position of a dimension of a parameter or buffer may not be removed; empty where it may."""
        for group in self.of_tensor(path, dim):
            if any(p.tensor == path and p.dim == dim and index in p.indices for p in group.slices):
                return group.reasons
        return ()

    def reasons_at(self, vertex: str, axis: int, index: int) -> tuple[Reason, ...]:
        """Why one position of what a vertex gives may not be removed; empty where nothing is known against it."""
        return self._vertices.reasons(vertex, axis, index)

    def __str__(self) -> str:
        rows = []
        for group in self:
            tensors = list(dict.fromkeys([f"{piece.tensor} [{piece.dim}]" for piece in group.slices]))
            why = "\n".join([reason.text for reason in group.reasons])
            rows.append((group.width, _shown(tensors), _shown(group.sources), _shown(group.sinks), why))
        headers = ("frozen", "of tensors [dimension]", "sources", "sinks", "why")
        return tabulate(rows, headers=headers, disable_numparse=True)


def frozen_groups(orbits: Orbits, *, space: bool = False) -> FrozenGroups:
    """Say which channels are in no orbit, and why (ENOT's ``tabulate_unprunable_groups``).

    The graph is read again for it, with notes of what freezes what.

    Args:
        orbits: what `torchorbit.find_orbits` found.
        space: list the places in kernels of convolutions (their heights and widths) as well, which are labelled like
            channels, and always frozen.

    Raises:
        ArgumentError: the graph was changed since the orbits were found.
    """
    current(orbits)
    owned = _owned(orbits)
    readings = read_again(orbits, RecordedLabels)
    analysis = _Analysis(orbits, readings)
    found = list(analysis.groups(owned))
    if orbits.dead:
        # They have no labels in the last round. What froze them is in the first.
        first = _Analysis(orbits, read_again(orbits, RecordedLabels, with_dead=True))
        found += first.groups({dim: mask for dim, mask in owned.items() if dim in orbits.dead}, only=orbits.dead)
    order = {path: n for n, path in enumerate(orbits.readings[0].attributes)}
    found.sort(key=lambda group: (order[group.slices[0].tensor], group.slices[0].dim, group.slices[0].indices[0]))
    return FrozenGroups([group for group in found if space or not group.space], _Values(analysis))


def _owned(orbits: Orbits) -> dict[tuple[str, int], _Mask]:
    """For every dimension of parameters and buffers, which positions belong to an orbit."""
    used = []
    for number, count in enumerate(orbits.counts):
        units = np.zeros(count, bool)
        for orbit in orbits:
            if orbit.reading == number:
                units[orbit.components] = True
        used.append(units[orbits.positions[number]])
    laid: _Mask = np.logical_or.reduce(used)
    found: dict[tuple[str, int], _Mask] = {}
    for part in orbits.parts:
        mask = laid[part.start : part.start + part.length]
        key = (part.path, part.axis)
        found[key] = found[key] | mask if key in found else mask
    return found


class _Analysis:
    """Why what is tied together is frozen.

    Args:
        orbits: of the graph.
        readings: recorded ones of it.
    """

    def __init__(self, orbits: Orbits, readings: list[Reading]):
        self.orbits = orbits
        self.readings = readings
        self.components = [reading.labels.components() for reading in readings]
        self.causes = [Causes(orbits.model, reading, orbits.fixed.vertices) for reading in readings]
        self._kernels = _kernels(orbits, readings, self.components[0])
        self._known: dict[Any, list[Reason]] = {}

    @cached_property
    def _freezes(self) -> list[dict[int, list[Freeze]]]:
        """For every reading, unit -> what would freeze it."""
        found: list[dict[int, list[Freeze]]] = []
        for reading, component in zip(self.readings, self.components, strict=True):
            of_units: dict[int, list[Freeze]] = {}
            labels = reading.labels
            assert isinstance(labels, RecordedLabels)
            for freeze in labels.freezes:
                for unit in np.unique(component[freeze.labels]).tolist():
                    of_units.setdefault(unit, []).append(freeze)
            found.append(of_units)
        return found

    def reasons(self, labels: Array) -> tuple[Reason, ...]:
        """Why some labels, which are tied in the first reading, are frozen: in all readings, or else in each."""
        units = [np.unique(component[labels]).tolist() for component in self.components]
        found = [
            (number, freeze)
            for number, of_units in enumerate(self._freezes)
            for unit in units[number]
            for freeze in of_units.get(unit, ())
        ]
        everywhere = [(number, freeze) for number, freeze in found if not freeze.here]
        reasons: dict[Reason, None] = {}
        for number, freeze in everywhere or found:
            key = (number, freeze.at, freeze.here, freeze.bare, freeze.length)
            if key not in self._known:
                self._known[key] = self.causes[number].reasons(freeze)
            reasons.update(dict.fromkeys(self._known[key]))
        return tuple(reasons)

    def groups(
        self, owned: dict[tuple[str, int], _Mask], only: set[tuple[str, int]] | None = None
    ) -> Iterator[FrozenGroup]:
        """Groups of what is not owned.

        Args:
            owned: dimension -> which positions belong to an orbit; none where it is not there.
            only: dimensions to look at; by default all.
        """
        component = self.components[0]
        units: dict[int, dict[tuple[str, int], list[int]]] = {}
        labels: dict[int, list[int]] = {}
        seen: set[int] = set()
        for path, value in self.readings[0].attributes.items():
            if id(value) in seen:
                continue
            seen.add(id(value))
            for axis, dim in enumerate(value.dims):
                if only is not None and (path, axis) not in only:
                    continue
                for array in arrays_of(dim):
                    mask = owned.get((path, axis))
                    positions = np.arange(len(array)) if mask is None else np.flatnonzero(~mask)
                    for position, label in zip(positions.tolist(), array[positions].tolist(), strict=True):
                        unit = int(component[label])
                        units.setdefault(unit, {}).setdefault((path, axis), []).append(position)
                        labels.setdefault(unit, []).append(label)
        families: dict[Any, list[int]] = {}
        for unit, stands in units.items():
            reasons = self.reasons(np.array(labels[unit])) or (_without_a_cause(self.orbits, stands),)
            families.setdefault((tuple(stands), reasons), []).append(unit)
        for (keys, reasons), family in families.items():
            slices = []
            for key in keys:
                indices = sorted({position for unit in family for position in units[unit][key]})
                shape = self.readings[0].attributes[key[0]].shape
                slices.append(Slice.of(key[0], key[1], tuple(indices), shape))
            space = bool(self._kernels[family].all())
            sources = self._touching(self.readings[0].sources, family)
            sinks = self._touching(self.readings[0].sinks, family)
            yield FrozenGroup(len(family), reasons, tuple(slices), sources, sinks, space)

    def _touching(self, places: list[tuple[str, Array]], family: list[int]) -> tuple[str, ...]:
        component = self.components[0]
        return tuple(dict.fromkeys([name for name, dim in places if np.isin(component[dim], family).any()]))


class _Values:
    """Why channels of results are frozen."""

    def __init__(self, analysis: _Analysis):
        self.analysis = analysis

    def reasons(self, vertex: str, axis: int, index: int) -> tuple[Reason, ...]:
        value = self.analysis.readings[0].values[vertex]
        dim = value.dims[axis] if isinstance(value, Labelled) else None
        arrays = list(arrays_of(dim))
        if arrays:
            return self.analysis.reasons(np.array([array[index] for array in arrays]))
        origin = self.analysis.causes[0].origin(vertex)
        return () if origin is None else (origin,)


def _kernels(orbits: Orbits, readings: list[Reading], component: Array) -> NDArray[np.bool_]:
    """For every unit of the first reading, whether it is a place in the height or width of a convolution's kernel."""
    found = np.zeros(int(component.max(initial=0)) + 1, bool)
    for call in orbits.model.calls.values():
        weight = call.args.get("weight") if call.operator.startswith("conv") else None
        if not isinstance(weight, (Ref, Attr)):
            continue
        for reading in readings:  # the labels of parameters are the same in all of them
            known = reading.attributes[weight.path] if isinstance(weight, Attr) else reading.values[weight.vertex]
            for array in [array for dim in known.dims[2:] for array in arrays_of(dim)]:
                found[component[array[array < len(component)]]] = True
    return found


def _without_a_cause(orbits: Orbits, stands: dict[tuple[str, int], list[int]]) -> Reason:
    """Nothing froze it, and still it is in no orbit."""
    if all(path in orbits.model.buffers for path, _ in stands):
        return Reason("constant", "", "only buffers hold them")
    if any(path in orbits.model.buffers for path, _ in stands):
        return Reason("constant", "", "only buffers produce them, as an input of a part of the model")
    return Reason("alone", "", "no other channel is like it, so nothing would be left of the dimension")


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
