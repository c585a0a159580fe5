"""A graph in one level with the shapes of all results, kept until something of the graph changes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import Container, DagModule, Graph
from torchorbit.graph.inlining import flat_graph
from torchorbit.graph.packed import separated
from torchorbit.graph.shapes import complete

_PLAIN = frozenset({int, float, bool, str, tuple, type(None)})


def one_level(
    dag: DagModule, *, separate: bool, input_shapes: Sequence[Sequence[int]] | Mapping[str, Any] = ()
) -> Graph:
    """A graph without nested blocks, with the shapes of all results.

    It is kept until a block of ``dag`` changes, or a layer, or the shape of a parameter or buffer. Then the shapes that
    were recorded are no longer true, and are found anew.

    Args:
        dag: an outermost graph.
        separate: take apart what is packed in one factor of a projection (`torchorbit.graph.packed`).
        input_shapes: shapes of its inputs, in their order or by their names, where they are not those that it was
            recorded with.

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


def recorded_shapes_hold(dag: DagModule) -> bool:
    """Whether the shapes in a graph are still those that its layers and tensors give."""
    return _kept(dag).recorded


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


def _one_level(
    dag: DagModule, separate: bool, recorded: bool, input_shapes: Sequence[Sequence[int]] | Mapping[str, Any] = ()
) -> Graph:
    assert dag.provenance is not None
    graph = flat_graph(dag)
    if isinstance(input_shapes, Mapping):
        graph = Graph(graph.vertices, graph.output, complete(graph.vertices, dict(input_shapes), dag))
        return separated(graph) if separate else graph
    known = {} if input_shapes else dict(graph.shapes) if recorded else input_shapes_of(graph)
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


def input_shapes_of(graph: Graph) -> dict[str, Any]:
    """The shapes that are known of the inputs of a graph, by name."""
    return {given.name: graph.shapes[given.name] for given in graph.inputs if given.name in graph.shapes}
