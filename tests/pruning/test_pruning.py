"""Pruning to a share of the channels or to a number of FLOPs, and plans of what goes."""

import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import torchorbit
from tests.models import Computes, stir
from torchorbit.pruning.criteria.magnitude import magnitude

pytestmark = pytest.mark.numeric

SIZE = (3, 224, 224)


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, scriptable=False).eval()


@pytest.fixture(scope="module")
def fbnet():
    return torchorbit.convert(timm.create_model("fbnetv3_g", scriptable=False).eval(), torch.empty(2, *SIZE))


@pytest.fixture(scope="module")
def convnext():
    return torchorbit.convert(timm.create_model("convnextv2_nano", scriptable=False).eval(), torch.empty(2, *SIZE))


@pytest.mark.parametrize("gflops", [0.799, 1.2, 1.396, 1.61])
def test_fbnetv3_g_to_published_sizes(fbnet, gflops):
    pruned = torchorbit.prune(fbnet, flops=gflops * 1e9)
    assert torchorbit.flops(pruned).total == pytest.approx(gflops * 1e9, rel=0.01)
    assert torchorbit.flops(pruned).total <= gflops * 1e9
    with torch.no_grad():
        assert pruned(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("gflops", [2.64, 1.68, 0.93])
def test_convnextv2_nano_to_published_sizes(convnext, gflops):
    pruned = torchorbit.prune(convnext, flops=gflops * 1e9)
    assert torchorbit.flops(pruned).total == pytest.approx(gflops * 1e9, rel=0.01)
    assert torchorbit.flops(pruned).total <= gflops * 1e9
    with torch.no_grad():
        assert pruned(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def chain(width=16):
    return stir(
        nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
            nn.Conv2d(width, 5, 1),
        )
    ).eval()  # fmt: skip


def graph(width=16):
    return torchorbit.convert(chain(width), torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize(("ratio", "left"), [(0, 16), (0.25, 12), (0.5, 8), (0.9, 2), (0.99, 1)])
def test_a_ratio_is_a_share_of_every_orbit(ratio, left):
    pruned = torchorbit.prune(graph(), ratio=ratio)
    assert [p.shape[0] for name, p in pruned.named_parameters() if name.endswith("weight")] == [left, left, left, 5]


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_widths_are_multiples(round_to):
    pruned = torchorbit.prune(graph(24), ratio=0.4, round_to=round_to)
    widths = [p.shape[0] for name, p in pruned.named_parameters() if name in ("0.weight", "3.weight")]
    assert all(width % round_to == 0 for width in widths)
    assert widths == [{1: 14, 4: 16, 8: 16}[round_to]] * 2


@pytest.mark.parametrize("target", [{"ratio": 0}, {"flops": 1e12}])
def test_where_nothing_is_asked_for_nothing_is_rounded(target):
    dag = graph(10)
    pruned = torchorbit.prune(dag, round_to=8, **target)
    assert [p.shape for p in pruned.parameters()] == [p.shape for p in dag.parameters()]


@pytest.mark.parametrize("round_to", [4, 8])
def test_multiples_hold_when_flops_are_asked_for(round_to):
    dag = graph(32)
    pruned = torchorbit.prune(dag, flops=0.5, round_to=round_to)
    assert torchorbit.flops(pruned).total <= 0.5 * torchorbit.flops(dag).total
    widths = [p.shape[0] for name, p in pruned.named_parameters() if name in ("0.weight", "3.weight")]
    assert all(width % round_to == 0 and width < 32 for width in widths)


def test_heads_are_not_rounded():
    dag = torchorbit.convert(timm.create_model("vit_tiny_patch16_224", depth=1).eval(), torch.empty(2, *SIZE))
    pruned = torchorbit.prune(dag, ratio=0.4, round_to=8)
    # Two of three heads, and of each 40 of 64 channels: for queries and keys, and for values.
    assert pruned.get_submodule("blocks.0.attn.qkv").weight.shape == (3 * 2 * 40, 112)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "resnext26ts", "swin_s3_tiny_224"])
@pytest.mark.parametrize("fraction", [0.75, 0.4])
def test_a_fraction_of_the_flops(name, fraction):
    model = on_meta(name)
    with torch.random.fork_rng():
        dag = torchorbit.convert(
            timm.create_model(name, scriptable=False).eval(), torch.empty(2, *model.pretrained_cfg["input_size"])
        )
    total = torchorbit.flops(dag).total
    pruned = torchorbit.prune(dag, flops=fraction)
    # The smallest models have so few channels that one more is several percent.
    assert 0.85 * fraction * total <= torchorbit.flops(pruned).total <= fraction * total


def test_a_number_of_flops_and_its_fraction_are_the_same():
    dag = graph(32)
    total = torchorbit.flops(dag).total
    by_number, by_fraction = (torchorbit.prune(dag, flops=target) for target in (0.5 * total, 0.5))
    assert torchorbit.flops(by_number).by_vertex == torchorbit.flops(by_fraction).by_vertex


