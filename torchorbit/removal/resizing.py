"""The numbers in a vertex's arguments after channels were removed: sizes, sections, bounds, groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from torchorbit.arguments import Expr, Size
from torchorbit.orbits.selection import Mask

Masks = list[Mask | None]


class Resized:
    """A call whose operands or result lose channels.

    Attributes:
        operator: what is called; a rule may change it.
        args: its arguments.
        shape: shape of the result before, or containers of shapes.
        result: what is kept of the result's dimensions, or containers of that.
        masks_of: gives what is kept of the dimensions of an argument, by its name.
        shape_of: gives the shape of an argument before, by its name.
        after: operations on the result to be put after the call: (operator, arguments).
    """

    def __init__(
        self,
        operator: str,
        args: dict[str, Any],
        shape: Any,
        result: Any,
        masks: Callable[[str], Any],
        shapes: Callable[[str], Any],
    ):
        self.operator = operator
        self.args = dict(args)
        self.shape = shape
        self.result = result
        self.masks_of = masks
        self.shape_of = shapes
        self.after: list[tuple[str, dict[str, Any]]] = []

    def masks(self, argument: str = "input") -> Masks:
        """What is kept of an argument's dimensions."""
        return self.masks_of(argument)


def scaled(size: Any, mask: Mask | None) -> Any:
    """A size in an argument, for what is kept of the dimension that it is the length of."""
    if mask is None or size == -1:
        return size
    kept, total = int(mask.sum()), len(mask)
    if isinstance(size, int):
        return kept
    divisor = math.gcd(kept, total)
    return Expr("//", (Expr("*", (size, kept // divisor)), total // divisor))


def restored(size: Size, mask: Mask) -> Expr:
    """The length that a dimension had, from the one that it has."""
    kept, total = int(mask.sum()), len(mask)
    divisor = math.gcd(kept, total)
    return Expr("//", (Expr("*", (size, total // divisor)), kept // divisor))


def smaller_shape(shape: Any, masks: Any) -> Any:
    """A shape, or containers of shapes, for what is kept of the dimensions."""
    if isinstance(shape, torch.Size):
        if not isinstance(masks, list):
            return shape
        return torch.Size(
            [length if mask is None else int(mask.sum()) for length, mask in zip(shape, masks, strict=True)]
        )
    if isinstance(shape, dict):
        return {key: smaller_shape(item, masks[key]) for key, item in shape.items()}
    if shape is None:
        return None
    return tuple([smaller_shape(item, mask) for item, mask in zip(shape, masks, strict=True)])


_Rule = Callable[[Resized], None]
RESIZERS: dict[str, _Rule] = {}


def _resizer(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        for operator in operators:
            RESIZERS[operator] = function
        return function

    return register


def _sizes(name: str) -> _Rule:
    def resize(call: Resized) -> None:
        sizes = call.args[name]
        listed = list(sizes) if isinstance(sizes, (tuple, list)) else [sizes]
        offset = len(call.result) - len(listed)
        call.args[name] = tuple([scaled(size, call.result[offset + n]) for n, size in enumerate(listed)])

    return resize


RESIZERS["reshape"] = _sizes("shape")
for _operator in ("expand", "broadcast_to", "zeros", "ones", "empty", "rand", "randn", "full"):
    RESIZERS[_operator] = _sizes("size")
for _operator in ("new_zeros", "new_ones", "new_empty", "new_full"):
    RESIZERS[_operator] = _sizes("size")


@_resizer("unflatten")
def _unflatten(call: Resized) -> None:
    start = call.args["dim"] % len(call.masks())
    sizes = call.args["sizes"]
    call.args["sizes"] = tuple([scaled(size, call.result[start + n]) for n, size in enumerate(sizes)])


@_resizer("squeeze")
def _squeeze(call: Resized) -> None:
    # A dimension that is down to one channel is still one.
    shape, dims = call.shape_of("input"), call.args.get("dim")
    if dims is None:
        call.args["dim"] = tuple([axis for axis, length in enumerate(shape) if length == 1])
    elif shape:
        listed = [dims] if isinstance(dims, int) else list(dims)
        call.args["dim"] = tuple([axis for axis in listed if call.masks()[axis] is None])


@_resizer("repeat", "tile")
def _repeat(call: Resized) -> None:
    name = "repeats" if call.operator == "repeat" else "dims"
    times = list(call.args[name]) if isinstance(call.args[name], (tuple, list)) else [call.args[name]]
    shape, masks = call.shape_of("input"), call.masks()
    for n in range(len(times)):
        axis, position = len(call.result) - len(times) + n, len(shape) - len(times) + n
        mask = call.result[axis]
        if mask is not None and (position < 0 or masks[position] is None):
            times[n] = scaled(times[n], mask)
    call.args[name] = tuple(times)


@_resizer("repeat_interleave")
def _repeat_interleave(call: Resized) -> None:
    axis = call.args["dim"] % len(call.result)
    if call.shape_of("input")[axis] == 1:
        call.args["repeats"] = scaled(call.args["repeats"], call.result[axis])


@_resizer("split", "chunk", "tensor_split")
def _split(call: Resized) -> None:
    axis = call.args.get("dim", 0) % len(call.masks())
    if call.masks()[axis] is None:
        return
    sections = []
    for shape, masks in zip(call.shape, call.result, strict=True):
        sections.append(shape[axis] if masks[axis] is None else int(masks[axis].sum()))
    call.operator = "split"
    call.args = {"input": call.args["input"], "split_size_or_sections": tuple(sections), "dim": axis}


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


def _index(call: Resized) -> None:
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
                    call.after.append(("keep", {"dim": place, "index": tuple(bounds)}))
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


RESIZERS["getitem"] = _index
RESIZERS["setitem"] = _index


@_resizer("select")
def _select(call: Resized) -> None:
    mask = call.masks()[call.args["dim"]]
    if mask is not None:
        call.args["index"] = int(np.cumsum(mask)[call.args["index"]]) - 1


@_resizer("narrow")
def _narrow(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.masks()[axis]
    if mask is None:
        return
    start, length = call.args["start"] % len(mask), call.args["length"]
    bounds = _bounds(mask, start, start + length, 1)
    assert not isinstance(bounds, list)
    call.args["start"], call.args["length"] = bounds[0], bounds[1] - bounds[0]


@_resizer("keep")
def _keep(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.masks()[axis]
    if mask is not None:
        index = np.array(call.args["index"])
        call.args["index"] = tuple((np.cumsum(mask) - 1)[index[mask[index]]].tolist())


@_resizer("spread")
def _spread(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.result[axis]
    if mask is not None:
        index = np.array(call.args["index"])
        call.args["index"] = tuple((np.cumsum(mask) - 1)[index[mask[index]]].tolist())
        call.args["length"] = int(mask.sum())


def kept_groups(groups: int, *masks: Mask | None) -> int:
    """How many of the groups, into which channels are divided, keep any."""
    for mask in masks:
        if mask is not None:
            return int(mask.reshape(groups, -1).any(1).sum())
    return groups


@_resizer("conv1d", "conv2d", "conv3d")
def _convolution(call: Resized) -> None:
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


@_resizer("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(call: Resized) -> None:
    groups = call.args.get("groups", 1)
    if groups > 1:
        call.args["groups"] = kept_groups(groups, call.masks("weight")[0])


@_resizer("group_norm")
def _group_norm(call: Resized) -> None:
    groups = call.args["num_groups"]
    if groups > 1:
        call.args["num_groups"] = kept_groups(groups, call.masks()[1])


@_resizer("channel_shuffle")
def _channel_shuffle(call: Resized) -> None:
    call.args["groups"] = kept_groups(call.args["groups"], call.masks()[1])


@_resizer("batch_norm")
def _batch_norm(call: Resized) -> None:
    """Statistics of a single number, which torch refuses to take: the number is its own mean."""
    if call.args.get("running_mean") is not None or call.args.get("bias") is not None:
        return
    left = [n if mask is None else int(mask.sum()) for n, mask in zip(call.shape, call.result, strict=True)]
    if math.prod(left) == left[1]:
        call.operator, call.args = "mul", {"input": call.args["input"], "other": 0.0}


@_resizer("layer_norm", "rms_norm")
def _layer_norm(call: Resized) -> None:
    shape = call.args["normalized_shape"]
    listed = [shape] if isinstance(shape, int) else list(shape)
    masks = call.masks()[-len(listed) :]
    call.args["normalized_shape"] = tuple([scaled(size, mask) for size, mask in zip(listed, masks, strict=True)])


@_resizer("scaled_dot_product_attention")
def _attention(call: Resized) -> None:
    # The scale was made for the width that the model was trained with.
    if call.args.get("scale") is None and call.masks("query")[-1] is not None:
        call.args["scale"] = call.shape_of("query")[-1] ** -0.5


@_resizer("pad")
def _pad(call: Resized) -> None:
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
