"""What a graph from a file is run on before it is given out: sizes that do not fit or have no end are refused."""

import copy
import json
import time

import pytest
import timm
import torch
from torch import nn

import torchorbit
from tests.graph.bombs import BOMBS, HARMLESS, NOT_RUNNING
from tests.models import Computes, assert_equal, outcome
from torchorbit.graph import trial
from torchorbit.graph.loading import MAX_DEPTH, unpack
from torchorbit.graph.saving import pack
from torchorbit.operators.modules import LEAF_MODULES, config_arguments
from torchorbit.operators.schema import is_of_kind, kind_of
from torchorbit.operators.table import OPERATORS

X = torch.randn(2, 4)
DOCUMENT, TENSORS = pack(torchorbit.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X))
DOCUMENT = json.loads(json.dumps(DOCUMENT))
INPUT = DOCUMENT["root"]["vertices"][0]["input"]


def with_vertices(*vertices, output=None, **root):
    """The document with operators before its output."""
    document = copy.deepcopy(DOCUMENT)
    for number, (operator, args) in enumerate(vertices):
        document["root"]["vertices"].append({"name": f"v{number}", "operator": operator, "args": args})
    document["root"]["output"] = output or {"$ref": [f"v{len(vertices) - 1}"]}
    document["root"].update(root)
    return document


def ref(name, *index):
    return {"$ref": [name, *index]}


def refused(document, match):
    started = time.process_time()
    with pytest.raises(torchorbit.CheckpointError, match=match):
        unpack(document, dict(TENSORS))
    assert time.process_time() - started < 5


