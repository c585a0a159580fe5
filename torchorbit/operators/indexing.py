"""Reading and writing parts of tensors."""

from __future__ import annotations

import operator as python
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.labels import Dim, Mask
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import Leaf, Operator, operator, operators
from torchorbit.operators.labelling import Labelled, Operands, unlabelled
from torchorbit.operators.resizing import Resized
from torchorbit.operators.spelling import PARAMETER_NAMES, Bound
from torchorbit.operators.table import REQUIRED

NEEDLESS = {
    "cost": "it computes nothing",
    "resize": "no argument holds a number of channels or a place among them that is not frozen",
    "contraction": "it sums over nothing",
    "oracle": "zeros go where channels go",
}


def _set_item(input: Tensor, index: Any, value: Any) -> Tensor:
    """``input[index] = value`` without changing ``input``."""
    out = input.clone()
    out[index] = value
    return out


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, ...]:
    """``torch.embedding_bag``, which takes its last argument only behind all others."""
    others = (scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset)
    return tuple(torch.embedding_bag(weight, indices, offsets, *others, padding_idx))


# -- other ways of calling them


def _embedding_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``torch.embedding``: the table comes first, and no padding is a number, too."""
    names = ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse")
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    arguments["input"] = arguments.pop("indices")
    if arguments.get("padding_idx", -1) < 0:
        arguments["padding_idx"] = None
    return "embedding", arguments


def _index_put_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = {**dict(zip(("input", "indices", "values", "accumulate"), args, strict=False)), **kwargs}
    if arguments.get("accumulate"):
        return "index_put", arguments
    return "setitem", {"input": arguments["input"], "index": tuple(arguments["indices"]), "value": arguments["values"]}


def _scatter_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``scatter(x, dim, index, src)`` and ``scatter(x, dim, index, value)``."""
    arguments = {"src" if key == "value" else PARAMETER_NAMES.get(key, key): a for key, a in kwargs.items()}
    return "scatter", {**dict(zip(("input", "dim", "index", "src"), args, strict=False)), **arguments}


# -- labels


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


def _getitem_rule(operands: Operands) -> list[Dim]:
    x, index = operands.tensor(), operands.args["index"]
    if _has_mask(index, x, operands.shape):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return [None] * len(operands.shape)
    return _parts(operands, x, index)[0]


def _setitem_rule(operands: Operands) -> list[Dim]:
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


def _select_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis, position = operands.arg("dim") % len(x.shape), operands.arg("index")
    dim = x.dims[axis]
    if isinstance(dim, np.ndarray):
        operands.freeze(dim[position % len(dim)][None] if isinstance(position, int) else dim)
    return [*x.dims[:axis], *x.dims[axis + 1 :]]


def _narrow_rule(operands: Operands) -> list[Dim]:
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


def _index_select_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(operands.tensor("index"))
    dims = list(x.dims)
    axis = operands.arg("dim") % len(dims)
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


def _gather_rule(operands: Operands) -> list[Dim]:
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


def _index_add_rule(operands: Operands) -> list[Dim]:
    x, source = operands.tensor(), operands.tensor("source")
    operands.freeze(operands.tensor("index"))
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(source.dims[axis])
    operands.freeze(x.dims[axis])
    meeting = zip(x.dims, source.dims, strict=True)
    return [None if n == axis else operands.labels.meet(*dims) for n, dims in enumerate(meeting)]


def _index_fill_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    for tensor in operands.tensors():
        if tensor is not x:
            operands.freeze(tensor)
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    return [None if position == axis else dim for position, dim in enumerate(x.dims)]


def _select_scatter_rule(operands: Operands) -> list[Dim]:
    x, source = operands.tensor(), operands.tensor("src")
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    written = [*source.dims[:axis], None, *source.dims[axis:]]
    meeting = zip(x.dims, written, strict=True)
    return [None if n == axis else operands.labels.meet(*dims) for n, dims in enumerate(meeting)]


def _slice_scatter_rule(operands: Operands) -> list[Dim]:
    x, source = operands.tensor(), operands.tensor("src")
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    operands.freeze(source.dims[axis])
    meeting = zip(x.dims, source.dims, strict=True)
    return [None if n == axis else operands.labels.meet(*dims) for n, dims in enumerate(meeting)]


def _embedding_bag_rule(operands: Operands) -> tuple[Labelled, ...]:
    weight = operands.tensor("weight")
    operands.freeze(weight.dims[0])
    operands.source(weight.dims[1])
    bags, *others = operands.shape
    return (Labelled(tuple(bags), [None, weight.dims[1]]), *[unlabelled(shape) for shape in others])


def _embedding_rule(operands: Operands) -> list[Dim]:
    index, weight = operands.tensor(), operands.tensor("weight")
    operands.freeze(weight.dims[0])
    operands.source(weight.dims[1])
    return [*index.dims, weight.dims[1]]


def _bucketize_rule(operands: Operands) -> list[Dim]:
    boundaries = operands.maybe("boundaries")
    if boundaries is not None:
        operands.freeze(boundaries)
    return operands.tensor().dims


def _one_hot_rule(operands: Operands) -> list[Dim]:
    return [*operands.tensor("tensor").dims, None]


# -- numbers after a removal


