"""What `torchorbit.prune` puts together: targets, criteria, selectors, steps, data, entry points."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

import torchorbit
from tests.models import stir
from torchorbit import Bounds, Target
from torchorbit.cost import FlopsCost, ParametersCost
from torchorbit.criteria import Magnitude
from torchorbit.errors import TargetError
from torchorbit.selectors import Global, Uniform

pytestmark = pytest.mark.numeric


def chain(width=32):
    return stir(
        nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5),
        )
    ).eval()  # fmt: skip


def loader(batches=3, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, size, size, generator=generator), torch.randint(0, 5, (8,), generator=generator))
        for _ in range(batches)
    ]


def cross_entropy(output, sample):
    return F.cross_entropy(output, sample[1])


X = torch.randn(2, 3, 12, 12)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def widths(dag):
    return [p.shape[0] for name, p in dag.named_parameters() if name.endswith("weight") and p.dim() > 1]


# -- what goes in


def test_a_module_goes_in_and_a_smaller_graph_comes_out():
    model = chain()
    before = copy.deepcopy(model.state_dict())
    pruned = torchorbit.prune(model, X, flops=0.5)
    whole = torchorbit.flops(model, X.shape).total
    assert torchorbit.flops(pruned).total <= 0.5 * whole
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.isfinite(pruned(X)).all()


def test_the_first_batch_says_what_the_model_takes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(4, 16), nn.Linear(16, 3)

        def forward(self, x, *, y):
            return {"scores": self.head(torch.relu(self.a(x) + self.b(y)))}

    batches = [{"x": torch.randn(5, 6), "y": torch.randn(5, 4), "label": torch.randint(0, 3, (5,))} for _ in range(2)]
    pruned = torchorbit.prune(
        Two().eval(),
        loader=batches,
        loss=lambda output, sample: F.cross_entropy(output["scores"], sample["label"]),
        ratio=0.5,
        criterion="taylor",
        sample_to_model_inputs=lambda sample: ((sample["x"],), {"y": sample["y"]}),
    )
    assert pruned(torch.randn(3, 6), y=torch.randn(3, 4))["scores"].shape == (3, 3)
    assert pruned.get_submodule("a").weight.shape == (8, 6)


def test_another_method_can_be_pruned():
    model = timm.create_model("resnet18").eval()
    pruned = torchorbit.prune(model, torch.randn(2, 3, 64, 64), ratio=0.5, entry_point="forward_features")
    # Its output are features, which stay as they are.
    assert pruned(torch.randn(1, 3, 64, 64)).shape == (1, 512, 2, 2)
    block = torchorbit.convert(model, torch.randn(2, 64, 8, 8), entry_point="layer2.forward")
    x = torch.randn(1, 64, 8, 8)
    assert torch.equal(block(x), model.layer2(x))


@pytest.mark.parametrize("entry_point", ["nothing", "fc.nothing", "no.such.path", "fc.weight"])
def test_a_method_that_is_not_there(entry_point):
    with pytest.raises(ValueError, match="has no such method; expected the name of one"):
        torchorbit.convert(timm.create_model("resnet18"), torch.randn(2, 3, 64, 64), entry_point=entry_point)


# -- targets


def test_parameters():
    dag = torchorbit.convert(chain(), X)
    pruned = torchorbit.prune(dag, parameters=0.4)
    assert 0.3 * parameters(dag) < parameters(pruned) <= 0.4 * parameters(dag)
    assert parameters(torchorbit.prune(dag, parameters=3000)) <= 3000


def test_any_function_of_a_model_is_a_latency():
    seen = []

    def widest(model):
        seen.append(model)
        model(X)
        return max(widths(model))

    pruned = torchorbit.prune(chain(), X, target=Target(widest, 10))
    assert max(widths(pruned)) == 10
    assert len({parameters(model) for model in seen}) > 2


def test_predictions_are_what_comes_out():
    for name in ("resnet18", "vit_tiny_patch16_224", "efficientnet_b0", "swin_tiny_patch4_window7_224"):
        dag = torchorbit.convert(timm.create_model(name, scriptable=False).eval(), torch.empty(2, 3, 224, 224))
        orbits = torchorbit.find_orbits(dag)
        half = {orbit: range(orbit.width // 2) for orbit in orbits}
        smaller = torchorbit.remove_channels(dag, half)
        keep = {number: torch.ones(count, dtype=torch.bool).numpy() for number, count in enumerate(orbits.counts)}
        for orbit, gone in half.items():
            keep[orbit.reading][orbit.components[list(gone)]] = False
        for measure in (FlopsCost(), ParametersCost()):
            assert measure.predicted(orbits, keep) == pytest.approx(measure(smaller), rel=1e-9), (name, measure)


def test_a_target_that_cannot_be_reached_says_what_can():
    dag = torchorbit.convert(chain(), X)
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        torchorbit.prune(dag, flops=0.3, constraint=Bounds(min_width=30))
    assert caught.value.min_cost == pytest.approx(torchorbit.flops(torchorbit.prune(dag, ratio=2 / 32)).total)


# -- steps


def test_steps_come_down_evenly_and_score_anew():
    dag = torchorbit.convert(chain(), X)
    whole = torchorbit.flops(dag).total
    seen = []

    class Counted(Magnitude):
        def scores(self, orbits):
            seen.append(orbits.units)
            return super().scores(orbits)

    between = []
    pruned = torchorbit.prune(
        dag, flops=0.4, criterion=Counted(), steps=4, between_steps=lambda model, step: between.append((step, model))
    )
    assert [step for step, _ in between] == [1, 2, 3]
    assert len(seen) == 4
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0] == 64
    shares = [torchorbit.flops(pruned).total / whole]
    assert 0.35 < shares[0] <= 0.4
    (pruning,) = pruned.history.prunings
    assert (pruning.target, pruning.steps, pruning.criterion.name, pruning.data) == ("flops=0.4", 4, "magnitude", False)
    assert dag.history is None


def test_the_callback_sees_the_model_of_each_step_and_may_train_it():
    model = chain()
    dag = torchorbit.convert(model, X)
    whole = torchorbit.flops(dag).total
    optimizer = torch.optim.SGD(dag.parameters(), lr=0.01, momentum=0.9)
    batches = loader()
    costs = []

    def train(smaller, step):
        costs.append(torchorbit.flops(smaller).total / whole)
        for sample in batches:
            optimizer.zero_grad()
            cross_entropy(smaller(sample[0]), sample).backward()
            optimizer.step()
        assert all(p in optimizer.state for p in smaller.parameters())

    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = torchorbit.prune(dag, flops=0.4, steps=3, between_steps=train, optimizer=optimizer)
    assert costs == pytest.approx([0.8, 0.6], abs=0.05)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in pruned.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("selector", ["uniform", "global"])
def test_a_ratio_in_steps_is_the_ratio(selector):
    dag = torchorbit.convert(chain(64), X)
    pruned = torchorbit.prune(dag, ratio=0.5, selector=selector, steps=4)
    left = sum(orbit.width for orbit in torchorbit.find_orbits(pruned))
    assert left == pytest.approx(64, abs=2)


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("selector", ["uniform", "global"])
def test_widths_that_are_too_coarse_for_one_step_are_reached_by_the_last(selector, round_to):
    """A tenth of the way is less than one channel of six, and less than eight of sixteen."""
    sizes = (6, 16, 16) if round_to == 1 else (16, 24, 32)
    layers = [nn.Linear(4, sizes[0]), nn.ReLU(), nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:]), nn.Linear(sizes[2], 3)]
    dag = torchorbit.convert(stir(nn.Sequential(*layers)), torch.randn(2, 4))
    at_once = torchorbit.prune(dag, ratio=0.5, selector=selector, round_to=round_to)
    in_steps = torchorbit.prune(dag, ratio=0.5, selector=selector, round_to=round_to, steps=10)
    assert sum(widths(in_steps)) == sum(widths(at_once)) < sum(widths(dag))
    if selector == "uniform":
        assert widths(in_steps) == widths(at_once)


def test_a_number_of_units_in_steps_is_that_number_whatever_it_is_measured_by():
    dag = torchorbit.convert(chain(16), X)
    by_cost = Global(9, per_cost=True)
    pruned = torchorbit.prune(dag, selector=by_cost, target=Target.flops(0.5), steps=3)
    assert sum(widths(dag)) - sum(widths(pruned)) == 9


@pytest.mark.parametrize("options", [{"flops": 0.01}, {"selector": Global(60)}])
def test_what_cannot_be_reached_is_refused_before_the_first_step(options):
    dag = torchorbit.convert(chain(), X)
    state = copy.deepcopy(dag.state_dict())
    trained = []
    with pytest.raises(TargetError):
        torchorbit.prune(
            dag,
            constraint=Bounds(min_width=8),
            steps=4,
            between_steps=lambda *step: trained.append(step),
            inplace=True,
            **options,
        )
    assert not trained
    assert all(torch.equal(value, state[key]) for key, value in dag.state_dict().items())


def test_shares_in_later_steps_are_of_what_there_was():
    dag = torchorbit.convert(chain(64), X)
    pruned = torchorbit.prune(dag, parameters=0.27, constraint=Bounds(min_share=0.5, round_to=4), steps=5)
    assert widths(pruned) == [32, 32, 5]


def test_a_callback_that_trains_changes_nothing_of_how_later_steps_are_scored():
    modes = []

    def train(smaller, step):
        modes.append(smaller.training)
        smaller.train()

    class Noted(Magnitude):
        def scores(self, orbits):
            modes.append(orbits.model.dag.training)
            return super().scores(orbits)

    pruned = torchorbit.prune(chain(), X, flops=0.4, criterion=Noted(), steps=3, between_steps=train)
    assert modes == [False] * 5
    assert not any(module.training for module in pruned.modules())


@pytest.mark.parametrize("selector", ["uniform", "global", "knapsack"])
def test_where_nothing_may_go_a_target_is_missed_with_the_cost_that_is_left(selector):
    dag = torchorbit.convert(chain(), X)
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        torchorbit.prune(dag, flops=0.5, frozen="*", selector=selector)
    assert caught.value.min_cost == torchorbit.flops(dag).total
    assert torchorbit.prune(dag, flops=1e12, frozen="*", selector=selector).history is None


# -- what is frozen


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "frozen",
    [
        lambda model, dag: [model.layer1],
        lambda model, dag: model.layer1[0].conv1,
        lambda model, dag: dag.get_submodule("layer1"),
        lambda model, dag: (path for path in ["layer1"]),
    ],
    ids=["a block of the model", "a layer", "a block of the graph", "an iterator"],
)
def test_what_is_frozen_stays_in_every_step(frozen, steps):
    model = timm.create_model("resnet18").eval()
    dag = torchorbit.convert(model, torch.empty(2, 3, 64, 64))
    pruned = torchorbit.prune(dag, flops=0.6, frozen=frozen(model, dag), steps=steps)
    assert pruned.get_submodule("layer1.0.conv1").weight.shape == (64, 64, 3, 3)
    assert pruned.get_submodule("layer2.0.conv1").out_channels < 128


def test_a_block_of_a_model_that_is_converted_on_the_way_can_be_frozen():
    model = timm.create_model("test_vit").eval()
    size = model.patch_embed.img_size
    block = model.blocks[1]
    pruned = torchorbit.prune(model, torch.empty(2, 3, *size), flops=0.7, frozen=block)
    assert pruned.get_submodule("blocks.1.mlp.fc1").weight.shape == block.mlp.fc1.weight.shape
    assert pruned.get_submodule("blocks.0.mlp.fc1").out_features < block.mlp.fc1.out_features


def test_a_module_of_another_model_is_not_frozen():
    with pytest.raises(ValueError, match="frozen: a Sequential names no module, parameter or vertex of the graph"):
        torchorbit.prune(chain(), X, flops=0.5, frozen=[chain()])


# -- data


@pytest.mark.parametrize("selector", ["uniform", "global", "knapsack"])
@pytest.mark.parametrize("criterion", ["taylor", "fisher", "apoz"])
def test_criteria_with_data(criterion, selector):
    if (criterion, selector) == ("apoz", "knapsack"):
        pytest.skip("shares of positions do not add up")
    dag = torchorbit.convert(chain(), X)
    state = copy.deepcopy(dag.state_dict())
    pruned = torchorbit.prune(
        dag, loader=loader(), loss=cross_entropy, flops=0.5, criterion=criterion, selector=selector
    )
    assert torchorbit.flops(pruned).total <= 0.5 * torchorbit.flops(dag).total
    (pruning,) = pruned.history.prunings
    assert (str(pruning.criterion), str(pruning.selector), pruning.data) == (criterion, selector, True)
    assert all(torch.equal(value, state[key]) for key, value in dag.state_dict().items())
    assert all(p.grad is None for p in dag.parameters())


def test_scores_made_before_are_used():
    dag = torchorbit.convert(chain(), X)
    orbits = torchorbit.find_orbits(dag)
    found = torchorbit.calibrate(dag, loader(), cross_entropy, ["taylor", "fisher"], orbits=orbits)
    by_scores = torchorbit.prune(dag, flops=0.5, criterion=found["taylor"])
    by_name = torchorbit.prune(dag, flops=0.5, criterion="taylor", loader=loader(), loss=cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(by_scores.parameters(), by_name.parameters(), strict=True))
    with pytest.raises(ValueError, match="of another graph"):
        torchorbit.prune(torchorbit.convert(chain(), X), flops=0.5, criterion=found["taylor"])
    with pytest.raises(ValueError, match="give frozen to calibrate or to find_orbits"):
        torchorbit.prune(dag, flops=0.5, criterion=found["taylor"], frozen="0")
    with pytest.raises(ValueError, match="steps=2 score anew"):
        torchorbit.prune(dag, flops=0.5, criterion=found["taylor"], steps=2)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "regnetz_b16", "mobilenetv3_small_050"])
def test_statistics_of_batch_norms_are_those_that_torch_estimates(name):
    model = timm.create_model(name, drop_path_rate=0.0, drop_rate=0.0).double().eval()
    batch = torch.randn(8, 3, 64, 64, dtype=torch.float64) * 2 + 1
    expected = copy.deepcopy(model)
    update_bn([batch], expected)
    dag = torchorbit.convert(copy.deepcopy(model), torch.empty(2, 3, 64, 64, dtype=torch.float64))
    count = torchorbit.finetune_batch_norm(dag, [batch])
    state = dag.state_dict()
    running = [key for key in state if "running_" in key]
    assert count == len(running) // 2
    for key in running:
        torch.testing.assert_close(state[key], expected.state_dict()[key], rtol=1e-9, atol=1e-9)


def test_statistics_are_those_of_all_batches_together_whatever_the_order():
    """Batches of one class each: the variance between them is part of the variance of the data."""
    x = torch.cat([torch.randn(40, 3).double() * 0.1 + level for level in (-2.0, 0.0, 3.0)])
    model = nn.Sequential(nn.BatchNorm1d(3)).double().eval()
    torchorbit.finetune_batch_norm(model, [x[:50], x[50:52], x[52:]])
    torch.testing.assert_close(model[0].running_mean, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=1e-12, atol=1e-12)


def test_a_last_batch_of_one_sample_does_not_stop_the_estimation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(6), nn.BatchNorm1d(6))
    x = torch.randn(9, 3, 5, 5, dtype=torch.float64)
    model.eval().double()(x)
    twin = copy.deepcopy(model)
    assert torchorbit.finetune_batch_norm(model, [x[:8], x[8:]]) == 2
    torchorbit.finetune_batch_norm(twin, [x[:8]])
    torch.testing.assert_close(model[4].running_mean, twin[4].running_mean, rtol=1e-12, atol=1e-12)
    made = model[0](x).detach()
    variances = made.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(model[1].running_var, variances, rtol=1e-12, atol=1e-12)


def test_a_model_in_training_mode_counts_no_batches_while_statistics_are_estimated():
    model = chain().train()
    torchorbit.finetune_batch_norm(model, [sample[0] for sample in loader()])
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_pruned_batch_norms_are_reestimated_on_request():
    dag = torchorbit.convert(chain(), X)
    batches = loader()
    plain = torchorbit.prune(dag, ratio=0.5)
    tuned = torchorbit.prune(dag, ratio=0.5, loader=batches, finetune_bn=True)
    torchorbit.finetune_batch_norm(plain, batches)
    assert torch.equal(plain.get_submodule("1").running_mean, tuned.get_submodule("1").running_mean)
    assert not tuned.training


# -- what is wrong with what was given


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "nothing says how much is to go"),
        ({"flops": 0.5, "ratio": 0.5}, ValueError, "given ratio=0.5 and flops=0.5; expected one of them"),
        ({"flops": 0.5, "parameters": 0.5}, ValueError, "expected one of them"),
        ({"flops": 0}, ValueError, "flops=0, expected a positive number"),
        ({"flops": math.nan}, ValueError, "flops=nan, expected a positive number"),
        ({"flops": "0.5"}, TypeError, "flops='0.5', expected a number"),
        ({"target": 0.5}, TypeError, "target=0.5, expected a Target"),
        ({"target": Target.flops(0.5), "ratio": 0.5}, ValueError, "expected one of them"),
        ({"flops": 0.5, "criterion": "tailor"}, ValueError, "there is no criterion 'tailor'; close to it: taylor"),
        ({"selector": "ratios"}, ValueError, "the selector 'ratios' needs ratios: give selector=Ratios"),
        ({"flops": 0.5, "criterion": 3}, TypeError, "criterion=3, expected a name or an object"),
        ({"flops": 0.5, "selector": "knap"}, ValueError, "there is no selector 'knap'"),
        ({"ratio": 0.5, "selector": "knapsack"}, ValueError, "is for the selectors 'uniform' and 'global'"),
        ({"flops": 0.5, "selector": Uniform(0.5)}, ValueError, "says itself how much goes"),
        ({"flops": 0.5, "criterion": "taylor"}, ValueError, "the criterion taylor looks at data: give a loader"),
        ({"flops": 0.5, "criterion": "l1", "selector": "knapsack"}, ValueError, "those by l1 do not stand that"),
        ({"flops": 0.5, "steps": 0}, ValueError, "steps=0, expected a positive number"),
        ({"flops": 0.5, "steps": 1.5}, TypeError, "steps=1.5, expected a whole number"),
        ({"ratio": 5, "selector": "global"}, ValueError, "ratio=5, expected a share from 0 up to but not including 1"),
        ({"ratio": "0.5"}, TypeError, "ratio='0.5', expected a number"),
        ({"flops": 0.5, "steps": 2, "between_steps": 3}, TypeError, "between_steps=3, expected a function"),
        ({"flops": 0.5, "constraint": Bounds(), "round_to": 8}, ValueError, "either constraint or round_to"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        torchorbit.prune(torchorbit.convert(chain(), X), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loader": iter(loader())}, TypeError, "list_iterator, which is used up by one pass; expected something"),
        ({"loader": 5}, TypeError, "loader is a int; expected something that gives batches"),
        ({"loader": []}, torchorbit.errors.CalibrationError, "the loader gives no batch"),
        ({"loss": "cross_entropy"}, TypeError, "loss is a str, expected a function of the model's output and a batch"),
        ({"autocast": "bfloat16"}, TypeError, "autocast='bfloat16', expected a dtype"),
        ({"max_batches": "3"}, TypeError, "max_batches='3', expected a whole number"),
        ({"calibration_epochs": 0}, ValueError, "epochs=0, expected a positive number"),
        ({"place": "somewhere"}, ValueError, "place='somewhere', expected 'consumed' or 'produced'"),
        ({"sample_to_model_inputs": lambda sample: sample[0]}, torchorbit.errors.CalibrationError, "gives a Tensor, expected"),
        ({"sample_to_model_inputs": lambda sample: ((sample[0],), {"input": sample[0]})},
         torchorbit.errors.CalibrationError, "gives 1 positional inputs and input, and the model takes input"),
        ({"entry_point": "no.such"}, ValueError, "Sequential has no such method"),
    ],
)  # fmt: skip
def test_wrong_data_is_one_clear_error(options, error, message):
    """Whether the model is converted by its first batch, or was before."""
    for model in (chain(), torchorbit.convert(chain(), X)) if "entry_point" not in options else (chain(),):
        if isinstance(model, torchorbit.DagModule) and "positional" in message:
            continue  # a graph knows by itself what it takes
        with pytest.raises(error, match=message):
            torchorbit.prune(
                model, **{"loader": loader(), "loss": cross_entropy, "flops": 0.5, "criterion": "taylor", **options}
            )


def test_inputs_by_names_that_a_model_does_not_list():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain()

        def forward(self, x, **by):
            return self.inner(x) * by["scale"]

    pruned = torchorbit.prune(
        Scaled().eval(),
        loader=loader(),
        loss=cross_entropy,
        flops=0.5,
        criterion="taylor",
        sample_to_model_inputs=lambda sample: ((sample[0],), {"scale": sample[0][:, :1, 0, 0]}),
    )
    assert pruned(X, scale=torch.zeros(2, 1)).abs().max() == 0


def test_a_module_without_inputs():
    with pytest.raises(ValueError, match="example_inputs is missing: a Sequential is converted"):
        torchorbit.prune(chain(), flops=0.5)


def test_a_loader_without_batches():
    with pytest.raises(torchorbit.errors.CalibrationError, match="gives no batch"):
        torchorbit.finetune_batch_norm(chain(), [])


def test_a_loader_of_something_else():
    with pytest.raises(torchorbit.errors.CalibrationError, match="say with sample_to_model_inputs"):
        torchorbit.prune(chain(), loader=[{"x": X}], loss=cross_entropy, flops=0.5, criterion="taylor")
