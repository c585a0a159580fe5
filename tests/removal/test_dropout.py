"""Dropout is adjusted to what is left of the channels that it drops, where that is asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes

X = torch.randn(2, 3, 8, 8)


def probabilities(dag):
    return {path: m.p for path, m in dag.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_a_dropout_layer_drops_by_the_share_of_channels_that_are_left(kind, inplace):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), kind(0.4), nn.Conv2d(8, 6, 3), kind(0.4), nn.Conv2d(6, 2, 3)).eval()
    dag = torchorbit.convert(model, X)
    removed = {orbit: range(width) for orbit, width in zip(torchorbit.find_orbits(dag), (6, 3), strict=True)}
    smaller = torchorbit.remove_channels(dag, removed, inplace=inplace, adjust_dropout=True)
    assert probabilities(smaller) == pytest.approx({"1": 0.1, "3": 0.2})
    assert model[1].p == 0.4


def test_dropout_stays_as_it_is_unless_it_is_asked_for():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.4), nn.Linear(8, 2)).eval()
    assert probabilities(torchorbit.prune(model, torch.randn(2, 3), ratio=0.5)) == {"1": 0.4}


def test_a_layer_that_drops_channels_of_two_widths_becomes_two():
    drop = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(3, 8), drop, nn.Linear(8, 4), drop, nn.Linear(4, 2)).eval()
    dag = torchorbit.convert(model, torch.randn(2, 3))
    smaller = torchorbit.plan(dag, "0", [0, 1]).execute(adjust_dropout=True)
    called = [smaller.get_submodule(v.target).p for v in smaller.vertices if getattr(v, "leaf", "") == "Dropout"]
    assert called == pytest.approx([0.375, 0.5])


def test_dropout_without_a_layer_is_adjusted_too():
    def forward(m, x):
        return m.last(F.dropout(m.first(x), 0.5, m.training))

    model = Computes(forward, first=nn.Linear(100, 400, bias=False), last=nn.Linear(400, 2, bias=False))
    dag = torchorbit.convert(model, torch.randn(2, 100))
    smaller = torchorbit.prune(dag, ratio=0.5, adjust_dropout=True)
    (p,) = [v.args["p"] for v in smaller.vertices if getattr(v, "operator", "") == "dropout"]
    assert p == pytest.approx(0.25)
    # The same module is seen by what it does: a quarter of the hidden channels is dropped in training.
    first = smaller.get_parameter("first.weight")
    seen = []
    smaller.get_submodule("last").register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    smaller.train()(torch.randn(50, 100))
    assert first.shape[0] == 200
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_it_comes_down_in_steps_as_the_widths_do():
    model = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.8), nn.Linear(64, 2)).eval()
    dag = torchorbit.prune(model, torch.randn(2, 3), ratio=0.5, steps=4, adjust_dropout=True)
    assert dag.get_parameter("0.weight").shape[0] == 32
    assert probabilities(dag) == pytest.approx({"1": 0.4})
