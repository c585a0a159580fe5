"""What stands around a model or a function and is no part of it: parallel and compiled wrappers, caches."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from torchorbit.errors import ConversionError

_LruCache: type = type(functools.lru_cache(lambda: None))
# How far, and among how many objects, tensors are looked for in a cache.
_DEPTH = 5
_MOST = 200
# Name of a package -> number of modules loaded when it was looked through, and the caches found in it.
_known: dict[str, tuple[int, list[Any]]] = {}


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of `DataParallel`, `DistributedDataParallel` and what ``torch.compile`` returns."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def refuse_scripted(module: nn.Module, path: str) -> None:
    """Refuse a module whose forward is no Python, or a program that was exported.

    Args:
        module: the module.
        path: where it is in the model.

    Raises:
        ConversionError: it is scripted or traced, or ``torch.export`` made it.
    """
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        reason = "it is scripted or traced, and does not run in Python; give the module it was made from"
        raise ConversionError("run", path, kind, reason)
    if isinstance(module, torch.fx.GraphModule) and any(map(_is_of_a_kernel, module.graph.nodes)):
        reason = "torch.export made it; convert the module from which it was exported"
        raise ConversionError("run", path, kind, reason)


def _is_of_a_kernel(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


@contextmanager
def without_caches(packages: Collection[str], reached: Collection[Any]) -> Iterator[None]:
    """Empty what ``functools.lru_cache`` keeps of tensors, before and after a model is recorded.

    Otherwise a table that was made on meta would be found there by the model's next run, and one that was made earlier
    would be taken for a constant.

    Args:
        packages: all caches in the modules of these.
        reached: caches that may be elsewhere.
    """
    caches = [*reached, *(cache for package in packages for cache in _caches(package))]
    _clear(caches)
    try:
        yield
    finally:
        _clear(caches)


def _clear(caches: Sequence[Any]) -> None:
    for cache in caches:
        if cache.cache_info().currsize and _holds_tensors(cache):
            cache.cache_clear()


def _holds_tensors(cache: Any) -> bool:
    """Whether one of the first few objects that a cache refers to is a tensor, or holds one."""
    level: list[Any] = [cache]
    for _ in range(_DEPTH):
        # Not into functions: all that their modules hold is behind them.
        level = [found for found in gc.get_referents(*level) if not callable(found)][:_MOST]
        if any(issubclass(type(found), Tensor) for found in level):
            return True
    return False


def packages_of(model: nn.Module) -> set[str]:
    """The packages in which the classes of a model's modules are, but for torch and this one."""
    names = {cls.__module__.partition(".")[0] for cls in {type(module) for module in model.modules()}}
    return names - {"torch", "torchorbit"}


def _caches(package: str) -> list[Any]:
    """Cached functions in the loaded modules of a package, and cached methods of its classes."""
    count, found = _known.get(package, (0, []))
    if count != len(sys.modules) or package == "__main__":
        found = list({id(cache): cache for module in _modules(package) for cache in _caches_in(module)}.values())
        _known[package] = len(sys.modules), found
    return found


def _modules(package: str) -> list[ModuleType]:
    prefix = f"{package}."
    loaded = list(sys.modules.items())
    return [module for name, module in loaded if name == package or name.startswith(prefix) if module is not None]


def _caches_in(module: ModuleType) -> Iterator[Any]:
    # Types alone are looked at: an object that stands for a missing package raises whatever it is asked.
    for value in list(vars(module).values()):
        kind = type(value)
        if kind is _LruCache:
            yield value
        elif issubclass(kind, type) and vars(value).get("__module__") == module.__name__:
            members = [
                member.__func__ if type(member) in (staticmethod, classmethod) else member
                for member in list(vars(value).values())
            ]
            yield from (member for member in members if type(member) is _LruCache)
