"""The settings of torch that a model's code may change, kept so that they are put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_DEVICES = ("cpu", "cuda")


def _sdp(kind: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    backends = torch.backends.cuda
    return getattr(backends, f"{kind}_sdp_enabled"), getattr(backends, f"enable_{kind}_sdp")


def _flag(holder: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return lambda: getattr(holder, name), lambda value: setattr(holder, name, value)


def _autocast(device: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    def put_back(state: Any) -> None:
        torch.set_autocast_enabled(device, state[0])
        torch.set_autocast_dtype(device, state[1])

    return lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), put_back


def _set_deterministic(state: Any) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _set_anomaly(state: Any) -> None:
    torch.autograd.set_detect_anomaly(*state)


def _set_device_context(state: dict[str, Any]) -> None:
    held = vars(torch._GLOBAL_DEVICE_CONTEXT)
    held.clear()
    held.update(state)


def _set_function_modes(modes: Any) -> None:
    """Take modes that were left on the stack off it, and put on it what was taken."""
    now = torch.overrides._get_current_function_mode_stack()
    if len(now) == len(modes) and all(a is b for a, b in zip(now, modes, strict=True)):
        return
    for _ in now:
        torch.overrides._pop_mode()
    for mode in modes:
        torch.overrides._push_mode(mode)


# What gives a setting, and what sets it.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (lambda: vars(torch._GLOBAL_DEVICE_CONTEXT).copy(), _set_device_context),
    (lambda: list(torch.overrides._get_current_function_mode_stack()), _set_function_modes),
    # Whether modes see calls of functions: an interrupt may leave a context that hides them without its end.
    (torch._C._get_torch_function_state, torch._C._set_torch_function_state),  # type: ignore[attr-defined]
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), _set_anomaly),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    *map(_autocast, _DEVICES),
    *map(_sdp, ("flash", "mem_efficient", "math", "cudnn")),
    *[_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")],
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
)


@contextmanager
def kept_settings() -> Iterator[None]:
    """Set all settings as they were when the context ends."""
    before = [get() for get, _ in _SETTINGS]
    try:
        yield
    finally:
        for (get, put), value in zip(_SETTINGS, before, strict=True):
            if get() != value:
                put(value)
