"""Prune a graph by a ratio, or to a number of FLOPs."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from torchorbit.graph.dag import DagModule
from torchorbit.orbits.discovery import find_orbits
from torchorbit.pruning.constraints import Bounds
from torchorbit.pruning.criteria import Magnitude
from torchorbit.pruning.history import Pruning
from torchorbit.pruning.removal import remove_channels
from torchorbit.pruning.selectors import Task, Uniform
from torchorbit.pruning.targets import Target


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
    selector = Uniform(ratio)
    target = None if flops is None else Target.flops(flops)
    constraint = Bounds(round_to=round_to)
    criterion = Magnitude()
    orbits = find_orbits(dag, frozen=frozen)
    removed = selector.select(Task(criterion.scores(orbits), target=target, constraint=constraint))
    smaller = remove_channels(dag, removed, inplace=inplace, optimizer=optimizer)
    if removed:
        asked = f"ratio={ratio:g}" if target is None else str(target)
        smaller.history = smaller.history.as_last(Pruning(str(criterion), str(selector), asked, round_to))
    return smaller
