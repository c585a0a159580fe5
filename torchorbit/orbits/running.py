"""Run a graph of one level vertex by vertex, in evaluation, with its results at hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from torchorbit.arguments import Attr, Interpreter, Ref
from torchorbit.graph.shapes import called, pick
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex
from torchorbit.operators.table import OPERATORS
from torchorbit.orbits.flat import FlatModel
from torchorbit.records import Record


class Running(Interpreter):
    """Gives what arguments stand for while a graph runs, and the results of its vertices.

    Args:
        model: the graph, in evaluation mode.

    Attributes:
        values: vertex name -> its result. Whoever runs the graph keeps it.
    """

    def __init__(self, model: FlatModel):
        self.model = model
        self.values: dict[str, Any] = {}

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of the graph by name."""
        bound = inspect.signature(self.model.dag.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def running(self) -> Iterator[tuple[int, ModuleVertex | OperatorVertex]]:
        """The vertices that run in evaluation and have results, with their positions in the graph."""
        for position, vertex in enumerate(self.model.graph.vertices):
            if isinstance(vertex, InputVertex) or vertex.mode == "training":
                continue
            if isinstance(vertex, OperatorVertex) and OPERATORS[vertex.operator].effect:
                continue
            yield position, vertex

    def vertex(self, vertex: Vertex) -> Any:
        """The result of a vertex."""
        call = self.model.calls[vertex.name]
        if not isinstance(vertex, ModuleVertex):
            return called(OPERATORS[call.operator], {key: self.value(arg) for key, arg in call.args.items()})
        module = self.model.module_at(vertex.target)
        args = tuple([self.value(arg) for arg in vertex.args])
        kwargs = {key: self.value(arg) for key, arg in vertex.kwargs.items()}
        if vertex.leaf and call.operator in OPERATORS and getattr(module, "inplace", False):
            args = tuple([arg.clone() if isinstance(arg, Tensor) else arg for arg in args])
        return module(*args, **kwargs)

    def ref(self, arg: Ref) -> Any:
        """The result of a vertex that ran."""
        return pick(self.values[arg.vertex], arg.index)

    def attr(self, arg: Attr) -> Any:
        """The parameter or buffer."""
        return self.model.tensor_at(arg.path).detach()

    def record(self, arg: Record) -> Any:
        """An object like that which the graph returns."""
        return super().record(arg).make()
