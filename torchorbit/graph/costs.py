"""What a call costs, in multiply-accumulate operations, from the shapes of its operands and its result.

Counted is what fvcore's ``FlopCountAnalysis`` counts, which calls one multiply-accumulate one FLOP: convolutions,
linear layers, matrix products, einsum, normalizations, bilinear resampling, adaptive average pooling; scaled
dot-product attention as the two matrix products that it is. Elementwise operators are free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchorbit.arguments import ByMode, Collector, Ref, Size
from torchorbit.graph.calls import Call
from torchorbit.graph.dag import Graph
from torchorbit.graph.vertices import InputVertex, OperatorVertex, Vertex, vertex_args

Shape = tuple[int, ...]
#: Gives the shape of an argument by name; None where it is no tensor or absent.
Shapes = Callable[[str], Any]
Cost = Callable[[Shapes, Shape, dict[str, Any]], float]

_COSTS: dict[str, Cost] = {}


def cost_of(operator: str) -> Cost | None:
    """What computes the cost of an operator; None where it costs nothing.

    The cost is called with the shapes of arguments by name, the shape of the result, and the arguments themselves.
    """
    return _COSTS.get(operator)


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
        cost = None if call is None else cost_of(call.operator)
        if call is not None and cost is not None and not getattr(vertex, "training_only", False):
            found.append(Priced(vertex.name, call.args, cost, samples if vertex.name in varying else 1))
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


def _costs(*operators: str) -> Callable[[Cost], Cost]:
    def register(function: Cost) -> Cost:
        for operator in operators:
            _COSTS[operator] = function
        return function

    return register


@_costs("conv1d", "conv2d", "conv3d")
def _convolution(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * math.prod(shapes("weight")[1:]))


@_costs("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(shapes("input")) * math.prod(shapes("weight")[1:]))


@_costs("linear")
def _linear(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * shapes("weight")[-1])


@_costs("bilinear")
def _bilinear(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * math.prod(shapes("weight")[1:]))


@_costs("matmul", "bmm", "mm", "mv", "dot", "outer")
def _matmul(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * shapes("input")[-1])


@_costs("addmm")
def _addmm(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * shapes("mat1")[-1])


@_costs("baddbmm")
def _baddbmm(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * shapes("batch1")[-1])


@_costs("tensordot")
def _tensordot(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.sqrt(math.prod(result) * math.prod(shapes("a")) * math.prod(shapes("b"))))


@_costs("einsum")
def _einsum(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    operands = shapes("operands")
    if len(operands) != 2:
        return float(math.prod(result)) * max((math.prod(shape) for shape in operands), default=0)
    # Every letter's length once: those of the result, and those that are summed over.
    lengths: dict[str, int] = {}
    written = args["equation"].replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(written, operands, strict=True):
        letters = list(term.replace("...", ""))
        if "..." in term:
            place = term.index("...")
            letters[place:place] = [f".{n}" for n in range(len(shape) - len(letters), 0, -1)]
        for letter, length in zip(letters, shape, strict=True):
            lengths[letter] = max(lengths.get(letter, 1), length)
    return float(math.prod(lengths.values()))


@_costs("scaled_dot_product_attention")
def _attention(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    rows = math.prod(result[:-1])
    return float(rows * shapes("key")[-2] * (shapes("query")[-1] + result[-1]))


@_costs("batch_norm")
def _batch_norm(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    if shapes("running_mean") is None:
        return float(math.prod(result) * (5 if shapes("weight") is not None else 4))
    return float(math.prod(result) * (2 if shapes("weight") is not None else 1))


@_costs("layer_norm", "group_norm", "instance_norm")
def _normalization(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * (5 if shapes("weight") is not None else 4))


@_costs("interpolate")
def _interpolate(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * {"nearest": 1, "bilinear": 4}.get(args.get("mode", "nearest"), 0))


@_costs("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive_pool(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(shapes("input")))


@_costs("grid_sample")
def _grid_sample(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * (7 if args.get("mode", "bilinear") == "bilinear" else 1))


@_costs("RNN", "LSTM", "GRU")
def _recurrent(shapes: Shapes, result: Any, args: dict[str, Any]) -> float:
    steps = math.prod(shapes("0")[:-1])
    return float(steps * sum(math.prod(shapes(name)) for name in args if name.startswith("weight")))
