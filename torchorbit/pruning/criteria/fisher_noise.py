"""How much the outputs change without a unit, on noise: second order, and no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchorbit.comparing import evaluating
from torchorbit.containers import leaves_of
from torchorbit.errors import ArgumentError, ArgumentTypeError, CalibrationError, GraphRunError
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.criteria.base import WeightCriterion
from torchorbit.pruning.criteria.fisher import Fisher
from torchorbit.pruning.criteria.slices import require_weights
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


@dataclass(frozen=True)
class FisherNoise(WeightCriterion):
    """Half the mean squared change of the outputs when a gate closes that multiplies the unit, to first order.

    This is the Fisher information of the gate where the outputs f are the means of a normal distribution of unit
    variance: the mean of ``(J a)^2 / 2`` over inputs, with the activations ``a`` of the unit and the derivatives ``J``
    of all outputs by them. The square is estimated by one random direction ``r`` of outputs for each sample, the mean
    square of ``r . J a`` being that of ``J a`` where ``r`` is standard normal (Hutchinson's estimate). So it is
    `torchorbit.criteria.Fisher` without labels, and it needs no images either: inputs are standard normal noise,
    and batch norms normalize it by its own statistics instead of those of images, so that what comes out of them has
    the mean and the variance that it has in the trained model, however little the inputs look like images. Layer norms
    do so anyway.

    Changes add up over the places where a unit is consumed and reach the outputs through all that follows. So what is
    removed from a residual stream, which every block reads, is as dear as it should be, and scores of different orbits
    can be compared: with ``selector="knapsack"`` they buy the most for a target. Of several outputs
    each is divided by its root mean square; whole numbers among them do not count.

    Attributes:
        samples: of noise. With fewer the scores are less exact.
        batch_size: how many run at once, where the batch size of the graph is free; else its own, as often as it takes.
        seed: of the noise.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: a number is no whole number.
    """

    samples: int = 32
    batch_size: int = 8
    seed: int = 0

    name: ClassVar[str] = "fisher_noise"
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f"{name}={value!r}, expected a whole number")
            if value < least:
                raise ArgumentError(f"{name}={value}, expected {least} or more")

    def scores(self, orbits: Orbits) -> Scores:
        """Score all units.

        Raises:
            ArgumentError: the graph has no weights.
            CalibrationError: the graph does not run on noise, or gives no finite floating point numbers that depend on
                any of its channels.
        """
        from torchorbit.pruning.calibration import calibrate  # it knows all criteria
        from torchorbit.pruning.noise import fitted_to_noise, noise

        require_weights(orbits)
        if not len(orbits):
            return Scores(orbits, {}, criterion=describe(self), comparable=self.comparable)
        dag, fisher = orbits.model.dag, Fisher()
        directions = torch.Generator().manual_seed(self.seed)
        try:
            batches = noise(dag, samples=self.samples, batch_size=self.batch_size, seed=self.seed)
            with torch.inference_mode(False), evaluating(dag), fitted_to_noise(dag, batches):
                found = calibrate(
                    dag,
                    batches,
                    lambda output, batch: _projected(output, directions),
                    [fisher],
                    orbits=orbits,
                    sample_to_model_inputs=lambda batch: (batch.args, batch.kwargs),
                    sample_to_n_samples=lambda batch: batch.samples,
                    loss_reduction="sum",
                )[fisher]
        except (CalibrationError, GraphRunError) as error:
            raise CalibrationError(
                f"{self} cannot score this model on noise: {error}. Give a criterion that looks at weights alone, as "
                "criterion='magnitude', or at data"
            ) from error
        return Scores(orbits, found, criterion=describe(self), comparable=self.comparable)


def _projected(output: Any, directions: torch.Generator) -> Tensor:
    """The outputs along a random direction for each sample, summed; each tensor over its root mean square.

    Raises:
        CalibrationError: there are no floating point numbers among them.
    """
    found = [tensor for tensor in leaves_of(Tensor, output) if tensor.is_floating_point()]
    if not found:
        raise CalibrationError("it gives no floating point numbers")
    total = torch.zeros((), device=found[0].device)
    for tensor in found:
        direction = torch.randn(tensor.shape, generator=directions).to(tensor)
        scale = tensor.detach().float().square().mean().sqrt().clamp(min=1e-12)
        total = total + (tensor * direction).float().sum() / scale
    return total
