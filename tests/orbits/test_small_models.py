"""Widths, units, sources and sinks of orbits in models that are small enough to see why."""

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, stir
from tests.orbits.helpers import kinds, owned, targets, the
from torchorbit.graph.vertices import InputVertex

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 8, 8)
T = torch.randn(2, 6, 12)


def orbits_of(model, x=X, **options):
    return torchorbit.find_orbits(torchorbit.convert(model.eval(), x), **options)


def between(mid, width=8, out=None, **members):
    """A convolution, something in the middle, and another convolution."""
    return Computes(
        lambda self, x: self.head(mid(self, self.stem(x))),
        stem=nn.Conv2d(3, width, 1),
        head=nn.Conv2d(out or width, 4, 1),
        **members,
    )


def test_a_chain():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1))
    orbits = orbits_of(model)
    first, second = orbits
    assert (first.width, second.width, len(first), orbits.units) == (8, 5, 8, 13)
    assert (first.reading, first.index, second.index) == (0, 0, 1)
    assert targets(orbits, first.sources) == {"0"}
    assert targets(orbits, first.sinks) == {"3"}
    assert owned(first, 2) == {
        ("0.weight", 0): (2,), ("0.bias", 0): (2,), ("1.weight", 0): (2,), ("1.bias", 0): (2,),
        ("1.running_mean", 0): (2,), ("1.running_var", 0): (2,), ("3.weight", 1): (2,),
    }  # fmt: skip
    assert owned(first)["3.weight", 1] == tuple(range(8))
    assert first.parameters == 8 * 27 + 8 + 8 + 8 + 5 * 8
    assert second.parameters == 5 * 8 + 5 + 4 * 5


def test_a_block_that_was_replaced_since():
    def block(width):
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    dag, other = (
        torchorbit.convert(nn.Sequential(block(8), nn.Sequential(block(width))).eval(), X) for width in (6, 10)
    )
    assert kinds(torchorbit.find_orbits(dag)) == [(3, 0), (6, 0), (8, 0)]
    dag.get_submodule("1")._modules["0"] = other.get_submodule("1.0")
    assert kinds(torchorbit.find_orbits(dag)) == [(3, 0), (8, 0), (10, 0)]


def test_only_what_is_inside():
    assert kinds(orbits_of(nn.Conv2d(3, 4, 1))) == []
    assert kinds(orbits_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))) == []
    # An average over channels is no matter of how many there are.
    assert kinds(orbits_of(Computes(lambda self, x: self.a(x).mean(1), a=nn.Conv2d(3, 6, 1)))) == [(6, 0)]


def test_every_output_is_frozen():
    model = Computes(
        lambda self, x: {"first": self.a(x), "others": [self.b(self.a(x)), self.d(self.c(x))]},
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 5, 1), c=nn.Conv2d(3, 7, 1), d=nn.Conv2d(7, 2, 1),
    )  # fmt: skip
    assert kinds(orbits_of(model)) == [(7, 0)]


class Answer(NamedTuple):
    """What a detector might return."""

    logits: Any
    extra: Any


