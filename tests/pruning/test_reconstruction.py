"""What consumed the channels that are gone makes up for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchorbit
from torchorbit.orbits.orbit import Orbit


def orbit_of(dag: torchorbit.DagModule, tensor: str, kind: str = "channels", dim: int = 0) -> Orbit:
    """The orbit that makes the outputs of a layer."""
    (found,) = [orbit for orbit in torchorbit.find_orbits(dag).of_tensor(tensor, dim) if orbit.kind == kind]
    return found


class Chain(nn.Module):
    """A layer that makes channels, what stands between, and a layer that takes them."""

    def __init__(self, *layers: nn.Module, size: tuple[int, ...] = (3, 9, 9)) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Twice(nn.Module):
    """A layer that is called twice, on channels of two other ones."""

    size = (6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.shared = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(F.relu(self.shared(F.relu(self.first(x))))))


class Attention(nn.Module):
    """Attention, with whatever makes the scores."""

    size = (7, 12)

    def __init__(self, *, fused: bool = True, packed: bool = True) -> None:
        super().__init__()
        self.fused, self.packed = fused, packed
        if packed:
            self.qkv = nn.Linear(12, 36)
        else:
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.proj = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.packed:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).reshape(batch, tokens, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, -1))


def conv(n: int, *args: int, **options: int) -> nn.Module:
    return getattr(nn, f"Conv{n}d")(*args, **options)


def transposed(n: int, *args: int, **options: int) -> nn.Module:
    return getattr(nn, f"ConvTranspose{n}d")(*args, **options)


CONSUMERS: dict[str, Callable[[], Chain]] = {
    "linear": lambda: Chain(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), size=(5,)),
    "without_a_bias": lambda: Chain(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3, bias=False), size=(4, 5)),
    **{
        f"conv{n}d": lambda n=n: Chain(
            conv(n, 3, 8, 3, padding=1), nn.ReLU(), conv(n, 8, 4, 3, stride=2, padding=1), size=(3, *(9, 7, 6)[:n])
        )
        for n in (1, 2, 3)
    },
    **{
        f"conv_transpose{n}d": lambda n=n: Chain(
            conv(n, 3, 8, 1), nn.ReLU(), transposed(n, 8, 4, 3, stride=2, padding=1, output_padding=1),
            size=(3, *(5, 4, 3)[:n]),
        )
        for n in (1, 2, 3)
    },
    "conv_before_a_norm": lambda: Chain(
        conv(2, 3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(2, 8, 4, 3, dilation=2, bias=False), nn.BatchNorm2d(4)
    ),
    "conv_with_reflection": lambda: Chain(
        conv(2, 3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=2, padding_mode="reflect")
    ),
    "conv_same": lambda: Chain(conv(2, 3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, (2, 4), padding="same")),
    "depthwise": lambda: Chain(
        conv(2, 3, 8, 1), nn.ReLU(), conv(2, 8, 8, 3, padding=1, groups=8), nn.ReLU(), conv(2, 8, 4, 1)
    ),
}  # fmt: skip


def make_twins(model: nn.Module, tensor: str, first: int, second: int) -> None:
    """Let one output of a layer be the same as another."""
    path, _, _ = tensor.rpartition(".")
    layer = model.get_submodule(path)
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter[second] = parameter[first]


def shown(model: nn.Module, samples: int = 24, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(samples, *model.size, generator=generator).split(8))  # type: ignore[misc]


def settled(model: nn.Module) -> nn.Module:
    """A model whose batch norms have statistics, in evaluation mode."""
    model.train()
    for part in shown(model):
        model(part)
    return model.eval()


def worst(first: nn.Module, second: nn.Module, inputs: list[Tensor]) -> float:
    return max(((first(x) - second(x)).abs().max() / first(x).abs().max()).item() for x in inputs)


@pytest.mark.parametrize("kind", CONSUMERS)
def test_a_channel_that_another_one_repeats_costs_nothing(kind: str) -> None:
    torch.manual_seed(0)
    model = CONSUMERS[kind]()
    first = "layers.0.weight"
    make_twins(model, first, 2, 5)
    for name, layer in model.named_modules():  # what stands between treats both alike
        if isinstance(layer, nn.BatchNorm2d) or getattr(layer, "groups", 1) > 1:
            make_twins(model, f"{name}.weight", 2, 3 if len(layer.weight) == 4 else 5)
    model = settled(model)
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    removed = {orbit_of(dag, first): [5]}
    plain = torchorbit.remove_channels(dag, removed)
    smaller = torchorbit.reconstruct(dag, removed, inputs)
    unseen = shown(model, seed=1)
    assert worst(dag, plain, unseen) > 0.01
    assert worst(dag, smaller, unseen) < 1e-5


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("what", ["query", "value", "heads"])
def test_attention_makes_up_for_its_channels(what: str, packed: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model = Attention(fused=fused, packed=packed)
    tensors = [model.qkv.weight, model.qkv.bias] if packed else []
    with torch.no_grad():
        for n, name in enumerate("qkv"):
            for tensor in tensors or [getattr(model, name).weight, getattr(model, name).bias]:
                by_head = tensor[12 * n : 12 * n + 12] if packed else tensor
                by_head = by_head.view(3, 4, *tensor.shape[1:])
                if what == "heads":
                    by_head[2] = by_head[1]
                elif (what == "value") == (name == "v"):
                    by_head[:, 3] = by_head[:, 1]
    inputs = shown(model.eval())
    dag = torchorbit.convert(model, inputs[0])
    wide, start = ("qkv.weight", {"query": 0, "value": 24, "heads": 0}[what]) if packed else ("", 0)
    name = wide or {"query": "q.weight", "value": "v.weight", "heads": "v.weight"}[what]
    kind = "groups" if what == "heads" else "channels"
    orbits = [
        orbit for orbit in torchorbit.find_orbits(dag).of_tensor(name)
        if orbit.kind == kind and any(start in p.indices for p in orbit.slices if p.tensor == name and p.dim == 0)
    ]  # fmt: skip
    removed = {orbits[0]: [2] if what == "heads" else [3]}
    plain = torchorbit.remove_channels(dag, removed)
    smaller = torchorbit.reconstruct(dag, removed, inputs)
    unseen = shown(model, seed=1)
    assert worst(dag, plain, unseen) > 0.003
    assert worst(dag, smaller, unseen) < 1e-5


def test_a_layer_that_is_called_twice() -> None:
    torch.manual_seed(0)
    model = Twice()
    with torch.no_grad():
        for layer in (model.first, model.shared):
            for parameter in layer.parameters():
                parameter[6] = parameter[1]
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    removed = {orbit_of(dag, "first.weight"): [6]}
    plain, smaller = torchorbit.remove_channels(dag, removed), torchorbit.reconstruct(dag, removed, inputs)
    assert worst(dag, plain, inputs) > 0.01
    assert worst(dag, smaller, inputs) < 1e-5


@pytest.mark.parametrize("method", ["layerwise", "affine"])
def test_the_weights_are_those_of_least_squares(method: str) -> None:
    torch.manual_seed(0)
    model = CONSUMERS["without_a_bias"]()
    inputs = shown(model, 400)
    dag = torchorbit.convert(model, inputs[0])
    removed = {orbit_of(dag, "layers.0.weight"): [1, 4]}
    smaller = torchorbit.reconstruct(dag, removed, inputs, method=method)
    x = torch.cat([model.layers[1](model.layers[0](part)).flatten(0, -2) for part in inputs]).double().detach().numpy()
    y = torch.cat([model(part).flatten(0, -2) for part in inputs]).double().detach().numpy()
    kept = np.delete(x, [1, 4], 1)
    expected = np.linalg.lstsq(np.concatenate([kept, np.ones((len(kept), 1))], 1), y, rcond=None)[0].T
    layer = smaller.get_submodule("layers.2")
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
