"""Fourier transforms: every result depends on all positions of the transformed dimensions, which are frozen."""

from __future__ import annotations

import torch

from torchorbit.labels import Dim
from torchorbit.operators.declaring import operator
from torchorbit.operators.labelling import Operands

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "its lengths are those of frozen dimensions",
    "contraction": "it freezes the dimensions that it goes over",
    "oracle": "it freezes the dimensions that it goes over",
}


def _fourier_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axes = operands.arg("dim")
    if axes is None:
        axes = range(len(x.shape))
    dims = list(x.dims)
    for axis in (axes,) if isinstance(axes, int) else axes:
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


_ARGUMENTS = {
    "input, n=None, dim=-1, norm=None": ("fft", "ifft", "rfft", "irfft"),
    "input, s=None, dim=(-2, -1), norm=None": ("fft2", "ifft2", "rfft2", "irfft2"),
    "input, s=None, dim=None, norm=None": ("fftn", "ifftn", "rfftn", "irfftn"),
    "input, dim=None": ("fftshift", "ifftshift"),
}

OPERATORS = [
    operator(
        f"{name}({arguments})",
        function=getattr(torch.fft, name),
        names=f"fft_{name}",
        rule=_fourier_rule,
    )
    for arguments, names in _ARGUMENTS.items()
    for name in names
]