def test_every_argument_of_every_operator_and_leaf_has_a_kind():
    for name, row in OPERATORS.items():
        for argument, default in row.parameters.items():
            kind = kind_of(name, argument)
            if default is not None and not isinstance(default, type):
                assert is_of_kind(default, kind), f"{name}({argument}={default!r}) is no {kind}"
    for name in LEAF_MODULES:
        for argument in config_arguments(name):
            assert kind_of(name, argument, leaf=True)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        ("mul", {"input": "a", "other": 1_000_000_000}),
        ("mul", {"input": [1, 2], "other": 1_000_000_000}),
        ("remainder", {"input": "%1000000000d", "other": 1}),
        ("pow", {"input": 10, "other": 10}),
        ("pow", {"input": 10**9, "exponent": 10**9}),
        ("add", {"input": 1, "other": 2}),
        ("getitem", {"input": [1, 2], "index": 0}),
        ("getitem", {"input": ref(INPUT), "index": "x"}),
        ("reshape", {"input": ref(INPUT), "shape": "x"}),
        ("reshape", {"input": ref(INPUT), "shape": [2.0, 4]}),
        ("cat", {"tensors": ref(INPUT)}),
        ("cat", {"tensors": [ref(INPUT), 1]}),
        ("transpose", {"input": ref(INPUT), "dim0": 0, "dim1": 2**31}),
        ("to", {"input": ref(INPUT), "dtype": "float32"}),
        ("zeros", {"size": [2, None]}),
        ("einsum", {"equation": 5, "operands": [ref(INPUT)]}),
        ("sum", {"input": ref(INPUT), "keepdim": 2}),
        ("linear", {"input": ref(INPUT), "weight": 2.0}),
    ],
)
def test_arguments_of_another_kind_are_refused(operator, args):
    refused(with_vertices((operator, args)), r"vertex 'v0' does not run|takes the arguments")


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        ("add", {"input": ref("_0"), "other": {"$attr": "2.bias"}}),
        ("matmul", {"input": ref(INPUT), "other": {"$attr": "0.weight"}}),
        ("cat", {"tensors": [ref(INPUT), ref("_0")], "dim": 0}),
        ("getitem", {"input": ref(INPUT), "index": 2}),
        ("reshape", {"input": ref(INPUT), "shape": [3, 3]}),
        ("add", {"input": ref(INPUT, 0), "other": 1}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(operator, args):
    refused(with_vertices((operator, args)), "does not run on the inputs that the graph was recorded with")


@pytest.mark.parametrize(
    "vertices",
    [
        [("zeros", {"size": [2**31 - 1, 2**31 - 1]})],
        [("zeros", {"size": [65_536, 65_536]})],
        [("arange", {"start": 0, "end": 1e15})],
        [("eye", {"n": 2**31 - 1})],
        [("expand", {"input": {"$attr": "2.bias"}, "size": [2**31 - 1, 3]})],
        [("repeat", {"input": ref(INPUT), "repeats": [2**31 - 1] * 5})],
        [("pad", {"input": ref(INPUT), "pad": [2**31 - 1, 2**31 - 1]})],
        [("expand", {"input": {"$attr": "2.bias"}, "size": [2**29, 3]}), ("unbind", {"input": ref("v0")})],
        [("zeros", {"size": [2**30]}), ("tensor_split", {"input": ref("v0"), "indices_or_sections": 2**30})],
        [("zeros", {"size": [2**30]}), ("split", {"input": ref("v0"), "split_size_or_sections": 1})],
        [("zeros", {"size": [2**30]}), ("chunk", {"input": ref("v0"), "chunks": 2**30})],
        [("zeros", {"size": [1] * 1000})],
    ],
    ids=str,
)
def test_results_without_end_are_refused(vertices):
    refused(with_vertices(*vertices), "more than|expected|does not run")


@pytest.mark.parametrize(
    "expression",
    [
        {"$expr": ["**", 10, {"$expr": ["**", 10, 10]}]},
        {"$expr": ["<<", 1, 2**40]},
        {"$expr": ["//", 1, 0]},
        {"$expr": ["<<", 1, -1]},
        {"$expr": ["int", {"$expr": ["/", 1, 0.0]}]},
    ],
    ids=str,
)
def test_arithmetic_without_end_or_without_sense_is_refused(expression):
    refused(with_vertices(output=expression), "output")


def test_powers_and_shifts_of_sizes_are_computed():
    size = {"$size": [ref(INPUT), 1]}
    dag = unpack(with_vertices(output=[{"$expr": ["**", size, 2]}, {"$expr": ["<<", size, 3]}]), dict(TENSORS))
    assert dag(X) == (16, 32)


def test_a_power_that_grows_with_the_inputs_has_an_end():
    size = {"$size": [ref(INPUT), 0]}
    dag = unpack(with_vertices(output={"$expr": ["**", size, {"$expr": ["*", size, 60]}]}), dict(TENSORS))
    assert dag(X) == 2**120
    with pytest.raises(OverflowError, match="is no size"):
        dag(torch.randn(100, 4))


def test_blocks_that_call_each_other_again_and_again_are_refused():
    """Each calls the one below it twice: 2**40 vertices in a run, from 40 blocks in the file."""
    block = {"kind": "graph", "vertices": [{"input": "x"}], "output": ref("x")}
    for _ in range(40):
        calls = [
            {"name": name, "module": "a", "leaf": "", "args": [ref(given)]} for name, given in (("y", "x"), ("z", "y"))
        ]
        block = {"kind": "graph", "vertices": [{"input": "x"}, *calls], "output": ref("z"), "children": {"a": block}}
    document = copy.deepcopy(DOCUMENT)
    document["root"]["vertices"].append({"name": "b", "module": "b", "leaf": "", "args": [ref(INPUT)]})
    document["root"]["children"]["b"] = block
    refused(document, "calls .* vertices in a run")


def test_what_is_nested_too_deeply_is_refused():
    value = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert unpack(with_vertices(output=value), dict(TENSORS))(X)
    refused(with_vertices(output=[[[value]]]), "nested")


def test_arguments_of_many_values_are_refused():
    refused(with_vertices(output=[1] * 250_001), "more than 250000 values")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("LSTM", {"input_size": 4, "hidden_size": 4, "num_layers": 2**30}),
        ("Linear", {"in_features": 2**31 - 1, "out_features": 2**31 - 1}),
        ("Linear", {"in_features": 4, "out_features": 6, "bias": "yes"}),
        ("Linear", {"in_features": True, "out_features": 6}),
        ("Conv2d", {"in_channels": 4, "out_channels": 4, "kernel_size": [1] * 100}),
        ("Conv2d", {"in_channels": 4, "out_channels": 4, "kernel_size": 1, "groups": 0}),
        ("MaxPool2d", {"kernel_size": 2**40}),
        ("Dropout", {"p": "x"}),
        ("Upsample", {"size": {"$ref": [INPUT]}}),
    ],
)
def test_leaves_whose_configuration_is_of_another_kind_or_size_are_refused(name, config):
    document = copy.deepcopy(DOCUMENT)
    document["root"]["children"]["0"].update({"class": name, "config": config})
    refused(document, "module")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time(name):
    """Most of them loaded after a minute, with gigabytes, or not at all, when every call had a budget of its own."""
    document, tensors = BOMBS[name]()
    started = time.thread_time()
    if name in HARMLESS:
        unpack(document, tensors, seconds=30)
    elif name in NOT_RUNNING:
        with pytest.raises(torchorbit.CheckpointError, match="does not run on the inputs"):
            unpack(document, tensors)
    else:
        with pytest.raises(torchorbit.CheckpointError):
            unpack(document, tensors, seconds=0.3)
    # The time is looked at between vertices, and not while Python compiles what is generated of them.
    assert time.thread_time() - started < (30 if name in HARMLESS else 5)


