"""Writing in place: into results, into views, into inputs, into parameters and buffers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

import torchorbit
from tests.models import (
    Computes,
    assert_converts,
    assert_equal,
    assert_same,
    by_source,
    operators,
    outcome,
    refusal,
    reloaded,
)

pytestmark = pytest.mark.numeric

X = torch.randn(2, 4, 6)


def augmented(x):
    y = x + 1
    y += x
    y *= 2
    y -= 1
    y /= 3
    return y


def into_an_item(x):
    y = x * 1
    y[:, 0] = x[:, 1]
    y[..., 2:4] = 0.5
    return y


def into_an_item_augmented(x):
    y = x * 1
    y[:, 0] += 1
    y[:, 1] *= x[:, 2]
    return y + x


def into_a_mask(x):
    y = x * 1
    y[x > 0] = 0.0
    return y


def through_a_view(x):
    y = x * 1
    y[:, 0].mul_(2)
    return y


def view_only(x):
    y = (x * 1)[:, 0]
    y.mul_(2)
    return y


def chain(x):
    return x.clone().mul_(2).add_(1).clamp_(min=0).sqrt_()


def activations(x):
    y = x * 1
    F.relu(y, inplace=True)
    z = y - 0.5
    z.relu_()
    F.leaky_relu_(z, 0.1)
    return F.hardtanh(z, 0.0, 1.0, True) + y


def filled_row_by_row(x):
    out = torch.zeros(x.shape[0], 4, 6)
    for row in range(4):
        out[:, row] = x[:, row] * row
    return out


def out_argument(x):
    out = torch.empty(x.shape[0], 4, 6)
    torch.mul(x, 2, out=out)
    return out


def copied(x):
    y = torch.zeros_like(x)
    y.copy_(x)
    y[:, 1:].copy_(x[:, :-1])
    return y


def used_before_and_after(x):
    y = x * 2
    z = y + 1
    y += 5
    return z * y


def written_twice(x):
    y = x * 1
    z = y
    z += 1
    y += 1
    return y * z


def masked_windows(x):
    # How shifted-window attention makes its mask.
    mask = torch.zeros((1, 4, 6, 1))
    count = 0
    for rows in (slice(0, -2), slice(-2, None)):
        for columns in (slice(0, -3), slice(-3, None)):
            mask[:, rows, columns, :] = count
            count += 1
    return x * mask[0, :, :, 0]


@pytest.mark.parametrize(
    "function",
    by_source(
        augmented,
        into_an_item,
        into_an_item_augmented,
        into_a_mask,
        view_only,
        chain,
        activations,
        filled_row_by_row,
        out_argument,
        used_before_and_after,
        written_twice,
        masked_windows,
    ),
)
def test_a_write_in_place_has_its_effect(function):
    assert_converts(function, X)


@pytest.mark.parametrize("function", by_source(through_a_view, copied))
def test_a_write_through_a_view_is_right_or_refused(function):
    reason = refusal(function, X)
    assert reason is None or "view" in reason
    if reason is None:
        assert_converts(function, X)


def half_promoted(x):
    y = x.to(torch.bfloat16)
    y += x
    y *= torch.full((6,), 1.0 / 3)
    return y


def integers_promoted(x):
    y = torch.zeros(6, dtype=torch.int32)
    y += torch.arange(6)
    return x * y, y


@pytest.mark.parametrize("function", by_source(half_promoted, integers_promoted))
def test_a_write_in_place_keeps_the_dtype(function):
    assert_converts(function, X)


def test_the_graph_leaves_its_input_alone():
    for write in (lambda x: x.add_(1), lambda x: F.relu(x, inplace=True), lambda x: x.mul_(2)):
        dag = torchorbit.convert(Computes(write), X)
        x = X.clone()
        assert_same(dag(x), outcome(Computes(write), X))
        assert torch.equal(x, X)


class Residual(nn.Module):
    """What follows an identity writes in place, and the original is used again."""

    def __init__(self, identity, write):
        super().__init__()
        self.identity = identity
        self.write = write

    def forward(self, x):
        x = x * 1.0
        y = self.identity(x)
        y = self.write(y)
        return x + y


IDENTITIES = [
    nn.Identity(),
    nn.Dropout(0.0),
    nn.Dropout(0.5),
    nn.Dropout2d(0.3),
    DropPath(0.5),
    DropPath(0.0),
    nn.Sequential(),
    nn.Sequential(nn.Identity()),
    nn.Flatten(2),
]


@pytest.mark.parametrize("identity", IDENTITIES, ids=str)
@pytest.mark.parametrize("write", [lambda y: y * 2, nn.ReLU()], ids=["new", "relu"])
def test_the_original_is_intact_beside_what_went_through_an_identity(identity, write):
    model = Residual(copy.deepcopy(identity), write)
    dag = assert_converts(model, X)
    assert_equal(outcome(dag.train(), X), outcome(model.train(), X))


@pytest.mark.parametrize("identity", IDENTITIES, ids=str)
def test_a_write_into_what_went_through_an_identity_is_right_or_refused(identity):
    model = Residual(copy.deepcopy(identity), lambda y: y.add_(1)).eval()
    reason = refusal(model, X)
    assert reason is None or "in place" in reason
    if reason is None:
        assert_converts(model, X)


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Hardswish(inplace=True), nn.ELU(inplace=True)],
    ids=str,
)
def test_a_leaf_that_writes_in_place_changes_its_input_for_all_that_follow(layer):
    def both(m, x):
        y = x * 1.0
        z = m.layer(y)
        return y + 2 * z

    model = Computes(both, layer=layer)
    dag = assert_converts(model, X)
    assert_equal(outcome(dag.train(), X), outcome(model.train(), X))


# -- parameters and buffers


def rebound(m, x):
    m.state = 0.9 * m.state + 0.1 * x.detach().mean((0, 1))
    return x - m.state


def rebound_in_training(m, x):
    if m.training:
        m.state = 0.9 * m.state + 0.1 * x.detach().mean((0, 1))
    return x - m.state


def augmented_state(m, x):
    m.state += x.detach().mean((0, 1))
    return x - m.state


def copied_state(m, x):
    m.state.copy_(x.detach().mean((0, 1)))
    return x - m.state


def copied_in_training(m, x):
    if m.training:
        m.state.copy_(x.detach().mean((0, 1)))
    return x - m.state


def item_of_state(m, x):
    m.state[1:3] = x.detach().mean()
    return x - m.state


def view_of_state(m, x):
    m.state[1:3].add_(x.detach().mean())
    return x - m.state


def data_of_state(m, x):
    m.state.data.mul_(0.9).add_(x.detach().mean((0, 1)))
    return x - m.state


def no_grad_state(m, x):
    with torch.no_grad():
        m.state.lerp_(x.mean((0, 1)), 0.1)
    return x - m.state


def counted(m, x):
    m.state += 1
    return x * 2


def set_data(m, x):
    m.state.data = x.detach().mean((0, 1))
    return x - m.state


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "function",
    by_source(
        rebound,
        rebound_in_training,
        augmented_state,
        copied_state,
        copied_in_training,
        item_of_state,
        view_of_state,
        data_of_state,
        no_grad_state,
        counted,
        set_data,
    ),
)
def test_a_buffer_that_forward_changes_is_changed_or_refused(function, training):
    source = Computes(function, state=torch.zeros(6))
    blocks = {"alone": source, "nested": nn.Sequential(nn.Identity(), nn.Sequential(source, nn.Identity()))}
    for model in blocks.values():
        first = copy.deepcopy(model).train(training)
        second = copy.deepcopy(model).train(training)
        try:
            dag = torchorbit.convert(second, X)
        except torchorbit.ConversionError:
            continue
        again = reloaded(copy.deepcopy(dag))
        assert_equal(dict(second.named_buffers()), dict(model.named_buffers()))
        for _ in range(3):
            x = torch.randn(3, 4, 6)
            expected = first(x)
            assert_same(dag(x), expected)
            assert_same(again(x), expected)
            assert_same(dag.state_dict(), first.state_dict())
            assert_same(again.state_dict(), first.state_dict())


def test_a_parameter_that_forward_clamps_is_clamped():
    def clamped(m, x):
        with torch.no_grad():
            m.scale.clamp_(0, 1)
        return x * m.scale

    model = Computes(clamped, scale=nn.Parameter(torch.linspace(-1, 2, 6)))
    source = copy.deepcopy(model)
    dag = torchorbit.convert(model, X)
    assert_same(dag(X), source(X))
    assert_same(dag.state_dict(), source.state_dict())


def test_writes_become_operators_without_an_effect_on_their_arguments():
    names = operators(torchorbit.convert(Computes(into_an_item), X))
    assert names.count("setitem") == 2


def test_a_leaf_computes_with_what_was_written_into_its_parameters_before():
    def teacher(m, x):
        with torch.no_grad():
            m.slow.weight.mul_(0.9).add_(m.fast.weight, alpha=0.1)
        return m.fast(x) - m.slow(x).detach()

    model = Computes(teacher, fast=nn.Linear(6, 6), slow=nn.Linear(6, 6))
    source = copy.deepcopy(model)
    dag = torchorbit.convert(model, X)
    for _ in range(3):
        assert_same(dag(X), source(X))
        assert_same(dag.state_dict(), source.state_dict())


def doubled_weight(m, x):
    own = m.layer._parameters.pop("weight")
    m.layer.weight = own * 2
    y = m.layer(x)
    del m.layer.weight
    m.layer._parameters["weight"] = own
    return y


def rebound_statistics(m, x):
    m.norm.running_mean = x.detach().mean((0, 2))
    return m.norm(x)


def made_by_a_network(m, x):
    own = m.layer.weight
    del m.layer.weight
    m.layer.weight = own * x.mean()
    y = m.layer(x)
    del m.layer.weight
    m.layer.weight = own
    return y


def called_with_other_weights(m, x):
    weights = {name: parameter * 2 for name, parameter in m.layer.named_parameters()}
    return torch.func.functional_call(m.layer, weights, (x,)) + m.layer(x)


def moving_average(m, x):
    with torch.no_grad():
        m.norm.weight.mul_(0.9).add_(m.norm.bias + 1, alpha=0.1)
        m.norm.bias.copy_(m.norm.weight)
    return m.norm(x)


@pytest.mark.parametrize(
    "function",
    by_source(doubled_weight, rebound_statistics, made_by_a_network, called_with_other_weights, moving_average),
)
def test_a_leaf_computes_with_the_tensors_that_forward_puts_in_place_of_its_own(function):
    source = Computes(function, layer=nn.Linear(6, 6), norm=nn.BatchNorm1d(4)).eval()
    dag = torchorbit.convert(copy.deepcopy(source), X)
    for x in (X, torch.randn(3, 4, 6)):
        assert_same(dag(x), source(x))
        assert_same(dict(sorted(dag.state_dict().items())), dict(sorted(source.state_dict().items())))


def test_statistics_that_a_layer_moves_after_they_were_written_are_read_anew():
    def halved(m, x):
        m.norm.running_mean.mul_(0.5)
        return m.norm(x) + m.norm.running_mean.sum()

    source = Computes(halved, norm=nn.BatchNorm1d(4))
    dag = torchorbit.convert(copy.deepcopy(source), X)
    for training in (True, False, True):
        assert_same(dag.train(training)(X), source.train(training)(X))
        assert_same(dag.state_dict(), source.state_dict())


COUNT = torch.zeros(1)
SCRATCH = torch.zeros(6)


class Counts(nn.Module):
    """Counts in a tensor that is no buffer."""

    def __init__(self, write):
        super().__init__()
        self.plain = torch.zeros(2)
        self.write = write

    def forward(self, x):
        return x * self.write(self)


@pytest.mark.parametrize(
    "write",
    by_source(
        lambda m: COUNT.add_(1),
        lambda m: COUNT[0].add_(1) + COUNT,
        lambda m: (m.plain.add_(1), m.plain[0])[1],
        lambda m: (m.plain[:1].mul_(2), m.plain.sum())[1],
        lambda m: (COUNT.__iadd__(1), COUNT * 2)[1],
        lambda m: (torch.add(m.plain, 1, out=m.plain), m.plain[1])[1],
    ),
)
def test_what_is_counted_in_no_buffer_is_refused(write):
    with pytest.raises(torchorbit.ConversionError, match="Register it as a buffer") as raised:
        torchorbit.convert(Counts(write), X)
    assert "test_in_place.py:" in raised.value.line
    assert COUNT.item() == 0


@pytest.mark.parametrize(
    "write",
    by_source(
        lambda m: SCRATCH.copy_(torch.arange(6)) + 1,
        lambda m: (m.plain.zero_(), m.plain.add_(3), m.plain[0])[2],
        lambda m: torch.tensor([1.0]).add_(1),
    ),
)
def test_a_scratch_tensor_that_is_overwritten_in_every_pass_converts(write):
    dag = torchorbit.convert(Counts(write), X)
    for x in (X, X, torch.randn(5, 4, 6)):
        assert_same(outcome(dag, x), outcome(Counts(write), x))


def test_memory_that_is_replaced_is_refused():
    def replaced(x):
        y = x * 2
        y.set_(x)
        return y

    with pytest.raises(torchorbit.ConversionError, match="memory of a tensor is replaced") as raised:
        torchorbit.convert(Computes(replaced), X)
    assert raised.value.operator == "set_"
    assert raised.value.line is not None
    assert "set_" not in vars(torch.Tensor)
