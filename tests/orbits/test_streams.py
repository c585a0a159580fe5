"""Which orbits carry a residual stream, and which are inner to a block."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import torchorbit
from torchorbit.errors import TargetError


def roles(model: nn.Module, *inputs: torch.Tensor) -> dict[str, str]:
    """The first source of every orbit -> its role."""
    orbits = torchorbit.find_orbits(torchorbit.convert(model.eval(), *inputs))
    return {orbit.sources[0]: orbit.role for orbit in orbits}


class Net(nn.Module):
    """A convolution in front of something, and a classifier behind it."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.head(self.block(self.stem(x))).mean((2, 3))


X = torch.zeros(1, 3, 8, 8)


def conv(width: int = 8, **options) -> nn.Conv2d:
    return nn.Conv2d(8, width, 3, padding=1, **options)


def test_what_a_block_adds_to_what_it_took_in_is_a_stream():
    class Residual(Net):
        def block(self, x):
            return x + self.b(self.a(x).relu())

    assert roles(Residual(a=conv(), b=conv()), X) == {"stem": "stream", "a": "inner"}


def test_a_projected_shortcut_makes_a_stream_as_the_identity_does():
    class Projected(Net):
        def block(self, x):
            return self.c(x) + self.b(self.a(x).relu())

    found = roles(Projected(a=conv(), b=conv(), c=conv()), X)
    assert {found.pop(name) for name in ("b", "c") if name in found} == {"stream"}
    assert found == {"stem": "inner", "a": "inner"}


def test_parallel_layers_that_take_in_the_same_are_one_layer():
    class Branches(Net):
        def block(self, x):
            return (self.a(x) + self.b(x)).relu()

    assert roles(Branches(a=conv(), b=conv()), X) == {"stem": "inner", "a": "inner"}


def test_gates_and_depthwise_layers_are_inner():
    class Gated(Net):
        def block(self, x):
            x = self.depthwise(self.a(x))
            x = x * self.expand(self.reduce(x.mean((2, 3), keepdim=True))).sigmoid()
            return self.b(x)

    found = roles(Gated(a=conv(), depthwise=conv(groups=8), reduce=conv(4), expand=nn.Conv2d(4, 8, 1), b=conv()), X)
    assert set(found.values()) == {"inner"}


def test_an_activation_that_is_written_out_is_inner():
    class Written(Net):
        def block(self, x):
            x = self.a(x)
            return x * (1 + (0.8 * (x + 0.04 * x * x * x)).tanh()) + x

    assert set(roles(Written(a=conv()), X).values()) == {"inner"}


def test_streams_of_families():
    def count(name: str, size: int) -> tuple[int, int]:
        model = timm.create_model(name)
        found = [
            orbit.role
            for orbit in torchorbit.find_orbits(torchorbit.convert(model.eval(), torch.zeros(1, 3, size, size)))
        ]
        return found.count("stream"), len(found)

    assert count("resnet18", 64) == (4, 12)
    assert count("mobilenetv3_small_100", 64) == (4, 27)
    assert count("vit_tiny_patch16_224", 224) == (1, 49)
    assert count("convnext_atto", 64) == (4, 16)
    assert count("densenet121", 64)[0] == 0


def test_roles_are_printed():
    class Residual(Net):
        def block(self, x):
            return x + self.b(self.a(x).relu())

    orbits = torchorbit.find_orbits(torchorbit.convert(Residual(a=conv(), b=conv()), X))
    assert [line.split()[3] for line in str(orbits).splitlines()[2:]] == ["stream", "inner"]
    assert "channels (stream), stem" in str(orbits[0])


def test_streams_can_be_left_whole():
    class Residual(Net):
        def block(self, x):
            return x + self.b(self.a(x).relu())

    dag = torchorbit.convert(Residual(a=conv(32), b=nn.Conv2d(32, 8, 3, padding=1)).eval(), X)
    smaller = torchorbit.prune(dag, flops=0.5, streams=False)
    assert smaller.get_submodule("stem").out_channels == 8
    assert smaller.get_submodule("a").out_channels < 32
    with pytest.raises(TargetError, match="cannot be reached"):
        torchorbit.prune(dag, flops=0.01, streams=False)