@pytest.mark.parametrize(
    "answer",
    [
        lambda a, b: Answer(a, b),
        lambda a, b: Answer(a, Answer(b, None)),
        lambda a, b: Answer((a, b), 3),
        lambda a, b: {"first": a, "others": [Answer(None, (b,))]},
        lambda a, b: (Answer([a], {"second": b}), 0.5),
    ],
)
def test_outputs_in_named_tuples_are_frozen(answer):
    model = Computes(
        lambda self, x: answer(self.a(x), self.b(self.c(x))),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(7, 5, 1), c=nn.Conv2d(3, 7, 1),
    )  # fmt: skip
    dag = torchorbit.convert(model.eval(), X)
    orbits = torchorbit.find_orbits(dag)
    assert kinds(orbits) == [(7, 0)]
    smaller = torchorbit.remove_channels(dag, {orbit: range(orbit.width // 2) for orbit in orbits})
    given, wanted = (torch.utils._pytree.tree_leaves(made(X)) for made in (smaller, model))
    assert [getattr(value, "shape", value) for value in given] == [getattr(value, "shape", value) for value in wanted]


class Odd(nn.Module):
    """Takes two tensors in a named tuple; torchorbit has no rule for it."""

    def forward(self, answer):
        """The sum of both."""
        return answer.logits + answer.extra.flip(1)


def test_tensors_in_a_named_tuple_that_a_module_without_a_rule_takes_are_frozen():
    model = Computes(
        lambda self, x: self.d(self.odd(Answer(self.a(x), self.b(x)))),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), d=nn.Conv2d(6, 2, 1), odd=Odd(),
    )  # fmt: skip
    dag = torchorbit.convert(model.eval(), X, atomic=[Odd])
    assert kinds(torchorbit.find_orbits(dag)) == []


def test_a_residual_connection_to_the_input_freezes():
    model = Computes(
        lambda self, x: self.c(x + self.b(self.a(x))), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 3, 1), c=nn.Conv2d(3, 2, 1)
    )
    assert kinds(orbits_of(model)) == [(6, 0)]


def test_width_one_is_no_orbit():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 4, 1))
    assert kinds(orbits_of(model)) == [(2, 0)]


def test_concatenation_puts_units_at_an_offset():
    model = between(lambda self, y: torch.cat([y, self.c(y)], 1), out=13, c=nn.Conv2d(8, 5, 1))
    orbits = orbits_of(model)
    assert owned(the(orbits, "c.weight"), 2)["head.weight", 1] == (8 + 2,)
    assert owned(the(orbits, "stem.weight"), 2) == {
        ("stem.weight", 0): (2,), ("stem.bias", 0): (2,), ("c.weight", 1): (2,), ("head.weight", 1): (2,),
    }  # fmt: skip


def test_a_split_keeps_something_of_every_part():
    model = between(lambda self, y: torch.cat(y.split([2, 5, 1], 1)[::-1], 1))
    orbits = orbits_of(model)
    assert kinds(orbits) == [(2, 0), (5, 0)], "a part of one channel stays"
    five = next(orbit for orbit in orbits if orbit.width == 5)
    assert owned(five, 0)["stem.weight", 0] == (2,)
    assert owned(five, 0)["head.weight", 1] == (1,)


def test_halves_that_meet_are_one():
    for mid in (
        lambda self, y: F.glu(y, 1),
        lambda self, y: y[:, :4] + y[:, 4:],
        lambda self, y: y[:, :4] * y.chunk(2, 1)[1].sigmoid(),
    ):
        (orbit,) = orbits_of(between(mid, out=4))
        assert owned(orbit, 1)["stem.weight", 0] == (1, 5)
    (orbit,) = orbits_of(between(lambda self, y: y[:, ::2] * y[:, 1::2], out=4))
    assert owned(orbit, 1)["stem.weight", 0] == (2, 3)


def test_one_channel_that_is_picked_stays():
    (orbit,) = orbits_of(between(lambda self, y: y * y[:, -1:].sigmoid() + y.select(1, 2)[:, None]))
    assert sorted(indices for unit in range(6) for indices in owned(orbit, unit)["stem.weight", 0]) == [
        0,
        1,
        3,
        4,
        5,
        6,
    ]


def test_groups_of_a_convolution():
    orbits = orbits_of(between(lambda self, y: self.g(y), out=12, g=nn.Conv2d(8, 12, 3, padding=1, groups=4)))
    assert kinds(orbits) == [(2, 0), (3, 0), (4, 1)]
    group = the(orbits, "g.weight", groups=True)
    assert owned(group, 1) == {
        ("stem.weight", 0): (2, 3), ("stem.bias", 0): (2, 3), ("g.weight", 0): (3, 4, 5), ("g.bias", 0): (3, 4, 5),
        ("head.weight", 1): (3, 4, 5),
    }  # fmt: skip


