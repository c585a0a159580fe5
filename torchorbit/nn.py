"""Modules that stand in for those of other libraries, so that a saved graph needs none of them."""

from __future__ import annotations

from torch import Tensor, nn

from torchorbit.errors import ArgumentError


class StochasticDepth(nn.Module):
    """Drop whole samples of a residual branch at random while training.

    From "Deep Networks with Stochastic Depth" (https://arxiv.org/abs/1603.09382). It is what
    ``timm.layers.DropPath`` and ``torchvision.ops.StochasticDepth`` do.

    Args:
        p: probability with which a sample is dropped.
        mode: ``"row"`` drops samples one by one, ``"batch"`` the whole batch together.
        scale_by_keep: divide what is kept by ``1 - p``, so that the expectation stays the same.

    Shape: any ``(batch, ...)``; the output has the shape of the input.
    """

    def __init__(self, p: float = 0.0, mode: str = "row", scale_by_keep: bool = True):
        super().__init__()
        if mode not in ("row", "batch"):
            raise ArgumentError(f"mode is '{mode}', expected 'row' or 'batch'")
        if not 0.0 <= p <= 1.0:
            raise ArgumentError(f"p is {p}, expected a probability between 0 and 1")
        self.p = p
        self.mode = mode
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of ``x`` while training, else return it."""
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        shape = (x.shape[0] if self.mode == "row" else 1, *(1,) * (x.ndim - 1))
        mask = x.new_empty(shape).bernoulli_(keep)
        if self.scale_by_keep and keep > 0.0:
            mask.div_(keep)
        return x * mask

    def extra_repr(self) -> str:
        """The arguments, as ``print`` shows them."""
        return f"p={self.p}, mode={self.mode}"