def test_more_than_there_is_removes_nothing():
    dag = graph()
    pruned = torchorbit.prune(dag, flops=2 * torchorbit.flops(dag).total)
    assert torchorbit.flops(pruned).total == torchorbit.flops(dag).total


def test_an_unreachable_target_names_the_least():
    dag = graph()
    least = torchorbit.flops(torchorbit.prune(dag, ratio=0.999)).total
    with pytest.raises(ValueError, match="cannot be reached") as error:
        torchorbit.prune(dag, flops=0.5 * least)
    assert f"{least:.4g}" in str(error.value)
    assert torchorbit.flops(torchorbit.prune(dag, flops=least)).total == least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing says how much is to go"),
        ({"ratio": 0.5, "flops": 0.5}, "expected one of them"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": -0.1}, "ratio=-0.1"),
        ({"flops": 0}, "flops=0"),
        ({"flops": -1e9}, "flops=-1"),
        ({"ratio": 0.5, "round_to": 0}, "round_to=0"),
        ({"ratio": 0.5, "frozen": "no such*"}, "no such"),
    ],
)
def test_wrong_arguments(arguments, message):
    dag = graph()
    before = dag.graph
    with pytest.raises(ValueError, match=message):
        torchorbit.prune(dag, inplace=True, **arguments)
    assert dag.graph is before


@pytest.mark.parametrize("round_to", [2.5, 4.0, "8", True, None])
def test_what_is_no_number_of_channels_is_a_type_error(round_to):
    with pytest.raises(TypeError, match="expected a whole number of channels"):
        torchorbit.prune(graph(), ratio=0.5, round_to=round_to)


def test_without_weights_nothing_is_the_smallest():
    dag = graph().to("meta")
    for arguments in ({"ratio": 0.5}, {"flops": 0.5}):
        with pytest.raises(ValueError, match="meta device, where weights have no magnitude"):
            torchorbit.prune(dag, **arguments)


def test_the_smallest_go():
    model = chain(6)
    with torch.no_grad():
        for unit, factor in enumerate((1.0, 0.01, 1.0, 1.0, 0.02, 1.0)):
            for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
                tensor[unit] *= factor
            model[3].weight[:, unit] *= factor
    kept = [0, 2, 3, 5]
    weight = model[0].weight.detach()[kept].clone()
    pruned = torchorbit.prune(torchorbit.convert(model, torch.randn(2, 3, 12, 12)), ratio=1 / 3)
    assert torch.equal(pruned.get_parameter("0.weight"), weight)


