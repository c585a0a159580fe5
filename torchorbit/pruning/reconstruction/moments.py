"""Sums over rows of inputs and of the outputs that are wanted for them, of which least squares are solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Up to so many inputs products are summed in double precision; above that in single precision, some rows at a time.
_IN_DOUBLE = 1024
_ROWS_AT_ONCE = 4096


@dataclass
class Moments:
    """First and second moments of rows ``x`` of inputs and ``y`` of outputs, group by group, about a fixed point.

    Attributes:
        x0: the point, of shape (groups, 1, inputs).
        y0: likewise, of shape (groups, 1, outputs).
        rows: how many there were.
        x: sum of ``x - x0``, of shape (groups, 1, inputs).
        y: sum of ``y - y0``, of shape (groups, 1, outputs).
        xx: sum of their products, of shape (groups, inputs, inputs).
        xy: of shape (groups, inputs, outputs).
        yy: of shape (groups, outputs): of the squares alone.
    """

    x0: Tensor
    y0: Tensor
    rows: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def about(cls, x0: Tensor, y0: Tensor) -> Moments:
        """Moments of no rows yet."""
        groups, _, inputs = x0.shape
        outputs = y0.shape[2]
        return cls(
            x0,
            y0,
            0,
            torch.zeros_like(x0),
            torch.zeros_like(y0),
            x0.new_zeros(groups, inputs, inputs),
            x0.new_zeros(groups, inputs, outputs),
            y0.new_zeros(groups, outputs),
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows.

        Args:
            x: of shape (groups, rows, inputs).
            y: of shape (groups, rows, outputs).
        """
        precise = self.x0.dtype
        product = precise if x.shape[2] <= _IN_DOUBLE else torch.float32
        for xs, ys in zip(x.split(_ROWS_AT_ONCE, 1), y.split(_ROWS_AT_ONCE, 1), strict=True):
            xs, ys = xs.to(precise) - self.x0, ys.to(precise) - self.y0
            self.rows += xs.shape[1]
            self.x += xs.sum(1, keepdim=True)
            self.y += ys.sum(1, keepdim=True)
            self.yy += ys.square().sum(1)
            xs, ys = xs.to(product), ys.to(product)
            self.xx += (xs.mT @ xs).to(precise)
            self.xy += (xs.mT @ ys).to(precise)

    def with_(self, other: Moments) -> Moments:
        """The moments of the rows of both."""
        return Moments(
            self.x0,
            self.y0,
            self.rows + other.rows,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """The sum of squares of what ``weight @ x + bias`` misses ``y`` by.

        Args:
            weight: of shape (groups, outputs, inputs).
            bias: of shape (groups, 1, outputs).
        """
        product = self.x0.dtype if weight.shape[2] <= _IN_DOUBLE else torch.float32
        spread = (weight.to(product) @ self.xx.to(product)).to(weight)
        off = self.y0 - self.x0 @ weight.mT - bias
        missed = self.yy.sum() - 2 * (weight.mT * self.xy).sum() + (spread * weight).sum()
        missed += self.rows * off.square().sum() + 2 * (off * (self.y - self.x @ weight.mT)).sum()
        return max(float(missed), 0.0)

    def spread(self) -> float:
        """The sum of squares of what the outputs differ from their means by."""
        return float((self.yy - self.y.square()[:, 0] / max(self.rows, 1)).sum())

    def centred(self) -> tuple[Tensor, Tensor]:
        """``xx`` and ``xy`` about the means."""
        return self.xx - self.x.mT @ self.x / self.rows, self.xy - self.x.mT @ self.y / self.rows

    def about_zero(self) -> tuple[Tensor, Tensor]:
        """``xx`` and ``xy`` about zero."""
        xx = self.xx + self.x0.mT @ self.x + self.x.mT @ self.x0 + self.rows * self.x0.mT @ self.x0
        xy = self.xy + self.x0.mT @ self.y + self.x.mT @ self.y0 + self.rows * self.x0.mT @ self.y0
        return xx, xy

    def means(self) -> tuple[Tensor, Tensor]:
        """The means of inputs and outputs, of shapes (groups, 1, inputs) and (groups, 1, outputs)."""
        return self.x0 + self.x / self.rows, self.y0 + self.y / self.rows
