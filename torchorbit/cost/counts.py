"""FLOPs and parameters as costs that a target may limit."""

from __future__ import annotations

import math
from functools import partial

from torch import nn

from torchorbit.cost.base import Keep
from torchorbit.cost.counting import flops
from torchorbit.errors import ArgumentTypeError
from torchorbit.graph.dag import DagModule
from torchorbit.operators import Labelled
from torchorbit.orbits.costs import kept_lengths, shape_of
from torchorbit.orbits.lengths import LengthOf
from torchorbit.orbits.orbit import Orbits
from torchorbit.orbits.pricing import Term


class FlopsCost:
    """FLOPs of one sample of the recorded size, two per multiply-accumulate."""

    name = "flops"

    def __call__(self, model: nn.Module, /) -> float:
        """Count those of a graph.

        Raises:
            ArgumentTypeError: ``model`` is no `DagModule`, and does not know what its input is.
        """
        if not isinstance(model, DagModule):
            raise ArgumentTypeError(
                f"this is a {type(model).__name__}, expected a DagModule; torchorbit.convert makes one"
            )
        return flops(model).total

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """Those that are left of a graph."""
        return orbits.costs.total(dict(keep))

    def terms(self, orbits: Orbits, /) -> list[Term]:
        """Those of every vertex."""
        return orbits.costs.terms()


class ParametersCost:
    """Number of parameters; one that is used in several places counts once."""

    name = "parameters"

    def __call__(self, model: nn.Module, /) -> float:
        """Count those of a model."""
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """Those that are left of a graph."""
        length = kept_lengths(orbits, keep)
        return sum(term(length) for term in self.terms(orbits))

    def terms(self, orbits: Orbits, /) -> list[Term]:
        """Those of every tensor."""
        read: dict[int, list[Labelled]] = {}
        for path in orbits.readings[0].attributes:
            if path in orbits.trainable:
                values = [reading.attributes[path] for reading in orbits.readings]
                read.setdefault(id(orbits.model.tensor_at(path)), values)
        unread = sum(tensor.numel() for tensor in orbits.model.dag.parameters() if id(tensor) not in read)
        return [partial(_numbers, values) for values in read.values()] + [lambda length: float(unread)]


def _numbers(values: list[Labelled], length: LengthOf) -> float:
    return float(math.prod(shape_of(values, length)))
