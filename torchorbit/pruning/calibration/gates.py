"""Gates: where the channels of orbits are looked at, and where they can be switched off.

A gate stands between a value and the vertices that consume it: convolutions, linear layers, matrix products. What is
seen there has gone through normalization and activation. All gates of a unit together are all of its effect: with
zeros there the rest of the model sees nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchorbit.arguments import Attr, ByMode, Ref
from torchorbit.errors import ArgumentError
from torchorbit.graph.calls import Call
from torchorbit.graph.vertices import InputVertex, OperatorVertex
from torchorbit.labels import Dim, arrays_of
from torchorbit.operators import KNOWN, Labelled
from torchorbit.operators.sums import Meeting, Operand, contracted, reduced
from torchorbit.orbits.operands import value_of
from torchorbit.orbits.orbit import Orbit, Orbits, TensorDimension
from torchorbit.pruning.criteria.base import Place

Units = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class View:
    """One dimension of a value, and whose channels they are.

    Attributes:
        axis: the dimension.
        units: for every position of it (at the recorded size) the number of its unit among the units of all orbits; -1
            where there is none.
    """

    axis: int
    units: Units


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value stands in the arguments of a vertex: by name, and by position where that argument is a list."""

    vertex: str
    argument: str
    item: int = -1


@dataclass(frozen=True, slots=True)
class Gate:
    """A value at which units are looked at.

    Attributes:
        value: what it is in the graph: a `Ref`, an `Attr`, or a `ByMode` of these.
        slots: where the gate's result takes its place; None for everywhere.
        views: the dimensions in which it has units.
    """

    value: Any
    slots: tuple[Slot, ...] | None
    views: tuple[View, ...]


class Numbering:
    """Numbers the units of all orbits, one orbit after the other.

    Args:
        orbits: those of a graph.

    Attributes:
        count: how many units there are.
        starts: orbit -> the number of its first unit.
    """

    def __init__(self, orbits: Orbits):
        self.orbits = orbits
        self.starts: dict[Orbit, int] = {}
        self.count = 0
        self._numbers = [np.full(count, -1) for count in orbits.counts]
        for orbit in orbits:
            self.starts[orbit] = self.count
            self._numbers[orbit.reading][orbit.components] = self.count + np.arange(orbit.width)
            self.count += orbit.width

    def of(self, reading: int, dim: Dim) -> Iterator[Units]:
        """The units along a dimension, as often as it has several labels at a position; -1 where there is none."""
        for array in arrays_of(dim):
            yield self._numbers[reading][self.orbits.components[reading][array]]

    def of_part(self, reading: int, part: TensorDimension) -> Units:
        """The units along a dimension of a parameter; -1 where there is none."""
        positions = self.orbits.positions[reading][part.start : part.start + part.length]
        return self._numbers[reading][positions]

    def slice_of(self, orbit: Orbit) -> slice:
        """Where the units of an orbit are."""
        return slice(self.starts[orbit], self.starts[orbit] + orbit.width)


def find_gates(orbits: Orbits, numbering: Numbering, place: Place = "consumed") -> list[Gate]:
    """Find gates for every unit that passes anywhere.

    Args:
        orbits: those of a graph.
        numbering: of their units.
        place: ``"consumed"`` for the operands of layers and products that sum over the channels; of a product of
            several operands that have the units, query and key say, the first only, since each of them has the effect
            of all. ``"produced"`` for the results of the layers that make the channels. A unit that has no gate
            there has one where a reduction goes over it; else where it is produced; else at every result that has it;
            else where its parameters are read.

    Raises:
        ArgumentError: there is no such place.
    """
    if place not in ("consumed", "produced"):
        raise ArgumentError(f"place={place!r}, expected 'consumed' or 'produced'")
    finder = _Finder(orbits, numbering)
    if place == "consumed":
        finder.look_at_operands(finder.products())
        finder.look_at_operands(finder.reductions())
    finder.look_at_results({name for reading in orbits.readings for name, _ in reading.sources})
    finder.look_at_results({vertex.name for vertex in orbits.model.graph.vertices})
    finder.look_at_operands(finder.everything())
    return finder.gates


