"""Arguments of every kind in every container: all that goes through them agrees with what generated code computes."""

import re
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchorbit
from tests.models import reloaded
from torchorbit.arguments import (
    KINDS,
    Attr,
    ByMode,
    Expr,
    Interpreter,
    Ref,
    SameDevice,
    SameDtype,
    Size,
    Transformer,
    Visitor,
    map_args,
    measured_in,
    operands_of,
    owners_in,
    walk_args,
)
from torchorbit.graph.budget import Budget
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.shapes import complete, pick, shapes_in
from torchorbit.graph.trial import try_out
from torchorbit.graph.vertices import InputVertex, OperatorVertex
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import masked_run

Pair = namedtuple("Pair", ["left", "right"])
Single = namedtuple("Single", ["only"])
X = torch.randn(2, 4)

TENSORS = st.sampled_from([Ref("x"), Ref("halves", (0,)), Ref("halves", (1,)), Attr("weight"), Attr("inner.table")])
CONSTANTS = st.one_of(
    st.sampled_from([None, True, False, ..., torch.float32, torch.int64, torch.device("cpu"), torch.channels_last, ""]),
    st.integers(-9, 9),
    st.floats(width=32),
    st.complex_numbers(max_magnitude=9),
    st.text("ab'\"\\\n{", max_size=3),
)
SIZES = st.builds(Size, TENSORS, st.integers(-2, 1))
POSITIVE = SIZES | st.integers(1, 5)


def expr(operator, *operands):
    return st.builds(lambda *parts: Expr(operator, parts), *operands)


NUMBERS = st.recursive(
    st.one_of(
        *[
            expr(symbol, POSITIVE, POSITIVE)
            for symbol in ("//", "%", "/", "&", "|", "^", "<", "<=", ">", ">=", "==", "!=")
        ],
        *[expr(symbol, POSITIVE, st.integers(0, 3)) for symbol in ("**", "<<", ">>")],
        *[expr(symbol, POSITIVE) for symbol in ("int", "float", "bool", "floor", "ceil", "round", "abs", "neg")],
    ),
    lambda inner: st.one_of(*[expr(symbol, inner, POSITIVE) for symbol in ("+", "-", "*")], expr("neg", inner)),
    max_leaves=4,
)
LEAVES = st.one_of(CONSTANTS, TENSORS, SIZES, NUMBERS, st.builds(SameDevice, TENSORS), st.builds(SameDtype, TENSORS))
ARGUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3),
        st.dictionaries(st.integers(0, 9) | st.sampled_from(["key", "a b", "'"]), inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Single, inner),
        st.builds(slice, inner, inner, inner),
        st.builds(ByMode, inner, inner, st.sampled_from(["", "inner"])),
    ),
    max_leaves=12,
)


def graph_that_returns(output: Any) -> DagModule:
    vertices = (InputVertex("x"), OperatorVertex("halves", "chunk", {"input": Ref("x"), "chunks": 2, "dim": 1}))
    provenance = Provenance(input_shapes=((2, 4),), input_dtypes=("float32",))
    shapes = {"x": X.shape, "halves": (torch.Size((2, 2)), torch.Size((2, 2)))}
    dag = blank(Graph(vertices, output, shapes), provenance)
    dag.weight = nn.Parameter(torch.randn(3, 2))
    dag.inner = Container()
    dag.inner.register_buffer("table", torch.randn(1, 5))
    return dag.eval()


class AsCodeDoes(Interpreter):
    """What an argument stands for while a graph runs."""

    def __init__(self, dag: DagModule, values: dict[str, Any]):
        self.dag = dag
        self.values = values

    def ref(self, arg):
        return pick(self.values[arg.vertex], arg.index)

    def attr(self, arg):
        owner, _, name = arg.path.rpartition(".")
        return getattr(self.dag.get_submodule(owner), name)

    def by_mode(self, arg):
        return self.value(arg.training if self.dag.get_submodule(arg.owner).training else arg.evaluation)


