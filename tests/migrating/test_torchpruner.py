"""What TorchPruner does."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.migrating.helpers import LOADER, X, graph, loss, small
from tests.models import assert_same
from torchorbit.criteria import L1, Random, Shapley, Taylor

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def attributed():
    """A model, and what a hook on its first convolution and on its activation sees."""
    model = small(8, 6)
    seen = {}
    for name in ("0", "1"):

        def hook(module, args, output, name=name):
            output.retain_grad()
            seen[name] = output

        model.get_submodule(name).register_forward_hook(hook)
    images, labels = (torch.cat(parts) for parts in zip(*LOADER, strict=True))
    F.cross_entropy(model(images), labels, reduction="sum").backward()
    values = {name: (value.detach(), value.grad) for name, value in seen.items()}
    return small(8, 6), values


def scores_at(model, criterion, place, **options):
    dag = torchorbit.convert(model, X)
    found = torchorbit.calibrate(dag, LOADER, loss, criterion, place=place, **options)
    return found[criterion].of_channels("0")


@pytest.mark.parametrize(("place", "module"), [("produced", "0"), ("consumed", "1")])
def test_torchpruner_apoz(attributed, place, module):
    model, values = attributed
    found = scores_at(model, "apoz", place)
    np.testing.assert_allclose(found, (values[module][0] > 0).double().mean((0, 2, 3)), rtol=1e-12)
    theirs = (values[module][0] > 0).double().sum((2, 3)).mean(0)
    np.testing.assert_allclose(found * 64, theirs, rtol=1e-12)


@pytest.mark.parametrize(("place", "module"), [("produced", "0"), ("consumed", "1")])
def test_torchpruner_sensitivity(attributed, place, module):
    model, values = attributed
    expected = values[module][1].abs().sum((2, 3)).mean(0)
    np.testing.assert_allclose(scores_at(model, "sensitivity", place), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("place", "module"), [("produced", "0"), ("consumed", "1")])
def test_torchpruner_taylor(attributed, place, module, signed):
    model, values = attributed
    activation, gradient = values[module]
    changes = -(activation * gradient).sum((2, 3))
    expected = changes.mean(0) if signed else changes.abs().mean(0)
    found = scores_at(model, Taylor(signed=signed), place)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_torchpruner_weight_norm():
    model = small(8, 6)
    scores = L1(over="sources").scores(torchorbit.find_orbits(torchorbit.convert(model, X)))
    for path in ("0", "2"):
        expected = model.get_submodule(path).weight.detach().abs().sum((1, 2, 3))
        np.testing.assert_allclose(scores.of_channels(path), expected, rtol=1e-12)


def test_torchpruner_random():
    orbits = torchorbit.find_orbits(graph())
    first = Random(seed=3).scores(orbits).of_channels("0")
    np.testing.assert_array_equal(first, Random(seed=3).scores(orbits).of_channels("0"))
    assert not np.array_equal(first, Random(seed=4).scores(orbits).of_channels("0"))
    assert len(np.unique(first)) == 8


def test_torchpruner_shapley():
    model = small(4, 3)
    dag = torchorbit.convert(model, X)
    calls = []

    def counting(output, sample):
        calls.append(1)
        return loss(output, sample)

    found = torchorbit.calibrate(dag, LOADER[:1], counting, Shapley(sv_samples=5))
    assert len(calls) <= 2 + 5 * (4 + 3) + 2
    exact = torchorbit.calibrate(dag, LOADER[:1], loss, Shapley(sv_samples=None))
    (sampled,), (values,) = found.values(), exact.values()
    without = torchorbit.criteria.MaskedLoss(values.orbits, LOADER[:1], loss)
    for orbit in values:

        def gain(subset, orbit=orbit):
            return without({orbit: subset})

        others = [
            sum(
                (gain([*subset, 0]) - gain(list(subset)))
                * math.factorial(size) * math.factorial(orbit.width - 1 - size) / math.factorial(orbit.width)
                for subset in itertools.combinations(range(1, orbit.width), size)
            )
            for size in range(orbit.width)
        ]  # fmt: skip
        assert values[orbit][0] == pytest.approx(sum(others), rel=1e-9, abs=1e-14)
        rise = gain(range(orbit.width)) - gain([])
        assert values[orbit].sum() == pytest.approx(rise, rel=1e-9, abs=1e-14)
        same = sampled[sampled.orbits[orbit.index]]
        assert same.sum() == pytest.approx(rise, rel=1e-9, abs=1e-14)
    assert Shapley() == Shapley(sv_samples=5)


def test_torchpruner_scores_of_a_module():
    dag = graph(8, 6)
    scores = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    for module in dag.modules():
        if isinstance(module, nn.Conv2d):
            found = scores.of_channels(module)
            assert found.shape == (module(torch.zeros(1, module.in_channels, 8, 8)).shape[1],)
            assert np.isfinite(found).all()
    assert np.isinf(scores.of_channels("6")).all()


def test_torchpruner_criterion_and_reduction(attributed):
    model, _ = attributed
    dag = torchorbit.convert(model, X)
    found = [
        torchorbit.calibrate(
            dag,
            LOADER,
            lambda output, sample, how=how: F.cross_entropy(output, sample[1], reduction=how),
            "taylor",
            loss_reduction="sum" if how == "sum" else "mean",
        )["taylor"].of_channels("0")
        for how in ("mean", "sum", "none")
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-9)


def test_torchpruner_device():
    dag = graph()
    scores = torchorbit.calibrate(dag, LOADER, loss, "taylor", device="cpu")["taylor"]
    assert scores.samples == 12
    assert {parameter.device.type for parameter in dag.parameters()} == {"cpu"}


def test_torchpruner_prune_model():
    model = small(8, 6, norm=True)
    dag = torchorbit.convert(model, X)
    indices = [1, 4, 5]
    keep = [0, 2, 3, 6, 7]
    module = dag.get_submodule("0")
    smaller = torchorbit.plan(dag, module, indices).execute()
    assert smaller is dag
    assert torch.equal(dag.get_parameter("0.weight"), small(8, 6, norm=True)[0].weight[keep])
    fresh = small(8, 6, norm=True)
    fresh[0] = cut(fresh[0], keep, None)
    norm = fresh[1]
    fresh[1] = nn.BatchNorm2d(5).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(fresh[1], name).data.copy_(getattr(norm, name).data[keep])
    fresh[3] = cut(fresh[3], None, keep)
    assert_same(dag(X), fresh(X))


def cut(convolution, outputs, inputs):
    """A convolution without some channels, by hand."""
    weight = convolution.weight.data
    weight = weight if outputs is None else weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    made = nn.Conv2d(weight.shape[1], weight.shape[0], convolution.kernel_size, padding=convolution.padding)
    made.weight.data.copy_(weight)
    made.bias.data.copy_(convolution.bias.data if outputs is None else convolution.bias.data[outputs])
    return made


def test_torchpruner_cascading_modules():
    """They are found, and there are no others to be forgotten."""
    plan = torchorbit.plan(graph(8, 6, norm=True), "0", [1])
    tensors = {cut.tensor for cut in plan.cuts}
    assert {name.partition(".")[0] for name in tensors} == {"0", "1", "3"}
    assert {"1.running_mean", "1.running_var"} <= tensors


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_torchpruner_optimizer(kind):
    dag = graph(8, 6).train()
    made = {"SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "Adam": torch.optim.Adam}
    optimizer = made[kind](dag.parameters())
    loss(dag(LOADER[0][0]), LOADER[0]).backward()
    optimizer.step()
    key = {"SGD": "momentum_buffer", "Adam": "exp_avg"}[kind]
    before = optimizer.state[dag.get_parameter("0.weight")][key].clone()
    torchorbit.plan(dag, "0", [0, 3]).execute(optimizer=optimizer)
    after = optimizer.state[dag.get_parameter("0.weight")][key]
    assert torch.equal(after, before[[1, 2, 4, 5, 6, 7]])
    optimizer.zero_grad()
    loss(dag(LOADER[1][0]), LOADER[1]).backward()
    optimizer.step()


def test_torchpruner_prune_module_by_direction():
    dag = graph(8, 6)
    given = torchorbit.plan(dag, "0", [2, 5], dim=0)
    taken = torchorbit.plan(dag, "2", [2, 5], dim=1)
    assert [(cut.tensor, cut.dim, cut.indices) for cut in given.cuts] == [
        (cut.tensor, cut.dim, cut.indices) for cut in taken.cuts
    ]


def test_torchpruner_prune_parameter_by_axis():
    dag = graph(8, 6)
    by_tensor = torchorbit.plan(dag, "2.weight", [2, 5], dim=1)
    assert by_tensor.removed == torchorbit.plan(by_tensor.orbits, "2", [2, 5], dim=1).removed
    # Nothing is cut alone: what would no longer fit is refused.
    with pytest.raises(torchorbit.errors.PlanError, match="would no longer fit together"):
        by_tensor.drop_cut("2.weight")


def test_torchpruner_dropout():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    for adjust, expected in ((False, 0.5), (True, 0.5 * 6 / 8)):
        dag = torchorbit.convert(model, torch.randn(2, 3))
        smaller = torchorbit.plan(dag, "0", [0, 1]).execute(inplace=False, adjust_dropout=adjust)
        assert smaller.get_submodule("2").p == pytest.approx(expected)
    assert torchorbit.prune(dag, ratio=0.5, adjust_dropout=True).get_submodule("2").p == 0.25


@pytest.mark.parametrize(
    ("layer", "images"),
    [
        (lambda a, b: nn.Linear(a, b), (2, 3)),
        (lambda a, b: nn.Conv1d(a, b, 3, padding=1), (2, 3, 8)),
        (lambda a, b: nn.Conv2d(a, b, 3, padding=1), (2, 3, 8, 8)),
        (lambda a, b: nn.Conv3d(a, b, 3, padding=1), (2, 3, 4, 4, 4)),
        (lambda a, b: nn.ConvTranspose2d(a, b, 2), (2, 3, 8, 8)),
    ],
    ids=["linear", "conv1d", "conv2d", "conv3d", "transposed"],
)
def test_torchpruner_layers(layer, images):
    dag = torchorbit.convert(nn.Sequential(layer(3, 8), nn.ReLU(), layer(8, 2)).eval(), torch.randn(images))
    plan = torchorbit.plan(dag, "0", [1, 5])
    smaller = plan.execute(inplace=False)
    assert torchorbit.verify_removal(dag, smaller, plan.removed) < 1e-12
    assert smaller.get_parameter("2.weight").numel() == dag.get_parameter("2.weight").numel() * 6 / 8
