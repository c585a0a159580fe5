"""Counting FLOPs: two per multiply-accumulate, from the shapes in the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from torchorbit.conversion import convert
from torchorbit.errors import ArgumentError
from torchorbit.graph.calls import asking
from torchorbit.graph.counting import flops_by_vertex, flops_per_pixel
from torchorbit.graph.dag import DagModule, Provenance
from torchorbit.orbits.flat import FlatModel


@dataclass(frozen=True, slots=True)
class Flops:
    """What one sample costs.

    Attributes:
        total: FLOPs, two per multiply-accumulate.
        by_vertex: vertex of the flattened graph -> its FLOPs; those that cost nothing are left out.
        kmapp: thousands of FLOPs per pixel of the input, ``total / (height * width * 1000)`` (torch-dag's figure); NaN
            where the input is no image.
    """

    total: float
    by_vertex: dict[str, float]
    kmapp: float

    def __float__(self) -> float:
        return self.total

    def __str__(self) -> str:
        rows = [(name, f"{flops / 1e6:.3f}", f"{flops / self.total:.2%}") for name, flops in self.by_vertex.items()]
        rows.append(("total", f"{self.total / 1e6:.3f}", f"{self.kmapp:.2f} kmapp"))
        return tabulate(
            rows, headers=("vertex", "MFLOPs", "share"), disable_numparse=True, colalign=("left", "right", "right")
        )


def flops(model: nn.Module, input_shape: Sequence[int] | None = None) -> Flops:
    """Count the FLOPs of a model, two per multiply-accumulate, for one sample in evaluation mode.

    Counted is what fvcore counts (which calls one multiply-accumulate one FLOP): convolutions, linear layers, matrix
    products, einsum, attention, normalizations, resampling and adaptive pooling. Elementwise operators are free.

    Args:
        model: a `DagModule`, or any module that takes one tensor; it is then converted first.
        input_shape: shape of the input, the batch included. A graph needs none: it remembers what it was recorded
            with.

    Returns:
        The count, in total and for every vertex.

    Raises:
        ArgumentError: ``model`` is no graph and ``input_shape`` is missing; it is a block of a graph; or it is a
            graph that takes several tensors, or whose size is fixed, and ``input_shape`` is another one.
        GraphRunError: a vertex does not run with an input of this shape.
        ConversionError: the model cannot be converted.
    """
    if not isinstance(model, DagModule):
        if input_shape is None:
            raise ArgumentError("input_shape is missing: a module that is no DagModule does not know its input's shape")
        model = convert(model, torch.empty(tuple(input_shape), device="meta"))
    if model.provenance is None:
        raise ArgumentError("this is a block of a graph; give the outermost DagModule")
    with asking("its FLOPs"):
        flat = FlatModel.of(model, input_shapes=_other_shapes(model.provenance, input_shape), separate=False)
        by_vertex = flops_by_vertex(flat.graph, flat.calls, lambda path: tuple(flat.tensor_at(path).shape))
        total = math.fsum(by_vertex.values())
        return Flops(total, by_vertex, flops_per_pixel(flat.graph, total))


def _other_shapes(provenance: Provenance, input_shape: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The shapes with which to count a graph anew; none where they are those that it was recorded with.

    Raises:
        ArgumentError: it refuses inputs of this shape.
    """
    recorded = [tuple(shape) for shape in provenance.input_shapes]
    if input_shape is None:
        return []
    shape = tuple(input_shape)
    if len(recorded) != 1 or len(shape) != len(recorded[0]):
        raise ArgumentError(
            f"input_shape={shape}, and the graph takes tensors of shapes {recorded}; leave it out to count with these"
        )
    if shape[1:] == recorded[0][1:]:
        return []
    fixed = [dim for dim in provenance.fixed_lengths[0] if dim] if provenance.fixed_lengths else []
    if not provenance.free_lengths or any(shape[dim] != recorded[0][dim] for dim in fixed):
        raise ArgumentError(
            f"input_shape={shape}, and the size of the graph is fixed: it was recorded with {recorded[0]}; convert the "
            "model at the other size"
        )
    return [shape]
