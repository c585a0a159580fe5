"""What is left is looked at before it is given back: it runs, and returns what the whole graph returned."""

import copy

import pytest
import torch
from torch import nn

import torchorbit
from torchorbit.labels import Labels
from torchorbit.operators import RULES

X = torch.randn(2, 3, 9, 9)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        assert x.shape[1] == len(self.weight), "another width"
        return x * self.weight[:, None, None]


@pytest.fixture
def scaled():
    before = dict(RULES)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Scale(8), nn.Conv2d(8, 4, 1)).eval()
    yield torchorbit.convert(model, X, atomic=[Scale])
    RULES.clear()
    RULES.update(before)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_removal_after_which_nothing_runs_is_refused_and_changes_nothing(scaled, inplace):
    torchorbit.rules.register_rule(Scale, lambda operands: operands.tensor("0").dims)  # and not those of its weight
    before = copy.deepcopy(scaled.state_dict())
    optimizer = torch.optim.SGD(scaled.parameters(), momentum=0.9)
    expected = scaled(X)
    removed = {orbit: [1] for orbit in torchorbit.find_orbits(scaled) if "_0" in orbit.sources}
    assert removed
    with pytest.raises(torchorbit.errors.InternalError, match=r"(?s)another width.*check_rule"):
        torchorbit.remove_channels(scaled, removed, inplace=inplace, optimizer=optimizer)
    assert all(torch.equal(scaled.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(scaled(X), expected)
    assert optimizer.param_groups[0]["params"] == list(scaled.parameters())


def test_a_removal_that_cuts_the_output_is_refused(monkeypatch):
    freeze = Labels.freeze
    monkeypatch.setattr(
        Labels, "freeze", lambda self, dim, **how: None if self.at[0] == "output" else freeze(self, dim, **how)
    )
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    dag = torchorbit.convert(model, X)
    removed = {orbit: [1] for orbit in torchorbit.find_orbits(dag) if orbit.width == 4}
    assert removed
    with pytest.raises(torchorbit.errors.InternalError, match=r"output has the shapes .*3.*expected .*4"):
        torchorbit.remove_channels(dag, removed)
