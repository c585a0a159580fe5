"""Write the vertices of a graph one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchorbit.graph import codegen
from torchorbit.graph.vertices import OperatorVertex, Vertex


class Writer:
    """Vertices in the order in which they are written, under names that no other has.

    Args:
        taken: names of vertices that are there already, or are still to come.

    Attributes:
        vertices: what was written.
        shapes: vertex name -> the shape of its result, where that is known.
    """

    def __init__(self, taken: Iterable[str] = ()):
        self.vertices: list[Vertex] = []
        self.shapes: dict[str, Any] = {}
        self._taken = set(taken)

    def free_name(self, wanted: str) -> str:
        """A name that no vertex has; the next call gives another one."""
        name, count = wanted, 0
        while name in self._taken or not codegen.is_valid_name(name):
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def add(self, wanted: str, operator: str, args: dict[str, Any], shape: Any) -> str:
        """Write a call of an operator; returns the name of its vertex."""
        name = self.free_name(wanted)
        self.vertices.append(OperatorVertex(name, operator, args))
        self.shapes[name] = shape
        return name
