"""Criteria: which units of an orbit the model needs least."""

from torchorbit.pruning.criteria.base import (
    ActivationCriterion,
    Criterion,
    GradientCriterion,
    LossCriterion,
    Losses,
    Place,
    WeightCriterion,
)
from torchorbit.pruning.criteria.batch_norm_scale import BatchNormScale
from torchorbit.pruning.criteria.geometric_median import GeometricMedian
from torchorbit.pruning.criteria.lamp import Lamp
from torchorbit.pruning.criteria.magnitude import Magnitude
from torchorbit.pruning.criteria.random import Random
from torchorbit.pruning.criteria.weight_norm import L1, L2, WeightNorm

#: What is known by name. Whoever adds a criterion adds it here.
CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (Magnitude, L1, L2, WeightNorm, Lamp, BatchNormScale, GeometricMedian, Random)
}

__all__ = [
    "CRITERIA",
    "L1",
    "L2",
    "ActivationCriterion",
    "BatchNormScale",
    "Criterion",
    "GeometricMedian",
    "GradientCriterion",
    "Lamp",
    "LossCriterion",
    "Losses",
    "Magnitude",
    "Place",
    "Random",
    "WeightCriterion",
    "WeightNorm",
]
