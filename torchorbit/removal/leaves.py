"""Layers of the smaller graph: the numbers that they keep beside their tensors, and which calls share one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from torchorbit.graph.dag import DagModule
from torchorbit.graph.vertices import ModuleVertex
from torchorbit.orbits.selection import Mask
from torchorbit.removal.resizing import Resized

#: Operators that drop values, whose probability may follow from how many are left.
DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
_DROPOUT_LEAVES = frozenset({"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"})


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
        numbers = _numbers(vertex.leaf, call)
        if self._adjust_dropout and vertex.leaf in _DROPOUT_LEAVES:
            dropout: Any = self._dag.get_submodule(vertex.target)
            numbers["p"] = dropout.p * share_of(call.masks())
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


def _numbers(leaf: str, call: Resized) -> dict[str, Any]:
    """The numbers that a leaf keeps, as far as they follow from a call of it."""
    args = call.args
    if leaf == "ChannelShuffle" or leaf.startswith(("Conv1", "Conv2", "Conv3", "ConvTranspose")):
        return {"groups": args["groups"]}
    if leaf in ("LayerNorm", "RMSNorm"):
        return {"normalized_shape": tuple(args["normalized_shape"])}
    if leaf == "Unflatten":
        return {"unflattened_size": tuple(args["sizes"])}
    if leaf.startswith(("ConstantPad", "ZeroPad")):
        return {"padding": args["pad"]}
    numbers = {"num_groups": args["num_groups"]} if leaf == "GroupNorm" else {}
    if leaf.startswith(("BatchNorm", "InstanceNorm", "GroupNorm")):
        # An instance norm also takes a sample without a batch.
        masks = call.masks()
        axis = len(masks) - 1 - int(leaf[-2]) if leaf.startswith("InstanceNorm") else 1
        mask = masks[axis]
        if mask is not None:
            numbers["num_channels" if leaf == "GroupNorm" else "num_features"] = int(mask.sum())
    return numbers


def settle(module: Any, leaf: Leaf) -> None:
    """Set the numbers that a leaf keeps beside its tensors."""
    for name, number in leaf.numbers.items():
        setattr(module, name, number)
    kind = leaf.kind
    weight: Any = getattr(module, "weight", None)
    if kind.startswith("ConvTranspose"):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif kind.startswith("Conv"):
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif kind == "Linear":
        module.out_features, module.in_features = weight.shape
    elif kind == "Bilinear":
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif kind == "Embedding":
        module.embedding_dim = weight.shape[1]
    elif kind == "PReLU":
        module.num_parameters = weight.shape[0]
    elif kind in ("RNN", "LSTM", "GRU"):
        module.input_size = module.weight_ih_l0.shape[1]
        module.hidden_size = module.weight_hh_l0.shape[1]
        module._init_flat_weights()  # it keeps a list of its weights, which a copy of it shares
