"""The widths that a search chooses from, and how it stays under a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchorbit.errors import ArgumentError
from torchorbit.pruning.selectors.base import Task

Array = NDArray[np.float64]
Widths = NDArray[np.int64]


class WidthSpace:
    """The widths that orbits may have, as points of the unit cube.

    Every orbit that has a choice is one variable: 0 is the least width that it may have, 1 its own, and the widths
    between them are equally far apart.

    Args:
        task: says which widths are allowed.

    Attributes:
        dims: number of variables.
    """

    def __init__(self, task: Task):
        self.allowed = [task.allowed[orbit] for orbit in task.orbits]
        self.free = np.array([n for n, widths in enumerate(self.allowed) if len(widths) > 1], np.int64)
        self.dims = len(self.free)
        self.steps = np.array([len(self.allowed[n]) - 1 for n in self.free], np.int64)
        self.min_widths = np.array(task.min_widths, np.int64)

    def points(self, widths: Widths) -> Array:
        """Points of allowed widths: (..., orbits) -> (..., dims)."""
        columns = [np.searchsorted(self.allowed[n], widths[..., n]) for n in self.free]
        return np.stack(columns, -1) / self.steps

    def widths(self, points: Array) -> Widths:
        """The allowed widths that are nearest to points: (..., dims) -> (..., orbits)."""
        widths = np.broadcast_to(self.min_widths, (*points.shape[:-1], len(self.min_widths))).copy()
        places = np.rint(np.clip(points, 0, 1) * self.steps).astype(np.int64)
        for column, n in enumerate(self.free):
            widths[..., n] = self.allowed[n][places[..., column]]
        return widths

    def down(self, widths: NDArray[Any]) -> Widths:
        """The greatest allowed widths that are no greater, or the least ones: (..., orbits) -> (..., orbits)."""
        found = np.broadcast_to(self.min_widths, widths.shape).copy()
        for n in self.free:
            places = np.searchsorted(self.allowed[n], widths[..., n] + 1e-9, side="right") - 1
            found[..., n] = self.allowed[n][np.maximum(places, 0)]
        return found

    def next_width(self, widths: Widths, n: int) -> int | None:
        """The width a step above that of orbit ``n``; None where it has its own."""
        place = int(np.searchsorted(self.allowed[n], widths[n])) + 1
        return int(self.allowed[n][place]) if place < len(self.allowed[n]) else None


class Boundary:
    """Brings widths to the limit of a cost that is known without building the model.

    A point below the limit keeps less than it could, one above it may not be chosen: what is worth trying lies just
    below. All widths are scaled by one factor, which is found by bisection, and single orbits then get a step more as
    long as that fits. For many points at once the factor comes from a linear model of the cost, fitted to all costs
    that were asked for so far.

    Args:
        task: gives the cost, which is to grow with every width, and the limit.
        space: the widths.
        rng: of the order in which orbits get a step more.
    """

    def __init__(self, task: Task, space: WidthSpace, rng: np.random.Generator):
        self.task = task
        self.space = space
        self.rng = rng
        self.limit = task.limit
        self.seen: list[Widths] = []
        self.costs: list[float] = []
        self._model: tuple[float, Array] | None = None
        for widths in (task.full_widths, task.min_widths):
            self.cost(np.array(widths, np.int64))

    def cost(self, widths: Widths) -> float:
        """What the model costs at these widths, exactly."""
        cost = self.task.cost(widths.tolist())
        self.seen.append(widths)
        self.costs.append(cost)
        self._model = None
        return cost

    def project(self, widths: Widths) -> Widths:
        """Scale the widths of one point down, or up, to just below the limit.

        Returns:
            Allowed widths of which the cost is no more than the limit; the least ones where nothing else is.
        """
        space = self.space
        cost = self.cost(widths)
        if cost <= self.limit:
            best, low, high = widths, 1.0, float(np.max(np.array([w[-1] for w in space.allowed]) / widths))
        else:
            best, low, high = space.min_widths, 0.0, 1.0
        # From where the model says, in growing steps until the limit lies between two factors; then by halves.
        factor, stride = float(self.factors(widths[None].astype(np.float64))[0]), _CLOSE
        bracketed = False
        before: bool | None = None
        for _ in range(_BISECTIONS):
            if bracketed or not low < factor < high:
                factor = (low + high) / 2
            scaled = space.down(widths * factor)
            fits = self.cost(scaled) <= self.limit
            if fits:
                low, best = factor, scaled
            else:
                high = factor
            if high - low < _CLOSE * high or (space.down(widths * high) == best).all():
                break
            bracketed = bracketed or before not in (None, fits)
            before = fits
            factor *= 1 + stride if fits else 1 - stride
            stride *= 4
        return self._filled(best)

    def _filled(self, widths: Widths) -> Widths:
        """Let single orbits keep a step more, in random order, as long as that fits."""
        _, slopes = self._linear()
        slack = self.limit - self.cost(widths)
        tried = 0
        for n in self.rng.permutation(self.space.free):
            more = self.space.next_width(widths, n)
            if more is None or slopes[n] * (more - widths[n]) > slack * _OPTIMISM:
                continue
            greater = widths.copy()
            greater[n] = more
            left = self.limit - self.cost(greater)
            if left >= 0:
                widths, slack = greater, left
            tried += 1
            if tried == _TRIES:
                break
        return widths

    def factors(self, widths: Array) -> Array:
        """By which factor to scale every one of many points so that its cost is at the limit, by the linear model."""
        intercept, slopes = self._linear()
        top = np.array([allowed[-1] for allowed in self.space.allowed], np.float64)
        least = self.space.min_widths
        factors = np.ones(len(widths))
        for _ in range(_ROUNDS):
            scaled = np.clip(widths * factors[:, None], least, top)
            growing = np.where((scaled < top) & (scaled > least), scaled, 0.0) @ slopes
            missing = self.limit - (intercept + scaled @ slopes)
            factors *= np.clip(1 + missing / np.maximum(growing, 1e-12 * self.limit), 0.25, 4.0)
        return factors

    def _linear(self) -> tuple[float, Array]:
        """Intercept and slopes of the cost, fitted where costs are near the limit."""
        if self._model is None:
            widths = np.stack(self.seen[-_REMEMBERED:]).astype(np.float64)
            costs = np.array(self.costs[-_REMEMBERED:])
            weights = np.exp(-np.abs(np.log(costs / self.limit)) * 4)
            mean, centre = np.average(costs, weights=weights), np.average(widths, axis=0, weights=weights)
            top = np.array([allowed[-1] for allowed in self.space.allowed], np.float64)
            design = (widths - centre) / top * np.sqrt(weights)[:, None]
            target = (costs - mean) * np.sqrt(weights)
            # Prior: all orbits contribute equally to the cost; the ridge shrinks the slopes towards it.
            prior = np.full(len(top), self.limit / len(top))
            gram = design.T @ design
            ridge = 1e-3 * max(np.trace(gram) / len(top), 1e-12)
            gram[np.diag_indices_from(gram)] += ridge
            slopes = prior + np.linalg.solve(gram, design.T @ (target - design @ prior))
            slopes = np.maximum(slopes, 0.0) / top
            self._model = float(mean - centre @ slopes), slopes
        return self._model


_BISECTIONS = 16
_CLOSE = 0.005  # of the limit: single steps do the rest
_ROUNDS = 4
_TRIES = 8  # single steps, each of which costs a count
_OPTIMISM = 1.5  # slopes are estimates
_REMEMBERED = 1000


def checked(task: Task, widths: Sequence[int] | Widths) -> Widths:
    """Widths that were given from outside.

    Raises:
        ArgumentError: there are too few or too many, or some that an orbit may not have.
    """
    array = np.asarray(widths)
    if array.shape != (len(task.orbits),) or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"a starting point is {widths!r:.100}, expected {len(task.orbits)} whole numbers, a width for each orbit"
        )
    for orbit, width in zip(task.orbits, array.tolist(), strict=True):
        if width not in task.allowed[orbit]:
            raise ArgumentError(
                f"a starting point has width {width} for {orbit!r}, expected one of {task.allowed[orbit].tolist()[:20]}"
            )
    return array.astype(np.int64)
