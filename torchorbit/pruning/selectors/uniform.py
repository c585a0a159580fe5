"""The same share of every orbit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from torchorbit.pruning.selectors.base import Task, WidthSelector

_STEPS = 40  # of the search for a ratio; 2^-40 is far below one channel


@dataclass(frozen=True)
class Uniform(WidthSelector):
    """Removes the same share of every orbit (ENOT's equal strategy).

    Attributes:
        ratio: the share of the units of every orbit to remove, from 0 up to but not including 1; None finds the least
            one with which the target is met, and lets as many orbits as possible keep a step more.

    Raises:
        ValueError: ``ratio`` is out of range.
    """

    ratio: float | None = None

    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}, expected a share from 0 up to but not including 1")

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        """It takes a target where it has no ratio."""
        return self.ratio is None

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""
        if self.ratio is not None:
            return _shares(task, self.ratio)
        return _widths_for(task)


def _shares(task: Task, ratio: float) -> list[int]:
    """How many units of every orbit are kept: of the widths that it may have the one closest to its share."""
    if not ratio:
        return list(task.most)
    found = []
    for orbit in task.orbits:
        allowed = task.allowed[orbit]
        kept = orbit.width * (1 - ratio)
        found.append(int(allowed[np.argmin(np.abs(allowed - kept))]))
    return found


def _widths_for(task: Task) -> list[int]:
    """Widths with which the target is met, the same share of every orbit as far as can be."""
    limit = task.limit
    if task.cost(task.most) <= limit:
        return list(task.most)
    low, high = 0.0, 1.0
    most, least = list(task.most), list(task.least)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        widths = _shares(task, middle)
        if task.cost(widths) > limit:
            low, most = middle, widths
        else:
            high, least = middle, widths
        if sum(a != b for a, b in zip(most, least, strict=True)) <= 1:
            break
    # Between the two shares some orbits differ by a step: as many of them as fit keep the greater width.
    widths = list(least)
    for n in sorted(range(len(widths)), key=lambda n: task.orbits[n].width, reverse=True):
        if most[n] != least[n]:
            widths[n] = most[n]
            if task.cost(widths) > limit:
                widths[n] = least[n]
    return widths
