"""Interrupted wherever it is, `convert` leaves torch and the model as they were; threads wait for each other."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import harness.timm_import  # noqa: F401  (before timm)

import pytest  # isort: skip
import timm  # isort: skip
import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

import torchorbit  # isort: skip
from torchorbit import interrupts  # isort: skip
from torchorbit.conversion import patching  # isort: skip
from torchorbit.interrupts import InterruptsHeldBack, interruptible  # isort: skip

CONVERSION = str(Path(patching.__file__).parent)
# What installs and takes away what is there for the time of a conversion.
FILES = tuple(
    str(Path(CONVERSION, name)) for name in ("patching.py", "preserving.py", "settings.py", "recorder.py")
) + (
    str(Path(CONVERSION).parent / "interrupts.py"),
    str(Path(CONVERSION).parent / "collecting.py"),
    str(Path(CONVERSION, "converting.py")),
    str(Path(CONVERSION, "wrappers.py")),
)


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """It does nothing where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Counting(nn.Module):
    """Moves a buffer, keeps a tensor in a plain attribute, and another one in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.scale = torch.ones(1)
        self.cache: dict[int, Tensor] = {}
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.cache.setdefault(x.shape[-1], torch.arange(4.0).view(1, 4, 1, 1))
        return self.norm(self.conv(x)) * self.scale + self.cache[x.shape[-1]]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "counting": Counting,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()),
    "test_vit": lambda: timm.create_model("test_vit"),
}


def state_of(model: nn.Module) -> dict[str, Any]:
    """What there is to see of a model and of torch."""
    modules = {path: dict(vars(module)) for path, module in model.named_modules()}
    return {
        "tensors": {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()},
        "devices": {tensor.device.type for tensor in model.state_dict().values()},
        "values": [tensor.clone() for tensor in model.state_dict().values()],
        "attributes": {path: {name: id(value) for name, value in values.items()} for path, values in modules.items()},
        "cache": dict(getattr(model, "cache", {})),
        "torch": (
            nn.Module.__call__, "training" in vars(nn.Module), vars(torch.autograd.Function)["apply"],
            torch.compiler.is_compiling, torch.compiler.is_exporting, torch.backends.mha.get_fastpath_enabled(),
            torch.is_grad_enabled(), torch.get_default_dtype(), torch._C._len_torch_function_stack(),
            torch._C._is_torch_function_enabled(),
        ),
        "held back": interrupts._current,
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
    }  # fmt: skip


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Do something before a line is run of what installs or takes away things; counts these lines."""
    count = [0]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            count[0] += 1
            if count[0] == number:
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", MODELS)
def test_an_interrupt_at_any_step_leaves_model_and_torch_as_they_were(name: str) -> None:
    model = MODELS[name]().eval()
    x = torch.randn(2, 3, 160, 160) if name == "test_vit" else torch.randn(2, 3, 8, 8)
    before = state_of(model)
    expected = torchorbit.convert(model, x)  # which has to find out more than those after it
    with at_step(0, interrupt) as steps:
        torchorbit.convert(model, x)
    total = steps[0]
    # All first and last steps, in which things are put in their places and back, and a sample of those between.
    numbers = sorted({*range(1, 60), *range(60, total, max(total // 120, 1)), *range(total - 60, total)})

    interrupted = 0
    for number in numbers:
        try:
            with at_step(number, interrupt):
                torchorbit.convert(model, x)
        except KeyboardInterrupt:
            interrupted += 1
        after = state_of(model)
        torch.testing.assert_close(after.pop("values"), before["values"], rtol=0, atol=0)
        assert after == {key: value for key, value in before.items() if key != "values"}, f"step {number} of {total}"

    assert interrupted >= len(numbers) - 5  # those that came when all was done already
    assert torchorbit.convert(model, x).code == expected.code


def test_signals_that_come_meanwhile_are_handled_afterwards() -> None:
    seen: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)}
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append("usr1"))

    def meanwhile() -> None:
        with InterruptsHeldBack():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGINT)
            seen.append("inside")
            with InterruptsHeldBack():
                signal.raise_signal(signal.SIGUSR1)
            seen.append("still inside")

    def let_in() -> None:
        with InterruptsHeldBack(), interruptible():
            signal.raise_signal(signal.SIGINT)
            seen.append("not reached")

    try:
        with pytest.raises(KeyboardInterrupt):
            meanwhile()
        assert seen == ["inside", "still inside", "usr1"]
        with pytest.raises(KeyboardInterrupt):
            let_in()
        assert "not reached" not in seen
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])


def test_eight_threads_convert_one_model() -> None:
    model = Counting().eval()
    x = torch.randn(2, 3, 8, 8)
    before = [(name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()]

    with ThreadPoolExecutor(8) as pool:
        graphs = list(pool.map(lambda _: torchorbit.convert(model, x), range(8)))

    assert [(name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()] == before
    with torch.no_grad():
        for graph in graphs:
            torch.testing.assert_close(graph(x), model(x))


def test_a_thread_that_calls_a_model_waits_for_its_conversion() -> None:
    recording = threading.Event()

    class Slow(Counting):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta:
                recording.set()
                time.sleep(0.2)
            return super().forward(x)

    model = Slow().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), ThreadPoolExecutor(1) as pool:
        expected = model(x)
        pool.submit(int).result()  # its thread is there
        converting = pool.submit(torchorbit.convert, model, x)
        recording.wait()
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(converting.result()(x), expected)


def test_a_forward_that_starts_threads_is_refused() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(2) as pool:
                return sum(pool.map(lambda branch: branch(x), self.branches))

    with pytest.raises(torchorbit.ConversionError, match="called in one thread while it is converted in another"):
        torchorbit.convert(Parallel(), torch.randn(1, 4))
