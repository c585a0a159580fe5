"""Criteria that need data, against values that are computed another way."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, stir
from tests.orbits.helpers import the
from tests.pruning.gated import (
    MODELS,
    Chain,
    Concat,
    Groups,
    Residual,
    by_finite_differences,
    data,
    gates_of,
    loss_of,
    losses_with,
    made,
    mean_loss,
)
from torchorbit.criteria import (
    CRITERIA,
    ActivationNorm,
    APoZ,
    Fisher,
    FisherWeights,
    Losses,
    Sensitivity,
    Shapley,
    Taylor,
    TaylorWeights,
)

pytestmark = pytest.mark.numeric

models = pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)


def close(ours, theirs, tolerance=1e-6):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# -- gates


@models
def test_taylor_is_the_change_of_the_loss_with_a_gate_wherever_units_are_consumed(kind):
    model, dag, orbits = made(kind)
    batch = data()
    scores = torchorbit.calibrate(dag, [batch], loss_of, [Taylor(), Taylor(signed=True)], orbits=orbits)
    for name, orbit in gates_of(model, orbits):
        derivatives = by_finite_differences(model, name, orbit.width, batch)
        close(scores[Taylor()][orbit], derivatives.abs().mean(0))
        close(scores[Taylor(signed=True)][orbit], -derivatives.mean(0))


@models
def test_fisher_is_the_mean_square_of_gradients_that_a_loop_over_samples_gives(kind):
    model, dag, orbits = made(kind)
    images, labels = data()
    scores = torchorbit.calibrate(dag, [(images, labels)], mean_loss, "fisher", orbits=orbits)["fisher"]
    for name, orbit in gates_of(model, orbits):
        squares = torch.zeros(orbit.width, dtype=torch.float64)
        for image, label in zip(images, labels, strict=True):
            gate = torch.ones(orbit.width, dtype=torch.float64, requires_grad=True)
            losses_with(model, name, gate, (image[None], label[None])).sum().backward()
            squares += gate.grad.square()
        close(scores[orbit], squares / 2 / len(images), 1e-9)


@pytest.mark.parametrize("kind", [Chain, Residual, Concat, Groups], ids=lambda kind: kind.__name__)
def test_shapley_values_are_the_mean_over_all_orders_of_removal(kind):
    model, dag, orbits = made(kind)
    batch = data()
    loaded = [(batch[0][:4], batch[1][:4]), (batch[0][4:], batch[1][4:])]
    scores = torchorbit.calibrate(dag, loaded, mean_loss, Shapley(sv_samples=None), orbits=orbits)
    for name, orbit in gates_of(model, orbits):
        orders = list(itertools.permutations(range(orbit.width)))
        values = np.zeros(orbit.width)
        for order in orders:
            gate = torch.ones(orbit.width, dtype=torch.float64)
            before = losses_with(model, name, gate, batch).mean().item()
            for unit in order:
                gate[unit] = 0
                after = losses_with(model, name, gate, batch).mean().item()
                values[unit] += after - before
                before = after
        close(scores[Shapley(sv_samples=None)][orbit], values / len(orders), 1e-9)


class _Game(Losses):
    """A loss that is a function of the set of removed units; counts how often it is asked."""

    def __init__(self, width, function):
        self.width, self.seed, self.function, self.asked = width, (0,), function, 0

    def without(self, removed):
        self.asked += 1
        return torch.tensor([self.function(set(removed.nonzero()[:, 0].tolist()))], dtype=torch.float64)


def test_sampled_shapley_values_approach_the_exact_ones_and_always_add_up():
    weights = np.random.default_rng(0).normal(size=6)

    def loss(removed):
        return float(sum(weights[u] for u in removed) ** 2 + math.prod(weights[u] for u in removed))

    game = _Game(6, loss)
    exact = Shapley(sv_samples=None).per_sample(_Game(6, loss))[0]
    many = Shapley(sv_samples=3000).per_sample(game)[0]
    few = Shapley(sv_samples=5).per_sample(game)[0]
    assert (many - exact).abs().max() < 0.05 * exact.abs().max()
    for values in (exact, many, few):
        assert values.sum().item() == pytest.approx(loss(set(range(6))) - loss(set()), rel=1e-12)


def test_sampling_shapley_values_takes_at_most_so_many_evaluations_and_depends_on_the_seed():
    game = _Game(7, lambda removed: float(len(removed)) ** 2 + sum(removed))
    values = Shapley(sv_samples=5).per_sample(game)
    assert game.asked <= 5 * 7 + 1
    assert torch.equal(Shapley(sv_samples=5).per_sample(game), values)
    assert not torch.equal(Shapley(sv_samples=5, seed=1).per_sample(game), values)


def test_all_subsets_of_a_wide_orbit_are_refused():
    with pytest.raises(ValueError, match=r"17 units.*give sv_samples a number"):
        Shapley(sv_samples=None).per_sample(_Game(17, lambda removed: 0.0))


# -- activations


def test_activations_are_those_that_hooks_before_the_consuming_layers_see():
    model, dag, orbits = made(Concat)
    images, labels = data()
    seen = {}
    for name in ("c", "side"):
        getattr(model, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    model(images)
    asked = [APoZ(), ActivationNorm(), ActivationNorm(p=2)]
    scores = torchorbit.calibrate(dag, [(images, labels)], None, asked, orbits=orbits)
    right = torch.cat([seen["c"][:, 3:].flatten(2), seen["side"].flatten(2)], 2)  # it is consumed twice
    for name, values in (("a", seen["c"][:, :3].flatten(2)), ("b", right)):
        orbit = the(orbits, f"{name}.weight")
        close(scores[APoZ()][orbit], (values > 0).double().mean((0, 2)), 1e-12)
        close(scores[ActivationNorm()][orbit], values.abs().mean((0, 2)).detach(), 1e-12)
        close(scores[ActivationNorm(p=2)][orbit], values.square().mean(2).sqrt().mean(0).detach(), 1e-12)


def test_sensitivity_is_the_sum_of_absolute_gradients_of_each_sample():
    model, dag, orbits = made(Chain)
    images, labels = data()
    scores = torchorbit.calibrate(dag, [(images, labels)], mean_loss, "sensitivity", orbits=orbits)["sensitivity"]
    kept = []
    model.c.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    sums = torch.zeros(4, dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        sums += torch.autograd.grad(loss, kept.pop())[0].abs().sum((0, 2, 3))
    close(scores[the(orbits, "a.weight")], sums / len(images), 1e-9)


def test_where_units_are_produced_activations_come_before_normalization():
    model, dag, orbits = made(Chain)
    images, labels = data()
    scores = torchorbit.calibrate(dag, [(images, labels)], None, "activation_norm", orbits=orbits, place="produced")
    produced = model.a(images)
    close(scores["activation_norm"][the(orbits, "a.weight")], produced.abs().mean((0, 2, 3)).detach(), 1e-12)


# -- weights


@models
def test_criteria_of_weights_are_those_of_all_slices_of_a_unit(kind):
    _, dag, orbits = made(kind)
    batches = [data(5), data(3)]
    asked = ["taylor_weights", "fisher_weights"]
    scores = torchorbit.calibrate(dag, batches, mean_loss, asked, orbits=orbits)
    for orbit in orbits:
        taylor, fisher = np.zeros(orbit.width), np.zeros(orbit.width)
        for images, labels in batches:
            parameters = dict(dag.named_parameters())
            loss = F.cross_entropy(dag(images), labels)
            gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
            for unit in range(orbit.width):
                products = [
                    (parameters[s.tensor] * gradients[s.tensor]).index_select(s.dim, torch.tensor(s.indices)).flatten()
                    for s in torchorbit.inspect.unit_slices(orbit, unit)
                    if s.tensor in parameters
                ]
                products = torch.cat(products).detach()
                taylor[unit] += products.sum().item() ** 2 * len(images) / 8
                fisher[unit] += products.square().sum().item() / 2 * len(images) / 8
        close(scores["fisher_weights"][orbit], fisher, 1e-9)
        # The slices of a unit may cancel: what is left is compared with what it is made of.
        assert np.abs(scores["taylor_weights"][orbit] - taylor).max() <= 1e-9 * max(taylor.max(), fisher.max())


def test_weights_of_a_recurrent_layer_are_seen():
    model = stir(
        Computes(lambda m, x: m.head(m.rnn(x)[0].mean(1)), rnn=nn.LSTM(3, 4, batch_first=True), head=nn.Linear(4, 2))
    )
    model = model.double().eval()
    x, labels = torch.randn(5, 4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    dag = torchorbit.convert(model, x)
    orbits = torchorbit.find_orbits(dag)
    scores = torchorbit.calibrate(dag, [(x, labels)], mean_loss, "fisher_weights", orbits=orbits)["fisher_weights"]
    parameters = dict(dag.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(dag(x), labels), parameters.values())
    products = {n: (p * g).detach() for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    for orbit in orbits:
        wanted = [
            sum(
                products[s.tensor].index_select(s.dim, torch.tensor(s.indices)).square().sum().item() / 2
                for s in torchorbit.inspect.unit_slices(orbit, u)
            )
            for u in range(orbit.width)
        ]
        close(scores[orbit], wanted, 1e-9)


# -- what they are called


def test_a_criterion_says_its_name_and_the_options_that_are_not_as_by_default():
    assert str(Taylor()) == "taylor"
    assert str(Taylor(signed=True)) == "taylor(signed=True)"
    assert str(Shapley(sv_samples=None, seed=3)) == "shapley(sv_samples=None, seed=3)"
    assert str(ActivationNorm(p=2)) == "activation_norm(p=2)"
    for criterion in (APoZ, Sensitivity, Fisher, FisherWeights, TaylorWeights, Shapley):
        assert CRITERIA[criterion.name] is criterion
        assert str(criterion()) == criterion.name


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: ActivationNorm(p=3), "p=3, expected 1 or 2"), (lambda: Shapley(sv_samples=0), "sv_samples=0, expected")],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@models
def test_the_loss_with_zeros_is_that_with_a_closed_gate_wherever_units_are_consumed(kind):
    model, _, orbits = made(kind)
    batch = data()
    masked = torchorbit.criteria.MaskedLoss(orbits, [batch], loss_of)
    for name, orbit in gates_of(model, orbits):
        removed = list(range(0, orbit.width, 2))
        gate = torch.ones(orbit.width, dtype=torch.float64)
        gate[removed] = 0
        with torch.no_grad():
            wanted = losses_with(model, name, gate, batch).mean().item()
        assert masked({orbit: removed}) == pytest.approx(wanted, rel=1e-12)
