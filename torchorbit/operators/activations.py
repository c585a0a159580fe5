"""Activations, softmax among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Arguments, Leaf, module_operator, operator
from torchorbit.operators.labelling import Operands, elementwise, like_the_first
from torchorbit.operators.shapes import Shape, same_shape
from torchorbit.operators.spelling import Binder, Bound, refused

NEEDLESS = {
    "cost": "fvcore counts no activations",
    "resize": "no argument holds a length",
    "contraction": "it sums over nothing",
    "oracle": "what is left does not depend on the zeros beside it",
}


# -- other ways of calling them


def _plain_softmax(name: str) -> Binder:
    """``torch._softmax``, whose third argument is whether a half becomes a float."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {**dict(zip(("input", "dim", "half_to_float"), args, strict=False)), **kwargs}
        dtype = {"dtype": torch.float32} if arguments["half_to_float"] else {}
        return name, {"input": arguments["input"], "dim": arguments["dim"], **dtype}

    return bind_call


def _softmax_call(name: str) -> Binder:
    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {**dict(zip(("input", "dim", "_stacklevel", "dtype"), args, strict=False)), **kwargs}
        if arguments.get("dim") is None:  # torch's own rule for softmax without a dimension
            arguments["dim"] = 0 if rank in (0, 1, 3) else 1
        return name, {key: value for key, value in arguments.items() if key != "_stacklevel"}

    return bind_call


# -- labels


def _prelu_rule(operands: Operands) -> list[Dim]:
    x, weight = operands.tensor(), operands.tensor("weight")
    dims = list(x.dims)
    if weight.shape[0] > 1 and len(dims) > 1:
        dims[1] = operands.labels.meet(dims[1], weight.dims[0])
    return dims


def _glu_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    half = x.shape[axis] // 2
    dims = list(x.dims)
    first, second = operands.piece(dims[axis], 0, half), operands.piece(dims[axis], half, 2 * half)
    dims[axis] = operands.labels.meet(first, second)
    return dims


def _softmin_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor("0")
    dims = list(x.dims)
    axis = getattr(operands.module, "dim", None)
    if axis is None:  # torch chooses by the rank, as it does for softmax
        axis = 0 if len(dims) in (0, 1, 3) else 1
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


# -- numbers that a module keeps


def _settle_prelu(module: Any) -> None:
    module.num_parameters = module.weight.shape[0]


# -- shapes


def _gelu_shape(args: Arguments) -> Shape | None:
    return same_shape(args) if _is_approximation(args.get("approximate", "none")) else None


def _is_approximation(name: Any) -> bool:
    return name in ("none", "tanh")


def _with_alpha(args: Arguments) -> Shape | None:
    return same_shape(args) if args.get("alpha", 1.0) != 0 else None


def _hardtanh_shape(args: Arguments) -> Shape | None:
    return same_shape(args) if args.get("min_val", -1.0) < args.get("max_val", 1.0) else None


def _shrink_shape(args: Arguments) -> Shape | None:
    return same_shape(args) if args.get("lambd", 0.5) >= 0 else None


def _softmax_shape(args: Arguments) -> Shape | None:
    x, dim = args["input"], args.get("dim")
    if args.get("dtype") is not None or not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    return x.shape if dim is None or (type(dim) is int and -x.dim() <= dim < x.dim()) else None


def _activation(
    signature: str,
    cls: type[nn.Module],
    *,
    names: str = "",
    exact: Callable[[Any], bool] | None = None,
    kinds: dict[str, str] | None = None,
    leaf_kinds: dict[str, str] | None = None,
    constructor: tuple[str, ...] | None = None,
    **known: Any,
) -> Any:
    """An activation that is a function and a class, and leaves shapes as they are."""
    leaf = Leaf(cls, exact=exact, kinds=leaf_kinds or {}, constructor=constructor)
    known = {"shape": same_shape, "layout": "dense", **known}
    return operator(signature, modules=[leaf], names=names, kinds=kinds or {}, rule=elementwise, **known)


