"""What hangs on a model, kept so that it can be put back after the model ran on meta tensors."""

from __future__ import annotations

import operator
import random
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.conversion.reaching import CODE, Code, KeptSlots, is_foreign, slots_of
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

    def put_back(self) -> None:
        """Let it hold the same objects in the same order again."""
        holder, kind, held = self.holder, self.kind, self.held
        if kind.__len__(holder) == len(held) and all(map(operator.is_, kind.__iter__(holder), held)):
            return
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

    def put_back(self) -> None:
        """Let it hold the same objects under the same keys in the same order again."""
        holder, kind = self.holder, self.kind
        if (
            kind.__len__(holder) == len(self.keys)
            and all(map(operator.is_, kind.values(holder), self.values))
            and all(map(operator.is_, kind.keys(holder), self.keys))
        ):
            return
        kind.clear(holder)
        for key, value in zip(self.keys, self.values, strict=True):
            kind.__setitem__(holder, key, value)


# Subclasses of what comes first are met first: an `OrderedDict` is a `dict`, whose methods would lose its order.
_CONTAINERS: dict[type, type] = {OrderedDict: _KeptDict, dict: _KeptDict, list: _Kept, set: _Kept, deque: _Kept}
# Of Python's library and of torch, what holds objects for a model's code.
_HOLDING = (
    *_CONTAINERS, tuple, types.SimpleNamespace, threading.local, weakref.WeakKeyDictionary, weakref.WeakValueDictionary,
    weakref.WeakSet, nn.Module,
)  # fmt: skip


class Snapshot:
    """What the modules of a model hold, and what their code can reach outside of them.

    The former are attributes, and what is inside of containers and objects among these; the latter are attributes of
    classes, globals, closures, and what functions keep (`torchorbit.conversion.reaching`).

    Attributes:
        modules: every module of the model.
        hanging: tensors of the modules that are neither parameters nor buffers, with the container and the key under
            which each is.
        caches: what ``functools.lru_cache`` keeps for the model's code.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.hanging: list[tuple[Any, Any, Tensor]] = []
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
        for kept in self._kept:
            kept.put_back()
        if any(self._empty):
            for container in self._empty:
                container.clear()

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
        if not self._outside:
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
        if issubclass(kind, CODE):
            self._code.add(value)
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


def put(container: Any, key: Any, value: Any) -> None:
    """Put a value into a dictionary or a list, past what a subclass makes of that."""
    kind: Any = next(base for base in _CONTAINERS if isinstance(container, base))
    kind.__setitem__(container, key, value)
