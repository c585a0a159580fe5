"""Integers and floats that remember which tensor sizes they were computed from.

While a model is recorded, ``x.shape`` gives `TracedInt`s. They behave as plain integers and carry the arithmetic
that made them, so that ``h // 7 * w`` in a model's forward becomes an expression in its graph instead of the
number it happened to be. Comparisons give plain truth values, and are noted: they decide which path a forward
takes, and a graph holds only the path it was recorded on.

What leaves Python's arithmetic (``int(...)`` of a float, ``range``, numpy) forgets its origin. Nothing relies on it
being complete: two recordings with different sizes are compared, and what differs without an origin is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchorbit.containers import map_leaves

#: Called with (symbol, operands, outcome) for every comparison between traced numbers; set while recording.
Listener = Callable[[str, tuple[Any, ...], bool], None]


class _Observer:
    listener: Listener | None = None


observer = _Observer()


class TracedInt(int):
    """An integer with an origin: ``(operator, operands)``, or ``("size", (value, dim))`` at the leaves."""

    origin: tuple[str, tuple[Any, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return (int, (int(self),))


class TracedFloat(float):
    """A float computed from a `TracedInt`."""

    origin: tuple[str, tuple[Any, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return (float, (float(self),))


Traced = (TracedInt, TracedFloat)


def traced(value: Any, symbol: str, operands: tuple[Any, ...]) -> Any:
    """``value`` with an origin; values that are no numbers come back as they are."""
    if isinstance(value, int):
        number: Any = int.__new__(TracedInt, value)
    elif isinstance(value, float):
        number = float.__new__(TracedFloat, value)
    else:
        return value
    number.origin = (symbol, operands)
    return number


def untraced(value: Any) -> Any:
    """The plain number behind a traced one."""
    if type(value) is TracedInt:
        return int.__int__(value)
    if type(value) is TracedFloat:
        return float.__float__(value)
    return value


def plain(arg: Any) -> Any:
    """An argument with plain numbers for traced ones."""
    return map_leaves(lambda leaf: tuple(map(untraced, leaf)) if type(leaf) is torch.Size else untraced(leaf), arg)


def _binary(base: type, name: str, symbol: str) -> Callable[..., Any]:
    compute = getattr(base, f"__{name}__")

    def forward(self: Any, other: Any) -> Any:
        value = compute(self, other)
        if value is NotImplemented:
            # int with float: Python would now try float's reflected method, which forgets the origin.
            if base is int and isinstance(other, float):
                value = getattr(float, f"__{name}__")(float(int.__int__(self)), float.__float__(other))
            else:
                return value
        return traced(value, symbol, (self, other))

    return forward


def _reflected(base: type, name: str, symbol: str) -> Callable[..., Any]:
    compute = getattr(base, f"__r{name}__")

    def backward(self: Any, other: Any) -> Any:
        value = compute(self, other)
        if value is NotImplemented:
            if base is int and isinstance(other, float):
                value = getattr(float, f"__{name}__")(float.__float__(other), float(int.__int__(self)))
            else:
                return value
        return traced(value, symbol, (other, self))

    return backward


def _comparison(base: type, name: str, symbol: str) -> Callable[..., Any]:
    compute = getattr(base, f"__{name}__")

    def compare(self: Any, other: Any) -> Any:
        outcome = compute(self, other)
        if outcome is not NotImplemented and observer.listener is not None:
            observer.listener(symbol, (self, other), outcome)
        return outcome

    return compare


def _truth(self: Any) -> bool:
    outcome = untraced(self) != 0
    if observer.listener is not None:
        observer.listener("bool", (self,), outcome)
    return outcome


def _install(cls: Any, base: type) -> None:
    for name, symbol in (
        ("add", "+"), ("sub", "-"), ("mul", "*"), ("truediv", "/"), ("floordiv", "//"), ("mod", "%"), ("pow", "**"),
    ):  # fmt: skip
        setattr(cls, f"__{name}__", _binary(base, name, symbol))
        setattr(cls, f"__r{name}__", _reflected(base, name, symbol))
    for name, symbol in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
        setattr(cls, f"__{name}__", _comparison(base, name, symbol))
    cls.__divmod__ = _divmod
    cls.__hash__ = base.__hash__
    cls.__bool__ = _truth
    cls.__neg__ = lambda self: traced(-untraced(self), "neg", (self,))
    cls.__abs__ = lambda self: traced(abs(untraced(self)), "abs", (self,))
    cls.__floor__ = lambda self: traced(math.floor(untraced(self)), "floor", (self,))
    cls.__ceil__ = lambda self: traced(math.ceil(untraced(self)), "ceil", (self,))
    cls.__round__ = lambda self, digits=None: (
        traced(round(untraced(self)), "round", (self,)) if digits is None else round(untraced(self), digits)
    )


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


_install(TracedInt, int)
for _name, _symbol in (("and", "&"), ("or", "|"), ("xor", "^"), ("lshift", "<<"), ("rshift", ">>")):
    setattr(TracedInt, f"__{_name}__", _binary(int, _name, _symbol))
    setattr(TracedInt, f"__r{_name}__", _reflected(int, _name, _symbol))
_install(TracedFloat, float)
