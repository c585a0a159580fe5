"""What goes into a model and what comes out of it."""

import collections
import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, by_source, outcome, reloaded

X = torch.randn(2, 4)
Y = torch.randn(2, 4)


class Takes(nn.Module):
    def forward(self, x, y, scale=2.0, *, mask=None, flip=False):
        out = x - y * scale
        if mask is not None:
            out = out * mask
        return out.flip(1) if flip else out


@pytest.mark.parametrize(
    "example",
    [
        (X, Y),
        [X, Y],
        (X, Y, 3.0),
        {"x": X, "y": Y},
        {"y": Y, "x": X},
        {"x": X, "y": Y, "scale": 0.5, "mask": X > 0, "flip": True},
        {"x": X, "y": Y, "flip": False},
    ],
    ids=["tuple", "list", "a number", "by name", "by name in another order", "options", "a flag"],
)
def test_inputs_of_every_kind(example):
    model = Takes()
    dag = torchorbit.convert(model, example)
    inputs = tuple(example) if isinstance(example, list) else example
    expected = outcome(model, inputs)
    assert_same(outcome(dag, inputs), expected)
    assert_same(outcome(dag.flatten(), inputs), expected)
    assert_same(outcome(reloaded(dag), inputs), expected)


def test_keyword_inputs_that_could_be_positional_may_be_given_so():
    model = Takes()
    dag = torchorbit.convert(model, {"x": X, "y": Y})
    assert_same(dag(X, Y), model(X, Y))
    assert_same(dag(X, y=Y), model(X, Y))


def test_positional_inputs_may_be_given_by_name():
    model = Takes()
    dag = torchorbit.convert(model, (X, Y))
    assert_same(dag(x=X, y=Y), model(X, Y))


@pytest.mark.parametrize(
    "name", ["x", "input", "norm", "pad", "std", "mean", "where", "size", "index", "mask", "match", "type", "add", "check", "self_", "x_1"]
)  # fmt: skip
def test_an_input_of_any_name_is_passed_by_it(name):
    scope = {"nn": nn}
    exec(f"class Model(nn.Module):\n    def forward(self, first, {name}):\n        return first * {name} + 1", scope)
    model = scope["Model"]()
    dag = torchorbit.convert(model, {"first": X, name: Y})
    assert_same(dag(**{"first": X, name: Y}), model(X, Y))
    assert_same(reloaded(dag)(**{"first": X, name: Y}), model(X, Y))
    nested = nn.Sequential(collections.OrderedDict(block=Computes(lambda m, x: m.inner(x, x * 2), inner=model)))
    assert_converts(nested, X)


def test_open_signatures():
    assert_converts(Computes(lambda *args, **kwargs: args[0] - args[1]), (X, Y))
    model = Computes(lambda *args, **kwargs: kwargs["a"] - kwargs["b"])
    dag = torchorbit.convert(model, {"a": X, "b": Y})
    assert_same(dag(a=X, b=Y), X - Y)


class Flagged(nn.Module):
    def forward(self, x, flag):
        return x * 2 if flag else x


@pytest.mark.parametrize(
    "value",
    [True, 3, 2.5, None, "a'\"\\\n{}", torch.float64, torch.device("cpu"), torch.channels_last, float("inf"), float("-inf"), slice(0, 2), (1, [2, {"a": 3}]), ..., 1j],
    ids=str,
)  # fmt: skip
def test_an_input_that_is_no_tensor_is_fixed(value):
    model = Flagged()
    dag = torchorbit.convert(model, (X, value))
    assert_same(dag(X, value), model(X, value))
    assert_same(dag(X), model(X, value))
    again = reloaded(dag)
    assert_same(again(X, value), model(X, value))
    assert_same(again(X), model(X, value))


@pytest.mark.parametrize("other", [False, None, 0])
def test_another_value_of_a_fixed_input_is_refused(other):
    dag = torchorbit.convert(Flagged(), (X, True))
    with pytest.raises((torchorbit.errors.GraphRunError, TypeError, ValueError)):
        dag(X, other)


def test_a_fixed_input_before_a_tensor():
    model = Computes(lambda factor, x: x * factor)
    dag = torchorbit.convert(model, (3, X))
    assert_same(dag(3, X), model(3, X))
    assert_same(reloaded(dag)(3, X), model(3, X))


class Point(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda pair: pair[0] - pair[1], ([X, Y],)),
        (lambda point: point.a - point.b, (Point(X, Y),)),
        (lambda deep: deep["a"].a - deep["a"].b[0], ({"a": Point(X, [Y])},)),
        (lambda pair: pair[0] - pair[1], ((X, Y),)),
        (lambda named: named["a"] - named["b"], ({"a": X, "b": Y},)),
        (lambda deep: deep["a"][0] - deep["b"]["c"], ({"a": [X], "b": {"c": Y}},)),
        (lambda pair, z: sum(pair) * z, ([X, Y, X], Y)),
        (lambda mixed: mixed["x"] * mixed["factor"], ({"x": X, "factor": 3},)),
        (lambda *every: torch.stack(every), (X, Y, X)),
    ],
)
def test_tensors_inside_containers(function, example):
    model = Computes(function)
    dag = torchorbit.convert(model, example)
    wide = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: torch.randn(5, *t.shape[1:]), example)
    for inputs in (example, wide):
        assert_same(outcome(dag, inputs), outcome(model, inputs))
        assert_same(outcome(reloaded(dag), inputs), outcome(model, inputs))
        assert_same(outcome(dag.flatten(), inputs), outcome(model, inputs))


