"""The layers of a pruned graph that can make up for what went before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, Ref, walk_args
from torchorbit.graph.calls import Call
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, vertex_args
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.selection import Selection
from torchorbit.pruning.reconstruction.layers import OPERATORS, Shape


@dataclass(slots=True)
class Use:
    """A call of a layer.

    Attributes:
        vertex: its name.
        input: the argument that the weights are multiplied with.
        shape: how it is made rows of.
    """

    vertex: str
    input: Any
    shape: Shape


@dataclass(slots=True)
class Consumer:
    """A layer of the pruned graph whose weights may be found anew.

    Attributes:
        path: of its weights.
        weight: the weights.
        bias: what is added; None where nothing is.
        module: the layer, where a bias may be added to it.
        norm: the running mean of the batch norm behind, which takes the place of a bias.
        uses: where it is called, in the order of the graph.
    """

    path: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    module: nn.Module | None
    norm: Tensor | None
    uses: list[Use] = field(default_factory=list)

    @property
    def free_bias(self) -> bool:
        """Whether something can be added to its outputs."""
        return self.bias is not None or self.norm is not None or self.module is not None

    @torch.no_grad()
    def assign(self, weight: Tensor, bias: Tensor) -> nn.Parameter | None:
        """Put new weights in place.

        Args:
            weight: as matrices, of shape (groups, outputs, inputs of a row).
            bias: of shape (groups, 1, outputs); what is added beside what a bias that is there adds already.

        Returns:
            The bias, where the layer had none before and has one now.
        """
        self.weight.copy_(self.uses[0].shape.weight(weight, self.weight).to(self.weight))
        bias = bias.reshape(-1)
        if self.bias is not None:
            self.bias.copy_(bias.to(self.bias))
        elif self.norm is not None:
            self.norm.sub_(bias.to(self.norm))
        elif self.module is not None and bool(bias.any()):
            self.module.bias = nn.Parameter(bias.to(self.weight), requires_grad=self.weight.requires_grad)
            return self.module.bias
        return None


def find_consumers(small: FlatModel) -> list[Consumer]:
    """The layers of a graph whose outputs are linear in weights that nothing else reads, in its order."""
    readers, counts = _readers(small), _tensors_read(small)
    found: dict[int, Consumer] = {}
    refused: set[int] = set()
    for vertex in small.graph.vertices:
        call = small.calls.get(vertex.name)
        if call is None or call.operator not in OPERATORS or call.mode == "training":
            continue
        weight, bias = call.args.get("weight"), call.args.get("bias")
        if type(weight) is not Attr:
            continue
        tensor = small.tensor_at(weight.path)
        leaf = small.module_at(vertex.target) if isinstance(vertex, ModuleVertex) else None
        shape = Shape.of(call.operator, call.args, tensor, leaf)
        own = None if type(bias) is not Attr else small.tensor_at(bias.path)
        if (
            shape is None
            or not isinstance(tensor, nn.Parameter)
            or not tensor.is_floating_point()
            or (bias is not None and not isinstance(own, nn.Parameter))
        ):
            refused.add(id(tensor))
            continue
        consumer = found.get(id(tensor))
        if consumer is None:
            bare = leaf is not None and own is None and "bias" in leaf._parameters
            norm = None if own is not None else _norm_behind(small, vertex.name, readers, counts)
            consumer = found[id(tensor)] = Consumer(weight.path, tensor, own, leaf if bare else None, norm)  # type: ignore[arg-type]
        elif consumer.bias is not own or consumer.uses[0].shape != shape:
            refused.add(id(tensor))
            continue
        if consumer.uses:  # what one call would get for a bias, others might not
            consumer.norm = consumer.module = None
        consumer.uses.append(Use(vertex.name, call.args["input"], shape))
    return [
        consumer
        for identity, consumer in found.items()
        if identity not in refused
        and counts[identity] == len(consumer.uses)
        and (consumer.bias is None or counts[id(consumer.bias)] == len(consumer.uses))
    ]


def _readers(small: FlatModel) -> dict[str, list[str]]:
    """Vertex -> the vertices that read its result; the output of the graph is one of them, with an empty name."""
    found: dict[str, list[str]] = {}
    for vertex in small.graph.vertices:
        for arg in walk_args(vertex_args(vertex)):
            if type(arg) is Ref:
                found.setdefault(arg.vertex, []).append(vertex.name)
    for arg in walk_args(small.graph.output):
        if type(arg) is Ref:
            found.setdefault(arg.vertex, []).append("")
    return found


def _norm_behind(small: FlatModel, vertex: str, readers: dict[str, list[str]], counts: dict[int, int]) -> Tensor | None:
    """The running mean of the batch norm that alone reads a result, and that has it for nothing else."""
    behind = readers.get(vertex, [])
    call = small.calls.get(behind[0]) if len(behind) == 1 else None
    if call is None or call.operator != "batch_norm" or call.args.get("input") != Ref(vertex):
        return None
    layer, shape = small.calls[vertex], small.graph.shapes.get(vertex, ())
    rank = 2 if layer.operator == "linear" else len(small.shape_of(layer.args["weight"]))
    if len(shape) != rank or call.args.get("training") is True:
        return None  # it normalizes another dimension than the layer's outputs, or whatever its mean is
    mean = call.args.get("running_mean")
    tensor = small.tensor_at(mean.path) if type(mean) is Attr else None
    return tensor if tensor is not None and counts[id(tensor)] == 1 else None


def _tensors_read(small: FlatModel) -> dict[int, int]:
    """Id of a parameter or buffer -> how often calls read it."""
    counts: dict[int, int] = {}
    for call in small.calls.values():
        for arg in walk_args(tuple(call.args.values())):
            if type(arg) is Attr:
                tensor = small.tensor_at(arg.path)
                counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def changed_vertices(whole: FlatModel, small: FlatModel, selection: Selection) -> frozenset[str]:
    """Names of the vertices of a pruned graph that are given something else than in the whole one.

    A channel that is gone is something else, and so is whatever comes of it.
    """
    cut: set[str] = set()
    found: set[str] = set()
    there = {vertex.name for vertex in whole.graph.vertices}
    for vertex in small.graph.vertices:
        if vertex.name not in small.calls:
            continue
        before = [arg.vertex for arg in walk_args(vertex_args(vertex)) if type(arg) is Ref]
        if any(name in found or name in cut for name in before):
            found.add(vertex.name)
        if vertex.name not in there or _is_cut(selection.kept(selection.of(vertex.name))):
            cut.add(vertex.name)
        if _parameters_cut(whole.calls.get(vertex.name), selection):
            cut.add(vertex.name)
    return frozenset(found)


def _is_cut(masks: Any) -> bool:
    if isinstance(masks, dict):
        masks = list(masks.values())
    if isinstance(masks, (list, tuple)):
        return any(map(_is_cut, masks))
    return masks is not None


def _parameters_cut(call: Call | OperatorVertex | None, selection: Selection) -> bool:
    """Whether a call reads parameters that lose something."""
    if call is None:
        return False
    attributes: Iterator[Any] = (arg for arg in walk_args(tuple(call.args.values())) if type(arg) is Attr)
    return any(_is_cut(selection.masks_of(arg)) for arg in attributes)