def test_time_is_given_by_the_caller():
    document, tensors = BOMBS["norms"]()
    document["root"]["vertices"] = document["root"]["vertices"][:400]
    document["root"]["output"] = ref("v398")
    with pytest.raises(torchorbit.CheckpointError, match=r"more than the 0.05 s"):
        unpack(copy.deepcopy(document), tensors, seconds=0.05)
    unpack(document, tensors, seconds=60)


def test_calls_with_the_same_arguments_and_shapes_are_tried_once(monkeypatch):
    tried = []
    called = trial.called
    monkeypatch.setattr(trial, "called", lambda row, args: tried.append(row.name) or called(row, args))
    again = [("logsumexp", {"input": ref(INPUT), "dim": 1, "keepdim": True}) for _ in range(100)]
    other = [("logsumexp", {"input": ref(INPUT), "dim": 1.0 if n else True, "keepdim": True}) for n in range(2)]
    unpack(with_vertices(*again), dict(TENSORS))
    assert len(tried) <= 2  # on meta tensors, and for real
    refused(with_vertices(*again, *other), "expected int")


def test_results_are_dropped_when_nothing_reads_them_any_more(monkeypatch):
    seen = []
    block = trial._Block.call

    def call(self, vertex):
        seen.append(sum(isinstance(value, torch.Tensor) for value in self.values.values()))
        return block(self, vertex)

    monkeypatch.setattr(trial._Block, "call", call)
    vertices = [("relu", {"input": ref(f"v{n - 1}" if n else INPUT)}) for n in range(50)]
    unpack(with_vertices(*vertices, output=[ref("v49"), ref("v0")]), dict(TENSORS))
    assert max(seen) <= 5


@pytest.mark.parametrize("name", ["forward", "training", "_modules", "to", "weight2.x", ""])
def test_members_that_would_hide_those_of_a_module_are_refused(name):
    for group, entry in (("buffers", ["0.bias", True]), ("children", {"kind": "container"})):
        document = copy.deepcopy(DOCUMENT)
        document["root"].setdefault(group, {})[name] = entry
        refused(document, "is no name of a parameter, buffer or submodule")


def test_a_name_is_taken_once():
    document = copy.deepcopy(DOCUMENT)
    document["root"]["buffers"] = {"0": ["0.bias", True]}
    refused(document, "or taken")


def test_weights_of_another_kind_are_refused():
    for tensor in (torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 4, dtype=torch.float16), torch.zeros(4, 6)):
        with pytest.raises(torchorbit.CheckpointError, match="module '0'"):
            unpack(copy.deepcopy(DOCUMENT), {**TENSORS, "0.weight": tensor})


def test_parameters_that_every_graph_has_a_name_for_are_read():
    """A model may use names that a graph uses for itself."""
    model = Computes(
        lambda m, x: x * m._kept + m.graph + m._refuse_other_sizes,
        _kept=nn.Parameter(torch.rand(4)),
        graph=nn.Parameter(torch.rand(4)),
        _refuse_other_sizes=nn.Parameter(torch.rand(4)),
    )
    dag = torchorbit.convert(model, X)
    document, tensors = pack(dag)
    assert_equal(outcome(unpack(json.loads(json.dumps(document)), tensors), X), outcome(model, X))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_loaded_graph_knows_the_shapes_of_its_results(name):
    model = timm.create_model(name).eval()
    dag = torchorbit.convert(model, torch.randn(2, *model.pretrained_cfg["input_size"]))
    document, tensors = pack(dag)
    again = unpack(json.loads(json.dumps(document)), tensors)
    assert again.graph.shapes
    for path, block in dag.named_modules():
        if isinstance(block, torchorbit.DagModule):
            shapes = again.get_submodule(path).graph.shapes
            assert {key: shapes[key] for key in block.graph.shapes} == block.graph.shapes


def test_inputs_in_containers_keep_their_shapes():
    model = Computes(lambda pair, more: pair[0] @ pair[1] + more["a"][0])
    inputs = ((torch.randn(2, 3), torch.randn(3, 4)), {"a": [torch.randn(4)]})
    dag = torchorbit.convert(model, inputs)
    document, tensors = pack(dag)
    again = unpack(json.loads(json.dumps(document)), tensors)
    assert_equal(outcome(again, inputs), outcome(model, inputs))
    assert pack(again)[0] == json.loads(json.dumps(document))


def test_a_leaf_that_only_holds_what_others_use_may_be_pruned_and_saved():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.held, self.after = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.after(torch.nn.functional.linear(self.before(x), self.held.weight, self.held.bias * 2))

    dag = torchorbit.convert(Functional(), X)
    orbits = torchorbit.find_orbits(dag)
    smaller = torchorbit.remove_channels(dag, {orbit: range(orbit.width // 2) for orbit in orbits})
    document, tensors = pack(smaller)
    again = unpack(json.loads(json.dumps(document)), tensors)
    assert again.state_dict()["held.weight"].shape == (4, 4)
    assert_equal(outcome(again, X), outcome(smaller, X))
