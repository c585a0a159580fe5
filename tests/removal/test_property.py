"""Any network that can be put together from these blocks can be pruned at random, and computes what it should."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, event, example, given, note, settings
from hypothesis import strategies as st
from torch import nn

import torchorbit
from tests.models import Computes, assert_same, stir

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-9
SIDE = 4
WIDEST = 32

KEPT = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class ChannelsLast(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    def __init__(self, width, specs):
        super().__init__()
        self.inner, inside = chain(width, specs)
        self.shortcut = nn.Identity() if inside == width else nn.Conv2d(width, inside, 1)
        self.out = inside

    def forward(self, x):
        return self.shortcut(x) + self.inner(x)


class Concatenation(nn.Module):
    def __init__(self, width, first, second, with_input):
        super().__init__()
        self.first, a = chain(width, first)
        self.second, b = chain(width, second)
        self.with_input = with_input
        self.out = a + b + with_input * width

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x), *([x] if self.with_input else [])], 1)


class Split(nn.Module):
    def __init__(self, width, how):
        super().__init__()
        self.how, self.left = how, max(width // 3, 1)
        self.conv = nn.Conv2d(self.left, self.left, 1)
        self.out = width // 2 if how in ("product", "slices") else width

    def forward(self, x):
        if self.how == "product":
            first, second = x.chunk(2, 1)
            return first * torch.tanh(second)
        if self.how == "slices":
            half = x.shape[1] // 2
            return x[:, :half] + x[:, half:]
        if self.how == "swap":
            first, second = x.split([self.left, x.shape[1] - self.left], 1)
            return torch.cat([second, first], 1)
        first, second = x[:, : self.left], x[:, self.left :]
        return torch.cat([self.conv(first), second], 1)


class Attention(nn.Module):
    def __init__(self, width, heads, order, fused):
        super().__init__()
        self.heads, self.order, self.fused, self.inside = heads, order, fused, width // heads
        if order == "separate":
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.scale = self.inside**-0.5

    def forward(self, x):
        batch, width, *space = x.shape
        x = x.flatten(2).transpose(1, 2)
        tokens = x.shape[1]
        if self.order == "separate":
            q, k, v = (
                f(x).reshape(batch, tokens, self.heads, self.inside).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
        elif self.order == "3hd":
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.inside).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.order == "h3d":
            q, k, v = self.qkv(x).reshape(batch, tokens, self.heads, 3, self.inside).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (self.heads, self.inside)).transpose(1, 2) for t in (q, k, v))
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = self.proj(x.transpose(1, 2).reshape(batch, tokens, width))
        return x.transpose(1, 2).reshape(batch, width, *space)


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, max(width // 2, 1), 1), nn.Conv2d(max(width // 2, 1), width, 1)

    def forward(self, x):
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Shared(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.silu(self.conv(x)))


class Shuffle(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        batch, width, height, columns = x.shape
        x = x.reshape(batch, self.groups, width // self.groups, height, columns)
        return x.permute(0, 2, 1, 3, 4).reshape(batch, width, height, columns)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma[:, None, None]


class Tokens(nn.Module):
    """Mixes positions with weights that are no matter of channels."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(SIDE**2, 6), nn.Linear(6, SIDE**2)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x.flatten(2)))).reshape(x.shape)


class Registers(nn.Module):
    """Attention in which tokens take part that are parameters."""

    def __init__(self, width, count, fused):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, count, width))
        self.q, self.k, self.v = nn.Linear(width, 4), nn.Linear(width, 4), nn.Linear(width, width)
        self.fused = fused

    def forward(self, x):
        y = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        q, k, v = self.q(y), self.k(y), self.v(y)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bnc,bmc->bnm", q, k).softmax(-1) @ v
        return x + y[:, self.tokens.shape[1] :].transpose(1, 2).reshape(x.shape)


class AlongChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        gate = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.squeeze(1)[:, :, None, None]


