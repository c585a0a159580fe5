"""What a model costs: FLOPs, parameters, and what a measure of one's own has to have."""

from torchorbit.cost.base import AdditiveCost, CostFunction, PredictedCost
from torchorbit.cost.counting import Flops
from torchorbit.cost.counts import FlopsCost, ParametersCost

__all__ = ["AdditiveCost", "CostFunction", "Flops", "FlopsCost", "ParametersCost", "PredictedCost"]
