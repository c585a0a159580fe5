"""Which widths an orbit may be pruned to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchorbit.orbits.orbit import Orbit


class Constraint(ABC):
    """Says which widths an orbit may have."""

    @abstractmethod
    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """The widths that an orbit may have.

        Returns:
            Ascending, from at least 1 to ``orbit.width``, which is always among them.
        """


@dataclass(frozen=True)
class Bounds(Constraint):
    """A least width, and steps.

    Attributes:
        least: an orbit keeps so many units, or all where it has fewer.
        least_share: it keeps this share of its units, rounded up.
        round_to: numbers of channels are multiples of this, where an orbit is wide enough. Whole heads and groups are
            not rounded.

    Raises:
        ValueError: a number is out of range.
        TypeError: ``least`` or ``round_to`` is no whole number.
    """

    least: int = 1
    least_share: float = 0.0
    round_to: int = 1

    def __post_init__(self) -> None:
        for name in ("least", "round_to"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"{name}={value!r}, expected a whole number of channels")
            if value < 1:
                raise ValueError(f"{name}={value}, expected a positive number of channels")
        if not 0 <= self.least_share <= 1:
            raise ValueError(f"least_share={self.least_share}, expected a share from 0 to 1")

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """Multiples of ``round_to`` (of one for heads and groups) from the least width on, and the whole width."""
        step = self.round_to if orbit.reading == 0 else 1
        least = max(self.least, int(np.ceil(self.least_share * orbit.width - 1e-9)))
        first = -(-least // step) * step
        return np.unique(np.append(np.arange(first, orbit.width, step), orbit.width))
