"""Half of everything that can be removed from real models is removed, and what is left computes what it should."""

import math
import random
import zlib

import pytest
import torch

import torchorbit
from harness.models import build_with_random_weights, input_size
from harness.verification import random_input
from harness.weights import normalize_by_first_run
from tests.numerics import in_float64
from tests.orbits.helpers import assert_as_at_another_size

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-9

FAMILIES = """
    bat_resnext26ts coat_lite_tiny dla46x_c dpn48b ecaresnet26t edgenext_xx_small efficientvit_b0 efficientvit_m0
    efficientvim_m1 ese_vovnet19b_slim fasternet_t0 gcresnext26ts ghostnet_050 hardcorenas_a hgnetv2_b0 levit_128s
    lcnet_050 mixer_s32_224 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobileone_s0 mobilevit_xxs
    mobilevitv2_050 pit_ti_224 pvt_v2_b0 regnety_002 repvit_m0_9 resnest14d resnet18 rexnet_100 shvit_s1 skresnet18
    starnet_s050 swiftformer_xs test_byobnet test_coatnet test_convnext test_convnext2 test_convnext3
    test_efficientnet test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln test_mambaout test_maxvit
    test_nfnet test_resnet test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos tf_mixnet_s tinynet_e
    botnet26t_256 cait_xxs24_224 convit_tiny crossvit_tiny_240 densenet121 eca_resnet33ts efficientformerv2_s0
    gmlp_ti16_224 halonet26t lambda_resnet26t mobilenetv4_hybrid_medium_075 nest_tiny nf_regnet_b0 resmlp_12_224
    resnext26ts sequencer2d_s swin_s3_tiny_224 swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tf_efficientnet_cc_b0_4e
    tiny_vit_5m_224 tnt_s_patch16_224 twins_svt_small visformer_tiny xcit_nano_12_p16_224
"""


@pytest.mark.parametrize("name", FAMILIES.split())
def test_half_of_every_orbit_can_be_removed(name):
    model = build_with_random_weights(name)
    size = input_size(model)
    x = random_input(size, name)
    with in_float64():
        dag = torchorbit.convert(model, torch.empty(2, *size))
    with torch.no_grad(), normalize_by_first_run(model):
        whole = model(x)
    orbits = torchorbit.find_orbits(dag)
    assert len(orbits) > 1
    assert not orbits.unruled
    assert_as_at_another_size(orbits, dag)
    choice = random.Random(zlib.crc32(name.encode()))
    removed = {orbit: choice.sample(range(orbit.width), orbit.width // 2) for orbit in orbits}

    pruned = torchorbit.remove_channels(dag, removed)

    with torch.no_grad():
        left = pruned(x)
    assert left.shape == whole.shape
    assert (left - whole).abs().max() > 1e-3 * whole.abs().max(), "the output does not depend on what was removed"
    x = x.double()
    assert torchorbit.verify_removal(dag.double(), pruned.double(), removed, x) <= TOLERANCE
    assert list(pruned.state_dict()) == list(model.state_dict())
    # Half of every orbit leaves about a quarter of every matrix.
    assert sum(p.numel() for p in pruned.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    assert torchorbit.flops(pruned).total < 0.6 * torchorbit.flops(dag).total
    assert math.isclose(orbits.costs.total(), torchorbit.flops(dag).total)

    smallest = torchorbit.remove_channels(dag, {orbit: range(1, orbit.width) for orbit in orbits})
    with torch.no_grad():
        assert smallest(x).shape == whole.shape
