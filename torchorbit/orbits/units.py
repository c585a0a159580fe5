"""What one unit owns, and what it passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from tabulate import tabulate

from torchorbit.errors import ArgumentIndexError, ArgumentTypeError
from torchorbit.orbits.lookups import current
from torchorbit.orbits.orbit import Orbit, Orbits, Slice, owned_slices
from torchorbit.orbits.passing import Member, Passing, Show
from torchorbit.orbits.showing import check_show, members_table


class UnitSlices(Sequence[Slice]):
    """The slices of one unit, in the order in which the model uses the tensors. Prints as a table.

    Made by `unit_slices`.

    Attributes:
        orbit: of the unit.
        unit: which one.
    """

    def __init__(self, orbit: Orbit, unit: int, slices: Sequence[Slice]):
        self.orbit = orbit
        self.unit = unit
        self._slices = tuple(slices)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Slice]: ...
    def __getitem__(self, index: int | slice) -> Slice | Sequence[Slice]:
        return self._slices[index]

    def __len__(self) -> int:
        return len(self._slices)

    def __str__(self) -> str:
        rows = [(piece.tensor, piece.shape, piece.mapping) for piece in self]
        table = tabulate(rows, headers=("tensor name", "shape", "mapping"), disable_numparse=True)
        return f"unit {self.unit} of orbit {self.orbit.index}\n{table}"


@dataclass(frozen=True, slots=True)
class UnitDependencies:
    """Everything that one unit passes, in the order of the graph. Prints as a table.

    Attributes:
        orbit: of the unit.
        unit: which one.
        members: what it passes.
    """

    orbit: Orbit
    unit: int
    members: tuple[Member, ...]

    def __str__(self) -> str:
        return f"unit {self.unit} of orbit {self.orbit.index}\n{members_table(self.members)}"


def unit_slices(orbit: Orbit, unit: int, *, values: bool = False) -> UnitSlices:
    """What one unit owns of parameters and buffers (ENOT's ``get_label_filters``, ``tabulate_label_filters``).

    Args:
        orbit: one of `torchorbit.find_orbits`.
        unit: which of its units, from 0 to ``orbit.width - 1``.
        values: copy the numbers, too.

    Raises:
        ArgumentIndexError: there is no such unit.
        ArgumentError: the graph was changed since the orbit was found.
    """
    orbits = _of(orbit, unit)
    found = []
    for piece in owned_slices(orbits, orbits.positions[orbit.reading] == orbit.components[unit]):
        if values:
            tensor = orbits.model.tensor_at(piece.tensor).detach()
            copied = tensor.index_select(piece.dim, torch.tensor(piece.indices, device=tensor.device))
            piece = dataclasses.replace(piece, values=copied)
        found.append(piece)
    return UnitSlices(orbit, unit, found)


def unit_dependencies(orbit: Orbit, unit: int, *, show: Show = "all") -> UnitDependencies:
    """Everything that one unit passes (ENOT's ``tabulate_label_dependencies``).

    Args:
        orbit: one of `torchorbit.find_orbits`.
        unit: which of its units, from 0 to ``orbit.width - 1``.
        show: ``"layers"`` lists those that produce or consume it, ``"parameters"`` also what holds it, ``"all"`` also
            every other vertex that it passes.

    Raises:
        ArgumentIndexError: there is no such unit.
        ArgumentError: the graph was changed since the orbit was found, or ``show`` is none of these.
    """
    orbits = _of(orbit, unit)
    check_show(show)
    passing = Passing(orbits, orbit.reading, np.asarray(orbit.components[unit : unit + 1]))
    return UnitDependencies(orbit, unit, passing.members(show))


def _of(orbit: Orbit, unit: int) -> Orbits:
    """The orbits that one of which a unit is meant belongs to."""
    if not isinstance(orbit, Orbit):
        raise ArgumentTypeError(f"{orbit!r} is no Orbit; find_orbits gives them")
    current(orbit.orbits)
    if not 0 <= unit < orbit.width:
        raise ArgumentIndexError(f"{orbit!r} has {orbit.width} units, there is no unit {unit}")
    return orbit.orbits
