"""Queries and keys that lost channels: what is left of them is mixed, so that their products are what they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchorbit.arguments import Ref, operands_of, walk_args
from torchorbit.graph.calls import Call
from torchorbit.graph.vertices import OperatorVertex, vertex_args
from torchorbit.operators.sums import Operand, contracted
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.running import Running
from torchorbit.orbits.selection import Selection
from torchorbit.pruning.reconstruction.consumers import Consumer
from torchorbit.pruning.reconstruction.solving import STRENGTHS

#: Operators that give elements of their operand, in evaluation, in another order or some of them.
_MOVING = frozenset(
    {
        *("reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "clone"),
        *("split", "chunk", "tensor_split", "unbind", "getitem", "narrow", "select", "dropout"),
    }
)
_SCALING = frozenset({"mul", "div"})


@dataclass(slots=True)
class Product:
    """A product of queries and keys, head by head.

    Attributes:
        vertex: that computes it.
        query: the argument of which a linear layer makes every element, up to a factor.
        key: the argument that it is multiplied with.
        query_axis: along which dimension channels meet.
        key_axis: that of the other.
        consumer: the layer.
        rows: of the layer's outputs for every head those that are its channels, of shape (heads, channels).
        heads: for every place in the dimensions before the last two of a query of one sample which head it is.
    """

    vertex: str
    query: str
    key: str
    query_axis: int
    key_axis: int
    consumer: Consumer
    rows: Tensor
    heads: Tensor

    def heads_of(self, value: Tensor) -> Tensor:
        """For every place in the dimensions before the last two of a query or key which head it is, in a row."""
        first, *others = value.shape[:-2]
        return self.heads.repeat(first // len(self.heads), *[1] * len(others)).to(value.device).flatten()

    @torch.no_grad()
    def assign(self, mixing: Tensor) -> None:
        """Let the layer make queries that are mixed.

        Args:
            mixing: what they are multiplied with, of shape (heads, channels, channels).
        """
        for tensor in (self.consumer.weight, self.consumer.bias):
            if tensor is not None:
                rows = self.rows.to(tensor.device)
                there = tensor[rows].double()  # heads, channels, and inputs where these are weights
                tensor[rows] = torch.einsum("hij,hi...->hj...", mixing, there).to(tensor)

    def replace(self, values: dict[str, Any], query: Ref, mixing: Tensor) -> None:
        """Mix the queries that were made already.

        Args:
            values: results by vertices.
            query: where the queries are.
            mixing: as for `assign`.
        """

        def inside(value: Any, index: tuple[int | str, ...]) -> Any:
            if not index:
                last = channels_last(value, self.query_axis)
                by_head = mixing.to(last)[self.heads_of(last)].reshape(*last.shape[:-2], *mixing.shape[1:])
                return channels_last(last @ by_head, self.query_axis)
            items = list(value)
            items[int(index[0])] = inside(items[int(index[0])], index[1:])
            return type(value)(items)

        values[query.vertex] = inside(values[query.vertex], query.index)


def channels_last(value: Tensor, axis: int) -> Tensor:
    """A query or key with its channels last and tokens before them, which stand in its last two dimensions; or back."""
    return value if axis % value.dim() == value.dim() - 1 else value.mT


def find_products(
    small: FlatModel, selection: Selection, consumers: Iterable[Consumer], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Product]:
    """Products over channels of which some are gone, where a layer makes one of the factors.

    Args:
        small: the pruned graph.
        selection: what is gone.
        consumers: the layers of it that may be changed.
        args: positional inputs of the graph.
        kwargs: keyword inputs.
    """
    meetings = []
    for vertex in small.graph.vertices:
        call = small.calls.get(vertex.name)
        if call is None or call.mode or "weight" in call.args:
            continue
        for meeting in _pairs(call, small):
            masks = selection.masks_of(selection.orbits.model.calls[vertex.name].args[meeting[0].argument])  # type: ignore[union-attr]
            if masks and masks[meeting[0].axis] is not None:
                meetings.append((vertex.name, call, meeting))
    if not meetings:
        return []
    tracer = _Tracer(small, consumers, args, kwargs)
    found = []
    for name, call, (first, second) in meetings:
        product = tracer.product(name, call, first, second)
        if product is not None:
            found.append(product)
    return found


def _pairs(call: Call | OperatorVertex, small: FlatModel) -> list[tuple[Operand, Operand]]:
    """Two operands that meet along one of their last two dimensions."""

    def rank(argument: str) -> Any:
        shape = small.shape_of(call.args[argument])
        return len(shape) if isinstance(shape, torch.Size) else [len(one) for one in shape]

    if call.operator not in ("scaled_dot_product_attention", "matmul", "bmm"):
        return []
    if call.args.get("enable_gqa"):
        return []
    found = []
    for meeting in contracted(call.operator, call.args, rank) or ():
        if len(meeting) != 2:
            continue
        first, second = meeting
        operands = [call.args[operand.argument] for operand in meeting]
        ranks = [rank(operand.argument) for operand in meeting]
        if all(type(arg) is Ref for arg in operands) and ranks[0] == ranks[1] >= 3:
            found.append((first, second))
    return found


class _Tracer:
    """Follows the factors of products back to the layers that make them."""

    def __init__(self, small: FlatModel, consumers: Iterable[Consumer], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.small = small
        self.makers = {
            use.vertex: consumer for consumer in consumers if len(consumer.uses) == 1 for use in consumer.uses
        }
        self.vertices = {vertex.name: vertex for vertex in small.graph.vertices}
        provenance = small.dag.provenance
        assert provenance is not None
        self.samples = 1 if provenance.free_batch else provenance.input_shapes[0][0]
        self.run = Running(small)
        self.run.values = self.run.given(args, kwargs)
        for _, vertex in self.run.running():
            self.run.values[vertex.name] = self.run.vertex(vertex)
        self.values = self.run.values

    def product(self, name: str, call: Call | OperatorVertex, first: Operand, second: Operand) -> Product | None:
        """A product of which either factor is made by a layer; None where none is."""
        for ours, theirs in ((first, second), (second, first)):
            product = self._traced(name, call.args[ours.argument], ours, theirs)
            if product is not None:
                return product
        return None

    def _traced(self, name: str, query: Ref, ours: Operand, theirs: Operand) -> Product | None:
        path = self._path(query, name)
        if path is None:
            return None
        maker, steps = path
        consumer = self.makers[maker]
        if consumer.uses[0].shape.operator != "linear":
            return None
        result = self.values[maker]
        numbers = torch.arange(result.shape[-1], dtype=torch.float64).expand(result.shape)
        where = self._moved(numbers, maker, steps, query)
        if where is None:
            return None
        where = channels_last(where, ours.axis).round().long()
        if not bool((where == where[..., :1, :]).all()):
            return None  # channels that are others for every token
        rows = where[..., 0, :].reshape(-1, where.shape[-1])
        unique, heads = torch.unique(rows, dim=0, return_inverse=True)
        if unique.numel() != len(torch.unique(unique)) or not self._alone(name, maker, steps, unique):
            return None
        by_place = heads.reshape(where.shape[:-2]).unflatten(0, (self.samples, -1))
        if not bool((by_place == by_place[:1]).all()):
            return None
        return Product(name, ours.argument, theirs.argument, ours.axis, theirs.axis, consumer, unique, by_place[0])

    def _path(self, query: Ref, reader: str) -> tuple[str, list[tuple[str, Ref]]] | None:
        """The layer that makes a value, and the vertices between, with what each takes."""
        steps: list[tuple[str, Ref]] = []
        ref = query
        while ref.vertex not in self.makers:
            vertex = self.vertices.get(ref.vertex)
            call = self.small.calls.get(ref.vertex)
            if vertex is None or call is None or call.operator not in _MOVING | _SCALING or call.mode:
                return None
            source = call.args.get("input")
            if type(source) is not Ref or (call.operator in _SCALING and isinstance(call.args.get("other"), Ref)):
                return None
            steps.append((ref.vertex, source))
            ref = source
        return ref.vertex, steps[::-1]

    def _moved(self, numbers: Tensor, maker: str, steps: Sequence[tuple[str, Ref]], query: Ref) -> Tensor | None:
        """Where the elements of a layer's result are in a value that is made of it."""
        kept = dict(self.values)
        try:
            self.run.values[maker] = numbers
            for name, source in steps:
                if self.small.calls[name].operator in _SCALING:
                    self.run.values[name] = self.run.value(source)
                else:
                    self.run.values[name] = self.run.vertex(self.vertices[name])
            found = self.run.value(query)
            return found if isinstance(found, Tensor) else None
        finally:
            self.run.values = self.values = kept

    def _alone(self, product: str, maker: str, steps: Sequence[tuple[str, Ref]], rows: Tensor) -> bool:
        """Whether nothing but a product reads certain outputs of a layer.

        They are marked by numbers that are none, which are then followed through whatever moves them.
        """
        ours = {name for name, _ in steps}
        kept = dict(self.values)
        try:
            marked = self.values[maker].clone()
            marked[..., rows.flatten()] = torch.nan
            self.run.values[maker] = marked
            reached = {maker}
            for _, vertex in self.run.running():
                read = [arg.vertex for arg in walk_args(vertex_args(vertex)) if type(arg) is Ref]
                if vertex.name == product or not reached.intersection(read):
                    continue
                operator = self.small.calls[vertex.name].operator
                if vertex.name not in ours and operator not in _MOVING:
                    if any(_is_marked(self.run.value(arg)) for arg in operands_of(self.small.calls[vertex.name].args)):
                        return False
                    continue
                self.run.values[vertex.name] = self.run.vertex(vertex)
                if _is_marked(self.run.values[vertex.name]):
                    reached.add(vertex.name)
            return not _is_marked(self.run.value(self.small.graph.output))
        finally:
            self.run.values = self.values = kept


