"""What a model costs: FLOPs, parameters and times; and how much it may cost."""

from torchorbit.cost.base import AdditiveCost, CostFunction, Keep, PredictedCost, name_of
from torchorbit.cost.counting import Flops, flops
from torchorbit.cost.counts import FlopsCost, ParametersCost
from torchorbit.cost.targets import Target

__all__ = [
    "AdditiveCost",
    "CostFunction",
    "Flops",
    "FlopsCost",
    "Keep",
    "ParametersCost",
    "PredictedCost",
    "Target",
    "flops",
    "name_of",
]
