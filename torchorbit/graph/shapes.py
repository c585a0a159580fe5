"""The shapes of all results of a graph: those that were recorded, and the others, found by running on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torchorbit.arguments import Attr, ByMode, Interpreter, Ref, SameDevice
from torchorbit.containers import map_leaves, map_plainly
from torchorbit.errors import ArgumentTypeError, GraphRunError
from torchorbit.graph.calls import tensor_of
from torchorbit.graph.dag import DagModule
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex
from torchorbit.operators.declaring import Operator
from torchorbit.operators.modules import forward_arguments
from torchorbit.operators.shapes import shape_of_call, shape_of_leaf
from torchorbit.operators.table import LEAVES, OPERATORS

_META = torch.device("meta")
# Those of inputs that are no floating point numbers: these are all of one dtype here, whatever the model was cast to.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64)
}
_UNKNOWN: Iterator[torch.dtype | None] = iter(())


def shapes_in(value: Any) -> Any:
    """The shape of a tensor; of a container, the shapes in it."""
    if isinstance(value, Tensor):
        return value.shape
    return map_plainly(lambda item: item.shape if isinstance(item, Tensor) else None, value)


def pick(value: Any, index: tuple[int | str, ...]) -> Any:
    """An item inside of containers."""
    for item in index:
        value = value[item]
    return value


class ArgumentShapes(Interpreter):
    """Gives the shapes of the tensors that arguments stand for, in evaluation; None for what is no tensor.

    Args:
        shapes: vertex name -> the shape of its result, or containers of shapes.
        tensor_shape: gives the shape of the parameter or buffer at a path.
    """

    def __init__(self, shapes: Mapping[str, Any], tensor_shape: Callable[[str], Any]):
        self.shapes = shapes
        self.tensor_shape = tensor_shape

    def ref(self, arg: Ref) -> Any:
        """The shape of the result."""
        return pick(self.shapes.get(arg.vertex), arg.index)

    def attr(self, arg: Attr) -> Any:
        """The shape of the parameter or buffer."""
        return self.tensor_shape(arg.path)

    def constant(self, arg: Any) -> None:
        """There is none."""
        return None

    size = expr = same_device = same_dtype = constant


def complete(
    vertices: tuple[Vertex, ...],
    shapes: dict[str, Any],
    dag: DagModule,
) -> dict[str, Any]:
    """Shapes of the results of all vertices.

    Args:
        vertices: of a graph without nested blocks.
        shapes: those that are known, the inputs' among them.
        dag: has the parameters and modules at the paths in them.

    Returns:
        ``shapes`` with what was missing. Where only training computes something, as it does in training.

    Raises:
        GraphRunError: a vertex does not run with the shapes that come before it.
    """
    if all(vertex.name in shapes for vertex in vertices if not _without_result(vertex)):
        return shapes
    try:
        return _Runner(dict(shapes), dag).run(vertices)
    except GraphRunError:
        # What is known of a result is its shape only, and some operators insist on a dtype, too (of a mask, of
        # indices). Run from the inputs on, everything has its own.
        given = {vertex.name: shapes[vertex.name] for vertex in vertices if isinstance(vertex, InputVertex)}
        return shapes | _Runner(given, dag).run(vertices)


def _without_result(vertex: Vertex) -> bool:
    return isinstance(vertex, OperatorVertex) and OPERATORS[vertex.operator].effect


class _Runner(Interpreter):
    def __init__(self, shapes: dict[str, Any], dag: DagModule):
        self.shapes = shapes
        self.dag = dag
        self.results: dict[str, Any] = {}  # of the vertices that had to be run
        self.training = False

    @torch.no_grad()
    def run(self, vertices: tuple[Vertex, ...]) -> dict[str, Any]:
        assert self.dag.provenance is not None
        dtypes = (_DTYPES.get(name) for name in self.dag.provenance.input_dtypes)
        for vertex in vertices:
            if isinstance(vertex, InputVertex):
                if vertex.fixed:
                    self.results[vertex.name] = vertex.fixed[0]
                else:
                    self.results[vertex.name] = _empty(self.shapes[vertex.name], dtypes)
                continue
            if vertex.name in self.shapes or _without_result(vertex):
                continue
            try:
                result = self.call_module(vertex) if isinstance(vertex, ModuleVertex) else self.call_operator(vertex)
            except Exception as error:  # a module that is kept whole may raise anything
                raise GraphRunError(vertex.name, str(error)) from error
            self.results[vertex.name] = result
            self.shapes[vertex.name] = shapes_in(result)
        return self.shapes

    def call_operator(self, vertex: OperatorVertex) -> Any:
        self.training = vertex.mode == "training"
        args = {name: self.value(arg) for name, arg in vertex.args.items()}
        if "device" in args:
            args["device"] = _META
        shape = shape_of_call(vertex.operator, args)
        if shape is not None:
            return made(shape, first_tensor(args.values()).dtype)
        return called(OPERATORS[vertex.operator], args)

    def call_module(self, vertex: ModuleVertex) -> Any:
        module = self.dag.get_submodule(vertex.target)
        self.training = vertex.mode == "training" if vertex.mode else module.training
        args = tuple([self.value(arg) for arg in vertex.args])
        kwargs = {name: self.value(arg) for name, arg in vertex.kwargs.items()}
        nested = bool(vertex.leaf) and LEAVES[vertex.leaf].nested
        if nested:  # on meta torch runs every time step
            args, kwargs = forward_arguments(vertex.leaf).bind(*args, **kwargs).args, {}
        if vertex.leaf and not kwargs:
            shape = shape_of_leaf(vertex.leaf, module, args, _like)
            if shape is not None:
                return made(shape, args[0].dtype)
        state = {name: _like(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        return torch.func.functional_call(module, state, args, kwargs)

    def ref(self, arg: Ref) -> Any:
        if arg.vertex in self.results:
            return pick(self.results[arg.vertex], arg.index)
        return _empty(pick(self.shapes[arg.vertex], arg.index))

    def attr(self, arg: Attr) -> Tensor:
        owner, _, name = arg.path.rpartition(".")
        tensor = tensor_of(self.dag.get_submodule(owner), name)
        assert tensor is not None
        return _like(tensor)

    def by_mode(self, arg: ByMode) -> Any:
        return self.value(arg.training if self.training else arg.evaluation)

    def same_device(self, arg: SameDevice) -> torch.device:
        return _META


def made(shape: Any, dtype: torch.dtype) -> Any:
    """A tensor on meta of a shape, or tuples of tensors for tuples of shapes."""
    if shape and isinstance(shape[0], tuple):
        return tuple([made(item, dtype) for item in shape])
    return torch.empty(shape, dtype=dtype, device=_META)


def first_tensor(values: Iterable[Any]) -> Tensor:
    """The first operand that is a tensor, which one that is a list of them may hold."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
            return value[0]
    raise ArgumentTypeError("none of its operands is a tensor")


def called(row: Operator, args: dict[str, Any]) -> Any:
    """Call an operator as generated code does: positional where it may be."""
    positional: list[Any] = []
    by_name: dict[str, Any] = {}
    for name in row.parameters:
        if name not in args:
            continue
        if by_name or name in row.keyword_only or len(positional) < list(row.parameters).index(name):
            by_name[name] = args[name]
        else:
            positional.append(args[name])
    return row.function(*positional, **by_name)


def _empty(shape: Any, dtypes: Iterator[torch.dtype | None] = _UNKNOWN) -> Any:
    """Tensors on meta of a shape, or of the shapes in containers; of torch's default dtype where none is given."""

    def empty(shape: torch.Size | None) -> Tensor | None:
        return None if shape is None else torch.empty(shape, device=_META, dtype=next(dtypes, None))

    return map_leaves(empty, shape)


def _like(tensor: Tensor) -> Tensor:
    dtype = None if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, device=_META, dtype=dtype)
