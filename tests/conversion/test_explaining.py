import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes

X = torch.randn(2, 3, 8, 8)


class Bad(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


class Half(nn.Module):
    """One part converts, the other does not."""

    def __init__(self):
        super().__init__()
        self.good = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.bad = Bad()
        self.leaf = nn.Conv2d(4, 4, 1)

    def forward(self, x, *, twice=False):
        x = self.leaf(self.bad(self.good(x)))
        return x * 2 if twice else x


def test_a_model_that_converts_is_one_row():
    explanation = torchorbit.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU())), X)
    assert explanation.converts
    assert explanation.convertible == ("",)
    assert len(explanation.blocks) == 1
    assert "(model)" in str(explanation)


def test_a_model_with_one_bad_block_says_which_blocks_convert():
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(stem, Computes(lambda m, x: m.part(x, twice=True), part=Half()), nn.Sequential(nn.ReLU()))
    explanation = torchorbit.explain(model, X)
    assert not explanation.converts
    rows = {block.path: block for block in explanation.blocks}
    assert {path: block.converts for path, block in rows.items()} == {
        "": False, "0": True, "1": False, "1.part": False, "1.part.good": True, "1.part.bad": False, "2": True,
    }  # fmt: skip
    assert set(explanation.convertible) == {"0", "1.part.good", "2"}
    assert rows["1.part.bad"].cls == "Bad"
    assert "item" in rows["1.part.bad"].error
    assert rows["0"].error is None
    table = str(explanation)
    assert "1.part.bad" in table
    assert "why not" in table


def test_a_model_that_only_runs_with_values_is_explained():
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(first, Computes(lambda x: x[x > 0].reshape(1, -1)), nn.Sequential(nn.Softmax(-1), nn.ReLU()))
    explanation = torchorbit.explain(model, X)
    assert {block.path: block.converts for block in explanation.blocks} == {"": False, "0": True, "1": False, "2": True}


def test_explaining_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(Bad(), nn.Dropout(0.5)))
    model[2].eval()
    model[1].register_forward_hook(lambda module, args, output: None)
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torchorbit.explain(model, X)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()] == hooks
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_inputs_by_name():
    model = Computes(lambda m, x, y: m.bad(m.good(x) + y), good=nn.Sequential(nn.Conv2d(3, 3, 1)), bad=Bad())
    explanation = torchorbit.explain(model, {"x": X, "y": X})
    assert explanation.convertible == ("good",)


def test_a_model_that_does_not_run_is_explained_as_far_as_it_got():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(5, 4, 3)))
    explanation = torchorbit.explain(model, X)
    assert {block.path: block.converts for block in explanation.blocks} == {"": False, "0": True, "1": False}


def test_a_model_that_fails_before_any_block_is_an_error():
    with pytest.raises(torchorbit.ConversionError):
        torchorbit.explain(Computes(lambda m, x: m.block(x.reshape(7, 9)), block=nn.Sequential(nn.ReLU())), X)
