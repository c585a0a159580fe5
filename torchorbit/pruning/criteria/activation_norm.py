"""How large the activations of a unit are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.pruning.criteria.base import ActivationCriterion


@dataclass(frozen=True)
class ActivationNorm(ActivationCriterion):
    """The mean absolute activation of a unit, or the root mean square.

    The mean activation is one of the criteria compared in "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", Molchanov et al., 2017 (arXiv 1611.06440).

    Attributes:
        p: 1 for the mean of absolute values over the positions of a sample, 2 for the root of the mean of squares.

    Raises:
        ArgumentError: ``p`` is neither.
    """

    p: int = 1

    name: ClassVar[str] = "activation_norm"

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ArgumentError(f"p={self.p!r}, expected 1 or 2")

    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Sum the powers of the activations, and count them."""
        powers = (activation.abs() if self.p == 1 else activation.square()).sum(1)
        return torch.stack([powers, torch.full_like(powers, activation.shape[1])])

    def per_sample(self, statistics: Tensor) -> Tensor:
        """The mean, and its root where they are squares."""
        mean = statistics[0] / statistics[1].clamp(min=1)
        return mean if self.p == 1 else mean.sqrt()
