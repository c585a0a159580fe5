"""What is left returns what the whole graph returns: the same containers, and tensors of the same shapes."""

from __future__ import annotations

from typing import Any

from torchorbit.arguments import Attr, Ref, Transformer
from torchorbit.errors import GraphRunError, InternalError
from torchorbit.graph.calls import tensor_of
from torchorbit.graph.dag import DagModule, Graph
from torchorbit.graph.one_level import input_shapes_of
from torchorbit.graph.shapes import complete, pick
from torchorbit.orbits.flat import FlatModel

_WHOSE_FAULT = (
    "Nothing was changed. Where a rule of your own is in use, torchorbit.rules.check_rule says whether it is right; "
    "else this is a mistake in torchorbit: please report it, and name the layers around it in frozen= meanwhile"
)


def require_same_output(whole: FlatModel, smaller: DagModule) -> None:
    """Refuse a graph that does not run any more, or whose output is not of the shapes that it was of.

    It is run on meta tensors. Nothing that a caller does leads here: it is the last look at what a removal made.

    Args:
        whole: the graph from which channels were removed.
        smaller: what was made of it, of one level.

    Raises:
        InternalError: it is not what it should be.
    """
    try:
        shapes = _found(smaller.graph, smaller)
    except GraphRunError as error:
        if not _runs(whole):
            return  # a module that is kept whole may need more than shapes
        raise InternalError(
            f"after the removal, vertex '{error.vertex}' does not run: {error.reason}. {_WHOSE_FAULT}"
        ) from error
    expected = _OutputShapes(whole.graph.shapes, whole.dag).value(whole.graph.output)
    given = _OutputShapes(shapes, smaller).value(smaller.graph.output)
    if given != expected:
        raise InternalError(
            f"after the removal, the output has the shapes {given}, expected {expected}. {_WHOSE_FAULT}"
        )


def _found(graph: Graph, dag: DagModule) -> dict[str, Any]:
    """The shapes of all results, found by running a graph."""
    return complete(graph.vertices, input_shapes_of(graph), dag)


def _runs(whole: FlatModel) -> bool:
    try:
        _found(whole.graph, whole.dag)
    except GraphRunError:
        return False
    return True


class _OutputShapes(Transformer):
    """Gives an output in which tensors are shapes, in both modes; numbers that follow from sizes are left out."""

    def __init__(self, shapes: dict[str, Any], dag: DagModule):
        self._shapes = shapes
        self._dag = dag

    def ref(self, arg: Ref) -> Any:
        """The shape of a result."""
        return pick(self._shapes[arg.vertex], arg.index)

    def attr(self, arg: Attr) -> Any:
        """The shape of a parameter or buffer."""
        owner, _, name = arg.path.rpartition(".")
        tensor = tensor_of(self._dag.get_submodule(owner), name)
        return None if tensor is None else tensor.shape

    def number(self, arg: Any) -> None:
        """What follows from a size is known when the graph runs."""
        return None

    size = expr = same_device = same_dtype = number
