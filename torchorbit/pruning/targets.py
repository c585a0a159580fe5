"""How much a pruned model may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torchorbit import latency as latencies
from torchorbit.errors import TorchorbitError
from torchorbit.latency import Latency, name_of


@dataclass(frozen=True)
class Target:
    """How much a pruned model may cost, by any measure.

    Attributes:
        latency: what gives the cost of a model.
        limit: what it may be at most.
        relative: whether ``limit`` is a fraction of the whole model's cost.

    Raises:
        ValueError: ``limit`` is not a positive number, or relative and not below 1.
        TypeError: ``latency`` cannot be called.
    """

    latency: Latency
    limit: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not callable(self.latency):
            raise TypeError(f"latency={self.latency!r}, expected a function of a model that gives a number")
        if not isinstance(self.limit, (int, float)) or isinstance(self.limit, bool):
            raise TypeError(f"{name_of(self.latency)}={self.limit!r}, expected a number")
        if not (self.limit > 0 and math.isfinite(self.limit)) or (self.relative and self.limit >= 1):
            expected = "a fraction of the model's, above 0 and below 1" if self.relative else "a positive number"
            raise ValueError(f"{name_of(self.latency)}={self.limit}, expected {expected}")

    @classmethod
    def flops(cls, limit: float) -> Target:
        """FLOPs of one sample: a fraction of the model's where it is below 1, else their number."""
        return cls(latencies.flops, limit, relative=_below_one(limit))

    @classmethod
    def parameters(cls, limit: float) -> Target:
        """Parameters: a fraction of the model's where it is below 1, else their number."""
        return cls(latencies.parameters, limit, relative=_below_one(limit))

    def __str__(self) -> str:
        share = " of the model's" if self.relative and name_of(self.latency) not in ("flops", "parameters") else ""
        return f"{name_of(self.latency)}={self.limit:g}{share}"


class TargetError(TorchorbitError, ValueError):
    """A target cannot be reached.

    Attributes:
        least: the least cost that can be.
    """

    def __init__(self, message: str, least: float):
        self.least = least
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (*self.args, self.least))


def _below_one(limit: Any) -> bool:
    return isinstance(limit, (int, float)) and not isinstance(limit, bool) and 0 < limit < 1
