"""What a removal cuts, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate
from torch import nn

from torchorbit.graph.dag import Container, DagModule
from torchorbit.graph.vertices import Attr, OperatorVertex, Vertex, vertex_args, walk_args
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.selection import Selection


@dataclass(frozen=True, slots=True)
class Cut:
    """What a removal cuts from one dimension of a parameter or buffer.

    Attributes:
        tensor: its path, as in ``state_dict()``.
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
    """

    cuts: tuple[Cut, ...]
    parameters: int

    def __str__(self) -> str:
        rows = []
        for cut in self.cuts:
            shown = ", ".join(map(str, cut.indices[:6])) + (", ..." if len(cut.indices) > 6 else "")
            rows.append((cut.tensor, cut.module, cut.dim, shown, cut.parameters))
        table = tabulate(rows, headers=("tensor", "of", "dim", "indices", "parameters"), disable_numparse=True)
        return f"{table}\n{self.parameters:,} parameters will be removed"


def plan(removed: Mapping[Orbit, Iterable[int]]) -> Plan:
    """Say what a removal would cut, without doing it.

    Args:
        removed: orbit -> positions of the units to remove, as for `torchorbit.remove_channels`.

    Raises:
        ValueError: a position is out of range, or an orbit would lose all of its units.
        TypeError: ``removed`` holds something else than orbits and integers.
    """
    first = next(iter(removed), None)
    if first is None:
        return Plan((), 0)
    if not isinstance(first, Orbit):
        raise TypeError(f"{first!r} is no Orbit; find_orbits gives them")
    orbits = first._orbits
    dag = orbits.model.dag
    selection = Selection(removed, dag)
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
    return Plan(tuple(cuts), gone)


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
