from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError, UsageError
from harness.models import (
    build,
    build_on_meta,
    build_with_random_weights,
    example_input,
    expected_cost,
    input_size,
    model_names,
)

import timm  # isort: skip - importable once harness.models is


def test_without_patterns_every_model_is_named_as_timm_does() -> None:
    assert model_names() == timm.list_models()


def test_patterns_add_up_and_exclusions_take_away() -> None:
    names = model_names(["resnet18", "test_vit*"], ["*vit2", "*vit3", "*relpos"])

    assert names == ["resnet18", "test_vit", "test_vit4"]


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(UsageError, match=r"no model of timm .* matches 'resnext_of_kin\*'"):
        model_names(["resnet18", "resnext_of_kin*"])


def test_a_pattern_of_names_to_leave_out_that_matches_nothing_is_named() -> None:
    with pytest.raises(UsageError, match=r"no model of timm .* matches 'resnett\*'"):
        model_names(["test_vit"], ["*vit2", "resnett*"])


def test_excluding_everything_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"every model that matches is excluded by 'res\*'"):
        model_names(["resnet18"], ["res*"])


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="has no model 'resnet_18'; close to it: resnet18"):
        build_on_meta("resnet_18")


def test_a_model_on_meta_takes_no_memory_and_is_in_evaluation_mode() -> None:
    model = build_on_meta("vit_tiny_patch16_224")

    assert not model.training
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert example_input(model).device.type == "meta"


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", (3, 224, 224)), ("test_vit", (3, 160, 160)), ("inception_v4", (3, 299, 299))]
)
def test_the_input_size_is_the_one_of_the_models_configuration(name: str, size: tuple[int, ...]) -> None:
    model = build_on_meta(name)

    assert input_size(model) == size
    assert example_input(model).shape == (2, *size)


def test_models_that_cost_more_are_expected_to() -> None:
    names = ["vit_7b_patch16_dinov3", "vit_gigantic_patch14_224", "vit_large_patch16_384", "resnet18", "test_vit"]

    assert sorted(names, key=expected_cost, reverse=True) == names


def test_weights_from_a_file_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    source = build_with_random_weights("test_resnet")
    save_file(source.state_dict(), path)

    model = build("test_resnet", weights=path)

    assert not model.training
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in source.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(build_with_random_weights("test_resnet").state_dict(), path)

    with pytest.raises(HarnessError, match=r"weights\.safetensors holds no weights of test_vit: .*Missing key"):
        build("test_vit", weights=path)
