"""Norms of a unit's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.slices import OrbitWeights, Over, Reduction, WeightRows, check_choice, reduced
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Divisor, Scores, normalized

#: Over what norms are normalized: the units of an orbit in each ``"tensor"``, those of the ``"orbit"``, or ``"all"``.
Per = Literal["tensor", "orbit", "all"]


@dataclass(frozen=True)
class WeightNorm(WeightCriterion):
    """The p-norm of what a unit owns of each tensor, reduced over the tensors.

    With ``over="sources"`` it is that of "Pruning Filters for Efficient ConvNets" (Li et al., 2017): the norm of a
    layer's filters without their biases, as TorchPruner's ``WeightNormAttributionMetric`` takes it. By default all
    that goes with a unit counts, as in DepGraph (Fang et al., 2023; ``group_reduction`` and ``normalizer`` in
    Torch-Pruning).

    Attributes:
        p: above 0; infinity gives the largest absolute value.
        over: ``"all"`` slices that a unit owns of parameters, or only those of its ``"sources"``: the kernels of the
            layers that produce its channels, along their outputs and without biases. An orbit that no layer produces
            counts all.
        reduce: ``"mean"``, ``"sum"`` or ``"max"`` of the norms over the tensors of a unit, a tensor that is cut along
            two dimensions counted as two.
        normalize: ``"sum"``, ``"mean"``, ``"max"``, ``"l2"`` or ``"standard"``, as in `Scores.normalized`; None
            leaves norms as they are.
        per: over what to normalize: ``"tensor"`` makes those of one orbit count alike, before they are reduced,
            ``"orbit"`` those of one graph; ``"all"`` orbits together only changes the unit of measurement.

    Raises:
        ArgumentError: an option has none of these values.
    """

    p: float = 2.0
    over: Over = "all"
    reduce: Reduction = "mean"
    normalize: Divisor | None = None
    per: Per = "orbit"

    name: ClassVar[str] = "weight_norm"

    def __post_init__(self) -> None:
        if not isinstance(self.p, (int, float)) or isinstance(self.p, bool) or not self.p > 0:
            raise ArgumentError(f"p={self.p!r}, expected a number above 0")
        check_choice("over", self.over, Over)
        check_choice("reduce", self.reduce, Reduction)
        if self.normalize is not None:
            check_choice("normalize", self.normalize, Divisor)
        check_choice("per", self.per, Per)

    @torch.no_grad()
    def scores(self, orbits: Orbits) -> Scores:
        """Score all units."""
        slices = OrbitWeights(orbits)
        values = {}
        for orbit in orbits:
            norms = [norm(part, self.p) for part in slices.of(orbit, self.over)]
            if self.per == "tensor" and self.normalize is not None:
                norms = [torch.from_numpy(normalized(n.cpu().numpy(), self.normalize)) for n in norms]
            values[orbit] = reduced(norms, self.reduce, orbit.width)
        scores = Scores(orbits, values, criterion=describe(self))
        return scores if self.per == "tensor" else scores.normalized(self.normalize, globally=self.per == "all")


@dataclass(frozen=True)
class L1(WeightNorm):
    """The sums of absolute values of what a unit owns: `WeightNorm` with ``p=1``."""

    p: float = 1.0

    name: ClassVar[str] = "l1"


@dataclass(frozen=True)
class L2(WeightNorm):
    """The Euclidean norms of what a unit owns: `WeightNorm` with ``p=2``."""

    name: ClassVar[str] = "l2"


def norm(part: WeightRows, p: float) -> Tensor:
    """The p-norm of what every unit owns of one dimension of a tensor, of shape (width,)."""
    absolute = part.rows.abs()
    if math.isinf(p):
        largest = absolute.amax(1) if absolute.shape[1] else absolute.new_zeros(len(absolute))
        return part.greatest(largest)
    return part.summed(absolute.pow(p).sum(1)).pow(1 / p)
