"""What a reading of a graph knows of the arguments and results of vertices."""

from __future__ import annotations

from typing import Any

from torchorbit.arguments import Attr, Interpreter, Ref
from torchorbit.containers import leaves_of
from torchorbit.graph.shapes import pick
from torchorbit.operators import Labelled, Reading


class KnownValues(Interpreter):
    """Gives what a reading knows of arguments: `Labelled` for tensors, what is no tensor as it is.

    Args:
        reading: the reading.
    """

    def __init__(self, reading: Reading):
        self.reading = reading

    def ref(self, arg: Ref) -> Any:
        """What is known of the result."""
        value = self.reading.values[arg.vertex]
        return pick(value, arg.index) if arg.index else value

    def attr(self, arg: Attr) -> Labelled:
        """What is known of the parameter or buffer."""
        return self.reading.attributes[arg.path]

    def unread(self, arg: Any) -> Any:
        """A size, a device or a dtype has no labels."""
        return arg

    size = expr = same_device = same_dtype = unread


def value_of(reading: Reading, arg: Any) -> Any:
    """What a reading knows of one argument, see `KnownValues`."""
    return KnownValues(reading).value(arg)


def labelled_in(value: Any) -> list[Labelled]:
    """What is known of the tensors in an argument or a result."""
    return leaves_of(Labelled, value)
