"""A graph with gates in it, on the same layers and parameters as the graph that it is made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.arguments import Ref, map_args, walk_args
from torchorbit.errors import ArgumentError, CalibrationError
from torchorbit.graph.costs import per_sample
from torchorbit.graph.dag import DagModule, Graph, Provenance, blank
from torchorbit.graph.shared_modules import share_modules
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.graph.writing import Writer
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.calibration.gates import Gate, Numbering, Slot, Units, View, find_gates
from torchorbit.pruning.criteria.base import Place


class Visitor(Protocol):
    """What gates show their values to."""

    def visit(self, gate: GateModule, value: Tensor) -> Tensor:
        """Look at a value, and say what takes its place."""


class GateModule(nn.Module):
    """Shows what goes through it to whoever visits the graph.

    Attributes:
        gate: where it stands.
        per_sample: whether what goes through varies with the samples.
        visitor: whom it shows it to; None lets everything through.
    """

    def __init__(self, gate: Gate, per_sample: bool):
        super().__init__()
        self.gate = gate
        self.per_sample = per_sample
        self.visitor: Visitor | None = None
        self._indices: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, value: Any) -> Any:
        """Pass a value on, maybe changed."""
        if self.visitor is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return self.visitor.visit(self, value)

    def arranged(self, value: Tensor, number: int, samples: int) -> tuple[Tensor, Tensor]:
        """A value with its channels last.

        Args:
            value: what went through, or a gradient of its shape.
            number: which view of the gate.
            samples: how many samples there are.

        Returns:
            The value as (samples, positions, channels), with one sample where they cannot be told apart; and the unit
            of every channel, -1 where there is none.
        """
        view = self.gate.views[number]
        axis, length = view.axis, value.shape[view.axis]
        if self.per_sample and axis and value.shape[0] and value.shape[0] % samples == 0:
            return value.movedim(axis, -1).reshape(samples, -1, length), self.index(number, length, value.device)
        period = length // samples
        if self.per_sample and samples > 1 and length % samples == 0 and _repeats(view.units, period):
            # Samples are folded into the channels, as where every sample has weights of its own.
            apart = value.movedim(axis, 0).reshape(samples, period, -1).transpose(1, 2)
            return apart, self.index(number, period, value.device)
        return value.movedim(axis, -1).reshape(1, -1, length), self.index(number, length, value.device)

    def index(self, number: int, length: int, device: torch.device) -> Tensor:
        """The unit at every position of a view, of a dimension that may be longer than the recorded one."""
        key = number, length, device
        if key not in self._indices:
            self._indices[key] = torch.from_numpy(fitted(self.gate.views[number], length)).to(device)
        return self._indices[key]


def fitted(view: View, length: int) -> Units:
    """The units along a dimension of another length than the recorded one: samples are folded into it.

    Raises:
        CalibrationError: they are not.
    """
    units = view.units
    if len(units) != length:
        period = math.gcd(len(units), length)
        if not _repeats(units, period):
            raise CalibrationError(f"a dimension of {length} was recorded as {len(units)}; run it at the recorded size")
        units = np.tile(units[:period], length // period)
    return units


def _repeats(units: Units, period: int) -> bool:
    if not period or len(units) % period:
        return False
    return bool((units.reshape(-1, period) == units[:period]).all())


class GatedModel:
    """A graph with gates in it.

    It has the leaf modules, parameters and buffers of the graph that orbits were found in, and the modes that these are
    in whenever it runs.

    Args:
        orbits: of a graph.
        place: where the gates are.

    Attributes:
        numbering: of the units of all orbits.
        graph: with the gates as vertices.
        gates: name of the vertex -> gate.
        whole: runs the graph.
    """

    def __init__(self, orbits: Orbits, place: Place = "consumed"):
        self.orbits = orbits
        self.dag = orbits.model.dag
        if orbits.model.source is not self.dag.graph:
            raise ArgumentError("the orbits were found before this graph was pruned; call find_orbits again")
        orbits.model.look_again()
        self.numbering = Numbering(orbits)
        found = find_gates(orbits, self.numbering, place)
        self.graph, by_name = _with_gates(orbits, found)
        self._views: dict[Orbit, list[tuple[GateModule, int]]] = {}
        varying = per_sample(self.graph.vertices)
        self.gates = {name: GateModule(gate, name in varying) for name, gate in by_name.items()}
        self.whole = GatedSection(self.dag, self.graph, self.gates, provenance=self.dag.provenance)

    def part(self, graph: Graph) -> GatedSection:
        """What runs some of the vertices."""
        names = {vertex.name for vertex in graph.vertices}
        return GatedSection(self.dag, graph, {name: gate for name, gate in self.gates.items() if name in names})

    def run(self, visitor: Visitor | None, call: Callable[[], Any]) -> Any:
        """Run something while gates show their values to a visitor."""
        before = [gate.visitor for gate in self.gates.values()]
        for gate in self.gates.values():
            gate.visitor = visitor
        try:
            return call()
        finally:
            for gate, earlier in zip(self.gates.values(), before, strict=True):
                gate.visitor = earlier

    def views_of(self, orbit: Orbit) -> list[tuple[GateModule, int]]:
        """The gates at which an orbit has units, each with the number of the view."""
        if orbit not in self._views:
            units = self.numbering.slice_of(orbit)
            self._views[orbit] = [
                (module, number)
                for module in self.gates.values()
                for number, view in enumerate(module.gate.views)
                if ((view.units >= units.start) & (view.units < units.stop)).any()
            ]
        return self._views[orbit]

    def apart(self, orbit: Orbit) -> tuple[GatedSection, GatedSection] | None:
        """Take the graph apart at the first gate of an orbit.

        Returns:
            What runs before it, and gives all values that are needed after it by name; and what runs from there on
            and takes those by name. None where the orbit has no gate.
        """
        mine = {id(gate) for gate, _ in self.views_of(orbit)}
        vertices = self.graph.vertices
        cut = next((n for n, vertex in enumerate(vertices) if id(self.gates.get(vertex.name)) in mine), None)
        if cut is None:
            return None
        ahead, behind = vertices[:cut], vertices[cut:]
        made = {vertex.name for vertex in ahead}
        args = [arg for vertex in behind for arg in walk_args(vertex_args(vertex))]
        args += list(walk_args(self.graph.output))
        needed = list(dict.fromkeys(arg.vertex for arg in args if type(arg) is Ref and arg.vertex in made))
        given = tuple([InputVertex(name, keyword=True) for name in needed])
        output = {name: Ref(name) for name in needed}
        return self.part(Graph(ahead, output)), self.part(Graph((*given, *behind), self.graph.output))


class GatedSection:
    """Runs vertices of a graph, with its layers and in its modes.

    Args:
        dag: has the layers.
        graph: the vertices.
        gates: those among them, by name.
        provenance: of the whole graph, where it is whole: sizes that it cannot run at are then refused.

    Attributes:
        module: runs the vertices.
    """

    def __init__(
        self, dag: DagModule, graph: Graph, gates: dict[str, GateModule], *, provenance: Provenance | None = None
    ):
        self.module = blank(graph, provenance)
        taken: dict[int, nn.Module] = {id(dag): self.module}
        share_modules(self.module, dag, taken)
        self.module._modules.update(gates)
        pairs = [(module, taken.get(id(module), module)) for module in dag.modules()]
        self._twins = [(module, twin) for module, twin in pairs if twin is not module]

    def __call__(self, *args: Any, weights: Mapping[str, Tensor] | None = None, **kwargs: Any) -> Any:
        """Run, in the modes that the graph and its blocks are in now.

        Args:
            *args: positional inputs.
            weights: what takes the place of parameters, by their paths.
            **kwargs: keyword inputs.
        """
        for module, twin in self._twins:
            twin.training = module.training
        if weights:
            return torch.func.functional_call(self.module, dict(weights), args, kwargs)
        return self.module(*args, **kwargs)


def _with_gates(orbits: Orbits, gates: Sequence[Gate]) -> tuple[Graph, dict[str, Gate]]:
    """The graph with a vertex for each gate, and the gates by the names of these."""
    old, calls = orbits.model.graph, orbits.model.calls
    dag = orbits.model.dag
    writer = Writer([*[v.name for v in old.vertices], *dag._modules, *dag._parameters, *dag._buffers])
    behind: dict[str, list[Gate]] = {}
    for gate in gates:
        if gate.slots is None:
            behind.setdefault(gate.value.vertex, []).append(gate)
    at_vertex: dict[str, list[tuple[Slot, Gate]]] = {}
    for gate in gates:
        for slot in gate.slots or ():
            at_vertex.setdefault(slot.vertex, []).append((slot, gate))
    named: dict[str, Gate] = {}
    written: dict[int, str] = {}
    renamed: dict[Ref, Ref] = {}

    held = {vertex.name: (vertex.mode, vertex.owner) for vertex in old.vertices if not isinstance(vertex, InputVertex)}

    def write(gate: Gate, value: Any) -> Ref:
        name = written.get(id(gate))
        if name is None:
            name = written[id(gate)] = writer.free_name("gate")
            named[name] = gate
            mode, owner = held.get(gate.value.vertex, ("", "")) if type(gate.value) is Ref else ("", "")
            writer.vertices.append(ModuleVertex(name, name, (value,), mode=mode, owner=owner))
        return Ref(name)

    def change(value: Any) -> Any:
        return renamed.get(value, value) if type(value) is Ref else value

    for vertex in old.vertices:
        if isinstance(vertex, InputVertex):
            writer.vertices.append(vertex)
            continue
        args = {name: map_args(arg, change) for name, arg in _arguments(vertex, calls[vertex.name].args).items()}
        for slot, gate in at_vertex.get(vertex.name, ()):
            arg = args[slot.argument]
            if slot.item < 0:
                args[slot.argument] = write(gate, arg)
            else:
                items = list(arg)
                items[slot.item] = write(gate, items[slot.item])
                args[slot.argument] = type(arg)(items)
        writer.vertices.append(_with_arguments(vertex, args))
        for gate in behind.get(vertex.name, ()):
            renamed[gate.value] = write(gate, gate.value)
    return Graph(tuple(writer.vertices), map_args(old.output, change)), named


def _arguments(vertex: ModuleVertex | OperatorVertex, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments that stand in a vertex, by the names that they have in its call."""
    if isinstance(vertex, OperatorVertex):
        return dict(vertex.args)
    return {**dict(zip(call, vertex.args, strict=False)), **vertex.kwargs}


def _with_arguments(vertex: ModuleVertex | OperatorVertex, args: dict[str, Any]) -> Vertex:
    if isinstance(vertex, OperatorVertex):
        return dataclasses.replace(vertex, args=args)
    positional = tuple(list(args.values())[: len(vertex.args)])
    return dataclasses.replace(vertex, args=positional, kwargs={name: args[name] for name in vertex.kwargs})
