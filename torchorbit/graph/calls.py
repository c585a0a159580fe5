"""What a vertex calls, written one way: an operator of the table and its arguments by name.

A ``Conv2d`` vertex and a vertex of the operator ``conv2d`` compute the same thing. Whoever asks what a vertex does to
its operands (orbits, FLOPs, the proof of a removal) asks here, and needs one answer for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchorbit.arguments import Attr
from torchorbit.errors import GraphRunError, TorchorbitError
from torchorbit.graph.vertices import InputVertex, Mode, ModuleVertex, OperatorVertex, Vertex
from torchorbit.operators.table import LEAVES


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Make a `GraphRunError` of what is raised by looks at a graph that runs and makes no sense.

    A graph may come from a file, and say of its calls what no model would: a dimension that is not there, a stride of
    0 where nothing moves.

    Args:
        what: was looked for.

    Raises:
        GraphRunError: something was raised that is no `TorchorbitError`.
    """
    try:
        yield
    except TorchorbitError:
        raise
    except Exception as error:
        raise GraphRunError("", f"{what} cannot be found: {type(error).__name__}: {error}") from error


@dataclass(slots=True)
class Call:
    """An operator with its arguments.

    Attributes:
        operator: its name in the table of operators; for a module kept whole, the qualified name of its class.
        args: arguments by name, as in vertices; parameters and buffers of a leaf module are `Attr`.
        mode: in which mode it is made; in both where it is empty.
    """

    operator: str
    args: dict[str, Any]
    mode: Mode = ""


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a module itself; None where it has none of that name."""
    for members in (module._parameters, module._buffers):
        if name in members:
            return members[name]
    found = getattr(module, name, None)  # a view that a recurrent layer keeps of itself
    return found if isinstance(found, Tensor) else None


def call_of(vertex: Vertex, module_at: Callable[[str], nn.Module]) -> Call | OperatorVertex | None:
    """What a vertex calls.

    Args:
        vertex: any vertex of a graph without nested blocks.
        module_at: gives the submodule at a path.

    Returns:
        The call; None for an input. A vertex of an operator is its own call. A leaf that has no operator, and a module
        that is kept whole, is a call of its class: its positional arguments are named by their position, and every
        parameter and buffer of it is an argument under its own name.
    """
    if isinstance(vertex, OperatorVertex):
        return vertex
    if isinstance(vertex, InputVertex):
        return None
    module = module_at(vertex.target)
    leaf = LEAVES.get(vertex.leaf)
    if leaf is None or not leaf.operator:
        return _whole(vertex, module)
    args: dict[str, Any] = dict(zip(leaf.inputs, vertex.args, strict=False))
    args.update(vertex.kwargs)
    for name in leaf.tensors:
        if tensor_of(module, name) is not None:
            args[name] = Attr(f"{vertex.target}.{name}")
    for argument, attribute in leaf.values:
        args[argument] = getattr(module, attribute)
    args.update(leaf.fixed)
    return Call(leaf.operator, args, vertex.mode)


def _whole(vertex: ModuleVertex, module: nn.Module) -> Call:
    args: dict[str, Any] = {str(position): arg for position, arg in enumerate(vertex.args)}
    args.update(vertex.kwargs)
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        args[name] = Attr(f"{vertex.target}.{name}")
    kind = type(module)
    return Call(vertex.leaf or f"{kind.__module__}.{kind.__qualname__}", args, vertex.mode)
