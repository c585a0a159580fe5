"""A trial run of a graph that comes from a file: on meta tensors, with the shapes that it was recorded with.

Nothing large is computed or allocated. It finds what no look at a single vertex can: operands whose shapes do not
fit each other, values of the wrong kind, and results that are larger than a model has any use for. What runs on meta
tensors and not on others is found by calls for real, on few elements (`torchorbit.graph.rehearsal`).

A file may say anything, so that every loop here has a bound: on the calls of all blocks together, on the elements of
a result, and on what all calls together return, hold and take of time (`torchorbit.graph.budget`). What most models
consist of is answered by a formula instead of by the operator itself, which takes up to a millisecond on meta; a call
of the same operator with the same arguments and shapes is tried once; and a result is dropped when nothing reads it
any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchorbit.arguments import PLAIN, Attr, ByMode, Expr, Interpreter, Ref, SameDevice, SameDtype, Size
from torchorbit.containers import map_leaves
from torchorbit.errors import CheckpointError
from torchorbit.graph.budget import Budget
from torchorbit.graph.calls import tensor_of
from torchorbit.graph.dag import DagModule
from torchorbit.graph.rehearsal import FEW, keep_known, key_of, rehearse
from torchorbit.graph.shapes import called, first_tensor, shapes_in
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex
from torchorbit.operators.declaring import Leaf, Operator
from torchorbit.operators.modules import forward_arguments
from torchorbit.operators.schema import is_of_kind, kind_of
from torchorbit.operators.shapes import shape_of_call, shape_of_leaf
from torchorbit.operators.table import LEAVES, OPERATORS

#: Calls of vertices in one run, a block counted as often as it is called; the largest model of timm has 5,102.
MAX_CALLS = 50_000
#: Elements of one result.
MAX_ELEMENTS = 2**31 - 1
_MAX_RANK = 64
_MAX_BITS = 256  # of a number that is computed

_META = torch.device("meta")
_CPU = torch.device("cpu")
_FLOAT = torch.float32  # stands for every floating point dtype: a model can be cast after it was recorded
_COMPLEX = torch.complex64


#: Identity of a graph -> name of a vertex -> the results that nothing reads after it.
Readers = Mapping[int, Mapping[str, Sequence[str]]]


@torch.no_grad()
def try_out(
    dag: DagModule, input_shapes: Sequence[Any], input_dtypes: Sequence[str], readers: Readers, budget: Budget
) -> None:
    """Run a graph on meta tensors, and keep the shapes of the results in the graph and its blocks.

    Args:
        dag: an outermost graph, in which every name refers to something that is there.
        input_shapes: the shape of each input, or containers of shapes; None where it is fixed.
        input_dtypes: the dtypes of the tensors in the inputs, as far as they are known.
        readers: which vertex reads a result last; what is not in it is kept.
        budget: what is left for loading the graph.

    Raises:
        CheckpointError: a vertex does not run, or its result is too large.
    """
    calls, characters = _count(dag, {})
    if calls > MAX_CALLS:
        raise CheckpointError(f"the graph calls {calls} vertices in a run, more than the {MAX_CALLS} that it may")
    budget.take_characters(characters, "the names of vertices, with the blocks that they are in")
    dtypes = (_DTYPES.get(name, _FLOAT) for name in input_dtypes)
    values = {}
    for vertex, shape in zip(dag.graph.inputs, input_shapes, strict=True):
        values[vertex.name] = vertex.fixed[0] if vertex.fixed else _inputs(shape, dtypes)
        if not vertex.fixed:
            dag.graph.shapes[vertex.name] = shape
    _Trial(readers, budget).block(dag, values, "")


_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


def _usual(dtype: torch.dtype) -> torch.dtype:
    return _FLOAT if dtype.is_floating_point else _COMPLEX if dtype.is_complex else dtype


_DTYPES = {name: _usual(dtype) for name, dtype in _DTYPES.items()}


def _inputs(shape: Any, dtypes: Iterator[torch.dtype]) -> Any:
    def empty(shape: torch.Size | None) -> Any:
        return None if shape is None else _empty(shape, next(dtypes, _FLOAT))

    return map_leaves(empty, shape)


def _count(dag: DagModule, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Calls of vertices in one run of a block, and the characters of their names in a graph without blocks.

    Blocks within it may be called from many places.
    """
    if id(dag) not in known:
        total, characters = len(dag.graph.vertices), 0
        for vertex in dag.graph.vertices:
            characters += len(vertex.name)
            if isinstance(vertex, ModuleVertex) and not vertex.leaf:
                inner = dag.get_submodule(vertex.target)
                assert isinstance(inner, DagModule)
                calls, length = _count(inner, known)
                total += calls
                characters += length + calls * (len(vertex.name) + len(vertex.target))
        known[id(dag)] = total, characters
    return known[id(dag)]


