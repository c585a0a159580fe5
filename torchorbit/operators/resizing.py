"""Calls that lose channels, whose arguments hold sizes, sections, bounds and numbers of groups to recompute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchorbit.arguments import Expr
from torchorbit.labels import JoinedMask, Mask

Masks = list[Mask | None]


class Resized:
    """A call whose operands or result lose channels.

    Attributes:
        operator: what is called; it may be changed.
        args: its arguments.
        shape: shape of the result before, or containers of shapes.
        result: what is kept of the result's dimensions, or containers of that.
        masks_of: gives what is kept of the dimensions of an argument, by its name.
        shape_of: gives the shape of an argument before, by its name.
        numbers: gives the values of an argument that is a constant of whole numbers or flags; None for any other.
        folded: gives the length, in the smaller graph, of a dimension of the result into which others are folded whose
            lengths inputs decide; None for any other.
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
        numbers: Callable[[Any], Any],
        folded: Callable[[int], Any] = lambda axis: None,
    ):
        self.operator = operator
        self.args = dict(args)
        self.shape = shape
        self.result = result
        self.masks_of = masks
        self.shape_of = shapes
        self.numbers = numbers
        self.folded = folded
        self.after: list[tuple[str, dict[str, Any]]] = []

    def masks(self, argument: str = "input") -> Masks:
        """What is kept of an argument's dimensions."""
        return self.masks_of(argument)

    def length(self, size: Any, axis: int) -> Any:
        """A size in an argument, which is the length of a dimension of the result, for what is kept of that."""
        mask = self.result[axis]
        if mask is None or (isinstance(size, int) and size == -1):
            return size
        folded = self.folded(axis)
        return scaled(size, mask) if folded is None else folded


def scaled(size: Any, mask: Mask | None) -> Any:
    """A size in an argument, for what is kept of the dimension that it is the length of."""
    if mask is None or (isinstance(size, int) and size == -1):
        return size
    if isinstance(size, int):
        return int(mask.sum())
    if isinstance(mask, JoinedMask):
        return simplified(Expr("-", (size, len(mask) - int(mask.sum()))))
    kept, total = _share(mask)
    return simplified(Expr("//", (Expr("*", (size, kept)), total)))


def restored(size: Any, mask: Mask) -> Expr:
    """The length that a dimension had, from the one that it has."""
    if isinstance(mask, JoinedMask):
        return Expr("+", (size, len(mask) - int(mask.sum())))
    kept, total = _share(mask)
    return Expr("//", (Expr("*", (size, total)), kept))


def simplified(size: Expr) -> Any:
    """A size, without what `scaled` makes of it where `restored` has made the opposite of it."""
    inner: Any = size.operands[0]
    if size.operator == "-" and isinstance(inner, Expr) and inner.operator == "+":
        return inner.operands[0] if inner.operands[1] == size.operands[1] else size
    if size.operator == "//" and isinstance(inner, Expr) and inner.operator == "*":
        kept, total = inner.operands[1], size.operands[1]
        for core in getattr(getattr(inner.operands[0], "operands", (None,))[0], "operands", ())[:1]:
            if inner.operands[0] == Expr("//", (Expr("*", (core, total)), kept)):
                return core
    return size


def _share(mask: Mask) -> tuple[int, int]:
    """How many of how many are kept, as a fraction in lowest terms."""
    kept, total = int(mask.sum()), len(mask)
    divisor = math.gcd(kept, total)
    return kept // divisor, total // divisor


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


def sizes(name: str) -> Callable[[Resized], None]:
    """Recomputes an argument that has the lengths of the last dimensions of the result."""

    def resize(call: Resized) -> None:
        given = call.args[name]
        listed = list(given) if isinstance(given, (tuple, list)) else [given]
        offset = len(call.result) - len(listed)
        call.args[name] = tuple([call.length(size, offset + n) for n, size in enumerate(listed)])

    return resize


def kept_groups(groups: int, *masks: Mask | None) -> int:
    """How many of the groups, into which channels are divided, keep any."""
    for mask in masks:
        if mask is not None:
            return int(mask.reshape(groups, -1).any(1).sum())
    return groups
