"""What hangs on a model, kept so that it can be put back after the model ran on meta tensors."""

from __future__ import annotations

import itertools
import operator
import random
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.conversion.reaching import CODE, MISSING, Change, Code, KeptNames, KeptSlots, is_foreign, slots_of
from torchorbit.conversion.settings import kept_settings

# How far objects inside of objects are followed, from the attributes of a module on.
_DEPTH = 5
# What holds nothing that a forward could change.
_INERT = frozenset({
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, torch.memory_format,
    types.BuiltinFunctionType, torch.Generator,
})  # fmt: skip


class _Kept:
    """A list, a set or a deque, and what it held."""

    __slots__ = ("held", "holder", "kind")

    def __init__(self, holder: Any, kind: Any):
        self.holder = holder
        self.kind = kind  # the container's own methods and no others: a subclass may refuse to be changed
        self.held = tuple(kind.__iter__(holder)) if holder else ()

    @property
    def same(self) -> bool:
        """Whether it holds the same objects in the same order."""
        holder, kind, held = self.holder, self.kind, self.held
        return kind.__len__(holder) == len(held) and all(map(operator.is_, kind.__iter__(holder), held))

    def changes(self) -> Iterator[Change]:
        """The positions at which it holds something else now."""
        if self.same:
            return
        pairs = itertools.zip_longest(self.held, self.kind.__iter__(self.holder), fillvalue=MISSING)
        for position, (before, now) in enumerate(pairs):
            if before is not now:
                yield Change(self.holder, position, before, now)

    def put_back(self) -> None:
        """Let it hold the same objects in the same order again."""
        if self.same:
            return
        holder, kind, held = self.holder, self.kind, self.held
        kind.clear(holder)
        (kind.update if kind is set else kind.extend)(holder, held)


class _KeptDict:
    """A dictionary, and what it held."""

    __slots__ = ("holder", "keys", "kind", "values")

    def __init__(self, holder: Any, kind: Any):
        self.holder = holder
        self.kind = kind
        self.keys: tuple[Any, ...] = ()
        self.values: tuple[Any, ...] = ()
        if kind.__len__(holder):
            self.keys, self.values = tuple(kind.keys(holder)), tuple(kind.values(holder))

    @property
    def same(self) -> bool:
        """Whether it holds the same objects under the same keys in the same order."""
        holder, kind = self.holder, self.kind
        return (
            kind.__len__(holder) == len(self.keys)
            and all(map(operator.is_, kind.values(holder), self.values))
            and all(map(operator.is_, kind.keys(holder), self.keys))
        )

    def changes(self) -> Iterator[Change]:
        """The keys under which it holds something else now."""
        if self.same:
            return
        before, now = dict(zip(self.keys, self.values, strict=True)), dict(self.kind.items(self.holder))
        for key in {**before, **now}:
            if before.get(key, MISSING) is not now.get(key, MISSING):
                yield Change(self.holder, key, before.get(key, MISSING), now.get(key, MISSING))

    def put_back(self) -> None:
        """Let it hold the same objects under the same keys in the same order again."""
        if self.same:
            return
        holder, kind = self.holder, self.kind
        kind.clear(holder)
        for key, value in zip(self.keys, self.values, strict=True):
            kind.__setitem__(holder, key, value)


class _KeptGenerator:
    """A generator of random numbers, of Python or of numpy, and its state."""

    __slots__ = ("before", "generator")

    def __init__(self, generator: Any):
        self.generator = generator
        self.before = self.state()

    def state(self) -> Any:
        """The state that it has now."""
        if isinstance(self.generator, random.Random):
            return self.generator.getstate()
        if isinstance(self.generator, np.random.Generator):
            return self.generator.bit_generator.state
        return self.generator.get_state(legacy=False)

    def put_back(self) -> None:
        """Let it draw the same numbers again."""
        if isinstance(self.generator, random.Random):
            self.generator.setstate(self.before)
        elif isinstance(self.generator, np.random.Generator):
            self.generator.bit_generator.state = self.before
        else:
            self.generator.set_state(self.before)


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


# Subclasses of what comes first are met first: an `OrderedDict` is a `dict`, whose methods would lose its order.
_CONTAINERS: dict[type, type] = {OrderedDict: _KeptDict, dict: _KeptDict, list: _Kept, set: _Kept, deque: _Kept}
# Of Python's library and of torch, what holds objects for a model's code.
_HOLDING = (
    *_CONTAINERS, tuple, types.SimpleNamespace, threading.local, weakref.WeakKeyDictionary, weakref.WeakValueDictionary,
    weakref.WeakSet, nn.Module,
)  # fmt: skip


# Another one of these is the same where it is equal.
_EQUAL = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def takes_place(now: Any, stand_in: Tensor) -> TypeGuard[Tensor]:
    """Whether a tensor is another value of a buffer.

    Of another shape it is a table that is made when it is needed; the graph makes it every time.
    """
    return isinstance(now, Tensor) and now.shape == stand_in.shape


