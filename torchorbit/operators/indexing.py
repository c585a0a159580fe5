"""Reading and writing parts of tensors."""

from __future__ import annotations

import operator as python
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from torchorbit.labels import OTHER, Dim, Mask
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


def _parts(operands: Operands, x: Labelled, index: Any, *, in_place: bool = False) -> list[Dim]:
    """Labels of ``x[index]``; with ``in_place`` it is written there, and positions cannot be picked from a result."""
    dims: list[Dim] = []
    entries = _expanded(index, len(x.shape))
    places = [n for n, entry in enumerate(entries) if _advanced(entry) or isinstance(entry, int)]
    adjacent = bool(places) and places == list(range(places[0], places[-1] + 1))
    ranks = [len(entry.shape) if isinstance(entry, Labelled) else 1 for entry in entries if _advanced(entry)]
    indexed = False
    axis = 0
    for entry in entries:
        if entry is None:
            dims.append(None)
            continue
        dim, length = x.dims[axis], x.shape[axis]
        if isinstance(entry, slice):
            numbers = all(part is None or isinstance(part, int) for part in (entry.start, entry.stop, entry.step))
            if entry == slice(None) or entry == slice(0, None):
                dims.append(dim)
            elif numbers and _slides(operands, dim, axis, entry):
                operands.freeze(dim)
                dims.append(None)
            elif numbers and not (in_place and places and entry.step not in (None, 1)):
                dims.append(operands.piece(dim, *entry.indices(length)))
            else:
                operands.freeze(dim)
                dims.append(None)
        elif _advanced(entry):
            alone = len(places) == 1 and ranks == [1]
            known = _known(entry, length) if alone and isinstance(dim, np.ndarray) else None
            if known is not None and len(known) and operands.moves(dim, axis, int(known.max())):
                known = None
            if isinstance(entry, Labelled):
                operands.freeze(entry)
            if known is not None:
                dims.append(operands.picked(dim, known))
            elif alone and dim is OTHER:
                dims.append(dim)
            else:
                operands.freeze(dim)
                if not indexed:
                    at = len(dims) if adjacent else 0
                    dims[at:at] = [None] * max(ranks)
            indexed = True
        elif isinstance(dim, np.ndarray):
            if isinstance(entry, int):
                there = operands.at_fixed_places(dim)
                if _other_element(operands, dim, axis, entry):
                    operands.freeze(dim)
                elif isinstance(there, np.ndarray):
                    operands.freeze(there[entry : entry + 1] if entry != -1 else there[-1:])
            else:
                operands.freeze(dim)
        axis += 1
    return dims


def _slides(operands: Operands, dim: Dim, axis: int, entry: slice) -> bool:
    """Whether a slice takes other channels at another size of the inputs."""
    bounds = [bound for bound in (entry.start, entry.stop) if bound is not None]
    bounds += [len(dim)] if entry.step not in (None, 1) and isinstance(dim, np.ndarray) else []
    return any(operands.moves(dim, axis, bound) for bound in bounds)


def _other_element(operands: Operands, dim: Dim, axis: int, position: int) -> bool:
    """Whether there is another channel at a position at another size of the inputs."""
    bound = position if position >= 0 else position + 1
    return bound != 0 and operands.moves(dim, axis, bound)


def _known(entry: Any, length: int) -> NDArray[np.int64] | None:
    """The positions that a list or a constant of one dimension picks from one; None where they are not known."""
    if isinstance(entry, Labelled):
        numbers = entry.numbers() if entry.numbers is not None and len(entry.shape) == 1 else None
    else:
        numbers = np.array(entry) if all(isinstance(item, int) for item in entry) else None
    return None if numbers is None else _positions(numbers, length)


def _positions(numbers: NDArray[Any], length: int) -> NDArray[np.int64]:
    """The positions that flags or numbers stand for, negative ones among them."""
    return np.flatnonzero(numbers) if numbers.dtype == np.bool_ else numbers.astype(np.int64) % length


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
    return _parts(operands, x, index)


def _setitem_rule(operands: Operands) -> list[Dim]:
    """What is written is tied to the channels in the place of which it is written."""
    x, index, value = operands.tensor(), operands.args["index"], operands.maybe("value")
    entries = index if isinstance(index, tuple) else (index,)
    first = entries[0] if entries else None
    if isinstance(first, Labelled) and first.flags and all(entry == slice(None) for entry in entries[1:]):
        return _masked_write(operands, x, first, value)
    if any(isinstance(entry, Labelled) and len(entry.shape) != 1 for entry in entries):
        for tensor in operands.tensors():
            operands.freeze(tensor)
        return [None] * len(x.shape)
    written = _parts(operands, x, index, in_place=True)
    if value is not None:
        _meet_from_the_right(operands, written, value)
    return x.dims


def _masked_write(operands: Operands, x: Labelled, mask: Labelled, value: Labelled | None) -> list[Dim]:
    """``x[mask] = value``, where the mask has the first dimensions of ``x``, or all of them."""
    rank = len(mask.shape)
    whole = value is None or all(length == 1 for length in value.shape)
    dims = list(x.dims)
    for axis, dim in enumerate(mask.dims):
        if whole:
            dims[axis] = None if x.shape[axis] == 1 else operands.labels.meet(dims[axis], dim)
        else:
            # A row of values for every place where the mask holds.
            operands.freeze(dims[axis])
            operands.freeze(dim)
    if value is not None and not whole:
        _meet_from_the_right(operands, [None, *dims[rank:]], value)
    return dims


