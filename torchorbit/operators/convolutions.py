"""Convolutions: in one piece, depthwise, in groups, transposed; and windows taken out of images and put back."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from torchorbit.arguments import Expr
from torchorbit.labels import Dim
from torchorbit.operators.declaring import Arguments, Leaf, Shapes, operator
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.resizing import Resized, kept_groups
from torchorbit.operators.shapes import Shape, are_floats, misfit, per_axis
from torchorbit.operators.spelling import renamed
from torchorbit.operators.sums import Meeting, Operand, Ranks
from torchorbit.operators.views import first_of_each

NEEDLESS = {"oracle": "zeros have no part in a sum of products"}


# -- labels


def _along(value: int | tuple[int, ...], axis: int) -> int:
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
        if padding != "valid" and not isinstance(padding, str) and _along(stride, axis) == 1 and kernel % 2:
            offset = _along(operands.arg("dilation"), axis) * (kernel // 2) - _along(padding, axis)
        if kernel == 1 and length == x.shape[first + axis] and offset == 0:
            dims.append(dim)
        elif offset >= 0 and offset + length <= len(dim) and "transpose" not in operands.operator:
            operands.mixes("input", first + axis, first + axis)
            dims.append(dim[offset : offset + length])
        else:
            operands.freeze(dim)
            dims.append(None)
    return dims


def _convolution_rule(operands: Operands) -> list[Dim]:
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


def _transposed_rule(operands: Operands) -> list[Dim]:
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


def _window(operands: Operands) -> int:
    size = operands.arg("kernel_size")
    return size * size if isinstance(size, int) else math.prod(size)


def _im2col_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    channels = x.dims[-3]
    for dim in x.dims[-2:]:
        operands.freeze(dim)
    copies = _window(operands)
    return [*x.dims[:-3], np.repeat(channels, copies) if isinstance(channels, np.ndarray) else channels, None]


def _col2im_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    return [*x.dims[:-2], first_of_each(operands, x.dims[-2], _window(operands)), None, None]


# -- shapes


def _convolution_shape(args: Arguments, count: int) -> Shape | None:
    """The shape of a convolution over ``count`` dimensions of space."""
    x, weight, bias, groups = args["input"], args.get("weight"), args.get("bias"), args.get("groups", 1)
    if weight is None or not are_floats(x, weight, bias) or type(groups) is not int:
        return None
    if not count + 2 == x.dim() == weight.dim():
        return None
    outside, inside, *kernel = map(int, weight.shape)
    stride, dilation = per_axis(args.get("stride", 1), count), per_axis(args.get("dilation", 1), count)
    if stride is None or dilation is None or not x.numel() or not weight.numel():
        return None
    if groups < 1 or outside % groups or x.shape[1] != inside * groups:
        raise misfit(f"the input has shape {tuple(x.shape)}", f"{inside * groups} channels in {groups} groups")
    if bias is not None and tuple(bias.shape) != (outside,):
        raise misfit(f"the bias has shape {tuple(bias.shape)}", (outside,))
    padding = _padding(args.get("padding", 0), count, stride, dilation, kernel)
    if padding is None:
        return None
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        raise misfit(f"stride {stride}, dilation {dilation} and padding {padding}", "at least 1, 1 and 0")
    lengths = [
        (n + pad - d * (k - 1) - 1) // step + 1
        for n, pad, d, k, step in zip(map(int, x.shape[2:]), padding, dilation, kernel, stride, strict=True)
    ]
    if min(lengths) < 1:
        raise misfit(f"the result for an input of shape {tuple(x.shape)} has the lengths {lengths}", "at least 1")
    return (int(x.shape[0]), outside, *lengths)


def _padding(
    given: Any, count: int, stride: tuple[int, ...], dilation: tuple[int, ...], kernel: list[int]
) -> tuple[int, ...] | None:
    """By how much both sides of every spatial dimension are padded together."""
    if given == "valid":
        return (0,) * count
    if given == "same":
        return tuple([d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]) if set(stride) == {1} else None
    sides = per_axis(given, count)
    return None if sides is None else tuple([2 * side for side in sides])


# -- multiply-accumulates


def _convolution_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * math.prod(shapes("weight")[1:]))


def _transposed_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(shapes("input")) * math.prod(shapes("weight")[1:]))


# -- numbers after a removal


def _convolution_resize(call: Resized) -> None:
    groups = call.args.get("groups", 1)
    channels = 1 - len(call.shape_of("weight"))  # a sample may have no batch
    masks = call.masks("weight")[0], call.masks()[channels]
    if not isinstance(groups, int):
        # As many groups as there are samples, or channels in all samples: weights that depend on the input.
        recorded = call.shape_of("input")[channels] // call.shape_of("weight")[1]
        kept = kept_groups(recorded, *masks)
        divisor = math.gcd(kept, recorded)
        if kept != recorded:
            call.args["groups"] = Expr("//", (Expr("*", (groups, kept // divisor)), recorded // divisor))
    elif groups > 1:
        call.args["groups"] = kept_groups(groups, *masks)


def _transposed_resize(call: Resized) -> None:
    groups = call.args.get("groups", 1)
    if groups > 1:
        call.args["groups"] = kept_groups(groups, call.masks("weight")[0])


def _groups(call: Resized) -> dict[str, Any]:
    return {"groups": call.args["groups"]}


def _settle(module: Any) -> None:
    module.in_channels, module.out_channels = module.weight.shape[1] * module.groups, module.weight.shape[0]


def _settle_transposed(module: Any) -> None:
    module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups


# -- channels


def _contraction(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("input", rank("input") - rank("weight") + 1),)]


def _channels(rank: int, weight_rank: int, module: nn.Module | None) -> int:
    return rank - weight_rank + 1


def _channels_of_input(call: Resized) -> set[int]:
    return {_channels(len(call.shape_of("input")), len(call.shape_of("weight")), None)}


_ATTRIBUTES = ("stride", "padding", "dilation", "groups")
_WINDOW = ("kernel_size", "dilation", "padding", "stride")
_CLASSES: list[tuple[type[nn.Module], type[nn.Module]]] = [
    (nn.Conv1d, nn.ConvTranspose1d),
    (nn.Conv2d, nn.ConvTranspose2d),
    (nn.Conv3d, nn.ConvTranspose3d),
]

OPERATORS = [
    *[
        operator(
            f"conv{n}d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
            function=getattr(F, f"conv{n}d"),
            modules=[
                Leaf(
                    cls,
                    tensors=("weight", "bias"),
                    attributes=_ATTRIBUTES,
                    exact=lambda module: module.padding_mode == "zeros",
                    complete=True,
                    numbers=_groups,
                    settle=_settle,
                )
            ],
            rule=_convolution_rule,
            shape=partial(_convolution_shape, count=n),
            cost=_convolution_cost,
            resize=_convolution_resize,
            contraction=_contraction,
            sinks=True,
            channels=_channels,
            bias_of_nothing=True,
            in_full=_channels_of_input,
            constant="computed",
        )
        for n, (cls, _) in enumerate(_CLASSES, start=1)
    ],
    *[
        operator(
            f"conv_transpose{n}d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,\
 dilation=1)",
            function=getattr(F, f"conv_transpose{n}d"),
            modules=[
                Leaf(
                    cls,
                    tensors=("weight", "bias"),
                    attributes=(*_ATTRIBUTES, "output_padding"),
                    numbers=_groups,
                    settle=_settle_transposed,
                )
            ],
            rule=_transposed_rule,
            cost=_transposed_cost,
            resize=_transposed_resize,
            contraction=_contraction,
            sinks=True,
            channels=_channels,
        )
        for n, (_, cls) in enumerate(_CLASSES, start=1)
    ],
    operator(
        "im2col(input, kernel_size, dilation=1, padding=0, stride=1)",
        function=F.unfold,
        calls={F.unfold: renamed("im2col", "input", *_WINDOW)},
        modules=[Leaf(nn.Unfold, attributes=_WINDOW)],
        rule=_im2col_rule,
        needless={
            "cost": "fvcore does not count it",
            "resize": "no argument holds a number of channels",
            "contraction": "it sums over nothing",
        },
    ),
    operator(
        "col2im(input, output_size, kernel_size, dilation=1, padding=0, stride=1)",
        function=F.fold,
        calls={F.fold: renamed("col2im", "input", "output_size", *_WINDOW)},
        modules=[Leaf(nn.Fold, attributes=("output_size", *_WINDOW))],
        rule=_col2im_rule,
        needless={
            "cost": "fvcore does not count it",
            "resize": "no argument holds a number of channels",
            "contraction": "it sums over space only",
        },
    ),
]
