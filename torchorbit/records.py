"""Values of classes that give names to what they hold: dataclasses, and dictionaries that are more than that.

What a model returns in such a class is a `Record` in its graph, which makes an object of the same class again. A graph
that was loaded from a file does not know the class: `FieldRecord` and `KeyedRecord` stand in for it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclasses.dataclass(frozen=True, slots=True)
class RecordClass:
    """A class with names for what it holds.

    Attributes:
        name: what it is called.
        cls: the class itself; None where it is not known.
    """

    name: str
    cls: type | None = None

    def make(self, attributes: dict[str, Any], items: dict[Any, Any] | None = None, both: Sequence[str] = ()) -> Any:
        """Make an object, past what its constructor does.

        Args:
            attributes: what it has by name.
            items: what it has by key; None where it is no dictionary.
            both: the keys under which it has the same by name.
        """
        if self.name in _FACTORIES and self.cls is None and items is not None:
            return defaultdict(_FACTORIES[self.name], items)
        kind = self.cls or (FieldRecord if items is None else KeyedRecord)
        base: Any = object if items is None else OrderedDict if issubclass(kind, OrderedDict) else dict
        made = base.__new__(kind)
        if self.cls is None:
            attributes = {_NAME: self.name, **attributes}
        for name, value in attributes.items():
            object.__setattr__(made, name, value)
        if items is not None:
            for name in both:
                object.__setattr__(made, name, items[name])
            for key, value in items.items():
                base.__setitem__(made, key, value)
        return made

    def register(self) -> None:
        """Let PyTorch look into objects of the class where it does not do so yet, when a model is exported, say."""
        if self.cls is not None and self.cls not in pytree.SUPPORTED_NODES:
            _register(self.cls)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What an object of a class with names holds.

    Attributes:
        kind: its class.
        names: of what it has by name alone.
        keys: of what it has by key; None where it is no dictionary.
        both: the keys under which it has the same by name.
        held: what it has by name, then what it has by key.
    """

    kind: RecordClass
    names: tuple[str, ...]
    keys: tuple[Any, ...] | None
    both: tuple[str, ...]
    held: tuple[Any, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        """What it has by name alone."""
        return dict(zip(self.names, self.held, strict=False))

    @property
    def items(self) -> dict[Any, Any] | None:
        """What it has by key; None where it is no dictionary."""
        return None if self.keys is None else dict(zip(self.keys, self.held[len(self.names) :], strict=True))

    def holding(self, held: Sequence[Any]) -> Record:
        """A record of the same class that holds something else."""
        return dataclasses.replace(self, held=tuple(held))

    def like(self, other: Any) -> bool:
        """Whether another value is a record of the same class with the same names and keys."""
        return isinstance(other, Record) and self.holding(()) == other.holding(())

    def make(self) -> Any:
        """Make an object that holds the same."""
        return self.kind.make(self.attributes, self.items, self.both)


_NAME = "_record_name"
# What a dictionary with a default is called in a graph and in a file -> what makes its default.
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    f"defaultdict_of_{made.__name__}": made for made in (list, dict, set, tuple, int, float, bool, str)
} | {"defaultdict_of_nothing": None}
_PLAIN = frozenset({dict, list, tuple, int, float, bool, str, type(None)})


class FieldRecord:
    """Stands in for a class of the source, a dataclass say: what it holds are attributes."""

    def __repr__(self) -> str:
        return _written(self)


class KeyedRecord(OrderedDict[Any, Any]):
    """Stands in for a dictionary of a class of the source: what it holds is found by key, name or position."""

    def __getitem__(self, key: Any) -> Any:
        by_position = isinstance(key, slice) or (isinstance(key, int) and key not in self.keys())
        return self.to_tuple()[key] if by_position else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and name in self.keys():
            return self[name]
        raise AttributeError(f"there is no '{name}'; there are {list(self.keys())}")

    def to_tuple(self) -> tuple[Any, ...]:
        """What it holds, without keys."""
        return tuple(self.values())

    def __repr__(self) -> str:
        return _written(self)


def _written(value: Any) -> str:
    record = record_of(value)
    assert record is not None
    held = {**record.attributes, **(record.items or {})}
    return f"{record.kind.name}({', '.join([f'{name}={item!r}' for name, item in held.items()])})"


def record_of(value: Any) -> Record | None:
    """What an object holds under which names; None where its class gives none."""
    kind = type(value)
    if kind is defaultdict:
        name = next((name for name, made in _FACTORIES.items() if made is value.default_factory), None)
        return None if name is None else Record(RecordClass(name), (), tuple(value), (), tuple(value.values()))
    keyed = isinstance(value, dict) and kind is not dict and not isinstance(value, defaultdict)
    if kind in _PLAIN or isinstance(value, (type, tuple, Tensor)):
        return None
    if not keyed and kind is not FieldRecord and not dataclasses.is_dataclass(value):
        return None
    own = getattr(value, "__dict__", {})
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    attributes = {name: getattr(value, name) for name in [*fields, *own] if name != _NAME and own is not value}
    cls = None if kind in (FieldRecord, KeyedRecord) or own is value else kind
    known = RecordClass(own[_NAME] if cls is None and _NAME in own else kind.__name__, cls)
    if not keyed:
        return Record(known, tuple(attributes), None, (), tuple(attributes.values()))
    items = dict(dict.items(value))
    both = tuple([name for name in attributes if name in items and items[name] is attributes[name]])
    alone = {name: item for name, item in attributes.items() if name not in both}
    return Record(known, tuple(alone), tuple(items), both, (*alone.values(), *items.values()))


def opened(value: Any) -> Any:
    """Tuples, lists and dicts like those of a value, in which objects with names are dicts, too."""
    record = record_of(value)
    if record is not None:
        return {name: opened(item) for name, item in (record.attributes | (record.items or {})).items()}
    if isinstance(value, dict):
        return {key: opened(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(opened, value))
    return type(value)(map(opened, value)) if type(value) in (tuple, list) else value


def _flatten(value: Any) -> tuple[list[Any], Any]:
    record = record_of(value)
    assert record is not None
    return list(record.held), record.holding(())


def _unflatten(held: Any, empty: Record) -> Any:
    return empty.holding(tuple(held)).make()


def _with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
    held, empty = _flatten(value)
    names = [*map(pytree.GetAttrKey, empty.names), *map(pytree.MappingKey, empty.keys or ())]
    return list(zip(names, held, strict=True)), empty


def _dumpable(empty: Record) -> Any:
    return [empty.kind.name, list(empty.names), None if empty.keys is None else list(empty.keys), list(empty.both)]


def _loaded(context: Any) -> Record:
    name, names, keys, both = context
    return Record(RecordClass(name), tuple(names), None if keys is None else tuple(keys), tuple(both), ())


def _register(cls: type) -> None:
    pytree.register_pytree_node(
        cls,
        _flatten,
        _unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=_dumpable,
        from_dumpable_context=_loaded,
        flatten_with_keys_fn=_with_keys,
    )


_register(FieldRecord)
_register(KeyedRecord)
