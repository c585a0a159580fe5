"""What to remove: scores of units, how many go where, and pruning as a whole."""

from torchorbit.pruning.batch_norm import finetune_batch_norm
from torchorbit.pruning.calibration import Calibrator, MaskedLoss, calibrate
from torchorbit.pruning.pruning import prune
from torchorbit.pruning.scores import Scores

__all__ = ["Calibrator", "MaskedLoss", "Scores", "calibrate", "finetune_batch_norm", "prune"]
