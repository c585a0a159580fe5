"""Write nested blocks out: one level of vertices instead of many."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchorbit.graph import codegen
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.packed import separated
from torchorbit.graph.shapes import complete
from torchorbit.graph.vertices import Attr, InputVertex, ModuleVertex, OperatorVertex, Ref, Vertex, map_args


def flatten(dag: DagModule) -> DagModule:
    """See `DagModule.flatten`."""
    provenance = dag.provenance or Provenance()
    flat = blank(flat_graph(dag), provenance)
    flat.manifest = dag.manifest
    _fill(flat, dag, {id(dag): flat})
    return flat


def one_level(dag: DagModule, *, separate: bool, input_shapes: Sequence[Sequence[int]] = ()) -> Graph:
    """A graph without nested blocks, with the shapes of all results. It is kept until a block of ``dag`` changes.

    Args:
        dag: an outermost graph.
        separate: take apart what is packed in one factor of a projection (`torchorbit.graph.packed`).
        input_shapes: shapes of its inputs, where they are not those that it was recorded with.
    """
    if input_shapes:
        return _one_level(dag, separate, input_shapes)
    blocks = list(_blocks(dag))
    kept = dag._levels
    if kept is None or len(blocks) != len(kept.blocks) or not all(map(operator.is_, blocks, kept.blocks)):
        kept = dag._levels = _Kept(blocks)
    if separate not in kept.levels:
        kept.levels[separate] = _one_level(dag, separate)
    return kept.levels[separate]


@dataclass(slots=True)
class _Kept:
    blocks: list[Graph]
    levels: dict[bool, Graph] = field(default_factory=dict)


def _blocks(module: DagModule | Container) -> Iterator[Graph]:
    if isinstance(module, DagModule):
        yield module.graph
    for child in module._modules.values():
        if isinstance(child, (DagModule, Container)):
            yield from _blocks(child)


def _one_level(dag: DagModule, separate: bool, input_shapes: Sequence[Sequence[int]] = ()) -> Graph:
    assert dag.provenance is not None
    graph = flat_graph(dag)
    known = {} if input_shapes else dict(graph.shapes)
    tensors = iter(input_shapes or dag.provenance.input_shapes)
    for given in graph.inputs:
        if given.name not in known:
            known[given.name] = None if given.fixed else torch.Size(next(tensors))
    graph = Graph(graph.vertices, graph.output, complete(graph.vertices, known, dag))
    return separated(graph) if separate else graph


def flat_graph(dag: DagModule) -> Graph:
    """The vertices of a graph without nested blocks; paths in them are relative to ``dag``."""
    vertices: list[Vertex] = list(dag.graph.inputs)
    taken = {vertex.name for vertex in vertices}
    known: dict[str, Any] = {vertex.name: Ref(vertex.name) for vertex in vertices}
    shapes = {name: dag.graph.shapes[name] for name in taken if name in dag.graph.shapes}
    output = _inline(dag, "", "", known, vertices, shapes, taken)
    return Graph(tuple(vertices), output, shapes)


def _inline(
    dag: DagModule,
    path: str,
    prefix: str,
    known: dict[str, Any],
    vertices: list[Vertex],
    shapes: dict[str, Any],
    taken: set[str],
) -> Any:
    """Append the vertices of a block; returns its output in terms of them."""
    start = f"{path}." if path else ""

    def below(inner: str) -> str:
        return start + inner if inner else path

    def change(value: Ref | Attr) -> Any:
        if isinstance(value, Attr):
            return Attr(start + value.path)
        arg = known[value.vertex]
        return _pick(arg, value.index) if value.index else arg

    recorded = dag.graph.shapes
    for vertex in dag.graph.vertices:
        if isinstance(vertex, InputVertex):
            continue
        name = _unused(prefix + vertex.name, taken)
        if isinstance(vertex, OperatorVertex):
            args = {key: map_args(arg, change, below) for key, arg in vertex.args.items()}
            owner = below(vertex.owner) if vertex.training_only else ""
            vertices.append(OperatorVertex(name, vertex.operator, args, vertex.training_only, owner))
        elif isinstance(module := dag.get_submodule(vertex.target), DagModule):
            positional = [map_args(arg, change, below) for arg in vertex.args]
            inner = {i.name: arg for i, arg in zip(module.graph.inputs, positional, strict=True)}
            deeper = f"{prefix}{vertex.name}_"
            known[vertex.name] = _inline(module, below(vertex.target), deeper, inner, vertices, shapes, taken)
            continue
        else:
            positional = [map_args(arg, change, below) for arg in vertex.args]
            keywords = {key: map_args(arg, change, below) for key, arg in vertex.kwargs.items()}
            vertices.append(ModuleVertex(name, below(vertex.target), tuple(positional), keywords, vertex.leaf))
        known[vertex.name] = Ref(name)
        if vertex.name in recorded:
            shapes[name] = recorded[vertex.name]
    return map_args(dag.graph.output, change, below)


def _pick(arg: Any, index: tuple[int | str, ...]) -> Any:
    for position, item in enumerate(index):
        if isinstance(arg, Ref):
            return Ref(arg.vertex, (*arg.index, *index[position:]))
        arg = arg[item]
    return arg


def _unused(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 0
    while name in taken or not codegen.is_valid_name(name):
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


def _fill(target: nn.Module, source: nn.Module, made: dict[int, nn.Module]) -> None:
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
                _fill(made[id(child)], child, made)
        target._modules[name] = made[id(child)]
