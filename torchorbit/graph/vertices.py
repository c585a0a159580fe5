"""The vertices of a graph: inputs, calls of modules, calls of operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class InputVertex:
    """An input of the graph.

    ``fixed`` holds the constant that was recorded when the input is no tensor (a flag, a number): the graph was
    recorded with it and accepts nothing else. ``keyword`` inputs are passed by name.
    """

    name: str
    keyword: bool = False
    fixed: tuple[Any, ...] = ()  # () or (constant,)


@dataclass(frozen=True, slots=True)
class ModuleVertex:
    """A call of a submodule.

    ``leaf`` is the name of what it computes in the table of leaf modules (``"Conv2d"``); it is empty for a nested
    `DagModule` and for a module that is kept whole because its class was listed as atomic.
    """

    name: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    leaf: str = ""


@dataclass(frozen=True, slots=True)
class OperatorVertex:
    """A call of an operator of the table in `torchorbit.operators.table`.

    ``training_only`` vertices are skipped in evaluation (the counter of a batch norm, say); ``owner`` is then the
    path of the module whose ``training`` flag decides.
    """

    name: str
    operator: str
    args: dict[str, Any]
    training_only: bool = False
    owner: str = ""


Vertex = InputVertex | ModuleVertex | OperatorVertex


def vertex_args(vertex: Vertex) -> tuple[Any, ...]:
    """All arguments of a vertex, as one tuple."""
    if isinstance(vertex, ModuleVertex):
        return (*vertex.args, *vertex.kwargs.values())
    if isinstance(vertex, OperatorVertex):
        return tuple(vertex.args.values())
    return ()