def _name_of(holder: Any) -> str:
    """The name of a class, or of a module by its globals; empty where these are of neither."""
    return holder.__qualname__ if isinstance(holder, type) else str(holder.get("__name__", ""))


class Snapshot:
    """What the modules of a model hold, and what their code can reach outside of them.

    The former are attributes, and what is inside of containers and objects among these; the latter are attributes of
    classes, globals, closures, and what functions keep (`torchorbit.conversion.reaching`).

    Attributes:
        modules: every module of the model.
        hanging: tensors of the modules that are neither parameters nor buffers, with the container and the key under
            which each is.
        outside: tensors that the model's code can reach, and that hang on no module.
        caches: what ``functools.lru_cache`` keeps for the model's code.
        generators: generators of random numbers that the model has, or its code names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.hanging: list[tuple[Any, Any, Tensor]] = []
        self.outside: list[Tensor] = []
        self.generators: list[_KeptGenerator] = []
        self._kept: list[Any] = []
        self._empty: list[Any] = []  # most containers of a module are: of hooks
        self._seen = {id(module) for module in self.modules}
        self._classes: set[type] = {type(module) for module in self.modules}
        self._outside = False
        self._code = Code(self._look_outside, self._keep_attributes)
        for module in self.modules:
            self._attributes(module.__dict__, _DEPTH)
        self._reach()
        self.caches = self._code.caches

    @property
    def trains_itself(self) -> bool:
        """Whether the model, or a part of it, has a `train` of its own."""
        return any(type(module).train is not nn.Module.train or "train" in module.__dict__ for module in self.modules)

    def train(self, mode: bool) -> None:
        """Set the training flag of every module, as the model's own `train` does it where it has one."""
        if self.trains_itself:
            self.modules[0].train(mode)
            return
        for module in self.modules:
            module.__dict__["training"] = mode

    def modes(self) -> list[bool]:
        """The training flag of every module."""
        return [module.__dict__["training"] for module in self.modules]

    def copy_tensors(self) -> None:
        """Put copies in the places of all tensors, for a run that may write into them."""
        copies: dict[int, Tensor] = {}

        def copied(tensor: Tensor) -> Tensor:
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().clone()
            return copies[id(tensor)]

        for module in self.modules:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = copied(tensor)  # type: ignore[assignment]
        for container, key, tensor in self.hanging:
            put(container, key, copied(tensor))

    def put_back(self) -> None:
        """Let everything hold what it held when this was made."""
        for kept in (*self._kept, *self.generators):
            kept.put_back()
        if any(self._empty):
            for container in self._empty:
                container.clear()

    def changes(self, stand_ins: Mapping[int, Tensor]) -> list[Change]:
        """What holds something else than when this was made.

        Training flags do not count, nor parameters and buffers that hold other values of the same shape, nor numbers
        and texts that are equal.

        Args:
            stand_ins: id of a tensor -> the tensor that was put in its place.
        """
        flags = {id(module.__dict__) for module in self.modules}
        state = {id(held) for module in self.modules for held in (module._parameters, module._buffers)}
        found: list[Change] = []
        for change in itertools.chain(*[kept.changes() for kept in self._kept]):
            before, now = change.before, change.now
            stand_in = stand_ins.get(id(before)) if isinstance(before, Tensor) else None
            if stand_in is not None and (
                now is stand_in or (id(change.holder) in state and takes_place(now, stand_in))
            ):
                continue
            if id(change.holder) in flags and change.name == "training":
                continue
            if type(before) in _EQUAL and isinstance(now, type(before)) and before == now:
                continue
            found.append(change)
        if any(self._empty):
            for container in self._empty:
                items = dict.items(container) if isinstance(container, dict) else enumerate(container)
                found += [Change(container, key, MISSING, now) for key, now in items]
        return found

    def called(self, change: Change) -> str:
        """The name of what has changed, as code would write it, from the outermost module on."""
        root = self.modules[0]
        for path, module in root.named_modules():
            if change.holder is module._parameters or change.holder is module._buffers:
                return f"{path}.{change.name}".removeprefix(".")
        waiting: list[tuple[Any, str]] = [(module, path) for path, module in root.named_modules()]
        waiting += [
            (value, f"{_name_of(kept.holder)}.{name}")
            for kept in self._kept
            if isinstance(kept, KeptNames)
            for name, value in kept.meant.items()
        ]
        seen: set[int] = set()
        while waiting:
            value, path = waiting.pop(0)
            if id(value) in seen or type(value) in _INERT or issubclass(type(value), (Tensor, *CODE)):
                continue
            seen.add(id(value))
            attributes = value.__dict__ if type(getattr(value, "__dict__", None)) is dict else {}
            if value is change.holder and isinstance(change.name, str) and not isinstance(value, (dict, list)):
                return f"{path}.{change.name}"
            if attributes is change.holder:
                return f"{path}.{change.name}".removeprefix(".")
            if value is change.holder:
                return f"{path}[{change.name!r}]"
            waiting += [(held, f"{path}.{name}".removeprefix(".")) for name, held in attributes.items()]
            if isinstance(value, dict):
                waiting += [(held, f"{path}[{key!r}]") for key, held in dict.items(value)]
            elif isinstance(value, (list, tuple)):
                waiting += [(held, f"{path}[{position}]") for position, held in enumerate(value)]
        if isinstance(change.holder, (dict, type)) and (name := _name_of(change.holder)):
            return f"{name}.{change.name}"
        return "a variable of a closure" if change.name is None else str(change.name)

    def _reach(self) -> None:
        """Keep what the code of all objects that were looked at can reach."""
        self._outside = True
        while self._classes:
            for cls in self._classes:
                self._code.add(cls)
            self._classes.clear()
            self._code.follow()
        self._kept += self._code.kept

    def _look_outside(self, value: Any) -> None:
        self._look(value, _DEPTH)

    def _keep_attributes(self, attributes: dict[str, Any]) -> None:
        """Keep the attributes of a function."""
        if attributes:
            self._kept.append(_KeptDict(attributes, dict))
        else:
            self._empty.append(attributes)

    def _hang(self, container: Any, key: Any, tensor: Tensor) -> None:
        if self._outside:
            self.outside.append(tensor)
        else:
            self.hanging.append((container, key, tensor))

    def _attributes(self, attributes: dict[str, Any], depth: int) -> None:
        """Keep what a module or another object holds."""
        self._kept.append(_KeptDict(attributes, dict))
        empty = self._empty
        for name, value in attributes.items():
            kind = type(value)
            if kind in _INERT:
                continue
            if kind in _CONTAINERS and not value:
                empty.append(value)
            elif isinstance(value, Tensor):
                self._hang(attributes, name, value)
            elif name in ("_parameters", "_buffers"):
                self._kept.append(_KeptDict(value, dict))
            else:
                self._look(value, depth)

    def _look(self, value: Any, depth: int) -> None:
        """Keep what an object holds, if it can hold anything."""
        kind = type(value)
        if kind in _INERT or id(value) in self._seen:
            return
        if isinstance(value, Tensor) and self._outside:
            self.outside.append(value)
            return
        if issubclass(kind, CODE):
            self._code.add(value)
            return
        if issubclass(kind, _GENERATORS):
            if not issubclass(kind, random.SystemRandom):
                self._seen.add(id(value))
                self.generators.append(_KeptGenerator(value))
            return
        if is_foreign(kind.__module__) and not issubclass(kind, _HOLDING):
            return
        own = kind if kind in _CONTAINERS else next((base for base in _CONTAINERS if issubclass(kind, base)), None)
        if own is kind and not value:
            self._empty.append(value)
        elif own is not None:
            self._kept.append(_CONTAINERS[own](value, own))
            if value and depth:
                self._seen.add(id(value))
                self._inside(value, depth - 1)
        elif issubclass(kind, tuple) and depth:
            self._inside(value, depth - 1)
        if kind is own or not depth or issubclass(kind, Tensor):
            return
        self._classes.add(kind)
        if slots_of(kind):
            self._seen.add(id(value))
            kept = KeptSlots(value)
            self._kept.append(kept)
            self._inside(tuple(kept.values()), depth - 1)
        base = threading.local if issubclass(kind, threading.local) else object
        try:
            attributes = base.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        if type(attributes) is dict:
            self._seen.add(id(value))
            self._attributes(attributes, depth - 1)

    def _inside(self, container: Any, depth: int) -> None:
        if isinstance(container, dict):
            for key, item in list(dict.items(container)):
                if isinstance(item, Tensor):
                    self._hang(container, key, item)
                else:
                    self._look(item, depth)
            return
        replaceable = isinstance(container, list)
        for position, item in enumerate(list(container)):
            if not isinstance(item, Tensor):
                self._look(item, depth)
            elif replaceable:
                self._hang(container, position, item)


@contextmanager
def preserved(snapshot: Snapshot) -> Iterator[None]:
    """Put everything that hangs on a model back afterwards, the settings of torch, and the state of random numbers."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with kept_settings():
            yield
    finally:
        try:
            snapshot.put_back()
        except BaseException:  # an interrupt in between; what is put back already stays so
            snapshot.put_back()
            raise
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def contents_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors hold the same numbers afterwards, which a run of a model may write into."""
    held = [(tensor, tensor.detach().clone()) for tensor in tensors if not (tensor.is_meta or tensor.is_inference())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, content in held:
                if not torch.equal(tensor, content):
                    tensor.copy_(content)


def put(container: Any, key: Any, value: Any) -> None:
    """Put a value into a dictionary or a list, past what a subclass makes of that."""
    kind: Any = next(base for base in _CONTAINERS if isinstance(container, base))
    kind.__setitem__(container, key, value)


def holds(container: Any, key: Any, value: Any) -> bool:
    """Whether a dictionary or a list holds a value there, past what a subclass makes of that."""
    kind: Any = next(base for base in _CONTAINERS if isinstance(container, base))
    if kind is list:
        return key < list.__len__(container) and list.__getitem__(container, key) is value
    return dict.get(container, key) is value
