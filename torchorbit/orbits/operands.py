"""The tensors among the arguments and results of vertices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchorbit.arguments import Attr, ByMode, Ref
from torchorbit.operators import Labelled


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


def labelled_in(value: Any) -> Iterator[Labelled]:
    """What is known of the tensors in a result."""
    if isinstance(value, Labelled):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from labelled_in(item)
    elif isinstance(value, dict):
        yield from labelled_in(tuple(value.values()))
