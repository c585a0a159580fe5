"""Concatenation, splitting, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Arguments, Leaf, operator
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.resizing import Resized, scaled
from torchorbit.operators.shapes import Shape, misfit
from torchorbit.operators.spelling import Bound

NEEDLESS = {
    "cost": "it computes nothing",
    "resize": "no argument holds a number of channels",
    "contraction": "it sums over nothing",
    "oracle": "zeros go where channels go",
}


# -- labels


def _joined(operands: Operands, tensors: list[Labelled], axis: int) -> list[Dim]:
    # An empty tensor of one dimension may be concatenated with anything.
    tensors = [tensor for tensor in tensors if tensor.shape != (0,)]
    labels, dims = operands.labels, []
    axis %= len(operands.shape)
    for position in range(len(operands.shape)):
        if position == axis:
            parts = [operands.no_proportion(tensor.dims[axis]) for tensor in tensors]
            if len({part is None for part in parts}) == 2:
                operands.reading.open_lengths = True
            dims.append(labels.concatenate(parts, [tensor.shape[axis] for tensor in tensors]))
        else:
            dims.append(labels.meet(*[tensor.dims[position] for tensor in tensors]))
    return dims


def _cat_rule(operands: Operands) -> list[Dim]:
    return _joined(operands, list(operands.args["tensors"]), operands.arg("dim"))


def _hstack_rule(operands: Operands) -> list[Dim]:
    return _joined(operands, list(operands.args["tensors"]), 0 if len(operands.shape) == 1 else 1)


def _vstack_rule(operands: Operands) -> list[Dim]:
    tensors = [
        tensor if len(tensor.shape) > 1 else Labelled((1, *tensor.shape), [None, *tensor.dims])
        for tensor in operands.args["tensors"]
    ]
    return _joined(operands, tensors, 0)


def _stack_rule(operands: Operands) -> list[Dim]:
    tensors = operands.args["tensors"]
    axis = operands.arg("dim") % len(operands.shape)
    dims = [operands.labels.meet(*dims) for dims in zip(*[tensor.dims for tensor in tensors], strict=True)]
    return [*dims[:axis], None, *dims[axis:]]


def _split_rule(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    result, start = [], 0
    elsewhere = operands.elsewhere(None) if operands.holds_unlabelled(x.dims[axis]) else None
    lengths = [shape[axis] for shape in elsewhere] if elsewhere is not None else []
    bounds = [(sum([shape[axis] for shape in operands.shape[:n]]), sum(lengths[:n])) for n in range(1, len(lengths))]
    if any(operands.moves(x.dims[axis], axis, here, there) for here, there in bounds):
        operands.freeze(x.dims[axis])
    for shape in operands.shape:
        dims = list(x.dims)
        dims[axis] = operands.piece(dims[axis], start, start + shape[axis])
        start += shape[axis]
        result.append(Labelled(tuple(shape), dims))
    return tuple(result)


def _unbind_rule(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    dims = [*x.dims[:axis], *x.dims[axis + 1 :]]
    return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])


def _pad_rule(operands: Operands) -> list[Dim]:
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
        if operands.at_fixed_places(dim) is None:
            dims[axis] = None
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


# -- shapes


def _cat_shape(args: Arguments) -> Shape | None:
    tensors: Sequence[Tensor] = args["tensors"]
    dim = args.get("dim", 0)
    if not tensors or not all(isinstance(x, Tensor) and x.dtype is tensors[0].dtype for x in tensors):
        return None
    first = tensors[0].shape
    rank = len(first)
    if not -rank <= dim < rank or any(x.dim() != rank for x in tensors):
        return None
    dim %= rank
    for x in tensors:
        if any(a != b for axis, (a, b) in enumerate(zip(x.shape, first, strict=True)) if axis != dim):
            raise misfit(f"a tensor of shape {tuple(x.shape)} beside one of {first}", f"equal lengths but in {dim}")
    return (*first[:dim], sum([int(x.shape[dim]) for x in tensors]), *first[dim + 1 :])


def _pad_shape(args: Arguments) -> Shape | None:
    x, pad = args["input"], args["pad"]
    if args.get("mode", "constant") != "constant" or not isinstance(pad, (tuple, list)):
        return None
    if type(args.get("value", 0)) not in (int, float, type(None)):
        return None
    if len(pad) % 2 or len(pad) > 2 * x.dim() or not all(type(n) is int for n in pad):
        return None
    shape = list(x.shape)
    for position in range(len(pad) // 2):
        shape[-1 - position] += pad[2 * position] + pad[2 * position + 1]
    return tuple(shape) if shape and min(shape) > 0 else None


# -- how many tensors a call returns


def _pieces_of_length(args: Arguments) -> int:
    length, size = args["input"].shape[args.get("dim", 0)], args.get("split_size_or_sections", 1)
    return int(length // max(size, 1)) if isinstance(size, int) else len(size)


def _chunks(args: Arguments) -> int:
    return int(args["chunks"])


def _sections(args: Arguments) -> int:
    sections = args["indices_or_sections"]
    return sections if isinstance(sections, int) else len(sections)


# -- numbers after a removal


def _split_resize(call: Resized) -> None:
    axis = call.args.get("dim", 0) % len(call.masks())
    if call.masks()[axis] is None:
        return
    given = call.args.get("split_size_or_sections")
    lengths = given if isinstance(given, (tuple, list)) else [shape[axis] for shape in call.shape]
    sections = [scaled(length, masks[axis]) for length, masks in zip(lengths, call.result, strict=True)]
    call.operator = "split"
    call.args = {"input": call.args["input"], "split_size_or_sections": tuple(sections), "dim": axis}


def _pad_resize(call: Resized) -> None:
    amounts = call.args["pad"]
    if isinstance(amounts, int) or call.args.get("mode", "constant") != "constant":
        return
    listed = list(amounts)
    shape = call.shape_of("input")
    for position in range(len(listed) // 2):
        axis = len(shape) - 1 - position
        mask = call.result[axis]
        if mask is not None:
            before = listed[2 * position]
            listed[2 * position] = int(mask[:before].sum())
            listed[2 * position + 1] = int(mask[before + shape[axis] :].sum())
    call.args["pad"] = tuple(listed)


def _pad_numbers(call: Resized) -> dict[str, Any]:
    return {"padding": call.args["pad"]}


def _paddings() -> list[Leaf]:
    """The classes of paddings, of one, two and three dimensions."""
    found = []
    for kind, mode in (
        ("Zero", "constant"),
        ("Constant", "constant"),
        ("Reflection", "reflect"),
        ("Replication", "replicate"),
        ("Circular", "circular"),
    ):
        for n in (1, 2, 3):
            found.append(
                Leaf(
                    getattr(nn, f"{kind}Pad{n}d"),
                    attributes=("pad=padding",),
                    fixed={"mode": mode},
                    kinds={"value": "number"} if kind == "Constant" else {},
                    layout="",
                    numbers=_pad_numbers if mode == "constant" else None,
                )
            )
    return found


def _broadcast_tensors(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.broadcast_tensors(*tensors))


def _broadcast_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    return "broadcast_tensors", {"tensors": tuple(tensors)}


def _broadcast_rule(operands: Operands) -> tuple[Labelled, ...]:
    shape = tuple(operands.shape[0])
    dims = operands.broadcast(operands.tensors(), shape)
    return tuple([Labelled(shape, list(dims)) for _ in operands.shape])


OPERATORS = [
    operator(
        "broadcast_tensors(tensors)",
        function=_broadcast_tensors,
        calls=dict.fromkeys((torch.broadcast_tensors, torch.functional.broadcast_tensors), _broadcast_call),
        rule=_broadcast_rule,
    ),
    operator("cat(tensors, dim=0)", names="concat concatenate", rule=_cat_rule, shape=_cat_shape, layout="kept"),
    operator("stack(tensors, dim=0)", rule=_stack_rule),
    operator("hstack(tensors)", rule=_hstack_rule),
    operator("vstack(tensors)", names="row_stack", rule=_vstack_rule),
    operator(
        "split(input, split_size_or_sections, dim=0)",
        names="split_with_sizes unsafe_split unsafe_split_with_sizes",
        rule=_split_rule,
        resize=_split_resize,
        pieces=_pieces_of_length,
    ),
    operator(
        "chunk(input, chunks, dim=0)", names="unsafe_chunk", rule=_split_rule, resize=_split_resize, pieces=_chunks
    ),
    operator(
        "tensor_split(input, indices_or_sections, dim=0)", rule=_split_rule, resize=_split_resize, pieces=_sections
    ),
    operator("unbind(input, dim=0)", rule=_unbind_rule, pieces=_pieces_of_length),
    operator(
        "pad(input, pad, mode='constant', value=None)",
        function=F.pad,
        kinds={"value": "tensor|number|none"},
        modules=_paddings(),
        rule=_pad_rule,
        shape=_pad_shape,
        layout="kept",
        resize=_pad_resize,
    ),
]
