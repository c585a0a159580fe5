"""What the code of a model can reach outside of its modules: classes, globals, closures, and what functions keep.

The functions of a model's classes are followed into everything that they name: other functions, modules and classes.
Nothing is called on the way, and neither torch nor Python's own library is looked into. A method is followed once its
name occurs in some code that was reached, so that what builds or loads a model does not count.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_LruCache: type = type(functools.lru_cache(lambda: None))
# What stands for a function, or holds one.
CODE = (
    types.FunctionType, types.MethodType, types.ModuleType, type, staticmethod, classmethod, property,
    functools.partial, functools.partialmethod, functools.cached_property, _LruCache,
)  # fmt: skip
# Packages that keep no tensors of a model.
_OTHERS = sys.stdlib_module_names | {"torch", "torchorbit", "numpy"}
# What makes an object; it counts where the name of the class does.
_MAKING = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__"}
_OF_EVERY_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"}
# What stays where code has put it: it is imported or made once, on first use.
_MADE_ONCE = (types.ModuleType, types.FunctionType, type)
# So much code is looked at; beyond is no model's any more.
_MOST = 20_000
_namespace = type.__dict__["__dict__"].__get__


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


#: What a name means that means nothing.
MISSING = _Missing()


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Something that a forward has put in the place of something else.

    Attributes:
        holder: what holds it: a container, the attributes of an object, a class, a variable of a closure.
        name: the name, the key or the position of it there; None where it has none.
        before: what was there; `MISSING` where nothing was.
        now: what is there; `MISSING` where nothing is.
    """

    holder: Any
    name: Any
    before: Any
    now: Any


def is_foreign(module: Any) -> bool:
    """Whether what a module defines is none of a model's own code."""
    return isinstance(module, str) and module.partition(".")[0] in _OTHERS


@functools.lru_cache(maxsize=8192)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names and texts in some code that may name something, and the global names that it binds anew."""
    names, bound = set(code.co_names), set()
    if any(opcode in _BINDING for opcode in set(code.co_code[::2])):
        bound = {step.argval for step in dis.get_instructions(code) if step.opcode in _BINDING}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = _names_in(constant)
            names |= inner[0]
            bound |= inner[1]
        elif isinstance(constant, str) and constant.isidentifier():
            names.add(constant)
            if "globals" in names:
                bound.add(constant)
    return frozenset(names), frozenset(bound)


_BINDING = {dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]}


class KeptNames:
    """Some names of a module, or all of a class, and what they meant.

    Args:
        holder: what holds the names: the dictionary of a module, or a class.
    """

    __slots__ = ("holder", "meant")

    def __init__(self, holder: Any) -> None:
        self.holder = holder
        self.meant: dict[str, Any] = {}

    def changes(self) -> Iterator[Change]:
        """The names that mean something else now."""
        holder = self.holder
        of_class = isinstance(holder, type)
        now = _namespace(holder) if of_class else holder
        changed = [(name, value) for name, value in self.meant.items() if now.get(name, MISSING) is not value]
        if of_class:
            changed += [(name, MISSING) for name in now if name not in self.meant and not name.startswith("__")]
        for name, value in changed:
            if not issubclass(type(now.get(name)), _MADE_ONCE):
                yield Change(holder, name, value, now.get(name, MISSING))

    def put_back(self) -> None:
        """Let the names mean the same again."""
        holder = self.holder
        of_class = isinstance(holder, type)
        for change in list(self.changes()):
            name, value = change.name, change.before
            if value is not MISSING:
                type.__setattr__(holder, name, value) if of_class else holder.__setitem__(name, value)
            elif change.now is not MISSING:
                type.__delattr__(holder, name) if of_class else holder.__delitem__(name)


class _KeptCell:
    """A variable of a closure, and what it held."""

    __slots__ = ("cell", "held")

    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell
        self.held = _content(cell)

    def changes(self) -> Iterator[Change]:
        """The variable, where it holds something else now."""
        now = _content(self.cell)
        if now is not self.held:
            yield Change(self.cell, None, self.held, now)

    def put_back(self) -> None:
        """Let it hold the same object again."""
        if _content(self.cell) is not self.held:
            if self.held is MISSING:
                del self.cell.cell_contents
            else:
                self.cell.cell_contents = self.held


class KeptSlots:
    """An object with ``__slots__``, and what they held."""

    __slots__ = ("held", "holder")

    def __init__(self, holder: Any) -> None:
        self.holder = holder
        self.held = [(member, _slot(member, holder)) for member in slots_of(type(holder))]

    def changes(self) -> Iterator[Change]:
        """The slots that hold something else now."""
        for member, value in self.held:
            now = _slot(member, self.holder)
            if now is not value:
                yield Change(self.holder, member.__name__, value, now)

    def put_back(self) -> None:
        """Let the slots hold the same objects again."""
        for member, value in self.held:
            if _slot(member, self.holder) is not value:
                if value is MISSING:
                    member.__delete__(self.holder)
                else:
                    member.__set__(self.holder, value)

    def values(self) -> list[Any]:
        """What the slots held."""
        return [value for _, value in self.held if value is not MISSING]


def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The slots of a class, those of its bases included; a class of torch or of Python's library has none."""
    return _slots_of(cls)


@functools.lru_cache(maxsize=1024)
def _slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    return tuple(
        [
            member
            for base in cls.__mro__
            if "__slots__" in _namespace(base) and not is_foreign(_namespace(base).get("__module__"))
            for member in _namespace(base).values()
            if isinstance(member, types.MemberDescriptorType)
        ]
    )


