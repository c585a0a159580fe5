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
from torchorbit.pruning.criteria.lamp import shares_of_rest
from torchorbit.pruning.criteria.slices import require_weights
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores
from torchorbit.records import opened


@dataclass(frozen=True)
class FisherNoise(WeightCriterion):
    """What the outputs change by without a unit, as noise tells it: Fisher information that needs no data.

    The mean squared change of the outputs when a gate closes that multiplies the unit, to first order, is the mean of
    ``(J a)^2`` over inputs, with the activations ``a`` of the unit and the derivatives ``J`` of all outputs by them. It
    is the Fisher information of the gate where outputs are the means of a normal distribution, and estimated along one
    random direction of outputs for each sample (Hutchinson's estimate), which makes it `torchorbit.criteria.Fisher`
    without labels. Inputs are noise with the spectrum of images, and batch norms normalize it by its own statistics
    instead of those of images: what comes out of them has the mean and the variance that it has in the trained model,
    however little the inputs look like images. Layer norms do so anyway.

    Changes add up over the places where a unit is consumed, and reach the outputs through all that follows. So what is
    removed from a residual stream, which every block reads, is as dear as it should be. To first order the last units
    of an orbit are no dearer than the first, but what they change they change in less and less that is left: changes
    are divided by the share that the units of the orbit make up together that change at least as much, as
    `torchorbit.criteria.Lamp` does it with weights. Scores of different orbits can be compared and add up: with
    ``selector="knapsack"`` the least change is chosen that meets a target.

    Of several outputs each is divided by its root mean square; whole numbers among them do not count. Scored anew in
    several steps (``steps=4`` of `torchorbit.prune`) the choice is better still.

    Attributes:
        samples: of noise. With fewer the scores are less exact.
        batch_size: how many run at once, where the batch size of the graph is free; else its own, as often as it takes.
            Batch norms behind few pixels need some samples for their statistics.
        seed: of the noise.

    Raises:
        ArgumentError: a number is out of range.
        ArgumentTypeError: a number is no whole number.
    """

    samples: int = 32
    batch_size: int = 16
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
            CalibrationError: as for `changes`.
        """
        values = {orbit: changes.sum() * shares_of_rest(changes) for orbit, changes in self.changes(orbits).items()}
        return Scores(orbits, values, criterion=describe(self), comparable=self.comparable)

    def changes(self, orbits: Orbits) -> Scores:
        """Half the mean squared change of the outputs without each unit alone, to first order.

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
        return found


def _projected(output: Any, directions: torch.Generator) -> Tensor:
    """The outputs along a random direction for each sample, summed; each tensor over its root mean square.

    Raises:
        CalibrationError: there are no floating point numbers among them.
    """
    found = [tensor for tensor in leaves_of(Tensor, opened(output)) if tensor.is_floating_point()]
    if not found:
        raise CalibrationError("it gives no floating point numbers")
    total = torch.zeros((), device=found[0].device)
    for tensor in found:
        direction = torch.randn(tensor.shape, generator=directions).to(tensor)
        scale = tensor.detach().float().square().mean().sqrt().clamp(min=1e-12)
        total = total + (tensor * direction).float().sum() / scale
    return total