@pytest.mark.parametrize("copies", [1, 2])
def test_depthwise_convolutions_pass_channels_on(copies):
    model = between(lambda self, y: self.g(y), out=8 * copies, g=nn.Conv2d(8, 8 * copies, 3, padding=1, groups=8))
    (orbit,) = orbits_of(model)
    assert orbit.width == 8
    assert owned(orbit, 3)["g.weight", 0] == tuple(range(3 * copies, 3 * copies + copies))


def test_flattening_repeats_a_channel_for_every_position():
    model = Computes(lambda self, x: self.fc(self.stem(x).flatten(1)), stem=nn.Conv2d(3, 4, 1), fc=nn.Linear(256, 5))
    (orbit,) = orbits_of(model)
    assert owned(orbit, 1)["fc.weight", 1] == tuple(range(64, 128))


def test_pixel_shuffle_makes_one_channel_of_four():
    (orbit,) = orbits_of(between(lambda self, y: F.pixel_shuffle(y, 2), out=2))
    assert orbit.width == 2
    assert owned(orbit, 1)["stem.weight", 0] == (4, 5, 6, 7)
    (orbit,) = orbits_of(between(lambda self, y: F.pixel_unshuffle(y, 2), out=32))
    assert owned(orbit, 1)["head.weight", 1] == (4, 5, 6, 7)


def test_a_channel_shuffle():
    def shuffle(self, y):
        return y.reshape(y.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(y.shape)

    orbits = orbits_of(between(shuffle))
    assert kinds(orbits) == [(2, 1), (4, 0)]
    place, group = the(orbits, "stem.weight"), the(orbits, "stem.weight", groups=True)
    assert owned(place, 1)["stem.weight", 0] == (1, 5)
    assert owned(place, 1)["head.weight", 1] == (2, 3)
    assert owned(group, 1)["stem.weight", 0] == (4, 5, 6, 7)
    assert owned(group, 1)["head.weight", 1] == (1, 3, 5, 7)


def test_a_shared_layer_has_one_width():
    (orbit,) = orbits_of(between(lambda self, y: self.c(self.c(y).relu()), c=nn.Conv2d(8, 8, 1)))
    assert owned(orbit, 1) == {
        ("stem.weight", 0): (1,), ("stem.bias", 0): (1,), ("c.weight", 0): (1,), ("c.weight", 1): (1,),
        ("c.bias", 0): (1,), ("head.weight", 1): (1,),
    }  # fmt: skip


def test_a_tied_weight_is_one():
    model = Computes(lambda self, x: F.linear(self.a(x), self.a.weight.t()), a=nn.Linear(12, 7))
    (orbit,) = orbits_of(model, T)
    assert owned(orbit, 1) == {("a.weight", 0): (1,), ("a.bias", 0): (1,)}


def attention(order, heads=3, width=12):
    inside = width // heads

    def forward(self, x):
        batch, tokens, _ = x.shape
        if order == "3hd":
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, inside).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = self.qkv(x).reshape(batch, tokens, heads, 3, inside).permute(3, 0, 2, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))

    return Computes(forward, qkv=nn.Linear(12, 3 * width), proj=nn.Linear(width, 5))


@pytest.mark.parametrize("order", ["3hd", "h3d"])
def test_query_key_and_value_of_one_layer(order):
    orbits = orbits_of(attention(order), T)
    assert kinds(orbits) == [(3, 1), (4, 0), (4, 0)]
    query_and_key, value = [orbit for orbit in orbits if not orbit.reading]
    head = the(orbits, "qkv.weight", groups=True)

    def row(part, number, place):
        return part * 12 + number * 4 + place if order == "3hd" else number * 12 + part * 4 + place

    assert owned(query_and_key, 1)["qkv.weight", 0] == tuple(sorted(row(p, h, 1) for p in (0, 1) for h in range(3)))
    assert owned(value, 1)["qkv.bias", 0] == tuple(sorted(row(2, h, 1) for h in range(3)))
    assert owned(value, 1)["proj.weight", 1] == (1, 5, 9)
    assert owned(head, 2)["qkv.weight", 0] == tuple(sorted(row(p, 2, d) for p in range(3) for d in range(4)))
    assert owned(head, 2)["proj.weight", 1] == (8, 9, 10, 11)


