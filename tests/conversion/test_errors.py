"""What cannot be converted, how it is said, and `atomic`, which keeps it whole."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_same, by_source, module_vertices, outcome

X = torch.randn(2, 4)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def asserted(x):
    assert x.shape[1] == 5, "five are expected"
    return x


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.mT


CASES = {
    "a branch on random values": (lambda x: x if torch.rand(1) > 0.5 else -x, "record", "__bool__"),
    "an item": (lambda x: x * x.max().item(), "record", "item"),
    "a list of values": (lambda x: x * x.tolist()[0][0], "record", "tolist"),
    "a float of a value": (lambda x: x * float(x.sum()), "record", "__float__"),
    "a mask as index": (lambda x: x[x > 0], "record", "nonzero"),
    "nonzero": (lambda x: torch.nonzero(x), "record", "nonzero"),
    "nonzero as a method": (lambda x: x.nonzero(), "record", "nonzero"),
    "where with one argument": (lambda x: torch.where(x > 0)[0], "record", "where"),
    "unique": (lambda x: torch.unique(x), "record", "unique"),
    "masked_select": (lambda x: x.masked_select(x > 0), "record", "masked_select"),
    "numpy": (lambda x: x.detach().numpy(), "record", "numpy"),
    "a custom gradient": (lambda x: Doubled.apply(x), "record", "Doubled"),
    "a function that is not in the table": (lambda x: torch.inner(x, x), "build", "torch.inner"),
    "vmap": (lambda x: torch.vmap(lambda row: row * 2)(x), None, None),
    "an error of the model": (lambda x: x.reshape(7, 9), "run", None),
    "an assertion of the model": (asserted, "run", None),
    "autocast": (autocast, None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_converted_is_one_error_that_says_where(name):
    function, stage, operator = CASES[name]
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Computes(function)))
    with pytest.raises(torchorbit.ConversionError) as raised:
        torchorbit.convert(model, X)
    error = raised.value
    assert error.module == "1.1"
    assert "\n" not in str(error)
    assert "1.1" in str(error)
    assert error.stage in ("run", "record", "reconcile", "build")
    if stage is not None:
        assert error.stage == stage
    if operator is not None:
        assert error.operator == operator
        assert operator in str(error)
    assert error.stage in str(error)
    assert error.reason in str(error)
    if error.stage == "record":
        assert error.line is not None
        assert error.line.startswith(f"{__file__}:")


def test_the_error_survives_a_process_boundary():
    error = torchorbit.ConversionError("build", "a.b", "torch.foo", "it is\nnot known")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "cannot convert (build) in module 'a.b', at torch.foo: it is not known"
    assert (again.stage, again.module, again.operator) == ("build", "a.b", "torch.foo")
    run = pickle.loads(pickle.dumps(torchorbit.errors.GraphRunError("a/b", "boom")))
    assert (run.vertex, str(run)) == ("a/b", "vertex 'a/b': boom")
    assert issubclass(torchorbit.ConversionError, torchorbit.TorchorbitError)
    assert issubclass(torchorbit.errors.GraphRunError, RuntimeError)


def test_an_error_in_the_model_itself_has_no_path():
    with pytest.raises(torchorbit.ConversionError) as raised:
        torchorbit.convert(Computes(lambda x: x * x.sum().item()), X)
    assert raised.value.module == ""
    assert "the model itself" in str(raised.value)


def test_an_output_that_is_no_tensor_and_no_constant_is_refused():
    with pytest.raises(torchorbit.ConversionError, match="object"):
        torchorbit.convert(Computes(lambda x: (x, object())), X)


def test_the_error_keeps_its_cause():
    with pytest.raises(torchorbit.ConversionError) as raised:
        torchorbit.convert(Computes(asserted), X)
    assert isinstance(raised.value.__cause__, AssertionError)
    assert "five are expected" in str(raised.value)


def test_a_lazy_module_is_refused_until_it_has_parameters():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU())
    with pytest.raises(torchorbit.ConversionError, match="lazy"):
        torchorbit.convert(model, X)
    model(X)
    assert_same(torchorbit.convert(model, X)(X), model(X))


def test_values_that_are_only_shown_are_no_obstacle():
    model = Computes(lambda x: (f"{x}", repr(x), x.shape, x.dtype, x.device, x.requires_grad, x.is_cuda)[2:3] and x * 2)
    assert_same(torchorbit.convert(model, X)(X), X * 2)


# -- atomic


class Whole(nn.Module):
    """Two layers, and between them what a test gives."""

    def __init__(self, between):
        super().__init__()
        self.between = between
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Part(Whole):
    """A subclass of an atomic class is atomic."""


@pytest.mark.parametrize("kind", [Whole, Part])
@pytest.mark.parametrize(
    "between",
    by_source(
        lambda x: F.relu(x) * 2,
        lambda x: Doubled.apply(x),
        lambda x: x * torch.linalg.svdvals(x[:, None]),
        lambda x: torch.vmap(lambda row: row * 2)(x),
        lambda x: nn.functional.relu(x, inplace=True),
        lambda x: x.view(x.shape[0], -1),
    ),
)
def test_an_atomic_class_stays_whole(kind, between):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(kind(between), nn.ReLU()), Computes(lambda x: x * 2))
    dag = torchorbit.convert(model, X, atomic=[Whole])
    block = dag.get_submodule("1")
    assert [(v.target, v.leaf) for v in module_vertices(block)] == [("0", ""), ("1", "ReLU")]
    assert block.get_submodule("0") is model[1][0]
    assert list(dag.state_dict()) == list(model.state_dict())
    wide = torch.randn(5, 4)
    assert_same(dag(wide), model(wide))
    assert_same(dag.flatten()(wide), model(wide))
    for m in (model, dag):
        m.zero_grad()
        m(X).sum().backward()
    assert model[1][0].first.weight.grad is not None


@pytest.mark.parametrize(
    "between",
    by_source(
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x.max().item(),
        lambda x: x * x[x > 0].sum(),
    ),
)
def test_an_atomic_class_may_depend_on_values(between):
    model = nn.Sequential(nn.Linear(4, 4), Whole(between), nn.ReLU())
    dag = torchorbit.convert(model, X, atomic=[Whole])
    for sign in (1, -1):
        assert_same(dag(X * sign), model(X * sign))


def test_an_atomic_leaf_and_an_atomic_model():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    dag = torchorbit.convert(model, X, atomic=(nn.Linear,))
    assert [v.leaf for v in module_vertices(dag)] == ["", "ReLU"]
    assert_same(dag(X), model(X))
    # The model itself cannot be one vertex of its own graph.
    assert_same(torchorbit.convert(model, X, atomic=[nn.Sequential])(X), model(X))


def test_an_atomic_class_with_several_inputs_and_outputs():
    class Pair(nn.Module):
        def forward(self, x, *, other, factor=2):
            return {"sum": x + other, "rest": [x * factor, None]}

    model = Computes(
        lambda m, x: (lambda out: out["sum"] * out["rest"][0])(m.pair(x, other=x * 2, factor=3)), pair=Pair()
    )
    dag = torchorbit.convert(model, X, atomic=[Pair])
    assert_same(outcome(dag, X), outcome(model, X))


def test_a_graph_with_an_atomic_module_cannot_be_saved(tmp_path):
    dag = torchorbit.convert(nn.Sequential(Whole(F.relu)), X, atomic=[Whole])
    with pytest.raises(torchorbit.CheckpointError, match="Whole"):
        dag.save(tmp_path / "saved")
    assert not list(tmp_path.rglob("*.*"))


def test_what_an_error_advises_helps():
    model = nn.Sequential(Whole(lambda x: Doubled.apply(x)))
    with pytest.raises(torchorbit.ConversionError, match="atomic"):
        torchorbit.convert(model, X)
    assert_same(torchorbit.convert(model, X, atomic=[Whole])(X), model(X))
