"""Projections that pack several things in one factor, taken apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchorbit.arguments import Attr, Ref, map_args, walk_args
from torchorbit.graph.dag import Graph
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex, refs_in, vertex_args
from torchorbit.graph.writing import Writer

# Vertex and which of its results (None: its only one) -> what takes its place.
_Parts = dict[tuple[str, int | str | None], Ref]


_PASSING = frozenset({"permute", "transpose", "contiguous", "clone"})


def separated(graph: Graph, apart: dict[str, list[str]] | None = None) -> Graph:
    """Take apart what is packed in one factor of a projection, query, key and value say, and picked from it again.

    ``reshape(x, (..., 3, heads, width))``, permuted, and then read only as ``[0]``, ``[1]`` and ``[2]``, makes three
    things one, which could be pruned together only. The exact rewrite is to split ``x`` first and reshape the parts:
    each has a width of its own then.

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
        if isinstance(vertex, OperatorVertex) and vertex.operator == "reshape" and not vertex.mode:
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
    """A reshape that packs several things, the vertices it passes through, and those that pick one of them."""

    reshape: OperatorVertex
    axis: int  # of the input, the one that is split
    place: int  # of the factor in the reshape's result
    ahead: int  # product of the factors before it that come from the same axis
    first: int  # the first factor that comes from that axis, in the reshape's result
    chain: list[OperatorVertex]
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
        args = {key: map_args(arg, change) for key, arg in self.reshape.args.items()}
        source, sizes = args["input"], list(args["shape"])
        source_shape, axis = list(self.input_shape), self.axis
        if self.ahead > 1:
            # The parts alternate: bring them next to each other first.
            first = self.first
            length = self.input_shape[axis]
            row = length // self.ahead
            before = [*sizes[:first], self.ahead, row]
            rest = len(self.input_shape) - axis - 1
            lengths = [*self.shape[:first], self.ahead, row, *self.input_shape[axis + 1 :]]
            before += sizes[len(sizes) - rest :] if rest else []
            source = Ref(add(f"{base}_rows", "reshape", {"input": source, "shape": tuple(before)}, torch.Size(lengths)))
            source_shape, axis = lengths, first + 1
        piece = list(source_shape)
        piece[axis] //= self.count
        pieces = add(
            f"{base}_split",
            "split",
            {"input": source, "split_size_or_sections": piece[axis], "dim": axis},
            tuple([torch.Size(piece)] * self.count),
        )
        sizes.pop(self.place)
        lengths = [length for n, length in enumerate(self.shape) if n != self.place]
        needed = {number for _, number in self.picks if number is not None}
        if any(number is None for _, number in self.picks):
            needed = set(range(self.count))
        made: dict[int, Ref] = {}
        for number in sorted(needed):
            reference = Ref(pieces, (number,))
            name = add(f"{base}_{number}", "reshape", {"input": reference, "shape": tuple(sizes)}, torch.Size(lengths))
            place, shape = self.place, lengths
            for vertex in self.chain:
                chained, place, shape = _without(vertex, place, shape, Ref(name))
                if chained is not None:
                    name = add(f"{vertex.name}_{number}", vertex.operator, chained, torch.Size(shape))
            made[number] = Ref(name)
        for vertex, picked in self.picks:
            if picked is not None:
                parts[vertex.name, None] = made[picked]
            else:
                for position in range(self.count):
                    parts[vertex.name, position] = made[position]
        written = [vertex.name for vertex in writer.vertices[start:]]
        picks = {vertex.name: written if n is None else [made[n].vertex] for vertex, n in self.picks}
        return {**dict.fromkeys(self.gone, written), **picks}


def _without(
    vertex: OperatorVertex, place: int, shape: list[int], source: Ref
) -> tuple[dict[str, Any] | None, int, list[int]]:
    """The arguments of a permutation where the dimension at ``place`` is gone, its new place, and the new shape."""
    rank = len(shape) + 1
    if vertex.operator in ("contiguous", "clone"):
        return {**vertex.args, "input": source}, place, shape
    order = _order(vertex, rank)
    new_place = order.index(place)
    left = [axis - (axis > place) for axis in order if axis != place]
    if left == sorted(left):
        return None, new_place, shape
    return (
        {"input": source, "dims": tuple(left)} if vertex.operator == "permute" else _swap(left, source),
        new_place,
        [shape[axis] for axis in left],
    )


def _swap(order: list[int], source: Ref) -> dict[str, Any]:
    moved = [axis for axis, old in enumerate(order) if axis != old]
    assert len(moved) == 2
    return {"input": source, "dim0": moved[0], "dim1": moved[1]}


def _order(vertex: OperatorVertex, rank: int) -> list[int]:
    if vertex.operator == "permute":
        return [axis % rank for axis in vertex.args["dims"]]
    order = list(range(rank))
    first, second = vertex.args["dim0"], vertex.args["dim1"]
    order[first], order[second] = order[second], order[first]
    return order


def _packed(reshape: OperatorVertex, graph: Graph, users: dict[str, list[Vertex]], outputs: set[str]) -> _Packed | None:
    source = reshape.args["input"]
    if type(source) is Attr or reshape.name in outputs:
        return None
    shape = tuple(graph.shapes[reshape.name])
    chain: list[OperatorVertex] = []
    last = reshape
    orders: list[list[int]] = []
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
        chain.append(only)
        orders.append(
            _order(only, len(shape)) if only.operator in ("permute", "transpose") else list(range(len(shape)))
        )
        last = only
    following = users.get(last.name, [])
    if not following or last.name in outputs:
        return None
    picks: list[tuple[OperatorVertex, int | None]] = []
    axes: set[int] = set()
    for vertex in following:
        picked = _pick_of(vertex, last.name, len(shape))
        if picked is None or (vertex.name in outputs and picked[1] is None):
            return None
        axes.add(picked[0])
        assert isinstance(vertex, OperatorVertex)
        picks.append((vertex, picked[1]))
    if len(axes) != 1:
        return None
    place = axes.pop()
    for order in reversed(orders):
        place = order[place]
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
    first = next(n for n in range(len(shape)) if math.prod(shape[:n]) >= math.prod(before[:axis]))
    return _Packed(reshape, axis, place, ahead, first, chain, picks, before, shape)


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