def grouped_queries(key_heads):
    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (n, -1)).transpose(1, 2)
            for f, n in ((self.q, 4), (self.k, key_heads), (self.v, key_heads))
        )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))

    return Computes(
        forward, q=nn.Linear(12, 12), k=nn.Linear(12, 3 * key_heads), v=nn.Linear(12, 5 * key_heads), o=nn.Linear(20, 3)
    )


def test_grouped_queries_go_with_their_keys():
    orbits = orbits_of(grouped_queries(2), T)
    assert kinds(orbits) == [(2, 1), (3, 0), (5, 0)]
    assert owned(the(orbits, "k.weight"), 1)["q.weight", 0] == (1, 4, 7, 10)
    pair = owned(the(orbits, "k.weight", groups=True), 1)
    assert pair["q.weight", 0] == (6, 7, 8, 9, 10, 11)
    assert pair["k.weight", 0] == (3, 4, 5)
    assert pair["v.weight", 0] == (5, 6, 7, 8, 9)
    assert pair["o.weight", 1] == tuple(range(10, 20))


def test_tokens_of_a_model_s_own():
    """Registers are parameters; which of them there are is a choice, as long as no position is bound to a place."""

    def forward(self, x):
        x = torch.cat([self.registers.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        q = self.q(x)[:, None]
        return self.o(F.scaled_dot_product_attention(q, q, q)[:, 0]).mean(1)

    model = Computes(
        forward,
        registers=nn.Parameter(torch.randn(1, 4, 10)),
        embed=nn.Linear(12, 10),
        q=nn.Linear(10, 6),
        o=nn.Linear(6, 3),
    )
    assert torchorbit.rules.check_rule(model, T) == 4 + 8 + 6 + 1
    orbits = orbits_of(model, T)
    assert the(orbits, "registers", 1).width == 4

    def causal(self, x):
        x = torch.cat([self.registers.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        q = self.q(x)[:, None]
        return self.o(F.scaled_dot_product_attention(q, q, q, is_causal=True)[:, 0]).mean(1)

    model._function = (causal, True)
    assert not orbits_of(model, T).of_tensor("registers", 1)
    assert torchorbit.rules.check_rule(model, T)


@pytest.mark.parametrize(
    ("front", "taken", "widths"),
    [
        (False, lambda t, patches: t[:, 16:18].sum(1), []),
        (False, lambda t, patches: t.narrow(1, 16, 2).sum(1), []),
        (False, lambda t, patches: t[:, [17, 18]].sum(1), []),
        (False, lambda t, patches: t[:, 17], []),
        (False, lambda t, patches: t.select(1, 17), []),
        (False, lambda t, patches: t[:, ::2].sum(1), []),
        (False, lambda t, patches: t[:, :16].sum(1), []),
        (False, lambda t, patches: t[:, -2:].sum(1), [2, 2]),
        (False, lambda t, patches: t[:, -1], [3]),
        (False, lambda t, patches: t.split([patches.shape[1], 4], 1)[1].sum(1), [4]),
        (True, lambda t, patches: t[:, :2].sum(1), [2, 2]),
        (True, lambda t, patches: t[:, 4:].sum(1), [4]),
    ],
)
def test_tokens_at_a_place_that_moves_with_the_size_stay(front, taken, widths):
    """Behind the patches of an image a number says which register it is at one size alone."""

    def forward(self, x):
        patches = self.embed(x).flatten(2).mT
        tokens = [patches, self.registers.expand(x.shape[0], -1, -1)]
        return self.o(taken(torch.cat(tokens[::-1] if front else tokens, 1), patches))

    registers = nn.Parameter(torch.randn(1, 4, 6))
    model = Computes(forward, registers=registers, embed=nn.Conv2d(3, 6, 4, 4), o=nn.Linear(6, 3))
    orbits = orbits_of(model, torch.randn(2, 3, 16, 16))
    assert [orbit.width for orbit in orbits.of_tensor("registers", 1)] == widths


def test_groups_of_a_normalization():
    orbits = orbits_of(between(lambda self, y: self.n(y), n=nn.GroupNorm(4, 8)))
    assert kinds(orbits) == [(2, 0), (4, 1)]
    for groups in (1, 8):
        assert kinds(orbits_of(between(lambda self, y: self.n(y), n=nn.GroupNorm(groups, 8)))) == [(8, 0)]


def test_pruned_along_all_of_its_factors_nothing_is_torn():
    """Heads and widths both: what is kept is rectangular."""
    dag = torchorbit.convert(attention("3hd").eval(), T)
    orbits = torchorbit.find_orbits(dag)
    removed = {orbit: [orbit.width - 1] for orbit in orbits}
    pruned = torchorbit.remove_channels(dag, removed)
    assert pruned.get_parameter("qkv.weight").shape == (3 * 2 * 3, 12)
    assert torchorbit.verify_removal(dag.double(), pruned.double(), removed, T.double()) < 1e-12


# -- asking


def test_of_tensor():
    orbits = orbits_of(between(lambda self, y: self.g(y), out=12, g=nn.Conv2d(8, 12, 1, groups=4)))
    assert [orbit.width for orbit in orbits.of_tensor("stem.weight")] == [2, 4]
    assert [orbit.width for orbit in orbits.of_tensor("g.weight", 1)] == [2]
    assert orbits.of_tensor("stem.weight", 1) == []
    assert orbits.of_tensor("no.such") == []


def test_orbits_are_a_sequence():
    orbits = orbits_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1)))
    assert orbits[0] in orbits
    assert [orbit.index for orbit in orbits] == [0, 1]
    assert orbits[-1] is orbits[1]
    assert list(orbits[:1]) == [orbits[0]]
    others = orbits_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    assert others[0] not in orbits
    assert 3 not in orbits


@pytest.mark.parametrize("unit", [8, -1])
def test_there_is_no_such_unit(unit):
    (orbit,) = orbits_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    with pytest.raises(IndexError, match="8 units"):
        torchorbit.inspect.unit_slices(orbit, unit)


def test_an_orbit_prints_on_one_line():
    orbits = orbits_of(between(lambda self, y: self.g(y), out=12, g=nn.Conv2d(8, 12, 1, groups=4)))
    channels, group = the(orbits, "g.weight", 1), the(orbits, "g.weight", groups=True)
    assert repr(channels) == f"Orbit({channels.index}, width=2)"
    assert str(channels).count("\n") == 0
    for word in (f"orbit {channels.index}", "2 channels", "stem -> g", "M parameters", "GFLOPs"):
        assert word in str(channels)
    assert "4 groups" in str(group)


def test_many_sources_are_counted():
    model = Computes(
        lambda self, x: self.z(self.a(x) + self.b(x) + self.c(x) + self.d(x) + self.e(x)),
        **{name: nn.Conv2d(3, 8, 1) for name in "abcde"}, z=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    (orbit,) = orbits_of(model)
    assert "a, b, c and 2 more -> z" in str(orbit)


def test_orbits_print_as_a_table(monkeypatch):
    model = between(lambda self, y: self.g(y), out=12, g=nn.Conv2d(8, 12, 1, groups=4))
    orbits = orbits_of(model)
    lines = str(orbits).splitlines()
    assert len(lines) == 2 + len(orbits)
    for word in ("orbit", "width", "sources", "sinks", "M parameters", "GFLOPs"):
        assert word in lines[0]
    assert [line.split()[1] for line in lines[2:]] == [str(orbit.width) for orbit in orbits]
    assert "rule" not in str(orbits)


# -- operators without a rule


def test_an_operator_without_a_rule_freezes_what_it_touches(monkeypatch):
    from torchorbit.operators import RULES

    model = Computes(
        lambda self, x: self.d(torch.tanh(self.c(self.b(self.a(x))))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 7, 1), c=nn.Conv2d(7, 6, 1), d=nn.Conv2d(6, 5, 1),
    )  # fmt: skip
    assert kinds(orbits_of(model)) == [(6, 0), (7, 0), (8, 0)]
    monkeypatch.delitem(RULES, "tanh")
    orbits = orbits_of(model)
    assert orbits.unruled == ("tanh",)
    assert kinds(orbits) == [(7, 0), (8, 0)]
    assert str(orbits).splitlines()[-1] == "frozen for want of a rule: tanh"
    removed = {orbit: [0, 3] for orbit in orbits}
    dag = orbits.model.dag
    assert (
        torchorbit.verify_removal(dag.double(), torchorbit.remove_channels(dag, removed), removed, X.double()) < 1e-12
    )


@pytest.mark.parametrize(
    "operator", ["conv2d", "linear", "batch_norm", "layer_norm", "softmax", "cat", "reshape", "add", "mean"]
)
def test_any_rule_may_be_missing(monkeypatch, operator):
    """A gap costs channels, never correctness."""
    from torchorbit.operators import RULES

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 8)
            self.head = nn.Linear(16, 5)

        def forward(self, x):
            x = self.bn(self.stem(x)).flatten(2).transpose(1, 2).reshape(x.shape[0], 64, 8)
            x = x + self.down(self.norm(self.up(x)).softmax(-1))
            return self.head(torch.cat([x, x.sigmoid()], -1).mean(1))

    whole = orbits_of(Model()).units
    monkeypatch.delitem(RULES, operator)
    orbits = orbits_of(Model())
    assert orbits.unruled == (operator,)
    assert orbits.units <= whole
    dag = orbits.model.dag
    if len(orbits):
        removed = {orbit: range(1, orbit.width) for orbit in orbits}
        pruned = torchorbit.remove_channels(dag.double(), removed)
        assert torchorbit.verify_removal(dag, pruned, removed, X.double()) < 1e-12


# -- frozen


def sequence():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 7, 1), nn.ReLU()), nn.Conv2d(7, 6, 1),
        nn.Conv2d(6, 5, 1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("frozen", "left"),
    [
        ((), [6, 7, 8]),
        ("0", [6, 7]),
        ("0.0", [6, 7]),
        ("1", [6]),
        ("1.*", [6]),
        ("2", [8]),
        ("2.weight", [8]),
        ("2.bias", [7, 8]),
        (["2.bias", "0"], [7]),
        ("[01].0.weight", [6]),
        ("*", []),
        ("3", [7, 8]),
    ],
)
def test_frozen_by_path_or_pattern(frozen, left):
    assert [width for width, _ in kinds(orbits_of(sequence(), frozen=frozen))] == left


