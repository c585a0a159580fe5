"""The vertices of a graph: inputs, calls of modules, calls of operators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torchorbit.arguments import Ref, walk_args

#: In which mode a vertex runs: in one of them alone, or in both where it is empty.
Mode = Literal["", "training", "evaluation"]


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
    `DagModule` and for a module that is kept whole because its class was listed as atomic. ``mode`` and ``owner`` are
    as for an `OperatorVertex`.
    """

    name: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    leaf: str = ""
    mode: Mode = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class OperatorVertex:
    """A call of an operator of the table in `torchorbit.operators.table`.

    A vertex with a ``mode`` runs in that mode alone (the counter of a batch norm in ``"training"``, say, a detector's
    decoding in ``"evaluation"``); ``owner`` is then the path of the module whose ``training`` flag decides.
    """

    name: str
    operator: str
    args: dict[str, Any]
    mode: Mode = ""
    owner: str = ""


Vertex = InputVertex | ModuleVertex | OperatorVertex


def vertex_args(vertex: Vertex) -> tuple[Any, ...]:
    """All arguments of a vertex, as one tuple."""
    if isinstance(vertex, ModuleVertex):
        return (*vertex.args, *vertex.kwargs.values())
    if isinstance(vertex, OperatorVertex):
        return tuple(vertex.args.values())
    return ()


def last_uses(vertices: Iterable[Vertex], output: Any) -> dict[int, list[str]]:
    """When results are needed no more.

    Args:
        vertices: in the order in which they run.
        output: what the graph returns; it is needed to the end.

    Returns:
        Position of a vertex -> names of the vertices whose results no later one reads.
    """
    last: dict[str, int] = {}
    for position, vertex in enumerate(vertices):
        last.update(dict.fromkeys(refs_in(vertex_args(vertex)), position))
    for name in refs_in(output):
        last.pop(name, None)
    found: dict[int, list[str]] = {}
    for name, position in last.items():
        found.setdefault(position, []).append(name)
    return found


def refs_in(arg: Any) -> list[str]:
    """Names of the vertices whose results an argument reads, those of which it reads but a size included."""
    return [value.vertex for value in walk_args(arg) if type(value) is Ref]
