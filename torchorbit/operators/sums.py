"""Along which dimensions of which operands a vertex sums over products: that is where channels are consumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchorbit.operators.table import KNOWN


@dataclass(frozen=True, slots=True)
class Operand:
    """One dimension of one operand of a call.

    Attributes:
        argument: its name in the call.
        axis: the dimension, counted from the first.
        item: which item of the argument, where that is a list; -1 where it is not.
    """

    argument: str
    axis: int
    item: int = -1


#: Dimensions that meet in one sum of products.
Meeting = tuple[Operand, ...]
#: Gives the number of dimensions of an argument by name, and of its items.
Ranks = Callable[[str], Any]


def contracted(operator: str, args: dict[str, Any], rank: Ranks) -> list[Meeting] | None:
    """The dimensions that a call sums over.

    Args:
        operator: what is called.
        args: its arguments by name.
        rank: gives the number of dimensions of an argument.

    Returns:
        Dimensions that meet, the operand that is looked at first at the front; None where it is no sum of products.
    """
    row = KNOWN.get(operator)
    return None if row is None or row.contraction is None else row.contraction(args, rank)


def reduced(operator: str, args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    """The dimensions that a reduction (a sum, a mean, a norm) goes over."""
    row = KNOWN.get(operator)
    if row is None or not row.reduces:
        return []
    axes = args.get("dim", row.parameters.get("dim"))
    return [(Operand(row.reduces, axis),) for axis in sorted(reduced_axes(axes, rank(row.reduces)))]


def reduced_axes(axes: object, rank: int) -> set[int]:
    """The dimensions that a reduction's argument names; all of them where it names none."""
    if axes is None or axes == ():
        return set(range(rank))
    return {axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)}  # type: ignore[attr-defined]


def last_dimensions(*names: str) -> Callable[[dict[str, Any], Ranks], list[Meeting]]:
    """A contraction over the last dimension of each of some operands, one by one."""
    return lambda args, rank: [(Operand(name, rank(name) - 1),) for name in names]
