"""What a module depends on: the orbits whose channels it produces, consumes or passes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate
from torch import nn

from torchorbit.arguments import Ref, operands_of
from torchorbit.containers import map_together
from torchorbit.errors import ArgumentKeyError
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import Vertex
from torchorbit.labels import arrays_of
from torchorbit.operators import Labelled
from torchorbit.orbits.frozen import FrozenGroup, frozen_groups
from torchorbit.orbits.lookups import current, described, module_path, vertices_of_module
from torchorbit.orbits.operands import labelled_in
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.passing import Member, Passing, Show
from torchorbit.orbits.showing import check_show, members_table


@dataclass(frozen=True, slots=True)
class OrbitDependencies:
    """An orbit as a module meets it.

    Attributes:
        orbit: the orbit.
        produced: whether the module has its channels in what it gives.
        consumed: whether it has them in what it takes.
        members: what the channels pass, those that consume them left out.
        users: the layers that consume them.
    """

    orbit: Orbit
    produced: bool
    consumed: bool
    members: tuple[Member, ...]
    users: tuple[Member, ...]

    def __str__(self) -> str:
        how = "takes and gives" if self.produced and self.consumed else "gives" if self.produced else "takes"
        orbit = self.orbit
        text = f"orbit {orbit.index} ({orbit.width} {orbit.kind}), which it {how}\n{members_table(self.members)}"
        return f"{text}\nits users\n{members_table(self.users)}" if self.users else text


@dataclass(frozen=True, slots=True)
class ModuleDependencies:
    """What a module depends on. Prints as tables.

    Attributes:
        module: its path.
        description: what it is, as PyTorch prints it; empty for a block.
        vertices: names of the vertices that compute it.
        operators: what these call.
        labels: of each vertex what its result holds, dimension by dimension: None, or how many positions of which
            orbits, and how many frozen.
        orbits: those whose channels it gives or takes, in the order of the graph.
        frozen: groups of channels of it that may not be removed, with the reasons.
    """

    module: str
    description: str
    vertices: tuple[str, ...]
    operators: tuple[str, ...]
    labels: tuple[Any, ...]
    orbits: tuple[OrbitDependencies, ...]
    frozen: tuple[FrozenGroup, ...]

    def of_orbit(self, orbit: Orbit) -> OrbitDependencies:
        """What is known of one orbit.

        Raises:
            ArgumentKeyError: the module has none of its channels.
        """
        for found in self.orbits:
            if found.orbit is orbit:
                return found
        raise ArgumentKeyError(f"module '{self.module}' has no channels of {orbit!r}")

    def __str__(self) -> str:
        rows = [
            ("module", self.module),
            ("is", self.description or "a block"),
            ("vertices", ", ".join(self.vertices)),
            ("operators", ", ".join(self.operators)),
            ("orbits", len(self.orbits)),
            ("frozen groups", len(self.frozen)),
        ]
        if len(self.vertices) == 1:
            rows.append(("gives", _labels_text(self.labels[0])))
        parts = [tabulate(rows, disable_numparse=True), *map(str, self.orbits), *map(str, self.frozen)]
        return "\n\n".join(parts)


def module_dependencies(orbits: Orbits, module: nn.Module | str, *, show: Show = "layers") -> ModuleDependencies:
    """Say which orbits go through a module, and what else they go through (ENOT's ``tabulate_module_dependencies``).

    Args:
        orbits: what `torchorbit.find_orbits` found.
        module: a module of the graph or its path; a layer or a block.
        show: ``"layers"`` lists those that produce or consume the channels, ``"parameters"`` also the parameters and
            buffers that hold them, ``"all"`` also every vertex that passes them on; in the order of the graph.

    Raises:
        ArgumentError: there is no such module, the model does not use it, the graph was changed since the orbits were
            found, or ``show`` is none of these.
        ArgumentTypeError: ``orbits`` are none, or ``module`` is neither.
    """
    current(orbits)
    check_show(show)
    path = module_path(orbits, module)
    vertices = vertices_of_module(orbits, path)
    names = {vertex.name for vertex in vertices}
    calls = orbits.model.calls
    found = []
    for orbit in _touched(orbits, vertices):
        passing = Passing(orbits, orbit.reading, orbit.components)
        produced = bool(names.intersection(passing.given))
        consumed = any(name in passing.taken or name in passing.sinks for name in names)
        members = tuple([member for member in passing.members(show) if member.role != "consumes"])
        found.append(OrbitDependencies(orbit, produced, consumed, members, passing.users()))
    inside = f"{path}."
    frozen = [
        group
        for group in frozen_groups(orbits)
        if any(piece.tensor.startswith(inside) for piece in group.slices)
        or names.intersection(group.sources + group.sinks)
    ]
    return ModuleDependencies(
        path,
        described(orbits.model.dag, path),
        tuple([vertex.name for vertex in vertices]),
        tuple(dict.fromkeys([calls[vertex.name].operator for vertex in vertices if vertex.name in calls])),
        tuple([_labels(orbits, vertex) for vertex in vertices]),
        tuple(found),
        tuple(frozen),
    )


def _touched(orbits: Orbits, vertices: tuple[Vertex, ...]) -> Iterator[Orbit]:
    """The orbits of which some vertices give, take or hold channels."""
    there = [np.zeros(count, bool) for count in orbits.counts]
    for vertex in vertices:
        call = orbits.model.calls.get(vertex.name)
        operands = () if call is None else operands_of(call.args)
        for reading, component, units in zip(orbits.readings, orbits.components, there, strict=True):
            values = [reading.values[vertex.name]]
            values += [
                pick(reading.values[arg.vertex], arg.index) if isinstance(arg, Ref) else reading.attributes[arg.path]
                for arg in operands
            ]
            for dim in [dim for value in values for tensor in labelled_in(value) for dim in tensor.dims]:
                for array in arrays_of(dim):
                    units[component[array]] = True
    for orbit in orbits:
        if there[orbit.reading][orbit.components].any():
            yield orbit


def _labels(orbits: Orbits, vertex: Vertex) -> Any:
    def by_axis(values: list[Any]) -> Any:
        if not isinstance(values[0], Labelled):
            return None
        return [_dimension(values, axis, orbits) for axis in range(len(values[0].shape))]

    return map_together(by_axis, [reading.values[vertex.name] for reading in orbits.readings])


def _dimension(values: list[Labelled], axis: int, orbits: Orbits) -> str | None:
    """How many positions belong to which orbits, and how many are frozen; None where none is of a channel."""
    parts = []
    arrays = [(n, array) for n, value in enumerate(values) for array in arrays_of(value.dims[axis])]
    if not arrays:
        return None
    owned = np.zeros(values[0].shape[axis], bool)
    for number, array in arrays:
        units = orbits.components[number][array]
        for orbit in orbits:
            if orbit.reading == number:
                mask = np.isin(units, orbit.components)
                owned |= mask
                if mask.any():
                    parts.append(f"orbit {orbit.index}: {int(mask.sum())}")
    if not owned.all():
        parts.append(f"frozen: {int((~owned).sum())}")
    return " + ".join(parts)


def _labels_text(labels: Any) -> str:
    return "" if labels is None else str(labels)
