"""Concatenation, splitting, padding."""

from __future__ import annotations

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


def _cat(operands: Operands, tensors: list[Labelled], axis: int) -> list[Dim]:
    # An empty tensor of one dimension may be concatenated with anything.
    tensors = [tensor for tensor in tensors if tensor.shape != (0,)]
    labels, dims = operands.labels, []
    axis %= len(operands.shape)
    for position in range(len(operands.shape)):
        if position == axis:
            parts = [tensor.dims[axis] for tensor in tensors]
            dims.append(labels.concatenate(parts, [tensor.shape[axis] for tensor in tensors]))
        else:
            dims.append(labels.meet(*[tensor.dims[position] for tensor in tensors]))
    return dims


@rule("cat")
def _concatenate(operands: Operands) -> list[Dim]:
    return _cat(operands, list(operands.args["tensors"]), operands.arg("dim"))


@rule("hstack")
def _hstack(operands: Operands) -> list[Dim]:
    return _cat(operands, list(operands.args["tensors"]), 0 if len(operands.shape) == 1 else 1)


@rule("vstack")
def _vstack(operands: Operands) -> list[Dim]:
    tensors = [
        tensor if len(tensor.shape) > 1 else Labelled((1, *tensor.shape), [None, *tensor.dims])
        for tensor in operands.args["tensors"]
    ]
    return _cat(operands, tensors, 0)


@rule("stack")
def _stack(operands: Operands) -> list[Dim]:
    tensors = operands.args["tensors"]
    axis = operands.arg("dim") % len(operands.shape)
    dims = [operands.labels.meet(*dims) for dims in zip(*[tensor.dims for tensor in tensors], strict=True)]
    return [*dims[:axis], None, *dims[axis:]]


@rule("split", "chunk", "tensor_split")
def _split(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    result, start = [], 0
    for shape in operands.shape:
        dims = list(x.dims)
        dims[axis] = operands.piece(dims[axis], start, start + shape[axis])
        start += shape[axis]
        result.append(Labelled(tuple(shape), dims))
    return tuple(result)


@rule("unbind")
def _unbind(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    dims = [*x.dims[:axis], *x.dims[axis + 1 :]]
    return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])


@rule("pad")
def _pad(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    amounts = operands.arg("pad")
    mode = operands.arg("mode")
    spatial = max(len(dims) - 2, 1)
    if isinstance(amounts, int):
        amounts = (amounts,) * (2 * spatial)
    for position in range(len(amounts) // 2):
        axis = len(dims) - 1 - position
        dim = dims[axis]
        before, after = amounts[2 * position : 2 * position + 2]
        if not isinstance(dim, np.ndarray) or (before, after) == (0, 0):
            continue
        if mode == "constant" and all(isinstance(n, int) and n >= 0 for n in (before, after)):
            dims[axis] = np.concatenate([operands.labels.fresh(before), dim, operands.labels.fresh(after)])
        elif mode == "circular" and all(isinstance(n, int) and n >= 0 for n in (before, after)):
            operands.mixes("input", axis, axis)
            dims[axis] = np.concatenate([dim[len(dim) - before :], dim, dim[:after]])
        else:
            operands.freeze(dim)
            dims[axis] = None
    return dims
