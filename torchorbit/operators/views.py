"""Operators that look at the same elements in another order or shape."""

from __future__ import annotations

import math

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


@rule("reshape", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze")
def _reshape(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    return operands.labels.regroup(x.dims, tuple(x.shape), tuple(operands.shape))


@rule("permute")
def _permute(operands: Operands) -> list[Dim]:
    dims = operands.tensor().dims
    return [dims[axis] for axis in operands.arg("dims")]


@rule("transpose")
def _transpose(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    first, second = operands.arg("dim0"), operands.arg("dim1")
    dims[first], dims[second] = dims[second], dims[first]
    return dims


@rule("movedim")
def _movedim(operands: Operands) -> list[Dim]:
    dims = operands.tensor().dims
    sources, targets = operands.arg("source"), operands.arg("destination")
    places = np.moveaxis(np.empty([1] * len(dims)), sources, targets)  # checks the arguments
    order = list(range(places.ndim))
    pairs = [(sources, targets)] if isinstance(sources, int) else zip(sources, targets, strict=True)
    moved = {target % len(dims): source % len(dims) for source, target in pairs}
    rest = iter([axis for axis in order if axis not in moved.values()])
    return [dims[moved[axis] if axis in moved else next(rest)] for axis in order]


@rule("expand", "broadcast_to", "expand_as")
def _expand(operands: Operands) -> list[Dim]:
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


@rule("repeat", "tile")
def _repeat(operands: Operands) -> list[Dim]:
    x, shape = operands.tensor(), operands.shape
    times = operands.args.get("repeats", operands.args.get("dims"))
    times = list(times) if isinstance(times, (tuple, list)) else [times]
    dims: list[Dim] = []
    for axis, length in enumerate(shape):
        position = axis - len(shape) + len(x.shape)
        before = x.shape[position] if position >= 0 else 1
        dim = x.dims[position] if position >= 0 else None
        count = times[axis - len(shape)] if len(shape) - axis <= len(times) else 1
        if length == before:
            dims.append(dim)
        elif before == 1:
            dims.append(operands.labels.fresh(length) if isinstance(count, int) else None)
        else:
            dims.append(np.tile(dim, length // before) if isinstance(dim, np.ndarray) else dim)
    return dims


@rule("repeat_interleave")
def _repeat_interleave(operands: Operands) -> list[Dim]:
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
    elif isinstance(dims[axis], np.ndarray):
        dims[axis] = np.repeat(dims[axis], times)
    return dims


@rule("flip")
def _flip(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    for axis in operands.arg("dims"):
        dim = dims[axis]
        dims[axis] = dim[::-1] if isinstance(dim, np.ndarray) else dim
    return dims


@rule("roll")
def _roll(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axes = operands.arg("dims")
    dims = list(x.dims)
    for axis in range(len(dims)) if axes is None else (axes,) if isinstance(axes, int) else axes:
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


@rule("rot90")
def _rot90(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    for axis in operands.arg("dims"):
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


def _first_of_each(operands: Operands, dim: Dim, copies: int) -> Dim:
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


@rule("pixel_shuffle")
def _pixel_shuffle(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    operands.freeze(dims[-1])
    operands.freeze(dims[-2])
    return [*dims[:-3], _first_of_each(operands, dims[-3], operands.arg("upscale_factor") ** 2), None, None]


@rule("pixel_unshuffle")
def _pixel_unshuffle(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    operands.freeze(dims[-1])
    operands.freeze(dims[-2])
    dim = dims[-3]
    copies = operands.arg("downscale_factor") ** 2
    return [*dims[:-3], np.repeat(dim, copies) if isinstance(dim, np.ndarray) else dim, None, None]


@rule("channel_shuffle")
def _channel_shuffle(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    groups, channels = operands.arg("groups"), x.shape[1]
    factors = (groups, channels // groups)
    outer, inner = operands.labels.split(x.dims[1], factors)
    return [x.dims[0], operands.labels.merge([inner, outer], factors[::-1]), *x.dims[2:]]


def _window(operands: Operands) -> int:
    size = operands.arg("kernel_size")
    return size * size if isinstance(size, int) else math.prod(size)


@rule("im2col")
def _im2col(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    channels = x.dims[-3]
    for dim in x.dims[-2:]:
        operands.freeze(dim)
    copies = _window(operands)
    return [*x.dims[:-3], np.repeat(channels, copies) if isinstance(channels, np.ndarray) else channels, None]


@rule("col2im")
def _col2im(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    return [*x.dims[:-2], _first_of_each(operands, x.dims[-2], _window(operands)), None, None]


@rule("unfold")
def _unfold(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis = operands.arg("dimension")
    operands.freeze(dims[axis])
    dims[axis] = None
    return [*dims, None]


@rule("diagonal")
def _diagonal(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axes = {operands.arg("dim1") % len(x.shape), operands.arg("dim2") % len(x.shape)}
    for axis in axes:
        operands.freeze(x.dims[axis])
    return [*[dim for axis, dim in enumerate(x.dims) if axis not in axes], None]


@rule("diag_embed")
def _diag_embed(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    rank = len(operands.shape)
    axes = {operands.arg("dim1") % rank, operands.arg("dim2") % rank}
    rest = iter(x.dims[:-1])
    return [None if axis in axes else next(rest) for axis in range(rank)]
