"""Prune a graph by a ratio, or to a number of FLOPs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from torchorbit.graph.dag import DagModule
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.history import Pruning
from torchorbit.pruning.removal import remove_channels

_STEPS = 40  # of the search for a ratio; 2^-40 is far below one channel


def prune(
    dag: DagModule,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    round_to: int = 1,
    frozen: Iterable[nn.Module | str] | nn.Module | str = (),
    inplace: bool = False,
    optimizer: Optimizer | None = None,
) -> DagModule:
    """Prune a graph: in every orbit the units of the smallest magnitude go.

    The magnitude of a unit is the root mean square of its weights, each tensor first divided by its own root mean
    square, so that a bias does not count less than a kernel ("Pruning Filters for Efficient ConvNets", Li et al., 2017,
    on whole orbits).

    Args:
        dag: a graph with weights.
        ratio: share of the units of every orbit to remove, from 0 up to but not including 1. At least one is kept.
        flops: how many FLOPs the result may have: a fraction of the graph's where it is below 1, else their number
            (two per multiply-accumulate, one sample of the recorded size). The same share of every orbit is removed,
            up to one step of its width.
        round_to: numbers of channels are multiples of this, where an orbit is wide enough. Whole heads and groups are
            not rounded.
        frozen: what must stay as it is, as for `torchorbit.find_orbits`.
        inplace: change ``dag`` itself. The model that it was converted from shares its parameters, and no longer runs.
        optimizer: its state is cut along.

    Returns:
        The smaller graph.

    Raises:
        ValueError: not exactly one of ``ratio`` and ``flops`` is given; one is out of range; the graph is on the meta
            device; or so few FLOPs cannot be reached, and the message says which can.
        TypeError: ``round_to`` is no whole number, or ``optimizer`` no optimiser.
    """
    if (ratio is None) == (flops is None):
        raise ValueError(f"give either ratio or flops; given ratio={ratio}, flops={flops}")
    if ratio is not None and not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}, expected a share from 0 up to but not including 1")
    if flops is not None and not flops > 0:
        raise ValueError(f"flops={flops}, expected a fraction below 1 or a number of FLOPs")
    if not isinstance(round_to, (int, np.integer)) or isinstance(round_to, bool):
        raise TypeError(f"round_to={round_to!r}, expected a whole number of channels")
    if round_to < 1:
        raise ValueError(f"round_to={round_to}, expected a positive number of channels")
    orbits = find_orbits(dag, frozen=frozen)
    if any(parameter.is_meta for parameter in dag.parameters()):
        raise ValueError(
            "the graph is on the meta device, where weights have no magnitude: give it weights, or choose what goes by "
            "find_orbits and remove_channels"
        )
    if ratio == 0:
        widths = [orbit.width for orbit in orbits]
    elif ratio is not None:
        widths = [_width(orbit, ratio, round_to) for orbit in orbits]
    else:
        assert flops is not None
        total = orbits.costs.total()
        widths = _widths_for(orbits, flops * total if flops < 1 else flops, round_to)
    order = [np.argsort(magnitude(orbit), kind="stable") for orbit in orbits]
    removed = {
        orbit: ascending[: orbit.width - width].tolist()
        for orbit, width, ascending in zip(orbits, widths, order, strict=True)
        if width < orbit.width
    }
    smaller = remove_channels(dag, removed, inplace=inplace, optimizer=optimizer)
    if removed:
        target = f"ratio={ratio:g}" if ratio is not None else f"flops={flops:g}"
        smaller.history = smaller.history.as_last(Pruning("magnitude", "uniform", target, round_to))
    return smaller


def _width(orbit: Orbit, ratio: float, round_to: int) -> int:
    """How many units of an orbit are kept."""
    kept = orbit.width * (1 - ratio)
    step = round_to if orbit.reading == 0 else 1
    if step > 1:
        return min(orbit.width, max(round(kept / step), 1) * step)
    return min(orbit.width, max(round(kept), 1))


def _widths_for(orbits: Orbits, target: float, round_to: int) -> list[int]:
    """Widths with which the model has at most so many FLOPs, the same share of every orbit as far as can be."""

    def cost(widths: list[int]) -> float:
        return orbits.costs.total(_any_units(orbits, widths))

    if orbits.costs.total() <= target:
        return [orbit.width for orbit in orbits]
    low, high = 0.0, 1.0
    most, least = (
        [_width(orbit, low, round_to) for orbit in orbits],
        [_width(orbit, high, round_to) for orbit in orbits],
    )
    if cost(most) <= target:
        return most
    smallest = cost(least)
    if smallest > target:
        raise ValueError(
            f"{target:.4g} FLOPs cannot be reached: with every orbit at its least width {smallest:.4g} are left "
            f"(of {orbits.costs.total():.4g})"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        widths = [_width(orbit, middle, round_to) for orbit in orbits]
        if cost(widths) > target:
            low, most = middle, widths
        else:
            high, least = middle, widths
        if sum(a != b for a, b in zip(most, least, strict=True)) <= 1:
            break
    # Between the two shares some orbits differ by a step: as many of them as fit keep the greater width.
    widths = list(least)
    for n in sorted(range(len(widths)), key=lambda n: orbits[n].width, reverse=True):
        if most[n] != least[n]:
            widths[n] = most[n]
            if cost(widths) > target:
                widths[n] = least[n]
    return widths


def _any_units(orbits: Orbits, widths: list[int]) -> dict[int, NDArray[np.bool_]]:
    """What is kept when of every orbit the first so many units are: it costs what keeping any others does."""
    keep = {number: np.ones(count, bool) for number, count in enumerate(orbits.counts)}
    for orbit, width in zip(orbits, widths, strict=True):
        keep[orbit.reading][orbit.components[width:]] = False
    return keep


@torch.no_grad()
def magnitude(orbit: Orbit) -> NDArray[np.float64]:
    """The magnitude of every unit of an orbit.

    Returns:
        An array as long as the orbit is wide: the root mean square of a unit's weights, over those of the tensors that
        they belong to.
    """
    orbits = orbit._orbits
    positions = orbits.positions[orbit.reading]
    place = np.full(orbits.counts[orbit.reading], -1)
    place[orbit.components] = np.arange(orbit.width)
    squares, counts = np.zeros(orbit.width), np.zeros(orbit.width)
    for part in orbits.parts:
        units = place[positions[part.start : part.start + part.length]]
        if part.path not in orbits.trainable or (units < 0).all():
            continue
        per_position, others = _mean_squares(orbits, part.path, part.axis)
        owned = units >= 0
        np.add.at(squares, units[owned], per_position[owned] * others)
        np.add.at(counts, units[owned], others)
    return np.sqrt(squares / np.maximum(counts, 1))


def _mean_squares(orbits: Orbits, path: str, axis: int) -> tuple[Any, int]:
    """Mean squares of the slices of a tensor, over the mean square of all of it, and how many numbers a slice has."""
    tensor = orbits.model.tensor_at(path).detach()
    others = tensor.numel() // tensor.shape[axis]
    square = tensor.double().square()
    whole = square.mean().item()
    per_position = square.mean([n for n in range(tensor.dim()) if n != axis]) if tensor.dim() > 1 else square
    return (per_position / whole if whole else per_position).cpu().numpy(), others
