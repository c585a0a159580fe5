"""Weights that give what is wanted, as closely as least squares can, without going far from those that are there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchorbit.pruning.reconstruction.moments import Moments

#: How much weights are held where they are, in parts of the mean square of an input; infinity moves the bias alone.
STRENGTHS = (math.inf, 1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-6, 1e-8)
# Of more inputs the products are in single precision (`Moments.add`), and so is what is made of them.
_STRENGTHS_OF_MANY = (math.inf, 0.1, 0.01, 1e-3)
_MANY = 1024
_MUCH = 1.05


@dataclass(frozen=True, slots=True)
class Solution:
    """New weights of a layer.

    Attributes:
        weight: of shape (groups, outputs, inputs).
        bias: of shape (groups, 1, outputs).
        before: sum of the squares that the old weights miss what is wanted by, over that of what is wanted about its
            mean.
        after: that of these.
        strength: how much they were held where they were; None where the old ones were left.
    """

    weight: Tensor
    bias: Tensor
    before: float
    after: float
    strength: float | None


def solve(fitted: Moments, held_out: Moments, weight: Tensor, bias: Tensor, *, free_bias: bool) -> Solution:
    """Find weights by ridge regression around those that are there.

    ``argmin |W x + b - y|^2 + strength |W - weight|^2``, with the strength that does best on rows which it was not
    fitted to; with that one it is then fitted to all of them. Where no strength does better there than the weights that
    are there, these are left.

    Args:
        fitted: moments of some rows.
        held_out: those of others, by which the strength is chosen; where there are none, of the same.
        weight: of shape (groups, outputs, inputs).
        bias: of shape (groups, 1, outputs).
        free_bias: whether the bias may change.
    """
    everything = fitted if held_out is fitted else fitted.with_(held_out)
    scale = everything.spread() or 1.0
    before = everything.error(weight, bias)
    best, least = None, held_out.error(weight, bias)
    strengths = STRENGTHS if weight.shape[2] <= _MANY else _STRENGTHS_OF_MANY
    ridge = _Ridge(fitted, weight, bias, free_bias)
    for strength in strengths if free_bias else strengths[1:]:
        found = ridge.at(strength)
        missed = math.inf if found is None else held_out.error(*found)
        if missed < least * (1 - 1e-9):
            best, least = strength, missed
        elif best is not None and missed > least * _MUCH:
            break  # weaker ones fit the rows that they are fitted to, and no others
    if best is not None:
        if everything is not fitted:
            ridge = _Ridge(everything, weight, bias, free_bias)
        found = ridge.at(best)
        after = math.inf if found is None else everything.error(*found)
        if found is not None and after < before:
            return Solution(*found, before / scale, after / scale, best)
    return Solution(weight, bias, before / scale, before / scale, None)


class _Ridge:
    """Ridge regression around weights.

    Args:
        moments: of the rows that are fitted to.
        weight: of shape (groups, outputs, inputs).
        bias: of shape (groups, 1, outputs).
        free_bias: whether the bias may change.
    """

    def __init__(self, moments: Moments, weight: Tensor, bias: Tensor, free_bias: bool):
        self._means = moments.means()
        if free_bias:
            xx, xy = moments.centred()
        else:
            xx, xy = moments.about_zero()
            xy = xy - moments.rows * self._means[0].mT @ bias
        if xx.shape[1] > _MANY:
            xx, xy = xx.float(), xy.float()
        self._weight, self._bias, self._free_bias = weight, bias, free_bias
        self._xx = xx
        self._left = xy - xx @ weight.to(xx).mT  # what the weights that are there leave
        # One strength for all groups would hold those with small inputs only.
        self._unit = xx.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=torch.finfo(xx.dtype).tiny)

    def at(self, strength: float) -> tuple[Tensor, Tensor] | None:
        """Weights and bias for one strength; None where there are none."""
        new = self._weight
        if math.isfinite(strength):
            held = self._xx.clone()
            held.diagonal(dim1=1, dim2=2).add_(strength * self._unit)
            factor, failed = torch.linalg.cholesky_ex(held)
            if bool(failed.any()):
                return None
            new = new + torch.cholesky_solve(self._left, factor).mT.to(new)
            if not bool(new.isfinite().all()):
                return None
        x, y = self._means
        return new, y - x @ new.mT if self._free_bias else self._bias
