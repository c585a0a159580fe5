"""How far a model can be pruned, and whether what is left is right."""

from __future__ import annotations

import random
from contextlib import nullcontext, suppress
from typing import Protocol
from zlib import crc32

import torch
from torch import Tensor

import torchorbit
from harness.columns import Moment, Stage
from harness.findings import Findings
from harness.meta import QuickNormalizations
from harness.verification import VerificationError, check_shapes, random_input
from torchorbit.orbits.orbit import Orbit, Orbits

TOLERANCE = 1e-4
"""Largest difference between a pruned graph and the whole one with zeros, over the largest output, that proves it."""

_SMALL_SIDE = 128
"""Side of the images with which a removal is proved where the graph takes any size."""


class Progress(Protocol):
    """Takes note of how far a worker has come."""

    def enter(self, stage: Stage) -> None:
        """Begin a stage; it stays in the record if something is raised."""

    def finish(self, moment: Moment) -> None:
        """Something was done, after which columns can be filled."""

    def remark(self, note: str) -> None:
        """Add to what a reader of the record should know."""


def find_out(found: Findings, progress: Progress) -> None:
    """Find out how far a model can be pruned, and whether what is left is right.

    Where the graph has weights, it is proved by numbers that half of every orbit can be removed; otherwise what is left
    runs on the `meta` device.

    Args:
        found: What is known of a model that was verified. What is found here is added to it.
        progress: Told of every stage that begins, and of what was done.
    """
    graph, numeric = found.graph, found.numeric
    progress.enter("orbits")
    orbits = found.orbits = torchorbit.find_orbits(graph)
    progress.finish("orbits")

    progress.enter("prune")
    if not len(orbits):
        progress.remark("nothing can be removed: every channel is frozen")
        found.smallest_flops = orbits.costs.total()
        progress.finish("prune")
        return
    inputs = random_input(found.input_size, found.seed) if numeric else torch.empty(1, *found.input_size, device="meta")
    smallest = torchorbit.remove_channels(graph, {orbit: range(1, orbit.width) for orbit in orbits})
    with nullcontext() if numeric else QuickNormalizations():
        output = smallest(inputs)
    found.smallest_flops = torchorbit.flops(smallest).total
    progress.finish("prune")
    del smallest
    check_shapes(found.output, output)
    if numeric:
        progress.enter("prove")
        found.removal_difference = _proved(found.seed, graph, orbits, inputs)
    progress.finish("prove")


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
