"""Arithmetic, comparisons, functions of single numbers: every element is treated alike, and what meets is tied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import Arguments, operator, operators
from torchorbit.operators.labelling import Operands, elementwise
from torchorbit.operators.shapes import Shape, are_floats, broadcast, same_shape
from torchorbit.operators.spelling import PARAMETER_NAMES, Bound, renamed, unary

NEEDLESS = {
    "cost": "fvcore counts no elementwise operators",
    "resize": "no argument holds a length",
    "contraction": "it sums over nothing",
    "oracle": "what is left does not depend on the zeros beside it",
}

_NUMBER = {"input": "tensor|number"}
_REAL_METHODS = (Tensor.real.__get__, Tensor.imag.__get__)  # type: ignore[attr-defined]


def _rsub(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = {PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
    arguments.update(zip(("input", "other", "alpha"), args, strict=False))
    arguments["input"], arguments["other"] = arguments["other"], arguments["input"]
    return "sub", arguments


def _arithmetic_shape(args: Arguments) -> Shape | None:
    if len(args) != 2:  # a factor, or a way of rounding
        return None
    first, second = args["input"], args["other"]
    if type(first) in (int, float):
        first, second = second, first
    if type(second) in (int, float):
        return first.shape if are_floats(first) else None
    return broadcast(first.shape, second.shape) if second is not None and are_floats(first, second) else None


def _quantized_shape(args: Arguments) -> Shape | None:
    """There is no kernel on meta for it."""
    in_order = args["quant_min"] <= args["quant_max"] and not isinstance(args["zero_point"], Tensor)
    fits = in_order and args["quant_min"] <= args["zero_point"] <= args["quant_max"]
    return same_shape(args) if fits else None


def _quantized_channels_shape(args: Arguments) -> Shape | None:
    """There is no kernel on meta for it."""
    x, beside, axis = args["input"], [args["scale"], args["zero_point"]], args["axis"]
    if not are_floats(x) or not 0 <= axis < x.dim() or not args["quant_min"] <= 0 <= args["quant_max"]:
        return None
    fits = all(tensor.shape == x.shape[axis : axis + 1] for tensor in beside) and beside[0].dtype is torch.float32
    return x.shape if fits else None


_ARITHMETIC: dict[str, Any] = {
    "rule": elementwise,
    "kinds": _NUMBER,
    "shape": _arithmetic_shape,
    "layout": "dense",
}


def _quantized_channels_rule(operands: Operands) -> list[Dim]:
    dims, axis = list(operands.tensor().dims), operands.arg("axis")
    scale, zero_point = operands.tensor("scale"), operands.tensor("zero_point")
    dims[axis] = operands.labels.meet(dims[axis], scale.dims[0], zero_point.dims[0])
    return dims


_RARE = """
    bitwise_left_shift bitwise_right_shift conj_physical copysign entr erfcx float_power fmax fmin gcd heaviside i0
    i0e i1 i1e igamma igammac isclose isneginf isposinf isreal lcm ldexp log_ndtr logaddexp2 logit ndtr ndtri
    nextafter signbit xlog1py xlogy zeta
