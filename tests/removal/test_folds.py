"""Dimensions into which others are folded: what is removed of one of these is right at any size of the inputs."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch import nn

import torchorbit
from tests.models import Computes, assert_same
from tests.orbits.helpers import assert_as_at_another_size
from torchorbit.removal.masked_operators import RecordedSizeError

TOLERANCE = 1e-9
IMAGES = torch.randn(2, 3, 8, 8).double()
OTHERS = (torch.randn(1, 3, 8, 8).double(), torch.randn(3, 3, 8, 8).double(), torch.randn(2, 3, 12, 16).double())


def graph_of(model, example=IMAGES):
    dag = torchorbit.convert(model.double().eval(), example)
    return dag, torchorbit.find_orbits(dag)


def assert_right(dag, removed, *inputs):
    pruned = torchorbit.remove_channels(dag, removed)
    for given_ in inputs:
        assert torchorbit.verify_removal(dag, pruned, removed, given_) < TOLERANCE
    assert torchorbit.verify_removal(dag, pruned, removed) < TOLERANCE
    return pruned


class Registers(nn.Module):
    """Learned tokens stand before those of an image, and go through whatever it is given."""

    def __init__(self, through, **layers):
        super().__init__()
        self.registers, self.stem, self.head = nn.Parameter(torch.randn(1, 4, 16)), nn.Conv2d(3, 16, 2, 2), None
        self.through, self.head = through, nn.Linear(16, 5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        t = torch.cat([self.registers.expand(x.shape[0], -1, -1), self.stem(x).flatten(2).mT], 1)
        return self.head((t + self.through(self, t)).mean(1))


def windows(model, t):
    batch, tokens, width = t.shape
    w = t.reshape(batch * tokens, width // 4, 4).softmax(1)
    return w.reshape(batch, tokens, width)


def batch_inside(model, t):
    batch, tokens, width = t.shape
    folded = t.transpose(0, 1).reshape(tokens * batch, width)
    return model.layer(folded).view(tokens, batch, width).transpose(0, 1)


def batch_outside(model, t):
    return model.layer(t.flatten(0, 1)).unflatten(0, t.shape[:2])


def in_a_row(model, t):
    batch, tokens, width = t.shape
    once = model.layer(t.reshape(batch * tokens, width)).tanh()
    twice = once.reshape(batch * tokens * 4, width // 4).tanh()
    return twice.reshape(batch, tokens * 4, width // 4).sin().reshape(batch, tokens, width)


THROUGH = {
    "attention of torch": (
        lambda model, t: model.layer(t, t, t)[0],
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
    ),
    "attention, tokens first": (
        lambda model, t: model.layer(t.transpose(0, 1), t.transpose(0, 1), t.transpose(0, 1))[0].transpose(0, 1),
        lambda: nn.MultiheadAttention(16, 4),
    ),
    "batch inside": (batch_inside, lambda: nn.Linear(16, 16)),
    "batch outside": (batch_outside, lambda: nn.Linear(16, 16)),
    "windows": (windows, nn.Identity),
    "several in a row": (in_a_row, lambda: nn.Linear(16, 16)),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("through", THROUGH)
def test_registers_that_are_folded_with_samples_are_a_number_and_no_share(through, batch):
    function, layer = THROUGH[through]
    dag, orbits = graph_of(Registers(function, layer=layer()), IMAGES[:batch])
    (tokens,) = [orbit for orbit in orbits if orbit.kind == "tokens"]
    for positions in ([0], [1, 3]):
        pruned = assert_right(dag, {tokens: positions}, IMAGES, *OTHERS)
        assert pruned.registers.shape[1] == 4 - len(positions)
    everything = {orbit: range(0, orbit.width, 2) for orbit in orbits}
    assert_right(dag, everything, IMAGES, *OTHERS)


def doubled_flat(self, x):
    y = self.first(x)
    return self.last((y.flatten() * 2).reshape(y.shape))


def doubled_in_place(self, x):
    y = self.first(x).clone()
    y.view(-1).mul_(2)
    return self.last(y)


def space_first(self, x):
    y = self.first(x).permute(2, 1, 0, 3)
    return self.last(y.reshape(-1, x.shape[3]).softmax(-1).view(y.shape).permute(2, 1, 0, 3))


@pytest.mark.parametrize("forward", [doubled_flat, doubled_in_place, space_first])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_right_removal_from_a_folded_dimension_is_not_called_wrong(forward, batch):
    model = Computes(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1))
    dag, (orbit,) = graph_of(model, IMAGES[:batch])
    for positions in ([0], [7], [1, 2, 5], range(1, 8)):
        assert_right(dag, {orbit: positions}, IMAGES, *OTHERS)


def sliced(self, x):
    y = self.first(x)
    return self.last(y) + y.flatten(1)[:, 70:72].sum()


def picked(self, x):
    y = self.first(x)
    return self.last(y) + y.flatten(1)[:, [3, 70]].sum() + y.flatten(2)[:, :, 3:5].sum()


def one(self, x):
    y = self.first(x)
    return self.last(y) + y.flatten(1)[:, 70].sum()


def selected(self, x):
    y = self.first(x)
    return self.last(y) + y.flatten(1).select(1, 70).sum() + y.flatten(1).narrow(1, 3, 4).sum()


def written(self, x):
    y = self.first(x).clone()
    y.view(-1)[0:3].zero_()
    return self.last(y)


def rolled(self, x):
    y = self.first(x)
    return self.last(y.flatten(1).roll(64, 1).reshape(y.shape))


@pytest.mark.parametrize("forward", [sliced, picked, one, selected, written, rolled])
def test_channels_that_stand_at_fixed_places_at_some_sizes_alone_are_frozen(forward):
    model = Computes(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1))
    _, orbits = graph_of(model)
    assert len(orbits) == 0
    assert torchorbit.inspect.frozen_groups(orbits).of_tensor("first.weight", 0)


def test_channels_at_fixed_places_are_free_where_lengths_are_the_models_own():
    def forward(self, x):
        y = torch.nn.functional.adaptive_avg_pool2d(self.first(x), 2).flatten(1)
        return self.last(y[:, :24])

    dag, (first, second) = graph_of(Computes(forward, first=nn.Conv2d(3, 8, 1), last=nn.Linear(24, 4)))
    assert (first.width, second.width) == (6, 2)
    assert_right(dag, {first: [0, 4]}, IMAGES, *OTHERS)


def test_the_oracle_knows_masks_at_other_sizes_though_products_of_lengths_are_equal():
    model = Registers(batch_inside, layer=nn.Linear(16, 16))
    dag, orbits = graph_of(model, torch.randn(4, 3, 8, 8).double())  # 4 * 20 tokens
    (tokens,) = [orbit for orbit in orbits if orbit.kind == "tokens"]
    assert_right(dag, {tokens: [2]}, torch.randn(10, 3, 4, 4).double())  # 10 * 8 of them


def test_the_oracle_says_where_it_does_not_know_the_labels():
    def forward(self, x):
        y = self.first(x)
        return self.last(y.reshape(y.shape[0], 8, 8, 8))

    model = Computes(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1))
    dag, (orbit,) = graph_of(model)
    pruned = torchorbit.remove_channels(dag, {orbit: [0]})
    with pytest.raises(RecordedSizeError, match="give inputs of the recorded sizes"):
        torchorbit.verify_removal(dag, pruned, {orbit: [0]}, torch.randn(2, 3, 8, 12).double())


# -- any network that folds


FOLDING = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


class Folds(nn.Module):
    """Dimensions are put in some order, neighbours folded, something is computed, and all is put back."""

    def __init__(self, rounds, registers):
        super().__init__()
        self.rounds = rounds
        self.registers = nn.Parameter(torch.randn(1, 3, 6)) if registers else None
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in rounds])

    def forward(self, x):
        y = self.stem(x)
        if self.registers is not None:
            y = torch.cat([self.registers.expand(x.shape[0], -1, -1), y.flatten(2).mT], 1)
        else:
            y = y.permute(0, 2, 3, 1)
        for spec, layer in zip(self.rounds, self.layers, strict=True):
            y = y + self.folded(y, layer, *spec)
        return self.head(y.flatten(1, -2).mean(1))

    def folded(self, y, layer, order, cuts, spelling, step, again):
        order = [axis for axis in order if axis < y.dim()]
        y = y.permute(order)
        shape = y.shape
        borders = [0, *sorted({cut for cut in cuts if cut < y.dim()}), y.dim()]
        groups = list(itertools.pairwise(borders))
        if spelling == "flatten":
            z = y
            for start, stop in reversed(groups):
                z = z.flatten(start, stop - 1)
        else:
            lengths = [math.prod(shape[start:stop]) for start, stop in groups]
            if spelling == "minus one":
                lengths[0] = -1
            z = y.contiguous().view(lengths) if spelling == "view" else y.reshape(lengths)
        z = self.computed(z, layer, step, alone=groups[-1] == (y.dim() - 1, y.dim()) and order[-1] == y.dim() - 1)
        if again:
            z = z.reshape(-1).sin().reshape(z.shape)
        z = z.reshape(shape) if spelling != "view" else z.contiguous().view(*shape)
        return z.permute([order.index(axis) for axis in range(len(order))])

    def computed(self, z, layer, step, *, alone):
        if step == "linear":
            return layer(z) if alone else z.tanh()
        if step == "softmax":
            return z.softmax(-1)
        if step == "centred":
            return z - z.mean(-1, keepdim=True)
        if step == "in place":
            z = z.contiguous().clone()
            z.view(-1).mul_(2)
            return z
        return z * 2


ROUND = st.tuples(
    st.permutations(range(4)),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from(["reshape", "view", "flatten", "minus one"]),
    st.sampled_from(["linear", "softmax", "centred", "in place", "scaled"]),
    st.booleans(),
)


@pytest.mark.numeric
@FOLDING
@given(st.lists(ROUND, min_size=1, max_size=3), st.booleans(), st.integers(1, 2), st.data())
def test_any_network_that_folds_is_right_at_any_size(rounds, registers, batch, data):
    torch.manual_seed(0)
    model = Folds(rounds, registers).double().eval()
    example = torch.randn(batch, 3, 4, 6).double()
    dag = torchorbit.convert(model, example)
    others = [example, torch.randn(3, 3, 4, 6).double(), torch.randn(1, 3, 6, 5).double()]
    for inputs in others:
        assert_same(dag(inputs), model(inputs))
    orbits = torchorbit.find_orbits(dag)
    assert_as_at_another_size(orbits, dag)
    removed = {}
    for orbit in orbits:
        removed[orbit] = sorted(data.draw(st.sets(st.integers(0, orbit.width - 1), max_size=orbit.width - 1)))
    note(str(orbits))
    pruned = torchorbit.remove_channels(dag, removed)
    for inputs in others:
        pruned(inputs)
        try:
            assert torchorbit.verify_removal(dag, pruned, removed, inputs) < TOLERANCE
        except RecordedSizeError:
            assert inputs is not example
