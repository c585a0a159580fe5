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
from torchorbit.pruning.criteria.magnitude import Magnitude

#: What is known by name. Whoever adds a criterion adds it here.
CRITERIA: dict[str, type[Criterion]] = {criterion.name: criterion for criterion in (Magnitude,)}

__all__ = [
    "CRITERIA",
    "ActivationCriterion",
    "Criterion",
    "GradientCriterion",
    "LossCriterion",
    "Losses",
    "Magnitude",
    "Place",
    "WeightCriterion",
]
