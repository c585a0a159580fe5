"""The widths at which the loss is least, searched for."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from torchorbit.cost.base import PredictedCost, name_of
from torchorbit.errors import ArgumentError, LatencyMeasurementError, TargetError, TorchorbitError
from torchorbit.pruning.selectors.base import Task, WidthSelector
from torchorbit.pruning.selectors.trust_region import Sampler, ScboOptions, TrustRegion, require_botorch
from torchorbit.pruning.selectors.width_space import Array, Boundary, Widths, WidthSpace, checked

#: Selectors, by name, of which the result is a starting point where there is such a selector and it succeeds.
WARM_STARTS = ("uniform", "global", "knapsack")


@dataclass(frozen=True)
class Sample:
    """What a search tried.

    Attributes:
        widths: of every orbit.
        loss: what came out; infinite where it was no number.
        cost: by the measure of the target.
        feasible: whether the cost is within the limit.
    """

    widths: tuple[int, ...]
    loss: float
    cost: float
    feasible: bool


@dataclass(frozen=True)
class Search:
    """What came of a search.

    Attributes:
        best: the sample of the least loss among those within the limit; of equal ones the first.
        samples: all of them, in order.
        failed: how many could not be measured.
        converged: whether the trust region shrank to nothing, or nothing was left to try.
        interrupted: whether Ctrl-C ended it.
    """

    best: Sample
    samples: tuple[Sample, ...]
    failed: int = 0
    converged: bool = False
    interrupted: bool = False


@dataclass(frozen=True)
class Optimal(WidthSelector):
    """Searches for the widths at which the loss is least, by scalable constrained Bayesian optimization.

    SCBO (Eriksson and Poloczek, "Scalable constrained Bayesian optimization", AISTATS 2021; ENOT's optimal strategy) on
    BoTorch. The loss is that of the task, on data and with the removed units at zero; without data it is the share of
    the score that goes, of every orbit's whole score, summed over orbits.

    What other selectors find (`WARM_STARTS`) is tried first, so that the result is never worse than theirs. Where the
    cost is predicted (`torchorbit.cost.PredictedCost`: FLOPs, parameters, tables), only widths within the limit
    are tried: every candidate is scaled to just below it. Where it has to be measured, the constraint is modelled like
    the loss is.

    Attributes:
        n_search_steps: how many samples to try; None goes on until the trust region converges.
        n_starting_points: how many of them are taken before the first model is fitted; None is twice the number of
            orbits, and at most half of ``n_search_steps`` (ENOT leaves one, which leaves large models to chance).
        batch_size: how many samples are chosen from one model.
        additional_starting_points: called with the task, gives lists of widths to try as well, one width per orbit.
        device: where models are fitted; None takes CUDA where it is.
        dtype: of their numbers.
        verbose: whether to show a progress bar.
        handle_ctrl_c: whether Ctrl-C ends the search with the best found so far; pressed again it interrupts.
        seed: of whatever is drawn; None takes that of the task.
        options: of the trust region.

    Raises:
        ArgumentError: a number is out of range.
    """

    n_search_steps: int | None = 200
    n_starting_points: int | None = None
    batch_size: int = 4
    additional_starting_points: Callable[[Task], Iterable[Sequence[int]]] | None = None
    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float64
    verbose: bool = True
    handle_ctrl_c: bool = False
    seed: int | None = None
    options: ScboOptions = field(default_factory=ScboOptions)

    name: ClassVar[str] = "optimal"

    def __post_init__(self) -> None:
        for name, none in (("n_search_steps", True), ("n_starting_points", True), ("batch_size", False)):
            value = getattr(self, name)
            if value is None and none:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name}={value!r}, expected a positive whole number{' or None' if none else ''}")
        if not self.dtype.is_floating_point:
            raise ArgumentError(f"dtype={self.dtype}, expected torch.float64 or another floating-point type")

    def __str__(self) -> str:
        """Its name, and the options that are not as by default."""
        shown = [
            f"{name}={getattr(self, name)}"
            for name, default in (("n_search_steps", 200), ("n_starting_points", None), ("batch_size", 4))
            if getattr(self, name) != default
        ]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit.

        Raises:
            TargetError: nothing that was tried is within the limit.
            MissingExtraError: BoTorch is missing.
        """
        return self.search(task).best.widths

    def search(self, task: Task) -> Search:
        """Search, and say what was tried.

        Raises:
            TargetError: nothing that was tried is within the limit.
            ArgumentError: there is no target; or an additional starting point is none.
            MissingExtraError: BoTorch is missing.
            KeyboardInterrupt: Ctrl-C was pressed, and is not handled or came before anything was within the limit.
        """
        require_botorch()
        limit = task.limit
        most = tuple(task.most)
        if task.cost(most) <= limit:
            whole = Sample(most, _Objective(task)(most), task.cost(most), True)
            return Search(whole, (whole,))
        with _Interruption(self.handle_ctrl_c) as interruption:
            return _Run(self, task, interruption).result()


class _Run:
    """One search."""

    def __init__(self, selector: Optimal, task: Task, interruption: _Interruption):
        assert task.target is not None
        self.selector = selector
        self.task = task
        self.interruption = interruption
        self.limit = task.limit
        self.loss = _Objective(task)
        seed = task.seed if selector.seed is None else selector.seed
        self.rng = np.random.default_rng(seed)
        self.space = WidthSpace(task)
        predicted = isinstance(task.target.cost, PredictedCost)
        self.boundary = Boundary(task, self.space, self.rng) if predicted else None
        device = selector.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.sampler = Sampler(selector.options, torch.device(device), selector.dtype, seed)
        self.steps = math.inf if selector.n_search_steps is None else selector.n_search_steps
        self.samples: list[Sample] = []
        self.tried: set[tuple[int, ...]] = set()
        self.failed = 0
        self.converged = False

    def result(self) -> Search:
        total, hidden = self.selector.n_search_steps, not self.selector.verbose
        with tqdm(total=total, desc=self.selector.name, disable=hidden) as self.bar:
            for widths in self.starting_points():
                self.try_out(widths)
                if self.over:
                    break
            if not self.over:
                self.search()
            if not any(sample.feasible for sample in self.samples):
                self.try_out(self.space.least)
        feasible = [sample for sample in self.samples if sample.feasible]
        if not feasible:
            raise self.nothing_found()
        best = min(feasible, key=lambda sample: sample.loss)
        return Search(best, tuple(self.samples), self.failed, self.converged, self.interruption.asked)

    @property
    def over(self) -> bool:
        if self.interruption.asked and not any(sample.feasible for sample in self.samples):
            return False
        return self.interruption.asked or len(self.samples) + self.failed >= self.steps

    def nothing_found(self) -> TargetError:
        least = min((sample.cost for sample in self.samples), default=math.inf)
        assert self.task.target is not None
        name = name_of(self.task.target.cost)
        return TargetError(
            f"none of the {len(self.samples)} models that were tried is within {self.limit:.4g} {name} "
            f"({self.failed} could not be measured); the least was {least:.4g}; ask for no less, or try more",
            least,
        )

    def try_out(self, widths: Widths) -> bool:
        """Take a sample, unless it is known already; returns whether there is a new one."""
        key = tuple(widths.tolist())
        if key in self.tried:
            return False
        self.tried.add(key)
        self.bar.update()
        try:
            cost = self.task.cost(key)
        except LatencyMeasurementError:
            self.failed += 1
            return False
        sample = Sample(key, self.loss(key), cost, cost <= self.limit)
        self.samples.append(sample)
        losses = [sample.loss for sample in self.samples if sample.feasible]
        self.bar.set_postfix_str(f"loss {min(losses):.4g}" if losses else "nothing within the limit yet")
        return True

    # -- starting points

    def starting_points(self) -> Iterator[Widths]:
        """What other selectors found, what was given, and draws around the best of these."""
        asked = self.selector.n_starting_points
        count = int(min(2 * self.space.dims, self.steps // 2)) if asked is None else asked
        yield from self.warm_starts()
        if self.selector.additional_starting_points is not None:
            for given in self.selector.additional_starting_points(self.task):
                yield checked(self.task, given)
        known = sorted((s for s in self.samples if s.feasible), key=lambda sample: sample.loss)
        centres = [np.array(sample.widths) for sample in known] or [self.space.least]
        misses = 0
        while len(self.samples) + self.failed < count and misses < _MISSES:
            centre = centres[0 if self.rng.random() < 0.5 else int(self.rng.integers(len(centres)))]
            widths = self.scattered(centre)
            misses = misses + 1 if tuple(widths.tolist()) in self.tried else 0
            yield widths

    def warm_starts(self) -> Iterator[Widths]:
        from torchorbit.pruning.selectors import SELECTORS

        for name in WARM_STARTS:
            try:
                selector = SELECTORS[name]()
                removed = selector.select(self.task)
                widths = np.array(
                    [orbit.width - len(list(removed.get(orbit, ()))) for orbit in self.task.orbits], np.int64
                )
                yield checked(self.task, widths)
            except (KeyError, TypeError, ValueError, ImportError, RuntimeError, TorchorbitError):
                continue

    def scattered(self, centre: Widths) -> Widths:
        """Widths around others: each is multiplied by a random factor."""
        spread = math.exp(self.rng.uniform(math.log(_SPREAD[0]), math.log(_SPREAD[1])))
        factors = np.exp(spread * self.rng.standard_normal(len(centre)))
        top = np.array(self.task.most, np.float64)
        widths = self.space.widths(self.space.points(self.space.down(np.minimum(centre * factors, top))))
        return widths if self.boundary is None else self.boundary.project(widths)

    # -- the search itself

    def search(self) -> None:
        region = TrustRegion(self.selector.options, self.space.dims, self.selector.batch_size)
        misses = 0
        while not self.over:
            best = self.best()
            before = self.samples[best]
            found = 0
            for widths in self.next_batch(best, region.length):
                found += self.try_out(widths)
                if self.over:
                    return
            misses = 0 if found else misses + 1
            region.update(_better(self.samples[self.best()], before))
            if region.converged or misses >= _MISSES:
                if self.selector.n_search_steps is None or misses >= _MISSES:
                    self.converged = True
                    return
                region.restart()

    def best(self) -> int:
        """The sample to search around: the best within the limit, or that which is the least over it."""
        return min(range(len(self.samples)), key=lambda n: _order(self.samples[n]))

    def next_batch(self, best: int, length: float) -> list[Widths]:
        points = self.space.points(np.array([sample.widths for sample in self.samples]))
        losses = np.array([sample.loss for sample in self.samples])
        excess = None
        if self.boundary is None:
            excess = np.log(np.maximum([sample.cost for sample in self.samples], 1e-300) / self.limit)
        count = self.selector.batch_size
        chosen = self.sampler.choose(points, losses, excess, best, length, count, self.admitted)
        widths = list(self.space.widths(chosen))
        return widths if self.boundary is None else [self.boundary.project(item) for item in widths]

    def admitted(self, candidates: Array) -> Array:
        """Candidates at allowed widths, near the limit where the cost is predicted, that were not tried yet."""
        widths = self.space.widths(candidates)
        if self.boundary is not None:
            factors = self.boundary.factors(widths.astype(np.float64))
            widths = self.space.down(np.minimum(widths * factors[:, None], self.task.most))
        widths = np.unique(widths, axis=0)
        new = [tuple(row) not in self.tried for row in widths.tolist()]
        return self.space.points(widths[new])


_MISSES = 10  # batches, or draws, in a row that gave nothing new
_SPREAD = (0.1, 0.6)  # standard deviation of the logarithm of widths at starting points


def _order(sample: Sample) -> tuple[bool, float]:
    return (not sample.feasible, sample.loss if sample.feasible else sample.cost)


def _better(sample: Sample, than: Sample) -> bool:
    if sample.feasible and than.feasible and math.isfinite(than.loss):
        return sample.loss < than.loss - 1e-3 * abs(than.loss)
    return _order(sample) < _order(than)


class _Objective:
    """The loss on data; without data the score that goes."""

    def __init__(self, task: Task):
        self.task = task
        self.shares = task.scores.normalized()

    def __call__(self, widths: Sequence[int]) -> float:
        removed = self.task.removed(widths)
        if self.task.loss is None:
            return float(sum(self.shares[orbit][positions].sum() for orbit, positions in removed.items()))
        loss = float(self.task.loss(removed))
        return math.inf if math.isnan(loss) else loss


class _Interruption:
    """Notes Ctrl-C instead of raising; pressed again, it interrupts. Signals reach the main thread only."""

    def __init__(self, handled: bool):
        self.handled = handled and threading.current_thread() is threading.main_thread()
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Interruption:
        if self.handled:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        if self.handled:
            signal.signal(signal.SIGINT, self._before)
