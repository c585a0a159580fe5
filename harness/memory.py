"""How much memory a model will need, and how much a process has used."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MEBIBYTE = 2**20

_PROCESS_BYTES = 700 * _MEBIBYTE
"""What a worker holds besides the model: Python with torch and timm imported, scratch space."""

_ACTIVATION_MARGIN = 1.5
"""Kernels allocate while they compute (unfolded images, reordered activations), which a run without data hides."""


def needed_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Estimate the memory of a process that holds a model with real weights and runs it.

    Args:
        model: The model on the `meta` device.
        inputs: What it will be run on, on the `meta` device.

    Returns:
        Weights and buffers, the activations that are alive at the same time, and what any worker needs, in bytes.
    """
    tensors = [*model.parameters(), *model.buffers()]
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    with torch.no_grad(), _LiveStorages(besides=tensors) as live:
        model(inputs)
    # The largest one twice: kernels may lay a weight out anew while they use it.
    weights = sum(sizes) + max(sizes, default=0)
    return _PROCESS_BYTES + weights + int(_ACTIVATION_MARGIN * live.peak_bytes)


class _LiveStorages(TorchDispatchMode):
    """Adds up the tensors that are alive while a model runs on the `meta` device, and remembers the largest sum."""

    def __init__(self, besides: Iterable[Tensor]) -> None:
        super().__init__()
        # Views of a weight come out of operators too, and share its storage.
        self._ignored = {tensor.untyped_storage()._cdata for tensor in besides}
        self._bytes: dict[int, int] = {}
        self._now = 0
        self.peak_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes or key in self._ignored:
            return
        self._bytes[key] = storage.nbytes()
        self._now += self._bytes[key]
        self.peak_bytes = max(self.peak_bytes, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._bytes.pop(key)


def reset_peak_rss() -> None:
    """Let `peak_rss_mb` count from now on, on systems that can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB.

    On Linux since the last `reset_peak_rss`, on Windows since the process started; elsewhere what it holds now.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / _MEBIBYTE
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kibibytes) / 1024


def release_memory() -> None:
    """Collect what reference counting leaves over, and give freed memory back to the system where that can be done."""
    gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    # None with C libraries other than glibc.
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
