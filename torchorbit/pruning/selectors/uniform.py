"""The same share of every orbit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from torchorbit.errors import ArgumentError
from torchorbit.pruning.selectors.base import Task, WidthSelector
from torchorbit.pruning.selectors.steps import filled, fits, improved

_STEPS = 40  # of the search for a ratio; 2^-40 is far below one channel
_MEASURED_STEPS = 12  # of it where every step builds and measures a model


@dataclass(frozen=True)
class Uniform(WidthSelector):
    """Removes the same share of every orbit (ENOT's equal strategy, ``UniformPruningLabelSelector``).

    Attributes:
        ratio: the share of the units of every orbit to remove, from 0 up to but not including 1; None finds the least
            one with which the target is met. Then orbits take a step more, those that have lost most first, as far as
            the target allows; where it is still missed by more than 1 %, some orbits take more steps, and others
            fewer, to come closer.

    Raises:
        ArgumentError: ``ratio`` is out of range.
    """

    ratio: float | None = None

    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ArgumentError(f"ratio={self.ratio}, expected a share from 0 up to but not including 1")

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        """It takes a target where it has no ratio."""
        return self.ratio is None

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""
        if self.ratio is not None:
            return _shares(task, self.ratio)
        return _widths_for(task)


def closest_width(task: Task, index: int, ratio: float) -> int:
    """The width that an orbit may have which is the closest to that without a share of its units."""
    orbit = task.orbits[index]
    allowed = task.allowed[orbit]
    return int(allowed[np.argmin(np.abs(allowed - orbit.width * (1 - ratio)))]) if ratio else orbit.width


def _shares(task: Task, ratio: float) -> list[int]:
    return [closest_width(task, index, ratio) for index in range(len(task.orbits))]


def _widths_for(task: Task) -> list[int]:
    """Widths with which the target is met, the same share of every orbit as far as can be."""
    if task.limit >= task.cost(task.full_widths):
        return list(task.full_widths)
    low, high = 0.0, 1.0
    most, least = list(task.full_widths), list(task.min_widths)
    for _ in range(_MEASURED_STEPS if task.measured else _STEPS):
        middle = (low + high) / 2
        widths = _shares(task, middle)
        if fits(task, widths):
            high, least = middle, widths
        else:
            low, most = middle, widths
        if sum(a != b for a, b in zip(most, least, strict=True)) <= 1:
            break
    return improved(task, filled(task, least, _raises(task, least)))


def _raises(task: Task, widths: list[int]) -> list[tuple[int, int]]:
    """One step more for every orbit, those first that have lost most."""
    raises = []
    for index, orbit in enumerate(task.orbits):
        wider = task.allowed[orbit][task.allowed[orbit] > widths[index]]
        if len(wider):
            raises.append((index, int(wider[0])))
    return sorted(raises, key=lambda step: step[1] / task.orbits[step[0]].width)
