"""The scores of a layer's channels, one by one."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import torchorbit
from torchorbit.criteria import L1, Magnitude

pytestmark = pytest.mark.numeric


def test_they_stand_in_the_order_of_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    dag = torchorbit.convert(model, torch.randn(1, 3, 8, 8))
    scores = L1(over="sources").scores(torchorbit.find_orbits(dag))
    norms = model[0].weight.detach().double().abs().sum((1, 2, 3)).numpy()
    for module, dim in (("0", 0), (dag.get_submodule("0"), 0), ("1", 0), ("3", 1), ("3.weight", 1), ("0.weight", 0)):
        np.testing.assert_allclose(scores.of_channels(module, dim), norms, rtol=1e-12)
    assert np.isinf(scores.of_channels("3")).all()  # the output's
    assert np.isinf(scores.of_channels("0", 1)).all()  # the input's
    with pytest.raises(ValueError, match="there is no module"):
        scores.of_channels("7")


def test_channels_behind_a_concatenation_are_those_of_several_orbits():
    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([self.b(x), self.a(x)], 1))

    dag = torchorbit.convert(Cat().eval(), torch.randn(1, 3, 8, 8))
    scores = Magnitude().scores(torchorbit.find_orbits(dag))
    taken = scores.of_channels("c", 1)
    np.testing.assert_array_equal(taken, np.concatenate([scores.of_channels("b"), scores.of_channels("a")]))


def test_in_a_vision_transformer_channels_of_all_heads_share_a_unit():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).eval()
    dag = torchorbit.convert(model, torch.randn(1, 3, 32, 32))
    scores = Magnitude().scores(torchorbit.find_orbits(dag))
    found = scores.of_channels("blocks.0.attn.proj", 1).reshape(3, 64)
    assert np.isfinite(found).all()
    assert (found == found[0]).all()
    assert len(np.unique(found[0])) == 64
