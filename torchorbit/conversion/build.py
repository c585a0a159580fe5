"""From a reconciled recording to a `DagModule` nested like the source model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from torchorbit.arguments import Attr, Ref, walk_args
from torchorbit.conversion.binding import BoundStep, bound_steps
from torchorbit.conversion.hierarchy import Hierarchy, Scope, inside
from torchorbit.conversion.mirroring import mirror
from torchorbit.conversion.naming import Names
from torchorbit.conversion.reconcile import Reconciled, ValueMap
from torchorbit.conversion.recording import ModuleCall, Value
from torchorbit.graph.dag import DagModule, Graph, Provenance
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex


def build(
    model: nn.Module,
    recording: Reconciled,
    paths: Mapping[int, list[str]],
    provenance: Provenance,
    follows: Value | Attr | None,
) -> DagModule:
    """Build the graph.

    Args:
        model: the source; its leaf modules and parameters become part of the graph.
        recording: what it does.
        paths: id of every submodule -> all its paths.
        provenance: kept on the result.
        follows: the tensor whose device and dtype stand for those of the run.

    Raises:
        ConversionError: a function of the model is not in the table of operators.
    """
    blocks = _Blocks(model, bound_steps(recording, follows), recording, paths)
    graph = blocks.assemble()
    dag = mirror(model, graph, blocks.graphs, paths, provenance)
    for name, tensor in recording.constants.items():
        dag.register_buffer(name, tensor, persistent=False)
    return dag


class _Blocks:
    """Writes the graphs of all blocks.

    Attributes:
        graphs: path -> graph of the block there.
    """

    def __init__(self, model: nn.Module, bound: list[BoundStep], recording: Reconciled, paths: Mapping[int, list[str]]):
        self.model = model
        self.bound = bound
        self.recording = recording
        self.paths = paths
        self.graphs: dict[str, Graph] = {}

    def assemble(self) -> Graph:
        """The outermost graph. Blocks that cannot stand alone are dissolved into the one around them."""
        dissolved: set[ModuleCall] = set()
        while True:
            self.graphs = {}
            self.hierarchy = Hierarchy(self.model, self.bound, self.paths, dissolved)
            again = self.hierarchy.misplaced()
            if not again:
                self.hierarchy.flow(self.recording.output)
                graph, again = self.emit()
            if not again:
                assert graph is not None
                return graph
            dissolved |= again

    def emit(self) -> tuple[Graph | None, set[ModuleCall]]:
        root, names = self.hierarchy.root, Names()
        inputs: list[Vertex] = []
        known: dict[Value | Attr, Any] = {}
        for position, (name, frozen, keyword) in enumerate(self.recording.inputs):
            fixed = () if any(isinstance(a, Value) for a in walk_args(frozen)) else (frozen,)
            inputs.append(InputVertex(names.parameter(name), keyword, fixed))
            known[Value(-1 - position)] = Ref(inputs[-1].name)
        vertices, shapes, again = self.block(root, names, known)
        if again:
            return None, again
        shapes.update(zip([vertex.name for vertex in inputs], self.recording.input_shapes, strict=True))
        output = ValueMap(lambda v: self.resolve(v, root, known)).value(self.recording.output)
        return Graph((*inputs, *vertices), output, shapes), set()

    def resolve(self, value: Any, scope: Scope, known: dict[Value | Attr, Any]) -> Any:
        found = known.get(value)
        if found is not None:
            return found
        if isinstance(value, Attr):
            attr = self.hierarchy.attr_below(value, scope.path)
            assert attr is not None
            return attr
        base = known[Value(value.step)]
        return Ref(base.vertex, (*base.index, *value.index))

    def block(
        self, scope: Scope, names: Names, known: dict[Value | Attr, Any]
    ) -> tuple[list[Vertex], dict[str, Any], set[ModuleCall]]:
        vertices: list[Vertex] = []
        shapes: dict[str, Any] = {}
        dissolve: set[ModuleCall] = set()

        def resolved(value: Any) -> Any:
            return self.resolve(value, scope, known)

        def relative(owner: str) -> str:
            return self.flag_owner(owner, scope)

        arguments = ValueMap(resolved, relative)
        for content in scope.content:
            if isinstance(content, Scope):
                dissolve |= self.nested(content)
                target = inside(content.path, scope.path)
                assert target is not None
                name = names.value(target.replace(".", "_"))
                vertices.append(ModuleVertex(name, target, tuple([resolved(value) for value in content.inputs])))
                outputs = list(content.outputs)
                for position, value in enumerate(outputs):
                    known[value] = Ref(name) if len(outputs) == 1 else Ref(name, (position,))
                continue
            args = {key: arguments.value(arg) for key, arg in content.args.items()}
            owner = self.flag_owner(content.call.where(), scope) if content.mode else ""
            if content.operator is None:
                assert content.module is not None
                path = self.hierarchy.path_below(content.module, scope.path)
                assert path is not None
                target = inside(path, scope.path) or ""
                name = names.value(target.replace(".", "_"))
                positional = tuple([arg for key, arg in args.items() if key.isdigit()])
                keywords = {key: arg for key, arg in args.items() if not key.isdigit()}
                leaf = content.leaf or ""
                vertices.append(ModuleVertex(name, target, positional, keywords, leaf, content.mode, owner))
            else:
                name = names.value(content.operator)
                vertices.append(OperatorVertex(name, content.operator, args, content.mode, owner))
            known[Value(content.number)] = Ref(name)
            if content.shape is not None:
                shapes[name] = content.shape
        return vertices, shapes, dissolve

    def flag_owner(self, path: str, scope: Scope) -> str:
        """The module whose training flag decides, relative to a scope; the scope itself where there is none."""
        return "" if path == scope.path else inside(path, scope.path) or ""

    def nested(self, scope: Scope) -> set[ModuleCall]:
        """Make the graph of a block. Returns the calls that must be dissolved before there can be one."""
        names = Names()
        known: dict[Value | Attr, Any] = {}
        arguments = {value: name for name, value in scope.call.arguments if value is not None}
        scope.inputs = dict.fromkeys(
            [value for value in arguments if value in scope.inputs]
            + [value for value in scope.inputs if value not in arguments]
        )
        inputs: list[Vertex] = []
        for value in scope.inputs:
            name = arguments.get(value) or (value.path.split(".")[-1] if isinstance(value, Attr) else "x")
            inputs.append(InputVertex(names.parameter(name)))
            known[value] = Ref(inputs[-1].name)
        vertices, shapes, again = self.block(scope, names, known)
        results = [self.resolve(value, scope, known) for value in scope.outputs]
        graph = Graph((*inputs, *vertices), results[0] if len(results) == 1 else tuple(results), shapes)
        earlier = self.graphs.get(scope.path)
        if earlier == graph and earlier.shapes != shapes:
            graph = dataclasses.replace(graph, shapes={})  # called twice, with other sizes
        if earlier is not None and earlier != graph:
            again.add(scope.call)
        else:
            self.graphs[scope.path] = graph
        return again
