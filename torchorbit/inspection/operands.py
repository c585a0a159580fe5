"""The tensors among the arguments of a vertex."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchorbit.graph.vertices import Attr, ByMode, Ref


def tensors_in(arg: Any) -> Iterator[Ref | Attr]:
    """The results and attributes in an argument that a vertex computes with; of sizes and devices there are none."""
    if isinstance(arg, (Ref, Attr)):
        yield arg
    elif isinstance(arg, ByMode):
        yield from tensors_in((arg.training, arg.evaluation))
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from tensors_in(item)
    elif isinstance(arg, dict):
        yield from tensors_in(tuple(arg.values()))
    elif isinstance(arg, slice):
        yield from tensors_in((arg.start, arg.stop, arg.step))
