"""Criteria: which units of an orbit the model needs least."""

from __future__ import annotations

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
from torchorbit.pruning.criteria.fisher import Fisher, FisherWeights
from torchorbit.pruning.criteria.magnitude import Magnitude
from torchorbit.pruning.criteria.sensitivity import Sensitivity
from torchorbit.pruning.criteria.shapley import Shapley
from torchorbit.pruning.criteria.taylor import Taylor, TaylorWeights

#: What is known by name. Whoever adds a criterion adds it here.
CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (
        ActivationNorm,
        APoZ,
        Fisher,
        FisherWeights,
        Magnitude,
        Sensitivity,
        Shapley,
        Taylor,
        TaylorWeights,
    )
}

__all__ = [
    "CRITERIA",
    "APoZ",
    "ActivationCriterion",
    "ActivationNorm",
    "Criterion",
    "Fisher",
    "FisherWeights",
    "GradientCriterion",
    "LossCriterion",
    "Losses",
    "Magnitude",
    "Place",
    "Sensitivity",
    "Shapley",
    "Taylor",
    "TaylorWeights",
    "WeightCriterion",
]
