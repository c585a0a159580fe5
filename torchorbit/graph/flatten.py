"""Write nested blocks out: one level of vertices instead of many."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchorbit.arguments import ArgumentMap, Attr, Ref
from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.packed import separated
from torchorbit.graph.shapes import complete
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex
from torchorbit.graph.writing import Writer

_PLAIN = frozenset({int, float, bool, str, tuple, type(None)})


def flatten(dag: DagModule) -> DagModule:
    """See `DagModule.flatten`."""
    provenance = dag.provenance or Provenance()
    graph = flat_graph(dag)
    if not _kept(dag).recorded:
        graph = Graph(graph.vertices, graph.output, _of_inputs(graph))
    flat = blank(graph, provenance)
    flat.manifest, flat.history = dag.manifest, dag.history
    share_modules(flat, dag, {id(dag): flat})
    keep_shapes(flat)
    return flat


def one_level(dag: DagModule, *, separate: bool, input_shapes: Sequence[Sequence[int]] = ()) -> Graph:
    """A graph without nested blocks, with the shapes of all results.

    It is kept until a block of ``dag`` changes, or a layer, or the shape of a parameter or buffer. Then the shapes that
    were recorded are no longer true, and are found anew.

    Args:
        dag: an outermost graph.
        separate: take apart what is packed in one factor of a projection (`torchorbit.graph.packed`).
        input_shapes: shapes of its inputs, where they are not those that it was recorded with.

    Raises:
        GraphRunError: a vertex does not run with these shapes.
        ArgumentError: the graph takes another number of tensors.
    """
    if input_shapes:
        return _one_level(dag, separate, False, input_shapes)
    kept = _kept(dag)
    if separate not in kept.levels:
        kept.levels[separate] = _one_level(dag, separate, kept.recorded)
    return kept.levels[separate]


def keep_shapes(dag: DagModule) -> None:
    """Say that the shapes in a graph are those that its layers and tensors, as they are now, give."""
    dag._levels = _Kept(list(_blocks(dag)), _signature(dag), True)


@dataclass(slots=True)
class _Kept:
    """What is kept of a graph, and of what it was made.

    Attributes:
        blocks: the graphs of its blocks.
        signature: of its layers and tensors.
        recorded: whether the shapes in the blocks are still those of the layers.
        levels: the graph in one level, with packed projections and without.
    """

    blocks: list[Graph]
    signature: list[Any]
    recorded: bool
    levels: dict[bool, Graph] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ([], self.signature, self.recorded)  # a copy of the graph has blocks of its own

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept([], self.signature, self.recorded)


def _kept(dag: DagModule) -> _Kept:
    blocks, signature = list(_blocks(dag)), _signature(dag)
    kept: _Kept | None = dag._levels
    recorded = kept is None or (kept.recorded and kept.signature == signature)
    if (
        kept is None
        or kept.recorded != recorded
        or kept.signature != signature
        or len(blocks) != len(kept.blocks)
        or not all(map(operator.is_, blocks, kept.blocks))
    ):
        kept = dag._levels = _Kept(blocks, signature, recorded)
    return kept


def _blocks(module: DagModule | Container) -> Iterator[Graph]:
    if isinstance(module, DagModule):
        yield module.graph
    for child in module._modules.values():
        if isinstance(child, (DagModule, Container)):
            yield from _blocks(child)


def _signature(dag: DagModule) -> list[Any]:
    """What the shapes of results follow from: the shapes of all tensors, and the numbers that layers keep."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[nn.Module] = [dag]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for members in (module._parameters, module._buffers):
            if members:
                found += [None if tensor is None else tensor.shape for tensor in members.values()]
        if not isinstance(module, (DagModule, Container)):
            found.append(type(module))
            found += [
                value
                for name, value in module.__dict__.items()
                if type(value) in _PLAIN
                and name != "training"
                and (type(value) is not tuple or _PLAIN.issuperset(map(type, value)))
            ]
        if module._modules:
            for name, child in module._modules.items():
                found.append(name)
                if child is not None:
                    waiting.append(child)
    return found


def _one_level(dag: DagModule, separate: bool, recorded: bool, input_shapes: Sequence[Sequence[int]] = ()) -> Graph:
    assert dag.provenance is not None
    graph = flat_graph(dag)
    known = {} if input_shapes else dict(graph.shapes) if recorded else _of_inputs(graph)
    unknown = [given.name for given in graph.inputs if given.name not in known and not given.fixed]
    shapes = input_shapes or dag.provenance.input_shapes
    if unknown and len(unknown) != len(shapes):
        raise ArgumentError(
            f"the graph takes {len(unknown)} inputs ({', '.join(unknown)}), and {len(shapes)} shapes are known"
        )
    known |= {given.name: None for given in graph.inputs if given.fixed}
    known |= {name: torch.Size(shape) for name, shape in zip(unknown, shapes, strict=False)}
    graph = Graph(graph.vertices, graph.output, complete(graph.vertices, known, dag))
    return separated(graph) if separate else graph


def _of_inputs(graph: Graph) -> dict[str, Any]:
    return {given.name: graph.shapes[given.name] for given in graph.inputs if given.name in graph.shapes}


def names_at(dag: DagModule) -> dict[str, list[str]]:
    """Where vertices are in one level, with packed projections apart.

    Returns:
        Path of a vertex or block, blocks joined by ``/`` -> the names of what takes its place. What was taken apart
        also has the name that it had in one level.
    """
    known = one_level(dag, separate=False)
    paths: dict[str, str] = {}
    graph = flat_graph(dag, paths)
    apart: dict[str, list[str]] = {}
    separated(Graph(graph.vertices, graph.output, known.shapes), apart)
    found = {name: list(names) for name, names in apart.items()}
    for path, name in paths.items():
        names = apart.get(name, [name])
        blocks = path.split("/")
        for depth in range(1, len(blocks) + 1):
            found.setdefault("/".join(blocks[:depth]), []).extend(names)
    return found


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
            owner = below(vertex.owner) if vertex.training_only else ""
            vertices.append(OperatorVertex(name, vertex.operator, args, vertex.training_only, owner))
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
            vertices.append(ModuleVertex(name, below(vertex.target), tuple(positional), keywords, vertex.leaf))
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


def share_modules(target: nn.Module, source: nn.Module, made: dict[int, nn.Module]) -> None:
    """Give a graph the parameters, buffers and leaf modules of another one, under the same paths.

    Args:
        target: a blank graph.
        source: the graph that has them.
        made: id of a module of ``source`` -> what takes its place; is added to. Blocks become containers.
    """
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
    target.training = source.training
    for name, child in source._modules.items():
        if child is None:
            continue
        if id(child) not in made:
            holds_children = isinstance(child, (DagModule, Container))
            made[id(child)] = Container() if holds_children else child
            if holds_children:
                share_modules(made[id(child)], child, made)
        target._modules[name] = made[id(child)]
