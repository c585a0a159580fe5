"""Orbits that lose all of their units: the branch goes, and the rest computes what it computes with zeros there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from harness.models import build_with_random_weights, input_size
from tests.models import assert_equal, stir
from tests.orbits.helpers import the

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.first = nn.Conv2d(6, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1, bias=bias)
        self.last_norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        branch = F.gelu(self.last_norm(self.second(F.relu(self.norm(self.first(x))))))
        return self.head((x + self.drop(branch)).mean((2, 3)))


def graph(model, x=X):
    dag = torchorbit.convert(stir(model).eval(), x)
    return dag, torchorbit.find_orbits(dag)


def without(dag, *orbits, **more):
    return torchorbit.remove_channels(dag, {o: range(o.width) for o in orbits}, allow_empty=True, **more)


@pytest.mark.parametrize("bias", [False, True])
def test_a_residual_branch_becomes_what_it_adds(bias):
    model = Block(bias).double()
    dag, orbits = graph(model, X.double())
    inside = the(orbits, "first.weight")
    pruned = without(dag, inside)
    added = F.gelu(
        model.last_norm(model.second.bias.reshape(1, -1, 1, 1) if bias else torch.zeros(1, 6, 1, 1).double())
    )
    for x in (X.double(), torch.randn(3, 3, 6, 5).double()):
        with torch.no_grad():
            assert_equal(pruned(x), model.head((model.stem(x) + added).mean((2, 3))))
    # Nothing of the branch is left but that.
    (constant,) = set(pruned.state_dict()) - set(dag.state_dict())
    assert set(pruned.state_dict()) == {constant, *[f"{n}.{p}" for n in ("stem", "head") for p in ("weight", "bias")]}
    assert torch.equal(pruned.get_parameter(constant), added)
    assert [name for name, _ in pruned.named_children()] == ["stem", "head"]
    assert torchorbit.flops(pruned).total == 2 * (64 * 3 * 6 + 6 * 5)
    assert torchorbit.verify_removal(dag, pruned, {inside: range(4)}) < 1e-12


def test_beside_others_that_lose_some():
    dag, orbits = graph(Block().double(), X.double())
    removed = {the(orbits, "first.weight"): range(4), the(orbits, "stem.weight"): [1, 4]}
    pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    assert torchorbit.verify_removal(dag, pruned, removed) < 1e-12
    (constant,) = set(pruned.state_dict()) - set(dag.state_dict())
    assert pruned.get_parameter(constant).shape == (1, 4, 1, 1)
    # It is a graph like any other: the constant loses channels along with what it is added to.
    stem = the(torchorbit.find_orbits(pruned), "stem.weight")
    again = torchorbit.remove_channels(pruned, {stem: [0]})
    assert again.get_parameter(constant).shape == (1, 3, 1, 1)
    assert torchorbit.verify_removal(pruned, again, {stem: [0]}) < 1e-12


def test_trains_and_is_saved(tmp_path):
    dag, orbits = graph(Block())
    optimizer = torch.optim.AdamW(dag.parameters(), lr=1e-2)
    dag.train()
    dag(X).square().mean().backward()
    optimizer.step()
    dag.eval()
    momentum = optimizer.state[dag.get_parameter("stem.weight")]["exp_avg"].clone()
    pruned = without(dag, the(orbits, "first.weight"), optimizer=optimizer)
    (constant,) = set(pruned.state_dict()) - set(dag.state_dict())
    (group,) = optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in pruned.parameters()}
    assert set(optimizer.state) <= set(pruned.parameters())
    assert torch.equal(optimizer.state[pruned.get_parameter("stem.weight")]["exp_avg"], momentum)
    before = pruned.get_parameter(constant).clone()
    pruned.train()
    optimizer.zero_grad()
    pruned(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(pruned.get_parameter(constant), before)
    pruned.eval()
    pruned.save(tmp_path / "pruned")
    assert_equal(torchorbit.load(tmp_path / "pruned")(X), pruned(X))


def test_in_place():
    dag, orbits = graph(Block())
    expected = without(dag, the(orbits, "first.weight"))
    stem = dag.get_parameter("stem.weight")
    assert without(dag, the(orbits, "first.weight"), inplace=True) is dag
    assert dag.get_parameter("stem.weight") is stem
    assert list(dag.state_dict()) == list(expected.state_dict())
    assert_equal(dag(X), expected(X))


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        # The stages' streams, without which nothing comes through, and widths of queries and keys, without which every
        # token looks at all of them alike: everything else can go.
        ("resnet18", 4),
        ("seresnext26t_32x4d", 7),
        ("densenet121", 4),
        ("convnext_atto", 4),
        ("regnety_002", 5),
        ("vit_tiny_patch16_224", 13),
        ("swin_tiny_patch4_window7_224", 16),
        ("mixer_s32_224", 1),
    ],
)
def test_whole_branches_of_timm_models(name, refused):
    model = build_with_random_weights(name)
    x = torch.randn(1, *input_size(model), generator=torch.Generator().manual_seed(0)).double()
    dag, orbits = graph(model.double(), torch.cat([x, x]))
    total = torchorbit.flops(dag).total
    refusals = []
    for orbit in [orbits[n] for n in range(0, len(orbits), max(1, len(orbits) // 16))]:
        removed = {orbit: range(orbit.width)}
        try:
            pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
        except ValueError as error:
            refusals.append((repr(orbit), str(error)))
            continue
        assert torchorbit.verify_removal(dag, pruned, removed, x) < 1e-9
        assert torchorbit.flops(pruned).total < total
    assert len(refusals) <= refused
    assert all(orbit in message for orbit, message in refusals)


def test_every_other_block_of_a_vision_transformer():
    model = build_with_random_weights("vit_tiny_patch16_224")
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    dag, orbits = graph(model.double(), x)
    removed = {}
    for block in range(0, 12, 2):
        for orbit in (
            the(orbits, f"blocks.{block}.attn.qkv.weight", groups=True),
            the(orbits, f"blocks.{block}.mlp.fc1.weight"),
        ):
            removed[orbit] = range(orbit.width)
    pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    assert torchorbit.verify_removal(dag, pruned, removed, x) < 1e-9
    assert not any(key.startswith("blocks.4.") for key in pruned.state_dict())
    blocks = torchorbit.flops(dag).total - torchorbit.flops(pruned).total
    assert blocks / torchorbit.flops(dag).total == pytest.approx(0.5, abs=0.03)


def test_what_needs_the_branch_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))

    dag, orbits = graph(Attention(), torch.randn(2, 5, 6))
    before = {name: tensor.clone() for name, tensor in dag.state_dict().items()}
    width = the(orbits, "query.weight")
    for inplace in (False, True):
        with pytest.raises(ValueError, match=r"Orbit\(.*query.*scaled_dot_product_attention.*keep one unit"):
            without(dag, width, inplace=inplace)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dag.state_dict().items())


def test_an_output_cannot_be_a_constant():
    dag, orbits = graph(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with pytest.raises(ValueError, match="output would be a constant"):
        without(dag, orbits[0])


def test_a_normalization_of_the_batch_has_no_constant_to_give():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            return x + self.norm(self.second(self.first(x)))

    dag, orbits = graph(Normalized())
    with pytest.raises(ValueError, match=r"'norm' \(batch_norm\)"):
        without(dag, the(orbits, "first.weight"))


def test_edges_of_a_convolution_see_that_there_is_a_constant():
    class Twice(nn.Module):
        def __init__(self, padding):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
            self.third = nn.Conv2d(5, 3, 3 if padding else 1, padding=padding)

        def forward(self, x):
            return x + self.third(self.second(self.first(x)))

    dag, orbits = graph(Twice(1))
    with pytest.raises(ValueError, match=r"'third' \(conv2d\)"):
        without(dag, the(orbits, "first.weight"))
    dag, orbits = graph(Twice(0).double(), X.double())
    removed = {the(orbits, "first.weight"): range(4)}
    pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    assert torchorbit.verify_removal(dag, pruned, removed) < 1e-12
    assert not list(pruned.children())


def test_a_constant_is_concatenated():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.head(torch.cat([x[:, :, 2:-2, 2:-2], torch.relu(self.second(self.first(x)))], 1))

    dag, orbits = graph(Concatenated().double(), X.double())
    removed = {the(orbits, "first.weight"): range(4)}
    pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    for x in (X, torch.randn(3, 3, 10, 7)):
        assert torchorbit.verify_removal(dag, pruned, removed, x.double()) < 1e-12
    # What is concatenated and gone is left out.
    removed = {the(orbits, "first.weight"): [0], the(orbits, "second.weight"): range(5)}
    pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    assert torchorbit.verify_removal(dag, pruned, removed) < 1e-12
    assert set(pruned.state_dict()) == {"head.weight", "head.bias"}
    assert pruned.get_parameter("head.weight").shape[1] == 3
