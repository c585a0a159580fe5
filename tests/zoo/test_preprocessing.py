"""What makes an input of an image is timm's transform, bit for bit, without timm."""

from __future__ import annotations

import pickle
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchorbit
from zoo.checkpoint import manifest_of
from zoo.manifest import Preprocessing

import timm.data  # isort: skip

SIZES = [(640, 480), (333, 500), (97, 41), (256, 256), (31, 900), (1, 1)]
"""Of images: landscape, portrait, smaller than the crop, square, thin, a point."""


class Nothing(nn.Module):
    """What timm wants of a model to find out how its inputs are made."""

    def __init__(self, configuration: dict[str, Any]):
        super().__init__()
        self.pretrained_cfg = configuration

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def resolved(configuration: dict[str, Any]) -> dict[str, Any]:
    return timm.data.resolve_model_data_config(Nothing(configuration))


def ours(found: dict[str, Any]) -> Any:
    """The transform of a graph that was told what timm found, as the command line tells it."""
    dag = torchorbit.convert(Nothing({}), torch.zeros(1, 3, 8, 8))
    preprocessing = Preprocessing(**{key: found[key] for key in Preprocessing.model_fields})
    dag.manifest = manifest_of(dag).model_copy(update={"preprocessing": preprocessing})
    return torchorbit.transforms(dag)


@cache
def combinations() -> dict[str, dict[str, Any]]:
    """Every kind of preprocessing among timm's pretrained models, at its smallest size: a name -> a configuration."""
    found: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
    for name in timm.list_pretrained():
        configuration = timm.get_pretrained_cfg(name).to_dict()
        data = resolved(configuration)
        _, height, width = data["input_size"]
        kind = (data["crop_mode"], data["interpolation"], data["crop_pct"], height == width)
        if kind not in found or found[kind][1]["input_size"] > data["input_size"]:
            found[kind] = (name, configuration)
    return dict(found.values())


def test_timm_has_every_kind_of_preprocessing() -> None:
    found = [resolved(configuration) for configuration in combinations().values()]
    assert {data["crop_mode"] for data in found} == {"center", "border", "squash"}
    assert {data["interpolation"] for data in found} >= {"bicubic", "bilinear"}
    assert len({data["crop_pct"] for data in found}) > 20
    assert any(data["input_size"][1] != data["input_size"][2] for data in found)


def assert_same_transform(found: dict[str, Any], sizes: list[tuple[int, int]] = SIZES) -> None:
    theirs, mine = timm.data.create_transform(**found, is_training=False), ours(found)
    for size in sizes:
        image = noise(size)
        expected = theirs(image)
        assert tuple(expected.shape) == found["input_size"]
        assert torch.equal(mine(image), expected), size


def test_the_transform_is_timms_for_every_kind_that_its_models_have() -> None:
    for name, configuration in combinations().items():
        try:
            assert_same_transform(resolved(configuration))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("size", [(3, 64, 64), (3, 96, 64), (3, 63, 97)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_the_transform_is_timms_in_every_combination(crop_mode: str, interpolation: str, size: tuple[int, ...]) -> None:
    for crop_pct in (0.5, 0.875, 0.95, 1.0, 1.15):
        found = resolved(
            {"crop_mode": crop_mode, "interpolation": interpolation, "crop_pct": crop_pct, "input_size": size}
        )
        assert_same_transform(found, [*SIZES[1:3], (64, 65)])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "LA", "YCbCr"])
def test_an_image_of_another_mode_is_made_an_rgb_image_first_as_by_timms_data_sets(mode: str) -> None:
    found = resolved({"input_size": (3, 64, 64)})
    image = noise((90, 70), mode)
    theirs = timm.data.create_transform(**found, is_training=False)(image.convert("RGB"))
    assert torch.equal(ours(found)(image), theirs)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_model_of_one_channel_gets_a_grey_image(mode: str) -> None:
    found = resolved({"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.3,)})
    image = noise((90, 70), mode)
    theirs = timm.data.create_transform(**found, is_training=False)(image.convert("L"))
    assert torch.equal(ours(found)(image), theirs)
    assert theirs.shape == (1, 64, 64)


def test_a_random_interpolation_is_one_that_does_not_change_from_image_to_image() -> None:
    found = resolved({"input_size": (3, 64, 64), "interpolation": "random"})
    expected = timm.data.create_transform(**found | {"interpolation": "bilinear"}, is_training=False)
    assert torch.equal(ours(found)(noise((90, 70))), expected(noise((90, 70))))


def test_the_transform_can_be_sent_to_a_worker() -> None:
    for crop_mode in ("center", "border"):
        transform = ours(resolved({"input_size": (3, 64, 32), "crop_mode": crop_mode}))
        again = pickle.loads(pickle.dumps(transform))
        assert torch.equal(again(noise((90, 70))), transform(noise((90, 70))))


def test_a_graph_without_preprocessing_says_so() -> None:
    dag = torchorbit.convert(Nothing({}), torch.zeros(1, 3, 8, 8))
    for manifest in (None, manifest_of(dag)):
        dag.manifest = manifest
        with pytest.raises(ValueError, match=re.escape("nothing is known of this model's preprocessing")):
            torchorbit.transforms(dag)