def test_a_magnitude_is_a_root_mean_square_over_those_of_the_tensors():
    model = stir(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).eval()
    (orbit,) = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 3)))
    first, bias, last = (t.detach().double().numpy() for t in (model[0].weight, model[0].bias, model[2].weight))
    expected = [
        np.sqrt(
            ((first[u] ** 2).sum() / (first**2).mean() + bias[u] ** 2 / (bias**2).mean()
             + (last[:, u] ** 2).sum() / (last**2).mean()) / (3 + 1 + 2)
        )
        for u in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(magnitude(orbit), expected, rtol=1e-12)


def test_frozen_layers_stay():
    pruned = torchorbit.prune(graph(), ratio=0.5, frozen="3")
    assert pruned.get_parameter("0.weight").shape[0] == 16
    assert pruned.get_parameter("3.weight").shape == (16, 16, 3, 3)


def test_in_place():
    dag = graph()
    parameter = dag.get_parameter("0.weight")
    assert torchorbit.prune(dag, ratio=0.5, inplace=True) is dag
    assert dag.get_parameter("0.weight") is parameter
    assert parameter.shape[0] == 8


# -- plans


def test_plan_of_a_residual_stream():
    model = torchvision.models.resnet18(weights=None).eval()
    dag = torchorbit.convert(model, torch.empty(2, *SIZE))
    (orbit,) = torchorbit.find_orbits(dag).of_tensor("conv1.weight")
    plan = torchorbit.plan(dag, {orbit: [2, 6, 9]})
    assert {cut.tensor.rpartition(".")[0] for cut in plan.cuts} == {
        "conv1", "bn1", "layer1.0.conv1", "layer1.0.bn2", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.bn2",
        "layer1.1.conv2", "layer2.0.conv1", "layer2.0.downsample.0",
    }  # fmt: skip
    assert plan.parameters == 11_211
    assert all(cut.indices == (2, 6, 9) for cut in plan.cuts)
    before = sum(p.numel() for p in dag.parameters())
    pruned = torchorbit.remove_channels(dag, {orbit: [2, 6, 9]})
    assert before - sum(p.numel() for p in pruned.parameters()) == 11_211
    text = str(plan)
    assert "11,211 parameters will be removed" in text
    assert "layer2.0.downsample.0.weight" in text
    assert "BatchNorm2d(64" in text


def test_plan_counts_what_two_cuts_share_once():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    dag = torchorbit.convert(model, torch.randn(2, 4))
    first, second = torchorbit.find_orbits(dag)
    removed = {first: [0, 5], second: [1, 2, 3]}
    plan = torchorbit.plan(first.orbits, removed)
    gone = sum(p.numel() for p in dag.parameters()) - sum(
        p.numel() for p in torchorbit.remove_channels(dag, removed).parameters()
    )
    assert plan.parameters == gone == 2 * 5 + (6 * 8 - 4 * 5) + 3 + 2 * 3
    assert [(cut.tensor, cut.dim, cut.indices) for cut in plan.cuts] == [
        ("0.weight", 0, (0, 5)),
        ("0.bias", 0, (0, 5)),
        ("2.weight", 0, (1, 2, 3)),
        ("2.weight", 1, (0, 5)),
        ("2.bias", 0, (1, 2, 3)),
        ("4.weight", 1, (1, 2, 3)),
    ]
    assert sum(p.numel() for p in model.parameters()) == 4 * 6 + 6 + 6 * 8 + 8 + 8 * 2 + 2, "a plan changes nothing"


def test_plan_of_nothing():
    for graph_or_orbits in (graph(), torchorbit.find_orbits(graph())):
        plan = torchorbit.plan(graph_or_orbits, {})
        assert plan.cuts == ()
        assert plan.parameters == 0


def test_plan_shows_the_first_of_many_positions():
    (orbit,) = torchorbit.find_orbits(
        torchorbit.convert(nn.Sequential(nn.Linear(3, 20), nn.Linear(20, 2)), torch.randn(2, 3))
    )
    assert "0, 1, 2, 3, 4, 5, ..." in str(torchorbit.plan(orbit.orbits, {orbit: range(15)}))


def test_plan_of_a_shared_layer_counts_it_once():
    model = Computes(
        lambda self, x: self.last(self.twice(self.twice(self.first(x)))),
        first=nn.Linear(3, 6), twice=nn.Linear(6, 6), last=nn.Linear(6, 2),
    )  # fmt: skip
    dag = torchorbit.convert(model, torch.randn(2, 3))
    (orbit,) = torchorbit.find_orbits(dag)
    plan = torchorbit.plan(dag, {orbit: [3]})
    pruned = torchorbit.remove_channels(dag, {orbit: [3]})
    gone = sum(p.numel() for p in dag.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert plan.parameters == gone == 4 + (36 - 25 + 1) + 2


@pytest.mark.parametrize("wrong", [{"conv1": [1]}, {1: [2]}])
def test_plan_of_what_is_no_orbit(wrong):
    with pytest.raises(TypeError, match="no Orbit"):
        torchorbit.plan(graph(), wrong)


@pytest.mark.parametrize("wrong", [None, [], 3, ()])
def test_plan_of_what_is_no_removal(wrong):
    with pytest.raises(TypeError, match="expected a dict of orbits and positions"):
        torchorbit.plan(graph(), wrong)


def test_plan_of_a_layer_without_channels():
    with pytest.raises(TypeError, match="indices are missing"):
        torchorbit.plan(graph(), "0")


def test_a_number_instead_of_positions_is_a_type_error():
    dag = graph()
    (orbit, *_) = torchorbit.find_orbits(dag)
    for wrong in (torch.tensor(3), np.int64(3), np.array(3), 3):
        for function in (partial(torchorbit.plan, dag), partial(torchorbit.remove_channels, dag)):
            with pytest.raises(TypeError, match="expected an iterable of integers"):
                function({orbit: wrong})


def test_plan_of_an_orbit_that_loses_everything():
    (orbit, *_) = torchorbit.find_orbits(graph())
    plan = torchorbit.plan(orbit.orbits, {orbit: range(orbit.width)}, allow_empty=True)
    assert {cut.tensor for cut in plan.cuts} == {piece.tensor for piece in orbit.slices}
    assert plan.parameters == orbit.parameters


def test_plan_of_a_tensor_that_has_two_names():
    model = Computes(
        lambda self, i: self.h(self.n(self.e(i))), e=nn.Embedding(9, 6), n=nn.Linear(6, 6), h=nn.Linear(6, 9, bias=False)
    )  # fmt: skip
    model.h.weight = model.e.weight
    orbits = torchorbit.find_orbits(torchorbit.convert(model.eval(), torch.zeros(2, 4, dtype=torch.long)))
    (orbit,) = orbits.of_tensor("e.weight", 1)
    assert orbits.of_tensor("h.weight", 1) == [orbit]
    assert orbits.of_tensor("no such.weight", 1) == orbits.of_tensor("h.weight", 0) == []
    assert [piece.tensor for piece in orbit.slices].count("e.weight") == 1
    plan = torchorbit.plan(orbits, {orbit: [2]})
    assert plan.of_tensor("h.weight") == plan.of_tensor("e.weight") != ()
    assert plan.of_tensor("n.bias")[0].indices == (2,)


def test_plan_refuses_what_removal_refuses():
    (orbit, *_) = torchorbit.find_orbits(graph())
    for units in (range(16), [16], [1, 1]):
        with pytest.raises(ValueError, match="unit"):
            torchorbit.plan(orbit.orbits, {orbit: units})
    assert math.isfinite(orbit.flops)
