"""Tensors that a graph makes of numbers alone, the same at every call: what is cut of them is picked from the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from torchorbit.arguments import Attr, Collector, Interpreter, Ref, SameDevice, SameDtype
from torchorbit.graph.shapes import called, pick
from torchorbit.graph.vertices import InputVertex, OperatorVertex, refs_in, vertex_args
from torchorbit.operators.table import OPERATORS

if TYPE_CHECKING:
    from torchorbit.orbits.flat import FlatModel

# What is made of constants by these is constant, too: they draw no random numbers, and have no weights.
_FAMILIES = frozenset(
    {"contractions", "copying", "elementwise", "indexing", "joining", "ordering", "reductions", "views"}
)

# Kernels are quicker than what stands for them on meta, where there are few elements.
_DEVICES = (torch.device("cpu"), torch.device("meta"))
_FEW = 1 << 14


class Constants:
    """The vertices of a graph that neither inputs nor parameters decide, and whose sizes are numbers of the model's.

    Args:
        model: the graph.

    Attributes:
        names: the vertices whose results are known in full: they have no labels.
        ends: those of floating point that something else reads. Their channels are labelled as a buffer's are; each is
            still computed in full, and what is kept is picked from it. None of ``names`` reads one of them.
    """

    def __init__(self, model: FlatModel):
        self._model = model
        self._vertices = {vertex.name: vertex for vertex in model.graph.vertices if isinstance(vertex, OperatorVertex)}
        self._known: dict[tuple[str, str], Any] = {}
        found = self._candidates()
        self._all = frozenset(found)
        self.names, self.ends = self._with_ends(found) if found else (frozenset(), frozenset())

    def numbers(self, arg: Ref | Attr) -> NDArray[Any] | None:
        """The values of a constant that holds whole numbers or flags; None where they are not known."""
        if isinstance(arg, Attr) and not self._is_known(arg):
            return None
        if isinstance(arg, Ref) and arg.vertex not in self._all:
            return None
        try:
            value = _Values(self, torch.device("cpu")).value(arg)
        except RuntimeError:  # some of the buffers have no values
            return None
        if not isinstance(value, Tensor) or value.is_meta or value.is_floating_point() or value.is_complex():
            return None
        return value.numpy()

    def value(self, name: str, device: torch.device) -> Any:
        """What a constant vertex gives, on the CPU or on meta."""
        key = (name, device.type)
        if key not in self._known:
            vertex = self._vertices[name]
            row = OPERATORS[vertex.operator]
            args = {key: _Values(self, device).value(arg) for key, arg in vertex.args.items()}
            if row.creates:
                args["device"] = device
            with torch.no_grad():
                self._known[key] = called(row, args)
        return self._known[key]

    def tensor(self, path: str, device: torch.device) -> Tensor:
        """A buffer, on the CPU or on meta."""
        tensor = self._model.tensor_at(path).detach()
        return tensor if tensor.is_meta else tensor.to(device)

    @cached_property
    def _written(self) -> frozenset[str]:
        """Paths of the buffers that the graph writes into."""
        targets = [vertex.args["target"] for vertex in self._vertices.values() if vertex.operator == "assign"]
        return frozenset([arg.path for arg in targets if isinstance(arg, Attr)])

    def _is_known(self, arg: Attr) -> bool:
        """Whether it is a buffer of whole numbers or flags that nothing writes into."""
        tensor = self._model.tensor_at(arg.path)
        return not (
            tensor.requires_grad or tensor.is_floating_point() or tensor.is_complex() or arg.path in self._written
        )

    def _candidates(self) -> dict[str, OperatorVertex]:
        found: dict[str, OperatorVertex] = {}
        for vertex in self._vertices.values():
            row = OPERATORS[vertex.operator]
            if vertex.mode or not (row.creates or row.family in _FAMILIES):
                continue
            if not found and not row.creates and not any(type(arg) is Attr for arg in vertex.args.values()):
                continue
            parts = _Parts()
            parts.value(vertex.args)
            tensors = parts.found
            if parts.decided or (not tensors and not row.creates):
                continue
            if all(arg.vertex in found if isinstance(arg, Ref) else self._is_known(arg) for arg in tensors):
                found[vertex.name] = vertex
        return found

    def _with_ends(self, found: dict[str, OperatorVertex]) -> tuple[frozenset[str], frozenset[str]]:
        """Those of ``found`` that stay constant, and the ends among them.

        What is made of an end is no constant any more: the end has labels.
        """
        names = dict.fromkeys(found)
        holding = {name for name in found if self._has_channels(name)}
        if not holding:
            return frozenset(names), frozenset()
        readers = self._readers(found)
        while True:
            ends = {name for name in names if name in holding and not readers[name] <= names.keys()}
            again = {name for end in ends for name in readers[end] if name in names}
            if not again:
                return frozenset(names.keys() - ends), frozenset(ends)
            while again:
                for name in again:
                    del names[name]
                again = {reader for name in again for reader in readers[name] if reader in names}

    def _readers(self, found: Iterable[str]) -> dict[str, set[str]]:
        """Which vertices read each of some; the empty name is the output's."""
        readers: dict[str, set[str]] = {name: set() for name in found}
        graph = self._model.graph
        calls = [(v.name, vertex_args(v)) for v in graph.vertices if not isinstance(v, InputVertex)]
        for reader, args in [*calls, ("", graph.output)]:
            for name in refs_in(args):
                if name in readers:
                    readers[name].add(reader)
        return readers

    def _has_channels(self, name: str) -> bool:
        """Whether it may hold channels: whole numbers are positions and counts."""
        shape = self._model.graph.shapes.get(name)
        few = isinstance(shape, torch.Size) and math.prod(shape) <= _FEW
        for device in _DEVICES if few else _DEVICES[1:]:
            try:
                value = self.value(name, device)
            except RuntimeError:  # its shape depends on values, or some of the buffers have none
                continue
            return isinstance(value, Tensor) and value.is_floating_point() and max(value.shape, default=1) > 1
        return False


class _Parts(Collector):
    """The tensors that a vertex computes with, and whether inputs decide anything else of it."""

    constant = same_device = same_dtype = Collector.nothing
    decided = False

    def size(self, arg: Any) -> None:
        self.decided = True

    expr = by_mode = size


class _Values(Interpreter):
    """Gives what constant arguments stand for."""

    def __init__(self, constants: Constants, device: torch.device):
        self._constants = constants
        self._device = device

    def ref(self, arg: Ref) -> Any:
        return pick(self._constants.value(arg.vertex, self._device), arg.index)

    def attr(self, arg: Attr) -> Tensor:
        return self._constants.tensor(arg.path, self._device)

    def same_device(self, arg: SameDevice) -> torch.device:
        return self._device

    def same_dtype(self, arg: SameDtype) -> torch.dtype:
        return torch.get_default_dtype()

    def constant(self, arg: Any) -> Any:
        return self._device if isinstance(arg, torch.device) else arg
