"""What a criterion is. A new one is one file beside this one, and one line in ``__init__.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor

from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


class Criterion(ABC):
    """Gives every unit of every orbit a score: the lower, the sooner it goes.

    Attributes:
        name: what it is called, on the command line and in model cards.
        comparable: whether scores of different orbits can be compared as they are: changes of the loss can, norms
            cannot.
        additive: whether scores that can be compared also add up to what several units are worth together, and can be
            set against what they cost.
    """

    name: ClassVar[str]
    comparable: ClassVar[bool] = False
    additive: ClassVar[bool] = True

    def __str__(self) -> str:
        """Its name, and the options that are not as by default."""
        return str(describe(self))


class WeightCriterion(Criterion):
    """A criterion that looks at weights only."""

    @abstractmethod
    def scores(self, orbits: Orbits) -> Scores:
        """Score all units.

        Raises:
            ArgumentError: the weights are on the meta device.
        """


class ActivationCriterion(Criterion):
    """A criterion that looks at activations at the places where an orbit's channels are consumed, and their gradients.

    At every place, `statistics` reduces the activations (and the gradients of the loss) to a few numbers per sample and
    channel. These add up over the places of an orbit, and over all channels that belong to one unit; `per_sample` makes
    one number of what came together, and the score is its mean over all samples.

    Attributes:
        gradients: whether `statistics` needs gradients.
    """

    gradients: ClassVar[bool] = False

    @abstractmethod
    def statistics(self, activation: Tensor, gradient: Tensor | None) -> Tensor:
        """Reduce what is seen at one place.

        Args:
            activation: values of shape (samples, positions, channels).
            gradient: of each sample's own loss by them, of the same shape; None where ``gradients`` is false.

        Returns:
            A tensor of shape (numbers, samples, channels).
        """

    @abstractmethod
    def per_sample(self, statistics: Tensor) -> Tensor:
        """Make one number of the statistics of a unit.

        Args:
            statistics: summed over places and channels, of shape (numbers, samples, units).

        Returns:
            A tensor of shape (samples, units).
        """


class GradientCriterion(Criterion):
    """A criterion that looks at parameters and at the gradients of the loss by them, batch by batch."""

    @abstractmethod
    def statistics(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Reduce a parameter of which units own slices.

        Args:
            weight: of shape (channels, numbers of each).
            gradient: of the batch's mean loss by it, of the same shape.

        Returns:
            A tensor of shape (channels,); these add up over all slices of a unit.
        """

    @abstractmethod
    def per_batch(self, statistics: Tensor) -> Tensor:
        """Make a number of the statistics of a unit in one batch.

        Args:
            statistics: summed over the slices of each unit, of shape (units,).

        Returns:
            A tensor of shape (units,); the score is its mean over batches, each as often as it has samples.
        """


class LossCriterion(Criterion):
    """A criterion that asks what the loss would be without some units, as often as it likes."""

    @abstractmethod
    def per_sample(self, losses: Losses) -> Tensor:
        """Score the units of one orbit on one batch.

        Args:
            losses: answers what the loss of every sample is when some units of the orbit are zero.

        Returns:
            A tensor of shape (samples, units), or (1, units) where the loss is one number for the batch; the score is
            its mean over all samples.
        """


class Losses(ABC):
    """Answers what the loss is when some units of an orbit are zero where they are consumed.

    Attributes:
        width: number of units.
        seed: tells this orbit in this batch from others; whatever is drawn for it starts from here.
    """

    width: int
    seed: tuple[int, ...]

    @abstractmethod
    def without(self, removed: Tensor) -> Tensor:
        """The loss of every sample.

        Args:
            removed: which units are zero, booleans of shape (width,).

        Returns:
            A tensor of shape (samples,), or (1,) where the loss is one number for the batch.
        """


#: Where activations are looked at: ``"consumed"`` is where other layers take them in, after normalization and
#: activation; ``"produced"`` is the output of the layers that make them.
Place = Literal["consumed", "produced"]
