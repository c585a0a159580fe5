"""Calibration: scores of units, and losses without them, from data."""

from torchorbit.errors import CalibrationError
from torchorbit.pruning.calibration.batches import default_sample_to_model_inputs, default_sample_to_n_samples
from torchorbit.pruning.calibration.calibrating import calibrate
from torchorbit.pruning.calibration.calibrator import Calibrator
from torchorbit.pruning.calibration.masking import MaskedLoss

__all__ = [
    "CalibrationError",
    "Calibrator",
    "MaskedLoss",
    "calibrate",
    "default_sample_to_model_inputs",
    "default_sample_to_n_samples",
]
