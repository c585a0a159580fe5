"""Layer-adaptive magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.slices import OrbitWeights, Over, check_choice, reduced
from torchorbit.pruning.criteria.weight_norm import norm
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


@dataclass(frozen=True)
class Lamp(WeightCriterion):
    """The squared norm of a unit, over those of all units of its orbit that are at least as large, its own included.

    "Layer-adaptive Sparsity for the Magnitude-based Pruning" (Lee et al., 2021), for units in place of single weights:
    the share of a unit in the energy that is left when it is the next to go. Scores of different orbits can be
    compared as they are; the largest unit of every orbit has 1. Of equal units the later counts as the larger one, as
    in the paper; units without any weight but zero have 0.

    Attributes:
        over: ``"all"`` slices of a unit, or those of its ``"sources"`` only, as in
            `torchorbit.criteria.WeightNorm`. Squared norms add up over them.

    Raises:
        ArgumentError: ``over`` is neither.
    """

    over: Over = "all"

    name: ClassVar[str] = "lamp"
    comparable: ClassVar[bool] = True
    additive: ClassVar[bool] = False  # the largest unit of every orbit has 1, whatever it is worth

    def __post_init__(self) -> None:
        check_choice("over", self.over, Over)

    @torch.no_grad()
    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        slices = OrbitWeights(orbits)
        values = {}
        for orbit in orbits:
            squares = [norm(part, 2).square() for part in slices.of(orbit, self.over)]
            values[orbit] = shares_of_rest(reduced(squares, "sum", orbit.width))
        return Scores(orbits, values, criterion=describe(self), comparable=self.comparable)


def shares_of_rest(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """What every unit has, over the sum of what those have that have at least as much, itself included."""
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    left = np.cumsum(ascending[::-1])[::-1]
    result = np.zeros_like(squares)
    np.divide(ascending, left, out=ascending, where=left > 0)
    result[order] = ascending
    return result
