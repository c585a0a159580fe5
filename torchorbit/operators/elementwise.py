"""Operators that treat every element alike: channels that meet are tied."""

from __future__ import annotations

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Operands, rule

_ELEMENTWISE = """
    abs acos acosh angle asin asinh atan atanh bitwise_not ceil conj cos cosh deg2rad detach digamma erf erfc
    erfinv exp exp2 expm1 floor frac imag isfinite isinf isnan lgamma log log10 log1p log2 logical_not neg
    rad2deg real reciprocal relu rsqrt sgn sigmoid sign sin sinc sinh sqrt square tan tanh trunc hardsigmoid
    hardswish logsigmoid mish relu6 selu silu softsign tanhshrink add sub mul div floor_divide remainder fmod
    pow eq ne lt le gt ge bitwise_and bitwise_or bitwise_xor logical_and logical_or logical_xor maximum
    minimum atan2 hypot logaddexp lerp addcmul addcdiv where masked_fill clamp nan_to_num round complex polar
    copy gelu hardtanh elu celu leaky_relu rrelu softplus hardshrink softshrink threshold
"""
_LIKE_THE_FIRST = """
    clone to type_as contiguous fill softmax log_softmax normalize dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout zeros_like ones_like empty_like full_like rand_like randn_like
    bernoulli uniform normal
"""
_FOURIER = """
    fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift
"""


#: Operators whose result at a position depends on their operands at that position, which are broadcast.
ELEMENTWISE = frozenset(_ELEMENTWISE.split())


@rule(*_ELEMENTWISE.split())
def _elementwise(operands: Operands) -> list[Dim]:
    return operands.broadcast(operands.tensors(), operands.shape)


@rule(*_LIKE_THE_FIRST.split())
def _like_the_first(operands: Operands) -> list[Dim]:
    return operands.tensor().dims


#: Rules that give an operand its own labels back where it is the only argument.
SAME_LABELS = frozenset({_elementwise, _like_the_first})


@rule("prelu")
def _prelu(operands: Operands) -> list[Dim]:
    x, weight = operands.tensor(), operands.tensor("weight")
    dims = list(x.dims)
    if weight.shape[0] > 1 and len(dims) > 1:
        dims[1] = operands.labels.meet(dims[1], weight.dims[0])
    return dims


@rule("glu")
def _glu(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    half = x.shape[axis] // 2
    dims = list(x.dims)
    first, second = operands.piece(dims[axis], 0, half), operands.piece(dims[axis], half, 2 * half)
    dims[axis] = operands.labels.meet(first, second)
    return dims


@rule("assign")
def _assign(operands: Operands) -> None:
    target, value = operands.tensor("target"), operands.maybe("value")
    if value is not None:
        operands.broadcast([target, value], target.shape)


@rule("view_as_complex")
def _view_as_complex(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    operands.freeze(x.dims[-1])
    return x.dims[:-1]


@rule("view_as_real")
def _view_as_real(operands: Operands) -> list[Dim]:
    return [*operands.tensor().dims, None]


@rule("cumsum", "cumprod")
def _cumulative(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    axis = operands.arg("dim") % len(dims)
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


@rule(*_FOURIER.split())
def _fourier(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axes = operands.arg("dim")
    if axes is None:
        axes = range(len(x.shape))
    dims = list(x.dims)
    for axis in (axes,) if isinstance(axes, int) else axes:
        operands.freeze(dims[axis])
        dims[axis] = None
    return dims


@rule("tril", "triu")
def _triangle(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    for dim in x.dims[-2:]:
        operands.freeze(dim)
    return [*x.dims[:-2], None, None]


@rule("local_response_norm")
def _local_response_norm(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    if isinstance(x.dims[1], np.ndarray):
        operands.mixes("input", 1, 1)
    return x.dims


@rule("Softmin")
def _softmin(operands: Operands) -> list[Dim]:
    x = operands.tensor("0")
    dims = list(x.dims)
    axis = getattr(operands.module, "dim", None)
    if axis is None:  # torch chooses by the rank, as it does for softmax
        axis = 0 if len(dims) in (0, 1, 3) else 1
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


@rule("CosineSimilarity", "PairwiseDistance")
def _distance(operands: Operands) -> list[Dim]:
    module = operands.module
    first, second = operands.tensor("0"), operands.tensor("1")
    shape = tuple(np.broadcast_shapes(first.shape, second.shape))
    dims = operands.broadcast([first, second], shape)
    axis = int(getattr(module, "dim", -1)) % len(dims)
    keep = getattr(module, "keepdim", False)
    return [*dims[:axis], *([None] if keep else []), *dims[axis + 1 :]]
