"""timm, imported so that it also works beside a build of torch that the compiled part of torchvision does not fit."""

from torchorbit.extras import require
from torchorbit.torchvision_parts import declare_missing_operators

require("harness", "a model of timm", "timm", "torchvision")
declare_missing_operators()

import timm  # noqa: E402
import timm.data  # noqa: E402
from timm.data.dataset_factory import create_dataset  # noqa: E402

__all__ = ["create_dataset", "timm"]
