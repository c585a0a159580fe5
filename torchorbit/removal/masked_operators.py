"""What operators that normalize or average over channels give when some of the channels are removed.

This is the oracle's own meaning of them: it is written down from what they compute, with means, norms and weights over
what is kept, and shares nothing with how they are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, Ref
from torchorbit.errors import ArgumentError
from torchorbit.graph.calls import Call
from torchorbit.graph.shapes import called
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex, Vertex
from torchorbit.operators.normalizations import channel_axis
from torchorbit.operators.sums import reduced_axes
from torchorbit.operators.table import OPERATORS

if TYPE_CHECKING:
    from torchorbit.removal.masked import MaskedInterpreter

#: For every dimension which positions are kept; None where all are.
Masks = list[Tensor | None]


class Context:
    """A call in the masked run.

    Args:
        interpreter: runs the graph.
        call: what is called.
        vertex: the vertex that calls it.
    """

    def __init__(self, interpreter: MaskedInterpreter, call: Call | OperatorVertex, vertex: Vertex):
        self.interpreter = interpreter
        self.call = call
        self.vertex = vertex

    @property
    def module(self) -> nn.Module | None:
        """The module that is called, where it is one."""
        if not isinstance(self.vertex, ModuleVertex):
            return None
        return self.interpreter.model.dag.get_submodule(self.vertex.target)

    def __getitem__(self, name: str) -> Any:
        return self.interpreter.value(self.arg(name))

    def arg(self, name: str) -> Any:
        """An argument as it stands in the graph, or its default."""
        if name in self.call.args:
            return self.call.args[name]
        return OPERATORS[self.call.operator].parameters.get(name)

    def masks(self, name: str = "input") -> Masks:
        """What is kept of the dimensions of an argument that is a tensor."""
        return self.interpreter.masks(self.call.args[name])


MaskedOperator = Callable[[Context], Any]
#: Operator -> what it gives when some channels are removed; where that gives None, what it gives otherwise.
MASKED: dict[str, MaskedOperator] = {}


def _masked(*operators: str) -> Callable[[MaskedOperator], MaskedOperator]:
    def register(function: MaskedOperator) -> MaskedOperator:
        for operator in operators:
            MASKED[operator] = function
        return function

    return register


def _over(context: Context, name: str = "input") -> tuple[set[int], dict[int, Tensor]]:
    """The dimensions that a reduction goes over, and the masks of those that lose channels."""
    masks = context.masks(name)
    axes = reduced_axes(context["dim"], len(masks))
    return axes, {axis: mask for axis in axes if (mask := masks[axis]) is not None}


def _with_neutral(number: float, name: str = "input") -> MaskedOperator:
    """A reduction in which what is removed has no part once it holds a certain number."""

    def reduce(context: Context) -> Any:
        masks = context.masks(name)
        axes = reduced_axes(context["dim"], len(masks)) if context.arg("dim") is not None else set(range(len(masks)))
        touched = {axis: mask for axis in axes if (mask := masks[axis]) is not None}
        if not touched:
            return None
        value = context[name]
        number_here = bool(number) if value.dtype == torch.bool else number
        for axis, mask in touched.items():
            value = filled(value, mask, axis, number_here)
        arguments = {key: context[key] for key in context.call.args}
        return called(OPERATORS[context.call.operator], {**arguments, name: value})

    return reduce


MASKED["softmax"] = MASKED["log_softmax"] = MASKED["logsumexp"] = _with_neutral(float("-inf"))
MASKED["amax"] = MASKED["max"] = _with_neutral(float("-inf"))
MASKED["amin"] = MASKED["min"] = _with_neutral(float("inf"))
MASKED["prod"] = MASKED["all"] = _with_neutral(1.0)


@_masked("norm", "vector_norm")
def _norm(context: Context) -> Any:
    """Zeros have no part in a norm, unless the smallest number counts most in it."""
    power, name = ("p", "input") if context.call.operator == "norm" else ("ord", "x")
    order = context[power]
    if isinstance(order, (int, float)) and order < 0:
        return _with_neutral(float("inf"), name)(context)
    return None


@_masked("pairwise_distance")
def _pairwise_distance(context: Context) -> Any:
    """A distance adds a little to every difference, also to those of zeros."""
    mask = context.masks("x1")[-1]
    if mask is None:
        return None
    difference = context["x1"] - context["x2"] + context["eps"]
    kept = difference.movedim(-1, 0)[along(difference, mask, difference.dim() - 1).flatten()].movedim(0, -1)
    return torch.linalg.vector_norm(kept, context["p"], -1, keepdim=context["keepdim"])


def _weights(value: Tensor, touched: dict[int, Tensor]) -> Tensor:
    weights = torch.ones((), dtype=value.dtype, device=value.device)
    for axis, mask in touched.items():
        weights = weights * along(value, mask, axis).to(value.dtype)
    return weights.expand(value.shape)


@_masked("mean")
def _mean(context: Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    value = context["input"]
    weights = _weights(value, touched)
    dims, keep = sorted(axes), bool(context["keepdim"])
    return (value * weights).sum(dims, keep) / weights.sum(dims, keep)


def _moments(value: Tensor, touched: dict[int, Tensor], dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared deviations and count over dimensions, of what is kept."""
    weights = _weights(value, touched)
    count = weights.sum(dims, True)
    mean = (value * weights).sum(dims, True) / count
    return mean, ((value - mean).square() * weights).sum(dims, True), count


