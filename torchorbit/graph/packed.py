"""Projections that pack several things in one factor, taken apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchorbit.arguments import Expr, Ref, Size, map_args, walk_args
from torchorbit.graph.dag import Graph
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex, refs_in, vertex_args
from torchorbit.graph.writing import Writer

# Vertex and which of its results (None: its only one) -> what takes its place.
_Parts = dict[tuple[str, int | str | None], Ref]


_PASSING = frozenset({"permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone"})
_SPLITTING = frozenset({"reshape", "unflatten"})
# The layers and operators of which the length of a result's last dimension is a number of the model's.
_LINEAR = frozenset({"Linear", "linear"})


def separated(graph: Graph, apart: dict[str, list[str]] | None = None) -> Graph:
    """Take apart what is packed in one factor of a projection, query, key and value say, and picked from it again.

    ``reshape(x, (..., 3, heads, width))`` or ``unflatten``, permuted, and then read only as ``[0]``, ``[1]`` and
    ``[2]``, makes three things one, which could be pruned together only. The exact rewrite is to split ``x`` first and
    reshape the parts: each has a width of its own then.

    Args:
        graph: a graph without nested blocks.
        apart: where to note the vertices that are gone, with the names of those that take their place.
    """
    users: dict[str, list[Vertex]] = {}
    for vertex in graph.vertices:
        for arg in walk_args(vertex_args(vertex)):
            if type(arg) is Ref:
                users.setdefault(arg.vertex, []).append(vertex)
    kept_names = set(refs_in(graph.output))
    found: dict[str, _Packed] = {}
    for vertex in graph.vertices:
        if isinstance(vertex, OperatorVertex) and vertex.operator in _SPLITTING and not vertex.mode:
            packed = _packed(vertex, graph, users, kept_names)
            if packed is not None:
                found[vertex.name] = packed
    if not found:
        return graph
    gone = {name for packed in found.values() for name in packed.gone}
    writer = Writer(vertex.name for vertex in graph.vertices)
    writer.shapes.update(graph.shapes)
    parts: _Parts = {}

    def change(value: Any) -> Any:
        if type(value) is Ref:
            whole = parts.get((value.vertex, None))
            if whole is not None:
                return Ref(whole.vertex, value.index)
            part = parts.get((value.vertex, value.index[0])) if value.index else None
            if part is not None:
                return Ref(part.vertex, value.index[1:])
        return value

    for vertex in graph.vertices:
        if vertex.name in found:
            made = found[vertex.name].write(writer, parts, change)
            if apart is not None:
                apart.update(made)
        if vertex.name in gone:
            continue
        if isinstance(vertex, OperatorVertex):
            args = {key: map_args(arg, change) for key, arg in vertex.args.items()}
            vertex = replace(vertex, args=args)
        elif isinstance(vertex, ModuleVertex):
            positional, named = map_args(vertex.args, change), map_args(vertex.kwargs, change)
            vertex = replace(vertex, args=positional, kwargs=named)
        writer.vertices.append(vertex)
    return Graph(tuple(writer.vertices), map_args(graph.output, change), writer.shapes)


@dataclass(slots=True)
class _Packed:
    """A reshape that packs several things, the vertices it passes through, and those that pick one of them.

    Attributes:
        reshape: the vertex.
        sizes: what the dimensions of its result are, as its arguments say it.
        axis: the dimension of its input that is split.
        place: the factor, as a dimension of its result.
        ahead: product of the factors before it that come from the same dimension.
        first: the first factor that comes from that dimension.
        fixed: whether that dimension is of a length that no input decides.
        chain: the vertices between the reshape and what picks from it.
        moved: what these make of the dimensions of the reshape's result; None for a new one of length one.
        picks: the vertices that pick, and what.
        input_shape: shape of the reshape's input.
        shape: shape of its result.
    """

    reshape: OperatorVertex
    sizes: list[Any]
    axis: int
    place: int
    ahead: int
    first: int
    fixed: bool
    chain: list[OperatorVertex]
    moved: list[int | None]
    picks: list[tuple[OperatorVertex, int | None]]
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def gone(self) -> list[str]:
        return [self.reshape.name, *[v.name for v in self.chain], *[v.name for v, _ in self.picks]]

    @property
    def count(self) -> int:
        return self.shape[self.place]

    def write(self, writer: Writer, parts: _Parts, change: Any) -> dict[str, list[str]]:
        """Write what takes the place of its vertices; returns the names of that for each of them."""
        add, start = writer.add, len(writer.vertices)
        base = self.reshape.name
        source = map_args(self.reshape.args["input"], change)
        sizes = map_args(self.sizes, change)
        source_shape, axis = list(self.input_shape), self.axis
        if self.ahead > 1:
            # The parts alternate: bring them next to each other first.
            first = self.first
            row = self._part_of(source, axis, self.input_shape[axis], self.ahead)
            before = [*sizes[:first], self.ahead, row]
            rest = len(self.input_shape) - axis - 1
            lengths = [*self.shape[:first], self.ahead, self.input_shape[axis] // self.ahead]
            lengths += self.input_shape[axis + 1 :]
            before += sizes[len(sizes) - rest :] if rest else []
            source = Ref(add(f"{base}_rows", "reshape", {"input": source, "shape": tuple(before)}, torch.Size(lengths)))
            source_shape, axis = lengths, first + 1
        size = self._part_of(source, axis, source_shape[axis], self.count)
        piece = list(source_shape)
        piece[axis] //= self.count
        pieces = add(
            f"{base}_split",
            "split",
            {"input": source, "split_size_or_sections": size, "dim": axis},
            tuple([torch.Size(piece)] * self.count),
        )
        needed = {number for _, number in self.picks if number is not None}
        if any(number is None for _, number in self.picks):
            needed = set(range(self.count))
        made = {number: self._piece(writer, Ref(pieces, (number,)), sizes, number) for number in sorted(needed)}
        for vertex, picked in self.picks:
            if picked is not None:
                parts[vertex.name, None] = made[picked]
            else:
                for position in range(self.count):
                    parts[vertex.name, position] = made[position]
        written = [vertex.name for vertex in writer.vertices[start:]]
        picks = {vertex.name: written if n is None else [made[n].vertex] for vertex, n in self.picks}
        return {**dict.fromkeys(self.gone, written), **picks}

    def _part_of(self, source: Any, axis: int, length: int, parts: int) -> Any:
        """The length of an equal part of a dimension, which follows its length where inputs decide that."""
        return length // parts if self.fixed else Expr("//", (Size(source, axis), parts))

    def _piece(self, writer: Writer, piece: Ref, sizes: list[Any], number: int) -> Ref:
        """Write one of the things that were packed; returns it."""
        name = self.reshape.name
        sizes = [size for axis, size in enumerate(sizes) if axis != self.place]
        shape = [length for axis, length in enumerate(self.shape) if axis != self.place]
        name = writer.add(f"{name}_{number}", "reshape", {"input": piece, "shape": tuple(sizes)}, torch.Size(shape))
        moved = [axis - (axis > self.place) if axis is not None else None for axis in self.moved if axis != self.place]
        order = [axis for axis in moved if axis is not None]
        last = self.chain[-1].name if self.chain else name
        if order != sorted(order):
            shape = [shape[axis] for axis in order]
            how = _reordered(order, Ref(name))
            name = writer.add(f"{last}_{number}", "permute" if "dims" in how else "transpose", how, torch.Size(shape))
        for axis in [axis for axis, old in enumerate(moved) if old is None]:
            shape = [*shape[:axis], 1, *shape[axis:]]
            args = {"input": Ref(name), "dim": axis}
            name = writer.add(f"{last}_{number}_unsqueeze", "unsqueeze", args, torch.Size(shape))
        if order != sorted(order) and any(vertex.operator in ("contiguous", "clone") for vertex in self.chain):
            name = writer.add(f"{last}_{number}_contiguous", "contiguous", {"input": Ref(name)}, torch.Size(shape))
        return Ref(name)


def _reordered(order: list[int], source: Ref) -> dict[str, Any]:
    """The arguments of a transposition, or else of a permutation."""
    moved = [axis for axis, old in enumerate(order) if axis != old]
    if len(moved) == 2:
        return {"input": source, "dim0": moved[0], "dim1": moved[1]}
    return {"input": source, "dims": tuple(order)}


def _passed(vertex: OperatorVertex, dims: list[int | None]) -> list[int | None] | None:
    """What a vertex that looks at the same elements makes of dimensions; None where it is not sure."""
    rank, args = len(dims), vertex.args
    if vertex.operator == "permute":
        return [dims[axis % rank] for axis in args["dims"]]
    if vertex.operator == "transpose":
        first, second = args["dim0"], args["dim1"]
        dims = list(dims)
        dims[first], dims[second] = dims[second], dims[first]
    elif vertex.operator == "unsqueeze":
        place = args["dim"] % (rank + 1)
        dims = [*dims[:place], None, *dims[place:]]
    elif vertex.operator == "squeeze":
        if not isinstance(args.get("dim"), int) or dims[args["dim"]] is not None:
            return None
        place = args["dim"] % rank
        dims = [*dims[:place], *dims[place + 1 :]]
    return dims


def _packed(reshape: OperatorVertex, graph: Graph, users: dict[str, list[Vertex]], outputs: set[str]) -> _Packed | None:
    source = reshape.args["input"]
    if type(source) is not Ref or reshape.name in outputs:
        return None
    shape = tuple(graph.shapes[reshape.name])
    chain: list[OperatorVertex] = []
    last = reshape
    moved: list[int | None] = list(range(len(shape)))
    while True:
        following = users.get(last.name, [])
        if len(following) != 1 or last.name in outputs:
            break
        only = following[0]
        if (
            not isinstance(only, OperatorVertex)
            or only.operator not in _PASSING
            or only.args.get("input") != Ref(last.name)
        ):
            break
        passed = _passed(only, moved)
        if passed is None:
            break
        chain.append(only)
        moved = passed
        last = only
    following = users.get(last.name, [])
    if not following or last.name in outputs:
        return None
    picks: list[tuple[OperatorVertex, int | None]] = []
    axes: set[int] = set()
    for vertex in following:
        picked = _pick_of(vertex, last.name, len(moved))
        if picked is None or (vertex.name in outputs and picked[1] is None):
            return None
        axes.add(picked[0])
        assert isinstance(vertex, OperatorVertex)
        picks.append((vertex, picked[1]))
    place = moved[axes.pop()] if len(axes) == 1 else None
    if place is None:
        return None
    count = shape[place]
    if any(number is not None and not -count <= number < count for _, number in picks):
        return None
    picks = [(vertex, number if number is None else number % count) for vertex, number in picks]
    before = tuple(pick(graph.shapes[source.vertex], source.index))
    split = _split_axis(before, shape, place)
    if split is None or count < 2:
        return None
    axis, ahead, behind = split
    rest = len(before) - axis - 1
    if behind < 2 or (ahead > 1 and rest and shape[-rest:] != before[-rest:]):
        return None
    first = place
    while math.prod(shape[first:place]) < ahead:
        first -= 1
    sizes = _sizes(reshape, source, len(before))
    # How many things are packed, and in how many runs, has to be a number of the model's.
    if not all(type(size) is int and size > 0 for size in sizes[first : place + 1]):
        return None
    fixed = all(type(size) is int and size > 0 for size in sizes[first : len(sizes) - rest])
    fixed = fixed or (not rest and _is_linear(source.vertex, graph))
    return _Packed(reshape, sizes, axis, place, ahead, first, fixed, chain, moved, picks, before, shape)


def _is_linear(name: str, graph: Graph) -> bool:
    """Whether a vertex gives as many features as a weight has rows."""
    vertex = next(vertex for vertex in graph.vertices if vertex.name == name)
    called = vertex.leaf if isinstance(vertex, ModuleVertex) else getattr(vertex, "operator", "")
    return called in _LINEAR


def _sizes(reshape: OperatorVertex, source: Ref, rank: int) -> list[Any]:
    """The sizes that a reshape, or an ``unflatten``, gives the dimensions of its result."""
    if reshape.operator == "reshape":
        return list(reshape.args["shape"])
    axis = reshape.args["dim"] % rank
    lengths: list[Any] = [Size(source, n) for n in range(rank)]
    return [*lengths[:axis], *reshape.args["sizes"], *lengths[axis + 1 :]]


def _pick_of(vertex: Vertex, name: str, rank: int) -> tuple[int, int | None] | None:
    """The dimension from which a vertex picks, and which it picks; None for all of them, one by one."""
    if not isinstance(vertex, OperatorVertex) or vertex.args.get("input") != Ref(name) or vertex.mode:
        return None
    if vertex.operator == "unbind":
        return vertex.args.get("dim", 0) % rank, None
    if vertex.operator == "select" and isinstance(vertex.args["index"], int):
        return vertex.args["dim"] % rank, vertex.args["index"]
    if vertex.operator != "getitem":
        return None
    index = vertex.args["index"]
    entries = list(index) if isinstance(index, tuple) else [index]
    numbers = [entry for entry in entries if isinstance(entry, int) and not isinstance(entry, bool)]
    if len(numbers) != 1 or any(
        entry != slice(None) and entry is not Ellipsis for entry in entries if not isinstance(entry, int)
    ):
        return None
    if Ellipsis in entries:
        place = entries.index(Ellipsis)
        entries[place : place + 1] = [slice(None)] * (rank - len(entries) + 1)
    return entries.index(numbers[0]), numbers[0]


def _split_axis(before: tuple[int, ...], after: tuple[int, ...], place: int) -> tuple[int, int, int] | None:
    """The one dimension of ``before`` that a dimension of ``after`` is a factor of, and the factors around it."""
    start = 1
    for length in after[:place]:
        start *= length
    end = start * after[place]
    product = 1
    for axis, length in enumerate(before):
        following = product * length
        if product <= start and end <= following:
            if start % product or following % end:
                return None
            return axis, start // product, following // end
        product = following
    return None