class Stacked(nn.Module):
    """Weighted by what a softmax over the branches says."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.fc = nn.Linear(width, 2 * width)

    def forward(self, x):
        branches = torch.stack([self.first(x), self.second(x)], 1)
        weights = self.fc(branches.sum(1).mean((2, 3))).view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return (branches * weights).sum(1)


class Recurrent(nn.Module):
    def __init__(self, width, both):
        super().__init__()
        self.rnn = nn.LSTM(width, 4, batch_first=True, bidirectional=both)

    def forward(self, x):
        y = self.rnn(x.flatten(2).transpose(1, 2))[0]
        return y.transpose(1, 2).unflatten(2, x.shape[2:])


class Picked(nn.Module):
    """Channels in another order, or some of them."""

    def __init__(self, width, how):
        super().__init__()
        self.how = how
        order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
        self.register_buffer("order", order[: width - width // 3] if how == "some" else order)
        self.listed = order.tolist()
        self.out = len(self.order)

    def forward(self, x):
        width = x.shape[1]
        return {
            "buffer": lambda: x[:, self.order],
            "some": lambda: x[:, self.order],
            "selected": lambda: x.index_select(1, self.order),
            "list": lambda: x[:, self.listed],
            "computed": lambda: x[:, torch.arange(len(self.listed) - 1, -1, -1)],
            "flip": lambda: x.flip(1),
            "roll": lambda: x.roll((width // 2, 1), (1, 3)),
            "back": lambda: torch.roll(x, -3, 1),
        }[self.how]()


class Written(nn.Module):
    """A part of the channels is written anew."""

    def __init__(self, width, how):
        super().__init__()
        self.how, self.part = how, width // 2
        self.positions = list(range(width - 1, width - 1 - self.part, -1))
        self.conv = nn.Conv2d(width, self.part, 1)

    def forward(self, x):
        y, part = self.conv(x), self.part
        z = torch.zeros_like(x) if self.how == "zeros" else x * 1
        if self.how in ("first", "zeros"):
            z[:, :part] = y
        elif self.how == "last":
            z[:, -part:] = y
        elif self.how == "every other":
            z[:, : 2 * part : 2] = y
        elif self.how == "positions":
            z[:, self.positions] = y
        elif self.how == "samples":
            z[:-1, :part] = y[1:]
        elif self.how == "number":
            z[:, :part] = 0.3
        elif self.how == "space":
            z[:, part:, 1:3, 2] = z[:, part:, 1:3, 0]
        else:
            z[(z < 0) & (z > -0.5)] = 0.1
        return z


class Largest(nn.Module):
    """A gate of the mean and the largest of all channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x):
        return x * self.conv(torch.cat([x.mean(1, True), x.max(1, keepdim=True)[0]], 1)).sigmoid()


