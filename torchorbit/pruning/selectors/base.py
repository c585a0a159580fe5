"""What a selector is. A new one is one file beside this one, and one line in ``__init__.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from torchorbit.cost.base import AdditiveCost, PredictedCost, name_of
from torchorbit.cost.targets import Target
from torchorbit.errors import ArgumentError, LatencyMeasurementError, TargetError
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.pricing import Pricing
from torchorbit.pruning.constraints import Bounds, Constraint
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores
from torchorbit.removal.cutting import remove_channels

Positions = NDArray[np.int64]
Removed = Mapping[Orbit, Positions]


class Task:
    """What a selector has to work with.

    Args:
        scores: of every unit.
        target: what the result may cost; None for selectors that need none.
        constraint: which widths orbits may have; by default any from 1 on.
        loss: gives the model's loss on data when some units are zero; None where there is no data.
        seed: of whatever is drawn.

    Attributes:
        orbits: those of the graph.
        allowed: orbit -> the widths that it may have, ascending, its own last.
        order: orbit -> its units, the lowest score first; of equal ones the first.
    """

    def __init__(
        self,
        scores: Scores,
        *,
        target: Target | None = None,
        constraint: Constraint | None = None,
        loss: Callable[[Removed], float] | None = None,
        seed: int = 0,
    ):
        self.scores = scores
        self.orbits: Orbits = scores.orbits
        self.target = target
        self.constraint = constraint or Bounds()
        self.loss = loss
        self.seed = seed
        self.allowed: dict[Orbit, Positions] = {orbit: self._widths(orbit) for orbit in self.orbits}
        self.order: dict[Orbit, Positions] = {
            orbit: np.argsort(scores[orbit], kind="stable").astype(np.int64) for orbit in self.orbits
        }
        self._known: dict[tuple[int, ...], float] = {}

    def _widths(self, orbit: Orbit) -> Positions:
        widths = np.asarray(self.constraint.widths(orbit), np.int64)
        if not len(widths) or widths[-1] != orbit.width or widths[0] < 1 or (np.diff(widths) <= 0).any():
            raise ArgumentError(
                f"{type(self.constraint).__name__} allows {orbit!r} widths {widths.tolist()[:8]}, expected ascending "
                f"ones from 1 to {orbit.width}, which is its own"
            )
        return widths

    def removed(self, widths: Sequence[int]) -> dict[Orbit, Positions]:
        """The units that go when every orbit keeps so many, those of the lowest scores."""
        return {
            orbit: self.order[orbit][: orbit.width - width]
            for orbit, width in zip(self.orbits, widths, strict=True)
            if width < orbit.width
        }

    @cached_property
    def pricing(self) -> Pricing | None:
        """What knows the cost of many widths at once; None where the measure is not a sum that can be predicted."""
        latency = None if self.target is None else self.target.cost
        if isinstance(latency, AdditiveCost):
            return Pricing(self.orbits, latency.terms(self.orbits), self.order)
        return None

    @property
    def measured(self) -> bool:
        """Whether a model has to be built for every cost."""
        return self.target is not None and not isinstance(self.target.cost, PredictedCost)

    def cost(self, removed: Removed | Sequence[int]) -> float:
        """What the model costs, by the measure of the target.

        Args:
            removed: the units that go; or the width of every orbit, of which the lowest scores go.

        Raises:
            LatencyMeasurementError: it could not be measured.
        """
        if isinstance(removed, Mapping):
            return self._cost(removed)
        widths = tuple([int(width) for width in removed])
        known = self._known.get(widths)
        if known is None:
            pricing = self.pricing
            known = self._cost(self.removed(widths)) if pricing is None else float(pricing.totals(widths))
            self._known[widths] = known
        return known

    def costs_along(self, widths: Sequence[int], index: int, others: Positions) -> NDArray[np.float64]:
        """What the cost changes by when one orbit gets another width.

        Args:
            widths: of all orbits.
            index: which orbit changes.
            others: the widths that it gets instead, of shape (n,).

        Returns:
            An array of shape (n,); infinite where the cost could not be measured.
        """
        if self.pricing is not None:
            return self.pricing.along(widths, index, others)
        here = self.cost(widths)
        found = np.full(len(others), np.inf)
        for n, width in enumerate(others):
            with suppress(LatencyMeasurementError):
                found[n] = self.cost([*widths[:index], int(width), *widths[index + 1 :]]) - here
        return found

    def _cost(self, removed: Removed) -> float:
        if self.target is None:
            raise ArgumentError("there is no target, so there is nothing to measure the cost by")
        latency: Any = self.target.cost
        if isinstance(latency, PredictedCost):
            return float(latency.predicted(self.orbits, self.keep(removed)))
        dag = self.orbits.model.dag
        return float(latency(remove_channels(dag, removed) if removed else dag))

    def keep(self, removed: Removed) -> dict[int, NDArray[np.bool_]]:
        """For each reading, for every unit whether it is kept."""
        keep = {number: np.ones(count, bool) for number, count in enumerate(self.orbits.counts)}
        for orbit, positions in removed.items():
            keep[orbit.reading][orbit.components[positions]] = False
        return keep

    @cached_property
    def full_widths(self) -> list[int]:
        """The widths that orbits have."""
        return [orbit.width for orbit in self.orbits]

    @cached_property
    def min_widths(self) -> list[int]:
        """The smallest widths that orbits may have."""
        return [int(self.allowed[orbit][0]) for orbit in self.orbits]

    @cached_property
    def limit(self) -> float:
        """What the result may cost, in the units of the measure.

        Raises:
            ArgumentError: there is no target.
            TargetError: it cannot be reached.
        """
        if self.target is None:
            raise ArgumentError(
                "this selector needs a target; give flops=, parameters= or target=Target(latency, limit)"
            )
        whole = self.cost(self.full_widths)
        limit = self.target.limit * whole if self.target.relative else self.target.limit
        if whole > limit:
            smallest = self.cost(self.min_widths)
            if smallest > limit:
                name = name_of(self.target.cost)
                raise TargetError(
                    f"{limit:.4g} {name} cannot be reached: with every orbit at its least width {smallest:.4g} are "
                    f"left (of {whole:.4g}); ask for no less, or allow lesser widths",
                    smallest,
                )
        return limit


class Selector(ABC):
    """Chooses which units of which orbits go.

    Attributes:
        name: what it is called, on the command line and in model cards.
        needs_target: whether it takes a `Target`.
        adds_scores: whether it adds scores of different orbits up, or sets them against costs, and was not told how to
            normalize them for that: only changes of the loss or of the outputs stand it.
    """

    name: ClassVar[str]
    needs_target: ClassVar[bool] = True
    adds_scores: ClassVar[bool] = False

    @abstractmethod
    def select(self, task: Task) -> Mapping[Orbit, Iterable[int]]:
        """Choose.

        Returns:
            Orbit -> positions of the units to remove, as `torchorbit.remove_channels` takes it.

        Raises:
            TargetError: the target cannot be reached.
        """

    def __str__(self) -> str:
        """Its name, and the options that are not as by default."""
        return str(describe(self))


class WidthSelector(Selector):
    """A selector that chooses how many units every orbit keeps; those of the lowest scores go."""

    @abstractmethod
    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""

    def select(self, task: Task) -> dict[Orbit, Positions]:
        """Remove the lowest scores down to the widths."""
        return task.removed(self.widths(task))
