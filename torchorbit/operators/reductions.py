"""Reductions: the reduced dimensions drop out. What is left of them is reduced over what is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import Arguments, operator, operators
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.shapes import Shape, are_floats
from torchorbit.operators.spelling import PARAMETER_NAMES, Binder, Bound
from torchorbit.operators.sums import reduced_axes

NEEDLESS = {
    "cost": "fvcore counts no reductions",
    "resize": "no argument holds a length",
    "oracle": "zeros have no part in it",
}


# -- other ways of calling them


def _variance_call(name: str) -> Binder:
    """``var(x, dim, unbiased, keepdim)``, ``var(x, unbiased)`` and ``var(x, dim, *, correction, keepdim)``."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
        rest = list(args[1:])
        arguments.setdefault("input", args[0] if args else None)
        if rest and isinstance(rest[0], bool):
            arguments["unbiased"] = rest.pop(0)
        for parameter in ("dim", "unbiased", "keepdim"):
            if rest:
                arguments[parameter] = rest.pop(0)
        unbiased = arguments.pop("unbiased", None)
        if unbiased is not None:
            arguments["correction"] = 1 if unbiased else 0
        return name, arguments

    return bind_call


# -- labels


def labels_left(operands: Operands, x: Labelled, rank: int) -> list[Dim]:
    """The labels of a reduction's result, which has as many dimensions as it has or fewer."""
    axes = reduced_axes(operands.arg("dim"), len(x.shape))
    if rank == len(x.shape):
        return [None if axis in axes else dim for axis, dim in enumerate(x.dims)]
    return [dim for axis, dim in enumerate(x.dims) if axis not in axes]


def _reduction_rule(operands: Operands) -> list[Dim]:
    return labels_left(operands, operands.tensor(), len(operands.shape))


def _vector_norm_rule(operands: Operands) -> list[Dim]:
    return labels_left(operands, operands.tensor("x"), len(operands.shape))


def _two_statistics_rule(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    return tuple([Labelled(tuple(shape), labels_left(operands, x, len(shape))) for shape in operands.shape])


def _cumulative_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    axis = operands.arg("dim") % len(dims)
    operands.freeze(dims[axis])
    dims[axis] = None
    return dims


def _difference_rule(operands: Operands) -> list[Dim]:
    tensors = operands.tensors()  # what stands before and after it has its dimensions
    axis = operands.arg("dim") % len(operands.shape)
    for tensor in tensors:
        operands.freeze(tensor.dims[axis])
    meeting = zip(*[tensor.dims for tensor in tensors], strict=True)
    return [None if position == axis else operands.labels.meet(*dims) for position, dims in enumerate(meeting)]


# -- shapes


def _reduced_shape(args: Arguments) -> Shape | None:
    x, dim = args["input"], args.get("dim")
    if not are_floats(x) or args.get("dtype") is not None or not x.dim():
        return None
    rank = x.dim()
    dims = range(rank) if dim is None else (dim,) if type(dim) is int else dim
    if not dims or any(type(d) is not int or not -rank <= d < rank for d in dims):
        return None
    reduced = {d % rank for d in dims}
    if len(reduced) != len(dims):
        return None
    if args.get("keepdim", False):
        return tuple([1 if axis in reduced else n for axis, n in enumerate(x.shape)])
    return tuple([n for axis, n in enumerate(x.shape) if axis not in reduced])


_FLAGS = {"contraction": "it gives flags, and no sum"}

_FREEZES_WHAT_IT_GOES_OVER = {
    "contraction": "it freezes the dimension that it goes over",
    "oracle": "it freezes the dimension that it goes over",
}

OPERATORS = [
    operator(
        "mean(input, dim=None, keepdim=False, *, dtype=None)",
        rule=_reduction_rule,
        shape=_reduced_shape,
        layout="kept",
        reduces="input",
        constant="computed",
    ),
    operator(
        "sum(input, dim=None, keepdim=False, *, dtype=None)",
        rule=_reduction_rule,
        shape=_reduced_shape,
        layout="kept",
        reduces="input",
    ),
    *operators(
        """
        prod(input, dim=None, keepdim=False, *, dtype=None)
        amax(input, dim=(), keepdim=False)
        amin(input, dim=(), keepdim=False)
        logsumexp(input, dim, keepdim=False)
        """,
        rule=_reduction_rule,
        reduces="input",
    ),
    *operators(
        """
        any(input, dim=None, keepdim=False)
        all(input, dim=None, keepdim=False)
        """,
        rule=_reduction_rule,
        needless=_FLAGS,
        flags=True,
    ),
    operator(
        "var(input, dim=None, *, correction=1, keepdim=False)",
        calls=dict.fromkeys((torch.var, Tensor.var), _variance_call("var")),
        rule=_reduction_rule,
        reduces="input",
    ),
    operator(
        "std(input, dim=None, *, correction=1, keepdim=False)",
        calls=dict.fromkeys((torch.std, Tensor.std), _variance_call("std")),
        rule=_reduction_rule,
        reduces="input",
    ),
    operator(
        "var_mean(input, dim=None, *, correction=1, keepdim=False)",
        calls={torch.var_mean: _variance_call("var_mean")},
        rule=_two_statistics_rule,
        reduces="input",
    ),
    operator(
        "std_mean(input, dim=None, *, correction=1, keepdim=False)",
        calls={torch.std_mean: _variance_call("std_mean")},
        rule=_two_statistics_rule,
        reduces="input",
    ),
    operator(
        "norm(input, p='fro', dim=None, keepdim=False, *, dtype=None)",
        kinds={"p": "number|str"},
        rule=_reduction_rule,
        reduces="input",
    ),
    operator(
        "vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None)",
        function=torch.linalg.vector_norm,
        names="linalg_vector_norm",
        rule=_vector_norm_rule,
        reduces="x",
    ),
    *operators(
        """
        cumsum(input, dim, *, dtype=None)
        cumprod(input, dim, *, dtype=None)
        """,
        kinds={"dim": "int"},
        rule=_cumulative_rule,
        needless=_FREEZES_WHAT_IT_GOES_OVER,
    ),
    aten_operator("logcumsumexp", rule=_cumulative_rule, needless=_FREEZES_WHAT_IT_GOES_OVER),
    aten_operator("diff", rule=_difference_rule, needless=_FREEZES_WHAT_IT_GOES_OVER),
    aten_operator("nansum", rule=_reduction_rule, reduces="input"),
]
