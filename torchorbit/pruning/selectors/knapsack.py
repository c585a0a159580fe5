"""The highest total score under a limit, as a knapsack problem."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from torchorbit.errors import ArgumentError
from torchorbit.orbits.orbit import Orbit
from torchorbit.pruning.scores import Normalization
from torchorbit.pruning.selectors.base import Positions, Task, WidthSelector
from torchorbit.pruning.selectors.global_ import Global
from torchorbit.pruning.selectors.native import native_output_on_stderr
from torchorbit.pruning.selectors.steps import Worth, filled, fits, improved
from torchorbit.pruning.selectors.uniform import Uniform

_GAP = 1e-6  # to the best that there can be, at which the solver stops
_LARGE_GAP = 1e-3  # likewise where there are many variables: costs are a guess, and exchanges at true costs follow
_SMALL = 100
_OPTIONS = 64  # widths of an orbit among which the solver chooses
_ROUNDS = 8  # of steps and exchanges on every solution; the last one gets as many as it takes
_ENOUGH = 1e-3  # a gain of less than this share ends the search where latencies are measured
_PREDICTED_WIDTHS = 8  # of an orbit, at which a latency is predicted that is no sum of terms
_BISECTIONS = 12  # between widths that fit and widths that do not
_BATCH = 1 << 14


@dataclass(frozen=True)
class Knapsack(WidthSelector):
    """Keeps the units of the highest total score that fit into the target (ENOT's ``KnapsackPruningLabelSelector``).

    A unit's score is its value, and what the model would cost less without it is its weight. Weights depend on the
    widths of all other orbits. So the problem is solved again and again, each time with the weights at the best widths
    so far (the first are those of `Uniform`), and with widths that are not too far from them: what an orbit costs at
    each of its widths, the others as they are, is one binary variable of a mixed-integer program, of which an orbit
    chooses one; HiGHS solves it. A solution that really costs more than the target is drawn back towards the best
    widths until it fits, then improved by steps and exchanges at their true cost. It is kept where its total score is
    higher; else the next one has to stay closer. Where widths are so coarse that the best solution is farther below
    the target than the ``tolerance``, it gives up some score to come closer. Problems of up to ``exhaustive``
    combinations of widths are searched through instead.

    FLOPs, parameters and other sums are known exactly for every width. A latency that is predicted by other means is
    predicted at up to eight widths of an orbit; for one that is measured ``measurements`` models are built and measured
    for each orbit and iteration. Between these widths costs are interpolated. A search with measured latencies also
    ends when the total score grows by less than 0.1 %.

    Scores that are changes of the loss (``taylor``, ``fisher``) or of the outputs (``fisher_noise``) are what this is
    for. Others, divided by the mean of their orbit, say that all orbits are worth the same, and then the expensive ones
    go, whatever the model needs them for; `torchorbit.prune` refuses such criteria here, unless ``normalization`` is
    given.

    Scores below zero count as zero, so that such units go first, but come back where they fit: a target is a limit to
    be used. Where no score is above zero, all are raised by the least.

    Attributes:
        strict_order: within an orbit the units of the lowest scores go. False weighs each unit by its own cost. Units
            of an orbit nearly always cost the same, and then the lowest scores are the best choice anyway.
        max_iterations: how often the problem is solved at most.
        solver_time_limit: seconds for each solution; None for no limit.
        normalization: how scores of different orbits are made comparable (`Scores.normalized`); None leaves them. By
            default scores that are changes of the loss are left, and others divided by the mean of their orbit.
        tolerance: the share of the target below it within which the result is to be, where that is possible; 1 for
            whatever scores highest.
        exhaustive: up to so many combinations of widths all of them are compared, where the cost is a sum.
        measurements: how many models are measured for each orbit and iteration, where they have to be.
        verbose: show a progress bar with the total score and the cost.

    Raises:
        ArgumentError: a number is out of range.
    """

    strict_order: bool = True
    max_iterations: int = 15
    solver_time_limit: float | None = 60.0
    normalization: Normalization | None = "auto"
    tolerance: float = 0.02
    exhaustive: int = 1 << 17
    measurements: int = 2
    verbose: bool = field(default=False, compare=False)

    name: ClassVar[str] = "knapsack"

    def __post_init__(self) -> None:
        if self.max_iterations < 1 or self.measurements < 1:
            raise ArgumentError(
                f"max_iterations={self.max_iterations}, measurements={self.measurements}, expected at least 1 of each"
            )
        if self.solver_time_limit is not None and not self.solver_time_limit > 0:
            raise ArgumentError(f"solver_time_limit={self.solver_time_limit}, expected seconds, or None for no limit")
        if not 0 <= self.tolerance <= 1:
            raise ArgumentError(f"tolerance={self.tolerance}, expected a share of the target from 0 to 1")
        if self.exhaustive < 0:
            raise ArgumentError(f"exhaustive={self.exhaustive}, expected a number of combinations, 0 for none")

    @property
    def adds_scores(self) -> bool:  # type: ignore[override]
        """It does, unless it is told how to normalize them."""
        return self.normalization == "auto"

    def select(self, task: Task) -> dict[Orbit, Positions]:
        """Remove what is worth least."""
        task = self._own(task)
        return task.removed(self._widths(task))

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""
        return self._widths(self._own(task))

    def _own(self, task: Task) -> Task:
        """The task with this selector's order of units."""
        return task if self.strict_order else _by_cost(task)

    def _widths(self, task: Task) -> list[int]:
        if task.limit >= task.cost(task.full_widths):
            return list(task.full_widths)
        worth = _worth(task, self.normalization)
        if task.pricing is not None and math.prod(map(len, task.allowed.values())) <= self.exhaustive:
            return _best_of_all(task, worth, self.tolerance)
        return self._search(task, worth)

    def _search(self, task: Task, worth: Worth) -> list[int]:
        best = improved(task, list(Uniform().widths(task)), worth, rounds=_ROUNDS)
        radius = 1.0
        with tqdm(total=self.max_iterations, desc=self.name, disable=not self.verbose) as progress:
            for _ in range(self.max_iterations):
                before = _value(task, worth, best)
                solution = self._solution(task, worth, best, radius)
                progress.update()
                progress.set_postfix(score=f"{before:.5g}", cost=f"{task.cost(best):.5g}", limit=f"{task.limit:.5g}")
                if solution is None or solution == best:
                    break
                found = improved(task, _drawn_back(task, solution, best), worth, rounds=_ROUNDS)
                gain = _value(task, worth, found) - before
                if gain > 0:
                    best = found
                else:
                    radius /= 2
                if (task.measured and gain < _ENOUGH * before) or radius * max(task.full_widths) < 1:
                    break
        best = improved(task, filled(task, best, _raises(task, worth, best)), worth)
        if task.cost(best) >= (1 - self.tolerance) * task.limit:
            return best
        best = improved(task, best, close=self.tolerance)
        least = (1 - self.tolerance) * task.limit
        if task.cost(best) < least:
            # Where widths are coarse there may be no short way from here; others look for the target before the score.
            others: list[WidthSelector] = [Uniform(), Global(normalization=self.normalization)]
            choices = [list(other.widths(task)) for other in others]
            close = [widths for widths in choices if least <= task.cost(widths) <= task.limit]
            best = max(close, key=lambda widths: _value(task, worth, widths), default=best)
        return improved(task, best, worth, floor=min(task.cost(best), least))

    def _solution(self, task: Task, worth: Worth, widths: list[int], radius: float) -> list[int] | None:
        """The best widths by what they cost near others; None where the solver found none in its time."""
        options, costs, values = [], [], []
        for index, orbit in enumerate(task.orbits):
            allowed = task.allowed[orbit]
            near = _near(allowed, widths[index], radius * orbit.width)
            curve = self._curve(task, widths, index, allowed[near])
            priced = np.isfinite(curve)
            options.append(allowed[near][priced])
            costs.append(curve[priced])
            values.append(worth[index][near][priced])
        chosen = _solved(values, costs, task.limit - task.cost(widths), task.limit, self.solver_time_limit)
        return None if chosen is None else [int(o[c]) for o, c in zip(options, chosen, strict=True)]

    def _curve(self, task: Task, widths: list[int], index: int, others: Positions) -> NDArray[np.float64]:
        """What the model costs more, or less, when an orbit has other widths."""
        points = self.measurements if task.measured else _PREDICTED_WIDTHS
        if task.pricing is not None or len(others) <= points + 1:
            return task.costs_along(widths, index, others)
        asked = np.unique(others[np.linspace(0, len(others) - 1, points).round().astype(int)])
        costs = task.costs_along(widths, index, asked)
        known = {int(width): float(cost) for width, cost in zip(asked, costs, strict=True) if np.isfinite(cost)}
        known[widths[index]] = 0.0
        if len(known) == 1:
            return np.where(others == widths[index], 0.0, np.inf)
        return np.interp(others, sorted(known), [known[width] for width in sorted(known)])


def _worth(task: Task, normalization: Normalization | None) -> Worth:
    """The total score that is kept at each of the widths that an orbit may have."""
    scores = task.scores.normalized(normalization)
    everything = np.concatenate([*scores.values(), np.zeros(1)])
    lift = 0.0 if (everything > 0).any() else -float(everything.min())
    # Even what is worth nothing is kept where it fits.
    least = 1e-9 * max(float(np.abs(everything).mean()), 1e-300)
    if lift == 0.0 and not everything.any():
        least = 1.0
    worth = []
    for orbit in task.orbits:
        descending = np.maximum(scores[orbit][task.order[orbit]][::-1] + lift, 0.0) + least
        worth.append(np.cumsum(descending)[task.allowed[orbit] - 1])
    return worth


def _near(allowed: Positions, width: int, distance: float) -> NDArray[np.int64]:
    """Places of the widths up to a distance from one, a step at least; where they are many, fewer the farther."""
    here = int(np.searchsorted(allowed, width))
    near = np.flatnonzero(np.abs(allowed - width) <= distance)
    near = np.arange(min(near[0], max(here - 1, 0)), max(near[-1], min(here + 1, len(allowed) - 1)) + 1)
    if len(near) <= _OPTIONS:
        return near
    steps = np.unique(np.geomspace(1, len(allowed), _OPTIONS // 2).astype(np.int64))
    places = np.unique(np.concatenate([here - steps, [here], here + steps, near[[0, -1]]]))
    return places[(places >= near[0]) & (places <= near[-1])]


def _value(task: Task, worth: Worth, widths: Sequence[int]) -> float:
    return float(
        sum(
            values[np.searchsorted(task.allowed[orbit], width)]
            for orbit, values, width in zip(task.orbits, worth, widths, strict=True)
        )
    )


def _best_of_all(task: Task, worth: Worth, tolerance: float) -> list[int]:
    """Compare all widths that there can be: those within the tolerance of the target first."""
    assert task.pricing is not None
    allowed = list(task.allowed.values())
    sizes = [len(widths) for widths in allowed]
    best: tuple[bool, float, list[int]] = (False, -math.inf, list(task.min_widths))
    for start in range(0, math.prod(sizes), _BATCH):
        numbers = np.arange(start, min(start + _BATCH, math.prod(sizes)))
        places = np.unravel_index(numbers, sizes)
        widths = np.stack([widths[place] for widths, place in zip(allowed, places, strict=True)], axis=1)
        values = np.sum([value[place] for value, place in zip(worth, places, strict=True)], axis=0)
        costs = task.pricing.totals(widths)
        close = (costs >= (1 - tolerance) * task.limit) & (costs <= task.limit)
        values = np.where(close if close.any() else costs <= task.limit, values, -math.inf)
        winner = int(values.argmax())
        if (bool(close.any()), float(values[winner])) > best[:2]:
            best = (bool(close.any()), float(values[winner]), widths[winner].tolist())
    return best[2]


def _solved(
    values: list[NDArray[np.float64]],
    costs: list[NDArray[np.float64]],
    slack: float,
    limit: float,
    time_limit: float | None,
) -> list[int] | None:
    """Which option of each orbit to take, so that values are highest and costs within the slack."""
    from scipy.optimize import LinearConstraint, milp  # takes long to import
    from scipy.sparse import coo_array, csr_array, vstack

    sizes = [len(value) for value in values]
    variables = sum(sizes)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one_each = coo_array((np.ones(variables), (rows, np.arange(variables))), shape=(len(sizes), variables))
    weights = csr_array(np.concatenate(costs)[None] / limit)
    lower = np.append(np.ones(len(sizes)), -np.inf)
    upper = np.append(np.ones(len(sizes)), slack / limit)
    value = np.concatenate(values)
    options: dict[str, Any] = {"mip_rel_gap": _GAP if variables <= _SMALL else _LARGE_GAP}
    if time_limit is not None:
        options["time_limit"] = time_limit
    with native_output_on_stderr():
        result = milp(
            -value / (np.abs(value).max() or 1.0),
            integrality=np.ones(variables),
            bounds=(0, 1),
            constraints=LinearConstraint(vstack([one_each, weights]).tocsr(), lower, upper),
            options=options,
        )
    if result.x is None:
        return None
    starts = np.cumsum([0, *sizes[:-1]])
    return [int(np.argmax(result.x[start : start + size])) for start, size in zip(starts, sizes, strict=True)]


def _drawn_back(task: Task, wanted: list[int], fitting: list[int]) -> list[int]:
    """The widths closest to some that are wanted, on the way to others that fit, that fit as well."""
    if fits(task, wanted):
        return wanted
    low, high, best = 0.0, 1.0, fitting
    for _ in range(_BISECTIONS if not task.measured else 4):
        share = (low + high) / 2
        widths = []
        for orbit, there, here in zip(task.orbits, wanted, fitting, strict=True):
            allowed = task.allowed[orbit]
            widths.append(int(allowed[np.argmin(np.abs(allowed - (here + share * (there - here))))]))
        if fits(task, widths):
            low, best = share, widths
        else:
            high = share
    return best


def _raises(task: Task, worth: Worth, widths: list[int]) -> list[tuple[int, int]]:
    """One step more for every orbit, those first whose units are worth most."""
    found = []
    for index, orbit in enumerate(task.orbits):
        allowed = task.allowed[orbit]
        here = int(np.searchsorted(allowed, widths[index]))
        if here + 1 < len(allowed):
            gain = (worth[index][here + 1] - worth[index][here]) / (allowed[here + 1] - allowed[here])
            found.append((-float(gain), index, int(allowed[here + 1])))
    return [(index, width) for _, index, width in sorted(found)]


def _by_cost(task: Task) -> Task:
    """The task with the units of orbits in which they cost differently in the order of score per cost."""
    pricing = task.pricing
    if pricing is None or not pricing.uneven:
        return task
    reordered = copy.copy(task)
    reordered.order = dict(task.order)
    whole = task.cost({})
    for index in pricing.uneven:
        orbit = task.orbits[index]
        costs = np.array([whole - task.cost({orbit: np.array([unit])}) for unit in range(orbit.width)])
        scores = task.scores[orbit]
        share = np.maximum(costs, 1e-12 * whole) / whole
        reordered.order[orbit] = np.argsort(scores / share, kind="stable").astype(np.int64)
    reordered._known = {}
    reordered.__dict__.pop("pricing", None)
    return reordered
