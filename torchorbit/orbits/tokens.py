"""Learned tokens: registers, queries and the like, which are held by parameters and are no channels of any layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from torchorbit.operators import KNOWN, OPERATORS, Labelled, Reading
from torchorbit.orbits.operands import labelled_in, value_of

if TYPE_CHECKING:
    from torchorbit.orbits.orbit import Orbit, Orbits


def is_of_tokens(orbit: Orbit) -> bool:
    """Whether no layer makes or takes the channels of an orbit, and no parameter that holds them is one of weights."""
    if orbit.sources or orbit.sinks:
        return False
    orbits = orbit.orbits
    reading = orbits.readings[orbit.reading]
    weights = orbits.weights[orbit.reading]
    return all(id(reading.attributes[piece.tensor].dims[piece.dim]) not in weights for piece in orbit.slices)


def weights_of(orbits: Orbits, reading: Reading) -> set[int]:
    """Ids of the labels of parameters by which something is multiplied as by the weights of a layer."""
    owners = {
        id(dim): value for value in reading.attributes.values() for dim in value.dims if isinstance(dim, np.ndarray)
    }
    found: set[int] = set()
    for tensor in _multiplied(orbits, reading):
        dims = [id(dim) for dim in tensor.dims if isinstance(dim, np.ndarray)]
        of = {id(owners.get(dim)): owners.get(dim) for dim in dims}
        # It is a parameter itself, seen in other dimensions perhaps, and nothing that was made of one.
        if len(of) == 1 and all(value and math.prod(value.shape) == math.prod(tensor.shape) for value in of.values()):
            found.update(dims)
    return found


def _multiplied(orbits: Orbits, reading: Reading) -> Iterator[Labelled]:
    """The operands of products whose weights have no name of their own, and of modules that are kept whole."""
    for call in orbits.model.calls.values():
        row = KNOWN.get(call.operator)
        product = row is not None and row.contraction is not None and not row.sinks
        if (product and call.operator != "scaled_dot_product_attention") or call.operator not in OPERATORS:
            yield from labelled_in(value_of(reading, call.args))
