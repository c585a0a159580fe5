"""Reading and writing parts of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


def _expanded(index: Any, rank: int) -> list[Any]:
    """An index as a list with one entry per dimension, and None for every new one."""
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(_consumed(entry) for entry in entries)
    if any(entry is Ellipsis for entry in entries):
        place = next(n for n, entry in enumerate(entries) if entry is Ellipsis)
        entries[place : place + 1] = [slice(None)] * (rank - used)
    else:
        entries += [slice(None)] * (rank - used)
    return entries


def _consumed(entry: Any) -> int:
    """How many dimensions of the input an entry of an index stands for."""
    return 0 if entry is None or entry is Ellipsis else 1


def _advanced(entry: Any) -> bool:
    return isinstance(entry, (Labelled, list))


def _parts(operands: Operands, x: Labelled, index: Any) -> tuple[list[Dim], list[int | None]]:
    """Labels of ``x[index]``, and for each of its dimensions the one of ``x`` that passed through whole."""
    dims: list[Dim] = []
    whole: list[int | None] = []
    entries = _expanded(index, len(x.shape))
    places = [n for n, entry in enumerate(entries) if _advanced(entry) or isinstance(entry, int)]
    adjacent = bool(places) and places == list(range(places[0], places[-1] + 1))
    ranks = [len(entry.shape) if isinstance(entry, Labelled) else 1 for entry in entries if _advanced(entry)]
    indexed = False
    axis = 0
    for entry in entries:
        if entry is None:
            dims.append(None)
            whole.append(None)
            continue
        dim, length = x.dims[axis], x.shape[axis]
        if isinstance(entry, slice):
            numbers = all(part is None or isinstance(part, int) for part in (entry.start, entry.stop, entry.step))
            if entry == slice(None):
                dims.append(dim)
                whole.append(axis)
            elif numbers:
                dims.append(operands.piece(dim, *entry.indices(length)))
                whole.append(None)
            else:
                operands.freeze(dim)
                dims.append(None)
                whole.append(None)
        elif _advanced(entry):
            operands.freeze(dim)
            if isinstance(entry, Labelled):
                operands.freeze(entry)
            if not indexed:
                at = len(dims) if adjacent else 0
                dims[at:at] = [None] * max(ranks)
                whole[at:at] = [None] * max(ranks)
                indexed = True
        elif isinstance(dim, np.ndarray):
            if isinstance(entry, int):
                operands.freeze(dim[entry : entry + 1] if entry != -1 else dim[-1:])
            else:
                operands.freeze(dim)
        axis += 1
    return dims, whole


def _has_mask(index: Any, x: Labelled, shape: tuple[int, ...]) -> bool:
    """Whether a boolean mask may be among the indices: it stands for several dimensions, and its count is unknown."""
    entries = index if isinstance(index, tuple) else (index,)
    rank = len(x.shape) - sum(isinstance(entry, int) for entry in entries) + sum(entry is None for entry in entries)
    advanced = [entry for entry in entries if _advanced(entry)]
    if not advanced:
        return False
    rank += max(len(e.shape) if isinstance(e, Labelled) else 1 for e in advanced) - len(advanced)
    return rank != len(shape)


@rule("getitem")
def _getitem(operands: Operands) -> list[Dim]:
    x, index = operands.tensor(), operands.args["index"]
    if _has_mask(index, x, operands.shape):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return [None] * len(operands.shape)
    return _parts(operands, x, index)[0]


@rule("setitem")
def _setitem(operands: Operands) -> list[Dim]:
    x, index, value = operands.tensor(), operands.args["index"], operands.maybe("value")
    entries = index if isinstance(index, tuple) else (index,)
    if any(isinstance(entry, Labelled) and len(entry.shape) != 1 for entry in entries):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return [None] * len(x.shape)
    _, whole = _parts(operands, x, index)
    dims: list[Dim] = [dim if axis in whole else None for axis, dim in enumerate(x.dims)]
    for axis, dim in enumerate(x.dims):
        if axis not in whole:
            operands.freeze(dim)
    if value is not None:
        for position, dim in enumerate(reversed(value.dims), start=1):
            place = whole[-position] if position <= len(whole) else None
            if place is None or value.shape[-position] == 1:
                operands.freeze(dim)
            else:
                dims[place] = operands.labels.meet(dims[place], dim)
    return dims


@rule("select")
def _select(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis, position = operands.arg("dim") % len(x.shape), operands.arg("index")
    dim = x.dims[axis]
    if isinstance(dim, np.ndarray):
        operands.freeze(dim[position % len(dim)][None] if isinstance(position, int) else dim)
    return [*x.dims[:axis], *x.dims[axis + 1 :]]


@rule("narrow")
def _narrow(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    start, length = operands.arg("start"), operands.arg("length")
    dims = list(x.dims)
    if isinstance(start, int) and isinstance(length, int):
        start %= max(x.shape[axis], 1)
        dims[axis] = operands.piece(dims[axis], start, start + length)
    else:
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


@rule("index_select")
def _index_select(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(operands.tensor("index"))
    dims = list(x.dims)
    axis = operands.arg("dim") % len(dims)
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


@rule("gather", "take_along_dim", "scatter", "scatter_add")
def _gather(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim")
    others = [tensor for tensor in operands.tensors() if tensor is not x]
    if axis is None or any(len(tensor.shape) != len(x.shape) for tensor in others):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return [None] * len(operands.shape)
    axis %= len(x.shape)
    dims: list[Dim] = []
    for position, length in enumerate(operands.shape):
        meeting = [tensor.dims[position] for tensor in (x, *others)]
        lengths = {tensor.shape[position] for tensor in (x, *others)}
        if position == axis or lengths != {length}:
            for dim in meeting:
                operands.freeze(dim)
            dims.append(None)
        else:
            dims.append(operands.labels.meet(*meeting))
    return dims


@rule("topk", "sort", "max", "min", "median", "aminmax")
def _with_positions(operands: Operands) -> list[Dim] | tuple[Labelled, ...]:
    x, axis = operands.tensor(), operands.arg("dim")
    if "other" in operands.args:
        return operands.broadcast(operands.tensors(), operands.shape)
    if axis is None:
        return (
            [None] * len(operands.shape)
            if not _several(operands)
            else tuple([Labelled(tuple(shape), [None] * len(shape)) for shape in operands.shape])
        )
    axis %= len(x.shape)
    operands.freeze(x.dims[axis])
    dims = list(x.dims)
    kept = len(operands.shape[0]) == len(x.shape)
    dims[axis : axis + 1] = [None] if kept else []
    return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])


def _several(operands: Operands) -> bool:
    return bool(operands.shape) and isinstance(operands.shape[0], tuple)


@rule("argsort")
def _argsort(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    return [None if position == axis else dim for position, dim in enumerate(x.dims)]


@rule("keep")
def _keep(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis, index = operands.arg("dim"), list(operands.arg("index"))
    dim = dims[axis]
    if isinstance(dim, np.ndarray):
        dims[axis] = dim[index] if len(index) > 1 else None
        if len(index) == 1:
            operands.freeze(dim[index])
    return dims


@rule("spread")
def _spread(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis = operands.arg("dim")
    dim = dims[axis]
    if isinstance(dim, np.ndarray):
        dims[axis] = operands.labels.fresh(operands.arg("length"))
        dims[axis][list(operands.arg("index"))] = dim
    return dims


@rule("embedding")
def _embedding(operands: Operands) -> list[Dim]:
    index, weight = operands.tensor(), operands.tensor("weight")
    operands.freeze(weight.dims[0])
    operands.source(weight.dims[1])
    return [*index.dims, weight.dims[1]]


@rule("bucketize")
def _bucketize(operands: Operands) -> list[Dim]:
    boundaries = operands.maybe("boundaries")
    if boundaries is not None:
        operands.freeze(boundaries)
    return operands.tensor().dims


@rule("one_hot")
def _one_hot(operands: Operands) -> list[Dim]:
    return [*operands.tensor("tensor").dims, None]