def _is_marked(value: Any) -> bool:
    return any(
        bool(leaf.isnan().any())
        for leaf in pytree.tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


@dataclass(slots=True)
class PairMoments:
    """Sums over the tokens of both factors of a product, for every head.

    Attributes:
        query: of products of what is left of a query with itself, of shape (heads, left, left).
        query_whole: with the whole query, of shape (heads, left, whole).
        whole_query: of the whole query with itself, of shape (heads, whole, whole).
        key, key_whole, whole_key: the same of keys.
    """

    query: Tensor
    query_whole: Tensor
    whole_query: Tensor
    key: Tensor
    key_whole: Tensor
    whole_key: Tensor

    @classmethod
    def of(cls, product: Product, left: Sequence[Tensor], whole: Sequence[Tensor]) -> PairMoments:
        """Those of a batch: of queries and keys, with channels last."""
        sums = []
        for ours, theirs in zip(left, whole, strict=True):
            ours, theirs = ours.double(), theirs.double()
            for a, b in ((ours, ours), (ours, theirs), (theirs, theirs)):
                pairs = (a.mT @ b).flatten(0, -3)
                heads = product.heads_of(ours)
                sums.append(pairs.new_zeros(len(product.rows), *pairs.shape[1:]).index_add_(0, heads, pairs))
        return cls(*sums)

    def __add__(self, other: PairMoments) -> PairMoments:
        return PairMoments(*[getattr(self, name) + getattr(other, name) for name in self.__slots__])

    def mixing(self, strength: float) -> Tensor:
        """What is left of queries is multiplied with it, of shape (heads, left, left)."""
        query = _held(self.query, strength, self.query_whole)
        key = _held(self.key, strength, self.key_whole)
        return query @ key.mT

    def error(self, mixing: Tensor) -> float:
        """The sum of the squares of what the products of all pairs of tokens miss the whole ones by."""
        missed = (mixing.mT @ self.query @ mixing * self.key).sum() - 2 * (
            mixing * (self.query_whole @ self.key_whole.mT)
        ).sum()
        return max(float(missed) + self.scale(), 0.0)

    def scale(self) -> float:
        """The sum of the squares of the whole products."""
        return float((self.whole_query * self.whole_key).sum())


def _held(left: Tensor, strength: float, whole: Tensor) -> Tensor:
    """What takes the whole to the left, by ridge regression."""
    diagonal = left.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(left.dtype).tiny)
    eye = torch.eye(left.shape[1], dtype=left.dtype, device=left.device)
    return torch.linalg.solve(left + strength * diagonal[:, None, None] * eye, whole)


