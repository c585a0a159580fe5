"""The magnitude of a unit's weights."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.slices import OrbitWeights, WeightRows
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


class Magnitude(WeightCriterion):
    """The root mean square of a unit's weights, each tensor first divided by its own root mean square.

    So a bias does not count less than a kernel ("Pruning Filters for Efficient ConvNets", Li et al., 2017, on whole
    orbits).
    """

    name: ClassVar[str] = "magnitude"

    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        slices = OrbitWeights(orbits)
        return Scores(
            orbits,
            {orbit: root_mean_square(slices.of(orbit), orbit.width) for orbit in orbits},
            criterion=describe(self),
        )


def magnitude(orbit: Orbit) -> NDArray[np.float64]:
    """The magnitude of every unit of an orbit.

    Returns:
        An array as long as the orbit is wide: the root mean square of a unit's weights, over those of the tensors that
        they belong to.
    """
    return root_mean_square(OrbitWeights(orbit.orbits).of(orbit), orbit.width)


@torch.no_grad()
def root_mean_square(slices: list[WeightRows], width: int) -> NDArray[np.float64]:
    """The root mean square of every unit's weights, over those of the tensors that they belong to.

    Args:
        slices: of the units of an orbit.
        width: number of units.
    """
    squares, counts = np.zeros(width), np.zeros(width)
    for part in slices:
        square = part.rows.square()
        whole = square.sum().item() / max(square.numel(), 1)
        relative = square.sum(1) / whole if whole else square.sum(1)
        squares += part.summed(relative).cpu().numpy()
        counts += (part.counts() * part.rows.shape[1]).cpu().numpy()
    return np.sqrt(squares / np.maximum(counts, 1))
