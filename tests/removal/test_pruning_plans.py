"""Plans that start at channels of a layer: what they cut, how they are edited, and that they are executed once."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import torchorbit
from tests.models import Computes, stir
from torchorbit.errors import PlanError

pytestmark = pytest.mark.numeric


@pytest.fixture
def resnet():
    model = stir(torchvision.models.resnet18(weights=None)).eval()
    return torchorbit.convert(model, torch.empty(2, 3, 64, 64))


@pytest.fixture(scope="module")
def vit():
    model = timm.create_model(
        "vit_tiny_patch16_224", scriptable=False, img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5
    )
    return torchorbit.convert(stir(model).double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64))


def mlp():
    model = stir(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))).eval()
    return torchorbit.convert(model, torch.randn(2, 4))


def parameters(dag):
    return sum(p.numel() for p in dag.parameters())


def owned(plan):
    return {(cut.tensor, cut.dim): cut.indices for cut in plan.cuts}


def test_the_plan_of_torch_pruning_for_resnet18(resnet):
    plan = torchorbit.plan(resnet, "conv1", [2, 6, 9])
    assert plan.parameters == 11_211
    in_weights = {cut.tensor: cut.parameters for cut in plan.cuts if cut.parameters and "bn" not in cut.tensor}
    assert in_weights == {
        "conv1.weight": 441, "layer1.0.conv1.weight": 1728, "layer1.0.conv2.weight": 1728,
        "layer1.1.conv1.weight": 1728, "layer1.1.conv2.weight": 1728, "layer2.0.conv1.weight": 3456,
        "layer2.0.downsample.0.weight": 384,
    }  # fmt: skip
    assert all(cut.indices == (2, 6, 9) for cut in plan.cuts)
    text = str(plan)
    assert "11,211 parameters will be removed" in text
    before = parameters(resnet)
    assert plan.execute() is resnet
    assert before - parameters(resnet) == 11_211
    assert "11,211 parameters were removed" in str(plan)


def test_cuts_say_after_what_they_come(resnet):
    after = {cut.tensor: cut.after for cut in torchorbit.plan(resnet, "conv1", [2]).cuts}
    assert after["conv1.weight"] == ""
    assert after["bn1.weight"] == "conv1"
    assert after["layer1.0.conv1.weight"] == "maxpool"
    assert after["layer1.0.conv2.weight"] == "layer1.0.bn2"
    assert after["layer2.0.downsample.0.weight"] == after["layer2.0.conv1.weight"] == "layer1.1.relu"
    back = {cut.tensor: cut.after for cut in torchorbit.plan(resnet, "layer2.0.conv1", [2], dim=1).cuts}
    assert back["layer2.0.conv1.weight"] == ""
    assert back["bn1.weight"] == "relu"
    assert back["conv1.weight"] == "bn1"


@pytest.mark.parametrize("pick", [lambda dag: "layer3.0.bn1", lambda dag: dag.get_submodule("layer3.0.bn1")])
def test_a_layer_is_given_by_its_path_or_itself(resnet, pick):
    by_norm = torchorbit.plan(resnet, pick(resnet), [5])
    assert owned(by_norm) == owned(torchorbit.plan(resnet, "layer3.0.conv1", [5]))
    assert owned(by_norm) == owned(torchorbit.plan(resnet, "layer3.0.conv2", [5], dim=1))
    assert owned(by_norm) == owned(torchorbit.plan(resnet, "layer3.0.conv2.weight", [5], dim=1))
    assert owned(by_norm) == owned(torchorbit.plan(resnet, "layer3.0.bn1.running_var", [5]))


def test_channels_beside_each_other_in_a_concatenation_keep_their_places():
    model = Computes(
        lambda self, x: self.last(torch.cat([self.left(x), self.right(x)], 1)),
        left=nn.Conv2d(3, 4, 1), right=nn.Conv2d(3, 6, 1), last=nn.Conv2d(10, 2, 1),
    )  # fmt: skip
    dag = torchorbit.convert(stir(model).eval(), torch.randn(2, 3, 5, 5))
    plan = torchorbit.plan(dag, "last", [1, 5, 9], dim=1)
    assert owned(plan) == {
        ("left.weight", 0): (1,), ("left.bias", 0): (1,), ("right.weight", 0): (1, 5), ("right.bias", 0): (1, 5),
        ("last.weight", 1): (1, 5, 9),
    }  # fmt: skip
    smaller = plan.execute(inplace=False)
    assert torchorbit.verify_removal(dag.double(), smaller.double(), plan.removed) < 1e-12


def test_channels_of_a_grouped_convolution_are_counted_over_all_groups():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1, groups=2), nn.Conv2d(8, 2, 1))
    dag = torchorbit.convert(stir(model).eval(), torch.randn(2, 3, 5, 5))
    # Channel 8 is the third of the second of two groups of six; the one at its place in the first group goes with it.
    assert owned(torchorbit.plan(dag, "1", [8], dim=1))["0.weight", 0] == (2, 8)
    assert owned(torchorbit.plan(dag, "1", [8], dim=1))["1.weight", 1] == (2,)
    # A whole group is another unit, of which nothing else goes.
    group = torchorbit.plan(dag, "1", range(6, 12), dim=1)
    assert owned(group)["0.weight", 0] == tuple(range(6, 12))
    assert owned(group)["1.weight", 0] == (4, 5, 6, 7)
    assert group.execute(inplace=False).get_submodule("1").groups == 1


def test_depthwise_and_transposed_convolutions_have_channels_on_both_sides():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.ConvTranspose2d(6, 5, 2), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )
    dag = torchorbit.convert(stir(model).eval(), torch.randn(2, 3, 7, 7))
    expected = {
        ("0.weight", 0): (4,),
        ("0.bias", 0): (4,),
        ("1.weight", 0): (4,),
        ("1.bias", 0): (4,),
        ("2.weight", 0): (4,),
    }
    for module, dim in (("0", 0), ("1", 0), ("1", 1), ("2", 1)):
        assert owned(torchorbit.plan(dag, module, [4], dim)) == expected
    assert owned(torchorbit.plan(dag, "2", [3])) == {("2.weight", 1): (3,), ("2.bias", 0): (3,), ("4.weight", 1): (3,)}


def test_a_head_of_attention_goes_where_all_of_its_channels_are_asked_for(vit):
    one = owned(torchorbit.plan(vit, "blocks.0.attn.qkv", [3]))
    assert one["blocks.0.attn.qkv.weight", 0] == (3, 11, 19, 27, 35, 43), "channel 3 of queries and keys of every head"
    head = torchorbit.plan(vit, "blocks.0.attn.qkv", [*range(8, 16), *range(32, 40), *range(56, 64)])
    assert owned(head)["blocks.0.attn.proj.weight", 1] == tuple(range(8, 16))
    smaller = head.execute(inplace=False)
    assert torchorbit.verify_removal(vit, smaller, head.removed) < 1e-12


def test_tokens_of_an_embedding_are_no_channels():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.words(x).mean(1))

    dag = torchorbit.convert(stir(Text()).eval(), torch.zeros(2, 5, dtype=torch.long))
    assert owned(torchorbit.plan(dag, "words", [1])) == {("words.weight", 1): (1,), ("head.weight", 1): (1,)}
    with pytest.raises(ValueError, match="module 'words' takes no channels that are known by their numbers"):
        torchorbit.plan(dag, "words", [1], dim=1)


def test_a_plan_grows_and_shrinks():
    dag = mlp()
    plan = torchorbit.plan(dag, "0", [0, 5])
    plan.add("4", [1, 2], dim=1)
    assert owned(plan) == {
        ("0.weight", 0): (0, 5), ("0.bias", 0): (0, 5), ("2.weight", 0): (1, 2), ("2.weight", 1): (0, 5),
        ("2.bias", 0): (1, 2), ("4.weight", 1): (1, 2),
    }  # fmt: skip
    plan.drop("2", [5], dim=1)
    (first, second) = plan.removed
    plan.add_units(second, [7])
    plan.drop_units(second, [1])
    assert {orbit.index: units for orbit, units in plan.removed.items()} == {0: [0], 1: [2, 7]}
    before = parameters(dag)
    smaller = plan.execute(inplace=False)
    assert before - parameters(smaller) == plan.parameters
    assert torchorbit.verify_removal(dag.double(), smaller.double(), plan.removed) < 1e-12
    assert first.width == 6


def test_a_plan_from_which_all_is_dropped_removes_nothing():
    dag = mlp()
    plan = torchorbit.plan(dag, "0", [0])
    plan.drop("0", [0])
    assert (plan.cuts, plan.parameters, plan.removed) == ((), 0, {})
    assert parameters(plan.execute(inplace=False)) == parameters(dag)


def test_a_cut_goes_only_where_nothing_depends_on_it():
    class Lonely(nn.Module):
        """What the free parameter adds up to is added: its channels stand nowhere else."""

        def __init__(self):
            super().__init__()
            self.free, self.first, self.last = nn.Parameter(torch.randn(6)), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.first(x)) + self.free.square().sum()

    dag = torchorbit.convert(Lonely().eval(), torch.randn(2, 3))
    plan = torchorbit.plan(dag, "free", [1, 2])
    plan.add("first", [3])
    with pytest.raises(
        PlanError, match=r"without the cut of 'first.bias' \(dimension 0\) the model would no longer fit"
    ):
        plan.drop_cut("first.bias")
    assert len(plan.cuts) == 4
    plan.drop_cut("free")
    assert owned(plan) == {("first.weight", 0): (3,), ("first.bias", 0): (3,), ("last.weight", 1): (3,)}
    with pytest.raises(PlanError, match=r"cuts nothing from 'free'; its cuts are first.weight"):
        plan.drop_cut("free")


def test_a_cut_of_a_tensor_that_is_cut_twice_is_named_with_its_dimension():
    plan = torchorbit.plan(mlp(), "0", [0])
    plan.add("2", [3])
    with pytest.raises(PlanError, match=r"cuts two dimensions of '2.weight'"):
        plan.drop_cut("2.weight")
    with pytest.raises(PlanError, match=r"0.weight .dimension 0., 0.bias .dimension 0. lose the same channels"):
        plan.drop_cut("2.weight", 1)


def refused(plan, edit, message):
    before = (plan.removed, plan.cuts, plan.parameters)
    with pytest.raises(PlanError, match=message):
        edit()
    assert (plan.removed, plan.cuts, plan.parameters) == before


def test_an_edit_that_would_break_the_model_changes_nothing():
    plan = torchorbit.plan(mlp(), "0", [0, 1])
    (orbit,) = plan.removed
    refused(plan, lambda: plan.add("0", range(6)), "would lose all of its 6 units")
    refused(
        plan,
        lambda: plan.add("4", [0]),
        "channels 0 of '4' .what it gives. cannot be removed: channels of the model's output",
    )
    refused(plan, lambda: plan.drop("0", [1, 4]), "does not remove channels 4 of '0'")
    refused(plan, lambda: plan.drop_units(orbit, [1, 5]), "does not remove units 5 of Orbit")
    refused(plan, lambda: plan.add_units(torchorbit.find_orbits(mlp())[0], [3]), "no orbit of this plan")


def test_an_orbit_may_be_emptied_on_request():
    model = Computes(lambda self, x: self.head(x + self.second(self.first(x))),
                     first=nn.Linear(4, 6), second=nn.Linear(6, 4), head=nn.Linear(4, 2))  # fmt: skip
    dag = torchorbit.convert(stir(model).eval(), torch.randn(2, 4))
    plan = torchorbit.plan(dag, "first", range(6), allow_empty=True)
    smaller = plan.execute(inplace=False)
    assert "first.weight" not in smaller.state_dict()


def test_a_plan_is_executed_once():
    dag = mlp()
    plan = torchorbit.plan(dag, "0", [0])
    plan.execute()
    for again in (plan.execute, lambda: plan.add("0", [1])):
        with pytest.raises(PlanError, match="executed already"):
            again()
    assert dag.get_parameter("0.weight").shape == (5, 4)


def test_two_plans_of_one_graph_cannot_both_be_executed_in_place():
    dag = mlp()
    first, second = torchorbit.plan(dag, "0", [0]), torchorbit.plan(dag, "0", [1])
    first.execute()
    with pytest.raises(ValueError, match="call find_orbits again"):
        second.execute()
    torchorbit.plan(dag, "0", [1]).execute()
    assert dag.get_parameter("0.weight").shape == (4, 4)


def test_the_state_of_an_optimizer_is_cut_along():
    dag = mlp()
    optimizer = torch.optim.SGD(dag.parameters(), lr=0.1, momentum=0.9)
    dag(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    weight = dag.get_parameter("2.weight")
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    torchorbit.plan(dag, "2", [0, 3]).execute(optimizer=optimizer)
    kept = [1, 2, 4, 5, 6, 7]
    assert torch.equal(optimizer.state[dag.get_parameter("2.weight")]["momentum_buffer"], momentum[kept])


def test_what_is_frozen_is_refused_with_the_reason():
    orbits = torchorbit.find_orbits(mlp(), frozen="2")
    with pytest.raises(
        PlanError, match=r"channels 0, 1 of '0' \(what it gives\) cannot be removed: '2' is named in frozen=$"
    ):
        torchorbit.plan(orbits, "0", [0, 1])
    with pytest.raises(PlanError, match="channels of the model's input"):
        torchorbit.plan(orbits, "0", [2], dim=1)
    one = torchorbit.convert(nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 2)).eval(), torch.randn(2, 3))
    with pytest.raises(PlanError, match="it is the only one"):
        torchorbit.plan(one, "0", [0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("0", [6]), ValueError, r"'0' \(what it gives\) has channels 0 to 5, given \[6\]"),
        (("0", [-1]), ValueError, "has channels 0 to 5"),
        (("0", [1, 1]), ValueError, "given twice"),
        (("0", [1.5]), TypeError, "expected an iterable of integers"),
        (("0", 3), TypeError, "expected an iterable of integers"),
        (("0", [1], 2), ValueError, "dim=2 of module '0', expected 0 for what it gives, 1 for what it takes"),
        (("0.weight", [1], 2), ValueError, r"dim=2, but '0.weight' is of shape \(6, 4\)"),
        (("0", [1], "out"), TypeError, "dim='out', expected 0"),
        (("00", [1]), ValueError, "there is no module, parameter or buffer '00' in the graph"),
        (("1", [1]), ValueError, "module '1' gives no channels that are known by their numbers"),
        ((nn.Linear(4, 6), [1]), ValueError, "Linear.* is no module of the graph"),
        ((3, [1]), TypeError, "module is 3, expected a module of the graph or its path"),
    ],
)
def test_what_cannot_be_planned(arguments, error, message):
    with pytest.raises(error, match=message):
        torchorbit.plan(mlp(), *arguments)


@pytest.mark.parametrize(("name", "module"), [
    ("mobilenetv3_small_050", "blocks.2.0.conv_pw"), ("convnextv2_atto", "stages.0.blocks.0.mlp.fc1"),
    ("resnext26ts", "stages.1.0.conv2_kxk.conv"), ("densenet121", "features.denseblock1.denselayer2.conv2"),
])  # fmt: skip
def test_plans_of_timm_models_keep_what_the_model_computes(name, module):
    dag = torchorbit.convert(stir(timm.create_model(name, scriptable=False)).eval(), torch.randn(2, 3, 64, 64))
    plan = torchorbit.plan(dag, module, [0, 3])
    assert {0, 3} <= set(owned(plan)[f"{module}.weight", 0])
    before = parameters(dag)
    smaller = plan.execute(inplace=False)
    assert before - parameters(smaller) == plan.parameters > 0
    assert torchorbit.verify_removal(dag.double(), smaller.double(), plan.removed) < 1e-9
    assert np.isfinite(smaller.float()(torch.randn(1, 3, 64, 64)).detach().numpy()).all()


def test_a_plan_that_starts_at_units_can_be_edited_and_executed():
    dag = mlp()
    orbits = torchorbit.find_orbits(dag)
    plan = torchorbit.plan(orbits, {orbits[0]: [0, 1], orbits[1]: []})
    assert plan.removed == {orbits[0]: [0, 1]}
    assert "after" not in str(plan).partition("\n")[0]
    plan.add("2", [5])
    plan.drop_units(orbits[0], [1])
    assert owned(plan) == {
        ("0.weight", 0): (0,), ("0.bias", 0): (0,), ("2.weight", 0): (5,), ("2.weight", 1): (0,), ("2.bias", 0): (5,),
        ("4.weight", 1): (5,),
    }  # fmt: skip
    smaller = plan.execute(inplace=False)
    assert torchorbit.verify_removal(dag.double(), smaller.double(), plan.removed) < 1e-12


def test_units_of_other_orbits_than_the_plan_is_made_with_are_refused():
    dag = mlp()
    orbits, again = torchorbit.find_orbits(dag), torchorbit.find_orbits(dag)
    with pytest.raises(PlanError, match="another call of find_orbits"):
        torchorbit.plan(orbits, {again[0]: [0]})
    with pytest.raises(ValueError, match="another graph"):
        torchorbit.plan(mlp(), {orbits[0]: [0]})
    with pytest.raises(TypeError, match=r"units are \[0.5\], expected an iterable of integers"):
        torchorbit.plan(orbits, {}).add_units(orbits[0], [0.5])
