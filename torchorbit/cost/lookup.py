"""Latencies looked up: the times of single operators at a grid of widths, and what lies between."""

from __future__ import annotations

import bisect
import itertools
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from torchorbit.cost.base import CostFunction, Keep
from torchorbit.cost.measured import limited_threads, timed
from torchorbit.errors import ArgumentError, ArgumentTypeError, LatencyMeasurementError, LookupTableError
from torchorbit.files import replace_text
from torchorbit.graph.dag import DagModule
from torchorbit.graph.vertices import Vertex
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection

Array = NDArray[np.float64]
#: Calls a function as often as it takes, and gives the seconds of one call.
Measure = Callable[[Callable[[], Any]], float]

_FORMAT = "torchorbit-latency-table"
_MOST_POINTS = 125  # of a grid; where many orbits meet in one operator, it has fewer levels


@dataclass(frozen=True)
class Seconds:
    """The median time of single operators.

    Attributes:
        warm_up: calls that are not counted.
        repeats: calls that are.
        threads: so many of torch's threads; None leaves their number as it is.
    """

    warm_up: int = 3
    repeats: int = 15
    threads: int | None = 1

    def __call__(self, function: Callable[[], Any], /) -> float:
        """Measure one."""
        synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else None
        with limited_threads(self.threads):
            (times,) = timed([function], warm_up=self.warm_up, repeats=self.repeats, synchronize=synchronize)
        return statistics.median(times)


@dataclass(frozen=True)
class _Grid:
    """What the vertices on some orbits cost together.

    Attributes:
        axes: orbits that are scaled together, an axis each.
        units: for every axis the numbers of kept units at its points, ascending.
        seconds: at every point.
    """

    axes: tuple[tuple[Orbit, ...], ...]
    units: tuple[tuple[int, ...], ...]
    seconds: Array

    def at(self, kept: Sequence[int]) -> float:
        """The time for how many units each orbit of the graph keeps; it goes on linearly beyond the points."""
        values: Any = self.seconds
        for axis, units in zip(self.axes, self.units, strict=True):
            place = sum([kept[orbit.index] for orbit in axis])
            n = min(max(bisect.bisect_right(units, place) - 1, 0), len(units) - 2)
            part = (place - units[n]) / (units[n + 1] - units[n])
            values = values[n] * (1 - part) + values[n + 1] * part
        return max(float(values), 0.0)


