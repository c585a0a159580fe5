"""Write nested blocks out: their vertices take the place of the vertices that call them."""

from __future__ import annotations

from typing import Any

from torchorbit.arguments import ArgumentMap, Attr, Ref
from torchorbit.graph.dag import DagModule, Graph
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex
from torchorbit.graph.writing import Writer


def flat_graph(dag: DagModule, paths: dict[str, str] | None = None) -> Graph:
    """The vertices of a graph without nested blocks; paths in them are relative to ``dag``.

    Args:
        dag: any graph.
        paths: where to note the names of its vertices, by their paths with blocks joined by ``/``.
    """
    inputs = list(dag.graph.inputs)
    writer = Writer(vertex.name for vertex in inputs)
    writer.vertices += inputs
    known: dict[str, Any] = {vertex.name: Ref(vertex.name) for vertex in inputs}
    recorded = dag.graph.shapes
    writer.shapes.update({vertex.name: recorded[vertex.name] for vertex in inputs if vertex.name in recorded})
    output = _inline(dag, "", "", known, writer, {} if paths is None else paths, "")
    return Graph(tuple(writer.vertices), output, writer.shapes)


def _inline(
    dag: DagModule,
    path: str,
    prefix: str,
    known: dict[str, Any],
    writer: Writer,
    paths: dict[str, str],
    blocks: str,
) -> Any:
    """Append the vertices of a block; returns its output in terms of them."""
    start = f"{path}." if path else ""
    vertices = writer.vertices

    def below(inner: str) -> str:
        return start + inner if inner else path

    def change(value: Ref | Attr) -> Any:
        if isinstance(value, Attr):
            return Attr(start + value.path)
        arg = known[value.vertex]
        return _pick(arg, value.index) if value.index else arg

    mapped = ArgumentMap(change, below).value
    recorded = dag.graph.shapes
    for vertex in dag.graph.vertices:
        if isinstance(vertex, InputVertex):
            continue
        name = writer.free_name(prefix + vertex.name)
        if isinstance(vertex, OperatorVertex):
            args = {key: mapped(arg) for key, arg in vertex.args.items()}
            owner = below(vertex.owner) if vertex.mode else ""
            vertices.append(OperatorVertex(name, vertex.operator, args, vertex.mode, owner))
        elif isinstance(module := dag.get_submodule(vertex.target), DagModule):
            positional = [mapped(arg) for arg in vertex.args]
            inner = {i.name: arg for i, arg in zip(module.graph.inputs, positional, strict=True)}
            deeper = f"{prefix}{vertex.name}_"
            known[vertex.name] = _inline(
                module, below(vertex.target), deeper, inner, writer, paths, f"{blocks}{vertex.name}/"
            )
            continue
        else:
            positional = [mapped(arg) for arg in vertex.args]
            keywords = {key: mapped(arg) for key, arg in vertex.kwargs.items()}
            owner = below(vertex.owner) if vertex.mode else ""
            target = below(vertex.target)
            vertices.append(ModuleVertex(name, target, tuple(positional), keywords, vertex.leaf, vertex.mode, owner))
        known[vertex.name] = Ref(name)
        paths[blocks + vertex.name] = name
        if vertex.name in recorded:
            writer.shapes[name] = recorded[vertex.name]
    return mapped(dag.graph.output)


def _pick(arg: Any, index: tuple[int | str, ...]) -> Any:
    for position, item in enumerate(index):
        if isinstance(arg, Ref):
            return Ref(arg.vertex, (*arg.index, *index[position:]))
        arg = arg[item]
    return arg
