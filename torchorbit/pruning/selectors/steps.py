"""From widths that meet a target to better ones that meet it: single steps, and exchanges of steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from torchorbit.errors import LatencyMeasurementError
from torchorbit.pruning.selectors.base import Task

#: For every orbit, what each of its allowed widths is worth.
Worth = Sequence[NDArray[np.float64]]

CLOSE = 0.01  # of the limit: closer to it than that no more exchanges are looked for
_DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # steps that an orbit may take at once
_CANDIDATES = 256  # moves of a round whose true cost is found out
_MEASUREMENTS = 16  # widths that are tried where each of them has to be built and measured


def cost_of(task: Task, widths: Sequence[int]) -> float:
    """What a model of these widths costs; infinite where it could not be measured."""
    try:
        return task.cost(widths)
    except LatencyMeasurementError:
        return math.inf


def fits(task: Task, widths: Sequence[int]) -> bool:
    """Whether a model of these widths is within the limit; one that could not be measured is not."""
    return cost_of(task, widths) <= task.limit


def filled(task: Task, widths: Sequence[int], raises: Iterable[tuple[int, int]]) -> list[int]:
    """Raise orbits one after the other as far as the limit allows.

    Args:
        task: what is to be done.
        widths: that meet the target.
        raises: orbits and wider widths of them, the most wanted first; what follows one of the same orbit that does not
            fit is passed over.
    """
    widths = list(widths)
    closed: set[int] = set()
    tried = 0
    for index, width in raises:
        if index in closed:
            continue
        if len(closed) == len(widths) or (task.measured and tried == _MEASUREMENTS):
            break
        tried += 1
        candidate = [*widths[:index], width, *widths[index + 1 :]]
        if fits(task, candidate):
            widths = candidate
        else:
            closed.add(index)
    return widths


def improved(
    task: Task,
    widths: Sequence[int],
    worth: Worth | None = None,
    *,
    close: float = CLOSE,
    floor: float = 0.0,
    rounds: int = 100,
) -> list[int]:
    """Raise orbits, or raise some and lower others for it, while the result is worth more and the limit allows it.

    Every round prices all single moves, combines them in pairs as if their costs added up, and makes the best of them
    that really fit. Where the cost is no sum of terms, so that so many prices would take too long, nothing is done.

    Args:
        task: what is to be done.
        widths: that meet the target.
        worth: what widths are worth; None for what they cost, so that the result comes close to the limit.
        close: where ``worth`` is None, the share of the limit below it that is close enough.
        floor: what the result costs at least.
        rounds: how many at most.
    """
    present = list(widths)
    if task.pricing is None:
        return present
    # Where nothing but closeness is wanted, widths are changed as little as possible for it.
    reach = _DISTANCES[-1] if worth is not None else _DISTANCES[0]
    for _ in range(rounds):
        cost = task.cost(present)
        if worth is None and cost >= (1 - close) * task.limit:
            break
        moves = _moves(task, present, worth, reach)
        candidates = _candidates(moves, floor - cost, task.limit - cost)
        better = _apply(task, present, candidates, floor, rising=worth is None)
        if better == present and reach == _DISTANCES[-1]:
            break
        if better == present:
            reach = next(distance for distance in _DISTANCES if distance > reach)
        present = better
    return present


def _moves(task: Task, widths: list[int], worth: Worth | None, reach: int) -> NDArray[np.float64]:
    """Every orbit by some steps wider or narrower: columns of orbit, width, change of cost, and of worth."""
    rows = []
    for index, orbit in enumerate(task.orbits):
        allowed = task.allowed[orbit]
        here = int(np.searchsorted(allowed, widths[index]))
        distances = [distance for distance in _DISTANCES if distance <= reach]
        places = np.array([here + sign * distance for distance in distances for sign in (1, -1)])
        places = places[(places >= 0) & (places < len(allowed))]
        if len(places):
            costs = task.costs_along(widths, index, allowed[places])
            gains = costs if worth is None else worth[index][places] - worth[index][here]
            rows.append(np.stack([np.full(len(places), index), allowed[places], costs, gains], axis=1))
    return np.concatenate([*rows, np.empty((0, 4))])


def _candidates(moves: NDArray[np.float64], least: float, most: float) -> list[list[tuple[int, int]]]:
    """Moves and pairs of moves that are worth something and change the cost by so much, the best first."""
    scale = np.abs(moves[:, 3]).max(initial=0.0)
    within = (moves[:, 2] >= least) & (moves[:, 2] <= most) & (moves[:, 3] > 1e-9 * scale)
    single = [(gain, [(int(index), int(width))]) for index, width, _, gain in moves[within]]
    ups, downs = moves[moves[:, 3] > 0], moves[moves[:, 3] < 0]
    gains, costs = (ups[:, None, column] + downs[None, :, column] for column in (3, 2))
    possible = (costs >= least) & (costs <= most) & (ups[:, None, 0] != downs[None, :, 0]) & (gains > 1e-9 * scale)
    gains = np.where(possible, gains, 0.0)
    count = min(_CANDIDATES, gains.size)
    best = np.argpartition(gains, gains.size - count, axis=None)[-count:] if count else np.empty(0, np.int64)
    pairs = []
    for place in best[gains.reshape(-1)[best] > 0]:
        up, down = ups[place // len(downs)], downs[place % len(downs)]
        pairs.append((gains.reshape(-1)[place], [(int(row[0]), int(row[1])) for row in (up, down)]))
    ordered = sorted([*single, *pairs], key=lambda candidate: -candidate[0])
    return [changes for _, changes in ordered[:_CANDIDATES]]


def _apply(
    task: Task, present: list[int], candidates: list[list[tuple[int, int]]], floor: float, *, rising: bool
) -> list[int]:
    """Make the moves, the best first, each orbit at most once, where the result costs from the floor to the limit."""
    touched: set[int] = set()
    for changes in candidates:
        if touched.intersection(index for index, _ in changes):
            continue
        candidate = list(present)
        for index, width in changes:
            candidate[index] = width
        cost = task.cost(candidate)
        if floor <= cost <= task.limit and not (rising and cost <= task.cost(present)):
            present = candidate
            touched.update(index for index, _ in changes)
    return present