class _Finder:
    def __init__(self, orbits: Orbits, numbering: Numbering):
        self.orbits = orbits
        self.numbering = numbering
        self.calls = orbits.model.calls
        self.gates: list[Gate] = []
        self.missing = np.ones(numbering.count + 1, bool)  # which units have no gate yet; the last stands for none
        self.missing[-1] = False
        self.sinks: list[dict[str, list[Units]]] = [{} for _ in orbits.readings]
        for number, reading in enumerate(orbits.readings):
            for name, dim in reading.sinks:
                self.sinks[number].setdefault(name, []).extend(numbering.of(number, dim))

    # -- what consumes units: vertex, dimensions that meet, and for each reading the units that count (None: all)

    def products(self) -> Iterator[tuple[str, Meeting, list[Any]]]:
        """Sums of products."""
        for name, call in self.calls.items():
            if call.mode == "training":
                continue
            meetings = contracted(call.operator, call.args, self.ranks(call))
            consumed: list[Any] = [sinks.get(name) for sinks in self.sinks]
            layer = any(found is not None for found in consumed)
            if meetings is None:
                if layer:  # a rule that somebody registered says what it consumes, and not along which dimension
                    yield name, tuple(self.operands(call)), [self.allowed(found) for found in consumed]
                continue
            passed = self.passed(name) if "transpose" in call.operator else None
            for meeting in meetings:
                if layer or KNOWN[call.operator].sinks:
                    # A grouped convolution consumes the channels within each group; the groups pass through.
                    allowed = [self.allowed(found) for found in consumed]
                    if passed is not None:
                        allowed = [mask & ~passed for mask in allowed]
                    yield name, meeting, allowed
                else:
                    yield name, meeting, [None] * len(self.sinks)

    def reductions(self) -> Iterator[tuple[str, Meeting, list[Any]]]:
        """Sums, means, norms."""
        for name, call in self.calls.items():
            for meeting in reduced(call.operator, call.args, self.ranks(call)):
                yield name, meeting, [None] * len(self.sinks)

    def everything(self) -> Iterator[tuple[str, Meeting, list[Any]]]:
        """All operands of operators, parameters included."""
        for name, call in self.calls.items():
            if isinstance(call, OperatorVertex) and call.mode != "training":
                for operand in self.operands(call, parameters=True):
                    yield name, (operand,), [None] * len(self.sinks)

    def allowed(self, found: list[Units] | None) -> Any:
        mask = np.zeros(self.numbering.count + 1, bool)
        for units in found or ():
            mask[units] = True
        mask[-1] = False
        return mask

    def passed(self, name: str) -> Any:
        """Units that a vertex has in its result."""
        return self.allowed(
            [
                units
                for number, reading in enumerate(self.orbits.readings)
                for _, value in _tensors(reading.values[name])
                for dim in value.dims
                for units in self.numbering.of(number, dim)
            ]
        )

    def operands(self, call: Call | OperatorVertex, *, parameters: bool = False) -> Iterator[Operand]:
        """All dimensions of all operands."""
        for argument, arg in call.args.items():
            items = enumerate(arg) if isinstance(arg, (tuple, list)) else [(-1, arg)]
            for item, value in items:
                if parameters or type(value) is not Attr:
                    for axis in range(self.rank(value) or 0):
                        yield Operand(argument, axis, item)

    def ranks(self, call: Call | OperatorVertex) -> Any:
        def rank(argument: str) -> Any:
            arg = call.args[argument]
            return [self.rank(item) for item in arg] if isinstance(arg, (tuple, list)) else self.rank(arg)

        return rank

    def rank(self, arg: Any) -> int | None:
        value = value_of(self.orbits.readings[0], arg) if isinstance(arg, (Ref, Attr, ByMode)) else None
        return len(value.shape) if isinstance(value, Labelled) else None

    # -- gates

    def look_at_operands(self, found: Iterable[tuple[str, Meeting, list[Any]]]) -> None:
        """Put gates before the operands in which units that have none yet are consumed."""
        views: dict[tuple[Any, Slot], dict[tuple[int, bytes], View]] = {}
        for name, meeting, allowed in found:
            call = self.calls[name]
            for number, mask in enumerate(allowed):
                wanted = self.missing if mask is None else self.missing & mask
                for operand, value in self.looked_at(call, meeting):
                    dims = value_of(self.orbits.readings[number], value).dims
                    seen = np.zeros_like(wanted)
                    for units in self.numbering.of(number, dims[operand.axis]):
                        chosen = wanted[units]
                        if chosen.any():
                            view = View(operand.axis, np.where(chosen, units, -1))
                            slot = Slot(name, operand.argument, operand.item)
                            views.setdefault((value, slot), {})[view.axis, view.units.tobytes()] = view
                            seen[units[chosen]] = True
                    wanted = wanted & ~seen
        # What consumes the same channels of the same value shares a gate.
        together: dict[Any, list[tuple[Slot, dict[tuple[int, bytes], View]]]] = {}
        for (value, slot), at in views.items():
            together.setdefault((value, frozenset(at)), []).append((slot, at))
        for (value, _), members in together.items():
            slots = tuple([slot for slot, _ in members])
            self.gates.append(Gate(value, slots, tuple(members[0][1].values())))
        self.settle()

    def look_at_results(self, names: Iterable[str]) -> None:
        """Put gates behind the results that have units without any."""
        wanted = set(names)
        for vertex in self.orbits.model.graph.vertices:
            if vertex.name not in wanted or isinstance(vertex, InputVertex) or vertex.mode == "training":
                continue
            views: dict[tuple[int | str, ...], dict[tuple[int, bytes], View]] = {}
            for number, reading in enumerate(self.orbits.readings):
                for index, value in _tensors(reading.values[vertex.name]):
                    for axis, dim in enumerate(value.dims):
                        for units in self.numbering.of(number, dim):
                            chosen = self.missing[units]
                            if chosen.any():
                                view = View(axis, np.where(chosen, units, -1))
                                views.setdefault(index, {})[axis, view.units.tobytes()] = view
            for index, at in views.items():
                self.gates.append(Gate(Ref(vertex.name, index), None, tuple(at.values())))
        self.settle()

    def looked_at(self, call: Call | OperatorVertex, meeting: Meeting) -> list[tuple[Operand, Any]]:
        """The operands that are tensors in the graph, in the order in which they are looked at: parameters last."""
        found = []
        for operand in meeting:
            arg = call.args[operand.argument]
            value = arg[operand.item] if operand.item >= 0 else arg
            if self.can_be_looked_at(value, call):
                found.append((operand, value))
        return sorted(found, key=lambda pair: type(pair[1]) is Attr)

    def can_be_looked_at(self, value: Any, call: Call | OperatorVertex) -> bool:
        """Whether it is a tensor in the graph; parameters are only where an operator, not a layer, reads them."""
        if type(value) is ByMode:
            return self.can_be_looked_at(value.training, call) and self.can_be_looked_at(value.evaluation, call)
        return type(value) is Ref or (type(value) is Attr and isinstance(call, OperatorVertex))

    def settle(self) -> None:
        """From now on the units that have gates want no more."""
        for gate in self.gates:
            for view in gate.views:
                self.missing[view.units] = False
        self.missing[-1] = False


def _tensors(value: Any, index: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], Labelled]]:
    if isinstance(value, Labelled):
        yield index, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, (*index, key))
    elif isinstance(value, (tuple, list)):
        for position, item in enumerate(value):
            yield from _tensors(item, (*index, position))
