"""What the weights of a layer are fitted to, as rows of inputs and outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchorbit.arguments import Ref
from torchorbit.pruning.reconstruction.consumers import Consumer, Use
from torchorbit.pruning.reconstruction.lockstep import Lockstep
from torchorbit.pruning.reconstruction.moments import Moments
from torchorbit.pruning.reconstruction.solving import Solution, solve
from torchorbit.pruning.reconstruction.storing import Values

#: Every so many-th sample is not fitted to, and decides how strongly weights are held where they are.
HELD_OUT = 4
# Inputs of rows that are taken at once: 32 MB of them.
_NUMBERS_AT_ONCE = 1 << 23


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many rows are looked at.

    Attributes:
        rows: for every input of a row.
        least: so many at least, where there are as many.
        seed: of which ones.
    """

    rows: int = 16
    least: int = 4096
    seed: int = 0


class Fitting(ABC):
    """Collects rows of a layer over all batches and all of its uses, and solves for its weights.

    Args:
        consumer: the layer.
        steps: runs both graphs.
        sampling: how many rows there are to be.
    """

    def __init__(self, consumer: Consumer, steps: Lockstep, sampling: Sampling):
        self.consumer = consumer
        self.steps = steps
        self._sampling = sampling
        self._moments: list[Moments | None] = [None, None]
        self._starts = [0]
        for samples in steps.batches.samples:
            self._starts.append(self._starts[-1] + samples)

    @abstractmethod
    def look(self, use: Use, values: Values, number: int, *, forced: bool = False) -> None:
        """Take rows from the values of a batch.

        Args:
            use: a call of the layer.
            values: up to it in both graphs, its result in the whole one included.
            number: of the batch.
            forced: take the input of the whole graph, as far as it is kept, for that of the pruned one.
        """

    @abstractmethod
    def solve(self) -> Solution | None:
        """The weights, as `Solution` has them; None where there were no rows."""

    def _index(
        self, places: int, number: int, inputs: int, groups: int, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """The places of which rows are taken, some at a time: 0 and those to be fitted to, 1 and those held out.

        Args:
            places: how many there are in the batch, those of a sample one after the other.
            number: of the batch.
            inputs: of a row.
            groups: how many rows a place gives.
            device: of the values.
        """
        samples, total = self.steps.batches.samples[number], self._starts[-1]
        wanted = max(self._sampling.least, self._sampling.rows * inputs)
        share = math.ceil(wanted * samples / total / len(self.consumer.uses))
        index = torch.arange(places)
        if share < places:
            generator = torch.Generator().manual_seed(self._sampling.seed + number)
            index = torch.randperm(places, generator=generator)[:share].sort().values
        # Places of one sample are alike. Where there are few samples there is nothing else, though.
        apart = index if total < HELD_OUT else self._starts[number] + index * samples // places
        held = apart % HELD_OUT == HELD_OUT - 1
        for half, part in enumerate((index[~held], index[held])):
            for some in part.split(max(_NUMBERS_AT_ONCE // (inputs * groups), 1)) if len(part) else ():
                yield half, some.to(device)

    def _add(self, half: int, x: Tensor, y: Tensor) -> None:
        moments = self._moments[half]
        if moments is None:
            other = self._moments[1 - half]
            points = [part.double().mean(1, keepdim=True) for part in (x, y)] if other is None else [other.x0, other.y0]
            moments = self._moments[half] = Moments.about(*points)
        moments.add(x, y)

    def _solved(self, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Solution | None:
        fitted, held_out = self._moments
        fitted, held_out = fitted or held_out, held_out or fitted
        if fitted is None or held_out is None:
            return None
        return solve(fitted, held_out, weight, bias, free_bias=free_bias)


def matrices_of(consumer: Consumer) -> tuple[Tensor, Tensor]:
    """The weights of a layer of shape (groups, outputs, inputs of a row), and its bias of (groups, 1, outputs)."""
    weight = consumer.uses[0].shape.matrices(consumer.weight.detach()).double()
    groups, outputs, _ = weight.shape
    bias = weight.new_zeros(groups, 1, outputs)
    if consumer.bias is not None:
        bias = consumer.bias.detach().double().reshape(groups, 1, outputs)
    return weight, bias


class Rows(Fitting):
    """The layer's own outputs in the whole graph, from its inputs in the pruned one."""

    def look(self, use: Use, values: Values, number: int, *, forced: bool = False) -> None:
        """Take rows from the values of a batch."""
        shape, weight = use.shape, self.consumer.weight
        x = self._wide(use, values) if forced else self.steps.value(1, values, use.input)
        y = self.steps.kept(Ref(use.vertex), values[0][use.vertex])
        if x is None or y is None:
            return
        x, y = shape.with_batch(x, weight), shape.with_batch(y, weight)
        inputs = weight.numel() // weight.shape[1 if shape.transposed else 0]
        for half, index in self._index(shape.places(y), number, inputs, shape.groups, x.device):
            self._add(half, shape.inputs(x, weight.shape[2:], index), shape.outputs(y, index))

    def _wide(self, use: Use, values: Values) -> Tensor | None:
        """The input of the whole graph, as far as it is kept."""
        arg = self.steps.whole.calls[use.vertex].args["input"]
        return self.steps.kept(arg, self.steps.value(0, values, arg))

    def solve(self) -> Solution | None:
        """Weights that give the outputs of the whole graph."""
        return self._solved(*matrices_of(self.consumer), free_bias=self.consumer.free_bias)


class Channels(Fitting):
    """The channels of the layer's input in the whole graph, from those that the pruned one has.

    What takes the one to the other is put into the weights: ``W' = W M``. There are as many inputs as channels,
    whatever the kernel is.

    Args:
        consumer: the layer.
        steps: runs both graphs.
        sampling: how many rows there are to be.
        weight: of the layer in the whole graph, all of its inputs and the outputs that are kept.
        kept: for every group the channels that are kept, of shape (groups, channels of the pruned graph).
        alone: whether the inputs of the pruned graph are taken to be those of the whole one.
    """

    def __init__(
        self, consumer: Consumer, steps: Lockstep, sampling: Sampling, weight: Tensor, kept: Tensor, *, alone: bool
    ):
        super().__init__(consumer, steps, sampling)
        self._weight = weight
        self._kept = kept
        self._alone = alone

    def look(self, use: Use, values: Values, number: int, *, forced: bool = False) -> None:
        """Take rows from the values of a batch."""
        whole: Any = self.steps.whole.calls[use.vertex].args["input"]
        y = use.shape.with_batch(self.steps.value(0, values, whole), self.consumer.weight)
        channels = y.shape[-1] if use.shape.operator == "linear" else y.shape[1]
        groups, inputs = self._weight.shape[0], self._weight.shape[2]
        if channels != groups * inputs:
            return
        x = None
        if not self._alone:
            x = use.shape.with_batch(self.steps.value(1, values, use.input), self.consumer.weight)
        for half, index in self._index(use.shape.places(y), number, inputs, groups, y.device):
            ys = use.shape.channels(y, index)
            chosen = self._kept.to(ys.device)[:, None].expand(-1, ys.shape[1], -1)
            self._add(half, ys.gather(2, chosen) if x is None else use.shape.channels(x, index), ys)

    def solve(self) -> Solution | None:
        """Weights that give what those of the whole graph give of its inputs as the pruned one has them."""
        _, bias = matrices_of(self.consumer)
        groups, inputs = self._weight.shape[0], self._weight.shape[2]
        chosen = self._weight.new_zeros(groups, inputs, self._kept.shape[1]).scatter_(1, self._kept[:, None], 1.0)
        off = self._weight.new_zeros(groups, 1, inputs)
        found = self._solved(chosen, off, free_bias=self.consumer.free_bias)
        if found is None:
            return None
        weight = torch.einsum("goik,gij->gojk", self._weight, found.weight).flatten(2)
        added = torch.einsum("goik,gri->gro", self._weight, found.bias)
        return Solution(weight, bias + added, found.before, found.after, found.strength)
