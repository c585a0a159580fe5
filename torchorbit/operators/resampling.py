"""Resampling: space changes, channels pass."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import nn

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Leaf, Shapes, operator
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.shapes import Shape

NEEDLESS = {
    "resize": "no argument holds a number of channels",
    "contraction": "it goes over space only",
    "oracle": "it goes over space only",
}


def over_space(operands: Operands, count: int) -> list[Dim] | tuple[Labelled, ...]:
    """The labels where the last dimensions, which are space, are pooled or resampled."""
    x = operands.tensor()
    for dim in x.dims[-count:]:
        operands.freeze(dim)
    dims: list[Dim] = [*x.dims[:-count], *[None] * count]
    if operands.shape and isinstance(operands.shape[0], tuple):
        return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])
    return dims


def _interpolate_rule(operands: Operands) -> list[Dim] | tuple[Labelled, ...]:
    return over_space(operands, len(operands.tensor().shape) - 2)


def _grid_sample_rule(operands: Operands) -> list[Dim]:
    x, grid = operands.tensor(), operands.tensor("grid")
    for dim in (*x.dims[2:], *grid.dims[1:]):
        operands.freeze(dim)
    # Heads may be folded into the batch, of which every sample has a grid of its own.
    return [operands.labels.meet(x.dims[0], grid.dims[0]), x.dims[1], *[None] * (len(x.shape) - 2)]


def _affine_grid_rule(operands: Operands) -> list[Dim]:
    operands.freeze(operands.tensor("theta"))
    return [None] * len(operands.shape)


def _interpolate_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * {"nearest": 1, "bilinear": 4}.get(args.get("mode", "nearest"), 0))


def _grid_sample_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * (7 if args.get("mode", "bilinear") == "bilinear" else 1))


OPERATORS = [
    operator(
        "interpolate(input, size=None, scale_factor=None, mode='nearest', align_corners=None,\
 recompute_scale_factor=None, antialias=False)",
        names="upsample",
        modules=[
            Leaf(cls, attributes=("size", "scale_factor", "mode"))
            for cls in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
        ],
        rule=_interpolate_rule,
        cost=_interpolate_cost,
        constant="same",
    ),
    operator(
        "grid_sample(input, grid, mode='bilinear', padding_mode='zeros', align_corners=None)",
        function=F.grid_sample,
        rule=_grid_sample_rule,
        cost=_grid_sample_cost,
    ),
    operator(
        "affine_grid(theta, size, align_corners=None)",
        function=F.affine_grid,
        rule=_affine_grid_rule,
        needless={"cost": "fvcore does not count it"},
    ),
]