def solve_product(fitted: PairMoments, held_out: PairMoments) -> tuple[Tensor, float, float, float | None]:
    """The mixing of what is left of queries that gives the products of the whole ones as closely as may be.

    Were the queries and keys of all tokens multiplied with each other, ``argmin |q M k' - q_whole k_whole'|^2`` would
    be the product of two regressions, of whole queries on what is left of them, and of keys. Their strength is chosen
    on samples that they are not fitted to. CORP (arXiv 2602.05243) does this for vision transformers.

    Returns:
        The mixing, of shape (heads, left, left); the error before and after as shares of the squares of the whole
        products; and the strength, None where nothing does better than what is there.
    """
    everything = fitted if held_out is fitted else fitted + held_out
    nothing = torch.eye(fitted.query.shape[1], dtype=fitted.query.dtype, device=fitted.query.device).expand_as(
        fitted.query
    )
    scale = everything.scale() or 1.0
    before = everything.error(nothing)
    best, least = None, held_out.error(nothing)
    for strength in STRENGTHS[1:]:
        missed = held_out.error(fitted.mixing(strength))
        if missed < least * (1 - 1e-9):
            best, least = strength, missed
    if best is not None:
        mixing = everything.mixing(best)
        after = everything.error(mixing)
        if after < before:
            return mixing, before / scale, after / scale, best
    return nothing, before / scale, before / scale, None
