"""Which vertices the channels of some units pass, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from torchorbit.arguments import Ref, operands_of
from torchorbit.graph.shapes import pick
from torchorbit.labels import Array, arrays_of
from torchorbit.orbits.lookups import described, module_of_vertex
from torchorbit.orbits.operands import labelled_in
from torchorbit.orbits.orbit import Orbits

#: What a vertex does with channels.
Role = Literal["produces", "consumes", "passes on", "holds"]
#: What to list: the ``"layers"`` that produce or consume channels; the ``"parameters"`` and buffers that hold them as
#: well; or ``"all"``: these and every vertex that passes them on.
Show = Literal["layers", "parameters", "all"]


@dataclass(frozen=True, slots=True)
class Member:
    """A vertex or tensor that holds channels.

    Attributes:
        name: path of the layer, parameter or buffer; of an operator, the name of its vertex.
        role: it ``"produces"``, ``"consumes"`` or ``"passes on"`` the channels; parameters and buffers of it that
            ``"holds"`` them.
        vertex: name of the vertex that does, or that reads the tensor first.
        description: the layer as PyTorch prints it, the operator, or the shape of the tensor.
    """

    name: str
    role: Role
    vertex: str
    description: str


class Passing:
    """What the channels of some units pass.

    Args:
        orbits: of the graph.
        reading: the reading in which the units are found.
        units: their numbers.

    Attributes:
        given: names of the vertices that have the channels in their results, in the order of the graph.
        taken: vertex name -> the names of those of whose results it takes the channels.
        roles: name of every vertex that the channels pass -> what it does with them, producing them before all else.
        sinks: names of the vertices that consume them.
        tensors: path of a parameter or buffer that holds them -> the vertices that read it.
    """

    def __init__(self, orbits: Orbits, reading: int, units: Array):
        self.orbits = orbits
        self._reading = orbits.readings[reading]
        self._units = np.zeros(orbits.counts[reading], bool)
        self._units[units] = True
        self._component = orbits.components[reading]
        self._known: dict[int, bool] = {}
        self.given: list[str] = []
        self.taken: dict[str, list[str]] = {}
        self.roles: dict[str, Role] = {}
        self.tensors: dict[str, list[str]] = {}
        sources, self.sinks = (self._touching(places) for places in (self._reading.sources, self._reading.sinks))
        first = orbits.first_paths()
        for vertex in orbits.model.graph.vertices:
            name = vertex.name
            call = orbits.model.calls.get(name)
            if self._holds(self._reading.values.get(name)):
                self.given.append(name)
            held = False
            for arg in operands_of({} if call is None else call.args):
                if isinstance(arg, Ref):
                    if self._holds(pick(self._reading.values[arg.vertex], arg.index)):
                        self.taken.setdefault(name, []).append(arg.vertex)
                elif self._holds(self._reading.attributes[arg.path]):
                    path = first[id(orbits.model.tensor_at(arg.path))]
                    self.tensors.setdefault(path, []).append(name)
                    held = True
            if name in sources or name in self.sinks:
                self.roles[name] = "produces" if name in sources else "consumes"
            elif held or name in self.taken or name in self.given:
                self.roles[name] = "passes on"

    def members(self, show: Show) -> tuple[Member, ...]:
        """What they pass, in the order of the graph; tensors come before the vertex that reads them first."""
        model = self.orbits.model
        before: dict[str, list[str]] = {}
        for path, readers in self.tensors.items():
            before.setdefault(readers[0], []).append(path)
        found: list[Member] = []
        for name, role in self.roles.items():
            if show != "layers":
                for path in before.get(name, ()):
                    shape = f"{tuple(model.tensor_at(path).shape)}"
                    found.append(Member(path, "holds", name, shape))
            if show == "all" or role != "passes on":
                found.append(self._member(name, role))
        return tuple(found)

    def users(self) -> tuple[Member, ...]:
        """The layers that consume them, in the order of the graph, those that produce them as well included."""
        return tuple([self._member(name, "consumes") for name in self.roles if name in self.sinks])

    def _member(self, name: str, role: Role) -> Member:
        call = self.orbits.model.calls.get(name)
        operator = "" if call is None else call.operator
        try:
            path = module_of_vertex(self.orbits, name)
        except ValueError:
            return Member(name, role, name, operator)
        layer = described(self.orbits.model.dag, path)
        return Member(path, role, name, layer) if layer else Member(name, role, name, operator)

    def _touching(self, places: list[tuple[str, Array]]) -> set[str]:
        return {name for name, array in places if self._hit(array)}

    def _holds(self, value: Any) -> bool:
        return any(self._hit(array) for tensor in labelled_in(value) for dim in tensor.dims for array in arrays_of(dim))

    def _hit(self, array: Array) -> bool:
        known = self._known.get(id(array))  # arrays of a reading live as long as it does
        if known is None:
            known = self._known[id(array)] = bool(self._units[self._component[array]].any())
        return known
