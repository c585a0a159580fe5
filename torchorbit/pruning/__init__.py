"""Removing channels, counting what that saves, and proving that it was done right."""

from torchorbit.pruning.calibration import CalibrationError, Calibrator, MaskedLoss, calibrate
from torchorbit.pruning.counting import Flops, flops
from torchorbit.pruning.oracle import verify_removal
from torchorbit.pruning.planning import Plan, plan
from torchorbit.pruning.pruning import prune
from torchorbit.pruning.removal import remove_channels

__all__ = [
    "CalibrationError",
    "Calibrator",
    "Flops",
    "MaskedLoss",
    "Plan",
    "calibrate",
    "flops",
    "plan",
    "prune",
    "remove_channels",
    "verify_removal",
]