class _Trial:
    def __init__(self, readers: Readers, budget: Budget) -> None:
        self.readers = readers
        self.budget = budget
        self.tensors: dict[int, Tensor] = {}  # id of a parameter or buffer -> what stands for it
        self.tried: dict[Any, Any] = {}  # an operator and what its result follows from -> the result
        self.unclear: set[int] = set()  # ids of blocks that are called with several sizes

    def block(self, dag: DagModule, values: dict[str, Any], path: str) -> Any:
        """What a block returns; ``values`` are its inputs by name."""
        run = _Block(self, dag, values)
        shapes = dag.graph.shapes
        last = self.readers.get(id(dag.graph), {})
        for vertex in dag.graph.vertices:
            if isinstance(vertex, InputVertex):
                continue
            self.budget.check_time(f"vertex '{path}{vertex.name}'")
            try:
                inner = run.inner(vertex)
                if inner is not None:
                    assert isinstance(vertex, ModuleVertex)
                    given = {i.name: run.value(a) for i, a in zip(inner.graph.inputs, vertex.args, strict=True)}
                    self.budget.leaves(tuple(given.values()), f"vertex '{path}{vertex.name}'")
                    result = self.block(inner, given, f"{path}{vertex.name}/")
                else:
                    result = _bounded(run.call(vertex))
            except CheckpointError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())[:500]
                raise CheckpointError(
                    f"vertex '{path}{vertex.name}' does not run on the inputs that the graph was recorded with: "
                    f"{type(error).__name__}: {reason}"
                ) from error
            values[vertex.name] = result
            for name in last.get(vertex.name, ()):
                values[name] = None  # nothing reads it any more
            if inner is None and result is not None and id(dag) not in self.unclear:
                shape = shapes_in(result)
                if shapes.setdefault(vertex.name, shape) != shape:
                    self.unclear.add(id(dag))
        if id(dag) in self.unclear:
            shapes.clear()
        try:
            output = run.value(dag.graph.output)
        except Exception as error:
            raise CheckpointError(f"the output of '{path}' cannot be computed: {error}") from error
        self.budget.leaves(output, f"the output of '{path}'")
        return output

    def like(self, tensor: Tensor) -> Tensor:
        found = self.tensors.get(id(tensor))
        if found is None:
            found = self.tensors[id(tensor)] = _empty(tensor.shape, _usual(tensor.dtype))
            if not isinstance(tensor, nn.Parameter):
                keep_known(found, tensor.to(found.dtype) if tensor.numel() <= FEW else None)
        return found


