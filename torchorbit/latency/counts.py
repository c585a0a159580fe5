"""FLOPs and parameters as latencies."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from torchorbit.graph.dag import DagModule
from torchorbit.latency.base import Keep
from torchorbit.orbits.labels import arrays_of
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.counting import flops as count_flops


class FlopsLatency:
    """FLOPs of one sample of the recorded size, two per multiply-accumulate."""

    name = "flops"

    def __call__(self, model: nn.Module, /) -> float:
        """Count those of a graph.

        Raises:
            TypeError: ``model`` is no `DagModule`, and does not know what its input is.
        """
        if not isinstance(model, DagModule):
            raise TypeError(f"this is a {type(model).__name__}, expected a DagModule; torchorbit.convert makes one")
        return count_flops(model).total

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """Those that are left of a graph."""
        return orbits.costs.total(dict(keep))


class ParametersLatency:
    """Number of parameters; one that is used in several places counts once."""

    name = "parameters"

    def __call__(self, model: nn.Module, /) -> float:
        """Count those of a model."""
        return float(sum(parameter.numel() for parameter in model.parameters()))

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """Those that are left of a graph."""
        total = float(sum(parameter.numel() for parameter in orbits.model.dag.parameters()))
        masks = {number: kept[orbits.components[number]] for number, kept in keep.items()}
        seen: set[int] = set()
        for path in orbits.readings[0].attributes:
            tensor = orbits.model.tensor_at(path)
            if path not in orbits.trainable or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            values = [reading.attributes[path] for reading in orbits.readings]
            left = []
            for axis, length in enumerate(tensor.shape):
                kept = np.ones(length, bool)
                for number, value in enumerate(values):
                    for array in arrays_of(value.dims[axis]) if number in masks else ():
                        kept &= masks[number][array]
                left.append(int(kept.sum()))
            total -= tensor.numel() - math.prod(left)
        return total


flops = FlopsLatency()
parameters = ParametersLatency()