@_masked("var", "std")
def _variance(context: Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    dims = sorted(axes)
    _, squares, count = _moments(context["input"], touched, dims)
    result = squares / (count - context["correction"])
    result = result.sqrt() if context.call.operator == "std" else result
    return result if context["keepdim"] else result.squeeze(dims)


@_masked("var_mean", "std_mean")
def _variance_and_mean(context: Context) -> Any:
    axes, touched = _over(context)
    if not touched:
        return None
    dims = sorted(axes)
    mean, squares, count = _moments(context["input"], touched, dims)
    result = squares / (count - context["correction"])
    result = result.sqrt() if context.call.operator == "std_mean" else result
    return (result, mean) if context["keepdim"] else (result.squeeze(dims), mean.squeeze(dims))


@_masked("scaled_dot_product_attention")
def _attention(context: Context) -> Any:
    """Tokens that are removed have no weight."""
    kept = context.masks("key")[-2]
    if kept is None:
        return None
    query, mask = context["query"], context["attn_mask"] if "attn_mask" in context.call.args else None
    seen = kept.to(query.device)
    if mask is None or mask.dtype == torch.bool:
        mask = seen.expand(query.shape[-2], -1) if mask is None else mask & seen
    else:
        mask = filled(mask.expand(*mask.shape[:-1], len(seen)), seen, mask.dim() - 1, float("-inf"))
    given = {name: context[name] for name in context.call.args if name not in ("query", "key", "value", "attn_mask")}
    function = OPERATORS[context.call.operator].function
    return function(query, context["key"], context["value"], attn_mask=mask, **given)


@_masked("layer_norm", "rms_norm")
def _layer_norm(context: Context) -> Any:
    masks = context.masks()
    shape = context["normalized_shape"]
    count = 1 if isinstance(shape, int) else len(shape)
    touched = {axis: m for axis, m in enumerate(masks) if m is not None and axis >= len(masks) - count}
    if not touched:
        return None
    value = context["input"]
    dims = list(range(value.dim() - count, value.dim()))
    eps = context["eps"]
    if context.call.operator == "rms_norm":
        eps = torch.finfo(value.dtype).eps if eps is None else eps
        weights = _weights(value, touched)
        squares = (value.square() * weights).sum(dims, True) / weights.sum(dims, True)
        result = value * (squares + eps).rsqrt()
    else:
        mean, squares, number = _moments(value, touched, dims)
        result = (value - mean) * (squares / number + eps).rsqrt()
    return _scaled(context, result, lambda tensor: tensor)


def _scaled(context: Context, result: Tensor, fit: Callable[[Tensor], Tensor]) -> Tensor:
    weight = context["weight"] if "weight" in context.call.args else None
    bias = context["bias"] if "bias" in context.call.args else None
    if isinstance(weight, Tensor):
        result = result * fit(weight)
    return result + fit(bias) if isinstance(bias, Tensor) else result


@_masked("group_norm")
def _group_norm(context: Context) -> Any:
    mask = context.masks()[1]
    if mask is None:
        return None
    value, groups = context["input"], context["num_groups"]
    batch, channels, *space = value.shape
    grouped = value.reshape(batch, groups, channels // groups, *space)
    weights = mask.to(value).reshape(1, groups, channels // groups, *[1] * len(space)).expand(grouped.shape)
    dims = list(range(2, grouped.dim()))
    count = weights.sum(dims, True).clamp(min=1)
    mean = (grouped * weights).sum(dims, True) / count
    variance = ((grouped - mean).square() * weights).sum(dims, True) / count
    result = ((grouped - mean) * (variance + context["eps"]).rsqrt()).reshape(value.shape)
    return _scaled(context, result, lambda tensor: tensor.reshape(-1, *[1] * len(space)))


@_masked("batch_norm", "instance_norm")
def _batch_norm(context: Context) -> Any:
    """Statistics of the batch, over dimensions that lose channels: standardized weights."""
    masks = context.masks()
    channels = channel_axis(len(masks), context.module)
    first = channels + 1 if context.call.operator == "instance_norm" else 0
    dims = [axis for axis in range(first, len(masks)) if axis != channels]
    touched = {axis: mask for axis in dims if (mask := masks[axis]) is not None}
    if not touched or isinstance(context.call.args.get("running_mean"), (Ref, Attr)):
        return None
    value = context["input"]
    mean, squares, count = _moments(value, touched, dims)
    result = (value - mean) * (squares / count + context["eps"]).rsqrt()
    return _scaled(context, result, lambda tensor: tensor.reshape(-1, *[1] * (value.dim() - channels - 1)))


def filled(value: Tensor, mask: Tensor, axis: int, number: float) -> Tensor:
    """A tensor with a number wherever a mask along one dimension does not hold."""
    mask = along(value, mask, axis)
    return torch.where(mask, value, torch.full((), number, dtype=value.dtype, device=value.device))


def along(value: Tensor, mask: Tensor, axis: int) -> Tensor:
    """A mask shaped to meet a tensor along one dimension.

    Raises:
        RecordedSizeError: the tensor is of another length than the labels say.
    """
    length = value.shape[axis]
    if len(mask) != length:
        raise RecordedSizeError(
            f"a dimension is of length {length}, and the labels of its channels are {len(mask)}; give inputs of the "
            "recorded sizes"
        )
    shape = [1] * value.dim()
    shape[axis] = length
    return mask.to(value.device).reshape(shape)


class RecordedSizeError(ArgumentError):
    """Which channels stand where is not known at the size of some inputs."""
