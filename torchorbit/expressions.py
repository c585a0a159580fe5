"""Arithmetic on sizes, and limits of dtypes: what an `torchorbit.arguments.Expr` may compute, and its value."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

#: Arithmetic allowed in an `torchorbit.arguments.Expr`: how each is written in Python, in terms of `NAMES`.
EXPRESSIONS = {
    "+": "({0} + {1})",
    "-": "({0} - {1})",
    "*": "({0} * {1})",
    "/": "({0} / {1})",
    "//": "({0} // {1})",
    "%": "({0} % {1})",
    "**": "_py_power({0}, {1})",
    "&": "({0} & {1})",
    "|": "({0} | {1})",
    "^": "({0} ^ {1})",
    "<<": "_py_shifted({0}, {1})",
    ">>": "({0} >> {1})",
    "neg": "(-{0})",
    "abs": "_py_abs({0})",
    "int": "_py_int({0})",
    "float": "_py_float({0})",
    "floor": "_math.floor({0})",
    "ceil": "_math.ceil({0})",
    "round": "_py_round({0})",
    "==": "({0} == {1})",
    "!=": "({0} != {1})",
    "<": "({0} < {1})",
    "<=": "({0} <= {1})",
    ">": "({0} > {1})",
    ">=": "({0} >= {1})",
    "bool": "_py_bool({0})",
    **{f"finfo.{name}": f"_py_finfo({{0}}).{name}" for name in ("min", "max", "eps", "tiny")},
}
#: Those of `EXPRESSIONS` whose operand is a dtype: the limits of its numbers.
OF_DTYPES = frozenset(name for name in EXPRESSIONS if name.startswith("finfo."))

# Python computes with integers of any length, for as long as that takes.
_MAX_BITS = 256


def _power(base: Any, exponent: Any) -> Any:
    """``base ** exponent`` of numbers, as long as that is a size a tensor can have."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise OverflowError(f"{base} ** {exponent} is no size")
    return base**exponent


def _shifted(number: int, by: int) -> int:
    """``number << by``, as long as that is a size a tensor can have."""
    if by > _MAX_BITS:
        raise OverflowError(f"{number} << {by} is no size")
    return number << by


#: What `EXPRESSIONS` can see. The prefix ``_py_`` separates Python's functions from tensor operators of the same name.
NAMES: dict[str, Any] = {
    "_math": math,
    **{f"_py_{function.__name__}": function for function in (abs, int, float, round, bool)},
    "_py_finfo": torch.finfo,
    "_py_power": _power,
    "_py_shifted": _shifted,
}


def computed(operator: str, operands: Sequence[Any]) -> Any:
    """The value of an expression.

    Args:
        operator: one of `EXPRESSIONS`.
        operands: its operands, numbers or a dtype.

    Raises:
        OverflowError: a power or a shift gives a number that no size has.
    """
    return _function(operator)(*operands)


@functools.cache
def _function(operator: str) -> Callable[..., Any]:
    """Arithmetic as a function of its operands."""
    names = ["first", "second"][: EXPRESSIONS[operator].count("{")]
    return eval(f"lambda {', '.join(names)}: {EXPRESSIONS[operator].format(*names)}", NAMES)  # closed: a table
