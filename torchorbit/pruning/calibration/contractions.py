"""Along which dimensions of which operands a vertex sums over products: that is where channels are consumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchorbit.operators.contractions import subscripts
from torchorbit.operators.reductions import reduced_axes
from torchorbit.operators.table import OPERATORS


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
_Rule = Callable[[dict[str, Any], Ranks], list[Meeting]]

_RULES: dict[str, _Rule] = {}


def contracted(operator: str, args: dict[str, Any], rank: Ranks) -> list[Meeting] | None:
    """The dimensions that a call sums over.

    Args:
        operator: what is called.
        args: its arguments by name.
        rank: gives the number of dimensions of an argument.

    Returns:
        Dimensions that meet, the operand that is looked at first at the front; None where it is no sum of products.
    """
    if operator in _PRODUCTS:
        first, second = _PRODUCTS[operator]
        return [(Operand(first, rank(first) - 1), Operand(second, max(rank(second) - 2, 0)))]
    rule = _RULES.get(operator)
    return None if rule is None else rule(args, rank)


def reduced(operator: str, args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    """The dimensions that a reduction (a sum, a mean, a norm) goes over."""
    name = _REDUCTIONS.get(operator)
    if name is None:
        return []
    axes = args.get("dim", OPERATORS[operator].parameters.get("dim"))
    return [(Operand(name, axis),) for axis in sorted(reduced_axes(axes, rank(name)))]


_REDUCTIONS = {
    **dict.fromkeys(("mean", "sum", "prod", "amax", "amin", "var", "std", "norm", "logsumexp"), "input"),
    **dict.fromkeys(("var_mean", "std_mean"), "input"),
    "vector_norm": "x",
}


def _rule(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        for operator in operators:
            _RULES[operator] = function
        return function

    return register


@_rule(*[f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)])
def _convolution(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("input", rank("input") - rank("weight") + 1),)]


@_rule("linear")
def _linear(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("input", rank("input") - 1),)]


@_rule("RNN", "LSTM", "GRU")
def _recurrent(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("0", rank("0") - 1),)]


@_rule("bilinear")
def _bilinear(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand(name, rank(name) - 1),) for name in ("input1", "input2")]


# The operands of matrix products.
_PRODUCTS = {
    "matmul": ("input", "other"),
    "bmm": ("input", "mat2"),
    "mm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "dot": ("input", "tensor"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


@_rule("cdist")
def _cdist(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("x1", rank("x1") - 1), Operand("x2", rank("x2") - 1))]


@_rule("tensordot")
def _tensordot(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    axes: Any = args.get("dims", 2)
    if isinstance(axes, int):
        axes = (range(rank("a") - axes, rank("a")), range(axes))
    pairs: Sequence[tuple[int, int]] = list(zip(*axes, strict=True))
    return [(Operand("a", a % rank("a")), Operand("b", b % rank("b"))) for a, b in pairs]


@_rule("einsum")
def _einsum(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    terms, result = subscripts(args["equation"], list(rank("operands")))
    letters = dict.fromkeys(letter for term in terms for letter in term if letter not in result)
    return [
        tuple([Operand("operands", term.index(letter), n) for n, term in enumerate(terms) if letter in term])
        for letter in letters
    ]


@_rule("scaled_dot_product_attention")
def _attention(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [
        (Operand("query", rank("query") - 1), Operand("key", rank("key") - 1)),
        (Operand("key", rank("key") - 2), Operand("value", rank("value") - 2)),
    ]
