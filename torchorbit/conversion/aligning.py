"""Which steps of two recordings are the same step of the model."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch

from torchorbit.arguments import PLAIN, Attr
from torchorbit.containers import items_of
from torchorbit.conversion.numbers import Traced
from torchorbit.conversion.recording import Step
from torchorbit.operators import OPERATORS

# What it costs to leave a step without a partner, and to pair two steps with different constants among their arguments.
_ALONE = 2
_DIFFERENT = 3
# The same for results of different shapes, where they were recorded with inputs of the same.
_RESHAPED = 1
# How many pairs of steps are looked at before two recordings are said to be too different.
_MOST = 2_000_000
#: Functions with an argument that depends on the training flag.
MODE_DEPENDENT = {name for row in OPERATORS.values() if row.by_mode for name in (row.name, *row.names)}


def key_of(step: Step) -> tuple[Any, ...]:
    """What two recordings of one step have in common."""
    return (step.function, step.path, step.call.path, len(step.args), tuple(step.kwargs))


def same_steps(ours: Sequence[Step], theirs: Sequence[Step], *, training: bool) -> bool:
    """Whether two recordings went the same way.

    Args:
        ours: the steps of one recording.
        theirs: those of the other one.
        training: the two are of different modes: what is of another rank is another step.
    """
    if len(ours) != len(theirs):
        return False
    if training and any(_rank(one) != _rank(other) for one, other in zip(ours, theirs, strict=True)):
        return False
    return all(key_of(one) == key_of(other) for one, other in zip(ours, theirs, strict=True))


def pairs(ours: Sequence[Step], theirs: Sequence[Step], *, same_sizes: bool) -> list[tuple[int, int]] | None:
    """The steps of two recordings that belong together, in order, with as few others as possible.

    Steps belong together that are of the same function or module with results of the same rank, and rather those with
    the same constants among their arguments: of two means the one over the same dimension. It is the path of least cost
    through the table of all pairs, found by A* (Hart, Nilsson and Raphael, 1968).

    Args:
        ours: the steps of one recording.
        theirs: those of the other one.
        same_sizes: both were recorded with inputs of the same shapes, so that those of results tell something, too.

    Returns:
        Positions in the two, or None where the recordings are too different to be compared.
    """
    mine, other = ([(key_of(step), _rank(step)) for step in steps] for steps in (ours, theirs))
    end = len(ours), len(theirs)
    best: dict[tuple[int, int], int] = {(0, 0): 0}
    came: dict[tuple[int, int], tuple[int, int]] = {}
    queue = [(0, 0, 0, 0)]
    while queue:
        _, _, i, j = heapq.heappop(queue)
        if (i, j) == end:
            return _path(came, end)
        cost = best[i, j]
        ways = [(i + 1, j, cost + _ALONE), (i, j + 1, cost + _ALONE)]
        if i < end[0] and j < end[1] and mine[i] == other[j]:
            same = _constants(ours[i]) == _constants(theirs[j])
            reshaped = same_sizes and ours[i].shape != theirs[j].shape
            ways.append((i + 1, j + 1, cost + (0 if same else _DIFFERENT) + (_RESHAPED if reshaped else 0)))
        for x, y, price in ways:
            if x <= end[0] and y <= end[1] and price < best.get((x, y), price + 1):
                best[x, y] = price
                came[x, y] = i, j
                # At least as many steps stay alone as the one recording is longer; of equals, who is farther goes on.
                rest = _ALONE * abs(end[0] - x - end[1] + y)
                heapq.heappush(queue, (price + rest, -x - y, x, y))
        if len(best) > _MOST:
            return None
    return None


def _path(came: dict[tuple[int, int], tuple[int, int]], end: tuple[int, int]) -> list[tuple[int, int]]:
    found = []
    at = end
    while at in came:
        before = came[at]
        if before[0] < at[0] and before[1] < at[1]:
            found.append(before)
        at = before
    return found[::-1]


def _rank(step: Step) -> int | None:
    return len(step.shape) if isinstance(step.shape, torch.Size) else None


def _constants(step: Step) -> list[Any]:
    """What is the same among the arguments of a step whatever the sizes are: constants, parameters and buffers."""
    if getattr(step.function, "__name__", "") in MODE_DEPENDENT:
        return []
    found: list[Any] = []

    def collect(arg: Any) -> None:
        kind = type(arg)
        if kind in PLAIN or kind is Attr:
            found.append(arg)
        elif kind not in Traced and (items := items_of(arg)) is not None:
            for item in items:
                collect(item)

    collect(step.args)
    collect(step.kwargs)
    return found
