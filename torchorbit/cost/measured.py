"""Times, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torchorbit.comparing import evaluating
from torchorbit.errors import ArgumentError, LatencyMeasurementError

Statistic = Literal["median", "mean", "min"]

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "min": min,
}


@dataclass(frozen=True)
class MeasuredLatency:
    """Seconds of one forward, in evaluation mode and without gradients.

    The median of many forwards does not mind those that something else on the machine slowed down.

    Attributes:
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        warm_up: forwards that are not counted, before those that are.
        repeats: forwards that are.
        threads: so many of torch's threads on the CPU; None leaves their number as it is.
        statistic: what is made of the times: ``"median"``, ``"mean"`` or ``"min"``.
        device: where to run; model and inputs are moved there, and the model back. None runs the model where its
            parameters are, and moves only the inputs.

    Raises:
        ArgumentError: a number or ``statistic`` is out of range.
    """

    example_inputs: Any
    warm_up: int = 5
    repeats: int = 30
    threads: int | None = 1
    statistic: Statistic = "median"
    device: str | torch.device | None = None

    name: ClassVar[str] = "seconds"

    def __post_init__(self) -> None:
        check_options(self.warm_up, self.repeats, self.threads, self.statistic)

    def __call__(self, model: nn.Module, /) -> float:
        """Measure a model.

        Raises:
            LatencyMeasurementError: it fails; or it is on the meta device.
        """
        return self.in_turns(model)[0]

    def in_turns(self, *models: nn.Module) -> list[float]:
        """Measure several models, a forward of each in turns, so that what disturbs one disturbs all.

        Raises:
            LatencyMeasurementError: one of them fails; or is on the meta device.
        """
        with evaluating(*models), torch.inference_mode(), limited_threads(self.threads):
            return self._in_turns(models)

    def _in_turns(self, models: Sequence[nn.Module]) -> list[float]:
        homes = [_device_of(model) for model in models]
        devices = [home if self.device is None else torch.device(self.device) for home in homes]
        if any(device.type == "meta" for device in devices):
            raise LatencyMeasurementError("the model is on the meta device, where nothing is computed: give it weights")
        try:
            calls = []
            for model, device in zip(models, devices, strict=True):
                args, kwargs = arguments(self.example_inputs, device)
                if self.device is not None:
                    model.to(device)
                calls.append(_forward(model, args, kwargs))
            synchronize = _synchronizer(devices)
            taken = timed(calls, warm_up=self.warm_up, repeats=self.repeats, synchronize=synchronize)
        except Exception as error:
            raise LatencyMeasurementError(f"the model fails on example_inputs: {error}") from error
        finally:
            for model, home in zip(models, homes, strict=True):
                if self.device is not None:
                    model.to(home)
        return [STATISTICS[self.statistic](times) for times in taken]


def timed(
    functions: Sequence[Callable[[], Any]],
    *,
    warm_up: int = 5,
    repeats: int = 30,
    synchronize: Callable[[], None] | None = None,
) -> list[list[float]]:
    """Seconds of calls of functions, taken in turns.

    Args:
        functions: what to call.
        warm_up: calls of each that are not counted.
        repeats: calls of each that are.
        synchronize: waits for a device to be done.

    Returns:
        For each function the times of its calls.
    """
    times: list[list[float]] = [[] for _ in functions]
    wait = synchronize or _nothing
    for turn in range(warm_up + repeats):
        for function, taken in zip(functions, times, strict=True):
            wait()
            started = time.perf_counter()
            function()
            wait()
            if turn >= warm_up:
                taken.append(time.perf_counter() - started)
    return times


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads on the CPU, and afterwards as many as before; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def arguments(example_inputs: Any, device: torch.device | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from a tensor, a tuple or list, or a dict."""
    if device is not None:
        example_inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), example_inputs)
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def check_options(warm_up: int, repeats: int, threads: int | None, statistic: str) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ArgumentError: one is.
    """
    for name, value, least in (("warm_up", warm_up, 0), ("repeats", repeats, 1), ("threads", threads, 1)):
        if value is None and name == "threads":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name}={value!r}, expected a whole number from {least} on")
    if statistic not in STATISTICS:
        raise ArgumentError(f"statistic={statistic!r}, expected one of {', '.join(STATISTICS)}")


def _device_of(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: model(*args, **kwargs)


def _nothing() -> None:
    pass


def _synchronizer(devices: Sequence[torch.device]) -> Callable[[], None] | None:
    on_gpu = {device for device in devices if device.type == "cuda"}
    if not on_gpu:
        return None

    def synchronize() -> None:
        for device in on_gpu:
            torch.cuda.synchronize(device)

    return synchronize
