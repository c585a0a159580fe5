"""Models registered with timm that go wrong, each in its own way; worker processes import this to learn the names."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchorbit  # noqa: F401 - before timm

import timm  # isort: skip
from timm.models import register_model  # isort: skip


class _Odd(nn.Module):
    """A small model with the configuration that timm's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16)}
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class _Constant(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(-self.fc(x.flatten(1)).square())


class _NotFinite(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).abs().neg().log()


class _Unrunnable(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this forward\nnever runs")


class _Structured(_Odd):
    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.fc(x.flatten(1))
        return {"logits": logits, "parts": (logits[:, :5], [logits[:, 5:]])}


@register_model
def odd_unbuildable(**kwargs: Any) -> nn.Module:
    raise ValueError("this constructor\nalways fails")


@register_model
def odd_unrunnable(**kwargs: Any) -> nn.Module:
    return _Unrunnable()


@register_model
def odd_constant(**kwargs: Any) -> nn.Module:
    return _Constant()


@register_model
def odd_not_finite(**kwargs: Any) -> nn.Module:
    return _NotFinite()


@register_model
def odd_structured(**kwargs: Any) -> nn.Module:
    return _Structured()


@register_model
def odd_registers(**kwargs: Any) -> nn.Module:
    """Images of any size, and tokens of its own among theirs, which can be removed."""
    return timm.create_model("naflexvit_base_patch16_radio_v3", embed_dim=32, depth=1, num_heads=2, **kwargs)


@register_model
def odd_deadly(**kwargs: Any) -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@register_model
def odd_segfault(**kwargs: Any) -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


@register_model
def odd_exit(**kwargs: Any) -> nn.Module:
    os._exit(7)


@register_model
def odd_endless(**kwargs: Any) -> nn.Module:
    while True:
        time.sleep(1)


class _Endless(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3600)
        return x


@register_model
def odd_endless_forward(**kwargs: Any) -> nn.Module:
    return _Endless()


@register_model
def odd_greedy(**kwargs: Any) -> nn.Module:
    held = []
    while True:
        held.append(torch.ones(2**24, device="cpu"))
        time.sleep(0.01)


@register_model
def odd_talkative(**kwargs: Any) -> nn.Module:
    """Prints where messages go, and what is no message."""
    print("hello" * 100, flush=True)  # noqa: T201
    os.write(1, b"\0" * 64)
    # More than a pipe holds that nobody reads.
    os.write(2, b"hello again\n" * 20_000)
    return _Odd()


@register_model
def odd_after_another(**kwargs: Any) -> nn.Module:
    """Dies in a process that had another model before, as of something that one left behind."""
    if _seen:
        os._exit(9)
    return _Odd()


@register_model
def odd_first(**kwargs: Any) -> nn.Module:
    _seen.append(True)
    return _Odd()


_seen: list[bool] = []


@register_model
def odd_breaks_its_worker(**kwargs: Any) -> nn.Module:
    """Kills the worker that watches it, once: the file that the environment names says that it has."""
    done = Path(os.environ["ODD_FILE"])
    if not done.exists():
        done.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return _Odd()


@register_model
def odd_always_breaks_its_worker(**kwargs: Any) -> nn.Module:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("unreachable")


@register_model
def odd_slow(**kwargs: Any) -> nn.Module:
    time.sleep(4)
    return _Odd()


@register_model
def odd_other_slow(**kwargs: Any) -> nn.Module:
    time.sleep(4)
    return _Odd()


@register_model
def odd_indiscreet(**kwargs: Any) -> nn.Module:
    raise ValueError(f"no file {Path.home()}/weights.pth, token hf_abcdEFGH1234")


@register_model
def odd_leaky(**kwargs: Any) -> nn.Module:
    """Holds on to half a gigabyte."""
    _leaked.append(torch.ones(2**27, device="cpu"))
    return _Odd()


_leaked: list[Tensor] = []


class _Rendezvous(_Odd):
    """Large enough to have few beside it; writes down when it begins and ends, and waits a while for another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 2**16)
        if self.fc.weight.device.type == "cpu":
            self.note("begins")

    def note(self, what: str) -> None:
        with Path(os.environ["ODD_FILE"]).open("a") as file:
            file.write(f"{what}\n")

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:
            deadline = time.monotonic() + float(os.environ["ODD_SECONDS"])
            while time.monotonic() < deadline and Path(os.environ["ODD_FILE"]).read_text().count("begins") < 2:
                time.sleep(0.05)
            self.note("ends")
        return super().forward(x)


@register_model
def odd_rendezvous(**kwargs: Any) -> nn.Module:
    return _Rendezvous()


@register_model
def odd_other_rendezvous(**kwargs: Any) -> nn.Module:
    # Not the same as the other one, or its record would do.
    model = _Rendezvous()
    model.another = True
    return model


@register_model
def odd_twin(**kwargs: Any) -> nn.Module:
    return _Odd()


@register_model
def odd_other_twin(**kwargs: Any) -> nn.Module:
    return _Odd()


@register_model
def odd_fork(**kwargs: Any) -> nn.Module:
    """Comes back twice."""
    os.fork()
    return _Odd()


@register_model
def odd_parent(**kwargs: Any) -> nn.Module:
    """Leaves a process behind, in its group or not, whose number is in the file that the environment names."""
    children = [
        subprocess.Popen(["sleep", "600"], start_new_session=apart, close_fds=False).pid for apart in (False, True)
    ]
    with Path(os.environ["ODD_FILE"]).open("a") as file:
        file.write("".join(f"{child}\n" for child in children))
    return _Odd()


@register_model
def odd_parent_that_dies(**kwargs: Any) -> nn.Module:
    odd_parent()
    os._exit(5)


@register_model
def odd_garbler(**kwargs: Any) -> nn.Module:
    """Writes to every pipe that it finds."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, bytes(range(256)) * 16)
    return _Odd()


class _WithoutWordsError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def _raising(error: BaseException) -> Callable[..., nn.Module]:
    def odd(**kwargs: Any) -> nn.Module:
        raise error

    return odd


for _name, _error in {
    "odd_exit_politely": SystemExit(3),
    "odd_interrupt": KeyboardInterrupt(),
    "odd_base": BaseException("at the base"),
    "odd_without_words": _WithoutWordsError(),
    "odd_colourful": ValueError("\x1b[31mred\x1b[0m \u202eback"),
    "odd_verbose": ValueError("word " * 10**6),
}.items():
    _constructor = _raising(_error)
    _constructor.__name__ = _constructor.__qualname__ = _name
    globals()[_name] = register_model(_constructor)


@register_model
def odd_vandal(**kwargs: Any) -> nn.Module:
    """Changes all that it can for those after it."""
    model = _Odd()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    os.environ["TORCHORBIT_ODD"] = "1"
    os.chdir("/")
    signal.signal(signal.SIGUSR1, lambda *_: None)
    nn.functional.relu = nn.functional.gelu
    nn.Linear.forward = lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features)  # type: ignore[method-assign]
    nn.Module.extra = lambda self: None
    sys.setrecursionlimit(900)
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return model


@register_model
def odd_gambler(**kwargs: Any) -> nn.Module:
    """As wide as chance has it."""
    model = _Odd()
    model.fc = nn.Linear(3 * 16 * 16, random.randint(10, 10**6))
    return model
