"""Operators declared by the schemas that torch has of its own functions: names, kinds and defaults of arguments.

What is known of such an operator beside its schema is said where it is declared, as for any other.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torchorbit.operators.declaring import Operator
from torchorbit.operators.spelling import DROPPED
from torchorbit.operators.table import REQUIRED

# Where torch keeps functions that graphs may call, the most public ones first; `torch.ops.aten` has them all.
_NAMESPACES = tuple([getattr(torch._C, name) for name in ("_nn", "_linalg", "_special", "_fft")])
_PREFIXES = ("", "special_")

_KINDS = {
    "Tensor": "tensor", "number": "number", "float": "number", "int": "int", "bool": "bool", "str": "str",
    "List[Tensor]": "tensors", "List[int]": "int|ints", "List[float]": "numbers", "List[number]": "numbers",
    "List[Optional[Tensor]]": "index", "Device": "device",
}  # fmt: skip
# What torch's functions take where these are left out is not what its schemas say.
_OF_OTHER_DEFAULTS = {"reduction"}
# Schemas do not tell a dtype from a number.
_KINDS_OF_NAMES = {"dtype": "dtype|none"}


def aten_operator(name: str, **known: Any) -> Operator:
    """Declare an operator by torch's schemas of it.

    Args:
        name: its name in aten, without ``special_``.
        known: what is known of it, by the names of the attributes of `Operator`.
    """
    found, function = _function(name)
    schemas = [{_parameter(argument): argument for argument in _arguments(schema)} for schema in _schemas(found)]
    parameters: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    keyword_only = {parameter for parameter, argument in schemas[0].items() if argument.kwarg_only}
    for schema in schemas:
        for parameter, argument in schema.items():
            if parameter not in parameters:
                parameters[parameter] = _default([other.get(parameter) for other in schemas])
            words = [*kinds.get(parameter, "").split("|"), *_kind(argument).split("|")]
            kinds[parameter] = "|".join(dict.fromkeys(filter(None, words)))
    keyword_only.update(set(parameters) - set(schemas[0]))
    keywords = frozenset(keyword_only)
    return Operator(name, "function", function, parameters, keywords, kinds=kinds, of_schema=True, **known)


def _default(arguments: list[Any]) -> Any:
    """The default of a parameter, which is one that some schemas may lack: none where all of them ask for it."""
    if all(argument is not None and not argument.has_default_value() for argument in arguments):
        return REQUIRED
    if any(argument is not None and argument.name in _OF_OTHER_DEFAULTS for argument in arguments):
        return REQUIRED
    given = [a for a in arguments if a is not None and a.has_default_value() and a.name not in _KINDS_OF_NAMES]
    default = given[0].default_value if given else None
    return tuple(default) if isinstance(default, list) else default


def _function(name: str) -> tuple[str, Callable[..., Any]]:
    """The name in aten, and the function that is called; not one of Python, which would only call another."""
    for found in [prefix + name for prefix in _PREFIXES]:
        for namespace in (torch, *_NAMESPACES):
            function = getattr(namespace, found, None)
            if function is not None and not isinstance(function, types.FunctionType):
                return found, function
    return name, getattr(torch.ops.aten, name)


def _schemas(name: str) -> list[Any]:
    """The schemas of the functions of a name that write into nothing, the most general first."""
    schemas = torch._C._jit_get_schemas_for_operator(f"aten::{name}")
    plain = [
        schema
        for schema in schemas
        if all("Tensor" in str(result.type) for result in schema.returns)
        and not any(argument.alias_info for argument in schema.arguments)
    ]
    assert plain, f"torch has no function '{name}' that writes into nothing"
    return sorted(plain, key=lambda schema: schema.overload_name != "")


def _arguments(schema: Any) -> Iterator[Any]:
    return (argument for argument in schema.arguments if argument.name not in DROPPED)


def _parameter(argument: Any) -> str:
    return "input" if argument.name == "self" else argument.name


def _kind(argument: Any) -> str:
    if argument.name in _KINDS_OF_NAMES:
        return _KINDS_OF_NAMES[argument.name]
    written = str(argument.type)
    optional = written.startswith("Optional[")
    kind = _KINDS[written.removeprefix("Optional[").removesuffix("]") if optional else written]
    return f"{kind}|none" if optional else kind
