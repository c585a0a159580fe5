"""What a removal cuts, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate
from torch import nn

from torchorbit.arguments import Attr, walk_args
from torchorbit.errors import ArgumentTypeError
from torchorbit.graph.dag import Container, DagModule
from torchorbit.graph.vertices import OperatorVertex, Vertex, vertex_args
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.selection import Selection


@dataclass(frozen=True, slots=True)
class Cut:
    """What a removal cuts from one dimension of a parameter or buffer.

    Attributes:
        tensor: its path, as in ``state_dict()``; of several that by which the model uses it first.
        module: the layer that holds it, as PyTorch prints it; where a block does, the operator that reads it.
        dim: the dimension.
        indices: positions that go.
        parameters: how many numbers that is; 0 for a buffer.
    """

    tensor: str
    module: str
    dim: int
    indices: tuple[int, ...]
    parameters: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a removal cuts. Prints as a table.

    Attributes:
        cuts: in the order in which the model uses the tensors.
        parameters: how many parameters go in all. What two cuts have in common counts once.
        also: other paths of tensors that have several -> the one that the cuts name.
    """

    cuts: tuple[Cut, ...]
    parameters: int
    also: Mapping[str, str] = field(default_factory=dict)

    def of_tensor(self, path: str) -> tuple[Cut, ...]:
        """The cuts of a parameter or buffer, by any of its paths."""
        path = self.also.get(path, path)
        return tuple([cut for cut in self.cuts if cut.tensor == path])

    def __str__(self) -> str:
        rows = []
        for cut in self.cuts:
            shown = ", ".join(map(str, cut.indices[:6])) + (", ..." if len(cut.indices) > 6 else "")
            rows.append((cut.tensor, cut.module, cut.dim, shown, cut.parameters))
        table = tabulate(rows, headers=("tensor", "of", "dim", "indices", "parameters"), disable_numparse=True)
        return f"{table}\n{self.parameters:,} parameters will be removed"


def plan(removed: Mapping[Orbit, Iterable[int]], *, allow_empty: bool = False) -> Plan:
    """Say what a removal would cut, without doing it.

    Args:
        removed: orbit -> positions of the units to remove, as for `torchorbit.remove_channels`.
        allow_empty: let an orbit lose all of its units. What else of the branch would go, and the constants that would
            be left of it, is not listed.

    Raises:
        ArgumentError: a position is out of range, or an orbit would lose all of its units and may not.
        ArgumentTypeError: ``removed`` holds something else than orbits and integers.
    """
    if not isinstance(removed, Mapping):
        raise ArgumentTypeError(
            f"removed is a {type(removed).__name__}, expected a dict of orbits and positions of units"
        )
    first = next(iter(removed), None)
    if first is None:
        return Plan((), 0)
    if not isinstance(first, Orbit):
        raise ArgumentTypeError(f"{first!r} is no Orbit; find_orbits gives them")
    orbits = first.orbits
    dag = orbits.model.dag
    selection = Selection(removed, dag, allow_empty=allow_empty)
    trainable = dict(dag.named_parameters(remove_duplicate=False))
    readers = _readers(orbits.model.graph.vertices)
    cuts: list[Cut] = []
    gone = 0
    for path, value in orbits.readings[0].attributes.items():
        tensor = orbits.model.tensor_at(path)
        if selection.first_path(path) != path:
            continue
        masks = selection.masks([reading.attributes[path] for reading in orbits.readings])
        owner = path.rpartition(".")[0]
        left = list(value.shape)
        for dim, mask in enumerate(masks):
            if mask is not None:
                indices = tuple(np.flatnonzero(~mask).tolist())
                share = tensor.numel() // tensor.shape[dim] * len(indices) if path in trainable else 0
                cuts.append(Cut(path, _holder(dag.get_submodule(owner), readers.get(path, "")), dim, indices, share))
                left[dim] = int(mask.sum())
        if path in trainable:
            gone += tensor.numel() - int(np.prod(left))
    named = [path for path, _ in (*trainable.items(), *dag.named_buffers(remove_duplicate=False))]
    firsts = {path: selection.first_path(path) for path in named}
    return Plan(tuple(cuts), gone, {path: first for path, first in firsts.items() if first not in (None, path)})


def _holder(module: nn.Module, reader: str) -> str:
    return reader if isinstance(module, (DagModule, Container)) else str(module).partition("\n")[0]


def _readers(vertices: Iterable[Vertex]) -> dict[str, str]:
    """Path of a parameter or buffer -> the first operator that reads it."""
    found: dict[str, str] = {}
    for vertex in vertices:
        if isinstance(vertex, OperatorVertex):
            for arg in walk_args(vertex_args(vertex)):
                if isinstance(arg, Attr):
                    found.setdefault(arg.path, vertex.operator)
    return found
