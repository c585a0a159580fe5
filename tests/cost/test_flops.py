"""FLOPs: two for each of fvcore's, and the figures that were published."""

import contextlib
import copy
import logging
import math
import pickle

import pytest
import timm
import timm.layers
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

import torchorbit
from harness.models import build_with_random_weights, input_size
from tests.models import Computes

FAMILIES = """
    bat_resnext26ts botnet26t_256 cait_xxs24_224 coat_lite_tiny convit_tiny crossvit_tiny_240 densenet121 dpn48b
    eca_resnet33ts edgenext_xx_small efficientvit_b0 efficientvit_m0 gcresnext26ts ghostnet_050 gmlp_ti16_224
    halonet26t hardcorenas_a lambda_resnet26t levit_128s mixer_s32_224 mobilenetv3_small_050
    mobilenetv4_hybrid_medium_075 mobileone_s0 mobilevit_xxs mobilevitv2_050 nf_regnet_b0 pit_ti_224
    poolformerv2_s12 pvt_v2_b0 regnety_002 repvit_m0_9 resmlp_12_224 resnest14d resnet18 skresnet18 starnet_s050
    swin_s3_tiny_224 swinv2_cr_tiny_ns_224 test_convnext2 test_efficientnet_evos test_efficientnet_gn test_mambaout
    test_maxvit test_nfnet test_vit3 test_vit_relpos tf_efficientnet_cc_b0_4e tf_mixnet_s tnt_s_patch16_224
    twins_svt_small visformer_tiny xcit_nano_12_p16_224
"""


@contextlib.contextmanager
def unfused_attention():
    """fvcore cannot count fused attention."""
    fused = timm.layers.config._USE_FUSED_ATTN
    timm.layers.set_fused_attn(False)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        timm.layers.config._USE_FUSED_ATTN = fused
        logging.disable(logging.NOTSET)


def counted_by_fvcore(name, size):
    with unfused_attention():
        model = build_with_random_weights(name)
        analysis = FlopCountAnalysis(model, torch.zeros(1, *size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return 2 * analysis.total()


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, scriptable=False).eval()


@pytest.mark.parametrize("name", FAMILIES.split())
def test_counts_what_fvcore_counts(name):
    model = on_meta(name)
    size = input_size(model)
    ours = torchorbit.flops(model, (1, *size)).total
    assert ours == pytest.approx(counted_by_fvcore(name, size), rel=5e-3)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_is_for_one_sample_whatever_was_recorded(batch):
    # Its relative positions go through a network of their own, once for all samples.
    model = on_meta("test_vit_relpos")
    size = input_size(model)
    expected = torchorbit.flops(model, (1, *size)).total
    assert torchorbit.flops(model, (batch, *size)).total == pytest.approx(expected)
    dag = torchorbit.convert(model, torch.empty(batch, *size, device="meta"))
    assert torchorbit.flops(dag).total == pytest.approx(expected)
    assert torchorbit.find_orbits(dag).costs.total() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "gflops"),
    [("fbnetv3_g", 2.141), ("fbnetv3_d", 1.038), ("fbnetv3_b", 0.843), ("convnextv2_nano", 4.911)],
)
def test_published_figures(name, gflops):
    count = torchorbit.flops(on_meta(name), (1, 3, 224, 224))
    assert round(count.total / 1e9, 3) == gflops
    assert count.kmapp == pytest.approx(count.total / (224 * 224 * 1000))
    assert float(count) == count.total
    assert math.isclose(sum(count.by_vertex.values()), count.total)


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_every_vertex_is_counted_by_itself():
    dag = torchorbit.convert(small(), torch.randn(2, 3, 10, 12))
    count = torchorbit.flops(dag)
    pixels = 10 * 12
    first, norm, last = 2 * pixels * 8 * 27, 2 * pixels * 8 * 2, 2 * pixels * 4 * 8
    assert list(count.by_vertex.values()) == [first, norm, last]
    assert count.total == first + norm + last
    text = str(count)
    assert len(text.splitlines()) == 2 + 3 + 1
    assert f"{count.total / 1e6:.3f}" in text.splitlines()[-1]
    assert f"{first / count.total:.2%}" in text


def test_a_module_is_converted_and_left_alone():
    model = small()
    before = list(model.named_modules())
    assert (
        torchorbit.flops(model, (1, 3, 10, 12)).total
        == torchorbit.flops(torchorbit.convert(model, torch.randn(2, 3, 10, 12))).total
    )
    assert [(name, id(m)) for name, m in model.named_modules()] == [(name, id(m)) for name, m in before]


def test_a_graph_is_counted_at_another_size():
    dag = torchorbit.convert(small(), torch.randn(2, 3, 8, 8))
    assert torchorbit.flops(dag, (1, 3, 16, 24)).total == 6 * torchorbit.flops(dag).total
    assert torchorbit.flops(dag, (7, 3, 8, 8)).total == torchorbit.flops(dag).total
    assert torchorbit.flops(dag, (1, 3, 16, 24)).kmapp == pytest.approx(torchorbit.flops(dag).kmapp)


def copied(dag):
    return copy.deepcopy(dag)


def reloaded(dag):
    return pickle.loads(pickle.dumps(dag))


def flattened(dag):
    return dag.flatten()


def cut(dag):
    return torchorbit.remove_channels(dag, {})


