from . import criteria, edit, errors, inspect, latency, rules, selectors
from ._version import __version__
from .conversion.converting import convert
from .conversion.explaining import explain
from .conversion.folding import fold_parametrizations
from .cost.counting import flops
from .cost.targets import Target
from .errors import CheckpointError, ConversionError, HubError, TorchorbitError
from .graph.dag import DagModule
from .graph.loading import load
from .orbits.discovery import find_orbits
from .orbits.orbit import Orbit, Orbits
from .pruning.batch_norm import finetune_batch_norm
from .pruning.calibration.calibrating import calibrate
from .pruning.constraints import Bounds
from .pruning.pruning import prune
from .pruning.reconstruction.reconstructing import reconstruct
from .pruning.scores import Scores
from .removal.cutting import remove_channels
from .removal.planning import plan
from .removal.proof import verify_removal
from .sharing import from_pretrained, transforms

__all__ = [
    "Bounds",
    "CheckpointError",
    "ConversionError",
    "DagModule",
    "HubError",
    "Orbit",
    "Orbits",
    "Scores",
    "Target",
    "TorchorbitError",
    "__version__",
    "calibrate",
    "convert",
    "criteria",
    "edit",
    "errors",
    "explain",
    "find_orbits",
    "finetune_batch_norm",
    "flops",
    "fold_parametrizations",
    "from_pretrained",
    "inspect",
    "latency",
    "load",
    "plan",
    "prune",
    "reconstruct",
    "remove_channels",
    "rules",
    "selectors",
    "transforms",
    "verify_removal",
]
