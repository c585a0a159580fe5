"""The vertices of a graph one by one, with operands of the size that they have when something is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchorbit.arguments import Attr, Expr, Interpreter, Ref, SameDevice, SameDtype, Size, walk_args
from torchorbit.graph.calls import Call
from torchorbit.graph.shapes import called
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex
from torchorbit.labels import Dim, arrays_of
from torchorbit.operators.resizing import Resized
from torchorbit.operators.table import OPERATORS
from torchorbit.orbits.operands import labelled_in
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import MaskedInterpreter, random_inputs


@dataclass(frozen=True)
class Isolated:
    """A call of a vertex on its own.

    Attributes:
        signature: what is called, and the shapes and other arguments that its time depends on, in words.
        run: calls it.
    """

    signature: str
    run: Callable[[], Any]


class Walk(MaskedInterpreter):
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
                for tensor in labelled_in(value):
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
            found = selection.kept(self.selection.known(call.args.get(name)))
            return [None if (name, axis) in free else m for axis, m in enumerate(found)] if found else found

        result = selection.kept(selection.of(vertex.name))
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
            self.model.constants.numbers,
        )
        resize = OPERATORS[call.operator].resize
        if resize is not None:
            resize(resized)
        args: dict[str, Any] = {}
        for name, arg in resized.args.items():
            gone = {axis for argument, axis in free if argument == name}
            args[name] = _Smaller(self, selection, gone).value(arg)
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
            values = self.selection.known(arg)
            if values is not None:
                yield values

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


class _Smaller(Interpreter):
    """Gives arguments of which the tensors have lost what is removed; sizes and the like are those of whole tensors.

    Args:
        walk: runs the whole graph, and is where the vertex is called.
        selection: what is removed.
        whole: axes along which nothing is.
    """

    def __init__(self, walk: Walk, selection: Selection, whole: set[int]):
        self.walk = walk
        self.selection = selection
        self.whole = whole

    def tensor(self, arg: Ref | Attr) -> Any:
        """The result or attribute, with what is left along every axis."""
        value = self.walk.value(arg)
        masks = self.selection.kept(self.walk.selection.known(arg))
        if isinstance(value, Tensor) and isinstance(masks, list):
            for axis, mask in enumerate(masks):
                if mask is not None and axis not in self.whole and value.shape[axis] == len(mask):
                    value = value.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
        return value

    ref = attr = tensor

    def of_whole(self, arg: Size | Expr | SameDevice | SameDtype) -> Any:
        """What it is of the tensor in the whole graph."""
        return self.walk.value(arg)

    size = expr = same_device = same_dtype = of_whole


def _signature(operator: str, args: dict[str, Any]) -> str:
    return f"{operator}({', '.join([f'{name}={_written(arg)}' for name, arg in args.items()])})"


def _written(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "" if value.is_contiguous() else "~"  # strided: another path through memory
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{layout}"
    if isinstance(value, (tuple, list, torch.Size)):
        return f"({', '.join(map(_written, value))})"
    return repr(value)
