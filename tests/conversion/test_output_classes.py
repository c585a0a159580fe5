"""Outputs of classes with names for what they hold: they keep these, when pruned, exported, saved and loaded."""

import collections
import copy
import dataclasses
import io
import pickle
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchorbit
from tests.models import Computes, assert_same, by_source, copies, reloaded
from torchorbit.records import opened

X = torch.randn(3, 4)


class ModelOutput(collections.OrderedDict[str, Any]):
    """A dictionary with a name for every key, as text models return it: what is None is a name and no key."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value

    def __getitem__(self, key):
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *args, **kwargs):
        raise TypeError("not to be changed like this")


@dataclasses.dataclass
class Answer(ModelOutput):
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None
    loss: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Boxes:
    corners: Tensor
    scores: list[Tensor]


@dataclasses.dataclass(slots=True)
class Slots:
    logits: Tensor


@dataclasses.dataclass
class Made:
    logits: Tensor
    best: Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        self.best = self.logits.amax(1)
        self.also = self.logits * 2


class Attributes(dict[str, Any]):
    def __getattr__(self, name):
        return self[name]


class Head(nn.Module):
    """A hidden layer that can be pruned, and classes in an output of some kind."""

    def __init__(self, output):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.classes = nn.Linear(8, 6)
        self.output = output

    def forward(self, x):
        return self.output(self, self.classes(self.hidden(x).relu()))


OUTPUTS = by_source(
    lambda m, y: Answer(logits=y),
    lambda m, y: Answer(logits=y, hidden=(y * 2, y + 1)),
    lambda m, y: Boxes(y, [y + 1, y * 2]),
    lambda m, y: Slots(y),
    lambda m, y: Made(y),
    lambda m, y: Attributes(logits=y, number=3),
    lambda m, y: collections.OrderedDict(logits=y, also=y + 1),
    lambda m, y: {"deep": [Boxes(y, []), (Answer(logits=y * 2), None)]},
    lambda m, y: y.max(1),
    lambda m, y: (y, Answer(logits=y + 1)) if m.training else Answer(logits=y),
    lambda m, y: {"out": y, "aux": y * 2} if m.training else {"out": y + 1},
    lambda m, y: Boxes(y, [y + 1]) if m.training else Boxes(y, []),
    lambda m, y: y if m.training else Slots(y.softmax(1)),
)


def names(value):
    """The attributes of an object and of all that it holds."""
    if value is None or isinstance(value, Tensor):
        return None, None, None
    own = {name: names(item) for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    own |= {name: names(getattr(value, name)) for name in getattr(type(value), "__slots__", ())}
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else []
    return own, list(value) if isinstance(value, dict) else None, [names(item) for item in items]


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_keeps_its_class_in_the_graph_and_its_names_in_a_file(output):
    source, dag = copies(Head(output), X)
    assert dag.provenance.mode == "both"
    for training in (False, True):
        graphs = dag, dag.flatten(), pickle.loads(pickle.dumps(copy.deepcopy(dag))), reloaded(dag)
        x = torch.randn(5, 4)
        with torch.no_grad():
            expected = source.train(training)(x)
            for graph in graphs:
                given = graph.train(training)(x)
                assert_same(opened(given), opened(expected))
                if not isinstance(expected, torch.return_types.max):
                    assert names(given)[1:] == names(expected)[1:]
            assert type(dag(x)) is type(expected)
        for name in getattr(expected, "__dict__", ()):
            assert_same(getattr(given, name), getattr(expected, name))


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_class_of_an_output_is_pruned_in_whatever_it_comes(output):
    dag = torchorbit.convert(Head(output).eval(), X)
    orbits = torchorbit.find_orbits(dag)
    assert [orbit.width for orbit in orbits] == [8]
    for graph in (dag, reloaded(dag)):
        pruned = torchorbit.prune(graph, flops=0.5)
        for training in (False, True):
            with torch.no_grad():
                shapes = [
                    torch.utils._pytree.tree_map_only(Tensor, lambda t: t.shape, opened(m.train(training)(X)))
                    for m in (graph, pruned)
                ]
            assert shapes[0] == shapes[1]
    graph.eval()
    removed = {orbit: [1, 5] for orbit in orbits}
    assert torchorbit.verify_removal(dag, torchorbit.remove_channels(dag, removed), removed) < 1e-5


def test_a_loaded_output_is_found_by_key_name_and_position():
    dag = reloaded(torchorbit.convert(Head(lambda m, y: Answer(hidden=(y * 2,), logits=y)), X))
    with torch.no_grad():
        found = dag(X)
    assert found[0] is found["logits"] is found.logits is found[:1][0]
    assert found.loss is None
    assert "loss" not in found
    assert list(found) == ["logits", "hidden"]
    assert not hasattr(found, "boxes")
    assert repr(found).startswith("Answer(")
    for again in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert_same(dict(again), dict(found))
        assert_same(again.logits, found.logits)
        assert again.loss is None


@pytest.mark.parametrize("output", OUTPUTS[:8])
def test_a_graph_with_such_an_output_is_exported_and_compiled(output):
    dag = torchorbit.convert(Head(output).eval(), X)
    for graph in (dag, reloaded(dag)):
        with torch.no_grad():
            expected = opened(graph(X))
            program = torch.export.export(graph, (X,))
            assert_same(opened(program.module()(X)), expected)
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            assert_same(opened(torch.compile(graph, backend="eager", fullgraph=True)(X)), expected)
    torch._dynamo.reset()


def test_an_output_of_a_block_keeps_its_class_to_whoever_looks_into_it():
    inner = Computes(lambda x: Answer(logits=x * 2, hidden=(x + 1,)))
    model = Computes(lambda m, x: m.inner(x).logits + m.inner(x)[1][0], inner=inner)
    source, dag = copies(model, X)
    assert_same(dag(X), source(X))
    assert_same(reloaded(dag)(X), source(X))


@pytest.mark.parametrize("factory", [list, dict, set, int, float, str, None])
def test_a_dictionary_with_a_default_keeps_it(factory):
    dag = torchorbit.convert(Computes(lambda x: {"deep": collections.defaultdict(factory, logits=[x, x + 1])}), X)
    for graph in (dag, pickle.loads(pickle.dumps(dag)), reloaded(dag)):
        found = graph(X)["deep"]
        assert type(found) is collections.defaultdict
        assert found.default_factory is factory
        assert_same(dict(found), {"logits": [X, X + 1]})
    assert_same(torch.compile(dag, backend="eager", fullgraph=True)(X)["deep"]["logits"][1], X + 1)
    torch._dynamo.reset()
    assert_same(opened(collections.defaultdict(list, logits=[X])), {"logits": [X]})


class Rows(list[Any]):
    pass


@pytest.mark.parametrize(
    ("output", "instead"),
    [
        (lambda x: collections.defaultdict(lambda: 3, logits=x), "return a dict, or give it a default of list"),
        (lambda x: collections.deque([x]), "return a tuple, a list, a dict or a data class"),
        (lambda x: {"deep": {x}}, "return a tuple, a list, a dict or a data class"),
        (lambda x: [frozenset([x])], "return a tuple, a list, a dict or a data class"),
        (lambda x: types.SimpleNamespace(logits=x), "return a tuple, a list, a dict or a data class"),
        (lambda x: types.MappingProxyType({"logits": x}), "return a tuple, a list, a dict or a data class"),
        (lambda x: collections.UserDict(logits=x), "return a tuple, a list, a dict or a data class"),
        (lambda x: Rows([x]), "return a tuple, a list, a dict or a data class"),
        (lambda x: iter([x]), "return a tuple, a list, a dict or a data class"),
    ],
)
def test_a_class_that_a_graph_would_lose_is_refused_with_what_to_return(output, instead):
    with pytest.raises(torchorbit.ConversionError, match=instead):
        torchorbit.convert(Computes(output), X)


def test_what_a_graph_cannot_hold_in_an_output_is_said():
    with pytest.raises(torchorbit.ConversionError, match="object"):
        torchorbit.convert(Computes(lambda x: Slots(object())), X)
