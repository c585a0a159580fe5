"""Scores and statistics of batch norms from noise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from torchorbit.criteria import FisherNoise, Lamp
from torchorbit.errors import ArgumentError, ArgumentTypeError, CalibrationError
from torchorbit.pruning.noise import BatchNormCorrections, noise
from torchorbit.selectors import Global, Knapsack


def test_changes_of_a_linear_network_are_those_of_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False)).eval()
    first, second = model[0].weight.detach(), model[1].weight.detach()
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.zeros(1, 6)))
    found = FisherNoise(samples=20_000, batch_size=20_000).changes(orbits)[orbits[0]]
    # x is standard normal: unit i changes outputs by second[:, i] * (first[i] @ x), and outputs are over their rms.
    scale = (second @ first).square().sum() / 4
    wanted = second.square().sum(0) * first.square().sum(1) / scale / 2
    np.testing.assert_allclose(found, wanted, rtol=0.08)


def test_changes_behind_a_batch_norm_and_a_relu_are_those_of_the_normal_distribution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        gamma, beta = model[1].weight.uniform_(0.2, 2), model[1].bias.uniform_(-1, 1)
        # The statistics of what it was trained on, say: whatever they are, they do not count.
        model[1].running_mean.fill_(30.0)
        model[1].running_var.fill_(100.0)
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.zeros(1, 8)))
    found = FisherNoise(samples=40_000, batch_size=40_000).changes(orbits)[orbits[0]]
    normal = torch.distributions.Normal(0.0, 1.0)
    ratio = beta / gamma
    squares = (beta**2 + gamma**2) * normal.cdf(ratio) + beta * gamma * normal.log_prob(ratio).exp()  # E max(0, x)^2
    wanted = (squares * model[3].weight.square().sum(0)).detach()
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), rtol=0.08)


def test_scores_are_changes_over_the_share_that_is_left():
    orbits = torchorbit.find_orbits(torchorbit.convert(convolutional(), X))
    criterion = FisherNoise(samples=8)
    scores, changes = criterion.scores(orbits), criterion.changes(orbits)
    assert scores.comparable
    for orbit in orbits:
        order = np.argsort(changes[orbit])
        ascending = changes[orbit][order]
        left = np.cumsum(ascending[::-1])[::-1] / ascending.sum()
        np.testing.assert_allclose(scores[orbit][order], ascending / left)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


X = torch.zeros(1, 3, 12, 12)


def test_nothing_of_the_model_changes_and_the_same_seed_gives_the_same_scores():
    dag = torchorbit.convert(convolutional(), X).train()
    orbits = torchorbit.find_orbits(dag)
    state, random = copy.deepcopy(dag.state_dict()), torch.get_rng_state()
    one, same, other = (FisherNoise(samples=8, seed=seed).scores(orbits) for seed in (0, 0, 1))
    assert all(torch.equal(value, dag.state_dict()[name]) for name, value in state.items())
    assert all(module.training for module in dag.modules())
    assert all(parameter.grad is None for parameter in dag.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert all((one[orbit] == same[orbit]).all() for orbit in orbits)
    assert any((one[orbit] != other[orbit]).any() for orbit in orbits)


def test_noise_has_the_spectrum_of_images_in_space_and_is_white_elsewhere():
    dag = torchorbit.convert(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 32, 32))
    (batch,) = noise(dag, samples=64, batch_size=64, seed=0)
    (images,) = batch.args
    assert images.shape == (64, 2, 32, 32) == (batch.samples, 2, 32, 32)
    assert images.square().mean().item() == pytest.approx(1, rel=1e-4)
    power = torch.fft.rfft2(images).abs().square().mean((0, 1))
    assert (power[0, 4] / power[0, 8]).item() == pytest.approx(4, rel=0.3)  # amplitudes fall as 1/f
    dag = torchorbit.convert(nn.Linear(64, 4), torch.zeros(1, 64))
    (batch,) = noise(dag, samples=500, batch_size=500, seed=0)
    power = torch.fft.rfft(batch.args[0]).abs().square().mean(0)[1:-1]
    assert (power.max() / power.min()).item() < 1.6


def test_a_graph_of_one_batch_size_gets_as_many_batches_as_it_takes():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).reshape(2, 8))

    dag = torchorbit.convert(Fixed(), torch.zeros(2, 4))
    batches = noise(dag, samples=5, batch_size=4, seed=0)
    assert [batch.samples for batch in batches] == [2, 2, 2]
    torchorbit.prune(dag, flops=0.6)


def test_whole_numbers_among_outputs_do_not_count():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.b(self.a(x).relu())
            return {"scores": x, "best": x.argmax(-1)}

    smaller = torchorbit.prune(Counted(), torch.zeros(1, 4), flops=0.6)
    assert smaller(torch.zeros(1, 4))["best"].dtype == torch.int64


def test_a_model_that_gives_no_floating_point_numbers():
    class Best(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).relu()).argmax(-1)

    with pytest.raises(CalibrationError, match=r"gives no floating point numbers.*criterion='magnitude'"):
        torchorbit.prune(Best(), torch.zeros(1, 4), flops=0.6, criterion="fisher_noise")
    with pytest.warns(UserWarning, match=r"scored by their weights alone.*gives no floating point numbers"):
        smaller = torchorbit.prune(Best(), torch.zeros(1, 4), flops=0.6)
    (done,) = smaller.history.prunings
    assert (str(done.criterion), str(done.selector)) == ("magnitude", "uniform")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 0}, ArgumentError, "samples=0, expected 1 or more"),
        ({"batch_size": 0}, ArgumentError, "batch_size=0, expected 1 or more"),
        ({"seed": -1}, ArgumentError, "seed=-1, expected 0 or more"),
        ({"samples": 1.5}, ArgumentTypeError, "samples=1.5, expected a whole number"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        FisherNoise(**options)


# -- batch norms


def test_corrected_statistics_fit_the_smaller_network_as_its_own_do():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip
    data = torch.randn(4096, 8) * 3  # not what noise is like
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = None  # a cumulative mean
    model(data)
    dag = torchorbit.convert(model.eval(), torch.zeros(1, 8))
    plain = torchorbit.prune(dag, flops=0.4)
    corrected = torchorbit.prune(dag, flops=0.4, finetune_bn=True)
    ideal = torchorbit.prune(dag, flops=0.4, finetune_bn=True, loader=[(data,)])
    assert (corrected.history.prunings[0].finetune_bn, corrected.history.prunings[0].data) == (True, False)
    name = "4.running_var"
    off = [F.mse_loss(found.get_buffer(name).log(), ideal.get_buffer(name).log()) for found in (plain, corrected)]
    assert off[1] < off[0] / 3
    assert torch.equal(
        corrected.get_buffer("1.running_var"), plain.get_buffer("1.running_var")
    )  # nothing went before it


def test_corrections_leave_the_whole_graph_as_it_is():
    dag = torchorbit.convert(convolutional(), X)
    state = copy.deepcopy(dag.state_dict())
    orbits = torchorbit.find_orbits(dag)
    corrections = BatchNormCorrections.of(dag, {orbits[0]: range(8)})
    assert all(torch.equal(value, dag.state_dict()[name]) for name, value in state.items())
    assert {len(ratio) for ratio in corrections.ratios.values()} == {8, 24}


# -- what goes together


@pytest.mark.parametrize("criterion", ["magnitude", Lamp(), "random"], ids=str)
@pytest.mark.parametrize("selector", ["knapsack", Global(per_cost=True)], ids=str)
def test_scores_that_do_not_add_up_are_refused_where_they_are_added(criterion, selector):
    with pytest.raises(ArgumentError, match=r"do not stand that.*give criterion='fisher_noise', or selector='uniform'"):
        torchorbit.prune(convolutional(), X, flops=0.5, criterion=criterion, selector=selector)


def test_whoever_says_how_to_normalize_scores_may_add_them():
    told = Knapsack(normalization="mean")
    smaller = torchorbit.prune(convolutional(), X, flops=0.5, criterion="magnitude", selector=told)
    assert str(smaller.history.prunings[0].selector) == "knapsack(normalization='mean')"


def test_defaults_depend_on_what_scores_and_costs_are_like():
    def chosen(**options) -> tuple[str, str]:
        (pruning,) = torchorbit.prune(convolutional(), X, **options).history.prunings
        return str(pruning.criterion), str(pruning.selector)

    assert chosen(flops=0.5) == ("fisher_noise", "knapsack")
    assert chosen(flops=0.5, criterion="magnitude") == ("magnitude", "uniform")
    assert chosen(flops=0.5, criterion="lamp") == ("lamp", "uniform")
    assert chosen(ratio=0.5) == ("fisher_noise", "uniform(ratio=0.5)")
    measured = torchorbit.Target(lambda model: sum(p.numel() for p in model.parameters()), 0.6, relative=True)
    assert chosen(target=measured) == ("fisher_noise", "uniform")
