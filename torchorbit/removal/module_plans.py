"""Plans that start at a layer: remove these channels of it, and all that lives and dies with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from torchorbit.errors import ArgumentError, PlanError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.channels import Channels
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.lookups import current, module_of_vertex
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.passing import Passing
from torchorbit.removal.cutting import remove_channels
from torchorbit.removal.planning import Plan, plan


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What a plan cuts from one dimension of a parameter or buffer.

    Attributes:
        tensor: its path, as in ``state_dict()``.
        module: the layer that holds it, as PyTorch prints it; where a block does, the operator that reads it.
        dim: the dimension.
        indices: positions that go, ascending.
        parameters: how many numbers that is; 0 for a buffer.
        after: the layer or operator from which the channels come to it, seen from where the plan starts; empty there.
    """

    tensor: str
    module: str
    dim: int
    indices: tuple[int, ...]
    parameters: int
    after: str


class PruningPlan:
    """Which units go, and what that cuts. Prints as a table; can be edited, and executed once.

    Made by `pruning_plan`.

    Attributes:
        orbits: those of the graph.
        allow_empty: whether an orbit may lose all of its units.
    """

    def __init__(self, orbits: Orbits, *, allow_empty: bool = False):
        self.orbits = orbits
        self.allow_empty = allow_empty
        self._state = _State({}, (), Plan((), 0), ())
        self._executed = False

    @property
    def removed(self) -> dict[Orbit, list[int]]:
        """Orbit -> positions of the units that go, as `torchorbit.remove_channels` takes it."""
        return {orbit: sorted(units) for orbit, units in self._state.removed.items()}

    @property
    def entries(self) -> tuple[PlanEntry, ...]:
        """What is cut, in the order in which the model uses the tensors."""
        return self._state.entries

    @property
    def parameters(self) -> int:
        """How many parameters go in all. What two entries have in common counts once."""
        return self._state.plan.parameters

    def add(self, module: nn.Module | str, indices: Iterable[int], dim: int = 0) -> None:
        """Remove further channels, as `pruning_plan` says.

        Raises:
            PlanError: a channel cannot be removed, or an orbit would lose all of its units.
            ArgumentError: there is no such module, dimension or channel.
            ArgumentTypeError: indices are no integers.
        """
        channels = Channels.of(self.orbits, module, dim)
        units = self._units_of(channels, channels.positions(indices))
        roots = (*self._state.roots, *channels.vertices)
        self._set(_union(self._state.removed, units), roots)

    def drop(self, module: nn.Module | str, indices: Iterable[int], dim: int = 0) -> None:
        """Keep channels that the plan removes, and with them everything that lives and dies with them.

        Raises:
            PlanError: the plan does not remove them.
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
            PlanError: the orbit would lose all of its units, or is one of another graph.
            ArgumentError: there is no such unit.
        """
        self._set(_union(self._state.removed, {self._own(orbit): self._numbers(orbit, units)}), self._state.roots)

    def drop_units(self, orbit: Orbit, units: Iterable[int]) -> None:
        """Keep units that the plan removes.

        Raises:
            PlanError: the plan does not remove them.
        """
        numbers = self._numbers(self._own(orbit), units)
        others = numbers - self._state.removed.get(orbit, set())
        if others:
            raise PlanError(f"the plan does not remove units {_few(sorted(others))} of {orbit!r}")
        self._set(_difference(self._state.removed, {orbit: numbers}), self._state.roots)

    def drop_entry(self, tensor: str, dim: int | None = None) -> None:
        """Leave one tensor as it is. That goes only where nothing else lives and dies with what is cut from it.

        Args:
            tensor: its path, as in `entries`.
            dim: the dimension, where two of it are cut.

        Raises:
            PlanError: there is no such entry, more than one, or the model would no longer fit together without it.
        """
        path = self._state.plan.also.get(tensor, tensor)
        found = [entry for entry in self.entries if entry.tensor == path and dim in (None, entry.dim)]
        if len(found) != 1:
            which = "cuts two dimensions of" if found else "cuts nothing from"
            raise PlanError(f"the plan {which} '{tensor}'; its entries are {_listed(self.entries)}")
        (entry,) = found
        orbits = [orbit for orbit in self._state.removed if _cuts(orbit, entry)]
        others = [e for e in self.entries if e is not entry and any(_cuts(orbit, e) for orbit in orbits)]
        if others:
            units = ", ".join([f"units {_few(sorted(self._state.removed[orbit]))} of {orbit!r}" for orbit in orbits])
            raise PlanError(
                f"without the cut of '{path}' (dimension {entry.dim}) the model would no longer fit together: "
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
        """
        if self._executed:
            raise PlanError("this plan was executed already; make another one for the graph that is left")
        dag = self.orbits.model.dag
        smaller = remove_channels(
            dag,
            self.removed,
            inplace=inplace,
            optimizer=optimizer,
            allow_empty=self.allow_empty,
            adjust_dropout=adjust_dropout,
        )
        self._executed = True
        return smaller

    #: Torch-Pruning's name of `execute`.
    exec = execute

    def __str__(self) -> str:
        rows = [
            (entry.tensor, entry.module, entry.dim, _few(entry.indices), entry.parameters, entry.after)
            for entry in self.entries
        ]
        table = tabulate(rows, headers=("tensor", "of", "dim", "indices", "parameters", "after"), disable_numparse=True)
        tense = "were" if self._executed else "will be"
        return f"{table}\n{self.parameters:,} parameters {tense} removed"

    # -- what edits have in common

    def _units_of(self, channels: Channels, wanted: list[int]) -> dict[Orbit, set[int]]:
        units, frozen = channels.units(wanted)
        if frozen:
            reasons = dict.fromkeys([reason.text for index in frozen for reason in channels.reasons(index)])
            why = "; ".join(reasons) or "they are in no orbit"
            raise PlanError(f"channels {_few(frozen)} of {channels.name} cannot be removed: {why}")
        return units

    def _own(self, orbit: Orbit) -> Orbit:
        if orbit not in self.orbits:
            raise PlanError(f"{orbit!r} is no orbit of this plan; take one of plan.orbits")
        return orbit

    def _numbers(self, orbit: Orbit, units: Iterable[int]) -> set[int]:
        numbers = set(units)
        wrong = [unit for unit in numbers if not 0 <= unit < orbit.width]
        if wrong:
            raise ArgumentError(f"{orbit!r} has units 0 to {orbit.width - 1}, given {wrong[:5]}")
        return numbers

    def _set(self, removed: dict[Orbit, set[int]], roots: tuple[str, ...]) -> None:
        """Take another state, or leave the old one where it cannot be."""
        if self._executed:
            raise PlanError("this plan was executed already and cannot be edited any more")
        removed = {orbit: units for orbit, units in removed.items() if units}
        try:
            found = plan({orbit: sorted(units) for orbit, units in removed.items()}, allow_empty=self.allow_empty)
        except ValueError as error:
            raise PlanError(str(error)) from None
        self._state = _State(removed, roots, found, _entries(self.orbits, removed, roots, found))


@dataclass(frozen=True, slots=True)
class _State:
    """What a plan is between two edits."""

    removed: dict[Orbit, set[int]]
    roots: tuple[str, ...]
    plan: Plan
    entries: tuple[PlanEntry, ...] = field(default=())


def pruning_plan(
    graph: DagModule | Orbits,
    module: nn.Module | str,
    indices: Iterable[int],
    dim: int = 0,
    *,
    allow_empty: bool = False,
) -> PruningPlan:
    """Plan to remove channels of a layer, and everything that lives and dies with them.

    Torch-Pruning's ``DependencyGraph.get_pruning_plan``. Where a channel belongs to a unit in more than one way (to the
    channels at one place of every head, and to a whole head), that way is taken in which the least goes beside what
    was asked for; `PruningPlan.entries` say all that goes.

    Args:
        graph: a graph; or its orbits, where some of it shall stay frozen.
        module: a layer of the graph, its path, or the path of a parameter or buffer.
        indices: positions of the channels: of what the layer gives or takes, or along a dimension of the tensor.
        dim: 0 for the channels that the layer gives, 1 for those that it takes; of a tensor, the dimension.
        allow_empty: let an orbit lose all of its units, as for `torchorbit.remove_channels`.

    Raises:
        PlanError: a channel cannot be removed, and the message says why; or an orbit would lose all of its units.
        ArgumentError: there is no such module, dimension or channel, or the graph was changed since the orbits were
            found.
        ArgumentTypeError: ``graph`` or ``module`` is neither, or indices are no integers.
    """
    orbits = graph if isinstance(graph, Orbits) else find_orbits(graph)
    current(orbits)
    found = PruningPlan(orbits, allow_empty=allow_empty)
    found.add(module, indices, dim)
    return found


def _entries(
    orbits: Orbits, removed: Mapping[Orbit, set[int]], roots: tuple[str, ...], found: Plan
) -> tuple[PlanEntry, ...]:
    after: dict[tuple[str, int], str] = {}
    for orbit, units in removed.items():
        passing = Passing(orbits, orbit.reading, orbit.components[sorted(units)])
        before = _ways(passing, roots)
        for piece in orbit.slices:
            readers = passing.tensors.get(piece.tensor, [])
            reader = next((name for name in readers if name in roots), readers[0] if readers else "")
            after.setdefault((piece.tensor, piece.dim), _name(orbits, before.get(reader, "")))
    return tuple(
        [
            PlanEntry(
                cut.tensor, cut.module, cut.dim, cut.indices, cut.parameters, after.get((cut.tensor, cut.dim), "")
            )
            for cut in found.cuts
        ]
    )


def _ways(passing: Passing, roots: tuple[str, ...]) -> dict[str, str]:
    """For every vertex that the channels pass, the one from which they come, the shortest way from the roots."""
    beside: dict[str, list[str]] = {name: [] for name in passing.roles}
    for name, sources in passing.taken.items():
        for source in sources:
            beside[name].append(source)
            beside.setdefault(source, []).append(name)
    for readers in passing.tensors.values():
        for reader in readers[1:]:
            beside[readers[0]].append(reader)
            beside[reader].append(readers[0])
    starts = [name for name in roots if name in beside] or list(passing.roles)[:1]
    before = dict.fromkeys(starts, "")
    for name in (queue := list(before)):  # it grows while it is read
        for other in beside[name]:
            if other not in before:
                before[other] = name
                queue.append(other)
    return before


def _name(orbits: Orbits, vertex: str) -> str:
    try:
        return module_of_vertex(orbits, vertex) if vertex else ""
    except ValueError:
        return vertex


def _cuts(orbit: Orbit, entry: PlanEntry) -> bool:
    return any(piece.tensor == entry.tensor and piece.dim == entry.dim for piece in orbit.slices)


def _union(first: Mapping[Orbit, set[int]], second: Mapping[Orbit, set[int]]) -> dict[Orbit, set[int]]:
    return {orbit: first.get(orbit, set()) | second.get(orbit, set()) for orbit in (*first, *second)}


def _difference(first: Mapping[Orbit, set[int]], second: Mapping[Orbit, set[int]]) -> dict[Orbit, set[int]]:
    return {orbit: units - second.get(orbit, set()) for orbit, units in first.items()}


def _listed(entries: Iterable[PlanEntry]) -> str:
    names = [f"{entry.tensor} (dimension {entry.dim})" for entry in entries]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _few(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    return ", ".join(map(str, listed[:6])) + (", ..." if len(listed) > 6 else "")
