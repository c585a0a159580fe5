"""What the loss would change by without a unit, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchorbit.pruning.criteria.base import ActivationCriterion, GradientCriterion


@dataclass(frozen=True)
class Taylor(ActivationCriterion):
    """The change of each sample's loss when a gate closes that multiplies the unit wherever it is consumed.

    To first order this is minus the sum of activation times gradient over all positions. From "Pruning Convolutional
    Neural Networks for Resource Efficient Inference", Molchanov et al., 2017 (arXiv 1611.06440), on whole orbits.

    Attributes:
        signed: keep the sign, so that units whose removal lowers the loss go first, and changes of different samples
            cancel; otherwise the absolute value of every sample's change counts.
    """

    signed: bool = False

    name: ClassVar[str] = "taylor"
    comparable: ClassVar[bool] = True
    gradients: ClassVar[bool] = True

    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Sum minus activation times gradient over positions."""
        assert gradient is not None
        return -(activation * gradient).sum(1)[None]

    def per_sample(self, statistics: Tensor) -> Tensor:
        """Its absolute value, unless signs are kept."""
        return statistics[0] if self.signed else statistics[0].abs()


@dataclass(frozen=True)
class TaylorWeights(GradientCriterion):
    """The squared change of a batch's loss when all weights of a unit are zero, to first order.

    This is the square of the sum of weight times gradient, over all slices of the unit. From "Importance Estimation for
    Neural Network Pruning", Molchanov et al., 2019 (arXiv 1906.10771), on whole orbits. It depends on how samples are
    put together in batches.
    """

    name: ClassVar[str] = "taylor_weights"
    comparable: ClassVar[bool] = True

    def statistics(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Sum weight times gradient."""
        return (weight * gradient).sum(1)

    def per_batch(self, statistics: Tensor) -> Tensor:
        """The square of the sum."""
        return statistics.square()
