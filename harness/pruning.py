"""How far a model can be pruned, and whether what is left is right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

import torchorbit
from harness.meta import QuickNormalizations
from harness.records import Record
from harness.verification import VerificationError, check_shapes, random_input
from torchorbit.orbits.orbit import Orbit, Orbits

TOLERANCE = 1e-4
"""Largest difference between a pruned graph and the whole one with zeros, over the largest output, that proves it."""

_SMALL_SIDE = 128
"""Side of the images with which a removal is proved where the graph takes any size."""


def find_out(
    record: Record,
    graph: torchorbit.DagModule,
    size: Sequence[int],
    expected: Any,
    *,
    numeric: bool,
    seed: str,
    enter: Callable[[str], None],
) -> None:
    """Fill in what a record says about pruning; the stage in which something is raised stays in the record.

    Args:
        record: The record of a model that was converted.
        graph: Its graph.
        size: `(channels, height, width)` of its input.
        expected: What the whole model gives for one sample; the smaller one must give the like.
        numeric: The graph has weights: prove by numbers that half of every orbit can be removed. Otherwise it is on
            the `meta` device, and what is left is run there.
        seed: Of the image and of the removal.
        enter: Begins a stage.
    """
    enter("orbits")
    orbits = torchorbit.find_orbits(graph)
    total = orbits.costs.total()
    record.gflops = round(total / 1e9, 4)
    record.orbits = len(orbits)
    record.units = orbits.units
    record.unruled_operators = list(orbits.unruled)
    record.prunable_proportion = round(orbits.prunable_proportion, 6)

    enter("prune")
    if not len(orbits):
        nothing = "nothing can be removed: every channel is frozen"
        record.note = f"{record.note}; {nothing}" if record.note else nothing
        record.removable_flops = 0.0
        return
    inputs = random_input(size, seed) if numeric else torch.empty(1, *size, device="meta")
    smallest = torchorbit.remove_channels(graph, {orbit: range(1, orbit.width) for orbit in orbits})
    with nullcontext() if numeric else QuickNormalizations():
        output = smallest(inputs)
    record.removable_flops = round(1 - torchorbit.flops(smallest).total / total, 6)
    del smallest
    check_shapes(expected, output)
    if numeric:
        enter("prove")
        record.removal_max_diff = _proved(seed, graph, orbits, inputs)
    record.prunable = True


def _proved(seed: str, graph: torchorbit.DagModule, orbits: Orbits, inputs: Tensor) -> float:
    """Remove half of every orbit at random, and compare with the whole graph in which they are zero."""
    generator = random.Random(crc32(seed.encode()))
    removed = {orbit: generator.sample(range(orbit.width), orbit.width // 2) for orbit in orbits}
    pruned = torchorbit.remove_channels(graph, removed)
    difference = _difference(graph, pruned, removed, inputs)
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"the pruned graph's output differs from that of the whole one with zeros by {difference:.2g} of the "
            f"largest output, more than {TOLERANCE:g}"
        )
    return float(f"{difference:.3g}")


def _difference(
    graph: torchorbit.DagModule, pruned: torchorbit.DagModule, removed: dict[Orbit, list[int]], inputs: Tensor
) -> float:
    """How far a removal is from right.

    On small images where the graph takes any size: it is as right or wrong on those, and sooner known.
    """
    provenance = graph.provenance
    side = max(inputs.shape[-2:])
    if provenance is not None and provenance.free_lengths and side > _SMALL_SIDE and not side % 32:
        smaller = torch.nn.functional.interpolate(inputs, size=(_SMALL_SIDE, _SMALL_SIDE), mode="nearest")
        # Some take one size only after all, and where tokens themselves are removed their number is that of the orbits.
        with suppress(RuntimeError, ValueError):
            return torchorbit.verify_removal(graph, pruned, removed, smaller)
    return torchorbit.verify_removal(graph, pruned, removed, inputs)
