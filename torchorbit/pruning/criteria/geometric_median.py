"""How far filters are from the geometric median of their layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.slices import OrbitWeights, Over, Reduction, check_choice, reduced
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores

_ROWS = 1024  # of the matrix of distances at a time


@dataclass(frozen=True)
class GeometricMedian(WeightCriterion):
    """The sum of the Euclidean distances from a unit's filters to those of all other units of the orbit.

    "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration" (FPGM, He et al., 2019): what is close
    to the geometric median of the filters can be expressed by the others, whatever its norm.

    Attributes:
        over: the ``"sources"``, kernels of the layers that produce the channels, or ``"all"`` slices of a unit; as in
            `torchorbit.criteria.WeightNorm`.
        reduce: ``"mean"``, ``"sum"`` or ``"max"`` over the tensors of an orbit, in each of which distances are taken.

    Raises:
        ArgumentError: an option has none of these values.
    """

    over: Over = "sources"
    reduce: Reduction = "mean"

    name: ClassVar[str] = "geometric_median"

    def __post_init__(self) -> None:
        check_choice("over", self.over, Over)
        check_choice("reduce", self.reduce, Reduction)

    @torch.no_grad()
    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        slices = OrbitWeights(orbits)
        values = {
            orbit: reduced([_distances(p.stacked()) for p in slices.of(orbit, self.over)], self.reduce, orbit.width)
            for orbit in orbits
        }
        return Scores(orbits, values, criterion=describe(self))


def _distances(filters: Tensor) -> Tensor:
    """The sum of distances from every row to all rows, of shape (rows,)."""
    sums = []
    for start in range(0, len(filters), _ROWS):
        distances = torch.cdist(filters[start : start + _ROWS], filters)
        # Many distances are taken from a matrix product, in which the zero from a row to itself comes out as its norm
        # times the root of the precision.
        distances.diagonal(start).zero_()
        sums.append(distances.sum(1))
    return torch.cat(sums)