def test_frozen_by_module():
    model = sequence()
    dag = torchorbit.convert(model.eval(), X)
    for module in (dag.get_submodule("1"), dag.get_submodule("1.0"), [dag.get_submodule("1.0")]):
        assert [width for width, _ in kinds(torchorbit.find_orbits(dag, frozen=module))] == [6]
    assert [width for width, _ in kinds(torchorbit.find_orbits(dag, frozen=[dag.get_submodule("0.0"), "3"]))] == [7]


def test_frozen_by_vertex():
    model = Computes(lambda self, x: self.b(torch.tanh(self.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    dag = torchorbit.convert(model.eval(), X)
    assert kinds(torchorbit.find_orbits(dag)) == [(8, 0)]
    (name,) = [vertex.name for vertex in dag.flatten().vertices if getattr(vertex, "operator", None) == "tanh"]
    assert kinds(torchorbit.find_orbits(dag, frozen=name)) == []


def test_frozen_by_the_path_of_a_vertex_in_blocks():
    from tests.orbits.helpers import of_timm

    whole = of_timm("test_vit")
    dag = whole.model.dag
    paths = [path for path, vertex in dag.all_vertices() if not isinstance(vertex, InputVertex)]
    (packed,) = [path for path in paths if path.startswith("blocks/_0/") and path.endswith("attn/reshape")]
    before = sum(orbit.width for orbit in whole.of_tensor("blocks.0.attn.qkv.weight"))
    assert before
    for name in (packed, "blocks/?0/*/reshape", "blocks__0_attn_reshape"):
        orbits = torchorbit.find_orbits(dag, frozen=name)
        assert orbits.of_tensor("blocks.0.attn.qkv.weight") == []
        assert orbits.of_tensor("blocks.1.attn.qkv.weight")
        assert len(orbits.of_tensor("blocks.0.mlp.fc1.weight")) == 1
    block = torchorbit.find_orbits(dag, frozen="blocks/_0/mlp")
    assert block.of_tensor("blocks.0.mlp.fc1.weight") == []
    assert block.of_tensor("blocks.1.mlp.fc1.weight")
    for path in paths[::7]:
        torchorbit.find_orbits(dag, frozen=path)
    with pytest.raises(ValueError, match="names no module, parameter or vertex"):
        torchorbit.find_orbits(dag, frozen="blocks/_0/attn/no_such")


def test_frozen_by_any_name_of_a_shared_tensor():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(12, 7), nn.Linear(7, 3)
            self.again = nn.Linear(12, 7)
            self.again.weight = self.first.weight

        def forward(self, x):
            return self.last(self.first(x) * self.again(x))

    assert kinds(orbits_of(Shared(), T)) == [(7, 0)]
    for name in ("first.weight", "again.weight", "again"):
        assert kinds(orbits_of(Shared(), T, frozen=name)) == []


@pytest.mark.parametrize("frozen", ["nothing", "nothing.*", ["0", "4"], nn.Conv2d(3, 8, 1)])
def test_an_unknown_name_is_an_error(frozen):
    with pytest.raises(ValueError, match="names no module, parameter or vertex"):
        orbits_of(sequence(), frozen=frozen)


def test_what_is_no_name_is_an_error():
    with pytest.raises(TypeError, match="expected modules, paths or patterns"):
        orbits_of(sequence(), frozen=[3])


def test_frozen_parts_of_a_timm_model():
    from tests.orbits.helpers import of_timm

    orbits = of_timm("test_vit")
    dag = orbits.model.dag
    without = torchorbit.find_orbits(dag, frozen="blocks.*.attn*")
    assert not [o for o in without if o.reading]
    assert {o.width for o in without} == {the(orbits, "blocks.0.mlp.fc1.weight").width}


def test_a_block_called_with_two_sizes_that_takes_masks_and_indices():
    """The graph of such a block has no shapes; they are found by running it, which takes the dtypes of its inputs."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.back = nn.Linear(3, 7), nn.Linear(7, 3)

        def forward(self, x, hidden, order):
            return self.back(self.lift(x).masked_fill(hidden, 0.0).index_select(1, order))

    def forward(m, x, hidden, order):
        return m.block(x, hidden, order), m.block(x[:, :2], hidden[:, :2], order[:2])

    model = stir(Computes(forward, block=Block()))
    example = torch.randn(2, 5, 3), torch.rand(2, 5, 1) > 0.5, torch.tensor([1, 0, 4, 2, 3])
    for cast in (torch.float32, torch.float64):
        dag = torchorbit.convert(model.to(cast), (example[0].to(cast), *example[1:]))
        (orbit,) = torchorbit.find_orbits(dag)
        assert orbit.width == 7
        pruned = torchorbit.remove_channels(dag, {orbit: [0, 5]})
        x = (torch.randn(2, 5, 3, dtype=cast), *example[1:])
        assert torchorbit.verify_removal(dag, pruned, {orbit: [0, 5]}, x) < (1e-12 if cast == torch.float64 else 1e-5)
