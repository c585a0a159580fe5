"""What consumed the channels that are gone makes up for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchorbit
from harness.timm_import import timm
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


@pytest.fixture(scope="module")
def settled_resnet() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7, scriptable=False)
    inputs = list(torch.randn(24, 3, 64, 64).split(8))
    model.train()
    with torch.no_grad():
        for _ in range(3):
            for x in inputs:
                model(x)
    return model.eval(), inputs


@pytest.fixture
def timm_resnet(settled_resnet: tuple[nn.Module, list[Tensor]]) -> tuple[nn.Module, list[Tensor]]:
    model, inputs = settled_resnet
    return copy.deepcopy(model), inputs


def pruned(dag: torchorbit.DagModule, **options: Any) -> torchorbit.DagModule:
    """A smaller graph that lost the units of the smallest weights, and the same share of every orbit."""
    return torchorbit.prune(dag, criterion="magnitude", selector="uniform", **options)


def missed(whole: nn.Module, smaller: nn.Module, inputs: list[Tensor]) -> float:
    with torch.no_grad():
        return sum((whole(x) - smaller(x)).square().sum().item() for x in inputs)


def test_pruning_with_and_without(timm_resnet: tuple[nn.Module, list[Tensor]]) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    plain = pruned(dag, flops=0.5)
    errors = {
        way: missed(dag, pruned(dag, loader=inputs, flops=0.5, reconstruct=way), inputs) for way in (True, "affine")
    }
    assert errors[True] < errors["affine"] < missed(dag, plain, inputs)
    assert errors[True] < missed(dag, plain, inputs) / 5


def test_what_was_done_is_told(timm_resnet: tuple[nn.Module, list[Tensor]]) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    smaller = pruned(dag, loader=inputs, flops=0.5, reconstruct=True, reconstruct_batches=2)
    (pruning,) = smaller.history.prunings
    made = pruning.reconstruction
    assert (made.method, made.samples, pruning.data) == ("layerwise", 16, True)
    assert made.proof < 1e-5
    assert len(made.layers) > 10
    assert all(0 <= layer.after <= layer.before for layer in made.layers)
    again = pruned(dag, loader=inputs, flops=0.5, reconstruct=True, reconstruct_batches=2)
    for name, tensor in smaller.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_in_place_and_with_an_optimizer(timm_resnet: tuple[nn.Module, list[Tensor]]) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    expected = pruned(dag, loader=inputs, flops=0.6, reconstruct=True)
    before = {name: tensor.clone() for name, tensor in dag.state_dict().items()}
    optimizer = torch.optim.SGD(dag.parameters(), lr=0.1, momentum=0.9)
    (dag(inputs[0]).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    dag.load_state_dict(before)  # that step is not what is compared
    given = dict(dag.named_parameters())
    smaller = pruned(dag, loader=inputs, flops=0.6, reconstruct=True, inplace=True, optimizer=optimizer)
    assert smaller is dag
    for name, parameter in smaller.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
        assert name not in given or parameter is given[name]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in smaller.parameters()}
    (smaller(inputs[0]).square().mean()).backward()
    optimizer.step()


def test_a_bias_that_is_new_trains_and_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CONSUMERS["without_a_bias"]()
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    optimizer = torch.optim.AdamW(dag.parameters())
    smaller = pruned(dag, loader=inputs, ratio=0.5, reconstruct=True, inplace=True, optimizer=optimizer)
    bias = smaller.get_parameter("layers.2.bias")
    assert any(bias is parameter for parameter in optimizer.param_groups[0]["params"])
    smaller.save(tmp_path / "model")
    torch.testing.assert_close(torchorbit.load(tmp_path / "model")(inputs[0]), smaller(inputs[0]))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_few_samples_are_enough_to_run(timm_resnet: tuple[nn.Module, list[Tensor]], samples: int) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    some = [inputs[0][:samples]]
    plain = pruned(dag, flops=0.5)
    smaller = pruned(dag, loader=some, flops=0.5, reconstruct=True)
    assert missed(dag, smaller, some) < missed(dag, plain, some)


def test_more_data_comes_closer_on_what_was_not_seen(timm_resnet: tuple[nn.Module, list[Tensor]]) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    *shown_first, unseen = torch.randn(72, 3, 64, 64, generator=torch.Generator().manual_seed(1)).split(8)
    errors = [
        missed(dag, pruned(dag, loader=shown_first[:many], flops=0.4, reconstruct=True), [unseen]) for many in (1, 8)
    ]
    assert errors[1] < errors[0] < missed(dag, pruned(dag, flops=0.4), [unseen])


def test_values_that_do_not_fit_into_memory_are_kept_in_files(
    timm_resnet: tuple[nn.Module, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    expected = pruned(dag, loader=inputs, flops=0.5, reconstruct=True)
    written = []
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, path: (written.append(path), save(value, path)))
    monkeypatch.setattr("torchorbit.pruning.reconstruction.reconstructing._MOST_BYTES", 2**20)
    found = pruned(dag, loader=inputs, flops=0.5, reconstruct=True)
    assert written
    assert not any(Path(path).exists() for path in written)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_wide_layers_are_made_channel_by_channel(
    timm_resnet: tuple[nn.Module, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    monkeypatch.setattr("torchorbit.pruning.reconstruction.reconstructing._MOST_INPUTS", 200)
    found = pruned(dag, loader=inputs, flops=0.5, reconstruct=True)
    assert missed(dag, found, inputs) < missed(dag, pruned(dag, flops=0.5), inputs) / 2


def test_a_norm_behind_two_layers_is_left_as_it_is() -> None:
    class Shared(nn.Module):
        size = (3, 9, 9)

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.one, self.other = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            return torch.cat([self.norm(self.one(y)), self.norm(self.other(y))], 1)

    torch.manual_seed(0)
    model = Shared()
    make_twins(model, "first.weight", 2, 5)
    model = settled(model)
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    smaller = torchorbit.reconstruct(dag, {orbit_of(dag, "first.weight"): [1, 5]}, inputs)
    assert torch.equal(smaller.get_buffer("norm.running_mean"), dag.get_buffer("norm.running_mean"))
    plain = torchorbit.remove_channels(dag, {orbit_of(dag, "first.weight"): [1, 5]})
    assert missed(dag, smaller, inputs) < missed(dag, plain, inputs) / 2


@pytest.mark.parametrize("tokens", [5, 6])
def test_a_norm_of_tokens_takes_no_bias_of_features(tokens: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6, bias=False), nn.BatchNorm1d(tokens)]
    model = settled(Chain(*layers, size=(tokens, 8)))
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    smaller = torchorbit.reconstruct(dag, {orbit_of(dag, "layers.0.weight"): [1, 4]}, inputs)
    assert torch.equal(smaller.get_buffer("layers.3.running_mean"), dag.get_buffer("layers.3.running_mean"))


def test_layers_that_share_their_weights_get_no_bias_that_one_of_them_lacks() -> None:
    torch.manual_seed(0)
    model = Twice()
    model.shared.register_parameter("bias", None)
    inputs = shown(model)
    dag = torchorbit.convert(model, inputs[0])
    smaller = torchorbit.reconstruct(dag, {orbit_of(dag, "first.weight"): [6]}, inputs)
    assert smaller.get_submodule("shared").bias is None


def test_what_something_else_reads_as_well_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.inner, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            y = self.embed(x) * self.scale
            return F.linear(y + self.out(F.relu(self.inner(y))), self.embed.weight)

    torch.manual_seed(0)
    model = Tied().eval()
    inputs = list(torch.randint(0, 11, (24, 9), generator=torch.Generator().manual_seed(0)).split(8))
    dag = torchorbit.convert(model, inputs[0])
    smaller = pruned(dag, loader=inputs, ratio=0.5, reconstruct=True, frozen=["embed"])
    layers = [layer.layer for layer in smaller.history.prunings[0].reconstruction.layers]
    assert layers == ["out.weight"]


def test_arguments(timm_resnet: tuple[nn.Module, list[Tensor]]) -> None:
    model, inputs = timm_resnet
    dag = torchorbit.convert(model, inputs[0])
    with pytest.raises(torchorbit.errors.ArgumentError, match="reconstruct='layerwise' needs data"):
        pruned(dag, flops=0.5, reconstruct=True)
    with pytest.raises(torchorbit.errors.ArgumentError, match="reconstruct='all', expected one of 'layerwise'"):
        pruned(dag, loader=inputs, flops=0.5, reconstruct="all")
    with pytest.raises(torchorbit.errors.ArgumentError, match="method='all', expected one of"):
        torchorbit.reconstruct(dag, {}, inputs, method="all")
    assert torchorbit.reconstruct(dag, {}, inputs)(inputs[0]).equal(dag(inputs[0]))
    with pytest.raises(torchorbit.errors.CalibrationError, match="gives no batch"):
        torchorbit.reconstruct(dag, {torchorbit.find_orbits(dag)[0]: [0]}, [])


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_no_model_of_timm_is_farther_from_the_whole_one_than_without(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, scriptable=False).eval()
    size = model.default_cfg["input_size"]
    inputs = [torch.randn(4, *size)]
    dag = torchorbit.convert(model, inputs[0][:1])
    smaller = pruned(dag, loader=inputs, flops=0.6, reconstruct=True)
    # Of some nothing of the blocks reaches the output, with the weights that they have at first.
    assert missed(dag, smaller, inputs) <= missed(dag, pruned(dag, flops=0.6), inputs) * (1 + 1e-6)
    assert all(layer.after <= layer.before for layer in smaller.history.prunings[0].reconstruction.layers)
