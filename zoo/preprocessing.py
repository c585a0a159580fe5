"""From an image to the input of a pulled model, without timm."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from torchorbit.extras import require
from torchorbit.torchvision_parts import declare_missing_operators
from zoo.manifest import Preprocessing

require("harness", "the preprocessing of images", "torchvision")
declare_missing_operators()

from torchvision import transforms  # noqa: E402
from torchvision.transforms import InterpolationMode, functional  # noqa: E402


def transforms_of(preprocessing: Preprocessing) -> transforms.Compose:
    """What makes an input of a PIL image, the same numbers as timm's transform for evaluation.

    Args:
        preprocessing: of a checkpoint.

    Returns:
        A callable that takes a PIL image and returns a float tensor of shape ``preprocessing.input_size``.
    """
    size = preprocessing.input_size[1:]
    resized = [math.floor(length / preprocessing.crop_pct) for length in size]
    mode = InterpolationMode("bilinear" if preprocessing.interpolation == "random" else preprocessing.interpolation)
    steps: list[Any]
    if preprocessing.crop_mode == "squash":
        steps = [transforms.Resize(resized, mode), transforms.CenterCrop(size)]
    elif preprocessing.crop_mode == "border":
        fill = [round(255 * mean) for mean in preprocessing.mean]
        steps = [_ResizeInProportion(resized, mode, whole=True), _CropOrPad(size, fill)]
    elif resized[0] == resized[1]:
        steps = [transforms.Resize(resized[0], mode), transforms.CenterCrop(size)]
    else:
        steps = [_ResizeInProportion(resized, mode, whole=False), transforms.CenterCrop(size)]
    # As timm's data sets do before they hand an image to the transform.
    if preprocessing.input_size[0] in (1, 3):
        steps.insert(0, _Convert("L" if preprocessing.input_size[0] == 1 else "RGB"))
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )


class _Convert(nn.Module):
    """Make an image one of that mode: grey, or of three colours."""

    def __init__(self, mode: str):
        super().__init__()
        self.mode = mode

    def forward(self, image: Any) -> Any:
        return image if image.mode == self.mode else image.convert(self.mode)


class _ResizeInProportion(nn.Module):
    """Resize such that the image fits into a size, or covers it."""

    def __init__(self, size: list[int], mode: InterpolationMode, *, whole: bool):
        super().__init__()
        self.size, self.mode, self.whole = size, mode, whole

    def forward(self, image: Any) -> Any:
        given = functional.get_dimensions(image)[1:]
        ratios = [length / wanted for length, wanted in zip(given, self.size, strict=True)]
        ratio = max(ratios) if self.whole else min(ratios)
        return functional.resize(image, [round(length / ratio) for length in given], self.mode)


class _CropOrPad(nn.Module):
    """Crop the centre; what is missing around it has a colour."""

    def __init__(self, size: tuple[int, int], fill: list[int]):
        super().__init__()
        self.size, self.fill = size, fill

    def forward(self, image: Any) -> Any:
        _, height, width = functional.get_dimensions(image)
        missing = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if any(missing):
            left, top = missing[1] // 2, missing[0] // 2
            padding = [left, top, missing[1] - left, missing[0] - top]
            image = functional.pad(image, padding, fill=self.fill)
        return functional.center_crop(image, list(self.size))
