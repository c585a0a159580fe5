"""From the function that a model called to the operator that a graph holds.

``x + y``, ``torch.add(x, y)``, ``x.add_(y)`` and ``operator.add(x, y)`` become one operator with one set of argument
names; arguments that only say how to compute, not what (``inplace``, ``out``), go. The names that an operator has, and
functions whose arguments are not those of its signature, are declared with it (`torchorbit.operators.spelling`).
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchorbit.operators.declaring import Binder, Operator
from torchorbit.operators.spelling import DROPPED, PARAMETER_NAMES, Bound, UnknownOperatorError
from torchorbit.operators.table import KNOWN, OPERATORS, REQUIRED

# Other name of a function or method -> the operator.
_NAMES: dict[str, str] = {name: row.name for row in OPERATORS.values() for name in row.names}
# Method with its operands the other way around -> the operator, and the names of its operands.
_REFLECTED: dict[str, tuple[str, ...]] = {
    name: (row.name, *row.parameters) for row in OPERATORS.values() for name in row.reflected
}
# Function with arguments of its own -> what binds them.
_CALLS: dict[Any, Binder] = {function: binder for row in KNOWN.values() for function, binder in row.calls.items()}


def bind(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """The operator that a call is, and its arguments by name, defaults left out.

    Args:
        function: what the model called.
        args: positional arguments.
        kwargs: keyword arguments.
        rank: number of dimensions of the result, where it is one tensor.

    Raises:
        UnknownOperatorError: the function is not in the table.
    """
    special = _CALLS.get(function)
    if special is not None:
        return _finish(*special(args, kwargs, rank))
    name = getattr(function, "__name__", "")
    if name in _REFLECTED:
        operator_name, first, second, *_ = _REFLECTED[name]
        return _finish(operator_name, {first: args[1], second: args[0]})
    operator = _find(function, name)
    arguments = _named(operator, function, args, kwargs)
    if "return_indices" in operator.parameters:  # not every function that returns them is told to
        arguments["return_indices"] = rank is None
    return _finish(operator.name, arguments)


def _find(function: Any, name: str) -> Operator:
    plain = name
    if plain.startswith("__") and plain.endswith("__"):
        plain = _NAMES.get(plain, plain.strip("_"))
        if plain not in OPERATORS and plain.startswith("i"):
            plain = _NAMES.get(f"__{plain[1:]}__", plain[1:])
    elif plain.endswith("_"):
        plain = plain.rstrip("_")
    plain = _NAMES.get(plain, plain)
    if plain.startswith("special_"):
        plain = plain.removeprefix("special_")
    module = getattr(function, "__module__", None)
    owner = getattr(function, "__objclass__", None)
    of_torch = (module or "").startswith("torch") or (owner is not None and issubclass(Tensor, owner))
    if plain not in OPERATORS or not (of_torch or _bound_to_torch(function)):
        raise UnknownOperatorError(name)
    return OPERATORS[plain]


def _bound_to_torch(function: Any) -> bool:
    """Builtins of torch's C namespaces have no module of their own."""
    return isinstance(function, types.BuiltinFunctionType) and "torch" in repr(getattr(function, "__self__", ""))


_signatures: dict[Any, tuple[str, ...]] = {}


def positional_names(operator: Operator, function: Any) -> tuple[str, ...]:
    """What a function that is an operator calls its positional arguments."""
    if isinstance(function, types.FunctionType):
        if function not in _signatures:
            try:
                parameters = inspect.signature(function).parameters
            except ValueError:  # a wrapper around a builtin
                parameters = types.MappingProxyType({})
            # Some functions of torch only pass on what they are given.
            opaque = not parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
            _signatures[function] = tuple(operator.parameters if opaque else parameters)
        return _signatures[function]
    return tuple(operator.parameters)


def _named(operator: Operator, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    spread = next(iter(operator.ints), None)
    names = positional_names(operator, function)
    if spread is not None:
        position = list(operator.parameters).index(spread)
        if len(args) > position and not isinstance(args[position], (tuple, list)):
            args = (*args[:position], tuple(args[position:]))
        names = tuple(operator.parameters)
    if len(args) > len(names):
        raise UnknownOperatorError(f"{operator.name} with {len(args)} arguments")
    arguments: dict[str, Any] = {}
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        if name in DROPPED:
            continue
        if name not in operator.parameters:
            name = PARAMETER_NAMES.get(name, name)
            if name == "input" and name not in operator.parameters:
                name = next(iter(operator.parameters))
        if name not in operator.parameters:
            raise UnknownOperatorError(f"{operator.name} with an argument '{name}'")
        arguments[name] = value
    return arguments


def _finish(name: str, arguments: dict[str, Any]) -> Bound:
    """Arguments in the table's order, defaults left out, spread integers as a tuple."""
    operator = OPERATORS[name]
    unknown = [parameter for parameter in arguments if parameter not in operator.parameters]
    if unknown:
        raise UnknownOperatorError(f"{name} with an argument '{unknown[0]}'")
    ordered: dict[str, Any] = {}
    for parameter, default in operator.parameters.items():
        if parameter not in arguments:
            if default is REQUIRED:
                raise UnknownOperatorError(f"{name} without an argument '{parameter}'")
            continue
        value = arguments[parameter]
        if parameter in operator.ints:
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if default is not REQUIRED and type(value) is type(default) and value == default:
            continue
        ordered[parameter] = value
    return name, ordered


# Where torch has functions that are written in Python.
_WRITTEN_IN_PYTHON = {"torch.functional", "torch.nn.functional", "torch._tensor"}


@functools.cache
def is_composite(function: Any) -> bool:
    """Whether a function of torch is written in Python and no operator: what it calls can be recorded in its place."""
    if not isinstance(function, types.FunctionType) or function.__module__ not in _WRITTEN_IN_PYTHON:
        return False
    asks = any(name.startswith("has_torch_function") for name in function.__globals__)
    if not asks or function.__name__.startswith("__") or function in _CALLS:
        return False
    try:
        return _find(function, function.__name__).of_schema
    except UnknownOperatorError:
        return True


def functions_of(operator: Operator) -> list[Any]:
    """The functions and methods of torch that are an operator, but for those with arguments of their own."""
    found: dict[Any, None] = {}
    for name in (operator.name, f"__{operator.name}__", *operator.names):
        for owner in (torch, F, Tensor):
            function = getattr(owner, name, None)
            if callable(function) and function not in _CALLS and _is(function, operator):
                found[function] = None
    return list(found)


def _is(function: Any, operator: Operator) -> bool:
    try:
        return _find(function, getattr(function, "__name__", "")) is operator
    except UnknownOperatorError:
        return False
