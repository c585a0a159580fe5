"""A file from a stranger can do nothing but compute: whatever it holds, it is loaded as data or refused."""

import builtins
import contextlib
import copy
import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack

X = torch.randn(2, 4)


def untouched():
    model = Computes(lambda m, x: m.block(x) * 2, block=nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU()))
    document, tensors = pack(torchorbit.convert(model, X))
    return json.loads(json.dumps(document)), tensors


DOCUMENT, TENSORS = untouched()
INPUT, RESULT = DOCUMENT["root"]["vertices"][0]["input"], DOCUMENT["root"]["vertices"][2]["name"]


def root(document):
    return document["root"]


def vertices(document):
    return document["root"]["vertices"]


def block(document):
    return document["root"]["children"]["block"]


def linear(document):
    return block(document)["children"]["0"]


def loads(change):
    """Whether a changed document is accepted; if so, it is run."""
    try:
        dag = attempt(change)
    except torchorbit.CheckpointError:
        return False
    run(dag)
    return True


def run(dag):
    with contextlib.suppress(
        AttributeError, IndexError, RuntimeError, TypeError, ValueError, torchorbit.TorchorbitError
    ):
        dag(X)
        dag.table()
        dag.flatten()(X)


def attempt(change):
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return unpack(document, dict(TENSORS))


def test_the_document_that_the_cases_change_is_good():
    assert attempt(lambda document: None)(X).shape == (2, 4)
    assert [vertex.get("name", vertex.get("input")) for vertex in vertices(DOCUMENT)] == [INPUT, "block", RESULT]


