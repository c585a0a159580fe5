"""Plans: which units go, and what that cuts. They can be looked at and edited before anything is done."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from torchorbit.errors import ArgumentError, ArgumentTypeError, PlanError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.channels import Channels
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.lookups import current
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection
from torchorbit.removal.cuts import Cut, Cuts, cuts_of
from torchorbit.removal.cutting import remove_channels


@dataclass(frozen=True, slots=True)
class _State:
    """What a plan is between two edits.

    Attributes:
        removed: orbit -> units that go.
        roots: names of the vertices at which the plan starts.
        found: what that cuts.
    """

    removed: dict[Orbit, set[int]] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    found: Cuts = field(default_factory=Cuts)


class Plan:
    """Which units go, and what that cuts. Prints as a table; can be edited, and executed once.

    Made by `torchorbit.plan`.

    Attributes:
        orbits: those of the graph.
        allow_empty: whether an orbit may lose all of its units. What else of the branch would go then, and the
            constants that would be left of it, is not listed.
    """

    def __init__(self, orbits: Orbits, *, allow_empty: bool = False):
        self.orbits = orbits
        self.allow_empty = allow_empty
        self._state = _State()
        self._executed = False

    @property
    def removed(self) -> dict[Orbit, list[int]]:
        """Orbit -> positions of the units that go, as `torchorbit.remove_channels` takes it."""
        return {orbit: sorted(units) for orbit, units in self._state.removed.items()}

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """What is cut, in the order in which the model uses the tensors."""
        return self._state.found.cuts

    @property
    def parameters(self) -> int:
        """How many parameters go in all. What two cuts have in common counts once."""
        return self._state.found.parameters

    def of_tensor(self, path: str) -> tuple[Cut, ...]:
        """The cuts of a parameter or buffer, by any of its paths."""
        path = self._first_path(path)
        return tuple([cut for cut in self.cuts if cut.tensor == path])

    def add(self, module: nn.Module | str, indices: Iterable[int], dim: int = 0) -> None:
        """Remove further channels of a layer, as `torchorbit.plan` says.

        Raises:
            PlanError: a channel cannot be removed, an orbit would lose all of its units, or the plan was executed.
            ArgumentError: there is no such module, dimension or channel.
            ArgumentTypeError: indices are no integers.
        """
        channels = Channels.of(self.orbits, module, dim)
        units = _units_of(channels, channels.positions(indices))
        self._set(_union(self._state.removed, units), (*self._state.roots, *channels.vertices))

    def drop(self, module: nn.Module | str, indices: Iterable[int], dim: int = 0) -> None:
        """Keep channels that the plan removes, and with them everything that lives and dies with them.

        Raises:
            PlanError: the plan does not remove them, or was executed.
            ArgumentError: there is no such module, dimension or channel.
            ArgumentTypeError: indices are no integers.
        """
        channels = Channels.of(self.orbits, module, dim)
        wanted = channels.positions(indices)
        units = {orbit: channels.units_at(orbit, wanted) & going for orbit, going in self._state.removed.items()}
        going = {index for orbit, there in units.items() for index in channels.positions_of(orbit, there)}
        kept = [index for index in wanted if index not in going]
        if kept:
            raise PlanError(f"the plan does not remove channels {_few(kept)} of {channels.name}")
        self._set(_difference(self._state.removed, units), self._state.roots)

    def add_units(self, orbit: Orbit, units: Iterable[int]) -> None:
        """Remove further units of an orbit.

        Raises:
            PlanError: the orbit would lose all of its units, or is one of another graph; or the plan was executed.
            ArgumentError: there is no such unit.
            ArgumentTypeError: units are no integers.
        """
        self._set(_union(self._state.removed, {self._own(orbit): _numbers(orbit, units)}), self._state.roots)

    def drop_units(self, orbit: Orbit, units: Iterable[int]) -> None:
        """Keep units that the plan removes.

        Raises:
            PlanError: the plan does not remove them, or was executed; or the orbit is one of another graph.
            ArgumentError: there is no such unit.
            ArgumentTypeError: units are no integers.
        """
        kept = _numbers(self._own(orbit), units)
        missing = kept - self._state.removed.get(orbit, set())
        if missing:
            raise PlanError(f"the plan does not remove units {_few(sorted(missing))} of {orbit!r}")
        self._set(_difference(self._state.removed, {orbit: kept}), self._state.roots)

    def drop_cut(self, tensor: str, dim: int | None = None) -> None:
        """Leave a tensor as it is, where nothing else lives and dies with what would be cut from it.

        Args:
            tensor: its path, as in `cuts`.
            dim: the dimension, where two of it are cut.

        Raises:
            PlanError: there is no such cut, more than one, or the model would no longer fit together without it; or the
                plan was executed.
        """
        path = self._first_path(tensor)
        found = [cut for cut in self.of_tensor(tensor) if dim in (None, cut.dim)]
        if len(found) != 1:
            which = "cuts two dimensions of" if found else "cuts nothing from"
            raise PlanError(f"the plan {which} '{tensor}'; its cuts are {_listed(self.cuts)}")
        (cut,) = found
        orbits = [orbit for orbit in self._state.removed if _owns(orbit, cut)]
        others = [other for other in self.cuts if other is not cut and any(_owns(orbit, other) for orbit in orbits)]
        if others:
            units = ", ".join([f"units {_few(sorted(self._state.removed[orbit]))} of {orbit!r}" for orbit in orbits])
            raise PlanError(
                f"without the cut of '{path}' (dimension {cut.dim}) the model would no longer fit together: "
                f"{_listed(others)} lose the same channels. Drop the channels everywhere: {units} (drop_units)"
            )
        self._set({o: units for o, units in self._state.removed.items() if o not in orbits}, self._state.roots)

    def execute(
        self, *, inplace: bool = True, optimizer: Optimizer | None = None, adjust_dropout: bool = False
    ) -> DagModule:
        """Remove what the plan says. It can be done once.

        Args:
            inplace: change the graph itself, as for `torchorbit.remove_channels`.
            optimizer: its state is cut along.
            adjust_dropout: make dropout less probable where channels go, as for `torchorbit.remove_channels`.

        Returns:
            The smaller graph.

        Raises:
            PlanError: the plan was executed already.
            ArgumentError: the graph was changed since the plan was made.
            ArgumentTypeError: ``optimizer`` is none.
        """
        if self._executed:
            raise PlanError("this plan was executed already; make another one for the graph that is left")
        smaller = remove_channels(
            self.orbits.model.dag,
            self.removed,
            inplace=inplace,
            optimizer=optimizer,
            allow_empty=self.allow_empty,
            adjust_dropout=adjust_dropout,
        )
        self._executed = True
        return smaller

    def __str__(self) -> str:
        rows = [(cut.tensor, cut.module, cut.dim, _few(cut.indices), cut.parameters, cut.after) for cut in self.cuts]
        headers = ("tensor", "of", "dim", "indices", "parameters", "after")
        columns = len(headers) if self._state.roots else len(headers) - 1
        table = tabulate([row[:columns] for row in rows], headers=headers[:columns], disable_numparse=True)
        tense = "were" if self._executed else "will be"
        return f"{table}\n{self.parameters:,} parameters {tense} removed"

    def _first_path(self, path: str) -> str:
        """The path by which the model uses a tensor first, by any of its paths."""
        return self._state.found.other_paths.get(path, path)

    def _own(self, orbit: Orbit) -> Orbit:
        if orbit not in self.orbits:
            raise PlanError(f"{orbit!r} is no orbit of this plan; take one of plan.orbits")
        return orbit

    def _set(self, removed: Mapping[Orbit, set[int]], roots: tuple[str, ...] = ()) -> None:
        """Take another state, or leave the old one where it cannot be."""
        if self._executed:
            raise PlanError("this plan was executed already and cannot be edited any more")
        try:
            self._adopt(_selection({orbit: sorted(units) for orbit, units in removed.items() if units}, self), roots)
        except ValueError as error:
            raise PlanError(str(error)) from None

    def _adopt(self, selection: Selection, roots: tuple[str, ...] = ()) -> None:
        removed = {orbit: set(units.tolist()) for orbit, units in selection.removed.items() if len(units)}
        self._state = _State(removed, roots, cuts_of(selection, roots) if removed else Cuts())


@overload
def plan(
    graph: DagModule | Orbits, removed: Mapping[Orbit, Iterable[int]], /, *, allow_empty: bool = False
) -> Plan: ...
@overload
def plan(
    graph: DagModule | Orbits,
    module: nn.Module | str,
    /,
    indices: Iterable[int],
    dim: int = 0,
    *,
    allow_empty: bool = False,
) -> Plan: ...
def plan(
    graph: DagModule | Orbits,
    what: Any,
    /,
    indices: Iterable[int] | None = None,
    dim: int = 0,
    *,
    allow_empty: bool = False,
) -> Plan:
    """Say what a removal would cut, before it is done.

    It starts either from units::

        torchorbit.plan(orbits, {orbits[0]: [0, 1]})

    or from channels of a layer, with everything that lives and dies with them (Torch-Pruning's
    ``DependencyGraph.get_pruning_plan``)::

        torchorbit.plan(dag, "stem.0", [2, 6, 9], dim=0)

    Where a channel belongs to a unit in more than one way (to the channels at one place of every head, and to a whole
    head), that way is taken in which the least goes beside what was asked for; `Plan.cuts` say all that goes.

    Args:
        graph: a graph; or its orbits, where some of it shall stay frozen.
        what: orbit -> positions of the units to remove, as for `torchorbit.remove_channels`; or a layer of the graph,
            its path, or the path of a parameter or buffer.
        indices: of a layer, positions of the channels: of what it gives or takes, or along a dimension of the tensor.
        dim: 0 for the channels that a layer gives, 1 for those that it takes; of a tensor, the dimension.
        allow_empty: let an orbit lose all of its units, as for `torchorbit.remove_channels`.

    Returns:
        The plan. It prints as a table, can be edited, and does what it says when it is executed.

    Raises:
        PlanError: a channel of a layer cannot be removed, and the message says why; or an orbit would lose all of its
            units with it.
        ArgumentError: there is no such module, dimension or channel; what is removed is refused as by
            `torchorbit.remove_channels`; or the graph was changed since the orbits were found.
        ArgumentTypeError: an argument is of the wrong type.
    """
    if isinstance(what, (nn.Module, str)):
        if indices is None:
            raise ArgumentTypeError("indices are missing: plan(graph, module, indices) says which channels go")
        made = Plan(_orbits(graph), allow_empty=allow_empty)
        made.add(what, indices, dim)
        return made
    if indices is not None:
        raise ArgumentTypeError(f"module is {what!r}, expected a module of the graph or its path")
    if not isinstance(what, Mapping):
        raise ArgumentTypeError(
            f"removed is a {type(what).__name__}, expected a dict of orbits and positions of units; or give a layer "
            "and its channels"
        )
    first = next((orbit for orbit in what if isinstance(orbit, Orbit)), None)
    if isinstance(graph, DagModule) and first is not None and first.orbits.model.dag is graph:
        graph = first.orbits
    made = Plan(_orbits(graph), allow_empty=allow_empty)
    made._adopt(_selection(what, made))
    return made


def _orbits(graph: DagModule | Orbits) -> Orbits:
    """The orbits of a graph, which was not changed since they were found."""
    orbits = graph if isinstance(graph, Orbits) else find_orbits(graph)
    current(orbits)
    return orbits


def _selection(removed: Mapping[Orbit, Iterable[int]], of: Plan) -> Selection:
    """Units to remove, all of the plan's orbits."""
    selection = Selection(removed, of.orbits.model.dag, allow_empty=of.allow_empty)
    if selection.orbits not in (None, of.orbits):
        raise PlanError("the units are of another call of find_orbits; use the orbits that the plan was made with")
    return selection


