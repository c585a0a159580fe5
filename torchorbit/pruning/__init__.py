"""Removing channels: which ones, how many where, what that saves, and the proof that it was done right."""

from torchorbit.pruning.batch_norm import finetune_batch_norm
from torchorbit.pruning.calibration import CalibrationError, Calibrator, MaskedLoss, calibrate
from torchorbit.pruning.counting import Flops, flops
from torchorbit.pruning.module_plans import PlanEntry, PlanError, PruningPlan, pruning_plan
from torchorbit.pruning.oracle import verify_removal
from torchorbit.pruning.planning import Plan, plan
from torchorbit.pruning.pruning import prune
from torchorbit.pruning.removal import remove_channels
from torchorbit.pruning.scores import Scores
from torchorbit.pruning.targets import Target, TargetError

__all__ = [
    "CalibrationError",
    "Calibrator",
    "Flops",
    "MaskedLoss",
    "Plan",
    "PlanEntry",
    "PlanError",
    "PruningPlan",
    "Scores",
    "Target",
    "TargetError",
    "calibrate",
    "finetune_batch_norm",
    "flops",
    "plan",
    "prune",
    "pruning_plan",
    "remove_channels",
    "verify_removal",
]
