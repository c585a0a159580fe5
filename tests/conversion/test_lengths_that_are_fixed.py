"""A dimension of an input in which no other length was recorded has the recorded one: others are refused."""

import json

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_same
from torchorbit.errors import ArgumentError, GraphRunError


def at_least_nine(dim):
    return lambda x: x * max(x.shape[dim], 9)


IDS = torch.ones(2, 5, dtype=torch.long)

#: What is computed, an example, an input of other free lengths, and one of a fixed length that is another one.
CASES = {
    "features": (at_least_nine(-1), torch.randn(2, 4), torch.randn(3, 4), torch.randn(3, 12)),
    "channels of tokens": (at_least_nine(-1), torch.randn(2, 5, 4), torch.randn(3, 7, 4), torch.randn(2, 5, 12)),
    "channels of images": (
        at_least_nine(1), torch.randn(2, 3, 8, 8), torch.randn(3, 3, 9, 12), torch.randn(2, 12, 8, 8)
    ),
    "an input without a batch": (
        lambda x, y: x * max(y["a"][0].shape[0], 9),
        (torch.randn(2, 3, 8, 8), {"a": [torch.randn(5, 6)]}),
        (torch.randn(3, 3, 9, 9), {"a": [torch.randn(5, 6)]}),
        (torch.randn(2, 3, 8, 8), {"a": [torch.randn(12, 6)]}),
    ),
    "features beside words": (
        lambda x, words: x.sum() * max(x.shape[1], 9) + words,
        {"x": torch.randn(2, 4), "words": IDS},
        {"words": IDS.repeat(1, 3), "x": torch.randn(2, 4)},
        {"words": IDS, "x": torch.randn(2, 12)},
    ),
}  # fmt: skip


def called(model, example):
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


@pytest.mark.parametrize("name", CASES)
def test_a_length_that_was_never_another_one_is_fixed(name, tmp_path):
    function, example, free, fixed = CASES[name]
    model = Computes(function)
    model.forward = function
    dag = torchorbit.convert(model, example)
    dag.save(tmp_path)
    for graph in (dag, torchorbit.load(tmp_path), dag.flatten()):
        assert_same(called(graph, free), called(model, free))
        with pytest.raises(GraphRunError, match=r"fixed: recorded with"):
            called(graph, fixed)


def test_the_error_names_the_input_the_dimension_and_the_remedy():
    model = Computes(lambda x, y: x * max(y["a"][0].shape[0], 9))
    dag = torchorbit.convert(model, (torch.randn(2, 3, 8, 8), {"a": [torch.randn(5, 6)]}))
    with pytest.raises(GraphRunError, match=r"'input_1\['a'\]\[0\]' in dimension 0 .* convert the model"):
        dag(torch.randn(2, 3, 8, 8), {"a": [torch.randn(12, 6)]})


@pytest.mark.parametrize("shapes", [((2, 4), (3, 7)), ((2, 5, 4), (3, 6, 9))])
def test_lengths_that_nothing_depends_on_are_free(shapes):
    model = nn.Sequential(nn.ReLU(), Computes(lambda x: x * 2 - x.mean(-1, keepdim=True)))
    dag = torchorbit.convert(model, torch.randn(shapes[0]))
    x = torch.randn(shapes[1])
    assert_same(dag(x), model(x))


def test_a_file_that_does_not_say_what_was_recorded_loads_as_before(tmp_path):
    model = nn.Sequential(nn.ReLU())
    torchorbit.convert(model, torch.randn(2, 3, 8, 8)).save(tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    assert document["provenance"].pop("fixed_lengths") == [[1]]
    (tmp_path / "graph.json").write_text(json.dumps(document))
    x = torch.randn(2, 5, 8, 8)
    assert_same(torchorbit.load(tmp_path)(x), model(x))


def test_a_pruned_graph_refuses_them_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), Computes(lambda x: x * 2))
    taken = Computes(lambda self, x: self.net(x[:, :3]) * max(x.shape[1], 9), net=model)
    dag = torchorbit.convert(taken, torch.randn(2, 4, 8, 8))
    pruned = torchorbit.prune(dag, ratio=0.5)
    with pytest.raises(GraphRunError, match="dimension 1 is fixed"):
        pruned(torch.randn(2, 12, 8, 8))


def test_costs_are_not_counted_at_a_length_that_is_fixed():
    dag = torchorbit.convert(nn.Sequential(nn.ReLU()), torch.randn(2, 3, 8, 8))
    with pytest.raises(ArgumentError, match="fixed"):
        torchorbit.flops(dag, (1, 5, 8, 8))
