"""What the calls of a graph cost, in multiply-accumulate operations, by what is declared of their operators.

Counted is what fvcore's ``FlopCountAnalysis`` counts, which calls one multiply-accumulate one FLOP: convolutions,
linear layers, matrix products, einsum, normalizations, bilinear resampling, adaptive average pooling; scaled
dot-product attention as the two matrix products that it is. Elementwise operators are free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchorbit.arguments import ByMode, Collector, Ref, Size
from torchorbit.graph.calls import Call
from torchorbit.graph.dag import Graph
from torchorbit.graph.vertices import InputVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.operators.declaring import Cost, Shapes
from torchorbit.operators.table import KNOWN


@dataclass(frozen=True, slots=True)
class Priced:
    """A vertex that costs something in evaluation.

    Attributes:
        name: of the vertex.
        args: of its call.
        cost: gives the multiply-accumulates.
        samples: how many samples of the recorded run share them.
    """

    name: str
    args: dict[str, Any]
    cost: Cost
    samples: int

    def flops(self, shapes: Shapes, result: Any) -> float:
        """FLOPs of one sample, two per multiply-accumulate, for certain shapes of its operands and its result."""
        return 2.0 * self.cost(shapes, result, self.args) / self.samples


def priced_vertices(graph: Graph, calls: Mapping[str, Call | OperatorVertex]) -> list[Priced]:
    """The vertices of a graph in one level that cost something, in their order."""
    varying = per_sample(graph.vertices)
    batch = first_shape(graph)[:1]
    samples = int(batch[0]) if batch else 1
    found = []
    for vertex in graph.vertices:
        call = calls.get(vertex.name)
        row = None if call is None else KNOWN.get(call.operator)
        if call is None or row is None or row.cost is None or call.mode == "training":
            continue
        found.append(Priced(vertex.name, call.args, row.cost, samples if vertex.name in varying else 1))
    return found


def first_shape(graph: Graph) -> tuple[int, ...]:
    """The shape of the first input that is a tensor; empty where none is."""
    shapes = [graph.shapes.get(vertex.name) for vertex in graph.inputs]
    return next((tuple(shape) for shape in shapes if isinstance(shape, torch.Size) and len(shape)), ())


def per_sample(vertices: Iterable[Vertex]) -> frozenset[str]:
    """Names of the vertices that work on samples, in order of the graph.

    The others compute something from parameters alone, standardized weights or a table of biases, and cost the same
    whatever the batch size is.
    """
    found: set[str] = set()

    def varies(arg: Any) -> bool:
        return any(isinstance(leaf, Ref) and leaf.vertex in found for leaf in _Samples().collect(arg))

    for vertex in vertices:
        if not vertex.fixed if isinstance(vertex, InputVertex) else varies(vertex_args(vertex)):
            found.add(vertex.name)
    return frozenset(found)


class _Samples(Collector):
    """Collects what may be one of each sample, or counts samples, in evaluation."""

    def size(self, arg: Size) -> None:
        if arg.dim == 0:
            self.value(arg.value)

    def by_mode(self, arg: ByMode) -> None:
        self.value(arg.evaluation)

    same_device = same_dtype = Collector.nothing
