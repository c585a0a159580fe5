"""What a model costs, by whatever measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchorbit.orbits.orbit import Orbits
from torchorbit.orbits.pricing import Term

#: For each reading, for every unit whether it is kept.
Keep = Mapping[int, NDArray[np.bool_]]


class CostFunction(Protocol):
    """Any function of a model that gives a number: seconds, FLOPs, parameters, joules."""

    def __call__(self, model: nn.Module, /) -> float:
        """What a model costs.

        Raises:
            LatencyMeasurementError: it could not be measured this time.
        """
        ...


@runtime_checkable
class PredictedCost(CostFunction, Protocol):
    """One that also knows what is left after a removal without building the model, which is much faster."""

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """What a model would cost of which ``keep`` is kept."""
        ...


@runtime_checkable
class AdditiveCost(PredictedCost, Protocol):
    """One that is a sum of terms that follow from the lengths of dimensions, which is much faster again.

    Selectors then know what thousands of widths would cost at once (`torchorbit.orbits.pricing`).
    """

    def terms(self, orbits: Orbits, /) -> Sequence[Term]:
        """The terms, each a function of what gives the lengths of dimensions by their labels."""
        ...


def name_of(latency: Any) -> str:
    """What a latency is called in messages and model cards."""
    return str(getattr(latency, "name", None) or getattr(latency, "__name__", None) or type(latency).__name__)