OPERATORS = [
    _activation("relu(input)", nn.ReLU, function=F.relu),
    _activation("relu6(input)", nn.ReLU6),
    _activation(
        "gelu(input, *, approximate='none')",
        nn.GELU,
        shape=_gelu_shape,
        exact=lambda module: _is_approximation(module.approximate),
    ),
    _activation("silu(input)", nn.SiLU),
    _activation("sigmoid(input)", nn.Sigmoid, names="special_expit"),
    _activation("tanh(input)", nn.Tanh),
    _activation("mish(input)", nn.Mish),
    _activation("hardswish(input)", nn.Hardswish),
    _activation("hardsigmoid(input)", nn.Hardsigmoid),
    _activation(
        "hardtanh(input, min_val=-1.0, max_val=1.0)",
        nn.Hardtanh,
        shape=_hardtanh_shape,
        constructor=("min_val", "max_val", "inplace"),
    ),
    _activation("elu(input, alpha=1.0)", nn.ELU),
    _activation(
        "celu(input, alpha=1.0)", nn.CELU, function=F.celu, shape=_with_alpha, exact=lambda module: module.alpha != 0
    ),
    _activation("selu(input)", nn.SELU, function=F.selu),
    _activation("leaky_relu(input, negative_slope=0.01)", nn.LeakyReLU),
    _activation("softplus(input, beta=1.0, threshold=20.0)", nn.Softplus, kinds={"beta": "number"}),
    _activation("softsign(input)", nn.Softsign),
    _activation("hardshrink(input, lambd=0.5)", nn.Hardshrink, function=F.hardshrink),
    _activation(
        "softshrink(input, lambd=0.5)", nn.Softshrink, shape=_shrink_shape, exact=lambda module: module.lambd >= 0
    ),
    _activation("tanhshrink(input)", nn.Tanhshrink),
    _activation("logsigmoid(input)", nn.LogSigmoid, names="log_sigmoid"),
    operator(
        "threshold(input, threshold, value)",
        function=F.threshold,
        names="_threshold",
        modules=[Leaf(nn.Threshold, attributes=("threshold", "value"), kinds={"value": "number"})],
        rule=elementwise,
        shape=same_shape,
        layout="dense",
    ),
    operator(
        "rrelu(input, lower=0.125, upper=0.3333333333333333, training=False)",
        function=F.rrelu,
        modules=[Leaf(nn.RReLU)],
        rule=elementwise,
    ),
    operator(
        "prelu(input, weight)",
        function=F.prelu,
        modules=[Leaf(nn.PReLU, tensors=("weight",), settle=_settle_prelu)],
        rule=_prelu_rule,
        constant="computed",
    ),
    operator("glu(input, dim=-1)", modules=[Leaf(nn.GLU, attributes=("dim",))], rule=_glu_rule),
    operator(
        "softmax(input, dim, dtype=None)",
        calls={F.softmax: _softmax_call("softmax"), torch._softmax: _plain_softmax("softmax")},
        modules=[
            Leaf(nn.Softmax, attributes=("dim",)),
            Leaf(nn.Softmax2d, fixed={"dim": -3}, ranks=(3, 4)),
        ],
        rule=like_the_first,
        shape=_softmax_shape,
        layout="kept",
    ),
    operator(
        "log_softmax(input, dim, dtype=None)",
        calls={F.log_softmax: _softmax_call("log_softmax"), torch._log_softmax: _plain_softmax("log_softmax")},
        modules=[Leaf(nn.LogSoftmax, attributes=("dim",))],
        rule=like_the_first,
        shape=_softmax_shape,
        layout="kept",
    ),
    module_operator(
        Leaf(nn.Softmin),
        calls={F.softmin: refused("softmin as a function; nn.Softmin is known")},
        rule=_softmin_rule,
    ),
]