def _slot(member: types.MemberDescriptorType, holder: Any) -> Any:
    try:
        return member.__get__(holder)
    except AttributeError:
        return MISSING


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


class Code:
    """Follows the code of a model, and keeps what it can reach.

    Args:
        look: is given every object that is no code, to keep what that holds.
        keep: is given every dictionary of a function's own attributes.

    Attributes:
        kept: what can be put back.
        caches: of ``functools.lru_cache``.
    """

    def __init__(self, look: Callable[[Any], None], keep: Callable[[dict[str, Any]], None]) -> None:
        self.kept: list[KeptNames | _KeptCell] = []
        self.caches: list[Any] = []
        self._look = look
        self._keep = keep
        self._alive: list[Any] = []  # ids are only unique among living objects
        self._seen: set[Any] = set()
        self._pending: list[Any] = []
        self._names = {"forward", "train", "eval", "extra_repr"}
        self._unnamed: dict[str, list[Any]] = {}  # name -> methods of it that no code has named yet
        self._namespaces: dict[int, KeptNames] = {}

    def add(self, value: Any) -> None:
        """Follow a function, a class, or what stands for one, when it is next time for it."""
        self._pending.append(value)

    def follow(self) -> None:
        """Follow everything that was added, and all that is reached from there."""
        while self._pending and len(self._seen) < _MOST:
            self._step(self._pending.pop())

    def _value(self, value: Any, names: frozenset[str] = frozenset()) -> None:
        """Follow what some code names, with the other names in that code."""
        kind = type(value)
        if kind is types.ModuleType or issubclass(kind, types.ModuleType):
            self._module(value, names)
        elif issubclass(kind, CODE):
            self._pending.append(value)
        else:
            self._look(value)

    def _step(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        kind = type(value)
        if kind is types.FunctionType:
            self._function(value)
        elif issubclass(kind, type):
            self._class(value)
        elif issubclass(kind, types.MethodType):
            self._value(value.__func__)
            self._value(value.__self__)
        elif kind is _LruCache:
            self.caches.append(value)
            self._pending.append(value.__wrapped__)
        elif issubclass(kind, (functools.partial, functools.partialmethod)):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._value(part)
        elif issubclass(kind, (staticmethod, classmethod)):
            self._value(value.__func__)
        elif issubclass(kind, property):
            self._pending += [part for part in (value.fget, value.fset, value.fdel) if part is not None]
        elif issubclass(kind, functools.cached_property):
            self._pending.append(value.func)

    def _function(self, function: types.FunctionType) -> None:
        outside = function.__globals__
        foreign = is_foreign(outside.get("__name__"))
        for cell in function.__closure__ or ():
            held = _content(cell)
            if foreign:  # what decorates a model's function, as torch.no_grad does
                if held is not MISSING and issubclass(type(held), CODE):
                    self._pending.append(held)
                continue
            if id(cell) not in self._seen:
                self._seen.add(id(cell))
                self.kept.append(_KeptCell(cell))
            if held is not MISSING:
                self._value(held)
        if foreign:
            return
        names, bound = _names_in(function.__code__)
        self._name(names)
        for name in names:
            if name in outside:
                self._note(outside, name)
                self._value(outside[name], names)
        for name in bound:
            self._note(outside, name)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(default)
        attributes = function.__dict__
        self._keep(attributes)
        for held in list(attributes.values()):
            self._value(held)

    def _name(self, names: frozenset[str]) -> None:
        """Follow the methods that are named now."""
        new = names - self._names
        self._names |= new
        for name in new & self._unnamed.keys():
            self._pending += self._unnamed.pop(name)

    def _note(self, outside: dict[str, Any], name: str) -> None:
        """Keep what a global name means."""
        kept = self._namespaces.get(id(outside))
        if kept is None:
            kept = self._namespaces[id(outside)] = KeptNames(outside)
            self.kept.append(kept)
        kept.meant.setdefault(name, outside.get(name, MISSING))

    def _module(self, module: types.ModuleType, names: frozenset[str]) -> None:
        """Follow what code takes out of a module."""
        inside = types.ModuleType.__getattribute__(module, "__dict__")
        if is_foreign(inside.get("__name__")) or (id(module), names) in self._seen:
            return
        self._seen.add((id(module), names))
        for name in names:
            self._note(inside, name)
            if name in inside:
                self._value(inside[name], names)

    def _class(self, cls: type) -> None:
        self._pending.append(type(cls))
        for base in type.__dict__["__mro__"].__get__(cls):
            namespace = _namespace(base)
            if (base is not cls and id(base) in self._seen) or is_foreign(namespace.get("__module__")):
                continue
            self._seen.add(id(base))
            kept = KeptNames(base)
            kept.meant.update({name: held for name, held in namespace.items() if not name.startswith("__")})
            self.kept.append(kept)
            for name, member in list(namespace.items()):
                if name in _OF_EVERY_CLASS:
                    continue
                called = {base.__name__, cls.__name__} if name in _MAKING else {name}
                if not issubclass(type(member), CODE):
                    self._value(member)
                elif called & self._names or (name.startswith("__") and name not in _MAKING):
                    self._pending.append(member)
                else:
                    for either in called:
                        self._unnamed.setdefault(either, []).append(member)
