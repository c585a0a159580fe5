"""Writes through views: the graph gives what the source gives, whatever shares memory with what."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_equal, assert_same, by_source, operators

X = torch.randn(2, 4, 6)


def halves(x):
    y = x * 1
    first, second = y.chunk(2, dim=1)
    first.mul_(3)
    second.add_(first)
    return y, first, second


def zeroed(x):
    y = x * 1
    y[1:3].zero_()
    return y + x


def returned_view(x):
    z = x * 1
    z[:, 2:4].mul_(3)
    return z


def nested(x):
    y = x * 1
    y.transpose(1, 2)[:, 1:3].reshape(-1, 2, 4)[..., 0].fill_(2.0)
    return y


def empty_filled(x):
    out = x.new_empty(x.shape[0], 8, 6)
    out[:, :4] = x
    out[:, 4:] = -x
    return out


def shifted(x):
    # Temporal shift: a part of the channels comes from the neighbor.
    out = torch.zeros_like(x)
    out[:-1, :2] = x[1:, :2]
    out[1:, 2:3] = x[:-1, 2:3]
    out[:, 3:] = x[:, 3:]
    return out


def shape_of_batch(x):
    y = x * 1
    a, b = y.view(-1, 2, 2, 6).unbind(1)
    a += 1
    y.flatten(0, 1)[: x.shape[0]].mul_(2)
    return y, b


def split_unevenly(x):
    y = x * 1
    a, b, c = y.split([1, 2, 3], dim=-1)
    b.sub_(1)
    c.copy_(y[..., :3])
    d, e = y.split(4, dim=2)
    e.mul_(d[..., 2:])
    return y, a


def item_of_another_place(x):
    y = x * 1
    v = y[:, 0]
    v.add_(1)
    y[:, 1] = v
    return y


def complex_parts(x):
    z = torch.view_as_complex(x.reshape(-1, 4, 3, 2) * 1)
    torch.view_as_real(z)[..., 0].mul_(2)
    return torch.view_as_real(z) * 1


def relu_of_a_part(m, x):
    y = x * 1
    part = y[:, :2]
    m.relu(y)
    return part * 1, y


def counted_from_the_end(x):
    z = x * 1
    z.narrow(1, -2, 2).mul_(2)
    return z


def each_diagonal(x):
    y = x * 1
    y.diagonal(1, -2, -1).mul_(2)
    torch.diagonal(y, -1, 2, 1).fill_(0.5)
    torch.linalg.diagonal(y).add_(1)
    y.mH[:, 0].sub_(3)
    y.adjoint()[:, 1].sub_(3)
    y[0, :3, :3].fill_diagonal_(4.0)
    y[0].fill_diagonal_(5.0)
    y[0].t().contiguous().fill_diagonal_(6.0, wrap=True)
    (y[:, :2, :2] * 1)[:2].fill_diagonal_(7.0)
    return y, y.diagonal(dim1=1, dim2=2)


def in_lists(x):
    first, second = torch._foreach_add([x, x * 2], 1.0)
    torch._foreach_mul_([first[:, :2], second], 3.0)
    torch._foreach_maximum_([first], [second])
    torch._foreach_clamp_min_([second], 0.1)
    torch._foreach_copy_([first[..., 0]], [x[..., 1]])
    total = torch._foreach_addcmul([first, second], [x, x], [x, first], [0.5, 2.0])
    return total, torch._foreach_norm([first, second]), torch._foreach_pow(2.0, [x]), torch._foreach_maximum([x], 0.2)


def split_by_side(x):
    y = x * 1
    first, second = y.hsplit(2)
    first.mul_(2)
    torch.dsplit(y, [1, 4])[1].add_(second.mean())
    y.transpose(0, 1).vsplit(2)[1].sub_(1)
    return y, second, +y


FUNCTIONS = by_source(
    each_diagonal,
    in_lists,
    split_by_side,
    counted_from_the_end,
    halves,
    zeroed,
    returned_view,
    nested,
    empty_filled,
    shifted,
    shape_of_batch,
    split_unevenly,
    item_of_another_place,
    complex_parts,
)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_write_through_a_view_has_its_effect(function):
    assert_converts(function, X)


@pytest.mark.parametrize(
    ("function", "instead"),
    [
        (lambda x: (x * 1).resize_(x.shape[0], 24), "use reshape"),
        (lambda x: (x * 1).resize_as_(x[:, :2]), "use reshape"),
        (lambda x: x.contiguous().as_strided((2, 4), (24, 6)), "use reshape, unfold or an index"),
        (lambda x: torch.as_strided(x, x.shape, x.stride()), "use reshape, unfold or an index"),
    ],
)
def test_what_looks_at_memory_is_refused_with_what_to_write(function, instead):
    with pytest.raises(torchorbit.ConversionError, match=instead) as raised:
        torchorbit.convert(Computes(function), X)
    assert "test_views.py:" in raised.value.line


@pytest.mark.parametrize("view", [lambda y: y.unfold(1, 2, 1)[:, 0], lambda y: y[:1].expand(3, -1, -1, -1)[0]])
def test_a_write_through_a_view_that_cannot_be_written_back_is_refused(view):
    def written(x):
        y = x * 1
        view(y).mul_(2)
        return y

    with pytest.raises(torchorbit.ConversionError, match=r"write into the tensor itself|expand") as raised:
        torchorbit.convert(Computes(written), X)
    assert "test_views.py:" in raised.value.line


def test_a_tensor_from_outside_is_not_written_into_while_it_is_recorded():
    outside = torch.zeros(6)
    torchorbit.explain(Computes(lambda x: (torch._foreach_add_([outside], 1.0), x + outside)[1]), X)
    assert torch.equal(outside, torch.zeros(6))


def test_a_leaf_that_writes_in_place_is_seen_through_views():
    assert_converts(Computes(relu_of_a_part, relu=nn.ReLU(inplace=True)), X)


@pytest.mark.parametrize(
    "written", [lambda y: y.detach().mul_(2), lambda y: y.data.mul_(2), torch.no_grad()(torch.relu_)]
)
def test_a_write_that_gradients_would_not_see_is_refused(written):
    def hidden(m, x):
        y = m.layer(x)
        written(y)
        return y

    with pytest.raises(torchorbit.ConversionError, match="would not see"):
        torchorbit.convert(Computes(hidden, layer=nn.Linear(6, 6)), X)


def test_a_write_where_no_gradient_is_has_its_effect():
    def without(m, x):
        mask = x.sign() + 1
        with torch.no_grad():
            weights = m.layer(x)
            weights.relu_()
            mask.clamp_(max=1)
        return m.layer(x) * weights + mask

    assert_converts(Computes(without, layer=nn.Linear(6, 6)), X)


def test_an_augmented_item_is_written_once():
    def augmented(x):
        y = x * 1
        y[:, 0] += 1
        return y

    assert operators(torchorbit.convert(Computes(augmented), X)).count("setitem") == 1


def picked(pieces, n):
    return pieces[n % len(pieces)]


def inner(t, n):
    """A dimension that is not the batch: the first of what is two-dimensional or more."""
    return 1 + n % (t.dim() - 1) if t.dim() > 1 else 0


VIEWS = {
    "halves": lambda t, n: picked(t.chunk(2, dim=inner(t, n)), n),
    "sections": lambda t, n: picked(t.tensor_split(2, dim=inner(t, n)), n),
    "splits": lambda t, n: picked(t.split(2, dim=inner(t, n)), n),
    "item": lambda t, n: t.select(inner(t, n), 0),
    "slice": lambda t, n: t[..., n % 2 : 3] if t.shape[-1] > 1 else t,
    "narrow": lambda t, n: t.narrow(inner(t, n), 0, 1),
    "last": lambda t, n: t.narrow(inner(t, n), -1, 1),
    "row": lambda t, n: picked(t.unbind(inner(t, n)), n),
    "turned": lambda t, n: t.transpose(inner(t, n), -1),
    "moved": lambda t, n: t.movedim(inner(t, n), -1),
    "longer": lambda t, n: t.unsqueeze(inner(t, n)),
    "shorter": lambda t, n: t.squeeze(-1),
    "without": lambda t, n: t.squeeze(inner(t, n)) if t.dim() > 1 else t,
    "flat": lambda t, n: t.flatten(-2) if t.dim() > 2 and t.is_contiguous() else t,
    "same": lambda t, n: t.contiguous(),
}
WRITES = {
    "add": lambda t, other: t.add_(other),
    "mul": lambda t, other: t.mul_(other),
    "relu": lambda t, other: t.relu_(),
    "fill": lambda t, other: t.fill_(0.5),
    "first": lambda t, other: t.__setitem__((..., slice(None, 1)), other),
    "augmented": lambda t, other: t.__setitem__(..., t[...].sub_(other)),
    "copy": lambda t, other: t.copy_(torch.tanh(t) * other),
    "clamp": lambda t, other: torch.clamp(t, min=-0.5, out=t),
}
LEAVES = ("norm", "other", "plain", "replaced", "teacher")
STEPS = st.one_of(
    st.tuples(st.sampled_from(LEAVES), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(sorted(VIEWS)), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.sampled_from(sorted(WRITES)), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("new"), st.integers(0, 9), st.integers(0, 9)),
)


class Program(nn.Module):
    """Takes views, writes into them, and returns everything that it has seen."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.register_buffer("state", torch.linspace(-1, 1, 6))
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 36).reshape(6, 6))
            self.layer.bias.copy_(self.state)

    def called(self, name, tensor, factor):
        """A leaf, called with its weights written into, or with others in their places."""
        layer = self.norm if name == "norm" else self.layer
        if name == "teacher":
            with torch.no_grad():
                layer.weight.mul_(0.9).add_(torch.tanh(factor), alpha=0.1)
        if name == "other":
            return torch.func.functional_call(layer, {"weight": layer.weight * torch.tanh(factor)}, (tensor,))
        if name == "replaced":
            own = layer.weight
            del layer.weight
            layer.weight = own * torch.tanh(factor)
            made = layer(tensor)
            del layer.weight
            layer.weight = own
            return made
        if name == "norm":
            with torch.no_grad():
                layer.running_mean.mul_(0.5).add_(torch.tanh(factor))
        return layer(tensor)

    def forward(self, x):
        seen = [(x * 1, True), (self.state, False)]  # with whether it has a batch, which no view may touch
        for name, which, number in self.steps:
            tensor, batched = seen[which % len(seen)]
            other, _ = seen[number % len(seen)]
            if tensor.dim() <= batched:
                continue
            if name == "new":
                seen.append((tensor * 0.5, batched))
            elif name in LEAVES:
                if tensor.shape[-1] != 6 or (name == "norm" and tensor.dim() != 2):
                    tensor, batched = self.state.expand(3, 6), False
                with torch.no_grad():
                    seen.append((self.called(name, tensor, other.mean()), batched))
            elif name in VIEWS:
                seen.append((VIEWS[name](tensor, number), batched))
            else:
                with torch.no_grad():
                    WRITES[name](tensor, other.mean())
        return tuple([tensor * 1 for tensor, _ in seen])


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=9))
def test_any_order_of_views_and_writes_gives_what_the_source_gives(steps):
    source, model = Program(steps).eval(), Program(steps).eval()
    dag = torchorbit.convert(model, X)
    assert_equal(dict(model.named_buffers()), dict(Program(steps).named_buffers()))
    for batch in (2, 3):
        x = torch.randn(batch, 4, 6)
        assert_same(dag(x.clone()), source(x.clone()))
        assert_same(dict(dag.named_buffers()), dict(source.named_buffers()))
    assert copy.deepcopy(dag)(X)[0].shape == X.shape


def test_a_view_that_is_the_whole_at_some_sizes_is_none_at_others():
    def squeezed(m, x):
        z = m.layer(x)
        z.squeeze(0).mul_(2)
        return m.layer(z)

    model = Computes(squeezed, layer=nn.Linear(6, 6))
    assert_converts(model, X, X[:1], torch.randn(3, 4, 6))
