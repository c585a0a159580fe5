from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.models import build_with_random_weights, input_size
from harness.verification import random_input
from harness.weights import SkippedInitialization, fill_with_random_weights, normalize_by_first_run

import timm  # isort: skip - importable once harness.models is

FAMILIES = [
    "cait_xxs24_224",
    "convnextv2_atto",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_cc_b0_4e",
    "gmlp_s16_224",
    "inception_v4",
    "lcnet_050",
    "levit_128s",
    "mobileone_s0",
    "nf_resnet50",
    "regnetz_b16_evos",
    "resmlp_12_224",
    "resnet152",
    "resnetv2_50d_frn",
    "swinv2_cr_tiny_ns_224",
    "vit_dwee_patch16_reg1_gap_256",
    "xcit_nano_12_p8_224",
]


def outputs(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of a model for an image, for the same image once more, and for another one."""
    model = build_with_random_weights(name)
    image, other = (random_input(input_size(model), seed) for seed in ("one", "other"))
    with torch.no_grad():
        with normalize_by_first_run(model):
            first = model(image)
        return first, model(image), model(other)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_is_finite_and_depends_on_the_input(name: str) -> None:
    first, again, other = outputs(name)

    assert torch.isfinite(first).all()
    assert torch.equal(first, again), "the first run is already what the model gives afterwards"
    # A thousand times what two outputs may differ by to count as equal.
    assert (first - other).abs().max() > 1e-2 * first.abs().max()


def test_weights_are_the_same_in_every_build_and_different_for_other_seeds() -> None:
    first, second = (build_with_random_weights("test_convnext").state_dict() for _ in range(2))
    other = timm.create_model("test_convnext")
    fill_with_random_weights(other, "another seed")

    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["head.fc.weight"], other.state_dict()["head.fc.weight"])


def test_equal_shapes_get_different_weights() -> None:
    layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    fill_with_random_weights(layers, "seed")

    assert not torch.equal(layers[0].weight, layers[1].weight)


def test_rows_of_a_matrix_larger_than_the_block_of_noise_differ() -> None:
    layer = nn.Linear(2000, 1500)

    fill_with_random_weights(layer, "seed")

    assert len(layer.weight[:, :4].unique(dim=0)) == 1500
    assert layer.weight.std().item() == pytest.approx(2000**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("cait_xxs24_224", "blocks.0.gamma_1"),
        ("convnext_atto", "stages.0.blocks.0.gamma"),
        ("resnet18", "layer1.0.bn2.weight"),
        ("xcit_nano_12_p8_224", "blocks.0.gamma3"),
    ],
)
def test_what_starts_near_zero_becomes_substantial(name: str, parameter: str) -> None:
    model = build_with_random_weights(name)

    assert (model.get_parameter(parameter).abs() >= 0.4).all()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "levit_128s", "eva02_tiny_patch14_224"])
def test_computed_buffers_are_those_of_an_ordinary_build(name: str) -> None:
    computed = dict(build_with_random_weights(name).named_buffers())
    ordinary = dict(timm.create_model(name, scriptable=False).named_buffers())

    assert computed.keys() == ordinary.keys()
    for path, buffer in ordinary.items():
        if "running_" not in path:
            assert torch.equal(buffer, computed[path]), path


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_a_skipped_initialization_draws_no_numbers(name: str) -> None:
    before = torch.random.get_rng_state()

    with SkippedInitialization():
        timm.create_model(name, scriptable=False)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_tied_parameters_stay_tied() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight = model[0].weight

    fill_with_random_weights(model, "seed")

    assert model[1].weight is model[0].weight


def test_no_hooks_are_left_when_a_run_fails() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))

    with pytest.raises(ValueError, match="expected 4D"), normalize_by_first_run(model):
        model(torch.zeros(3))

    assert not any(module._forward_pre_hooks for module in model)
