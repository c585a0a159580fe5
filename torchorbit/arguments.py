"""The values that may stand in the arguments of vertices.

An argument of a vertex is a plain Python constant (None, bool, int, float, complex, str, dtype, device, memory
format, slice, ...), a container of arguments (tuple, named tuple, list, dict), or one of the small classes here, which
stand for something that is known only when the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another vertex, or an item inside it: ``index`` walks through tuples and dicts."""

    vertex: str
    index: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attr:
    """A parameter or buffer of the graph, by its dotted path relative to the graph's own module."""

    path: str


@dataclass(frozen=True, slots=True)
class Size:
    """The length of one dimension of a value: ``value.size(dim)``."""

    value: Any  # Ref or Attr
    dim: int


@dataclass(frozen=True, slots=True)
class Expr:
    """Arithmetic on sizes. ``operator`` is one of `EXPRESSIONS`."""

    operator: str
    operands: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ByMode:
    """One argument while training, another in evaluation.

    ``owner`` is the path of the module whose ``training`` flag decides, relative to the graph's own module.
    """

    training: Any
    evaluation: Any
    owner: str = ""


@dataclass(frozen=True, slots=True)
class SameDevice:
    """The device of a value, known when the graph runs."""

    value: Any  # Ref or Attr


@dataclass(frozen=True, slots=True)
class SameDtype:
    """The dtype of a value, known when the graph runs."""

    value: Any  # Ref or Attr


#: Arithmetic allowed in an `Expr`: how each is written in Python.
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
}


def map_args(arg: Any, change: Callable[[Any], Any], owner: Callable[[str], str] = str) -> Any:
    """Rebuild an argument with ``change`` applied to every `Ref` and `Attr` in it, and ``owner`` to owners."""
    kind = type(arg)
    if kind is Ref or kind is Attr:
        return change(arg)
    if kind is tuple:
        return tuple([map_args(a, change, owner) for a in arg])
    if kind is list:
        return [map_args(a, change, owner) for a in arg]
    if kind is dict:
        return {key: map_args(a, change, owner) for key, a in arg.items()}
    if kind is slice:
        return slice(*[map_args(a, change, owner) for a in (arg.start, arg.stop, arg.step)])
    if kind is Size:
        return Size(map_args(arg.value, change, owner), arg.dim)
    if kind is Expr:
        return Expr(arg.operator, tuple([map_args(a, change, owner) for a in arg.operands]))
    if kind is ByMode:
        training, evaluation = map_args(arg.training, change, owner), map_args(arg.evaluation, change, owner)
        return ByMode(training, evaluation, owner(arg.owner))
    if kind is SameDevice:
        return SameDevice(map_args(arg.value, change, owner))
    if kind is SameDtype:
        return SameDtype(map_args(arg.value, change, owner))
    if isinstance(arg, tuple):  # a named tuple
        return kind(*[map_args(a, change, owner) for a in arg])
    return arg


def walk_args(arg: Any) -> Iterator[Any]:
    """Every value in an argument that is no container, the parts of sizes and expressions included."""
    if isinstance(arg, (tuple, list)):
        for item in arg:
            yield from walk_args(item)
    elif isinstance(arg, dict):
        for item in arg.values():
            yield from walk_args(item)
    elif isinstance(arg, slice):
        yield from walk_args((arg.start, arg.stop, arg.step))
    elif isinstance(arg, Expr):
        yield from walk_args(arg.operands)
    elif isinstance(arg, ByMode):
        yield from walk_args((arg.training, arg.evaluation))
    elif isinstance(arg, (Size, SameDevice, SameDtype)):
        yield from walk_args(arg.value)
    else:
        yield arg
