"""Constants: tensors that forward makes or finds, and what becomes of them on another dtype and in a file."""

import numpy as np
import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, by_source, operators, outcome, reloaded

X = torch.randn(2, 4, 6)
OUTSIDE = torch.randn(6)
ARRAY = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x * OUTSIDE,
        lambda x: torch.cat((x, OUTSIDE.expand(x.shape[0], 1, 6)), 1),
        lambda x: x * torch.tensor([1.0, 2, 3, 4, 5, 6]),
        lambda x: x * torch.tensor(2),
        lambda x: x * torch.tensor(np.float32(3)),
        lambda x: x * torch.tensor(ARRAY),
        lambda x: x * torch.as_tensor(ARRAY),
        lambda x: x * torch.from_numpy(ARRAY),
        lambda x: x * torch.tensor(ARRAY.tolist()),
        lambda x: x * torch.as_tensor([0.5] * 6),
        lambda x: x * np.float32(2),
        lambda x: x * np.float64(0.3),
        lambda x: x.reshape(x.shape[0], np.int64(24)),
        lambda x: x.mean(tuple(np.array([1, 2]))),
        lambda x: x * OUTSIDE + OUTSIDE,
        lambda x: x[:, torch.tensor([0, 2])],
        lambda x: x * torch.tensor([1.0]).to(x.device),
        lambda x: x * torch.from_numpy(np.ones(6)).to(x),
    ),
)
def test_a_tensor_from_outside_is_kept(function):
    assert_converts(function, X)


def test_a_tensor_used_twice_is_kept_once():
    dag = torchorbit.convert(Computes(lambda x: x * OUTSIDE + OUTSIDE), X)
    assert len(list(dag.buffers())) == 1


def test_kept_tensors_are_not_in_the_state_dict_but_in_the_file_and_move_with_the_graph():
    model = Computes(lambda m, x: m.linear(x) * OUTSIDE, linear=nn.Linear(6, 6))
    dag = torchorbit.convert(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    again = reloaded(dag)
    assert list(again.state_dict()) == list(model.state_dict())
    assert_same(again(X), model(X))
    assert all(buffer.dtype == torch.float64 for buffer in dag.double().buffers())


def test_a_buffer_of_the_name_that_kept_tensors_get_is_not_overwritten():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("_constant_0", torch.full((6,), 7.0))

        def forward(self, x):
            return x * self._constant_0 + torch.tensor([1.0, 2, 3, 4, 5, 6])

    model = Model()
    dag = assert_converts(model, X)
    assert torch.equal(dag.state_dict()["_constant_0"], model._constant_0)


class Hangs(nn.Module):
    """Tensors that hang on a module without being registered."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 6))
        self.plain = torch.randn(6)
        self.items = [torch.randn(6), torch.randn(6)]
        self.named = {"a": torch.randn(6), 1: torch.randn(6)}
        self.pair = (torch.randn(6), 3.0)
        self.deep = {"inner": [torch.randn(6)]}
        self.array = np.arange(6, dtype=np.float32)
        self.block[0].scale = torch.randn(6)

    def forward(self, x):
        x = self.block(x) * self.block[0].scale + self.plain + self.items[1] * self.named["a"] - self.named[1]
        return x * self.pair[0] * self.pair[1] + self.deep["inner"][0] + torch.from_numpy(self.array)


def test_tensors_that_hang_on_modules_are_kept():
    model = Hangs()
    plain, items, inner = model.plain, list(model.items), model.deep["inner"][0]
    dag = assert_converts(model, X)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert model.plain is plain
    assert all(a is b for a, b in zip(model.items, items, strict=True))
    assert model.deep["inner"][0] is inner


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(6))
        self.register_buffer("hidden", torch.randn(6), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x):
        return x * self.table + self.hidden


def test_buffers_that_are_not_in_the_state_dict_survive_a_file():
    model = nn.Sequential(Positions(), Positions())
    dag = assert_converts(model, X)
    again = reloaded(dag)
    assert list(again.state_dict()) == ["0.table", "1.table"]
    assert {name for name, _ in again.named_buffers()} == {"0.table", "0.hidden", "1.table", "1.hidden"}
    dag.load_state_dict(model.state_dict(), strict=True)


class Grid(nn.Module):
    """Constants made in forward from sizes, with and without a device and dtype."""

    def forward(self, x):
        rows = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        columns = torch.linspace(0, 1, x.shape[2], device=x.device)
        mask = torch.zeros(x.shape[1:], dtype=torch.bool, device=x.device)
        mask[0] = True
        return (x + rows + columns.to(x.dtype)).masked_fill(mask, 0.0) + torch.eye(6).to(x)[:4] + x.new_ones(1)


def test_constants_made_in_forward_are_steps_of_the_graph():
    dag = assert_converts(Grid(), X)
    assert not list(dag.buffers())
    assert {"arange", "linspace", "zeros", "eye", "new_ones"} <= set(operators(dag))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_constants_made_in_forward_follow_the_dtype(dtype):
    model = Grid()
    dag = torchorbit.convert(model, X)
    assert dag.provenance.free_dtype
    assert_same(dag(X.to(dtype)), model(X.to(dtype)))


def test_constants_made_in_forward_follow_the_device():
    # Meta stands for any device that is not the one of the example.
    assert torchorbit.convert(Grid(), X)(X.to("meta")).device.type == "meta"


@pytest.mark.parametrize(
    "wrap", [lambda x: [x], lambda x: {"x": x}, lambda x: (x, [x])], ids=["list", "dict", "nested"]
)
def test_constants_follow_an_input_inside_a_container(wrap):
    def made(inputs):
        x = inputs["x"] if isinstance(inputs, dict) else inputs[0]
        return x + torch.arange(6, device=x.device) + torch.ones(6, dtype=x.dtype, device=x.device) + torch.ones(6)

    model = Computes(made)
    dag = torchorbit.convert(model, (wrap(X),))
    assert_same(outcome(dag, (wrap(X),)), outcome(model, (wrap(X),)))
    assert_same(outcome(dag, (wrap(X.double()),)), outcome(model, (wrap(X.double()),)))


def test_a_dtype_that_the_model_names_stays():
    model = Computes(lambda x: x.float().softmax(-1).to(x.dtype) + x.to(torch.float64).sum())
    dag = torchorbit.convert(model, X)
    assert_same(dag(X.bfloat16()), model(X.bfloat16()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dtype_that_a_function_is_told_is_that_of_its_result(dtype):
    model = Computes(lambda x: x * torch.ones(6, dtype=torch.softmax(x, -1, dtype=dtype).dtype))
    other = Computes(lambda x: x * torch.ones(6, dtype=nn.functional.softmax(x, -1, dtype=dtype).dtype))
    for source in (model, other):
        dag = torchorbit.convert(source, X)
        assert_same(dag(X), source(X))
        assert_same(dag(X.bfloat16()), source(X.bfloat16()))


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x * (2.0 if x.dtype == torch.float32 else 3.0),
        lambda x: x.masked_fill(x > 0, torch.finfo(x.dtype).min / 2),
    ),
)
def test_a_fixed_dtype_is_said_so(function):
    model = Computes(function)
    dag = torchorbit.convert(model, X)
    assert not dag.provenance.free_dtype
    assert_same(dag(X), model(X))
