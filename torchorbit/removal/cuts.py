"""What a removal cuts, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from torchorbit.arguments import Attr, walk_args
from torchorbit.graph.dag import Container, DagModule
from torchorbit.graph.vertices import OperatorVertex, Vertex, vertex_args
from torchorbit.orbits.lookups import module_of_vertex
from torchorbit.orbits.orbit import Orbits
from torchorbit.orbits.passing import Passing
from torchorbit.orbits.selection import Selection


@dataclass(frozen=True, slots=True)
class Cut:
    """What a removal cuts from one dimension of a parameter or buffer.

    Attributes:
        tensor: its path, as in ``state_dict()``; of several that by which the model uses it first.
        module: the layer that holds it, as PyTorch prints it; where a block does, the operator that reads it.
        dim: the dimension.
        indices: positions that go, ascending.
        parameters: how many numbers that is; 0 for a buffer.
        after: the layer or operator from which the channels come to it, seen from the layer at which the plan starts;
            empty there, and where a plan starts at units instead.
    """

    tensor: str
    module: str
    dim: int
    indices: tuple[int, ...]
    parameters: int
    after: str = ""


@dataclass(frozen=True, slots=True)
class Cuts:
    """What a removal cuts in all.

    Attributes:
        cuts: in the order in which the model uses the tensors.
        parameters: how many parameters go in all. What two cuts have in common counts once.
        other_paths: other paths of tensors that have several -> the one that the cuts name.
    """

    cuts: tuple[Cut, ...] = ()
    parameters: int = 0
    other_paths: Mapping[str, str] = dataclasses.field(default_factory=dict)


def cuts_of(selection: Selection, roots: Iterable[str]) -> Cuts:
    """What goes when units are removed.

    Args:
        selection: the units, of which there are some.
        roots: names of the vertices at which the plan starts; none where it starts nowhere in particular.
    """
    orbits = selection.orbits
    assert orbits is not None
    dag = orbits.model.dag
    trainable = dict(dag.named_parameters(remove_duplicate=False))
    readers = _readers(orbits.model.graph.vertices)
    after = _comes_after(orbits, selection, tuple(roots))
    cuts: list[Cut] = []
    gone = 0
    for path, value in orbits.readings[0].attributes.items():
        tensor = orbits.model.tensor_at(path)
        if selection.first_path(path) != path:
            continue
        masks = selection.masks([reading.attributes[path] for reading in orbits.readings])
        holder = _holder(dag.get_submodule(path.rpartition(".")[0]), readers.get(path, ""))
        left = list(value.shape)
        for dim, mask in enumerate(masks):
            if mask is not None:
                indices = tuple(np.flatnonzero(~mask).tolist())
                share = tensor.numel() // tensor.shape[dim] * len(indices) if path in trainable else 0
                cuts.append(Cut(path, holder, dim, indices, share, after.get((path, dim), "")))
                left[dim] = int(mask.sum())
        if path in trainable:
            gone += tensor.numel() - int(np.prod(left))
    named = [path for path, _ in (*trainable.items(), *dag.named_buffers(remove_duplicate=False))]
    firsts = {path: selection.first_path(path) for path in named}
    other_paths = {path: first for path, first in firsts.items() if first not in (None, path)}
    return Cuts(tuple(cuts), gone, other_paths)


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


def _comes_after(orbits: Orbits, selection: Selection, roots: tuple[str, ...]) -> dict[tuple[str, int], str]:
    """(Path, dimension) of what is cut -> the layer or operator from which the channels come to it."""
    after: dict[tuple[str, int], str] = {}
    if not roots:
        return after  # following the channels of many orbits through the graph takes long
    for orbit, units in selection.removed.items():
        passing = Passing(orbits, orbit.reading, orbit.components[units])
        before = _ways(passing, roots)
        for piece in orbit.slices:
            readers = passing.tensors.get(piece.tensor, [])
            reader = next((name for name in readers if name in roots), readers[0] if readers else "")
            after.setdefault((piece.tensor, piece.dim), _name(orbits, before.get(reader, "")))
    return after


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
    """The module of a vertex, or the vertex itself where it belongs to none."""
    try:
        return module_of_vertex(orbits, vertex) if vertex else ""
    except ValueError:
        return vertex
