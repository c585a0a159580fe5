"""Scores by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


@dataclass(frozen=True)
class Random(WeightCriterion):
    """Numbers by chance, from 0 up to but not including 1: what every other criterion has to beat.

    It looks at nothing, so it also scores a graph on the meta device.

    Attributes:
        seed: of the numbers; the same seed gives the same model the same scores.

    Raises:
        ArgumentError: ``seed`` is negative.
        ArgumentTypeError: ``seed`` is no whole number.
    """

    seed: int = 0

    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if not isinstance(self.seed, (int, np.integer)) or isinstance(self.seed, bool):
            raise ArgumentTypeError(f"seed={self.seed!r}, expected a whole number")
        if self.seed < 0:
            raise ArgumentError(f"seed={self.seed}, expected a whole number from 0 on")

    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        numbers = np.random.default_rng(self.seed)
        return Scores(orbits, {orbit: numbers.random(orbit.width) for orbit in orbits}, criterion=describe(self))
