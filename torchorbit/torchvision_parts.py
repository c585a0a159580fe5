"""Let torchvision be imported beside a torch build that its compiled part does not fit.

timm imports torchvision, and torchvision registers meta kernels for its compiled operators when it is
imported. Beside a CPU-only torch the compiled library of a CUDA build of torchvision does not load, the
operators do not exist, and the import fails with "operator torchvision::nms does not exist". timm needs only
torchvision's Python parts, so declaring the two schemas that the import looks up is enough.

`harness.timm_import` and `zoo.preprocessing` do it before they import timm and torchvision. Whoever imports timm
themselves in such an environment writes ``import harness.timm_import`` before it; that an import has failed already
does no harm.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A torch.library.Library takes its declarations back when it is collected.
_library: torch.library.Library | None = None


def declare_missing_operators() -> bool:
    """Declare torchvision's operator schemas if its compiled library cannot be loaded.

    Returns:
        True when schemas were declared, False when nothing was missing (torchvision is absent, already
        imported, its compiled library loads, or somebody else has declared them).
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = Path(next(iter(spec.submodule_search_locations)))
    for compiled in (*folder.glob("_C*.so"), *folder.glob("_C*.pyd")):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return False
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        _library.define(schema)
    return True
