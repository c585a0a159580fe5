"""torchorbit: structured pruning of vision models on a graph of the model."""

from torchorbit import _torchvision

_torchvision.declare_missing_operators()

from torchorbit.comparing import compare_module_outputs  # noqa: E402
from torchorbit.conversion import convert  # noqa: E402
from torchorbit.errors import CheckpointError, ConversionError, GraphRunError, TorchorbitError  # noqa: E402
from torchorbit.explaining import Explanation, explain  # noqa: E402
from torchorbit.graph.dag import DagModule  # noqa: E402
from torchorbit.graph.loading import load  # noqa: E402
from torchorbit.orbits import Orbit, Orbits, check_rule, find_orbits, register_rule  # noqa: E402
from torchorbit.pruning import (  # noqa: E402
    CalibrationError,
    Calibrator,
    Flops,
    MaskedLoss,
    Plan,
    Scores,
    Target,
    TargetError,
    calibrate,
    finetune_batch_norm,
    flops,
    plan,
    prune,
    remove_channels,
    verify_removal,
)
from torchorbit.sharing import from_pretrained, transforms  # noqa: E402

__version__ = "0.1.0"

#: torch-dag's name of `convert`.
build_from_unstructured_module = convert

__all__ = [
    "CalibrationError",
    "Calibrator",
    "CheckpointError",
    "ConversionError",
    "DagModule",
    "Explanation",
    "Flops",
    "GraphRunError",
    "MaskedLoss",
    "Orbit",
    "Orbits",
    "Plan",
    "Scores",
    "Target",
    "TargetError",
    "TorchorbitError",
    "__version__",
    "build_from_unstructured_module",
    "calibrate",
    "check_rule",
    "compare_module_outputs",
    "convert",
    "explain",
    "find_orbits",
    "finetune_batch_norm",
    "flops",
    "from_pretrained",
    "load",
    "plan",
    "prune",
    "register_rule",
    "remove_channels",
    "transforms",
    "verify_removal",
]
