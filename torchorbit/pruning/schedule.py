"""How much goes in which step, when a model is pruned in several."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from torchorbit.cost.targets import Target
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.constraints import Constraint
from torchorbit.pruning.selectors import Global, Selector, Task, Uniform
from torchorbit.pruning.selectors.base import WidthSelector


class Schedule:
    """Comes down to a target in steps of equal size.

    Every step is measured from the model before the first one, so that what a step could not remove (of an orbit that
    is too narrow, or whose channels go eight at a time) goes in a later one.

    Args:
        selector: chooses what goes.
        target: of the last step; None where the selector itself says how much goes.
        steps: how many there are.

    Raises:
        ArgumentTypeError: ``steps`` is no whole number.
        ArgumentError: it is not positive; or the selector says how much goes in a way that cannot be divided.
    """

    def __init__(self, selector: Selector, target: Target | None, steps: int):
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise ArgumentTypeError(f"steps={steps!r}, expected a whole number")
        if steps < 1:
            raise ArgumentError(f"steps={steps}, expected a positive number")
        if target is None and steps > 1 and not isinstance(selector, (Uniform, Global)):
            raise ArgumentError(
                f"steps={steps}: the selector {selector} has no target that could be come down to in steps"
            )
        self.steps = steps
        self.overall_selector = selector
        self.overall_target = target
        self._whole = self._limit = 0.0  # what the model costs before the first step, and may after the last
        self._wanted = self._gone = 0  # units that go in all, and that went until now

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, self.steps + 1))

    def begin(self, task: Task) -> None:
        """Look at the whole model, so that what cannot be reached is refused before anything goes.

        Args:
            task: with the target of the last step.

        Raises:
            TargetError: it cannot be reached.
        """
        if self.steps == 1:
            return
        if self._by_number:
            most = sum(task.full_widths)
            self._wanted = most - sum(self.overall_selector.widths(task))  # type: ignore[attr-defined]
        elif self.overall_target is not None:
            self._whole = task.cost(task.full_widths)
            self._limit = min(task.limit, self._whole)

    @property
    def _by_number(self) -> bool:
        return isinstance(self.overall_selector, Global) and self.overall_selector.n_channels_or_ratio is not None

    def target(self, step: int) -> Target | None:
        """What the model may cost after a step, from 1 on."""
        if self.overall_target is None or self.steps == 1 or self._by_number:
            return self.overall_target
        left = self._whole - (self._whole - self._limit) * (step / self.steps)
        limit = self._limit if step == self.steps else left
        return dataclasses.replace(self.overall_target, limit=limit, relative=False)

    def selector(self, step: int, original: Original) -> Selector:
        """What chooses in a step, among the units that are left then."""
        if self.steps == 1:
            return self.overall_selector
        if isinstance(self.overall_selector, Uniform) and self.overall_selector.ratio is not None:
            return _ShareOfOriginal(original.width, self.overall_selector.ratio * (step / self.steps))
        if self._by_number:
            number: Any = self._wanted * step // self.steps - self._gone
            return dataclasses.replace(self.overall_selector, n_channels_or_ratio=number)  # type: ignore[type-var]
        return self.overall_selector

    def record_removed(self, units: int) -> None:
        """Note how many units a step removed."""
        self._gone += units


class _ShareOfOriginal(WidthSelector):
    """Widths that are closest to those of the original without a share of their units."""

    name = Uniform.name
    needs_target = False

    def __init__(self, width: Callable[[Orbit], int], ratio: float):
        self.width = width
        self.ratio = ratio

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit."""
        return [
            int(task.allowed[orbit][np.argmin(np.abs(task.allowed[orbit] - self.width(orbit) * (1 - self.ratio)))])
            for orbit in task.orbits
        ]


class Original:
    """The orbits of a model before the first step, and what is left of them in later ones.

    Args:
        orbits: those before the first step.
    """

    def __init__(self, orbits: Orbits):
        self.orbits = orbits
        self._known = _by_place(orbits)
        self._pairs: WeakKeyDictionary[Orbits, dict[int, Orbit]] = WeakKeyDictionary()

    def before(self, orbit: Orbit) -> Orbit:
        """What an orbit was in the original; itself where that cannot be told."""
        present = orbit.orbits
        if present is self.orbits:
            return orbit
        pairs = self._pairs.get(present)
        if pairs is None:
            pairs = self._pairs[present] = {}
            for place, orbits in _by_place(present).items():
                earlier = self._known.get(place, [])
                if len(earlier) == len(orbits):
                    pairs.update(zip([found.index for found in orbits], earlier, strict=True))
        return pairs.get(orbit.index, orbit)

    def width(self, orbit: Orbit) -> int:
        """How wide an orbit was."""
        return self.before(orbit).width

    def relative(self, constraint: Constraint) -> Constraint:
        """The same constraint on what is left, whose shares are shares of what there was."""
        return _OfOriginal(self, constraint)


class _OfOriginal(Constraint):
    def __init__(self, original: Original, constraint: Constraint):
        self.original = original
        self.constraint = constraint

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        allowed = np.asarray(self.constraint.widths(self.original.before(orbit)), np.int64)
        return np.unique(np.append(allowed[allowed < orbit.width], orbit.width))


def _by_place(orbits: Orbits) -> dict[tuple[int, frozenset[tuple[str, int]]], list[Orbit]]:
    """The orbits by what they own slices of."""
    found: dict[tuple[int, frozenset[tuple[str, int]]], list[Orbit]] = defaultdict(list)
    for orbit in orbits:
        found[orbit.reading, frozenset((piece.tensor, piece.dim) for piece in orbit.slices)].append(orbit)
    return found
