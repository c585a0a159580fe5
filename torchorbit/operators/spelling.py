"""How calls of operators are written: what binds functions whose arguments are not those of the signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The operator that a call is, and its arguments by name.
Bound = tuple[str, dict[str, Any]]
Binder = Callable[[tuple[Any, ...], dict[str, Any], "int | None"], Bound]


class UnknownOperatorError(Exception):
    """A function is not in the table, or is called in a way that the table does not know."""


#: What torch's functions call a parameter that has another name in a signature.
PARAMETER_NAMES = {
    "self": "input", "x": "input", "axis": "dim", "axes": "dim", "keepdims": "keepdim", "tensor": "input",
    "split_size": "split_size_or_sections", "axis0": "dim0", "axis1": "dim1", "a": "input", "x1": "input",
    "x2": "other", "train": "training", "split_sizes": "split_size_or_sections", "sections": "indices_or_sections",
    "indices": "indices_or_sections", "from": "low", "to": "high",
}  # fmt: skip

#: Arguments that are left out: they affect how something is executed, not the result.
DROPPED = frozenset({
    "inplace", "_stacklevel", "out", "requires_grad", "pin_memory", "layout", "non_blocking", "copy", "generator",
    "sparse_grad", "cudnn_enable", "cudnn_enabled",
})  # fmt: skip


def called_by(*names: str) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """Gives arguments by their names in the signature, of a function with positional arguments of these names."""

    def by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        arguments = {key if key in names else PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
        arguments.update(zip(names, args, strict=False))
        return {key: value for key, value in arguments.items() if key not in DROPPED}

    return by_name


def renamed(name: str, *parameters: str) -> Binder:
    """Binds a function whose positional arguments come in another order, or that has other ones."""
    by_name = called_by(*parameters)
    return lambda args, kwargs, rank: (name, by_name(args, kwargs))


def unary(name: str, **fixed: Any) -> Binder:
    """Binds a function of one argument."""
    return lambda args, kwargs, rank: (name, {"input": only(args, kwargs), **fixed})


def only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The one argument of a call."""
    return args[0] if args else next(iter(kwargs.values()))


def refused(why: str) -> Binder:
    """Binds a function that no operator stands for."""

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        raise UnknownOperatorError(why)

    return refuse
