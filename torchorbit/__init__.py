"""torchorbit: structured pruning of vision models on a graph of the model."""

from torchorbit import _torchvision

_torchvision.declare_missing_operators()

from torchorbit.comparing import compare_module_outputs  # noqa: E402
from torchorbit.conversion import convert  # noqa: E402
from torchorbit.errors import CheckpointError, ConversionError, GraphRunError, TorchorbitError  # noqa: E402
from torchorbit.explaining import Explanation, explain  # noqa: E402
from torchorbit.graph.dag import DagModule  # noqa: E402
from torchorbit.graph.editing import insert_after, replace_layers, users  # noqa: E402
from torchorbit.graph.grouping import group  # noqa: E402
from torchorbit.graph.loading import load  # noqa: E402
from torchorbit.inspection import (  # noqa: E402
    frozen_groups,
    module_dependencies,
    module_of_vertex,
    unit_dependencies,
    unit_slices,
    vertices_of_module,
)
from torchorbit.orbits import Orbit, Orbits, check_rule, find_orbits, register_rule  # noqa: E402
from torchorbit.pruning import (  # noqa: E402
    CalibrationError,
    Calibrator,
    Flops,
    MaskedLoss,
    Plan,
    PlanError,
    PruningPlan,
    Scores,
    Target,
    TargetError,
    calibrate,
    finetune_batch_norm,
    flops,
    plan,
    prune,
    pruning_plan,
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
    "PlanError",
    "PruningPlan",
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
    "frozen_groups",
    "group",
    "insert_after",
    "load",
    "module_dependencies",
    "module_of_vertex",
    "plan",
    "prune",
    "pruning_plan",
    "register_rule",
    "remove_channels",
    "replace_layers",
    "transforms",
    "unit_dependencies",
    "unit_slices",
    "users",
    "verify_removal",
    "vertices_of_module",
]
