"""Criteria, selectors and constraints as data: what they are called and their options, written down and read back.

A checkpoint tells with them how it was made. They are read back through the closed tables of what torchorbit has, and
never import anything by name.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from torchorbit.errors import ArgumentError, ArgumentTypeError, TorchorbitError
from torchorbit.orbits.orbit import Orbit
from torchorbit.pruning.naming import class_named
from torchorbit.removal.history import Description
from torchorbit.suggesting import close_to

Made = TypeVar("Made")


def describe(thing: object) -> Description:
    """Say what an object is, with all options that are not as by default.

    Options of a constructor are attributes of the same name. Those that change nothing of the result, progress bars
    say, are left out. What cannot be written (functions; modules and orbits as keys) is told in words.

    Args:
        thing: a criterion, a selector or a constraint.
    """
    kind = type(thing)
    name = str(getattr(thing, "name", "") or kind.__name__)
    known = any(table.get(name) is kind for _, table in _kinds().values())
    options = {option: _written(value) for option, value in _given(thing)}
    return Description(name, options, known)


def from_description(description: Description, kind: type[Made]) -> Made:
    """The object that was described.

    Args:
        description: what `describe` gave, maybe in another process, or the manifest of a checkpoint.
        kind: what it is to be: `Criterion`, `Selector` or `Constraint`.

    Raises:
        ArgumentError: torchorbit has none of that name, it has no such option or cannot have that value; or something
            in the description is told in words only.
        ArgumentTypeError: ``description`` is none.
    """
    if not isinstance(description, Description):
        raise ArgumentTypeError(f"this is a {type(description).__name__}, expected a Description")
    word = next((word for word, (base, _) in _kinds().items() if base is kind), None)
    if word is None:
        raise ArgumentTypeError(f"kind={kind!r}, expected Criterion, Selector or Constraint")
    return cast(Made, _made(word, description.name, description.options, description.known))


@cache
def _kinds() -> dict[str, tuple[type, Mapping[str, type]]]:
    """What there is a table of -> the class of all that is in it, and the table."""
    # They describe themselves by this module, and are complete when somebody asks.
    from torchorbit.pruning.constraints import CONSTRAINTS, Constraint
    from torchorbit.pruning.criteria import CRITERIA, Criterion
    from torchorbit.pruning.selectors import SELECTORS, Selector
    from torchorbit.pruning.selectors.trust_region import ScboOptions

    return {
        "criterion": (Criterion, CRITERIA),
        "selector": (Selector, SELECTORS),
        "constraint": (Constraint, CONSTRAINTS),
        "search": (ScboOptions, {ScboOptions.name: ScboOptions}),
    }


# -- writing


def _given(thing: object) -> Iterator[tuple[str, Any]]:
    """The options of an object that are not as by default, with their values."""
    fields = {field.name: field for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else {}
    for name, default in _defaults(type(thing)).items():
        field = fields.get(name)
        if field is not None and not field.compare:
            continue
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = getattr(thing, name, _Unknown)
        if not _same(value, default):
            yield name, value


class _Unknown:
    """Stands for an option that an object does not keep."""


def _defaults(kind: type) -> dict[str, Any]:
    """Option of a class -> its default; `inspect.Parameter.empty` where it has none."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    try:
        return type(value) is type(default) and bool(value == default)
    except Exception:  # whatever an object that somebody wrote makes of a comparison
        return False


def _written(value: Any) -> Any:
    """A value as JSON data, in the terms of `Description`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    if isinstance(value, Mapping):
        return {"items": [[_written(key), _written(item)] for key, item in value.items()]}
    word = next((word for word, (base, _) in _kinds().items() if isinstance(value, base)), None)
    return {"text": _in_words(value)} if word is None else {word: describe(value).data()}


def _in_words(value: Any) -> str:
    if value is _Unknown:
        return "not kept"
    if isinstance(value, Orbit):
        return f"{value!r} of {', '.join(value.sources[:2]) or 'parameters'}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__}"
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else f"a {type(value).__name__}"


# -- reading


def _made(word: str, name: Any, options: Any, known: Any) -> object:
    if known is not True:
        raise ArgumentError(
            f"the {word} {name!r} is none of torchorbit's and cannot be read back; make it, and give it"
        )
    kind = class_named(word, name, _kinds()[word][1])
    if not isinstance(options, Mapping):
        raise ArgumentError(f"the options of the {word} {name!r} are {options!r:.100}, expected a dictionary")
    taken = _defaults(cast(type, kind))
    for option in options:
        if option not in taken:
            raise ArgumentError(f"the {word} {name!r} has no option {option!r:.100}{close_to(str(option), taken)}")
    try:
        return kind(**{option: _read(value, f"{name}, {option}") for option, value in options.items()})
    except TorchorbitError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ArgumentError(f"the {word} {name!r} cannot have these options: {error}") from None


def _read(value: Any, place: str) -> Any:
    """What `_written` wrote."""
    if isinstance(value, list):
        return [_read(item, place) for item in value]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == "text":
            raise ArgumentError(f"{place}: {inner!r:.100} is told in words and cannot be read back; give it yourself")
        if kind in _kinds() and isinstance(inner, Mapping):
            return _made(kind, inner.get("name"), inner.get("options", {}), inner.get("known", True))
        if kind == "items" and isinstance(inner, list) and all(isinstance(p, list) and len(p) == 2 for p in inner):
            return {_key(_read(key, place), place): _read(item, place) for key, item in inner}
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "dtype" and isinstance(getattr(torch, str(inner), None), torch.dtype):
            return getattr(torch, str(inner))
        if kind == "device" and isinstance(inner, str):
            return _device(inner, place)
    raise ArgumentError(f"{place}: {value!r:.100} is no value that an option can have")


def _key(key: Any, place: str) -> Any:
    if not isinstance(key, (str, int, float, bool, type(None))):
        raise ArgumentError(f"{place}: {key!r:.100} cannot be the key of a dictionary")
    return key


def _device(name: str, place: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"{place}: there is no device {name!r:.100}") from None
