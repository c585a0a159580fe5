"""How much goes in which step, when a model is pruned in several."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.constraints import Constraint
from torchorbit.pruning.scores import Scores
from torchorbit.pruning.selectors import Global, Selector, Task, Uniform
from torchorbit.pruning.targets import Target

_LONGEST = 200  # of what a selector says of itself


class Schedule:
    """Comes down to a target in steps of equal size.

    Args:
        selector: chooses what goes.
        target: of the last step; None where the selector itself says how much goes.
        steps: how many there are.

    Raises:
        TypeError: ``steps`` is no whole number.
        ValueError: it is not positive; or the selector says how much goes in a way that cannot be divided.
    """

    def __init__(self, selector: Selector, target: Target | None, steps: int):
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(f"steps={steps!r}, expected a whole number")
        if steps < 1:
            raise ValueError(f"steps={steps}, expected a positive number")
        if target is None and steps > 1 and not isinstance(selector, (Uniform, Global)):
            raise ValueError(
                f"steps={steps}: the selector {selector} has no target that could be come down to in steps"
            )
        self.steps = steps
        self._selector = selector
        self._target = target
        self._whole: float | None = None  # cost of the model before the first step
        self._units = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, self.steps + 1))

    @property
    def asked(self) -> str:
        """What was asked for, as in ``"flops=0.5"``."""
        if self._target is not None:
            said = str(self._target)
        else:
            said = str(self._selector).partition("(")[2].removesuffix(")") or "left to the selector"
            said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."
        return f"{said} in {self.steps} steps" if self.steps > 1 else said

    def target(self, step: int, scores: Scores) -> Target | None:
        """What the model may cost after a step.

        Args:
            step: from 1 on.
            scores: of the model before it.
        """
        if self._target is None or self.steps == 1:
            return self._target
        if self._whole is None:
            task = Task(scores, target=self._target)
            self._whole = task.cost(task.most)
        limit = self._target.limit * self._whole if self._target.relative else self._target.limit
        left = self._whole - (self._whole - min(limit, self._whole)) * step / self.steps
        return dataclasses.replace(self._target, limit=left, relative=False)

    def selector(self, step: int, orbits: Orbits) -> Selector:
        """What chooses in a step, among the units that are left then."""
        if self._target is not None or self.steps == 1:
            return self._selector
        if isinstance(self._selector, Uniform):
            ratio = self._selector.ratio or 0.0
            before, after = 1 - ratio * (step - 1) / self.steps, 1 - ratio * step / self.steps
            return dataclasses.replace(self._selector, ratio=1 - after / before)
        assert isinstance(self._selector, Global)
        amount: Any = self._selector.n_channels_or_ratio
        if step == 1:
            self._units = orbits.units
        wanted = round(amount * self._units) if amount < 1 else int(amount)
        gone = wanted * (step - 1) // self.steps
        return dataclasses.replace(self._selector, n_channels_or_ratio=wanted * step // self.steps - gone)


def relative_to(original: Orbits, constraint: Constraint) -> Constraint:
    """The same constraint on what is left of some orbits, whose shares are shares of what there was."""
    return _OfOriginal(original, constraint)


class _OfOriginal(Constraint):
    def __init__(self, original: Orbits, constraint: Constraint):
        self.orbits = original
        self.constraint = constraint
        self.known = _by_place(original)
        self.now: dict[int, dict[Orbit, Orbit]] = {}

    def widths(self, orbit: Orbit) -> NDArray[np.int64]:
        before = self.before(orbit)
        allowed = np.asarray(self.constraint.widths(before), np.int64)
        return np.unique(np.append(allowed[allowed < orbit.width], orbit.width))

    def before(self, orbit: Orbit) -> Orbit:
        """What an orbit was in the original; itself where that cannot be told."""
        if orbit in self.orbits:
            return orbit
        present = orbit._orbits
        pairs = self.now.get(id(present))
        if pairs is None:
            pairs = self.now[id(present)] = {}
            for place, orbits in _by_place(present).items():
                earlier = self.known.get(place, [])
                if len(earlier) == len(orbits):
                    pairs.update(zip(orbits, earlier, strict=True))
        return pairs.get(orbit, orbit)


def _by_place(orbits: Orbits) -> dict[tuple[int, frozenset[tuple[str, int]]], list[Orbit]]:
    """The orbits by what they own slices of."""
    found: dict[tuple[int, frozenset[tuple[str, int]]], list[Orbit]] = defaultdict(list)
    for orbit in orbits:
        found[orbit.reading, frozenset((piece.tensor, piece.dim) for piece in orbit.slices)].append(orbit)
    return found
