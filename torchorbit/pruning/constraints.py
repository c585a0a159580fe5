"""Which widths an orbit may be pruned to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.orbits.matching import Key, orbits_of
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.describing import describe


class Constraint(ABC):
    """Says which widths an orbit may have.

    Attributes:
        name: what it is called in model cards.
    """

    name: ClassVar[str]

    @abstractmethod
    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """The widths that an orbit may have.

        Returns:
            Ascending, from at least 1 to ``orbit.width``, which is always among them.
        """

    def __str__(self) -> str:
        """Its name, and the options that are not as by default."""
        return str(describe(self))


def _require_number(name: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name}={value!r}, expected a whole number of channels")
    if value < least:
        raise ArgumentError(f"{name}={value}, expected a {'positive number' if least else 'number'} of channels")


def _require_share(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name}={value!r}, expected a share from 0 to 1")
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name}={value}, expected a share from 0 to 1")


@dataclass(frozen=True)
class Bounds(Constraint):
    """A smallest width, and steps.

    Attributes:
        min_width: an orbit keeps so many channels, or all where it has fewer. Of whole heads and groups, which are few,
            one is enough.
        min_share: it keeps this share of its units, rounded up; of heads and groups, too.
        round_to: numbers of channels are multiples of this, where an orbit is wide enough. Whole heads and groups are
            not rounded.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: ``min_width`` or ``round_to`` is no whole number.
    """

    min_width: int = 1
    min_share: float = 0.0
    round_to: int = 1

    name: ClassVar[str] = "bounds"

    def __post_init__(self) -> None:
        for name in ("min_width", "round_to"):
            _require_number(name, getattr(self, name), 1)
        _require_share("min_share", self.min_share)

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """Multiples of ``round_to`` (of one for heads and groups) from the smallest width on, and the whole width."""
        step, smallest = (self.round_to, self.min_width) if orbit.reading == 0 else (1, 1)
        smallest = max(smallest, int(np.ceil(self.min_share * orbit.width - 1e-9)))
        first = -(-smallest // step) * step
        return np.unique(np.append(np.arange(first, orbit.width, step), orbit.width))


class Whole(Constraint):
    """Keeps all units of some orbits; of others it keeps what another constraint says.

    Args:
        inner: the other constraint.
        untouched: whether an orbit is one of those.
    """

    name: ClassVar[str] = "whole"

    def __init__(self, inner: Constraint, untouched: Callable[[Orbit], bool]):
        self._inner = inner
        self._untouched = untouched

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """The whole width, or what the other constraint says."""
        return np.array([orbit.width], np.int64) if self._untouched(orbit) else self._inner.widths(orbit)


@dataclass(frozen=True)
class EnotBounds(Constraint):
    """The constraint that ENOT's search uses by default (``DefaultChannelsSelectorConstraint``).

    The number of channels that are removed is a multiple of a step, and so many stay as the larger of two least
    numbers says. Whole heads and groups are few: of them only the share stays, at least one, and the step is 1.

    Attributes:
        absolute_min_channels: an orbit keeps so many channels, or all where it has fewer.
        relative_min_channels: it keeps this share of its units, rounded down.
        fixed_step: the step; None takes 1 where an orbit has up to 64 channels, and 4 where it has more.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: a number of channels is no whole number.
    """

    absolute_min_channels: int = 16
    relative_min_channels: float = 0.25
    fixed_step: int | None = None

    name: ClassVar[str] = "enot_bounds"

    def __post_init__(self) -> None:
        _require_number("absolute_min_channels", self.absolute_min_channels, 0)
        _require_share("relative_min_channels", self.relative_min_channels)
        if self.fixed_step is not None:
            _require_number("fixed_step", self.fixed_step, 1)

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """The whole width, less multiples of the step."""
        share = int(self.relative_min_channels * orbit.width)
        if orbit.reading == 0:
            least, step = max(self.absolute_min_channels, share), self.fixed_step or (4 if orbit.width > 64 else 1)
        else:
            least, step = share, 1
        return np.arange(orbit.width, min(max(least, 1), orbit.width) - 1, -step, dtype=np.int64)[::-1]


_ANY_WIDTH = Bounds()


class Overrides(Constraint):
    """Other constraints for some orbits.

    Args:
        constraints: what is meant -> its constraint. A key is an orbit, a module, or a path or pattern of paths, and
            means every orbit whose channels are produced there. Of several that mean an orbit, one that is the orbit
            itself counts, else the last.
        default: for all others; any width from 1 on.

    Raises:
        ArgumentTypeError: something is no constraint.
    """

    name: ClassVar[str] = "overrides"

    def __init__(self, constraints: Mapping[Key, Constraint], default: Constraint = _ANY_WIDTH):
        self.constraints = dict(constraints)
        self.default = default
        for value in (*self.constraints.values(), self.default):
            if not isinstance(value, Constraint):
                raise ArgumentTypeError(f"{value!r} is no Constraint; give Bounds(...), or a subclass of Constraint")
        self._known: WeakKeyDictionary[Orbits, dict[int, Constraint]] = WeakKeyDictionary()

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        """Those that the orbit's own constraint allows.

        Raises:
            ArgumentError: a key means no orbit.
            ArgumentTypeError: a key is no orbit, module or path.
        """
        orbits = orbit.orbits
        if orbits not in self._known:
            keys = sorted(self.constraints, key=lambda key: isinstance(key, Orbit))
            self._known[orbits] = {
                found.index: self.constraints[key] for key in keys for found in orbits_of(orbits, key)
            }
        return self._known[orbits].get(orbit.index, self.default).widths(orbit)

    def __eq__(self, other: object) -> bool:
        # The order counts: of several keys that mean an orbit, the last does.
        return type(other) is type(self) and (list(self.constraints.items()), self.default) == (
            list(other.constraints.items()),
            other.default,
        )

    __hash__ = None  # type: ignore[assignment]


#: What is known by name. Whoever adds a constraint adds it here.
CONSTRAINTS: dict[str, type[Constraint]] = {
    constraint.name: constraint for constraint in (Bounds, EnotBounds, Overrides)
}
