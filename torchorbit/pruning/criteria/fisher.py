"""What the loss would change by without a unit, to second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchorbit.pruning.criteria.base import ActivationCriterion, GradientCriterion


@dataclass(frozen=True)
class Fisher(ActivationCriterion):
    """Half the mean squared gradient of each sample's loss by a gate that multiplies the unit wherever it is consumed.

    The gradient by the gate is the sum of activation times gradient over all positions; its mean square, the empirical
    Fisher information, takes the place of the second derivative. From "Faster gaze prediction with dense networks and
    Fisher pruning", Theis et al., 2018 (arXiv 1801.05787).
    """

    name: ClassVar[str] = "fisher"
    comparable: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Sum activation times gradient over positions."""
        assert gradient is not None
        return (activation * gradient).sum(1)[None]

    def per_sample(self, statistics: Tensor) -> Tensor:
        """Half its square."""
        return statistics[0].square() / 2


@dataclass(frozen=True)
class FisherWeights(GradientCriterion):
    """Half the sum of squared weight times squared gradient over all weights of a unit.

    This is the saliency of "Optimal Brain Damage", LeCun et al., 1990, with the diagonal of the empirical Fisher
    information for the second derivatives. Gradients are those of batches, whose squares are smaller than the samples'
    own; with batches of one sample it is the Fisher information itself.
    """

    name: ClassVar[str] = "fisher_weights"
    comparable: ClassVar[bool] = True

    def statistics(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Sum the squares of weight times gradient, and halve them."""
        return (weight * gradient).square().sum(1) / 2

    def per_batch(self, statistics: Tensor) -> Tensor:
        """The sum itself."""
        return statistics
