"""The vertices of the smaller graph: every stored size is recomputed, and what looks at neighbours sees all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from torchorbit.arguments import Expr, Ref, Size, Transformer, map_args
from torchorbit.graph.dag import Graph
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, refs_in, vertex_args
from torchorbit.graph.writing import Writer
from torchorbit.labels import Mask
from torchorbit.operators import KNOWN, Mixing
from torchorbit.operators.labelling import Part
from torchorbit.operators.resizing import Resized, restored, simplified, smaller_shape
from torchorbit.orbits.selection import Selection
from torchorbit.removal.emptying import Emptied
from torchorbit.removal.leaves import Leaves, share_of


class Rewriting:
    """Writes the vertices of a graph from which something is removed.

    Args:
        selection: what is removed.
        leaves: where the numbers that leaf modules keep are noted.
        emptied: what becomes of branches whose orbits lose all units; None where none does.
        adjust_dropout: let dropouts be less probable where there are fewer channels.
    """

    def __init__(self, selection: Selection, leaves: Leaves, emptied: Emptied | None, adjust_dropout: bool):
        assert selection.orbits is not None
        self._selection = selection
        self._orbits = selection.orbits
        self._model = selection.orbits.model
        self._leaves = leaves
        self._emptied = emptied
        self._adjust_dropout = adjust_dropout
        self._writer = Writer(vertex.name for vertex in self._model.graph.vertices)
        self._renamed: dict[str, str] = {}  # vertex name -> name of what its result goes through afterwards
        self._restoring = _Restoring(selection)
        self._sized = self._restoring.value

    def graph(self) -> Graph:
        """The smaller graph."""
        old = self._model.graph
        for vertex in old.vertices:
            if isinstance(vertex, InputVertex):
                self._writer.vertices.append(vertex)
                self._writer.shapes[vertex.name] = old.shapes.get(vertex.name)
            else:
                self._rewrite(vertex)
        vertices, shapes = self._writer.vertices, self._writer.shapes
        output = map_args(self._sized(old.output), self._renamed_value)
        if self._emptied is not None:
            self._emptied.check_output(old.output)
            vertices = _needed(vertices, output)
            shapes = {vertex.name: shapes[vertex.name] for vertex in vertices if vertex.name in shapes}
        return Graph(tuple(vertices), output, shapes)

    def _rewrite(self, vertex: ModuleVertex | OperatorVertex) -> None:
        """Write what takes the place of a vertex, unless it goes."""
        name = vertex.name
        result = self._selection.kept(self._selection.of(name))
        if self._emptied is not None and not self._emptied.runs(vertex, result, partial(self._resized, vertex, result)):
            return
        call = self._resized(vertex, result)
        scatters, selects = self._mixing(vertex, result)
        swapped = {**self._expanded(name), **self._scattered(name, scatters)}
        after = [
            *call.after,
            *[("select_positions", {"dim": axis, "index": _positions(mask)}) for axis, mask in selects],
        ]
        self._writer.vertices.append(self._written(vertex, call, swapped))
        shape = smaller_shape(self._model.graph.shapes.get(name), result)
        full = list(shape) if after else shape
        for axis, mask in selects:
            full[axis] = len(mask)
        self._writer.shapes[name] = torch.Size(full) if after else shape
        for operator, more in after:
            source = self._renamed.get(name, name)
            self._renamed[name] = self._writer.add(
                f"{name}_{operator}", operator, {"input": Ref(source), **more}, shape
            )

    def _expanded(self, name: str) -> dict[Any, Ref]:
        """Make constants as long as what a vertex concatenates them with; returns what takes their places."""
        swapped: dict[Any, Ref] = {}
        for value, constant, sizes in [] if self._emptied is None else self._emptied.expanded(self._model.calls[name]):
            args = {"input": constant, "size": map_args(sizes, self._renamed_value)}
            swapped[value] = Ref(self._writer.add(f"{name}_expand", "expand", args, self._smaller_shape_of(value)))
        return swapped

    def _scattered(self, name: str, scatters: list[tuple[Any, int, Mask]]) -> dict[Any, Ref]:
        """Put operands of a vertex back to their full length; returns what takes their places."""
        swapped: dict[Any, Ref] = {}
        for value, axis, mask in scatters:
            lengths = list(self._smaller_shape_of(value))
            lengths[axis] = len(mask)
            args = {"input": map_args(value, self._renamed_value), "dim": axis, "index": _positions(mask)}
            args["length"] = len(mask)
            swapped[value] = Ref(self._writer.add(f"{name}_scatter", "scatter_positions", args, torch.Size(lengths)))
        return swapped

    def _written(self, vertex: ModuleVertex | OperatorVertex, call: Resized, swapped: dict[Any, Ref]) -> Vertex:
        """A vertex with the numbers of its smaller call, and other values in the place of some."""

        def changed(value: Any) -> Any:
            return swapped[value] if value in swapped else self._renamed_value(value)

        if isinstance(vertex, ModuleVertex):
            positional = map_args(self._sized(vertex.args), changed)
            named = map_args(self._sized(vertex.kwargs), changed)
            target = self._leaves.settle(vertex, call) if vertex.leaf else vertex.target
            return replace(vertex, target=target, args=positional, kwargs=named)
        given = call.args
        if self._emptied is not None:
            given = {key: self._emptied.left(arg, besides=swapped) for key, arg in given.items()}
        args = {key: map_args(arg, changed) for key, arg in given.items()}
        return replace(vertex, operator=call.operator, args=args)

    def _renamed_value(self, value: Any) -> Any:
        """A result under the name of the last vertex that it goes through now."""
        if type(value) is Ref and value.vertex in self._renamed:
            return Ref(self._renamed[value.vertex], value.index)
        return value

    def _smaller_shape_of(self, arg: Any) -> Any:
        """The shape of an argument in the smaller graph."""
        return smaller_shape(self._model.shape_of(arg), self._selection.masks_of(arg))

    def _resized(self, vertex: ModuleVertex | OperatorVertex, result: Any) -> Resized:
        """The call of a vertex with its numbers recomputed."""
        call = self._model.calls[vertex.name]
        restored_axes: dict[str, set[int]] = {}
        for mixing in self._all_mixing(vertex.name):
            restored_axes.setdefault(mixing.argument, set()).add(mixing.axis)
            if isinstance(result, list):
                result = [None if axis == mixing.result_axis else mask for axis, mask in enumerate(result)]

        def masks(name: str) -> Any:
            found = self._selection.masks_of(call.args.get(name))
            gone = restored_axes.get(name, ())
            return [None if axis in gone else mask for axis, mask in enumerate(found)] if gone else found

        def shape(name: str) -> Any:
            return self._model.shape_of(call.args[name])

        recorded = self._model.graph.shapes.get(vertex.name)
        numbers = self._model.constants.numbers
        args = {name: self._sized(arg) for name, arg in call.args.items()}
        folded = partial(self._restoring.smaller, Ref(vertex.name))
        answer = Resized(call.operator, args, recorded, result, masks, shape, numbers, folded)
        row = KNOWN.get(call.operator)
        if row is not None and row.resize is not None:
            row.resize(answer)
        if self._adjust_dropout and isinstance(vertex, OperatorVertex) and row is not None and row.probability:
            probability = call.args.get(row.probability, row.parameters[row.probability])
            answer.args[row.probability] = probability * share_of(answer.masks())
        return answer

    def _all_mixing(self, name: str) -> list[Mixing]:
        found: dict[Mixing, None] = {}
        for reading in self._orbits.readings:
            found.update(dict.fromkeys(reading.mixing.get(name, ())))
        return list(found)

    def _mixing(
        self, vertex: ModuleVertex | OperatorVertex, result: Any
    ) -> tuple[list[tuple[Any, int, Mask]], list[tuple[int, Mask]]]:
        """Which operands have to be put back to their full length, and what to pick from the result."""
        scatters, selects = [], []
        args = self._model.calls[vertex.name].args
        for mixing in self._all_mixing(vertex.name):
            mask = self._selection.masks_of(args[mixing.argument])[mixing.axis] if mixing.argument else None
            if mask is not None:
                scatters.append((args[mixing.argument], mixing.axis, mask))
            if result[mixing.result_axis] is not None:
                selects.append((mixing.result_axis, result[mixing.result_axis]))
        return scatters, selects


class _Restoring(Transformer):
    """Gives arguments in which sizes of dimensions that lose channels are what they were.

    The length of a dimension into which others are folded is the product of theirs, each of which is restored for
    itself.
    """

    def __init__(self, selection: Selection):
        assert selection.orbits is not None
        self._selection = selection
        self._calls = selection.orbits.model.calls

    def size(self, arg: Size) -> Any:
        mask = self._selection.masks_of(arg.value)[arg.dim]
        if mask is None:
            return arg
        parts = self._parts(arg.value, arg.dim)
        if parts is None:
            return restored(arg, mask)
        return _product([self._length(part, part.lengths[0], self.size) for part, _ in parts])

    def smaller(self, value: Ref, axis: int) -> Any:
        """The length that a dimension has, by those that are folded into it; None where none are."""
        parts = self._parts(value, axis)
        if parts is None:
            return None
        kept = [part.lengths[0] if mask is None else int(mask.sum()) for part, mask in parts]
        return _product(
            [self._length(part, number, lambda size: size) for (part, _), number in zip(parts, kept, strict=True)]
        )

    def _parts(self, value: Any, axis: int) -> list[tuple[Part, Mask | None]] | None:
        return self._selection.parts(self._selection.dims_of(value, axis))

    def _length(self, part: Part, number: int, sized: Callable[[Size], Any]) -> Any:
        if not part.free:
            return number
        length = sized(Size(self._calls[part.vertex].args["input"], part.axis))
        return length if part.divisor == 1 else Expr("//", (length, part.divisor))

    def expr(self, arg: Expr) -> Any:
        return simplified(super().expr(arg))


def _product(lengths: list[Any]) -> Any:
    """The product of lengths, of which one is no number."""
    number = math.prod([length for length in lengths if isinstance(length, int)])
    product, *others = [length for length in lengths if not isinstance(length, int)]
    for length in others:
        product = Expr("*", (product, length))
    return product if number == 1 else Expr("*", (product, number))


def _positions(mask: Mask) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _needed(vertices: list[Vertex], output: Any) -> list[Vertex]:
    """The vertices that something is made of that is returned, checked or kept; and the inputs."""
    wanted = set(refs_in(output))
    kept: list[Vertex] = []
    for vertex in reversed(vertices):
        effects = isinstance(vertex, OperatorVertex) and KNOWN[vertex.operator].effect
        if vertex.name in wanted or effects or isinstance(vertex, InputVertex):
            kept.append(vertex)
            wanted.update(refs_in(vertex_args(vertex)))
    return kept[::-1]
