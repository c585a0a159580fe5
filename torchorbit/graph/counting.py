"""FLOPs of the vertices of a graph in one level, from the shapes of its tensors and results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torchorbit.graph.calls import Call
from torchorbit.graph.costs import first_shape, priced_vertices
from torchorbit.graph.dag import Graph
from torchorbit.graph.shapes import ArgumentShapes
from torchorbit.graph.vertices import OperatorVertex


def flops_by_vertex(
    graph: Graph, calls: Mapping[str, Call | OperatorVertex], tensor_shape: Callable[[str], tuple[int, ...]]
) -> dict[str, float]:
    """FLOPs of one sample, two per multiply-accumulate.

    Args:
        graph: of one level, with the shapes of all results.
        calls: vertex name -> what it calls.
        tensor_shape: gives the shape of the parameter or buffer at a path.

    Returns:
        Vertex name -> its FLOPs, in the order of the graph; those that cost nothing are left out.
    """
    shape_of = ArgumentShapes(graph.shapes, tensor_shape).value
    found = {}
    for priced in priced_vertices(graph, calls):
        operands = {name: shape_of(arg) for name, arg in priced.args.items()}
        count = priced.flops(operands.get, graph.shapes[priced.name])
        if count:
            found[priced.name] = count
    return found


def flops_per_pixel(graph: Graph, flops: float) -> float:
    """Thousands of FLOPs per pixel of the input, torch-dag's "kmapp"; NaN where the input is no image."""
    image = first_shape(graph)
    return flops / (image[-2] * image[-1] * 1000) if len(image) == 4 else math.nan
