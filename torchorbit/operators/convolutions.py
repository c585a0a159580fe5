"""Convolutions: in one piece, depthwise, in groups, transposed."""

from __future__ import annotations

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


def _per_axis(value: int | tuple[int, ...], axis: int) -> int:
    return value if isinstance(value, int) else value[axis if len(value) > 1 else 0]


def _places(x: Labelled, weight: Labelled) -> tuple[int, int]:
    """Where the channels of an operand are, and its first spatial dimension; a sample may have no batch."""
    first = len(x.shape) - len(weight.shape) + 2
    return first - 1, first


def _space(operands: Operands, x: Labelled, weight: Labelled) -> list[Dim]:
    """The spatial dimensions of the result. Only a convolution along channels has labels there."""
    dims: list[Dim] = []
    _, first = _places(x, weight)
    for axis, dim in enumerate(x.dims[first:]):
        operands.freeze(weight.dims[2 + axis])
        if not isinstance(dim, np.ndarray):
            dims.append(dim)
            continue
        kernel, length = weight.shape[2 + axis], operands.shape[first + axis]
        padding, stride = operands.arg("padding"), operands.arg("stride")
        offset = -1
        if padding != "valid" and not isinstance(padding, str) and _per_axis(stride, axis) == 1 and kernel % 2:
            offset = _per_axis(operands.arg("dilation"), axis) * (kernel // 2) - _per_axis(padding, axis)
        if kernel == 1 and length == x.shape[first + axis] and offset == 0:
            dims.append(dim)
        elif offset >= 0 and offset + length <= len(dim) and "transpose" not in operands.operator:
            operands.mixes("input", first + axis, first + axis)
            dims.append(dim[offset : offset + length])
        else:
            operands.freeze(dim)
            dims.append(None)
    return dims


@rule("conv1d", "conv2d", "conv3d")
def _convolution(operands: Operands) -> list[Dim]:
    x, weight = operands.tensor(), operands.tensor("weight")
    labels, groups, bias = operands.labels, operands.arg("groups"), operands.maybe("bias")
    place, _ = _places(x, weight)
    out = weight.dims[0]
    if bias is not None:
        out = labels.meet(out, bias.dims[0])
    if not isinstance(groups, int):
        # As many groups as there are samples: weights that depend on the input.
        groups = x.shape[place] // weight.shape[1]
    inside, outside = weight.shape[1], weight.shape[0] // groups
    channels = x.dims[place]
    if groups == 1:
        labels.meet(channels, weight.dims[1])
        operands.sink(weight.dims[1])
    elif inside == 1:
        if outside > 1 and isinstance(channels, np.ndarray):
            channels = np.repeat(channels, outside)
        out = labels.meet(channels, out)
    else:
        outer, inner = labels.split(channels, (groups, inside))
        outer_result, _ = labels.split(out, (groups, outside))
        labels.meet(outer, outer_result)
        labels.meet(inner, weight.dims[1])
        operands.sink(weight.dims[1])
    operands.source(weight.dims[0])
    return [*x.dims[:place], out, *_space(operands, x, weight)]


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(operands: Operands) -> list[Dim]:
    x, weight, bias = operands.tensor(), operands.tensor("weight"), operands.maybe("bias")
    labels, groups = operands.labels, operands.arg("groups")
    place, _ = _places(x, weight)
    inside, outside = weight.shape[0] // groups, weight.shape[1]
    channels = labels.meet(x.dims[place], weight.dims[0])
    operands.sink(weight.dims[0])
    if groups == 1:
        out = weight.dims[1]
        operands.source(out)
    else:
        factors = (groups, inside)
        outer, _ = labels.split(channels, factors)
        if inside == 1:
            outer = channels
        out = labels.merge([outer, weight.dims[1]], (groups, outside))
        if outside > 1:
            operands.source(out)
    if bias is not None:
        out = labels.meet(out, bias.dims[0])
    return [*x.dims[:place], out, *_space(operands, x, weight)]