"""

OPERATORS = [
    operator("add(input, other, *, alpha=1)", symbol="+", reflected="__radd__", **_ARITHMETIC),
    operator(
        "sub(input, other, *, alpha=1)",
        symbol="-",
        names="subtract",
        reflected="__rsub__",
        calls={torch.rsub: _rsub},
        **_ARITHMETIC,
    ),
    operator("mul(input, other)", symbol="*", names="multiply", reflected="__rmul__", **_ARITHMETIC),
    operator(
        "div(input, other, *, rounding_mode=None)",
        symbol="/",
        names="true_divide divide __truediv__ __div__",
        reflected="__rdiv__ __rtruediv__",
        **_ARITHMETIC,
    ),
    operator(
        "floor_divide(input, other)",
        symbol="//",
        names="__floordiv__",
        reflected="__rfloordiv__",
        kinds=_NUMBER,
        rule=elementwise,
    ),
    operator(
        "remainder(input, other)", symbol="%", names="__mod__", reflected="__rmod__", kinds=_NUMBER, rule=elementwise
    ),
    operator(
        "pow(input, exponent)", symbol="**", names="__pow__", reflected="__rpow__", kinds=_NUMBER, rule=elementwise
    ),
    operator("eq(input, other)", symbol="==", kinds=_NUMBER, rule=elementwise, flags=True),
    operator("ne(input, other)", symbol="!=", names="not_equal", kinds=_NUMBER, rule=elementwise, flags=True),
    operator("lt(input, other)", symbol="<", names="less", kinds=_NUMBER, rule=elementwise, flags=True),
    operator("le(input, other)", symbol="<=", names="less_equal", kinds=_NUMBER, rule=elementwise, flags=True),
    operator("gt(input, other)", symbol=">", names="greater", kinds=_NUMBER, rule=elementwise, flags=True),
    operator("ge(input, other)", symbol=">=", names="greater_equal", kinds=_NUMBER, rule=elementwise, flags=True),
    operator(
        "bitwise_and(input, other)", symbol="&", names="__and__", reflected="__rand__", kinds=_NUMBER, rule=elementwise
    ),
    operator(
        "bitwise_or(input, other)", symbol="|", names="__or__", reflected="__ror__", kinds=_NUMBER, rule=elementwise
    ),
    operator(
        "bitwise_xor(input, other)", symbol="^", names="__xor__", reflected="__rxor__", kinds=_NUMBER, rule=elementwise
    ),
    *operators(
        """
        logical_and(input, other)
        logical_or(input, other)
        logical_xor(input, other)
        """,
        rule=elementwise,
        flags=True,
    ),
    *operators(
        """
        fmod(input, other)
        maximum(input, other)
        minimum(input, other)
        hypot(input, other)
        logaddexp(input, other)
        addcmul(input, tensor1, tensor2, *, value=1)
        addcdiv(input, tensor1, tensor2, *, value=1)
        masked_fill(input, mask, value)
        nan_to_num(input, nan=None, posinf=None, neginf=None)
        round(input, *, decimals=0)
        complex(real, imag)
        polar(abs, angle)
        """,
        rule=elementwise,
    ),
    operator("atan2(input, other)", names="arctan2", rule=elementwise),
    operator("lerp(input, end, weight)", kinds={"end": "tensor", "weight": "tensor|number"}, rule=elementwise),
    operator(
        "where(condition, input, other)",
        kinds=_NUMBER,
        calls={Tensor.where: renamed("where", "input", "condition", "other")},
        rule=elementwise,
    ),
    operator(
        "clamp(input, min=None, max=None)",
        names="clip clamp_min",
        calls={
            getattr(owner, name): renamed("clamp", "input", "max")
            for owner in (torch, Tensor)
            for name in ("clamp_max", "clamp_max_")
        },
        rule=elementwise,
    ),
    # Functions of one real number, which give one of the same dtype.
    operator("abs(input)", names="absolute", rule=elementwise, shape=same_shape, layout="dense"),
    operator("acos(input)", names="arccos", rule=elementwise, shape=same_shape, layout="dense"),
    operator("asin(input)", names="arcsin", rule=elementwise, shape=same_shape, layout="dense"),
    operator("atan(input)", names="arctan", rule=elementwise, shape=same_shape, layout="dense"),
    operator("neg(input)", names="negative", rule=elementwise, shape=same_shape, layout="dense"),
    operator("trunc(input)", names="fix", rule=elementwise, shape=same_shape, layout="dense"),
    operator("acosh(input)", names="arccosh", rule=elementwise, shape=same_shape, layout="dense"),
    operator("asinh(input)", names="arcsinh", rule=elementwise, shape=same_shape, layout="dense"),
    operator("atanh(input)", names="arctanh", rule=elementwise, shape=same_shape, layout="dense"),
    *operators(
        """
        ceil cos cosh deg2rad digamma erf erfc erfinv exp exp2 expm1 floor frac lgamma log log10 log1p
        log2 rad2deg reciprocal rsqrt sgn sign sin sinc sinh sqrt square tan
        """,
        rule=elementwise,
        shape=same_shape,
        layout="dense",
    ),
    # The others.
    operator("bitwise_not(input)", names="__invert__", rule=elementwise),
    operator("real(input)", calls={_REAL_METHODS[0]: unary("real")}, rule=elementwise),
    operator("imag(input)", calls={_REAL_METHODS[1]: unary("imag")}, rule=elementwise),
    *operators("angle conj", rule=elementwise),
    *operators("isfinite isinf isnan logical_not", rule=elementwise, flags=True),
    *[aten_operator(name, rule=elementwise) for name in _RARE.split()],
    aten_operator("fake_quantize_per_tensor_affine", rule=elementwise, shape=_quantized_shape, layout="dense"),
    aten_operator(
        "fake_quantize_per_channel_affine",
        rule=_quantized_channels_rule,
        shape=_quantized_channels_shape,
        layout="dense",
    ),
]
