"""The largest and smallest, and the order of elements: where positions are read, what they are of is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import operator, operators
from torchorbit.operators.labelling import Labelled, Operands, several
from torchorbit.operators.reductions import labels_left
from torchorbit.operators.spelling import PARAMETER_NAMES, Binder, Bound
from torchorbit.operators.sums import reduced_axes

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "no argument holds a number of channels",
    "contraction": "it freezes the dimension that it goes over",
    "oracle": "it freezes the dimension that it goes over",
}


def _extreme(name: str) -> Binder:
    """``max(x)``, ``max(x, dim)`` and ``max(x, other)``."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
        arguments.update(zip(("input", "dim", "keepdim"), args, strict=False))
        second = arguments.get("other", arguments.get("dim"))
        if second is not None and not isinstance(second, int):
            return f"{name}imum", {"input": arguments["input"], "other": second}
        return name, arguments

    return bind_call


def _with_positions_rule(operands: Operands) -> list[Dim] | tuple[Labelled, ...]:
    x, axis = operands.tensor(), operands.arg("dim")
    if "other" in operands.args:
        return operands.broadcast(operands.tensors(), operands.shape)
    if axis is None:
        return (
            [None] * len(operands.shape)
            if not several(operands)
            else tuple([Labelled(tuple(shape), [None] * len(shape)) for shape in operands.shape])
        )
    axis %= len(x.shape)
    if operands.operator not in ("max", "min") or operands.reads(1, "indices"):
        operands.freeze(x.dims[axis])
    dims = list(x.dims)
    kept = len(operands.shape[0]) == len(x.shape)
    dims[axis : axis + 1] = [None] if kept else []
    return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])


def _position_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    for axis in reduced_axes(operands.arg("dim"), len(x.shape)):
        operands.freeze(x.dims[axis])
    return labels_left(operands, x, len(operands.shape))


def _argsort_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    axis = operands.arg("dim") % len(x.shape)
    operands.freeze(x.dims[axis])
    return [None if position == axis else dim for position, dim in enumerate(x.dims)]


OPERATORS = [
    operator(
        "max(input, dim=None, keepdim=False)",
        calls=dict.fromkeys((torch.max, Tensor.max), _extreme("max")),
        rule=_with_positions_rule,
    ),
    operator(
        "min(input, dim=None, keepdim=False)",
        calls=dict.fromkeys((torch.min, Tensor.min), _extreme("min")),
        rule=_with_positions_rule,
    ),
    *operators(
        """
        median(input, dim=None, keepdim=False)
        aminmax(input, *, dim=None, keepdim=False)
        topk(input, k, dim=-1, largest=True, sorted=True)
        sort(input, *, dim=-1, descending=False, stable=False)
        """,
        rule=_with_positions_rule,
    ),
    *[aten_operator(name, rule=_with_positions_rule) for name in ("cummax", "cummin", "kthvalue", "mode", "nanmedian")],
    *operators(
        """
        argmax(input, dim=None, keepdim=False)
        argmin(input, dim=None, keepdim=False)
        """,
        rule=_position_rule,
    ),
    operator("argsort(input, *, dim=-1, descending=False, stable=False)", rule=_argsort_rule),
]
