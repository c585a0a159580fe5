"""Layers that make their weights anew in every run: weight norms, spectral norms, orthogonal weights, adapters."""

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils as hooks
import torch.nn.utils.parametrizations as parametrizations
from torch import nn

import torchorbit
from tests.models import assert_same, outcome, reloaded

X = torch.randn(2, 3, 8, 8)


class Adapted(nn.Module):
    """A layer with an adapter of low rank beside it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T * 0.5


class Merging(nn.Linear):
    """The same, with the adapter added to the weight."""

    def __init__(self, layer, rank=2):
        super().__init__(layer.in_features, layer.out_features)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


def orthogonal(name):
    return lambda layer: parametrizations.orthogonal(layer, orthogonal_map=name)


def network(change):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        change(nn.Conv2d(8, 10, 3, stride=2)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        change(nn.Linear(10, 12)),
        nn.ReLU(),
        change(nn.Linear(12, 6)),
        nn.ReLU(),
        nn.Linear(6, 5),
    )


def linear_only(change):
    return lambda layer: change(layer) if isinstance(layer, nn.Linear) else layer


# How they are made, and the widths of what can be removed.
KINDS = {
    "weight norm": (parametrizations.weight_norm, [8, 10, 12, 6]),
    "weight norm along the inputs": (lambda layer: parametrizations.weight_norm(layer, dim=1), [8, 10, 12, 6]),
    "weight norm of all": (lambda layer: parametrizations.weight_norm(layer, dim=None), [8, 10, 12, 6]),
    "weight norm, a hook": (hooks.weight_norm, [8, 10, 12, 6]),
    "spectral norm": (parametrizations.spectral_norm, [10, 12, 6]),
    "spectral norm, a hook": (hooks.spectral_norm, [10, 12, 6]),
    "orthogonal": (linear_only(orthogonal("householder")), [8, 12]),
    "orthogonal, Cayley": (linear_only(orthogonal("cayley")), [8, 12]),
    "orthogonal, exponential": (linear_only(orthogonal("matrix_exp")), [8, 12]),
    "adapter": (linear_only(Adapted), [8, 10, 2, 12, 2, 6]),
    "merged adapter": (linear_only(Merging), [8, 10, 2, 12, 2, 6]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_with_parametrized_layers_converts_trains_and_is_pruned(kind):
    change, widths = KINDS[kind]
    source, dag = network(change).eval(), torchorbit.convert(network(change).eval(), X)
    assert dag.provenance.mode == "both"
    assert_same(outcome(dag, X), outcome(source, X))
    assert_same(outcome(reloaded(dag), X), outcome(source, X))
    orbits = torchorbit.find_orbits(dag)
    assert sorted(orbit.width for orbit in orbits) == sorted(widths)
    removed = {orbit: range(orbit.width // 2) for orbit in orbits}
    pruned = torchorbit.remove_channels(dag, removed)
    assert torchorbit.verify_removal(dag, pruned, removed) < 1e-5
    for _ in range(3):  # power iterations go on from where they were
        assert_same(outcome(dag.train(), X), outcome(source.train(), X))
    assert_same(dict(dag.named_buffers()), dict(source.named_buffers()))
    assert_same(outcome(dag.eval(), X), outcome(source.eval(), X))
    pruned.train()(X).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


@pytest.mark.parametrize("kind", list(KINDS)[:9])
def test_folded_a_network_computes_the_same_and_loses_channels_as_a_plain_one(kind):
    change, _ = KINDS[kind]
    model, plain = network(change), network(lambda layer: layer)
    expected = outcome(model.eval(), X)
    model.train()
    assert torchorbit.fold_parametrizations(model) is model
    assert all(module.training for module in model.modules())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    dag = torchorbit.convert(model.eval(), X)
    assert_same(outcome(dag, X), expected)
    assert [orbit.width for orbit in torchorbit.find_orbits(dag)] == [8, 10, 12, 6]
    assert len(dag.state_dict()) == len(plain.state_dict())


def test_a_model_without_parametrizations_is_left_as_it_is():
    model = network(lambda layer: layer)
    before = dict(model.named_parameters())
    torchorbit.fold_parametrizations(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("given", [None, torch.ones(2), torchorbit.convert(nn.Linear(2, 2), torch.ones(1, 2))])
def test_only_a_module_that_is_no_graph_is_folded(given):
    with pytest.raises(torchorbit.errors.ArgumentTypeError, match="converted"):
        torchorbit.fold_parametrizations(given)
