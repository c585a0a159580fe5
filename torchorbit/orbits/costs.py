"""What the vertices of a graph cost when units of its orbits are removed, without removing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from torchorbit.arguments import Attr, ByMode, Ref
from torchorbit.graph.costs import Priced, priced_vertices
from torchorbit.graph.shapes import pick
from torchorbit.labels import Array, Dim, arrays_of
from torchorbit.operators import Labelled, Reading
from torchorbit.orbits.lengths import LengthOf
from torchorbit.orbits.pricing import Term

if TYPE_CHECKING:
    from torchorbit.orbits.orbit import Orbits


class Costs:
    """FLOPs of every vertex, for what is kept.

    Args:
        orbits: those of a graph.
    """

    def __init__(self, orbits: Orbits):
        self.orbits = orbits
        model, readings = orbits.model, orbits.readings
        self.vertices: list[tuple[Priced, dict[str, Any], Any]] = []
        for priced in priced_vertices(model.graph, model.calls):
            name = priced.name
            args = {key: [value_of(reading, arg) for reading in readings] for key, arg in priced.args.items()}
            args = {key: values for key, values in args.items() if _holds_tensor(values[0])}
            result = [reading.values[name] for reading in readings]
            for mixing in [mixing for reading in readings for mixing in reading.mixing.get(name, ())]:
                # It works on the full length, with zeros where channels are gone.
                args[mixing.argument] = [_unlabelled(value, mixing.axis) for value in args[mixing.argument]]
                result = [_unlabelled(value, mixing.result_axis) for value in result]
            self.vertices.append((priced, args, result))

    def total(self, keep: dict[int, Any] | None = None) -> float:
        """FLOPs of one sample; ``keep`` says for readings which units are kept, by their numbers."""
        return sum(self.each(keep).values())

    def each(self, keep: dict[int, Any] | None = None) -> dict[str, float]:
        """FLOPs of one sample, for every vertex that costs any."""
        length = kept_lengths(self.orbits, keep or {})
        return {entry[0].name: _flops_of(entry, length) for entry in self.vertices}

    def terms(self) -> list[Term]:
        """FLOPs of one sample of every vertex, as functions of lengths."""
        return [partial(_flops_of, entry) for entry in self.vertices]

    def labels(self) -> Iterator[tuple[str, list[tuple[int, Array]]]]:
        """Every vertex that costs anything, with the label arrays of its operands and its result, by reading."""
        for priced, args, result in self.vertices:
            found = []
            for number in range(len(self.orbits.readings)):
                for value in [*[values[number] for values in args.values()], result[number]]:
                    for tensor in _tensors_in(value):
                        found += [(number, array) for dim in tensor.dims for array in arrays_of(dim)]
            yield priced.name, found


def kept_lengths(orbits: Orbits, keep: Mapping[int, Any]) -> LengthOf:
    """Lengths of dimensions; ``keep`` says for readings which units are kept, by their numbers."""
    masks = {number: kept[orbits.components[number]] for number, kept in keep.items()}
    known: dict[tuple[int, ...], int] = {}

    def length_of(dims: list[Dim], length: int) -> int:
        key = tuple([id(dim) for dim in dims])
        found = known.get(key)
        if found is None:
            kept: Any = None
            for number, dim in enumerate(dims):
                for array in arrays_of(dim) if number in masks else ():
                    mask = masks[number][array]
                    kept = mask if kept is None else kept & mask
            found = length if kept is None else int(np.count_nonzero(kept))
            if kept is not None:
                known[key] = found
        return found

    return length_of


def shape_of(values: list[Labelled], length: LengthOf) -> tuple[int, ...]:
    """The shape of a tensor, given what every reading knows of it."""
    return tuple([length([value.dims[axis] for value in values], n) for axis, n in enumerate(values[0].shape)])


def _unlabelled(value: Labelled, axis: int) -> Labelled:
    return Labelled(value.shape, [None if n == axis else dim for n, dim in enumerate(value.dims)])


def value_of(reading: Reading, arg: Any) -> Any:
    """What a reading knows of an argument of a vertex: `Labelled`, or tuples of that; None where it is no tensor."""
    kind = type(arg)
    if kind is Ref:
        return pick(reading.values[arg.vertex], arg.index)
    if kind is Attr:
        return reading.attributes[arg.path]
    if kind is ByMode:
        return value_of(reading, arg.evaluation)
    if kind in (tuple, list):
        return tuple([value_of(reading, item) for item in arg])
    return None


def _tensors_in(value: Any) -> Iterator[Labelled]:
    if isinstance(value, Labelled):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors_in(item)


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Labelled) or (isinstance(value, tuple) and any(map(_holds_tensor, value)))


def _flops_of(entry: tuple[Priced, dict[str, Any], Any], length: LengthOf) -> float:
    priced, args, result = entry
    return priced.flops(lambda name: _shapes(args.get(name), length), _shapes(result, length))


def _shapes(values: list[Any] | None, length: LengthOf) -> Any:
    if values is None or values[0] is None:
        return None
    if isinstance(values[0], tuple):
        return tuple([_shapes(list(items), length) for items in zip(*values, strict=True)])
    return shape_of(values, length)