def _meet_from_the_right(operands: Operands, dims: list[Dim], value: Labelled) -> None:
    """Tie the dimensions of a value to those in the place of which it is written, where it is as long."""
    for position, (dim, length) in enumerate(zip(reversed(value.dims), reversed(value.shape), strict=True), start=1):
        if position > len(dims) or length == 1:
            operands.freeze(dim)
        else:
            operands.labels.meet(dims[-position], dim)


def _select_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis, position = operands.arg("dim") % len(x.shape), operands.arg("index")
    dim = operands.at_fixed_places(x.dims[axis])
    if isinstance(position, int) and _other_element(operands, dim, axis, position):
        operands.freeze(dim)
    elif isinstance(dim, np.ndarray):
        operands.freeze(dim[position % len(dim)][None] if isinstance(position, int) else dim)
    return [*x.dims[:axis], *x.dims[axis + 1 :]]


def _narrow_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    start, length = operands.arg("start"), operands.arg("length")
    dims = list(x.dims)
    known = isinstance(start, int) and isinstance(length, int)
    if known and not _slides(operands, dims[axis], axis, slice(start, start + length or None)):
        start %= max(x.shape[axis], 1)
        dims[axis] = operands.piece(dims[axis], start, start + length)
    else:
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


def _index_select_rule(operands: Operands) -> list[Dim]:
    x, index = operands.tensor(), operands.tensor("index")
    operands.freeze(index)
    dims = list(x.dims)
    axis = operands.arg("dim") % len(dims)
    known = _known(index, x.shape[axis]) if isinstance(dims[axis], np.ndarray) else None
    if known is None or (len(known) and operands.moves(dims[axis], axis, int(known.max()))):
        operands.freeze(dims[axis])
        dims[axis] = dims[axis] if dims[axis] is OTHER else None
    else:
        dims[axis] = operands.picked(dims[axis], known)
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
    chosen = np.array(_kept_positions(mask, np.arange(start, stop, step)), np.int64)
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
        mask = masks[axis] if axis < len(masks) else None  # a mask of several dimensions stands for what follows, too
        if isinstance(entry, int) and not isinstance(entry, bool):
            if mask is not None:
                entries[n] = _kept_position(mask, entry)
        else:
            if mask is not None and entry != slice(None):
                entries[n] = _smaller_entry(call, entry, mask, place)
            place += 1
        axis += 1
    call.args["index"] = tuple(entries) if isinstance(index, tuple) else entries[0]


def _smaller_entry(call: Resized, entry: Any, mask: Mask, place: int) -> Any:
    """An entry of an index for what is kept of the dimension; positions that are no slice are picked afterwards."""
    if isinstance(entry, slice):
        if entry.step in (None, 1):
            return _kept_slice(mask, entry)
        bounds = _bounds(mask, *entry.indices(len(mask)))
        if not isinstance(bounds, list):
            return slice(*bounds)
    else:
        numbers = np.array(entry) if isinstance(entry, list) else call.numbers(entry)
        if numbers is None or numbers.ndim != 1:
            return entry  # flags for the dimensions that lose channels, which lose them, too
        bounds = _kept_positions(mask, _positions(numbers, len(mask)))
    if call.operator == "setitem":
        return bounds
    call.after.append(("select_positions", {"dim": place, "index": tuple(bounds)}))
    return slice(None)


def _kept_slice(mask: Mask, entry: slice) -> slice:
    """A slice of what is kept. What is counted from the end, or goes on to it, still does: the end may be elsewhere."""

    def bound(place: int | None) -> int | None:
        if place is None:
            return None
        return int(mask[:place].sum()) if place >= 0 else -int(mask[place:].sum()) or None

    return slice(bound(entry.start), bound(entry.stop))


def _kept_position(mask: Mask, position: int) -> int:
    """Where a position that is kept is among all that are, counted from the same end."""
    return int(mask[:position].sum()) if position >= 0 else -int(mask[position:].sum())


def _kept_positions(mask: Mask, positions: NDArray[np.int64]) -> list[int]:
    """Where those of some positions that are kept are among all that are."""
    kept: list[int] = (np.cumsum(mask) - 1)[positions[mask[positions]]].tolist()
    return kept


def _index_select_resize(call: Resized) -> None:
    axis = call.args["dim"] % len(call.masks())
    mask = call.masks()[axis]
    if mask is not None:
        kept = _kept_positions(mask, _positions(call.numbers(call.args["index"]), len(mask)))
        call.operator = "select_positions"
        call.args = {"input": call.args["input"], "dim": axis, "index": tuple(kept)}


def _select_resize(call: Resized) -> None:
    mask = call.masks()[call.args["dim"]]
    if mask is not None:
        call.args["index"] = _kept_position(mask, call.args["index"])


def _narrow_resize(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.masks()[axis]
    if mask is None:
        return
    start, length = call.args["start"], call.args["length"]
    first = start % len(mask)
    call.args["start"], call.args["length"] = _kept_position(mask, start), int(mask[first : first + length].sum())


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
    operator("index_select(input, dim, index)", rule=_index_select_rule, resize=_index_select_resize),
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
