"""Layers of the smaller graph: the numbers that they keep beside their tensors, and which calls share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from torchorbit.graph.dag import DagModule
from torchorbit.graph.vertices import ModuleVertex
from torchorbit.labels import Mask
from torchorbit.operators import LEAVES
from torchorbit.operators.resizing import Resized


def share_of(masks: list[Mask | None]) -> float:
    """The share of a value that is kept."""
    return float(np.prod([mask.mean() for mask in masks if mask is not None]))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of the smaller graph.

    Attributes:
        path: where it is.
        source: path of the leaf of the whole graph that it was.
        kind: its name in the table of leaf modules.
        numbers: those that follow from what it is called with, by the attributes that keep them.
    """

    path: str
    source: str
    kind: str
    numbers: dict[str, Any]


class Leaves:
    """The leaves that the calls of a graph need once it is smaller.

    Args:
        dag: the whole graph.
        adjust_dropout: let dropouts be less probable where there are fewer channels.
    """

    def __init__(self, dag: DagModule, adjust_dropout: bool):
        self._dag = dag
        self._adjust_dropout = adjust_dropout
        self._settled: dict[int, list[Leaf]] = {}  # id of a leaf -> it, and those that take its place in other calls

    def of(self, module: nn.Module) -> Leaf | None:
        """What takes the place of a leaf of the whole graph, where its numbers follow from a call of it."""
        return next(iter(self._settled.get(id(module), ())), None)

    def settle(self, vertex: ModuleVertex, call: Resized) -> str:
        """Note the numbers that the leaf of a vertex keeps; returns the path of the leaf that has them.

        Nothing ties the calls of a leaf without weights. Where they need other numbers each has a leaf of its own.
        """
        known = LEAVES[vertex.leaf]
        numbers = {} if known.numbers is None else known.numbers(call)
        if self._adjust_dropout and known.probability:
            probability = getattr(self._dag.get_submodule(vertex.target), known.probability)
            numbers[known.probability] = probability * share_of(call.masks())
        leaves = self._settled.setdefault(id(self._dag.get_submodule(vertex.target)), [])
        for leaf in leaves:
            if leaf.numbers == numbers:
                return leaf.path if leaf is not leaves[0] else vertex.target
        path, count = vertex.target, 0
        if leaves:
            owner, _, name = path.rpartition(".")
            taken = {*self._dag.get_submodule(owner)._modules, *[leaf.path.rpartition(".")[2] for leaf in self.twins()]}
            while name in taken:
                count += 1
                name = f"{path.rpartition('.')[2]}_{count}"
            path = f"{owner}.{name}" if owner else name
        leaves.append(Leaf(path, vertex.target, vertex.leaf, numbers))
        return path

    def twins(self) -> list[Leaf]:
        """Leaves that take the place of others in some of their calls."""
        return [leaf for leaves in self._settled.values() for leaf in leaves[1:]]


def settle(module: Any, leaf: Leaf) -> None:
    """Set the numbers that a leaf keeps beside its tensors."""
    for name, number in leaf.numbers.items():
        setattr(module, name, number)
    rest = LEAVES[leaf.kind].settle
    if rest is not None:
        rest(module)