# -- running code


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Fails the test when anything is opened, imported, run or evaluated that a graph has no business with."""
    done = []
    for name in ("input", "breakpoint", "print"):
        monkeypatch.setattr(builtins, name, lambda *args, name=name, **kwargs: done.append(name))
    monkeypatch.setattr(os, "system", lambda *args: done.append("system"))
    target = tmp_path / "touched"
    yield target
    monkeypatch.undo()
    assert done == []
    assert not target.exists()
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


def calls(target):
    """Named tuples that are calls of builtins when they are written as source."""
    return [
        {"$namedtuple": ["open", ["file", "mode"], [str(target), "w"]]},
        {"$namedtuple": ["__import__", ["name"], ["this"]]},
        {"$namedtuple": ["print", ["sep"], ["x"]]},
        {"$namedtuple": ["input", [], []]},
        {"$namedtuple": ["breakpoint", [], []]},
        {"$namedtuple": ["exit", [], []]},
    ]


CODE = [
    "__import__('os').system('true')", "x); __import__('this'); (x", "x'] + __import__('this') + ['", 'x"] + __import__("this") + ["',
    "x\n    __import__('this')", "x\\", "os.system", "__class__", "__builtins__", "{0.__class__}", "print(1)", "lambda: 0", "a b", "", " ", "1",
    "None", "True", "class", "é", "a\x00b", "x=print()", "*a", "**a", "a:=1", "#", ";",
]  # fmt: skip


@pytest.mark.parametrize("code", CODE)
def test_names_that_are_code_are_refused(code, watched):
    places = {
        "vertex": lambda d: vertices(d)[2].update(name=code),
        "input": lambda d: vertices(d)[0].update(input=code),
        "reference": lambda d: root(d).update(output={"$ref": [code]}),
        "operator": lambda d: vertices(d)[2].update(operator=code),
        "argument of an operator": lambda d: vertices(d)[2]["args"].update({code: 1}),
        "target": lambda d: vertices(d)[1].update(module=code),
        "leaf of a vertex": lambda d: vertices(d)[1].update(leaf=code) if code else vertices(d)[1].update(leaf="x"),
        "name of an argument": lambda d: vertices(d)[1].update(kwargs={code: 1}),
        "parameter path": lambda d: root(d).update(output={"$attr": code}),
        "parameter path below": lambda d: root(d).update(output={"$attr": f"block.{code}"}),
        "owner": lambda d: vertices(d)[2].update(training_only=True, owner=code or "x"),
        "owner of a choice": lambda d: root(d).update(output={"$mode": [1, 2, code or "x"]}),
        "expression": lambda d: root(d).update(output={"$expr": [code, 1, 2]}),
        "operand": lambda d: root(d).update(output={"$expr": ["+", code, 2]}),
        "dtype": lambda d: root(d).update(output={"$dtype": code}),
        "device": lambda d: root(d).update(output={"$device": code}),
        "memory format": lambda d: root(d).update(output={"$memory_format": code}),
        "float": lambda d: root(d).update(output={"$float": code}),
        "complex": lambda d: root(d).update(output={"$complex": [code, code]}),
        "kind of argument": lambda d: root(d).update(output={f"${code}": 1}),
        "kind of module": lambda d: block(d).update(kind=code),
        "class of a leaf": lambda d: linear(d).update({"class": code}),
        "constructor argument": lambda d: linear(d)["config"].update({code: 1}),
        "name of a child": lambda d: (
            vertices(d)[1].update(module=f"{code}."),
            root(d)["children"].update({f"{code}.": block(d)}),
        ),
        "tensor": lambda d: linear(d)["parameters"].update(weight=[code, True]),
        "module that is the same": lambda d: root(d)["children"].update(other={"kind": "same", "path": code or "x"}),
        "name of a named tuple": lambda d: root(d).update(output={"$namedtuple": [code, ["a"], [1]]}),
        "field of a named tuple": lambda d: root(d).update(output={"$namedtuple": ["Pair", [code], [1]]}),
        "attribute of a record": lambda d: root(d).update(output={"$record": ["Out", [[code, 1]], None, []]}),
        "attribute and key of a record": lambda d: root(d).update(output={"$record": ["A", [], [[code, 1]], [code]]}),
        "format": lambda d: d.update(format=code),
        "version": lambda d: d.update(version=code),
        "provenance": lambda d: d["provenance"].update({code: 1}),
    }
    accepted = {("name of a named tuple", "__class__"), ("name of a named tuple", "__builtins__")}
    assert {(place, code) for place, change in places.items() if loads(change)} <= accepted


def test_strings_are_only_strings(watched):
    changes = [
        lambda d, text: root(d).update(output=text),
        lambda d, text: root(d).update(output={"$dict": [[text, text]]}),
        lambda d, text: root(d).update(output={"$record": [text, [["a", text]], [[text, text]], []]}),
        lambda d, text: root(d).update(output={"$list": [text, {"$slice": [text, None, text]}]}),
        lambda d, text: vertices(d).insert(1, {"input": "y", "fixed": text}),
        lambda d, text: vertices(d).insert(1, {"input": "y", "fixed": {"$dict": [[text, [text]]]}}),
        lambda d, text: vertices(d).append(
            {"name": "c", "operator": "check", "args": {"condition": True, "message": text}}
        ),
    ]
    for text in (*CODE, "'", '"', "'''", "\\'", "{}", "{0}", "%s", "\n"):
        for change in changes:
            dag = attempt(functools.partial(change, text=text))
            assert dag(X) is not None
            assert dag.table()
            assert dag.code
            assert dag.flatten()(X) is not None


def test_a_value_that_would_be_a_call_when_written_as_source_calls_nothing(watched):
    changes = [
        lambda d, value: root(d).update(output=value),
        lambda d, value: root(d).update(output={"$dict": [[value, 1]]}),
        lambda d, value: root(d).update(output={"$dict": [[[value], 1]]}),
        lambda d, value: root(d).update(output={"$dict": [["a", value]]}),
        lambda d, value: root(d).update(output={"$mode": [value, value, ""]}),
        lambda d, value: root(d).update(output={"$slice": [value, value, value]}),
        lambda d, value: vertices(d).insert(1, {"input": "y", "fixed": value}),
        lambda d, value: vertices(d).insert(1, {"input": "y", "fixed": [1, value]}),
        lambda d, value: vertices(d).insert(1, {"input": "y", "fixed": {"$dict": [[value, value]]}}),
        lambda d, value: vertices(d)[2]["args"].update(other=value),
        lambda d, value: vertices(d)[1].update(args=[{"$ref": [INPUT]}, value]),
        lambda d, value: linear(d)["config"].update(bias=value),
    ]
    for value in calls(watched):
        for change in changes:
            loads(functools.partial(change, value=value))


def test_no_module_is_imported_for_a_file():
    """In a process of its own: what a load imports beyond what torchorbit itself does."""
    code = (
        "import json, sys, torch, torchorbit\n"
        "from torchorbit.graph.loading import unpack\n"
        "document = json.loads(sys.stdin.read())\n"
        "before = set(sys.modules)\n"
        "try:\n    unpack(document, {})\nexcept torchorbit.CheckpointError as error:\n    print(error)\n"
        "assert not {m for m in set(sys.modules) - before if m in ('this', 'antigravity', 'os.path2')}\n"
    )
    document = copy.deepcopy(DOCUMENT)
    linear(document)["class"] = "this.s"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(document), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is imported by name" in done.stdout
    assert "Zen" not in done.stdout


# -- documents that make no sense


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def deep_module(levels):
    module = {"kind": "container"}
    for _ in range(levels):
        module = {"kind": "container", "children": {"a": module}}
    return module


BAD = {
    "no root": lambda d: d.pop("root"),
    "a root that is a list": lambda d: d.update(root=[]),
    "a root that is a leaf": lambda d: d.update(root=linear(d)),
    "no vertices": lambda d: root(d).pop("vertices"),
    "vertices that are an object": lambda d: root(d).update(vertices={}),
    "a vertex that is null": lambda d: vertices(d).append(None),
    "a vertex that is a string": lambda d: vertices(d).append("x"),
    "a vertex without a name": lambda d: vertices(d)[2].pop("name"),
    "a vertex that is nothing": lambda d: vertices(d).append({}),
    "two vertices of one name": lambda d: vertices(d)[2].update(name="block"),
    "a vertex of the name of a function": lambda d: vertices(d)[2].update(name="_getattr"),
    "a vertex of the name of a word": lambda d: vertices(d)[2].update(name="return"),
    "an input after a vertex": lambda d: vertices(d).append({"input": "late"}),
    "a reference to nothing": lambda d: root(d).update(output={"$ref": ["nothing"]}),
    "a reference to a later vertex": lambda d: vertices(d)[1].update(args=[{"$ref": [RESULT]}]),
    "a reference to itself": lambda d: vertices(d)[2]["args"].update(other={"$ref": [RESULT]}),
    "an empty reference": lambda d: root(d).update(output={"$ref": []}),
    "a reference with a strange index": lambda d: root(d).update(output={"$ref": [RESULT, 1.5]}),
    "a reference that is a string": lambda d: root(d).update(output={"$ref": RESULT}),
    "a fixed input that refers": lambda d: vertices(d).insert(1, {"input": "y", "fixed": {"$ref": [INPUT]}}),
    "a fixed input that is a parameter": lambda d: vertices(d).insert(1, {"input": "y", "fixed": {"$attr": "block.0.weight"}}),
    "a parameter that is not there": lambda d: root(d).update(output={"$attr": "block.0.nothing"}),
    "a parameter of a module that is not there": lambda d: root(d).update(output={"$attr": "nothing.weight"}),
    "a path with an empty part": lambda d: root(d).update(output={"$attr": "block..weight"}),
    "a method as parameter": lambda d: root(d).update(output={"$attr": "block.forward"}),
    "a class as parameter": lambda d: root(d).update(output={"$attr": "__class__"}),
    "an unknown operator": lambda d: vertices(d)[2].update(operator="system"),
    "an operator that is a list": lambda d: vertices(d)[2].update(operator=["add"]),
    "an operator without its arguments": lambda d: vertices(d)[2].update(args={}),
    "an operator with another argument": lambda d: vertices(d)[2]["args"].update(out=1),
    "arguments that are a list": lambda d: vertices(d)[2].update(args=[1, 2]),
    "a module that is not there": lambda d: vertices(d)[1].update(module="nothing"),
    "the graph itself as module": lambda d: vertices(d)[1].update(module=""),
    "a leaf of another class": lambda d: block(d)["vertices"][1].update(leaf="Conv2d"),
    "a leaf that is none": lambda d: vertices(d)[1].update(leaf="Linear"),
    "too few arguments for a block": lambda d: vertices(d)[1].update(args=[]),
    "too many arguments for a block": lambda d: vertices(d)[1].update(args=[{"$ref": [INPUT]}] * 2),
    "named arguments for a block": lambda d: vertices(d)[1].update(kwargs={"y": 1}),
    "arguments that are an object": lambda d: vertices(d)[1].update(args={}),
    "named arguments that are a list": lambda d: vertices(d)[1].update(kwargs=[]),
    "a named argument that is a word": lambda d: block(d)["vertices"][1].update(kwargs={"class": 1}),
    "an owner that is not there": lambda d: vertices(d)[2].update(training_only=True, owner="nothing"),
    "an owner of an evaluation": lambda d: vertices(d)[2].update(mode="evaluation", owner="nothing"),
    "a mode that there is not": lambda d: vertices(d)[2].update(mode="testing"),
    "a mode that is a number": lambda d: vertices(d)[2].update(mode=1),
    "a block in one mode": lambda d: vertices(d)[1].update(mode="training"),
    "a record of one entry": lambda d: root(d).update(output={"$record": ["A"]}),
    "a record without a name": lambda d: root(d).update(output={"$record": [None, [], None, []]}),
    "a record with a number for a name": lambda d: root(d).update(output={"$record": ["A", [[1, 2]], None, []]}),
    "a record with a class": lambda d: root(d).update(output={"$record": ["A", [["__class__", 2]], None, []]}),
    "a record with the name of its name": lambda d: root(d).update(output={"$record": ["A", [["_record_name", 2]], None, []]}),
    "a record with a name twice": lambda d: root(d).update(output={"$record": ["A", [["a", 2], ["a", 3]], None, []]}),
    "a record with a name of no key": lambda d: root(d).update(output={"$record": ["A", [], [["a", 1]], ["b"]]}),
    "a record with a list for a name": lambda d: root(d).update(output={"$record": ["A", [], [["a", 1]], [["a"]]]}),
    "a record of which an item is read": lambda d: block(d).update(output={"$record": ["A", [["a", {"$ref": ["x"]}]], None, []]}) or root(d).update(output={"$ref": ["block", 0]}),
    "a record among arguments": lambda d: vertices(d)[2]["args"].update(other={"$record": ["A", [["a", 1]], None, []]}),
    "a choice whose owner is not there": lambda d: root(d).update(output={"$mode": [1, 2, "nothing"]}),
    "a choice whose owner is a method": lambda d: root(d).update(output={"$mode": [1, 2, "forward"]}),
    "a choice whose owner is a number": lambda d: root(d).update(output={"$mode": [1, 2, 3]}),
    "a choice of one": lambda d: root(d).update(output={"$mode": [1]}),
    "an unknown expression": lambda d: root(d).update(output={"$expr": ["@", 1, 2]}),
    "an expression that is a list": lambda d: root(d).update(output={"$expr": [["+"], 1, 2]}),
    "an expression without operands": lambda d: root(d).update(output={"$expr": ["+"]}),
    "an expression with a string": lambda d: root(d).update(output={"$expr": ["*", "a", 10]}),
    "an expression with a tensor": lambda d: root(d).update(output={"$expr": ["+", {"$ref": [RESULT]}, 1]}),
    "an empty expression": lambda d: root(d).update(output={"$expr": []}),
    "a size of a number": lambda d: root(d).update(output={"$size": [3, 0]}),
    "a size along a string": lambda d: root(d).update(output={"$size": [{"$ref": [RESULT]}, "0"]}),
    "a device of a number": lambda d: root(d).update(output={"$device_of": 3}),
    "a dtype of a string": lambda d: root(d).update(output={"$dtype_of": "x"}),
    "a dtype that is a list": lambda d: root(d).update(output={"$dtype": []}),
    "a dtype that is a module": lambda d: root(d).update(output={"$dtype": "nn"}),
    "a device that is none": lambda d: root(d).update(output={"$device": "abacus"}),
    "a device that is a number": lambda d: root(d).update(output={"$device": {}}),
    "a slice of two": lambda d: root(d).update(output={"$slice": [1, 2]}),
    "a dict of lists": lambda d: root(d).update(output={"$dict": [[{"$list": [1]}, 1]]}),
    "a dict of references": lambda d: root(d).update(output={"$dict": [[{"$ref": [RESULT]}, 1]]}),
    "a dict of triples": lambda d: root(d).update(output={"$dict": [[1, 2, 3]]}),
    "a named tuple of a word": lambda d: root(d).update(output={"$namedtuple": ["class", ["a"], [1]]}),
    "a named tuple with a word": lambda d: root(d).update(output={"$namedtuple": ["A", ["class"], [1]]}),
    "a named tuple with an underscore": lambda d: root(d).update(output={"$namedtuple": ["A", ["_a"], [1]]}),
    "a named tuple with too many values": lambda d: root(d).update(output={"$namedtuple": ["A", ["a"], [1, 2]]}),
    "a named tuple with the same field twice": lambda d: root(d).update(output={"$namedtuple": ["A", ["a", "a"], [1, 2]]}),
    "an unknown kind of argument": lambda d: root(d).update(output={"$eval": "1"}),
    "an argument of two kinds": lambda d: root(d).update(output={"$ref": [RESULT], "$attr": "x"}),
    "an argument of no kind": lambda d: root(d).update(output={}),
    "an argument that is very deep": lambda d: root(d).update(output=deep(250)),
    "an argument that is too deep": lambda d: root(d).update(output=deep(5000)),
    "an expression that is very deep": lambda d: root(d).update(output=nested_expression(300)),
    "modules that are too deep": lambda d: root(d)["children"].update(other=deep_module(5000)),
    "a number of ten thousand digits": lambda d: root(d).update(output=10**10_000),
    "a module that is null": lambda d: root(d)["children"].update(other=None),
    "a module of an unknown kind": lambda d: block(d).update(kind="pickle"),
    "a module of a kind that is a list": lambda d: block(d).update(kind=[]),
    "children that are a list": lambda d: root(d).update(children=[]),
    "a child with a dot": lambda d: root(d)["children"].update({"a.b": {"kind": "container"}}),
    "a child without a name": lambda d: root(d)["children"].update({"": {"kind": "container"}}),
    "a leaf with children": lambda d: linear(d).update(children={"a": {"kind": "container"}}),
    "the same as nothing": lambda d: root(d)["children"].update(other={"kind": "same", "path": "nothing"}),
    "the same as a list": lambda d: root(d)["children"].update(other={"kind": "same", "path": []}),
    "a child that is its own parent": lambda d: block(d)["children"].update(other={"kind": "same", "path": "block"}),
    "a child that is the graph": lambda d: block(d)["children"].update(other={"kind": "same", "path": ""}),
    "an unknown class": lambda d: linear(d).update({"class": "Magic"}),
    "a class of torch that is no leaf": lambda d: linear(d).update({"class": "Sequential"}),
    "a class by its path": lambda d: linear(d).update({"class": "torch.nn.Linear"}),
    "a class that is a list": lambda d: linear(d).update({"class": ["Linear"]}),
    "an unknown constructor argument": lambda d: linear(d)["config"].update(device="cpu"),
    "a constructor argument of another type": lambda d: linear(d)["config"].update(in_features="many"),
    "a constructor argument that is missing": lambda d: linear(d)["config"].pop("in_features"),
    "a negative size": lambda d: linear(d)["config"].update(in_features=-4),
    "an immense size": lambda d: linear(d)["config"].update(in_features=10**30),
    "a large size": lambda d: linear(d)["config"].update(in_features=10**17),
    "a config that is a list": lambda d: linear(d).update(config=[]),
    "no groups": lambda d: linear(d).update({"class": "GroupNorm", "config": {"num_groups": 0, "num_channels": 4}}),
    "padding outside of the table": lambda d: linear(d).update({"class": "Embedding", "config": {"num_embeddings": 3, "embedding_dim": 4, "padding_idx": 50}}),
    "a probability above one": lambda d: linear(d).update({"class": "StochasticDepth", "config": {"p": 7}}),
    "no parameter": lambda d: linear(d)["parameters"].pop("bias"),
    "a parameter that is null": lambda d: linear(d)["parameters"].update(bias=None),
    "a parameter of another shape": lambda d: linear(d)["parameters"].update(bias=["block.0.weight", True]),
    "a parameter that is a string": lambda d: linear(d)["parameters"].update(bias="block.0.bias"),
    "a parameter without a tensor": lambda d: linear(d)["parameters"].update(bias=["nothing", True]),
    "a parameter whose tensor is a list": lambda d: linear(d)["parameters"].update(bias=[["block.0.bias"], True]),
    "a buffer of a leaf of the name of a method": lambda d: linear(d).update(buffers={"forward": ["block.0.bias", True]}),
    "a buffer of a leaf of the name of a parameter": lambda d: linear(d).update(buffers={"weight": ["block.0.bias", True]}),
    "parameters that are a list": lambda d: linear(d).update(parameters=[]),
    "buffers that are a list": lambda d: block(d).update(buffers=[]),
    "an unknown entry in the provenance": lambda d: d["provenance"].update(more=1),
    "a provenance that is a list": lambda d: d.update(provenance=[]),
    "shapes that are a number": lambda d: d["provenance"].update(input_shapes=5),
    "a mode that is a list": lambda d: d["provenance"].update(mode=[1]),
    "a source that is null": lambda d: d["provenance"].update(source=None),
    "a target of an assignment that is a number": lambda d: vertices(d).append({"name": "c", "operator": "assign", "args": {"target": 5, "value": {"$ref": [RESULT]}}}),
    "a reference to an assignment": lambda d: vertices(d).append({"name": "c", "operator": "check", "args": {"condition": True, "message": ""}}) or root(d).update(output={"$ref": ["c"]}),
}  # fmt: skip


def nested_expression(levels):
    value = {"$size": [{"$ref": [RESULT]}, 0]}
    for _ in range(levels):
        value = {"$expr": ["+", value, 1]}
    return value


@pytest.mark.parametrize("name", BAD)
def test_a_document_that_makes_no_sense_is_a_checkpoint_error(name):
    with pytest.raises(torchorbit.CheckpointError):
        attempt(BAD[name])


ROOT_VALUES = [None, True, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"a": 1}, {"$ref": 1}]


@pytest.mark.parametrize("value", ROOT_VALUES, ids=repr)
def test_any_value_in_any_place_is_loaded_or_refused(value):
    """Every entry of the document, replaced in turn: nothing but a `CheckpointError` may come of it."""

    def places(node, path=()):
        if isinstance(node, dict):
            for key in node:
                yield (*path, key)
                yield from places(node[key], (*path, key))
        elif isinstance(node, list):
            for position in range(len(node)):
                yield (*path, position)
                yield from places(node[position], (*path, position))

    for path in list(places(DOCUMENT)):
        document = copy.deepcopy(DOCUMENT)
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = value
        try:
            dag = unpack(document, dict(TENSORS))
        except torchorbit.CheckpointError:
            continue
        except Exception as error:
            raise AssertionError(f"{path} = {value!r} raises {type(error).__name__}: {error}") from error
        assert isinstance(dag, torchorbit.DagModule)
        run(dag)
