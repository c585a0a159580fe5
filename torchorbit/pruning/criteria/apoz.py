"""How often a unit is active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchorbit.pruning.criteria.base import ActivationCriterion


@dataclass(frozen=True)
class APoZ(ActivationCriterion):
    """The share of a unit's activations that are positive: 1 - APoZ, the average percentage of zeros.

    From "Network Trimming", Hu et al., 2016 (arXiv 1607.03250). It tells units apart where they are cut off at zero
    before they are consumed (ReLU); with other activation functions it is the share of positive values.
    """

    name: ClassVar[str] = "apoz"

    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Count the positive activations, and all of them."""
        positive = (activation > 0).sum(1, dtype=activation.dtype)
        return torch.stack([positive, torch.full_like(positive, activation.shape[1])])

    def per_sample(self, statistics: Tensor) -> Tensor:
        """The share of those that are positive."""
        return statistics[0] / statistics[1].clamp(min=1)