@pytest.mark.parametrize("made", [lambda dag: dag, copied, reloaded, flattened, cut])
def test_a_layer_that_was_replaced_is_counted_as_it_is(made):
    model = on_meta("mobilenetv3_small_050")
    dag = made(torchorbit.convert(model, torch.empty(2, 3, 64, 64, device="meta")))
    before = torchorbit.flops(dag).total
    width = dag.get_submodule("classifier").in_features
    dag._modules["classifier"] = nn.Linear(width, 20000, device="meta")
    for again in (dag, copied(dag), flattened(dag)):
        total = torchorbit.flops(again).total
        assert total == before + 2 * width * 19000
        assert torchorbit.find_orbits(again).costs.total() == total
    dag._modules["classifier"] = nn.Linear(width, 1000, device="meta")
    assert torchorbit.flops(dag).total == before


def test_shapes_follow_what_is_changed_in_a_layer():
    dag = torchorbit.convert(small(), torch.randn(2, 3, 8, 8))
    before = torchorbit.flops(dag).by_vertex
    first, last = dag.get_submodule("0"), dag.get_submodule("3")
    last.weight, last.bias = nn.Parameter(torch.randn(6, 8, 1, 1)), nn.Parameter(torch.randn(6))
    assert torchorbit.flops(dag).by_vertex == before | {"_3": 1.5 * before["_3"]}
    first.stride = (2, 2)
    assert torchorbit.flops(dag).total * 4 == sum((before | {"_3": 1.5 * before["_3"]}).values())


def test_a_layer_that_does_not_fit_is_named():
    dag = torchorbit.convert(small(), torch.randn(2, 3, 8, 8))
    dag._modules["3"] = nn.Conv2d(5, 4, 1)
    for function in (torchorbit.flops, torchorbit.find_orbits):
        with pytest.raises(torchorbit.errors.GraphRunError, match="vertex '_3'"):
            function(dag)


def test_a_size_that_the_graph_refuses_is_not_counted():
    two = torchorbit.convert(
        Computes(lambda self, a, b: self.l(a) + self.k(b), l=nn.Linear(4, 5), k=nn.Linear(3, 5)),
        (torch.randn(2, 4), torch.randn(2, 3)),
    )
    with pytest.raises(ValueError, match=r"input_shape=\(1, 4\).*\(2, 4\), \(2, 3\)"):
        torchorbit.flops(two, (1, 4))
    fixed = torchorbit.convert(on_meta("test_vit"), torch.empty(1, 3, 160, 160, device="meta"))
    assert torchorbit.flops(fixed, (5, 3, 160, 160)).total == torchorbit.flops(fixed).total
    with pytest.raises(ValueError, match=r"size of the graph is fixed.*160, 160"):
        torchorbit.flops(fixed, (1, 3, 192, 192))
    with pytest.raises(ValueError, match="input_shape"):
        torchorbit.flops(fixed, (3, 160, 160))
    free = torchorbit.convert(small(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"size of the graph is fixed.*3, 8, 8"):
        torchorbit.flops(free, (2, 4, 8, 8))


def test_a_module_without_a_shape_is_refused():
    with pytest.raises(ValueError, match="input_shape"):
        torchorbit.flops(small())


def test_what_is_no_image_has_no_kmapp():
    assert math.isnan(torchorbit.flops(nn.Linear(4, 5), (2, 4)).kmapp)
    assert torchorbit.flops(nn.Linear(4, 5), (2, 4)).total == 2 * 4 * 5


def test_fused_attention_is_two_products():
    def fused(q):
        return nn.functional.scaled_dot_product_attention(q, q, q)

    def written_out(q):
        return (q @ q.transpose(-1, -2)).softmax(-1) @ q

    shape = (2, 3, 7, 5)
    counts = [torchorbit.flops(Computes(function), shape).total for function in (fused, written_out)]
    assert counts == [2 * 2 * 3 * 7 * 7 * 5] * 2


def test_recurrent_layers_count_every_step():
    model = Computes(lambda self, x: self.rnn(x)[0], rnn=nn.LSTM(6, 5, batch_first=True, bidirectional=True))
    assert torchorbit.flops(model, (1, 9, 6)).total == 2 * 2 * 9 * (4 * 5 * 6 + 4 * 5 * 5)


def test_an_orbit_knows_exactly_what_hangs_on_it():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1))
    first, second = torchorbit.find_orbits(torchorbit.convert(model.eval(), torch.empty(2, 3, 10, 10)))
    pixels = 8 * 8
    norm = 2 * 2 * 8 * pixels  # a scale and a shift of every number
    assert first.flops == 2 * pixels * (8 * 27 + 8 * 5) + norm
    assert second.flops == 2 * pixels * (8 * 5 + 5 * 4)
    assert first.parameters == 8 * 27 + 8 + 2 * 8 + 8 * 5
    assert second.parameters == 8 * 5 + 5 + 5 * 4


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "eca_resnet33ts", "test_maxvit"])
def test_an_orbit_knows_what_it_costs(name):
    """What goes when a whole orbit goes is more than what goes with any of its units, and less than everything."""
    model = on_meta(name)
    dag = torchorbit.convert(model, torch.empty(2, *input_size(model), device="meta"))
    total = torchorbit.flops(dag).total
    orbits = torchorbit.find_orbits(dag)
    for orbit in list(orbits)[:: max(1, len(orbits) // 6)]:
        pruned = torchorbit.remove_channels(dag, {orbit: range(1, orbit.width)})
        saved = total - torchorbit.flops(pruned).total
        assert 0 < saved <= orbit.flops <= total
        gone = sum(p.numel() for p in dag.parameters()) - sum(p.numel() for p in pruned.parameters())
        assert 0 <= gone <= orbit.parameters
