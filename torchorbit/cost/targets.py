"""How much a pruned model may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torchorbit.cost.base import CostFunction, name_of
from torchorbit.cost.counts import FlopsCost, ParametersCost
from torchorbit.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class Target:
    """How much a pruned model may cost, by any measure.

    Attributes:
        cost: what gives the cost of a model.
        limit: what it may be at most.
        relative: whether ``limit`` is a fraction of the whole model's cost.

    Raises:
        ArgumentError: ``limit`` is not a positive number, or relative and not below 1.
        ArgumentTypeError: ``cost`` cannot be called.
    """

    cost: CostFunction
    limit: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not callable(self.cost):
            raise ArgumentTypeError(f"cost={self.cost!r}, expected a function of a model that gives a number")
        if not isinstance(self.limit, (int, float)) or isinstance(self.limit, bool):
            raise ArgumentTypeError(f"{name_of(self.cost)}={self.limit!r}, expected a number")
        if not (self.limit > 0 and math.isfinite(self.limit)) or (self.relative and self.limit >= 1):
            expected = "a fraction of the model's, above 0 and below 1" if self.relative else "a positive number"
            raise ArgumentError(f"{name_of(self.cost)}={self.limit}, expected {expected}")

    @classmethod
    def flops(cls, limit: float) -> Target:
        """FLOPs of one sample: a fraction of the model's where it is below 1, else their number."""
        return cls(FlopsCost(), limit, relative=_below_one(limit))

    @classmethod
    def parameters(cls, limit: float) -> Target:
        """Parameters: a fraction of the model's where it is below 1, else their number."""
        return cls(ParametersCost(), limit, relative=_below_one(limit))

    def __str__(self) -> str:
        share = " of the model's" if self.relative and name_of(self.cost) not in ("flops", "parameters") else ""
        return f"{name_of(self.cost)}={self.limit:g}{share}"


def _below_one(limit: Any) -> bool:
    return isinstance(limit, (int, float)) and not isinstance(limit, bool) and 0 < limit < 1