def written(value: Any) -> str:
    """A value in words: of tensors which one it is."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.flatten().tolist()}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__}({', '.join(map(written, value))})"
    if isinstance(value, slice):
        return f"slice({written(value.start)}, {written(value.stop)}, {written(value.step)})"
    return repr(value)


@given(ARGUMENTS, st.booleans(), st.booleans())
def test_an_interpreter_gives_what_generated_code_gives(arg, training, training_inside):
    dag = graph_that_returns(arg)
    dag.training, dag.inner.training = training, training_inside
    interpreter = AsCodeDoes(dag, {"x": X, "halves": X.chunk(2, 1)})
    assert written(interpreter.value(arg)) == written(dag(X))


@given(ARGUMENTS)
def test_a_map_that_changes_nothing_gives_an_equal_argument(arg):
    assert repr(map_args(arg, lambda value: value)) == repr(arg)
    assert repr(Transformer().value(arg)) == repr(arg)


@given(ARGUMENTS)
def test_a_map_changes_every_tensor_and_every_owner(arg):
    changed = map_args(
        arg,
        lambda value: Ref(f"new_{value.vertex}", value.index) if isinstance(value, Ref) else Attr(f"new_{value.path}"),
        lambda owner: f"new_{owner}",
    )
    assert repr(changed) == re.sub(r"(vertex|path|owner)='", r"\1='new_", repr(arg))


@given(ARGUMENTS)
def test_a_walk_sees_every_leaf_in_order(arg):
    leaves = walk_args(arg)
    assert [leaf.vertex for leaf in leaves if isinstance(leaf, Ref)] == re.findall(r"vertex='(\w*)'", repr(arg))
    assert [leaf.path for leaf in leaves if isinstance(leaf, Attr)] == re.findall(r"path='([\w.]*)'", repr(arg))
    assert not any(type(leaf) in KINDS.keys() - {Ref, Attr} or isinstance(leaf, tuple) for leaf in leaves)


@given(ARGUMENTS)
def test_what_is_read_of_a_tensor_is_its_values_or_something_else(arg):
    tensors = [leaf for leaf in walk_args(arg) if isinstance(leaf, (Ref, Attr))]
    assert sorted(map(repr, [*operands_of(arg), *measured_in(arg)])) == sorted(map(repr, tensors))
    assert len(measured_in(arg)) == len(re.findall(r"(?:Size|SameDevice|SameDtype)\(", repr(arg)))
    in_evaluation = AsCodeDoes(graph_that_returns(None), {"x": X, "halves": X.chunk(2, 1)}).value(arg)
    assert len(operands_of(arg, training=False)) == written(in_evaluation).count("tensor (")


@given(ARGUMENTS)
def test_every_owner_is_found(arg):
    assert sorted(owners_in(arg)) == sorted(re.findall(r"owner='(\w*)'", repr(arg)))


@given(ARGUMENTS)
@settings(deadline=None)
def test_a_file_holds_every_kind(arg):
    dag = graph_that_returns(arg)
    again = reloaded(dag)
    assert repr(again.graph.output) == repr(arg)
    assert written(again(X)) == written(dag(X))


@given(ARGUMENTS)
@settings(deadline=None)
def test_a_trial_run_takes_every_kind(arg):
    try_out(graph_that_returns(arg), [X.shape], ["float32"], {}, Budget())


@given(st.lists(POSITIVE | expr("+", POSITIVE, POSITIVE) | st.builds(ByMode, POSITIVE, POSITIVE), max_size=3))
@settings(deadline=None)
def test_runs_without_numbers_give_the_shapes_of_a_run(sizes):
    plain = graph_that_returns(Ref("made"))
    made = OperatorVertex("made", "zeros", {"size": tuple(sizes)})
    dag = blank(Graph((*plain.vertices, made), Ref("made"), plain.graph.shapes), plain.provenance).eval()
    dag._parameters, dag._buffers, dag._modules = plain._parameters, plain._buffers, plain._modules
    expected = dag(X).shape
    assert complete(dag.graph.vertices, {"x": X.shape}, dag)["made"] == expected
    try_out(dag, [X.shape], ["float32"], {}, Budget())
    assert dag.graph.shapes["made"] == expected


@given(ARGUMENTS)
@settings(deadline=None)
def test_a_masked_run_in_which_nothing_is_removed_is_a_run(arg):
    dag = graph_that_returns(arg)
    selection = Selection({}, dag)
    selection.adopt(torchorbit.find_orbits(dag))
    assert written(masked_run(dag, selection, (X,), {})) == written(dag(X))


@pytest.mark.parametrize("name", sorted({*KINDS.values(), "named_tuple"}))
def test_a_visitor_that_forgets_a_kind_cannot_be_made(name):
    everything = {method: lambda self, arg: arg for method in (*KINDS.values(), "named_tuple")}
    assert type("Whole", (Visitor,), everything)().value(Ref("x")) == Ref("x")
    del everything[name]
    with pytest.raises(TypeError, match=name):
        type("Half", (Visitor,), everything)()


def test_a_visitor_meets_further_types_inside_of_containers_too():
    class Named(Transformer, kinds={float: "number", torch.dtype: "dtype"}):
        def number(self, arg):
            return f"the number {arg}"

        def dtype(self, arg):
            return f"the dtype {arg}"

    class Louder(Named, kinds={str: "text"}):
        def text(self, arg):
            return arg.upper()

    assert Named().value([1.5, (torch.int8, 2, "a")]) == ["the number 1.5", ("the dtype torch.int8", 2, "a")]
    assert Louder().value([1.5, (torch.int8, 2, "a")]) == ["the number 1.5", ("the dtype torch.int8", 2, "A")]


def test_shapes_of_containers_are_plain():
    value = {"a": Pair(X, [X, 3]), "b": (None,)}
    assert shapes_in(value) == {"a": (X.shape, (X.shape, None)), "b": (None,)}
    assert type(shapes_in(value)["a"]) is tuple