Same = collections.namedtuple("Same", "a b")
Also = collections.namedtuple("Same", "c d")


@dataclasses.dataclass
class Record:
    a: torch.Tensor
    b: int


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
        lambda x: {"a": x, "b": x + 1},
        lambda x: {0: x, "b": {1: x + 1}},
        lambda x: collections.OrderedDict(a=x, b=x * 2),
        lambda x: Point(x, x + 1),
        lambda x: (Point(x, x + 1), [Point(x * 2, x * 3)]),
        lambda x: (Same(x, x + 1), Also(x + 2, x + 3)),
        lambda x: (x, None),
        lambda x: {"a": None, "b": [x, (None, x + 1)]},
        lambda x: (x * 2, 3, 0.5, "text", True),
        lambda x: (x, x),
        lambda x: x,
        lambda x: [],
        lambda x: None,
        lambda x: torch.ones(3),
        lambda x: (x.shape[0], x * 2),
        lambda x: x.topk(2),
        lambda x: (x.max(1), x.sort(1)),
        lambda x: x.max(1)[::-1],
        lambda x: x.split(2, 1),
        lambda x: list(x.unbind(1)),
        lambda x: x.aminmax(),
        lambda x: {"deep": [{"er": (x.sum(), [x.mean()])}]},
    ),
)
def test_outputs_of_every_kind(function):
    assert_converts(function, X)


def test_an_output_of_a_nested_block_of_every_kind():
    inner = Computes(lambda x: {"a": (x * 2, None), "b": [x + 1, {"c": x - 1}], "n": 3})
    model = Computes(lambda m, x: m.inner(x)["b"][1]["c"] * m.inner(x)["a"][0] * m.inner(x)["n"], inner=inner)
    assert_converts(model, X)


def test_a_data_class_as_output_keeps_its_values():
    model = Computes(lambda x: Record(x * 2, 3))
    dag = torchorbit.convert(model, X)
    out = dag(X)
    assert_same(out["a"] if isinstance(out, dict) else out.a, X * 2)


def test_an_input_that_is_not_used():
    assert_converts(Computes(lambda x, y: x * 2), (X, Y))


def test_a_parameter_as_output():
    assert_converts(Computes(lambda m, x: (x, m.scale), scale=nn.Parameter(torch.randn(4))), X)


def test_gradients_reach_the_inputs():
    model = Computes(lambda x, y: (x * y.detach()).sum() + y.sum())
    dag = torchorbit.convert(model, (X, Y))
    grads = []
    for m in (model, dag):
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
        m(x, y).backward()
        grads.append((x.grad, y.grad))
    assert_same(grads[1], grads[0])


def region(x):
    with torch.no_grad():
        y = x * 2
    return y


def region_inside(x):
    with torch.no_grad():
        scale = x.abs().mean()
    return x / scale


@pytest.mark.parametrize(
    "function",
    [region, region_inside, torch.no_grad()(lambda x: x * 2), torch.no_grad()(lambda x: (x, x.exp()))],
    ids=["region", "region inside", "all", "several outputs"],
)
def test_no_gradient_flows_where_the_source_computes_without(function):
    model = Computes(function)
    dag = torchorbit.convert(model, X)
    first, second = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours, theirs = dag(first), model(second)
    if isinstance(theirs, tuple):
        ours, theirs = ours[1], theirs[1]
    assert ours.requires_grad == theirs.requires_grad
    if theirs.requires_grad:
        ours.sum().backward()
        theirs.sum().backward()
        assert_same(first.grad, second.grad)


@pytest.mark.parametrize("example", [None, 3, "x", (), [], {}, (1, 2), {"x": 3}, (None,)], ids=str)
def test_example_inputs_without_a_tensor_are_a_type_error(example):
    with pytest.raises(TypeError, match="example_inputs"):
        torchorbit.convert(nn.Linear(4, 4), example)


def test_a_model_that_is_none_is_a_type_error():
    with pytest.raises(TypeError, match=r"nn\.Module"):
        torchorbit.convert(lambda x: x, X)


def test_convert_has_the_name_of_torch_dag_too():
    assert torchorbit.convert is torchorbit.convert


def test_inputs_of_a_fixed_size_may_be_given_by_name_in_any_order():
    class Model(nn.Module):
        def forward(self, image, words, time):
            return image.flatten(1).view(-1, 48) @ torch.ones(48, 5) + words.sum((1, 2))[:, None] + time[:, None]

    inputs = {"image": torch.randn(2, 3, 4, 4), "time": torch.randn(2), "words": torch.randn(2, 6, 5)}
    dag = torchorbit.convert(Model(), inputs)
    assert not dag.provenance.free_lengths
    assert_same(dag(**inputs), Model()(**inputs))