def _bounds(mask: Mask, start: int, stop: int, step: int) -> tuple[int, int, int] | list[int]:
    """Where the kept channels of a slice are among all that are kept: a slice, or positions where it is none."""
    places = np.cumsum(mask) - 1
    chosen = np.arange(start, stop, step)
    chosen = places[chosen[mask[chosen]]]
    if len(chosen) == 1:
        return int(chosen[0]), int(chosen[0]) + 1, 1
    steps = np.diff(chosen)
    if len(chosen) and steps[0] > 0 and (steps == steps[0]).all():
        return int(chosen[0]), int(chosen[-1]) + 1, int(steps[0])
    return chosen.tolist()


def _index_resize(call: Resized) -> None:
    masks, shape = call.masks(), call.shape_of("input")
    index = call.args["index"]
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for entry in entries if entry is not None and entry is not Ellipsis)
    axis, place = 0, 0
    for n, entry in enumerate(entries):
        if entry is None:
            place += 1
            continue
        if entry is Ellipsis:
            axis += len(shape) - used
            place += len(shape) - used
            continue
        mask = masks[axis]
        if isinstance(entry, slice):
            if mask is not None and entry != slice(None):
                bounds = _bounds(mask, *entry.indices(shape[axis]))
                if isinstance(bounds, list):
                    entries[n] = slice(None)
                    call.after.append(("select_positions", {"dim": place, "index": tuple(bounds)}))
                else:
                    entries[n] = slice(*bounds[:2]) if bounds[2] == 1 else slice(*bounds)
            place += 1
        elif isinstance(entry, int) and not isinstance(entry, bool):
            if mask is not None:
                entries[n] = int(np.cumsum(mask)[entry]) - 1
        else:
            place += 1  # an index tensor: what it indexes is frozen
        axis += 1
    call.args["index"] = tuple(entries) if isinstance(index, tuple) else entries[0]


def _select_resize(call: Resized) -> None:
    mask = call.masks()[call.args["dim"]]
    if mask is not None:
        call.args["index"] = int(np.cumsum(mask)[call.args["index"]]) - 1


def _narrow_resize(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.masks()[axis]
    if mask is None:
        return
    start, length = call.args["start"] % len(mask), call.args["length"]
    bounds = _bounds(mask, start, start + length, 1)
    assert not isinstance(bounds, list)
    call.args["start"], call.args["length"] = bounds[0], bounds[1] - bounds[0]


def _settle_embedding(module: Any) -> None:
    module.embedding_dim = module.weight.shape[1]


OPERATORS = [
    Operator(
        "getitem",
        "index",
        python.getitem,
        {"input": REQUIRED, "index": REQUIRED},
        kinds={"index": "index"},
        rule=_getitem_rule,
        resize=_index_resize,
        constant="moved",
    ),
    operator(
        "setitem(input, index, value)",
        function=_set_item,
        kinds={"index": "index"},
        calls={
            getattr(owner, name): _index_put_call for owner in (torch, Tensor) for name in ("index_put", "index_put_")
        },
        rule=_setitem_rule,
        resize=_index_resize,
    ),
    operator("narrow(input, dim, start, length)", rule=_narrow_rule, resize=_narrow_resize),
    operator("select(input, dim, index)", kinds={"index": "int"}, rule=_select_rule, resize=_select_resize),
    operator("index_select(input, dim, index)", rule=_index_select_rule),
    *operators(
        """
        gather(input, dim, index)
        take_along_dim(input, indices, dim=None)
        scatter_add(input, dim, index, src)
        """,
        rule=_gather_rule,
    ),
    operator(
        "scatter(input, dim, index, src)",
        calls=dict.fromkeys((torch.scatter, Tensor.scatter, Tensor.scatter_), _scatter_call),
        rule=_gather_rule,
    ),
    operator("index_add(input, dim, index, source, *, alpha=1)", kinds={"source": "tensor"}, rule=_index_add_rule),
    aten_operator("index_copy", rule=_index_add_rule),
    aten_operator("index_reduce", rule=_index_add_rule),
    aten_operator("index_fill", rule=_index_fill_rule),
    aten_operator("scatter_reduce", rule=_gather_rule),
    aten_operator("select_scatter", rule=_select_scatter_rule),
    aten_operator("slice_scatter", rule=_slice_scatter_rule),
    operator(
        "embedding_bag(weight, indices, offsets, scale_grad_by_freq=False, mode=0, sparse=False,\
 per_sample_weights=None, include_last_offset=False, padding_idx=None)",
        function=_embedding_bag,
        kinds={
            "weight": "tensor",
            "offsets": "tensor",
            "mode": "int",
            "sparse": "bool",
            "per_sample_weights": "tensor|none",
            "include_last_offset": "bool",
        },
        rule=_embedding_bag_rule,
        channels_in=False,
        of_schema=True,
    ),
    operator(
        "embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False,\
 sparse=False)",
        function=F.embedding,
        calls={torch.embedding: _embedding_call},
        modules=[
            Leaf(
                nn.Embedding,
                tensors=("weight",),
                kinds={"norm_type": "number"},
                constructor=(
                    "num_embeddings",
                    "embedding_dim",
                    "padding_idx",
                    "max_norm",
                    "norm_type",
                    "scale_grad_by_freq",
                    "sparse",
                ),
                settle=_settle_embedding,
            )
        ],
        rule=_embedding_rule,
        channels=lambda rank, weight_rank, module: rank - 1,
        channels_in=False,
    ),
    operator("bucketize(input, boundaries, *, out_int32=False, right=False)", rule=_bucketize_rule),
    operator("one_hot(tensor, num_classes=-1)", rule=_one_hot_rule),
]
