"""Values in containers: what vertices take and return, and what is known of it.

Containers are tuples, named tuples, what torch calls a return type, lists, dicts, slices and records
(`torchorbit.records`). Everything else is a leaf, a `torch.Size` too: it is one shape, and no tuple of numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from torchorbit.records import Record

#: How an item inside of containers is reached: positions and keys, outermost first.
Index = tuple[int | str, ...]
T = TypeVar("T")


def items_of(value: Any) -> Collection[Any] | None:
    """What a container holds, in its order; None where the value is no container."""
    look = _look_into(type(value))  # type: ignore[arg-type] # a class is hashable
    return None if look is None else look(value)


@functools.lru_cache(maxsize=256)
def _look_into(kind: type) -> Callable[[Any], Collection[Any]] | None:
    """What gives the items of a type of containers; None where it is none."""
    if issubclass(kind, slice):
        return lambda value: (value.start, value.stop, value.step)
    if issubclass(kind, Mapping):
        return lambda value: value.values()
    if kind is Record:
        return lambda value: value.held
    if issubclass(kind, (tuple, list)) and not issubclass(kind, torch.Size):
        return lambda value: value
    return None


def items_like(value: Any, other: Any) -> Collection[Any] | None:
    """What a container holds, in the order of another one; None where the two do not hold the same places."""
    if isinstance(other, Mapping):
        alike = isinstance(value, Mapping) and value.keys() == other.keys()
        return [value[key] for key in other] if alike else None
    if isinstance(other, Record):
        return value.held if other.like(value) else None
    items, places = items_of(value), items_of(other)
    if items is None or places is None or len(items) != len(places) or isinstance(value, (Mapping, Record)):
        return None
    return items if isinstance(value, slice) is isinstance(other, slice) else None


def rebuilt(value: Any, items: Iterable[Any]) -> Any:
    """A container like another one that holds something else; lists and mappings become plain lists and dicts."""
    kind = type(value)
    if kind is tuple:
        return tuple(items)
    if kind is slice:
        return slice(*items)
    if kind is Record:
        return value.holding(tuple(items))
    if isinstance(value, list):
        return list(items)
    if isinstance(value, Mapping):
        return dict(zip(value, items, strict=True))
    return kind(*items) if hasattr(value, "_fields") else kind(items)


def map_leaves(change: Callable[[Any], Any], value: Any) -> Any:
    """The same containers with ``change`` applied to every leaf."""
    items = items_of(value)
    if items is None:
        return change(value)
    return rebuilt(value, [map_leaves(change, item) for item in items])


def map_plainly(change: Callable[[Any], Any], value: Any) -> Any:
    """`map_leaves` with plain containers: dicts stay dicts, all others become tuples."""
    items = items_of(value)
    if items is None:
        return change(value)
    changed = [map_plainly(change, item) for item in items]
    return dict(zip(value, changed, strict=True)) if isinstance(value, Mapping) else tuple(changed)


def map_placed(change: Callable[[Any, Index], Any], value: Any, index: Index = ()) -> Any:
    """`map_leaves` with a ``change`` that is also given the indices by which a leaf is reached."""
    items = items_of(value)
    if items is None:
        return change(value, index)
    keys = value if isinstance(value, Mapping) else range(len(items))
    return rebuilt(value, [map_placed(change, item, (*index, key)) for key, item in zip(keys, items, strict=True)])


def map_together(change: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    """Several values leaf by leaf.

    Args:
        change: is given the leaves of all values that stand in the same place. Where the values do not hold the same
            places it is given the containers.
        values: at least one.

    Returns:
        Containers like those of the first value, of what ``change`` gives.
    """
    first = values[0]
    if items_of(first) is None:
        return change(list(values))
    found = [items_like(value, first) for value in values]
    items = [given for given in found if given is not None]
    if len(items) < len(found):
        return change(list(values))
    return rebuilt(first, [map_together(change, together) for together in zip(*items, strict=True)])


def leaves(value: Any) -> list[Any]:
    """Everything in a value that is no container, in order."""
    items = items_of(value)
    return [value] if items is None else [leaf for item in items for leaf in leaves(item)]


def leaves_of(kind: type[T], value: Any) -> list[T]:
    """The leaves of a value that are of a type, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, kind)]


def placed_leaves(value: Any, index: Index = ()) -> list[tuple[Index, Any]]:
    """The leaves of a value, each with the indices by which it is reached."""
    items = items_of(value)
    if items is None:
        return [(index, value)]
    keys = value if isinstance(value, Mapping) else range(len(items))
    return [found for key, item in zip(keys, items, strict=True) for found in placed_leaves(item, (*index, key))]
