"""A share for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.orbits.matching import Key, orbits_of
from torchorbit.orbits.orbit import Orbit
from torchorbit.pruning.selectors.base import Task, WidthSelector
from torchorbit.pruning.selectors.uniform import closest_width


class Ratios(WidthSelector):
    """Removes the share of units that is given for the layers that produce them.

    An orbit may be produced by many layers, as a residual stream is, and only one share of it can go: a share that is
    given for the orbit itself counts; of several that are given for its layers the least.

    Args:
        ratios: what is meant -> the share of units to remove, from 0 up to but not including 1. A key is an orbit, a
            module of the graph, or a path or pattern of paths (``"layer1.*"``); a module stands for all layers in it.
        default: the share for all other orbits.

    Raises:
        ArgumentError: a share is out of range.
        ArgumentTypeError: a share is no number, or ``ratios`` no dict.
    """

    name: ClassVar[str] = "ratios"
    needs_target: ClassVar[bool] = False

    def __init__(self, ratios: Mapping[Key, float], default: float = 0.0):
        if not isinstance(ratios, Mapping):
            raise ArgumentTypeError(
                f"ratios is a {type(ratios).__name__}, expected a dict of patterns, modules or orbits"
            )
        self.ratios = dict(ratios)
        self.default = default
        for key, ratio in (*self.ratios.items(), ("default", default)):
            what = f"the ratio of {_shown(key)} is {ratio!r}"
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
                raise ArgumentTypeError(f"{what}, expected a number")
            if not 0 <= ratio < 1:
                raise ArgumentError(f"{what}, expected a share from 0 up to but not including 1")

    def widths(self, task: Task) -> Sequence[int]:
        """The width of every orbit.

        Raises:
            ArgumentError: a key means no orbit.
            ArgumentTypeError: a key is no orbit, module or path.
        """
        chosen: dict[int, float] = {}
        for key, ratio in sorted(self.ratios.items(), key=lambda item: (isinstance(item[0], Orbit), -item[1])):
            for orbit in orbits_of(task.orbits, key):
                chosen[orbit.index] = ratio
        return [closest_width(task, index, chosen.get(index, self.default)) for index in range(len(task.orbits))]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.ratios, self.default) == (other.ratios, other.default)

    __hash__ = None  # type: ignore[assignment]


def _shown(key: object) -> str:
    if isinstance(key, (str, Orbit)):
        return repr(key)
    return f"a {type(key).__name__}"