class Positions(nn.Module):
    """Sines and cosines that are made in forward."""

    def __init__(self, width, how):
        super().__init__()
        self.width, self.how = width, how

    def forward(self, x):
        scale = 100 ** (2 * (torch.arange(self.width, device=x.device) // 2) / self.width).to(x.dtype)
        if self.how == "table":
            angle = torch.arange(SIDE, dtype=x.dtype, device=x.device)[:, None] / scale
            return x + torch.where(torch.arange(self.width) % 2 == 0, angle.sin(), angle.cos()).t()[:, :, None]
        if self.how == "factor":
            return x * scale[:, None, None] + scale.flip(0)[None, :, None, None]
        rows = x.mean((1, 3))[..., None] / scale
        pairs = torch.stack((rows[..., 0::2].sin(), rows[..., 1::2].cos()), -1).flatten(2)
        return x + pairs.transpose(1, 2)[..., None]


class TorchAttention(nn.Module):
    def __init__(self, width, heads, how):
        super().__init__()
        self.how = how
        if how == "layer":
            self.layer = nn.TransformerEncoderLayer(width, heads, 6, batch_first=True)
        elif how == "decoder":
            self.layer = nn.TransformerDecoderLayer(width, heads, 6, batch_first=True, norm_first=True)
        else:
            self.layer = nn.MultiheadAttention(width, heads, batch_first=how != "tokens first", bias=how != "weights")

    def forward(self, x):
        y = x.flatten(2).transpose(1, 2)
        if self.how in ("layer", "decoder"):
            y = self.layer(y) if self.how == "layer" else self.layer(y, y * 2)
        elif self.how == "tokens first":
            y = self.layer(y.transpose(0, 1), y.transpose(0, 1), y.transpose(0, 1), need_weights=False)[0].transpose(
                0, 1
            )
        else:
            y = y + self.layer(y, y, y, need_weights=self.how == "weights")[0]
        return y.transpose(1, 2).unflatten(2, x.shape[2:])


class Deformable(nn.Module):
    """Attention to a few places of the image, where heads are folded into the batch."""

    def __init__(self, width, heads, points):
        super().__init__()
        self.heads, self.points = heads, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.places, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)

    def forward(self, x):
        batch, width, height, columns = x.shape
        query = x.flatten(2).transpose(1, 2)
        count = query.shape[1]
        value = self.value(query).view(batch, count, self.heads, -1).flatten(2).transpose(1, 2)
        value = value.reshape(batch * self.heads, width // self.heads, height, columns)
        places = self.places(query).view(batch, count, self.heads, self.points, 2).tanh()
        weights = self.weights(query).view(batch, count, self.heads, self.points).softmax(-1)
        found = F.grid_sample(value, places.transpose(1, 2).flatten(0, 1), align_corners=False)
        weights = weights.transpose(1, 2).reshape(batch * self.heads, 1, count, self.points)
        y = (found * weights).sum(-1).view(batch, width, count).transpose(1, 2)
        return (query + self.out(y)).transpose(1, 2).reshape(x.shape)


def norm(width, kind):
    groups = math.gcd(width, 4)
    return {
        "batch": lambda: nn.BatchNorm2d(width),
        "layer": lambda: ChannelsLast(nn.LayerNorm(width)),
        "rms": lambda: ChannelsLast(nn.RMSNorm(width)),
        "group": lambda: nn.GroupNorm(groups, width),
        "one group": lambda: nn.GroupNorm(1, width),
        "instance": lambda: nn.InstanceNorm2d(width, affine=True),
    }[kind]()


def block(width, spec):
    """A module, and the width of what it gives."""
    kind, *args = spec
    even = width % 2 == 0
    if kind == "conv":
        return nn.Conv2d(width, args[0], args[1], padding=args[1] // 2), args[0]
    if kind == "transposed":
        return nn.Sequential(nn.ConvTranspose2d(width, args[0], 2, 2), nn.MaxPool2d(2)), args[0]
    if kind == "grouped":
        groups = math.gcd(width, args[0])
        return nn.Conv2d(width, groups * args[1], 3, padding=1, groups=groups), groups * args[1]
    if kind == "depthwise":
        return nn.Conv2d(width, width * args[0], 3, padding=1, groups=width), width * args[0]
    if kind == "norm":
        return norm(width, args[0]), width
    if kind == "residual":
        made = Residual(width, args[0])
        return made, made.out
    if kind == "cat":
        made = Concatenation(width, *args)
        return made, made.out
    if kind == "split" and even and width > 2:
        made = Split(width, args[0])
        return made, made.out
    if kind == "attention":
        return Attention(width, math.gcd(width, args[0]), *args[1:]), width
    if kind == "gate":
        return Gate(width), width
    if kind == "glu" and even:
        return nn.GLU(1), width // 2
    if kind == "shared":
        return Shared(width), width
    if kind == "shuffle":
        return Shuffle(math.gcd(width, args[0])), width
    if kind == "pixels" and width % 4 == 0:
        return nn.Sequential(nn.PixelShuffle(2), nn.AvgPool2d(2)), width // 4
    if kind == "scale":
        return Scale(width), width
    if kind == "tokens":
        return Tokens(), width
    if kind == "registers":
        return Registers(width, *args), width
    if kind == "along channels":
        return AlongChannels(), width
    if kind == "stacked":
        return Stacked(width), width
    if kind == "recurrent":
        return Recurrent(width, args[0]), 8 if args[0] else 4
    if kind == "picked":
        made = Picked(width, args[0])
        return made, made.out
    if kind == "written":
        return Written(width, args[0]), width
    if kind == "largest":
        return Largest(), width
    if kind == "positions":
        return Positions(width, args[0] if even else "factor"), width
    if kind == "torch attention":
        return TorchAttention(width, math.gcd(width, args[0]), args[1]), width
    if kind == "deformable":
        return Deformable(width, math.gcd(width, args[0]), args[1]), width
    if kind == "interleaved":
        return Computes(lambda x: x.repeat_interleave(2, 1, output_size=2 * x.shape[1])), 2 * width
    if kind == "transposed by einsum":
        return ChannelsLast(Computes(lambda x: torch.einsum("nhwc->nwhc", x))), width
    if kind == "unshuffle":
        return nn.Sequential(nn.PixelUnshuffle(2), nn.Upsample(scale_factor=2)), 4 * width
    return nn.GELU(), width


def chain(width, specs):
    modules = []
    for spec in specs:
        if width > WIDEST:
            modules.append(nn.Conv2d(width, 8, 1))
            width = 8
        made, width = block(width, spec)
        modules.append(made)
    return nn.Sequential(*modules), width


class Network(nn.Module):
    def __init__(self, width, specs, flat):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body, width = chain(width, specs)
        self.flat = flat
        self.head = nn.Linear(width * SIDE**2 if flat else width, 5)

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.head(x.flatten(1) if self.flat else x.mean((2, 3)))


widths = st.sampled_from((4, 6, 8, 12))
simple = st.one_of(
    st.tuples(st.just("conv"), widths, st.sampled_from((1, 3))),
    st.tuples(st.just("norm"), st.sampled_from(("batch", "layer", "rms", "group", "one group", "instance"))),
    st.tuples(st.just("grouped"), st.sampled_from((2, 4)), st.sampled_from((1, 2, 3))),
    st.tuples(st.just("depthwise"), st.sampled_from((1, 2))),
    st.tuples(st.just("split"), st.sampled_from(("product", "slices", "swap", "part"))),
    st.tuples(
        st.just("attention"),
        st.sampled_from((1, 2, 4)),
        st.sampled_from(("3hd", "h3d", "chunks", "separate")),
        st.booleans(),
    ),
    st.tuples(st.just("shuffle"), st.sampled_from((2, 4))),
    st.tuples(st.just("transposed"), widths),
    st.tuples(st.just("registers"), st.sampled_from((2, 3)), st.booleans()),
    st.tuples(st.just("recurrent"), st.booleans()),
    st.tuples(
        st.just("picked"), st.sampled_from(("buffer", "some", "selected", "list", "computed", "flip", "roll", "back"))
    ),
    st.tuples(
        st.just("written"),
        st.sampled_from(
            ("first", "last", "zeros", "every other", "positions", "samples", "number", "space", "where negative")
        ),
    ),
    st.tuples(st.just("positions"), st.sampled_from(("table", "factor", "pairs"))),
    st.tuples(
        st.just("torch attention"),
        st.sampled_from((1, 2, 4)),
        st.sampled_from(("plain", "weights", "tokens first", "layer", "decoder")),
    ),
    st.tuples(st.just("deformable"), st.sampled_from((1, 2, 4)), st.sampled_from((1, 3))),
    st.sampled_from((("largest",), ("interleaved",), ("transposed by einsum",))),
    st.sampled_from((("along channels",), ("stacked",), ("unshuffle",))),
    st.sampled_from((("act",), ("gate",), ("glu",), ("shared",), ("pixels",), ("scale",), ("tokens",))),
)
blocks = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.tuples(st.just("residual"), st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.tuples(
            st.just("cat"),
            st.lists(inner, max_size=2).map(tuple),
            st.lists(inner, min_size=1, max_size=2).map(tuple),
            st.booleans(),
        ),
    ),
    max_leaves=6,
)
specifications = st.tuples(widths, st.lists(blocks, min_size=1, max_size=6).map(tuple), st.booleans())
seeds = st.integers(0, 2**16)
X = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()


def network(specification):
    torch.manual_seed(0)
    model = stir(Network(*specification)).double().eval()
    dag = torchorbit.convert(model, X)
    return dag, torchorbit.find_orbits(dag)


def at_random(orbits, seed):
    """Some units of some orbits, anything from none to all but one."""
    choice = random.Random(seed)
    share = choice.choice((0.3, 0.7, 1.0))
    return {
        orbit: choice.sample(range(orbit.width), choice.randrange(orbit.width))
        for orbit in orbits
        if choice.random() < share
    }


def assert_proved(dag, removed):
    for orbit, units in removed.items():
        note(f"{orbit} without {units}")
    with torch.no_grad():
        before = dag.eval()(X)
    pruned = torchorbit.remove_channels(dag, removed)
    with torch.no_grad():
        assert_same(dag(X), before)
    if removed:
        assert torchorbit.verify_removal(dag, pruned, removed, X) <= TOLERANCE
        assert torchorbit.verify_removal(dag, pruned, removed) <= TOLERANCE  # at other sizes, too
    return pruned


@settings(KEPT, max_examples=70)
@given(specifications, seeds)
def test_random_removals_are_right_and_can_be_repeated(specification, seed):
    dag, orbits = network(specification)
    assert not orbits.unruled
    pruned = assert_proved(dag, at_random(orbits, seed))
    assert_proved(pruned, at_random(torchorbit.find_orbits(pruned), seed + 1))


#: Four channels in two groups beside two others, of which the first three are written: the slice cuts a group.
CUT_GROUPS = (4, (("cat", (), (("grouped", 2, 1),), False), ("written", "first")), False)


@settings(KEPT, max_examples=50)
@example(CUT_GROUPS, 3)
@given(specifications, seeds)
def test_every_orbit_shrinks_to_one_unit(specification, seed):
    dag, orbits = network(specification)
    choice = random.Random(seed)
    removed = {orbit: choice.sample(range(orbit.width), orbit.width - 1) for orbit in orbits}
    pruned = assert_proved(dag, removed)
    assert sum(p.numel() for p in pruned.parameters()) <= sum(p.numel() for p in dag.parameters())


@settings(KEPT, max_examples=30)
@given(specifications, seeds)
def test_flops_are_what_was_predicted(specification, seed):
    dag, orbits = network(specification)
    assert math.isclose(orbits.costs.total(), torchorbit.flops(dag).total)
    removed = at_random(orbits, seed)
    kept = {n: [True] * (int(component.max()) + 1) for n, component in enumerate(orbits.components)}
    for orbit, units in removed.items():
        for unit in units:
            kept[orbit.reading][orbit.components[unit]] = False
    predicted = orbits.costs.total({n: np.array(mask) for n, mask in kept.items()})
    assert math.isclose(predicted, torchorbit.flops(torchorbit.remove_channels(dag, removed)).total)


@settings(KEPT, max_examples=60)
@given(specifications, seeds)
def test_whole_branches_go_or_are_refused(specification, seed):
    dag, orbits = network(specification)
    assume(len(orbits))
    removed = at_random(orbits, seed)
    chosen = random.Random(seed).choice(list(orbits))
    removed[chosen] = range(chosen.width)
    try:
        pruned = torchorbit.remove_channels(dag, removed, allow_empty=True)
    except ValueError as error:
        event("refused")
        refusal = str(error)
        assert "cannot lose all units" in refusal
        return
    assert torchorbit.verify_removal(dag, pruned, removed, X) <= TOLERANCE


@settings(KEPT, max_examples=40)
@given(specifications)
def test_what_cannot_go_is_said_with_a_reason(specification):
    _, orbits = network(specification)
    groups = torchorbit.inspect.frozen_groups(orbits, space=True)
    for path in set(orbits.first_paths().values()):
        for axis, dim in enumerate(orbits.readings[0].attributes[path].dims):
            if isinstance(dim, np.ndarray):
                going = {
                    i for orbit in orbits for p in orbit.slices if (p.tensor, p.dim) == (path, axis) for i in p.indices
                }
                for position in set(range(len(dim))) - going:
                    reasons = groups.reasons(path, axis, position)
                    assert reasons
                    assert all(reason.text for reason in reasons)
