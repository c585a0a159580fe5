"""Operators that no function of torch is: graphs are written with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchorbit.labels import Dim
from torchorbit.operators.declaring import operator
from torchorbit.operators.labelling import Operands, elementwise
from torchorbit.operators.resizing import Resized
from torchorbit.operators.shapes import same_shape

NEEDLESS = {
    "cost": "it computes nothing",
    "resize": "no argument holds a length",
    "contraction": "it sums over nothing",
    "oracle": "zeros go where channels go",
}


def _assigned(target: Tensor, value: Tensor) -> None:
    """Write a value into a parameter or buffer."""
    with torch.no_grad():
        target.copy_(value)


def _itself(input: Tensor) -> Tensor:
    """A tensor under another name: one of two, as the mode says."""
    return input


def _checked(condition: bool | Tensor, message: str) -> None:
    """Refuse inputs for which the source model would have taken another path; not while the graph itself is traced."""
    if isinstance(condition, Tensor) and (
        condition.device.type == "meta" or torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()
    ):
        return
    if not condition:
        raise RuntimeError(message)


def _selected(input: Tensor, dim: int, index: tuple[int, ...]) -> Tensor:
    """The positions ``index`` along a dimension."""
    return input.index_select(dim, torch.tensor(index, device=input.device))


def _scattered(input: Tensor, dim: int, index: tuple[int, ...], length: int) -> Tensor:
    """Zeros of another length along a dimension, with ``input`` at the positions ``index``."""
    shape = list(input.shape)
    shape[dim] = length
    return input.new_zeros(shape).index_copy(dim, torch.tensor(index, device=input.device), input)


# -- labels


def _assign_rule(operands: Operands) -> None:
    target, value = operands.tensor("target"), operands.maybe("value")
    if value is not None:
        operands.broadcast([target, value], target.shape)


def _check_rule(operands: Operands) -> None:
    """Compares sizes of dimensions that have no channels."""


def _select_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis, index = operands.arg("dim"), list(operands.arg("index"))
    dim = dims[axis]
    if isinstance(dim, np.ndarray):
        dims[axis] = dim[index] if len(index) > 1 else None
        if len(index) == 1:
            operands.freeze(dim[index])
    return dims


def _scatter_rule(operands: Operands) -> list[Dim]:
    dims = list(operands.tensor().dims)
    axis = operands.arg("dim")
    dim = dims[axis]
    if isinstance(dim, np.ndarray):
        dims[axis] = operands.labels.fresh(operands.arg("length"))
        dims[axis][list(operands.arg("index"))] = dim
    return dims


# -- numbers after a removal


def _select_resize(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.masks()[axis]
    if mask is not None:
        index = np.array(call.args["index"])
        call.args["index"] = tuple((np.cumsum(mask) - 1)[index[mask[index]]].tolist())


def _scatter_resize(call: Resized) -> None:
    axis = call.args["dim"]
    mask = call.result[axis]
    if mask is not None:
        index = np.array(call.args["index"])
        call.args["index"] = tuple((np.cumsum(mask) - 1)[index[mask[index]]].tolist())
        call.args["length"] = int(mask.sum())


OPERATORS = [
    operator("alias(input)", function=_itself, rule=elementwise, shape=same_shape, constant="same"),
    operator("assign(target, value)", function=_assigned, kinds={"value": "tensor"}, rule=_assign_rule, effect=True),
    operator(
        "check(condition, message)",
        function=_checked,
        kinds={"condition": "tensor|number"},
        rule=_check_rule,
        effect=True,
    ),
    operator(
        "select_positions(input, dim, index)",
        function=_selected,
        kinds={"index": "sections"},
        rule=_select_rule,
        resize=_select_resize,
    ),
    operator(
        "scatter_positions(input, dim, index, length)",
        function=_scattered,
        kinds={"index": "sections"},
        rule=_scatter_rule,
        resize=_scatter_resize,
    ),
]
