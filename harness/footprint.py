"""What a model can change in the process that it runs in, and so for the models that run there after it."""

from __future__ import annotations

import builtins
import functools
import gc
import logging
import math
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import nn

_SETTINGS: dict[str, Callable[[], Any]] = {
    "the default dtype": torch.get_default_dtype,
    "the default device": torch.get_default_device,
    "whether gradients are recorded": torch.is_grad_enabled,
    "the number of threads": torch.get_num_threads,
    "whether algorithms are deterministic": torch.are_deterministic_algorithms_enabled,
    "whether autocast is on": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    "the precision of matrix products": torch.get_float32_matmul_precision,
    "whether oneDNN is used": lambda: torch.backends.mkldnn.enabled,
    "modes of torch": lambda: (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_inference_mode_enabled(),
    ),
    "hooks of all modules": lambda: {
        name: tuple(hooks)
        for name, hooks in vars(nn.modules.module).items()
        if name.startswith("_global_") and isinstance(hooks, dict)
    },
    "the current folder": lambda: Path().stat()[1:3] if Path().exists() else None,
    "the environment": lambda: dict(os.environ),
    "where modules are found": lambda: (tuple(sys.path), tuple(sys.meta_path), tuple(sys.path_hooks)),
    "what is printed where": lambda: (sys.stdout, sys.stderr, sys.stdin, os.fstat(2)[1:3]),
    "what is done on an exception": lambda: (sys.excepthook, threading.excepthook),
    "how signals are handled": lambda: {number: signal.getsignal(number) for number in signal.valid_signals()},
    "limits of the process": lambda: (
        {name: resource.getrlimit(number) for name, number in vars(resource).items() if name.startswith("RLIMIT_")},
        sys.getrecursionlimit(),
        signal.getitimer(signal.ITIMER_REAL),
    ),
    "traces": lambda: (sys.gettrace(), sys.getprofile()),
    "the collection of garbage": gc.isenabled,
    "logging": lambda: (logging.root.level, tuple(logging.root.handlers), logging.root.manager.disable),
}
"""What is to be as before, and how it is found out. None of it takes long."""

_STANDARD = (builtins, math, os, random, time)
_TORCH = (torch, nn, nn.functional, nn.init, nn.modules.module, torch.linalg)
_WATCHED_PACKAGES = ("timm.layers.", "torchorbit", "harness.", "zoo.")


class Footprint:
    """How a process is before a model runs in it."""

    def __init__(self) -> None:
        self._settings = {name: find() for name, find in _SETTINGS.items()}
        self._threads = set(threading.enumerate())
        self._attributes = {owner: dict(vars(owner)) for owner in _watched()}

    def changes(self) -> list[str]:
        """What is no longer as it was, in words.

        Functions and classes of torch, timm and this project count as changed where another one stands in their place;
        random state does not count, as every job begins with its own.
        """
        found = [name for name, find in _SETTINGS.items() if find() != self._settings[name]]
        if set(threading.enumerate()) - self._threads:
            found.append("threads, which still run")
        if _has_children():
            found.append("processes, which still run")
        found += [
            f"{getattr(owner, '__module__', '')}{'.' if isinstance(owner, type) else ''}{owner.__name__}.{name}"
            for owner, before in self._attributes.items()
            for name in _replaced(owner, before)
        ]
        return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _watched() -> list[ModuleType | type]:
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(_WATCHED_PACKAGES) and m is not None]
    modules += [*_STANDARD, *_TORCH]
    ours = {c for m in modules if m.__name__.startswith(_WATCHED_PACKAGES) for c in vars(m).values() if type(c) is type}
    return [*modules, *_torch_classes(), *(each for each in ours if each.__module__.startswith(_WATCHED_PACKAGES))]


@functools.cache
def _torch_classes() -> tuple[type, ...]:
    layers = [each for each in vars(nn).values() if isinstance(each, type) and issubclass(each, nn.Module)]
    return (torch.Tensor, nn.Parameter, torch.Generator, numpy.ndarray, *layers)


def _replaced(owner: ModuleType | type, before: dict[str, Any]) -> list[str]:
    """Functions, classes and settings of a module or class that others took the place of; of a class, new ones, too."""
    now = vars(owner)
    found = []
    for name, value in before.items():
        another = now.get(name)
        if another is value:
            continue
        if callable(value) or (isinstance(value, (bool, int, float, str)) and value != another):
            found.append(name)
    if isinstance(owner, type):
        found += [name for name, value in now.items() if name not in before and callable(value)]
    return found
