"""What a unit adds to the model beside any others."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.pruning.criteria.base import LossCriterion, Losses

_WIDEST = 16  # of an orbit whose subsets are all evaluated


@dataclass(frozen=True)
class Shapley(LossCriterion):
    """The Shapley value of a unit: by how much its removal raises the loss, on average over the order of removals.

    From "Shapley Value as Principled Metric for Structured Network Pruning", Ancona et al., 2020 (arXiv 2006.01795).
    The values of an orbit add up to what the loss rises by when all of it is zero.

    Attributes:
        sv_samples: how many orders of removal are drawn for each orbit in each batch, which takes ``sv_samples *
            width`` evaluations of what comes after the orbit; None evaluates all ``2 ** width`` subsets instead, which
            is exact.
        seed: of the orders.

    Raises:
        ArgumentError: ``sv_samples`` is not positive; or, once it runs, it is None and an orbit is wider than 16.
    """

    sv_samples: int | None = 5
    seed: int = 0

    name: ClassVar[str] = "shapley"
    comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.sv_samples is not None and self.sv_samples < 1:
            raise ArgumentError(f"sv_samples={self.sv_samples}, expected a positive number, or None for all subsets")

    def per_sample(self, losses: Losses) -> Tensor:
        """The mean of what the loss rises by when a unit is removed after those before it."""
        if self.sv_samples is None:
            return _exact(losses)
        generator = np.random.default_rng((self.seed, *losses.seed))
        whole = losses.without(torch.zeros(losses.width, dtype=torch.bool))
        empty: Tensor | None = None
        values = whole.new_zeros(len(whole), losses.width)
        for _ in range(self.sv_samples):
            removed = torch.zeros(losses.width, dtype=torch.bool)
            before = whole
            order = generator.permutation(losses.width).tolist()
            for unit in order:
                removed[unit] = True
                after = empty if unit == order[-1] and empty is not None else losses.without(removed)
                values[:, unit] += after - before
                before = after
            empty = before
        return values / self.sv_samples


def _exact(losses: Losses) -> Tensor:
    """The weighted mean over all subsets of the others."""
    width = losses.width
    if width > _WIDEST:
        raise ArgumentError(
            f"an orbit has {width} units, and 2 ** {width} subsets are too many; give sv_samples a number (5, say)"
        )
    bits = torch.arange(width)
    found = [losses.without((number >> bits) % 2 == 1) for number in range(2**width)]
    values = found[0].new_zeros(len(found[0]), width)
    for number, before in enumerate(found):
        size = number.bit_count()
        for unit in range(width):
            if not number >> unit & 1:
                share = 1 / (width * comb(width - 1, size))
                values[:, unit] += share * (found[number | 1 << unit] - before)
    return values
