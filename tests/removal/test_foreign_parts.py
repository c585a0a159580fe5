"""Parts of which networks that are not timm's are made lose channels, and compute what they should."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_equal, assert_same, outcome, reloaded, train_together
from tests.orbits.helpers import kinds

TOLERANCE = 1e-12


def in_double(example):
    return tuple([x.double() if x.is_floating_point() else x for x in example])


def assert_halved(model, example, *others, orbits=None):
    """Convert, remove every other unit of every orbit, and prove it on the example and on other inputs."""
    model, example = model.double().eval(), in_double(example)
    dag = torchorbit.convert(model, example)
    assert_same(outcome(dag, example), outcome(model, example), 1e-12)
    found = torchorbit.find_orbits(dag)
    if orbits is not None:
        assert kinds(found) == orbits
    removed = {orbit: range(0, orbit.width, 2) for orbit in found}
    pruned = torchorbit.remove_channels(dag, removed)
    for inputs in (example, *map(in_double, others)):
        assert torchorbit.verify_removal(dag, pruned, removed, inputs) < TOLERANCE
    assert_equal(outcome(reloaded(pruned), example), outcome(pruned, example))
    return pruned


class Deformable(nn.Module):
    """Attention to a few places on several levels of an image, as in Deformable DETR; heads are folded into the batch."""

    def __init__(self, width=16, heads=4, levels=2, points=3):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.places, self.weights = (
            nn.Linear(width, heads * levels * points * 2),
            nn.Linear(width, heads * levels * points),
        )
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query, reference, maps):
        shapes = [tuple(level.shape[-2:]) for level in maps]
        value = self.value(torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2))
        batch, count, width = value.shape
        queries = query.shape[1]
        value = value.view(batch, count, self.heads, width // self.heads)
        places = self.places(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.weights(query).view(batch, queries, self.heads, self.levels * self.points).softmax(-1)
        sizes = torch.tensor([shape[::-1] for shape in shapes], dtype=query.dtype)
        grids = 2 * (reference[:, :, None, :, None] + places / sizes[None, None, None, :, None]) - 1
        found = []
        for level, part in enumerate(value.split([height * columns for height, columns in shapes], 1)):
            part = part.flatten(2).transpose(1, 2).reshape(batch * self.heads, width // self.heads, *shapes[level])
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
            found.append(F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, queries, self.levels * self.points)
        result = (torch.stack(found, -2).flatten(-2) * weights).sum(-1).view(batch, width, queries)
        return self.out(result.transpose(1, 2))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.query = nn.Conv2d(3, 16, 1), nn.Linear(12, 16)
        self.attention, self.last = Deformable(), nn.Linear(16, 5)

    def forward(self, image, query, reference):
        fine = self.stem(image)
        query = self.query(query)
        return self.last(query + self.attention(query, reference, [fine, F.avg_pool2d(fine, 2)]))


def test_deformable_attention_loses_heads_and_what_is_in_them():
    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 5, 12), torch.rand(2, 5, 2, 2))
    more = (torch.randn(3, 3, 8, 8), torch.randn(3, 5, 12), torch.rand(3, 5, 2, 2))
    pruned = assert_halved(Detector(), example, more, orbits=[(4, 0), (4, 3), (16, 0), (16, 0)])
    attention = pruned.get_submodule("attention")
    assert attention.value.weight.shape == (4, 8)  # two heads of two channels each
    assert attention.places.weight.shape == (2 * 2 * 3 * 2, 8)
    model = copy.deepcopy(pruned)
    train_together(pruned, model, in_double(example))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.parameters())


class SinePositions(nn.Module):
    """DETR's: where a place is among those that a mask lets through, in sines and cosines."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width

    def forward(self, mask):
        rows, columns = (~mask).cumsum(1, dtype=torch.float32), (~mask).cumsum(2, dtype=torch.float32)
        scale = 10000 ** (2 * (torch.arange(self.width, dtype=torch.float32) // 2) / self.width)
        found = []
        for places in (rows, columns):
            angle = places[:, :, :, None] / scale
            found.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), 4).flatten(3))
        return torch.cat(found, 3).permute(0, 3, 1, 2)


class Positioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.positions, self.last = nn.Conv2d(3, 16, 1), SinePositions(), nn.Conv2d(16, 4, 1)

    def forward(self, x, mask):
        x = self.stem(x)
        return self.last(x * (x + self.positions(mask).to(x.dtype)).relu())


def test_channels_that_meet_positions_as_sines_go_in_pairs():
    example = (torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.2)
    pruned = assert_halved(Positioned(), example, (torch.randn(3, 3, 8, 8), torch.rand(3, 8, 8) < 0.2))
    assert pruned.stem.out_channels == 8


def passed_on(how):
    """What nodes give their neighbors is added up."""

    def forward(self, x, source, target):
        x = self.stem(x)
        messages = self.message(x)[source]
        zeros = torch.zeros_like(x)
        if how == "index_add":
            found = zeros.index_add(0, target, messages)
        elif how == "in place":
            found = x.new_zeros(x.shape[0], 16)
            found.index_add_(0, target, messages)
        else:
            found = zeros.scatter_add(0, target[:, None].expand(-1, 16), messages)
        return self.last((x + found).relu())

    return Computes(forward, stem=nn.Linear(12, 16), message=nn.Linear(16, 16), last=nn.Linear(16, 4))


