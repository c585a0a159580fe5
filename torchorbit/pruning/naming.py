"""Criteria, selectors and constraints by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.suggesting import close_to

Made = TypeVar("Made")


def class_named(what: str, name: Any, table: Mapping[str, Callable[..., Made]]) -> Callable[..., Made]:
    """What a table has under a name.

    Args:
        what: what it is a table of, for messages: ``"criterion"``.
        name: the name.
        table: name -> class.

    Raises:
        ArgumentTypeError: ``name`` is no name.
        ArgumentError: there is none of that name; the message says which are like it.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{what}={name!r}, expected a name or an object; names are {', '.join(table)}")
    if name not in table:
        raise ArgumentError(f"there is no {what} {name!r}{close_to(name, table)}; known are {', '.join(table)}")
    return table[name]


def made_by_name(what: str, name: Any, table: Mapping[str, Callable[..., Made]], **options: Any) -> Made:
    """An object of the class that a table has under a name.

    Args:
        what: what it is a table of, for messages.
        name: the name.
        table: name -> class.
        **options: those that the class takes are given to it.

    Raises:
        ArgumentTypeError: ``name`` is no name.
        ArgumentError: there is none of that name, or it needs options that a name alone does not give.
    """
    kind = class_named(what, name, table)
    taken = inspect.signature(kind).parameters
    missing = [key for key, option in taken.items() if option.default is option.empty and key not in options]
    if missing:
        made = f"{kind.__name__}({', '.join(f'{key}=...' for key in missing)})"
        raise ArgumentError(f"the {what} {name!r} needs {' and '.join(missing)}: give {what}={made}, not its name")
    return kind(**{key: value for key, value in options.items() if key in taken})
