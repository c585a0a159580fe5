"""Removing channels, counting what that saves, and proving that it was done right."""

from torchorbit.pruning.counting import Flops, flops
from torchorbit.pruning.module_plans import PlanEntry, PlanError, PruningPlan, pruning_plan
from torchorbit.pruning.oracle import verify_removal
from torchorbit.pruning.planning import Plan, plan
from torchorbit.pruning.pruning import prune
from torchorbit.pruning.removal import remove_channels

__all__ = [
    "Flops",
    "Plan",
    "PlanEntry",
    "PlanError",
    "PruningPlan",
    "flops",
    "plan",
    "prune",
    "pruning_plan",
    "remove_channels",
    "verify_removal",
]
