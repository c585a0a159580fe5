"""Criteria: which units of an orbit the model needs least."""

from torchorbit.pruning.criteria.activation_norm import ActivationNorm
from torchorbit.pruning.criteria.apoz import APoZ
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
from torchorbit.pruning.criteria.fisher import Fisher, FisherWeights
from torchorbit.pruning.criteria.fisher_noise import FisherNoise
from torchorbit.pruning.criteria.geometric_median import GeometricMedian
from torchorbit.pruning.criteria.lamp import Lamp
from torchorbit.pruning.criteria.magnitude import Magnitude
from torchorbit.pruning.criteria.random import Random
from torchorbit.pruning.criteria.sensitivity import Sensitivity
from torchorbit.pruning.criteria.shapley import Shapley
from torchorbit.pruning.criteria.taylor import Taylor, TaylorWeights
from torchorbit.pruning.criteria.weight_norm import L1, L2, WeightNorm

#: What is known by name. Whoever adds a criterion adds it here.
CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (
        Magnitude,
        L1,
        L2,
        WeightNorm,
        Lamp,
        BatchNormScale,
        GeometricMedian,
        FisherNoise,
        Random,
        ActivationNorm,
        APoZ,
        Sensitivity,
        Taylor,
        TaylorWeights,
        Fisher,
        FisherWeights,
        Shapley,
    )
}

__all__ = [
    "CRITERIA",
    "L1",
    "L2",
    "APoZ",
    "ActivationCriterion",
    "ActivationNorm",
    "BatchNormScale",
    "Criterion",
    "Fisher",
    "FisherNoise",
    "FisherWeights",
    "GeometricMedian",
    "GradientCriterion",
    "Lamp",
    "LossCriterion",
    "Losses",
    "Magnitude",
    "Place",
    "Random",
    "Sensitivity",
    "Shapley",
    "Taylor",
    "TaylorWeights",
    "WeightCriterion",
    "WeightNorm",
]
