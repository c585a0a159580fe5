"""What hangs on a model, kept so that it can be put back after the model ran on meta tensors."""

from __future__ import annotations

import operator
import random
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# How far objects inside of objects are followed, from the attributes of a module on.
_DEPTH = 5
# What holds nothing that a forward could change.
_INERT = frozenset({
    bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, torch.memory_format,
    types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, torch.Generator,
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


class Snapshot:
    """What the modules of a model hold: attributes, and what is inside of containers and objects among these.

    Attributes:
        modules: every module of the model.
        hanging: tensors that are neither parameters nor buffers, with the container and the key under which each is.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.hanging: list[tuple[Any, Any, Tensor]] = []
        self._kept: list[_Kept | _KeptDict] = []
        self._empty: list[Any] = []  # most containers of a module are: of hooks
        self._seen = {id(module) for module in self.modules}
        for module in self.modules:
            self._attributes(module.__dict__, _DEPTH)

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
                self.hanging.append((attributes, name, value))
            elif name in ("_parameters", "_buffers"):
                self._kept.append(_KeptDict(value, dict))
            else:
                self._look(value, depth)

    def _look(self, value: Any, depth: int) -> None:
        """Keep what an object holds, if it can hold anything."""
        kind = type(value)
        if kind in _INERT or id(value) in self._seen:
            return
        own = kind if kind in _CONTAINERS else next((base for base in _CONTAINERS if isinstance(value, base)), None)
        if own is kind and not value:
            self._empty.append(value)
        elif own is not None:
            self._kept.append(_CONTAINERS[own](value, own))
            if value and depth:
                self._seen.add(id(value))
                self._inside(value, depth - 1)
        elif isinstance(value, tuple) and depth:
            self._inside(value, depth - 1)
        if kind is not own and depth and not isinstance(value, (type, Tensor)):
            try:
                attributes = object.__getattribute__(value, "__dict__")
            except AttributeError:
                return
            if type(attributes) is dict:
                self._seen.add(id(value))
                self._attributes(attributes, depth - 1)

    def _inside(self, container: Any, depth: int) -> None:
        if isinstance(container, dict):
            for key, item in list(dict.items(container)):
                if isinstance(item, Tensor):
                    self.hanging.append((container, key, item))
                else:
                    self._look(item, depth)
            return
        replaceable = isinstance(container, list)
        for position, item in enumerate(list(container)):
            if not isinstance(item, Tensor):
                self._look(item, depth)
            elif replaceable:
                self.hanging.append((container, position, item))


@contextmanager
def preserved(snapshot: Snapshot) -> Iterator[None]:
    """Put everything that hangs on a model back afterwards, and the state of the generators of random numbers."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
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