class _Block(Interpreter, kinds={torch.dtype: "dtype"}):
    """One run of one block; where evaluation and training differ, that of evaluation."""

    def __init__(self, trial: _Trial, dag: DagModule, values: dict[str, Any]):
        self.trial = trial
        self.dag = dag
        self.values = values

    def inner(self, vertex: Vertex) -> DagModule | None:
        """The block that a vertex calls."""
        if not isinstance(vertex, ModuleVertex) or vertex.leaf:
            return None
        module = self.dag.get_submodule(vertex.target)
        return module if isinstance(module, DagModule) else None

    def call(self, vertex: Vertex) -> Any:
        if isinstance(vertex, OperatorVertex):
            return self.operator(vertex)
        assert isinstance(vertex, ModuleVertex)
        args = [self.value(arg) for arg in vertex.args]
        kwargs = {name: self.value(arg) for name, arg in vertex.kwargs.items()}
        leaf = LEAVES[vertex.leaf]
        nested = leaf.nested
        for arg in (*args, *kwargs.values()):
            if not _is_operand(arg, nested=nested):
                raise TypeError(f"a {type(arg).__name__} is no argument of a {vertex.leaf}")
        module = self.dag.get_submodule(vertex.target)
        if nested:  # on meta torch runs every time step
            args = [*forward_arguments(vertex.leaf).bind(*args, **kwargs).args]
        if nested or not kwargs:
            shape = shape_of_leaf(vertex.leaf, module, args, self.trial.like)
            if shape is not None:
                return _made(shape, args[0].dtype)
        state = {
            name: self.trial.like(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        result = module(*args, **kwargs) if not state else functional_call(module, state, tuple(args), kwargs)
        self.rehearse_leaf(leaf, module, args, kwargs, result)
        return result

    def rehearse_leaf(
        self, leaf: Leaf, module: nn.Module, args: list[Any], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Make the call of a leaf for real, as that of the operator that it is."""
        if not leaf.operator or kwargs or len(args) != len(leaf.inputs):
            return
        given = dict(zip(leaf.inputs, args, strict=True))
        for name in leaf.tensors:
            tensor = tensor_of(module, name)
            if tensor is not None:
                given[name] = self.trial.like(tensor)
        for argument, attribute in leaf.values:
            given[argument] = getattr(module, attribute)
        rehearse(OPERATORS[leaf.operator], {**given, **leaf.fixed}, result, partial(_leaf_called, module, leaf))

    def operator(self, vertex: OperatorVertex) -> Any:
        name = vertex.operator
        args = {}
        some_tensor = False
        row = OPERATORS[name]
        for key, arg in vertex.args.items():
            kind = kind_of(name, key)
            if type(arg) is ByMode:
                other = self.value(arg.training)
                self.check(other, kind, key)
                self.check_value(row, other, key)
                arg = arg.training if vertex.mode == "training" else arg.evaluation
            args[key] = value = self.value(arg)
            self.check(value, kind, key)
            self.check_value(row, value, key)
            found = (value,) if type(value) in PLAIN else self.trial.budget.leaves(value, f"argument '{key}'")
            some_tensor = some_tensor or any(isinstance(leaf, Tensor) for leaf in found)
        if name == "check":
            condition = args["condition"]
            if isinstance(condition, Tensor) and condition.numel() != 1:
                raise ValueError(f"its condition has shape {tuple(condition.shape)}, expected one element")
            if not isinstance(condition, Tensor) and not condition and vertex.mode != "training":
                raise ValueError("its condition does not hold")
            return None
        if "device" in row.parameters and (name != "to" or "device" in args):
            args["device"] = _META
        elif not some_tensor:
            # In Python, `"a" * 1_000_000_000` is arithmetic, too.
            raise TypeError("none of its operands is a tensor")
        if name == "assign":
            args["value"].expand(args["target"].shape)
            keep_known(args["target"], None)
            return None
        tried = self.trial.tried
        try:
            same = name, *[(key, key_of(value)) for key, value in args.items()]
            if same in tried:
                self.take_pieces(tried[same], 0)
                return tried[same]
        except TypeError:
            same = None
        shape = shape_of_call(name, args)
        if shape is not None:
            result = _made(shape, first_tensor(args.values()).dtype)
        else:
            announced = 0 if row.pieces is None else row.pieces(args)
            self.trial.budget.take_pieces(announced, name)
            result = _bounded(called(row, args))
            self.take_pieces(result, announced)
        rehearse(row, args, result, partial(called, row))
        if same is not None:
            tried[same] = result
        return result

    def take_pieces(self, result: Any, announced: int) -> None:
        """Count what an operator returns, but for the pieces that were counted before it was called."""
        if isinstance(result, (tuple, list)):
            self.trial.budget.take_pieces(max(0, len(result) - announced), "a call")

    def check_value(self, row: Operator, value: Any, name: str) -> None:
        """Refuse what no kernel of a processor takes, and those for meta tensors do."""
        if isinstance(value, torch.device) and value.type != "cpu":
            raise ValueError(f"argument '{name}' is {value!r}; expected the device of another tensor, or the CPU")
        if name == row.probability and isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"argument '{name}' is {value!r}, expected a probability from 0 to 1")

    def check(self, value: Any, kind: str, name: str) -> None:
        if not is_of_kind(value, kind):
            raise TypeError(f"argument '{name}' is {value!r:.100}, expected {kind.replace('|', ' or ')}")

    def ref(self, arg: Ref) -> Any:
        value = self.values[arg.vertex]
        item: Any
        for item in arg.index:
            if not isinstance(value, (tuple, list, dict)):
                raise TypeError(f"'{arg.vertex}' is a {type(value).__name__} where {arg.index} is read from it")
            value = value[item]
        return value

    def attr(self, arg: Attr) -> Tensor | None:
        owner, _, name = arg.path.rpartition(".")
        tensor = tensor_of(self.dag.get_submodule(owner), name)
        return None if tensor is None else self.trial.like(tensor)

    def size(self, arg: Size) -> int:
        return self.tensor(arg.value).size(arg.dim)

    def expr(self, arg: Expr) -> Any:
        result = super().expr(arg)
        if isinstance(result, int) and result.bit_length() > _MAX_BITS:
            raise ValueError(f"'{arg.operator}' gives a number of {result.bit_length()} bits, which no size has")
        return result

    def by_mode(self, arg: ByMode) -> Any:
        self.value(arg.training)
        return super().by_mode(arg)

    def same_device(self, arg: SameDevice) -> torch.device:
        self.tensor(arg.value)
        return _CPU

    def same_dtype(self, arg: SameDtype) -> torch.dtype:
        return self.tensor(arg.value).dtype

    def dtype(self, arg: torch.dtype) -> torch.dtype:
        return _usual(arg)

    def tensor(self, arg: Any) -> Tensor:
        value = self.value(arg)
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} has no size, dtype or device")
        return value


def _leaf_called(module: nn.Module, leaf: Leaf, args: dict[str, Any]) -> Any:
    state = {name: args[name] for name in leaf.tensors if name in args}
    for name, buffer in module.named_buffers():
        state.setdefault(name, buffer.clone() if buffer.numel() <= FEW else buffer)  # some count their calls
    return functional_call(module, state, tuple([args[name] for name in leaf.inputs]))


def _empty(shape: Sequence[int], dtype: torch.dtype = _FLOAT) -> Tensor:
    # In Python's integers, and with empty dimensions left out: products of 64 bits could overflow.
    if len(shape) > _MAX_RANK or math.prod([length or 1 for length in shape]) > MAX_ELEMENTS:
        raise ValueError(f"a tensor has shape {tuple(shape)!s:.200}, more than {MAX_ELEMENTS} elements")
    return torch.empty(shape, dtype=dtype, device=_META)


def _made(shape: Any, dtype: torch.dtype) -> Any:
    """A tensor of a shape, or containers of tensors for containers of shapes, if none is too large."""
    if shape and isinstance(shape[0], tuple):
        return tuple([_made(item, dtype) for item in shape])
    return _empty(shape, dtype)


def _bounded(result: Any) -> Any:
    """A result, if it is a tensor or several, and none is too large."""
    for tensor in result if isinstance(result, (tuple, list)) else (result,):
        # In Python's integers: a product of 64 bits could overflow.
        if isinstance(tensor, Tensor) and (math.prod(tensor.shape) > MAX_ELEMENTS or tensor.dim() > _MAX_RANK):
            raise ValueError(f"a result has shape {tuple(tensor.shape)!s:.200}, more than {MAX_ELEMENTS} elements")
    return result


def _is_operand(value: Any, *, nested: bool) -> bool:
    if nested and isinstance(value, tuple):
        return all(isinstance(item, Tensor) for item in value)
    return value is None or isinstance(value, Tensor)
