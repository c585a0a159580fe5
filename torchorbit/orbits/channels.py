"""Channels of a layer or tensor, and the units of orbits that they belong to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchorbit.arguments import Attr, Ref
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import ModuleVertex, Vertex
from torchorbit.labels import arrays_of
from torchorbit.operators import KNOWN, Labelled
from torchorbit.orbits.causes import Reason
from torchorbit.orbits.frozen import FrozenGroups, frozen_groups
from torchorbit.orbits.lookups import module_path, vertices_of_module
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.suggesting import close_to


@dataclass(frozen=True, slots=True, eq=False)
class _Owners:
    """Which unit owns every position of a dimension, by one of its labels.

    Attributes:
        orbit: index of the orbit; -1 where none does.
        unit: which of its units.
    """

    orbit: NDArray[np.int64]
    unit: NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Channels:
    """The channels along one dimension of a tensor of a graph.

    Attributes:
        orbits: of the graph.
        name: what they are, in words.
        values: what every reading knows of the tensor.
        axis: the dimension.
        vertices: names of the vertices that the layer, or whoever reads the tensor, is computed by.
        why: why one position is frozen.
    """

    orbits: Orbits
    name: str
    values: list[Labelled]
    axis: int
    vertices: tuple[str, ...]
    why: Callable[[FrozenGroups, int], tuple[Reason, ...]]
    _owners: list[_Owners] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, value in enumerate(self.values):
            orbit = np.full(self.orbits.counts[number], -1)
            unit = np.zeros(self.orbits.counts[number], np.int64)
            for found in self.orbits:
                if found.reading == number:
                    orbit[found.components] = found.index
                    unit[found.components] = np.arange(found.width)
            for array in arrays_of(value.dims[self.axis]):
                components = self.orbits.components[number][array]
                self._owners.append(_Owners(orbit[components], unit[components]))

    @classmethod
    def of(cls, orbits: Orbits, module: nn.Module | str, dim: int) -> Channels:
        """The channels that a layer gives (``dim=0``) or takes (1), or those along a dimension of a tensor.

        Raises:
            ArgumentError: there is no such layer, tensor or dimension, or it has no channels to speak of.
            ArgumentTypeError: ``module`` is neither.
        """
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise ArgumentTypeError(f"dim={dim!r}, expected 0 for what a layer gives, 1 for what it takes")
        if isinstance(module, str):
            paths = [path for path, _ in orbits.model.dag.named_parameters(remove_duplicate=False)]
            paths += [path for path, _ in orbits.model.dag.named_buffers(remove_duplicate=False)]
            if module in paths:
                return cls._of_tensor(orbits, module, dim)
            modules = [path for path, _ in orbits.model.dag.named_modules(remove_duplicate=False) if path]
            if module not in modules:
                like = close_to(module, modules + paths)
                raise ArgumentError(f"there is no module, parameter or buffer '{module}' in the graph{like}")
        path = module_path(orbits, module)
        if dim not in (0, 1):
            raise ArgumentError(f"dim={dim} of module '{path}', expected 0 for what it gives, 1 for what it takes")
        vertex = vertices_of_module(orbits, path)[0]
        if isinstance(vertex, ModuleVertex) and vertex.target == path:
            found = cls._of_vertex(orbits, path, vertex, dim)
        elif isinstance(getattr(orbits.model.dag.get_submodule(path), "weight", None), nn.Parameter):
            found = cls._of_tensor(orbits, f"{path}.weight", dim)  # it was written as operators
        else:
            found = None
        if found is None:
            raise ArgumentError(
                f"module '{path}' {'takes' if dim else 'gives'} no channels that are known by their numbers: give a "
                "convolution, a linear layer, a normalization or (dim=0) an embedding, or the path of a parameter and "
                "its dimension"
            )
        return found

    @classmethod
    def _of_tensor(cls, orbits: Orbits, path: str, dim: int) -> Channels:
        tensor = orbits.model.tensor_at(path)
        if not -tensor.dim() <= dim < tensor.dim():
            raise ArgumentError(f"dim={dim}, but '{path}' is of shape {tuple(tensor.shape)}")
        dim %= tensor.dim()
        first = orbits.first_paths().get(id(tensor))
        if first is None:
            raise ArgumentError(f"the model does not use '{path}'")
        readers = [
            name
            for name, call in orbits.model.calls.items()
            if any(type(arg) is Attr and orbits.model.tensor_at(arg.path) is tensor for arg in call.args.values())
        ]

        def why(groups: FrozenGroups, index: int) -> tuple[Reason, ...]:
            return groups.reasons(first, dim, index)

        values = [reading.attributes[first] for reading in orbits.readings]
        return cls(orbits, f"'{path}' (dimension {dim})", values, dim, tuple(readers[:1]), why)

    @classmethod
    def _of_vertex(cls, orbits: Orbits, path: str, vertex: Vertex, dim: int) -> Channels | None:
        call = orbits.model.calls[vertex.name]
        arg: Any = Ref(vertex.name)
        if dim:
            arg = call.args.get("input")
        row = KNOWN.get(call.operator)
        if type(arg) is not Ref or row is None or row.channels is None or (dim and not row.channels_in):
            return None
        values = [pick(reading.values[arg.vertex], arg.index) for reading in orbits.readings]
        weight = call.args.get("weight")
        weight_rank = orbits.model.tensor_at(weight.path).dim() if type(weight) is Attr else 0
        axis = row.channels(len(values[0].shape), weight_rank, orbits.model.module_at(path))

        def why(groups: FrozenGroups, index: int) -> tuple[Reason, ...]:
            return groups.reasons_at(arg.vertex, axis, index)

        side = "what it takes" if dim else "what it gives"
        return cls(orbits, f"'{path}' ({side})", values, axis, (vertex.name,), why)

    @property
    def length(self) -> int:
        """How many there are."""
        return int(self.values[0].shape[self.axis])

    def positions(self, indices: Iterable[int]) -> list[int]:
        """The channels that a caller asks for, ascending.

        Raises:
            ArgumentError: one is out of range or given twice.
            ArgumentTypeError: they are no integers.
        """
        try:
            listed = [operator.index(index) for index in indices]
        except TypeError:
            raise ArgumentTypeError(f"indices are {indices!r}, expected an iterable of integers") from None
        wrong = [index for index in listed if not 0 <= index < self.length]
        if wrong:
            raise ArgumentError(f"{self.name} has channels 0 to {self.length - 1}, given {wrong[:5]}")
        if len(set(listed)) != len(listed):
            raise ArgumentError(f"a channel of {self.name} is given twice")
        return sorted(listed)

    def units(self, wanted: list[int]) -> tuple[dict[Orbit, set[int]], list[int]]:
        """The units that channels belong to.

        Where they are units in several ways, that way is taken in which the fewest channels go beside those wanted.

        Returns:
            Orbit -> units; and those of the channels that belong to none.
        """
        best: tuple[int, int] | None = None
        units: dict[Orbit, set[int]] = {}
        for owners in self._owners:
            found, missing = _gathered(self.orbits, [owners], wanted)
            beside = sum(len(self.positions_of(orbit, of_orbit)) for orbit, of_orbit in found.items())
            if best is None or (len(missing), beside) < best:
                best, units = (len(missing), beside), found
        if best is not None and not best[0]:
            return units, []
        return _gathered(self.orbits, self._owners, wanted)

    def owners(self) -> list[tuple[Orbit, int] | None]:
        """For every channel the orbit and unit that it belongs to, in the first reading in which it has one."""
        return [
            next(
                (
                    (self.orbits[int(owners.orbit[index])], int(owners.unit[index]))
                    for owners in self._owners
                    if owners.orbit[index] >= 0
                ),
                None,
            )
            for index in range(self.length)
        ]

    def units_at(self, orbit: Orbit, wanted: list[int]) -> set[int]:
        """The units of one orbit that channels belong to."""
        return {
            int(owners.unit[index]) for owners in self._owners for index in wanted if owners.orbit[index] == orbit.index
        }

    def positions_of(self, orbit: Orbit, units: set[int]) -> list[int]:
        """The channels that belong to units of an orbit."""
        going = np.zeros(self.length, bool)
        for owners in self._owners:
            going |= (owners.orbit == orbit.index) & np.isin(owners.unit, list(units))
        return [int(index) for index in np.flatnonzero(going)]

    def reasons(self, index: int) -> tuple[Reason, ...]:
        """Why a channel is frozen."""
        if self.length == 1:
            return (Reason("alone", "", "it is the only one, and nothing would be left"),)
        return self.why(frozen_groups(self.orbits, space=True), index)


def _gathered(orbits: Orbits, ways: list[_Owners], wanted: list[int]) -> tuple[dict[Orbit, set[int]], list[int]]:
    """The units of channels by the first of several ways in which each belongs to one."""
    found: dict[Orbit, set[int]] = {}
    missing = []
    for index in wanted:
        owners = next((owners for owners in ways if owners.orbit[index] >= 0), None)
        if owners is None:
            missing.append(index)
        else:
            found.setdefault(orbits[int(owners.orbit[index])], set()).add(int(owners.unit[index]))
    return found, missing
