"""What the vertices of a graph cost when units of its orbits are removed, without removing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from torchorbit.containers import map_together
from torchorbit.graph.costs import Priced, priced_vertices
from torchorbit.labels import Array, Dim, arrays_of
from torchorbit.operators import Labelled
from torchorbit.orbits.lengths import LengthOf
from torchorbit.orbits.operands import KnownValues, labelled_in
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
        known = [KnownValues(reading) for reading in readings]
        for priced in priced_vertices(model.graph, model.calls):
            name = priced.name
            args = {key: [values.value(arg) for values in known] for key, arg in priced.args.items()}
            args = {key: values for key, values in args.items() if labelled_in(values[0])}
            result = [reading.values[name] for reading in readings]
            for mixing in [mixing for reading in readings for mixing in reading.mixing.get(name, ())]:
                # It works on the full length, with zeros where channels are gone.
                if mixing.argument:
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
                    for tensor in labelled_in(value):
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


def _flops_of(entry: tuple[Priced, dict[str, Any], Any], length: LengthOf) -> float:
    priced, args, result = entry
    return priced.flops(lambda name: _shapes(args.get(name), length), _shapes(result, length))


def _shapes(values: list[Any] | None, length: LengthOf) -> Any:
    """The shape of a value, given what every reading knows of it; containers of shapes for one that holds several."""
    if values is None:
        return None
    if isinstance(values[0], Labelled):
        return shape_of(values, length)
    return map_together(lambda found: shape_of(found, length) if isinstance(found[0], Labelled) else None, values)
