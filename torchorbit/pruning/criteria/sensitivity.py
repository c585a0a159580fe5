"""How strongly the loss reacts to a unit's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchorbit.pruning.criteria.base import ActivationCriterion


@dataclass(frozen=True)
class Sensitivity(ActivationCriterion):
    """The sum of the absolute gradients of a sample's loss by a unit's activations (arXiv 1812.10240, TorchPruner)."""

    name: ClassVar[str] = "sensitivity"
    comparable: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Sum the absolute gradients over positions."""
        assert gradient is not None
        return gradient.abs().sum(1)[None]

    def per_sample(self, statistics: Tensor) -> Tensor:
        """The sum itself."""
        return statistics[0]