class LookupTable:
    """Predicts seconds of a forward as the sum of those of its operators (as FBNet, Wu et al., 2019, and others do).

    Every vertex of a graph is run alone, on operands of the sizes that it has when the orbits that it touches keep some
    of their units: at a grid of widths, between which times are interpolated linearly. What was measured is kept under
    what was called with which shapes, so that equal layers are measured once, in one graph or several. It is measured
    when it is first asked for, or ahead with `measure`. Modules kept whole and recurrent layers count as they are at
    their full width.

    Args:
        levels: shares of the units of an orbit at which operators are measured; 0 stands for a single unit.
        seconds: what was measured before: signature of a call -> seconds.
        measure: gives the seconds of a call (by default `Seconds`, on one thread); None measures nothing, and what is
            not in the table is an error.

    Raises:
        ArgumentError: ``levels`` are not ascending shares that end with 1.
    """

    name: ClassVar[str] = "seconds by table"

    def __init__(
        self,
        levels: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        seconds: dict[str, float] | None = None,
        measure: Measure | None = Seconds(),
    ):
        self.levels = tuple(map(float, levels))
        if len(self.levels) < 2 or self.levels[-1] != 1 or self.levels[0] < 0 or (np.diff(self.levels) <= 0).any():
            raise ArgumentError(f"levels={tuple(levels)}, expected ascending shares from 0 on, the last of them 1")
        self.seconds = dict(seconds or {})
        self.measure_call = measure
        self._grids: WeakKeyDictionary[Orbits, tuple[float, list[_Grid]]] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, /) -> float:
        """The sum of the times of a graph's operators, without interpolation.

        Raises:
            ArgumentTypeError: ``model`` is no `DagModule`.
            LatencyMeasurementError: an operator fails, or was not measured and may not be.
        """
        from torchorbit.cost.isolated import Walk
        from torchorbit.orbits.discovery import find_orbits

        if not isinstance(model, DagModule):
            raise ArgumentTypeError(
                f"this is a {type(model).__name__}, expected a DagModule; torchorbit.convert makes one"
            )
        orbits = find_orbits(model)
        total = 0.0

        def visit(walk: Walk, vertex: Vertex) -> None:
            nonlocal total
            call = walk.isolated(vertex, walk.selection)
            total += self._seconds(call.signature, call.run, vertex)

        _start(Walk(orbits, visit))
        return total

    def predicted(self, orbits: Orbits, keep: Keep, /) -> float:
        """Seconds of a forward of what ``keep`` leaves.

        Raises:
            LatencyMeasurementError: an operator fails, or was not measured and may not be.
        """
        kept = [
            orbit.width if orbit.reading not in keep else int(keep[orbit.reading][orbit.components].sum())
            for orbit in orbits
        ]
        constant, grids = self._of(orbits)
        return constant + sum(grid.at(kept) for grid in grids)

    def measure(self, orbits: Orbits, *, verbose: bool = True) -> None:
        """Measure all that predictions for a graph need, as far as it is not known.

        Args:
            orbits: those of the graph.
            verbose: whether to show a progress bar.

        Raises:
            LatencyMeasurementError: an operator fails.
        """
        self._of(orbits, verbose=verbose)

    def _of(self, orbits: Orbits, verbose: bool = False) -> tuple[float, list[_Grid]]:
        found = self._grids.get(orbits)
        if found is None:
            found = self._grids[orbits] = self._measured(orbits, verbose)
        return found

    def _measured(self, orbits: Orbits, verbose: bool) -> tuple[float, list[_Grid]]:
        from torchorbit.cost.isolated import Walk

        constant = 0.0
        sums: dict[tuple[tuple[Orbit, ...], ...], _Grid] = {}
        selections: dict[tuple[Any, ...], Selection] = {}

        def visit(walk: Walk, vertex: Vertex) -> None:
            nonlocal constant
            bar.update()
            axes = tuple(walk.touching(vertex))
            if 2 ** len(axes) > _MOST_POINTS:  # not even the ends of every axis: they are scaled together
                axes = (tuple([orbit for axis in axes for orbit in axis]),)
            places = [[_kept(axis, level) for level in levels] for axis, levels in self._levels(axes)]
            shape = [len(points) for points in places]
            seconds = np.zeros(shape)
            for place in itertools.product(*map(range, shape)):
                widths = {
                    orbit: width
                    for points, n in zip(places, place, strict=True)
                    for orbit, width in points[n].items()
                    if width < orbit.width
                }
                key = tuple(sorted([(orbit.index, width) for orbit, width in widths.items()]))
                if key not in selections:
                    gone = {orbit: range(width, orbit.width) for orbit, width in widths.items()}
                    selections[key] = Selection(gone, orbits.model.dag)
                    if not gone:
                        selections[key].adopt(orbits)
                call = walk.isolated(vertex, selections[key])
                seconds[place] = self._seconds(call.signature, call.run, vertex)
            if not axes:
                constant += float(seconds)
                return
            units = tuple([tuple([sum(point.values()) for point in points]) for points in places])
            before = sums.get(axes)
            sums[axes] = _Grid(axes, units, seconds if before is None else before.seconds + seconds)

        with tqdm(total=len(orbits.model.calls), desc="operators", disable=not verbose) as bar:
            _start(Walk(orbits, visit))
        return constant, list(sums.values())

    def _levels(self, axes: Sequence[tuple[Orbit, ...]]) -> list[tuple[tuple[Orbit, ...], list[float]]]:
        """The levels of every axis, without those that would be the same widths again."""
        found = []
        count = len(self.levels)
        while count > 2 and count ** len(axes) > _MOST_POINTS:
            count -= 1
        chosen = [self.levels[round(n)] for n in np.linspace(0, len(self.levels) - 1, count)]
        for axis in axes:
            seen: dict[int, float] = {}
            for level in chosen:
                seen[sum(_kept(axis, level).values())] = level
            found.append((axis, list(seen.values())))
        return found

    def _seconds(self, signature: str, run: Callable[[], Any], vertex: Vertex) -> float:
        known = self.seconds.get(signature)
        if known is None:
            if self.measure_call is None:
                raise LatencyMeasurementError(
                    f"vertex '{vertex.name}': the table has no time of {signature:.300}; let it measure, or take the "
                    "table of a graph with these sizes"
                )
            try:
                known = self.seconds[signature] = float(self.measure_call(run))
            except Exception as error:
                raise LatencyMeasurementError(
                    f"vertex '{vertex.name}' fails when it runs alone, {signature:.300}: {error}"
                ) from error
        return known

    def check(self, orbits: Orbits, actual: CostFunction, *, models: int = 8, seed: int = 0) -> LookupCheck:
        """Compare predictions with measurements of models that are really pruned.

        Args:
            orbits: those of the graph.
            actual: measures the pruned models.
            models: how many to compare: the whole one first, then some with random widths.
            seed: of the widths.

        Raises:
            ArgumentError: fewer than two are asked for.
            LatencyMeasurementError: something fails, or was not measured and may not be.
        """
        from torchorbit.removal.cutting import remove_channels

        if models < 2:
            raise ArgumentError(f"models={models}, expected at least 2 to compare")
        rng = np.random.default_rng(seed)
        dag = orbits.model.dag
        predicted, measured = [], []
        for number in range(models):
            share = rng.uniform(0.1, 1.0)
            removed: dict[Orbit, Any] = {}
            for orbit in orbits if number else ():
                width = int(np.clip(round(orbit.width * share * rng.uniform(0.6, 1.4)), 1, orbit.width))
                removed[orbit] = np.sort(rng.permutation(orbit.width)[width:])
            keep = {n: np.ones(count, bool) for n, count in enumerate(orbits.counts)}
            for orbit, positions in removed.items():
                keep[orbit.reading][orbit.components[positions]] = False
            predicted.append(self.predicted(orbits, keep))
            measured.append(float(actual(remove_channels(dag, removed) if removed else dag)))
        return LookupCheck(np.array(predicted), np.array(measured))

    def save(self, path: str | Path) -> None:
        """Write the table as JSON; a file that is there is replaced in one step."""
        document = {
            "format": _FORMAT,
            "version": 1,
            "machine": platform.machine(),
            "torch": torch.__version__,
            "levels": list(self.levels),
            "seconds": self.seconds,
        }
        replace_text(Path(path), json.dumps(document, indent=1))

    @classmethod
    def load(cls, path: str | Path, *, measure: Measure | None = None) -> LookupTable:
        """Read a table that `save` wrote.

        Args:
            path: the file.
            measure: as for the table; None, for it may be of another machine.

        Raises:
            OSError: there is no such file.
            LookupTableError: it holds no table.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            if document["format"] != _FORMAT or document["version"] != 1:
                raise LookupTableError(f"'{path}' holds {document['format']} version {document['version']}, expected 1")
            seconds = {str(key): float(value) for key, value in document["seconds"].items()}
            return cls(document["levels"], seconds=seconds, measure=measure)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LookupTableError(f"'{path}' holds no table that `LookupTable.save` wrote: {error}") from None


@dataclass(frozen=True)
class LookupCheck:
    """How far predictions of a table are off.

    Attributes:
        predicted: seconds by the table.
        measured: seconds measured, of the same models; the whole one first.
    """

    predicted: Array
    measured: Array
    ratio: float = field(init=False)
    error: float = field(init=False)
    rank_correlation: float = field(init=False)

    def __post_init__(self) -> None:
        from scipy.stats import spearmanr  # takes long to import

        ratios = self.predicted / self.measured
        object.__setattr__(self, "ratio", float(np.median(ratios)))
        object.__setattr__(self, "error", float(np.abs(ratios / np.median(ratios) - 1).mean()))
        object.__setattr__(self, "rank_correlation", float(spearmanr(self.predicted, self.measured).statistic))

    def __str__(self) -> str:
        rows = [(p * 1e3, m * 1e3, p / m) for p, m in zip(self.predicted, self.measured, strict=True)]
        table = tabulate(rows, headers=("predicted, ms", "measured, ms", "predicted / measured"), floatfmt=".3f")
        return (
            f"{table}\nmedian ratio {self.ratio:.3f}, mean error after dividing by it {self.error:.1%}, "
            f"rank correlation {self.rank_correlation:.3f}"
        )


def _kept(axis: Sequence[Orbit], level: float) -> dict[Orbit, int]:
    """How many units each orbit of an axis keeps at a level."""
    return {orbit: max(1, round(level * orbit.width)) for orbit in axis}


def _start(walk: Any) -> None:
    try:
        walk.start()
    except LatencyMeasurementError:
        raise
    except Exception as error:
        raise LatencyMeasurementError(f"the graph does not run on random inputs: {error}") from error