def _units_of(channels: Channels, wanted: list[int]) -> dict[Orbit, set[int]]:
    """The units that channels belong to, which all have to belong to one."""
    units, frozen = channels.units(wanted)
    if frozen:
        reasons = dict.fromkeys([reason.text for index in frozen for reason in channels.reasons(index)])
        why = "; ".join(reasons) or "they are in no orbit"
        raise PlanError(f"channels {_few(frozen)} of {channels.name} cannot be removed: {why}")
    return units


def _numbers(orbit: Orbit, units: Iterable[int]) -> set[int]:
    """Units of an orbit, as they were given."""
    try:
        numbers = {operator.index(unit) for unit in units}
    except TypeError:
        raise ArgumentTypeError(f"{orbit!r}: units are {units!r}, expected an iterable of integers") from None
    wrong = [unit for unit in numbers if not 0 <= unit < orbit.width]
    if wrong:
        raise ArgumentError(f"{orbit!r} has units 0 to {orbit.width - 1}, given {wrong[:5]}")
    return numbers


def _owns(orbit: Orbit, cut: Cut) -> bool:
    return any(piece.tensor == cut.tensor and piece.dim == cut.dim for piece in orbit.slices)


def _union(first: Mapping[Orbit, set[int]], second: Mapping[Orbit, set[int]]) -> dict[Orbit, set[int]]:
    return {orbit: first.get(orbit, set()) | second.get(orbit, set()) for orbit in (*first, *second)}


def _difference(first: Mapping[Orbit, set[int]], second: Mapping[Orbit, set[int]]) -> dict[Orbit, set[int]]:
    return {orbit: units - second.get(orbit, set()) for orbit, units in first.items()}


def _listed(cuts: Iterable[Cut]) -> str:
    names = [f"{cut.tensor} (dimension {cut.dim})" for cut in cuts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _few(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    return ", ".join(map(str, listed[:6])) + (", ..." if len(listed) > 6 else "")
