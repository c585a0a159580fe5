"""The vertices of a graph one by one, with operands of the size that they have when something is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchorbit.arguments import Attr, ByMode, Ref, walk_args
from torchorbit.graph.calls import Call
from torchorbit.graph.shapes import called, pick
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex
from torchorbit.labels import Dim, arrays_of
from torchorbit.operators import Labelled
from torchorbit.operators.resizing import Resized
from torchorbit.operators.table import OPERATORS
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import Interpreter, random_inputs


@dataclass(frozen=True)
class Isolated:
    """A call of a vertex on its own.

    Attributes:
        signature: what is called, and the shapes and other arguments that its time depends on, in words.
        run: calls it.
    """

    signature: str
    run: Callable[[], Any]


class Walk(Interpreter):
    """Runs a whole graph vertex by vertex, on random inputs of the recorded sizes, and shows each before it runs.

    Args:
        orbits: those of the graph.
        visit: called with every vertex and this walk, while its operands are known.
    """

    def __init__(self, orbits: Orbits, visit: Callable[[Walk, Vertex], None]):
        nothing = Selection({}, orbits.model.dag)
        nothing.adopt(orbits)
        super().__init__(orbits, nothing)
        self.visit = visit

    def start(self) -> None:
        """Run it."""
        args, kwargs = random_inputs(self.model.dag, seed=0)
        with torch.inference_mode():
            self.run(args, kwargs)

    def vertex(self, vertex: Vertex) -> Any:
        """Show a vertex, then run it."""
        self.visit(self, vertex)
        return super().vertex(vertex)

    def touching(self, vertex: Vertex) -> list[tuple[Orbit, ...]]:
        """The orbits that have channels in the operands or the result of a vertex.

        Those that stand in the same dimensions, each of their units as often, come together: what the vertex costs
        depends on how many of them are kept.
        """
        call = self.model.calls[vertex.name]
        if call.operator not in OPERATORS:
            return []
        found: dict[Orbit, list[tuple[int, int]]] = {}
        place = 0
        for values in [self.selection.of(vertex.name), *self._operands(call)]:
            for number, value in enumerate(values):
                for tensor in _labelled(value):
                    for dim in tensor.dims:
                        place += 1
                        for orbit, times in self._in(number, dim):
                            found.setdefault(orbit, []).append((place, times))
        groups: dict[tuple[tuple[int, int], ...], list[Orbit]] = {}
        for orbit in sorted(found, key=lambda orbit: orbit.index):
            groups.setdefault(tuple(found[orbit]), []).append(orbit)
        return [tuple(orbits) for orbits in groups.values()]

    def isolated(self, vertex: Vertex, selection: Selection) -> Isolated:
        """A vertex as it is when something is removed."""
        call = self.model.calls[vertex.name]
        if call.operator not in OPERATORS:
            return self._module(vertex)
        free = {(m.argument, m.axis) for reading in self.orbits.readings for m in reading.mixing.get(vertex.name, ())}

        def masks(name: str) -> Any:
            found = _masks(selection, self._known_of(call.args.get(name)))
            return [None if (name, axis) in free else m for axis, m in enumerate(found)] if found else found

        result = _masks(selection, selection.of(vertex.name))
        if isinstance(result, list):
            spread = {m.result_axis for r in self.orbits.readings for m in r.mixing.get(vertex.name, ())}
            result = [None if axis in spread else mask for axis, mask in enumerate(result)]
        resized = Resized(
            call.operator,
            call.args,
            self.model.graph.shapes.get(vertex.name),
            result,
            masks,
            lambda name: getattr(self.value(call.args[name]), "shape", None),
        )
        resize = OPERATORS[call.operator].resize
        if resize is not None:
            resize(resized)
        args: dict[str, Any] = {}
        for name, arg in resized.args.items():
            gone = {axis for argument, axis in free if argument == name}
            args[name] = self._cut(arg, selection, gone)
        row = OPERATORS[resized.operator]
        return Isolated(_signature(resized.operator, args), lambda: called(row, args))

    def _module(self, vertex: Vertex) -> Isolated:
        """A module that has no operator counts as it is, whatever is removed from it."""
        assert isinstance(vertex, ModuleVertex)
        module = self.model.dag.get_submodule(vertex.target)
        args = tuple([self.value(arg) for arg in vertex.args])
        kwargs = {name: self.value(arg) for name, arg in vertex.kwargs.items()}
        operands = {str(n): arg for n, arg in enumerate(args)} | kwargs | dict(module.named_parameters())
        return Isolated(_signature(self.model.calls[vertex.name].operator, operands), lambda: module(*args, **kwargs))

    def _operands(self, call: Call | OperatorVertex) -> Iterator[list[Any]]:
        """What every reading knows of each tensor among the arguments."""
        for arg in walk_args(list(call.args.values())):
            values = self._known_of(arg)
            if values is not None:
                yield values

    def _known_of(self, arg: Any) -> list[Any] | None:
        if type(arg) is Ref:
            return [pick(value, arg.index) for value in self.selection.of(arg.vertex)]
        if type(arg) is Attr:
            return self.selection.of_tensor(arg.path)
        return self._known_of(arg.evaluation) if type(arg) is ByMode else None

    def _in(self, number: int, dim: Dim) -> Iterator[tuple[Orbit, int]]:
        """The orbits in a dimension, and at how many positions of it each of their units stands."""
        for array in arrays_of(dim):
            owners = self._owners[number][self.orbits.components[number][array]]
            indices, counts = np.unique(owners[owners >= 0], return_counts=True)
            for index, count in zip(indices.tolist(), counts.tolist(), strict=True):
                yield self.orbits[index], count // self.orbits[index].width

    @cached_property
    def _owners(self) -> list[Any]:
        """For each reading, unit -> the index of its orbit, or -1."""
        owners = [np.full(count, -1) for count in self.orbits.counts]
        for orbit in self.orbits:
            owners[orbit.reading][orbit.components] = orbit.index
        return owners

    def _cut(self, arg: Any, selection: Selection, whole: set[int]) -> Any:
        """An argument of which the tensors have lost what is removed, but for some axes."""
        kind = type(arg)
        if kind is Ref or kind is Attr:
            value = self.value(arg)
            masks = _masks(selection, self._known_of(arg))
            if isinstance(value, Tensor) and isinstance(masks, list):
                for axis, mask in enumerate(masks):
                    if mask is not None and axis not in whole and value.shape[axis] == len(mask):
                        value = value.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
            return value
        if kind in (tuple, list):
            return kind([self._cut(item, selection, whole) for item in arg])
        return self.value(arg)


def _masks(selection: Selection, values: list[Any] | None) -> Any:
    """What is kept of the dimensions of a value, or of each in a container."""
    if values is None or values[0] is None:
        return None
    if isinstance(values[0], Labelled):
        return selection.masks(values)
    if isinstance(values[0], dict):
        return {key: _masks(selection, [value[key] for value in values]) for key in values[0]}
    return tuple([_masks(selection, list(items)) for items in zip(*values, strict=True)])


def _labelled(value: Any) -> Iterator[Labelled]:
    for item in pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Labelled)):
        if isinstance(item, Labelled):
            yield item


def _signature(operator: str, args: dict[str, Any]) -> str:
    return f"{operator}({', '.join([f'{name}={_written(arg)}' for name, arg in args.items()])})"


def _written(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.is_contiguous() else "~"  # strided: another path through memory
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{layout}"
    if isinstance(value, (tuple, list, torch.Size)):
        return f"({', '.join(map(_written, value))})"
    return repr(value)