@pytest.mark.parametrize("how", ["index_add", "in place", "scatter_add"])
def test_a_graph_network_loses_channels_and_no_nodes(how):
    def graph(nodes, edges):
        return torch.randn(nodes, 12), torch.randint(0, nodes, (edges,)), torch.randint(0, nodes, (edges,))

    pruned = assert_halved(passed_on(how), graph(5, 7), graph(5, 7), orbits=[(16, 0)])
    assert pruned.message.weight.shape == (8, 8)


class Tensorial(nn.Module):
    """As DiT: what a layer gives is put in another order by an einsum of one operand."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Linear(12, 2 * 2 * 6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x).reshape(x.shape[0], 4, 4, 2, 2, 6)
        return self.last(torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 6, 8, 8))


def test_an_einsum_of_one_operand_is_free_and_others_cost_what_they_multiply():
    dag = torchorbit.convert(Tensorial(), torch.randn(2, 16, 12))
    assert torchorbit.flops(dag).total == 2 * (16 * 12 * 24 + 6 * 4 * 64)
    assert_halved(Tensorial(), (torch.randn(2, 16, 12),), orbits=[(6, 0)])
    for equation, shapes, expected in (
        ("bij->b", ((2, 3, 4),), 0),
        ("bii->bi", ((2, 3, 3),), 0),
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5)), 3 * 4 * 5),
        ("bij,bj,bk->bik", ((2, 3, 4), (2, 4), (2, 5)), 3 * 4 + 3 * 5),
    ):
        model = Computes(lambda *x, equation=equation: torch.einsum(equation, *x))
        counted = torchorbit.flops(torchorbit.convert(model, tuple([torch.randn(shape) for shape in shapes])))
        assert counted.total == 2 * expected


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1), nn.SiLU(),
        nn.ConvTranspose2d(12, 6, 2, 2), nn.Conv2d(6, 4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
def test_weights_states_and_outputs_stay_channels_last(inplace):
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    dag = torchorbit.convert(convolutional().to(memory_format=torch.channels_last), x)
    optimizer = torch.optim.Adam(dag.parameters())
    dag(x).square().mean().backward()
    optimizer.step()
    pruned = torchorbit.prune(dag, ratio=0.5, inplace=inplace, optimizer=optimizer)
    for parameter in pruned.parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last)
        for state in optimizer.state[parameter].values():
            assert state.dim() != 4 or state.stride() == parameter.stride()
    assert not pruned.get_submodule("0").weight.is_contiguous()
    assert pruned(x).is_contiguous(memory_format=torch.channels_last)


def test_weights_that_are_not_channels_last_stay_contiguous():
    pruned = torchorbit.prune(convolutional(), torch.randn(2, 3, 12, 12), ratio=0.5)
    assert all(parameter.is_contiguous() for parameter in pruned.parameters())
    assert pruned(torch.randn(2, 3, 12, 12)).is_contiguous()


def test_constants_keep_their_channels_after_a_second_removal_and_in_training():
    model = Computes(
        lambda self, x: self.last(self.first(x) * torch.linspace(1, 2, 8)[:, None, None]),
        first=nn.Conv2d(3, 8, 1),
        last=nn.Conv2d(8, 4, 1),
    )
    x = torch.randn(2, 3, 5, 5)
    dag = torchorbit.convert(model, x)
    once = torchorbit.prune(dag, ratio=0.25)
    twice = torchorbit.prune(once, ratio=0.5)
    assert twice.first.out_channels == 3
    (orbit,) = torchorbit.find_orbits(once)
    removed = {orbit: [0, 2, 3]}
    assert torchorbit.verify_removal(once, torchorbit.remove_channels(once, removed), removed) < 1e-6
    assert_same(outcome(once.train(), x), outcome(copy.deepcopy(once).eval(), x))


def test_what_writes_freeze_is_said():
    def forward(self, x):
        y = self.first(x)
        z = y * 1
        z[:, 3] = self.one(y)[:, 0]
        return self.last(z)

    model = Computes(forward, first=nn.Conv2d(3, 8, 1), one=nn.Conv2d(8, 2, 1), last=nn.Conv2d(8, 4, 1))
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 3, 5, 5)))
    groups = torchorbit.inspect.frozen_groups(orbits)
    assert [reason.kind for reason in groups.reasons("first.weight", 0, 3)] == ["alone"]
    assert {(orbit.width, orbit.sources) for orbit in orbits} == {(7, ("first",))}
    assert all(groups.reasons("one.weight", 0, index) for index in range(2))


def test_a_recurrent_layer_with_projections_keeps_its_hidden_size():
    model = Computes(
        lambda self, x: self.last(self.layer(self.first(x))[0]),
        first=nn.Linear(12, 8),
        layer=nn.LSTM(8, 6, batch_first=True, proj_size=4),
        last=nn.Linear(4, 3),
    )
    pruned = assert_halved(model, (torch.randn(2, 5, 12),), orbits=[])
    assert pruned.layer.hidden_size == 6
