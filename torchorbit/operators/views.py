"""Operators that look at the same elements in another order or shape, or repeat them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Leaf, operator, operators
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.resizing import Resized, kept_groups, scaled, sizes
from torchorbit.operators.spelling import Bound, UnknownOperatorError, only, renamed, unary

NEEDLESS = {
    "cost": "it computes nothing",
    "resize": "no argument holds a number of channels",
    "contraction": "it sums over nothing",
    "oracle": "zeros go where channels go",
}


# -- other ways of calling them


def _view_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    if (len(args) > 1 and isinstance(args[1], torch.dtype)) or "dtype" in kwargs:
        raise UnknownOperatorError("view as another dtype")
    shape = kwargs.get("size", args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:])
    return "reshape", {"input": args[0], "shape": shape}


def _transposed_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    return "transpose", {"input": args[0], "dim0": -2, "dim1": -1}


def _reversed_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    return "permute", {"input": only(args, kwargs), "dims": tuple(range((rank or 0) - 1, -1, -1))}


# -- labels


def _reshape_rule(operands: Operands) -> list[Dim]:
    return operands.regrouped()


def _permute_rule(operands: Operands) -> list[Dim]:
    dims = operands.tensor().dims
    return [dims[axis] for axis in operands.arg("dims")]


def _adjoint_rule(operands: Operands) -> list[Dim]:
    *batch, rows, columns = operands.tensor().dims
    return [*batch, columns, rows]


def _transpose_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    first, second = operands.arg("dim0"), operands.arg("dim1")
    dims[first], dims[second] = dims[second], dims[first]
    return dims


def _movedim_rule(operands: Operands) -> list[Dim]:
    dims = operands.tensor().dims
    sources, targets = operands.arg("source"), operands.arg("destination")
    places = np.moveaxis(np.empty([1] * len(dims)), sources, targets)  # checks the arguments
    order = list(range(places.ndim))
    pairs = [(sources, targets)] if isinstance(sources, int) else zip(sources, targets, strict=True)
    moved = {target % len(dims): source % len(dims) for source, target in pairs}
    rest = iter([axis for axis in order if axis not in moved.values()])
    return [dims[moved[axis] if axis in moved else next(rest)] for axis in order]


def _expand_rule(operands: Operands) -> list[Dim]:
    x, shape = operands.tensor(), operands.shape
    sizes = operands.args.get("size") or [None] * len(shape)
    other = operands.maybe("other")
    dims: list[Dim] = []
    for axis, length in enumerate(shape):
        position = axis - len(shape) + len(x.shape)
        if position >= 0 and x.shape[position] == length:
            dims.append(x.dims[position])
        elif other is not None:
            dims.append(other.dims[axis])  # as long as that, whatever that is
        else:
            # A copy for each channel: as many as there are channels.
            dims.append(operands.labels.fresh(length) if length > 1 and isinstance(sizes[axis], int) else None)
    if other is not None:
        return operands.broadcast([Labelled(tuple(shape), dims), other], shape)
    return dims


def _repeat_rule(operands: Operands) -> list[Dim]:
    x, shape = operands.tensor(), operands.shape
    times = operands.args.get("repeats", operands.args.get("dims"))
    times = list(times) if isinstance(times, (tuple, list)) else [times]
    dims: list[Dim] = []
    for axis, length in enumerate(shape):
        position = axis - len(shape) + len(x.shape)
        before = x.shape[position] if position >= 0 else 1
        dim = x.dims[position] if position >= 0 else None
        dim = dim if length == before else operands.no_proportion(dim)
        count = times[axis - len(shape)] if len(shape) - axis <= len(times) else 1
        if length == before:
            dims.append(dim)
        elif before == 1:
            dims.append(operands.labels.fresh(length) if isinstance(count, int) else None)
        else:
            dims.append(np.tile(dim, length // before) if isinstance(dim, np.ndarray) else dim)
    return dims


def _repeat_interleave_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis, times = operands.arg("dim"), operands.arg("repeats")
    if axis is None:
        operands.freeze(x)
        return [None] * len(operands.shape)
    dims = list(x.dims)
    if not isinstance(times, int):
        operands.freeze(dims[axis])
        dims[axis] = None
    elif x.shape[axis] == 1:
        dims[axis] = operands.labels.fresh(times) if times > 1 else None
    else:
        dim = dims[axis] = operands.no_proportion(dims[axis])
        if isinstance(dim, np.ndarray):
            dims[axis] = np.repeat(dim, times)
    return dims


def _flip_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    for axis in operands.arg("dims"):
        dim = dims[axis] = operands.no_proportion(dims[axis])
        dims[axis] = dim[::-1] if isinstance(dim, np.ndarray) else dim
    return dims


def _roll_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    shifts = _shifts(operands.arg("shifts"), operands.arg("dims"))
    for axis, shift in dict.fromkeys(range(len(dims))).items() if shifts is None else shifts:
        dim = dims[axis] = operands.at_fixed_places(dims[axis])
        if isinstance(dim, np.ndarray) and isinstance(shift, int):
            dims[axis] = np.roll(dim, shift)
        else:
            operands.freeze(dim)
            dims[axis] = None
    return dims


def _shifts(shifts: Any, axes: Any) -> list[tuple[int, Any]] | None:
    """Dimensions and by how much each is rolled; None where the elements are rolled as if in one dimension."""
    if axes is None or axes == ():
        return None
    axes, shifts = (given if isinstance(given, (tuple, list)) else (given,) for given in (axes, shifts))
    return list(zip(axes, shifts, strict=True))


def _rot90_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    for axis in operands.arg("dims"):
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


def first_of_each(operands: Operands, dim: Dim, copies: int) -> Dim:
    """Channels that come in runs of ``copies``, each of which becomes one channel."""
    if not isinstance(dim, np.ndarray):
        return dim
    grid = dim.reshape(-1, copies)
    operands.labels.tie(grid[:, 1:], np.broadcast_to(grid[:, :1], grid[:, 1:].shape))
    first = grid[:, 0]
    if len(first) == 1:
        operands.freeze(first)
        return None
    return first


def _pixel_shuffle_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    operands.freeze(dims[-1])
    operands.freeze(dims[-2])
    return [*dims[:-3], first_of_each(operands, dims[-3], operands.arg("upscale_factor") ** 2), None, None]


def _pixel_unshuffle_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    operands.freeze(dims[-1])
    operands.freeze(dims[-2])
    dim = dims[-3]
    copies = operands.arg("downscale_factor") ** 2
    return [*dims[:-3], np.repeat(dim, copies) if isinstance(dim, np.ndarray) else dim, None, None]


def _channel_shuffle_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    groups, channels = operands.arg("groups"), x.shape[1]
    factors = (groups, channels // groups)
    outer, inner = operands.labels.split(x.dims[1], factors)
    return [x.dims[0], operands.labels.merge([inner, outer], factors[::-1]), *x.dims[2:]]


def _unfold_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis = operands.arg("dimension")
    operands.freeze(dims[axis])
    dims[axis] = None
    return [*dims, None]


def _diagonal_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axes = {operands.arg("dim1") % len(x.shape), operands.arg("dim2") % len(x.shape)}
    for axis in axes:
        operands.freeze(x.dims[axis])
    return [*[dim for axis, dim in enumerate(x.dims) if axis not in axes], None]


def _diag_embed_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    rank = len(operands.shape)
    axes = {operands.arg("dim1") % rank, operands.arg("dim2") % rank}
    rest = iter(x.dims[:-1])
    return [None if axis in axes else next(rest) for axis in range(rank)]


def _view_as_complex_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    return x.dims[:-1]


def _view_as_real_rule(operands: Operands) -> list[Dim]:
    return [*operands.tensor().dims, None]


def _triangle_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    for dim in x.dims[-2:]:
        operands.freeze(dim)
    return [*x.dims[:-2], None, None]


# -- numbers after a removal


def _unflatten_resize(call: Resized) -> None:
    start = call.args["dim"] % len(call.masks())
    sizes = call.args["sizes"]
    call.args["sizes"] = tuple([call.length(size, start + n) for n, size in enumerate(sizes)])


def _squeeze_resize(call: Resized) -> None:
    # A dimension that is down to one channel is still one.
    shape, dims = call.shape_of("input"), call.args.get("dim")
    if dims is None:
        call.args["dim"] = tuple([axis for axis, length in enumerate(shape) if length == 1])
    elif shape:
        listed = [dims] if isinstance(dims, int) else list(dims)
        call.args["dim"] = tuple([axis for axis in listed if call.masks()[axis] is None])


def _repeat_resize(call: Resized) -> None:
    name = "repeats" if call.operator == "repeat" else "dims"
    times = list(call.args[name]) if isinstance(call.args[name], (tuple, list)) else [call.args[name]]
    shape, masks = call.shape_of("input"), call.masks()
    for n in range(len(times)):
        axis, position = len(call.result) - len(times) + n, len(shape) - len(times) + n
        mask = call.result[axis]
        if mask is not None and (position < 0 or masks[position] is None):
            times[n] = scaled(times[n], mask)
    call.args[name] = tuple(times)


def _repeat_interleave_resize(call: Resized) -> None:
    axis = call.args["dim"] % len(call.result)
    if call.shape_of("input")[axis] == 1:
        call.args["repeats"] = scaled(call.args["repeats"], call.result[axis])
    if call.args.get("output_size") is not None:
        call.args["output_size"] = scaled(call.args["output_size"], call.result[axis])


def _channel_shuffle_resize(call: Resized) -> None:
    call.args["groups"] = kept_groups(call.args["groups"], call.masks()[1])


def _roll_resize(call: Resized) -> None:
    shifts = _shifts(call.args["shifts"], call.args.get("dims"))
    if shifts is None:
        return
    masks, result = list(call.masks()), []
    for axis, shift in shifts:
        mask = masks[axis]
        if mask is not None:
            # What is kept of those that come round to the front still does.
            moved = masks[axis] = np.roll(mask, shift)
            shift = int(moved[: shift % len(mask)].sum())
        result.append(shift)
    call.args["shifts"], call.args["dims"] = tuple(result), tuple([axis for axis, _ in shifts])


def _unflatten_numbers(call: Resized) -> dict[str, Any]:
    return {"unflattened_size": tuple(call.args["sizes"])}


def _shuffle_numbers(call: Resized) -> dict[str, Any]:
    return {"groups": call.args["groups"]}


_OF_MATRICES = Tensor.mT.__get__  # type: ignore[attr-defined]
_OF_ALL = Tensor.T.__get__  # type: ignore[attr-defined]
_CONJUGATED = (Tensor.mH.__get__, Tensor.H.__get__)  # type: ignore[attr-defined]

OPERATORS = [
    operator(
        "reshape(input, shape: ints)",
        names="view",
        calls={
            Tensor.view: _view_call,
            torch.ravel: unary("reshape", shape=(-1,)),
            Tensor.ravel: unary("reshape", shape=(-1,)),
        },
        rule=_reshape_rule,
        resize=sizes("shape"),
        constant="viewed",
    ),
    operator(
        "reshape_as(input, other)",
        style="method",
        names="view_as",
        kinds={"other": "tensor"},
        rule=_reshape_rule,
        constant="viewed",
    ),
    operator(
        "flatten(input, start_dim=0, end_dim=-1)",
        modules=[Leaf(nn.Flatten, attributes=("start_dim", "end_dim"))],
        rule=_reshape_rule,
        constant="viewed",
    ),
    operator(
        "unflatten(input, dim, sizes)",
        modules=[Leaf(nn.Unflatten, attributes=("dim", "sizes=unflattened_size"), numbers=_unflatten_numbers)],
        rule=_reshape_rule,
        resize=_unflatten_resize,
        constant="viewed",
    ),
    operator("squeeze(input, dim=None)", rule=_reshape_rule, resize=_squeeze_resize, constant="viewed"),
    operator("unsqueeze(input, dim)", rule=_reshape_rule, constant="viewed"),
    operator(
        "permute(input, dims: ints)",
        calls=dict.fromkeys((_OF_ALL, Tensor.t, Tensor.t_, torch.t), _reversed_call),
        rule=_permute_rule,
        constant="computed",
    ),
    operator(
        "transpose(input, dim0, dim1)",
        names="swapaxes swapdims",
        calls={_OF_MATRICES: _transposed_call},
        rule=_transpose_rule,
        constant="computed",
    ),
    operator("adjoint(input)", calls=dict.fromkeys(_CONJUGATED, unary("adjoint")), rule=_adjoint_rule),
    operator("movedim(input, source, destination)", names="moveaxis", rule=_movedim_rule),
    operator("expand(input, size: ints)", style="method", rule=_expand_rule, resize=sizes("size")),
    operator("expand_as(input, other)", style="method", kinds={"other": "tensor"}, rule=_expand_rule),
    operator("broadcast_to(input, size: ints)", rule=_expand_rule, resize=sizes("size")),
    operator(
        "repeat(input, repeats: ints)",
        style="method",
        kinds={"repeats": "ints"},
        rule=_repeat_rule,
        resize=_repeat_resize,
    ),
    operator("tile(input, dims: ints)", rule=_repeat_rule, resize=_repeat_resize),
    operator(
        "repeat_interleave(input, repeats, dim=None, *, output_size=None)",
        kinds={"output_size": "int|none"},
        rule=_repeat_interleave_rule,
        resize=_repeat_interleave_resize,
    ),
    operator("flip(input, dims: ints)", rule=_flip_rule),
    operator("roll(input, shifts, dims=None)", rule=_roll_rule, resize=_roll_resize, constant="moved"),
    operator("rot90(input, k=1, dims=(0, 1))", rule=_rot90_rule),
    operator(
        "pixel_shuffle(input, upscale_factor)",
        modules=[Leaf(nn.PixelShuffle, attributes=("upscale_factor",))],
        rule=_pixel_shuffle_rule,
    ),
    operator(
        "pixel_unshuffle(input, downscale_factor)",
        modules=[Leaf(nn.PixelUnshuffle, attributes=("downscale_factor",))],
        rule=_pixel_unshuffle_rule,
    ),
    operator(
        "channel_shuffle(input, groups)",
        modules=[Leaf(nn.ChannelShuffle, attributes=("groups",), numbers=_shuffle_numbers)],
        rule=_channel_shuffle_rule,
        resize=_channel_shuffle_resize,
    ),
    operator(
        "unfold(input, dimension, size, step)",
        style="method",
        kinds={"size": "int", "step": "int"},
        calls={Tensor.unfold: renamed("unfold", "input", "dimension", "size", "step")},
        rule=_unfold_rule,
    ),
    operator("diagonal(input, offset=0, dim1=0, dim2=1)", rule=_diagonal_rule),
    operator("diag_embed(input, offset=0, dim1=-2, dim2=-1)", rule=_diag_embed_rule),
    operator("view_as_complex(input)", rule=_view_as_complex_rule),
    operator("view_as_real(input)", rule=_view_as_real_rule),
    *operators(
        """
        tril(input, diagonal=0)
        triu(input, diagonal=0)
        """,
        rule=_triangle_rule,
    ),
]
