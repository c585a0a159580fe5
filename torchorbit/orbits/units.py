"""What one unit owns, and what it passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from torchorbit.errors import ArgumentTypeError
from torchorbit.orbits.lookups import current
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.passing import Member, Passing, Show
from torchorbit.orbits.showing import check_show, members_table


@dataclass(frozen=True, slots=True, eq=False)
class UnitSlice:
    """What a unit owns of one dimension of a parameter or buffer.

    Attributes:
        tensor: its path.
        shape: shape of the slice.
        dim: the dimension along which it is cut.
        indices: positions along that dimension, ascending.
        values: the numbers, a copy; None unless they were asked for.
    """

    tensor: str
    shape: tuple[int, ...]
    dim: int
    indices: tuple[int, ...]
    values: Tensor | None = None

    @property
    def mapping(self) -> list[list[tuple[int, int]] | None]:
        """For every dimension None, or pairs of a position in the tensor and its position in the slice."""
        pairs = [(index, position) for position, index in enumerate(self.indices)]
        return [pairs if dim == self.dim else None for dim in range(len(self.shape))]


class OwnedSlices(Sequence[UnitSlice]):
    """The slices of one unit, in the order in which the model uses the tensors. Prints as a table.

    Made by `unit_slices`.

    Attributes:
        orbit: of the unit.
        unit: which one.
    """

    def __init__(self, orbit: Orbit, unit: int, slices: Sequence[UnitSlice]):
        self.orbit = orbit
        self.unit = unit
        self._slices = tuple(slices)

    @overload
    def __getitem__(self, index: int) -> UnitSlice: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[UnitSlice]: ...
    def __getitem__(self, index: int | slice) -> UnitSlice | Sequence[UnitSlice]:
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


def unit_slices(orbit: Orbit, unit: int, *, values: bool = False) -> OwnedSlices:
    """What one unit owns of parameters and buffers (ENOT's ``get_label_filters``, ``tabulate_label_filters``).

    Args:
        orbit: one of `torchorbit.find_orbits`.
        unit: which of its units, from 0 to ``orbit.width - 1``.
        values: copy the numbers, too.

    Raises:
        ArgumentIndexError: there is no such unit.
        ArgumentError: the graph was changed since the orbit was found.
    """
    model = _of(orbit).model
    found = []
    for piece in orbit.unit(unit):
        tensor = model.tensor_at(piece.tensor).detach()
        shape = [len(piece.indices) if dim == piece.dim else length for dim, length in enumerate(tensor.shape)]
        copied = None
        if values:
            copied = tensor.index_select(piece.dim, torch.tensor(piece.indices, device=tensor.device))
        found.append(UnitSlice(piece.tensor, tuple(shape), piece.dim, piece.indices, copied))
    return OwnedSlices(orbit, unit, found)


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
    orbits = _of(orbit)
    check_show(show)
    orbit.unit(unit)
    passing = Passing(orbits, orbit.reading, np.asarray(orbit.components[unit : unit + 1]))
    return UnitDependencies(orbit, unit, passing.members(show))


def _of(orbit: Orbit) -> Orbits:
    if not isinstance(orbit, Orbit):
        raise ArgumentTypeError(f"{orbit!r} is no Orbit; find_orbits gives them")
    current(orbit.orbits)
    return orbit.orbits
