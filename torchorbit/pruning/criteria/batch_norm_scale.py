"""The scales of the normalizations that channels pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from torchorbit.arguments import Attr
from torchorbit.operators import OPERATORS
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.magnitude import root_mean_square
from torchorbit.pruning.criteria.slices import OrbitWeights, Reduction, check_choice, reduced
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores

#: Which normalizations count: batch norms, or group, instance, layer and root-mean-square norms as well.
Norms = Literal["batch", "all"]

_OPERATORS = {
    "batch": frozenset({"batch_norm"}),
    "all": frozenset([name for name, row in OPERATORS.items() if row.normalizes]),
}


@dataclass(frozen=True)
class BatchNormScale(WeightCriterion):
    """The absolute scales of the batch norms that a unit's channels pass.

    "Learning Efficient Convolutional Networks through Network Slimming" (Liu et al., 2017), where an L1 penalty on the
    scales makes many of them small during training. A unit's scales in one batch norm are averaged.

    Orbits that pass none are scored by `torchorbit.criteria.Magnitude`, multiplied such that their
    mean is the mean of the scales of all units that pass one; where nothing in the graph does, by magnitude as it is.

    Attributes:
        norms: ``"batch"``, or ``"all"`` that have a scale per channel: group, instance, layer and root-mean-square
            norms as well.
        reduce: ``"mean"``, ``"sum"`` or ``"max"`` over the norms that a unit passes.

    Raises:
        ArgumentError: an option has none of these values.
    """

    norms: Norms = "batch"
    reduce: Reduction = "mean"

    name: ClassVar[str] = "bn_scale"

    def __post_init__(self) -> None:
        check_choice("norms", self.norms, Norms)
        check_choice("reduce", self.reduce, Reduction)

    @torch.no_grad()
    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        slices = OrbitWeights(orbits)
        scales = self._scales(orbits)
        values, without = {}, {}
        for orbit in orbits:
            parts = slices.of(orbit)
            passed = [part for part in parts if part.tensor in scales]
            if passed:
                means = [part.summed(part.rows.abs().mean(1)) / part.counts().clamp(min=1) for part in passed]
                values[orbit] = reduced(means, self.reduce, orbit.width)
            else:
                without[orbit] = root_mean_square(parts, orbit.width)
        if values and without:
            usual = np.concatenate(list(values.values())).mean()
            without = {orbit: usual * magnitudes / (magnitudes.mean() or 1.0) for orbit, magnitudes in without.items()}
        return Scores(orbits, {**values, **without}, criterion=describe(self))

    def _scales(self, orbits: Orbits) -> frozenset[str]:
        """Paths of the scales of normalizations, by the names under which the graph reads them first."""
        first = orbits.first_paths()
        weights = [
            call.args.get("weight") for call in orbits.model.calls.values() if call.operator in _OPERATORS[self.norms]
        ]
        return frozenset(
            [first[id(orbits.model.tensor_at(weight.path))] for weight in weights if isinstance(weight, Attr)]
        )
