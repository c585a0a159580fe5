"""The lowest scores anywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from torchorbit.errors import ArgumentError, ArgumentTypeError, TargetError
from torchorbit.pruning.scores import Normalization
from torchorbit.pruning.selectors.base import Task, WidthSelector
from torchorbit.pruning.selectors.steps import cost_of, filled, improved


@dataclass(frozen=True)
class Global(WidthSelector):
    """Removes the units of the lowest scores, wherever they are.

    By number of units (ENOT's ``GlobalPruningLabelSelectorByChannels``), or until a target is met
    (``GlobalLatencyPruningLabelSelector``). Where a constraint allows only some widths, all units between two of them
    go together, and count as their mean score.

    For a target, as few units go as meet it. Then those of them that fit come back, the highest scores first; where the
    target is still missed by more than 1 %, some orbits take more steps, and others fewer, to come closer.

    Attributes:
        n_channels_or_ratio: how many units go; below 1 which share of all units. None removes them until the target is
            met. Units that go together go where as many are still wanted.
        normalization: how scores of different orbits are made comparable (`Scores.normalized`); None leaves them. By
            default scores that are changes of the loss are left, and others divided by the mean of their orbit.
        per_cost: divide a unit's score by what the model would cost less without it, as a share of its cost, so that
            units that cost much go sooner. Needs a target, which says by what measure.
        selector_cb: called for every model that is tried, with its cost and the limit; when it returns True the search
            stops with the best so far (ENOT's early stop), or, where none met the target, with the one just tried.

    Raises:
        ArgumentError: ``n_channels_or_ratio`` is out of range, or a normalization unknown.
        ArgumentTypeError: ``n_channels_or_ratio`` is no number.
    """

    n_channels_or_ratio: float | None = None
    normalization: Normalization | None = "auto"
    per_cost: bool = False
    selector_cb: Callable[[float, float], bool] | None = None

    name: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        wanted = self.n_channels_or_ratio
        if wanted is None:
            return
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float, np.integer)):
            raise ArgumentTypeError(
                f"n_channels_or_ratio={wanted!r}, expected a number of units, or a share of them below 1"
            )
        if not wanted >= 0 or (wanted >= 1 and wanted != int(wanted)):
            raise ArgumentError(f"n_channels_or_ratio={wanted}, expected a whole number of units, or a share below 1")

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        """It takes a target where it has no number of units."""
        return self.n_channels_or_ratio is None or self.per_cost

    @property
    def adds_scores(self) -> bool:  # type: ignore[override]
        """It does where it divides them by costs."""
        return self.per_cost and self.normalization == "auto"

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""
        blocks = _blocks(task, self.normalization, self.per_cost)
        if self.n_channels_or_ratio is not None:
            return _without_number(task, blocks, self.n_channels_or_ratio)
        return self._widths_for(task, blocks)

    def _widths_for(self, task: Task, blocks: list[tuple[int, int]]) -> list[int]:
        if task.limit >= task.cost(task.full_widths):
            return list(task.full_widths)
        low, high = 0, len(blocks)  # so many blocks are too few, and enough
        while high - low > 1:
            middle = (low + high) // 2
            widths = _without(task, blocks[:middle])
            cost = cost_of(task, widths)
            if cost <= task.limit:
                high = middle
            else:
                low = middle
            if self.selector_cb is not None and self.selector_cb(cost, task.limit):
                return _without(task, blocks[: middle if high == len(blocks) else high])
        before = _widths_before(task, blocks)
        raises = [(blocks[place][0], before[place]) for place in reversed(range(high))]
        return improved(task, filled(task, _without(task, blocks[:high]), raises))


def _blocks(task: Task, normalization: Normalization | None, per_cost: bool) -> list[tuple[int, int]]:
    """Units that go together, the lowest scores first: the orbit, and its width when they are gone."""
    scores = task.scores.normalized(normalization)
    found: list[tuple[float, int, int]] = []
    for index, orbit in enumerate(task.orbits):
        ascending = scores[orbit][task.order[orbit]]
        allowed = task.allowed[orbit][::-1]
        if per_cost:
            ascending = ascending / _unit_cost(task, index)
        highest = -math.inf  # a mean that is rounded must not put a block before an earlier one of equal scores
        for wider, width in itertools.pairwise(allowed.tolist()):
            highest = max(highest, float(ascending[orbit.width - wider : orbit.width - width].mean()))
            found.append((highest, index, width))
    found.sort(key=lambda block: block[0])
    return [(index, width) for _, index, width in found]


def _unit_cost(task: Task, index: int) -> float:
    """What a unit of an orbit costs, as a share of the model's cost; a tiny share where it costs nothing."""
    orbit = task.orbits[index]
    least = int(task.allowed[orbit][0])
    if least == orbit.width:
        return 1.0
    saved = (
        -float(task.costs_along(task.full_widths, index, np.array([least]))[0])
        / (orbit.width - least)
        / task.cost(task.full_widths)
    )
    return max(saved, 1e-12) if np.isfinite(saved) else 1e-12


def _widths_before(task: Task, blocks: list[tuple[int, int]]) -> list[int]:
    """For every block, how wide its orbit is before it goes."""
    present, found = list(task.full_widths), []
    for index, width in blocks:
        found.append(present[index])
        present[index] = width
    return found


def _without(task: Task, blocks: list[tuple[int, int]]) -> list[int]:
    widths = list(task.full_widths)
    for index, width in blocks:
        widths[index] = width
    return widths


def _without_number(task: Task, blocks: list[tuple[int, int]], wanted: float) -> list[int]:
    """Widths without so many units, or as many as can go together without going past that."""
    units = sum(task.full_widths)
    number = int(wanted) if wanted >= 1 else round(wanted * units)
    possible = units - sum(task.min_widths)
    if number > possible:
        raise TargetError(
            f"n_channels_or_ratio={wanted:g} asks for {number} of {units} units to go, and {possible} can; ask for "
            "fewer, or allow lesser widths",
            units - possible,
        )
    widths = list(task.full_widths)
    closed: set[int] = set()
    for index, width in blocks:
        if index in closed:
            continue
        if widths[index] - width <= number:
            number -= widths[index] - width
            widths[index] = width
        else:
            closed.add(index)
    return widths
