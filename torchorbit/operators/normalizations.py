"""Normalizations: what is normalized by itself has its own scale and shift."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Arguments, Leaf, Shapes, operator
from torchorbit.operators.labelling import Operands, like_the_first
from torchorbit.operators.resizing import Resized, kept_groups, scaled
from torchorbit.operators.shapes import Shape, are_floats, misfit
from torchorbit.operators.spelling import renamed

NEEDLESS = {
    "contraction": "what it normalizes goes on",
}


def channel_axis(rank: int, module: nn.Module | None) -> int:
    """Where a normalization finds channels: instance norms also take a sample without a batch."""
    unbatched = module._get_no_batch_dim() if isinstance(module, _InstanceNorm) else None
    return 0 if rank == unbatched else 1


def _channels(rank: int, weight_rank: int, module: nn.Module | None) -> int:
    return channel_axis(rank, module)


def _last(rank: int, weight_rank: int, module: nn.Module | None) -> int:
    return rank - 1


# -- labels


def _weight_norm_rule(operands: Operands) -> list[Dim]:
    """A norm over all dimensions of the weight but one, or over all, and a scale for it."""
    weight, scale = operands.tensor("v"), operands.tensor("g")
    dims = list(weight.dims)
    if len(scale.shape) == len(weight.shape):
        axis = operands.arg("dim") % len(dims)
        dims[axis] = operands.labels.meet(dims[axis], scale.dims[axis])
    return dims


def _per_channel_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    axis = channel_axis(len(dims), operands.module)
    beside = [operands.maybe(name) for name in ("running_mean", "running_var", "weight", "bias")]
    dims[axis] = operands.labels.meet(dims[axis], *[tensor.dims[0] for tensor in beside if tensor is not None])
    return dims


def _group_norm_rule(operands: Operands) -> list[Dim]:
    dims = _per_channel_rule(operands)
    groups, channels = operands.arg("num_groups"), operands.tensor().shape[1]
    if groups not in (1, channels):
        # Every group keeps the same number of channels.
        operands.labels.split(dims[1], (groups, channels // groups))
    return dims


def _layer_norm_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    for name in ("weight", "bias"):
        tensor = operands.maybe(name)
        if tensor is not None:
            for position in range(1, len(tensor.shape) + 1):
                dims[-position] = operands.labels.meet(dims[-position], tensor.dims[-position])
    return dims


def _local_response_norm_rule(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    if isinstance(x.dims[1], np.ndarray):
        operands.mixes("input", 1, 1)
    return x.dims


# -- shapes


def _batch_norm_shape(args: Arguments) -> Shape | None:
    x, mean = args["input"], args.get("running_mean")
    if not are_floats(x) or not x.numel() or x.dim() < 2 or (mean is None) != (args.get("running_var") is None):
        return None
    if not _are_per_channel(args, _TENSORS, x.shape[1:2]):
        return None
    training = args.get("training", False)
    if (mean is None and not training) or (training and x.numel() == x.shape[1]):
        return None  # there are no statistics, as there are none of a single number
    return x.shape


def _are_per_channel(args: Arguments, names: tuple[str, ...], channels: torch.Size) -> bool:
    """Whether weights and statistics certainly fit the channels of an operand; raises where one does not."""
    for name in names:
        tensor = args.get(name)
        if tensor is None or (tensor.shape == channels and tensor.is_floating_point()):
            continue
        if tensor.dim() == 1 and tensor.shape != channels:
            raise misfit(f"a normalization of {channels[0]} channels is given {tuple(tensor.shape)}", tuple(channels))
        return False
    return True


def _layer_norm_shape(args: Arguments) -> Shape | None:
    x, given = args["input"], args["normalized_shape"]
    weight, bias = args.get("weight"), args.get("bias")
    if not are_floats(x, weight, bias):
        return None
    shape = (given,) if isinstance(given, int) else tuple(given)
    if not shape or x.shape[-len(shape) :] != shape:
        raise misfit(f"layer_norm over {shape} is given {tuple(x.shape)}", f"it to end in {shape}")
    for tensor in (weight, bias):
        if tensor is not None and tensor.shape != shape:
            raise misfit(f"layer_norm over {shape} is given {tuple(tensor.shape)}", shape)
    return x.shape


def _group_norm_shape(args: Arguments) -> Shape | None:
    x, groups = args["input"], args["num_groups"]
    if not are_floats(x) or not x.numel() or x.dim() < 2:
        return None
    if groups < 1 or x.shape[1] % groups:
        raise misfit(f"group_norm of {x.shape[1]} channels has {groups} groups", "one that divides them")
    if not _are_per_channel(args, ("weight", "bias"), x.shape[1:2]):
        return None
    return None if x.numel() == groups else x.shape  # a single number has no statistics


def _normalize_shape(args: Arguments) -> Shape | None:
    x, dim = args["input"], args.get("dim", 1)
    return x.shape if are_floats(x) and type(dim) is int and -x.dim() <= dim < x.dim() else None


# -- multiply-accumulates


def _batch_norm_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    if shapes("running_mean") is None:
        return float(math.prod(result) * (5 if shapes("weight") is not None else 4))
    return float(math.prod(result) * (2 if shapes("weight") is not None else 1))


def _normalization_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * (5 if shapes("weight") is not None else 4))


# -- numbers after a removal


def _group_norm_resize(call: Resized) -> None:
    groups = call.args["num_groups"]
    if groups > 1:
        call.args["num_groups"] = kept_groups(groups, call.masks()[1])


def _batch_norm_resize(call: Resized) -> None:
    """Statistics of a single number, which torch refuses to take: the number is its own mean."""
    if call.args.get("running_mean") is not None or call.args.get("bias") is not None:
        return
    left = [n if mask is None else int(mask.sum()) for n, mask in zip(call.shape, call.result, strict=True)]
    if math.prod(left) == left[1]:
        call.operator, call.args = "mul", {"input": call.args["input"], "other": 0.0}


def _layer_norm_resize(call: Resized) -> None:
    shape = call.args["normalized_shape"]
    listed = [shape] if isinstance(shape, int) else list(shape)
    masks = call.masks()[-len(listed) :]
    call.args["normalized_shape"] = tuple([scaled(size, mask) for size, mask in zip(listed, masks, strict=True)])


def _number_of_channels(axis: int, attribute: str = "num_features") -> Any:
    """How many channels are kept along a dimension; counted from the last where it is negative."""

    def numbers(call: Resized) -> dict[str, Any]:
        mask = call.masks()[axis]
        return {} if mask is None else {attribute: int(mask.sum())}

    return numbers


def _group_norm_numbers(call: Resized) -> dict[str, Any]:
    return {"num_groups": call.args["num_groups"], **_number_of_channels(1, "num_channels")(call)}


def _layer_norm_numbers(call: Resized) -> dict[str, Any]:
    return {"normalized_shape": tuple(call.args["normalized_shape"])}


def _normalized(call: Resized) -> set[int]:
    rank = len(call.shape_of("input"))
    return set(range(rank - len(call.args["normalized_shape"]), rank))


_TENSORS = ("running_mean", "running_var", "weight", "bias")
_ORDER = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
_BATCH_NORMS: list[tuple[type[nn.Module], tuple[int, ...]]] = [
    (nn.BatchNorm1d, (2, 3)),
    (nn.BatchNorm2d, (4,)),
    (nn.BatchNorm3d, (5,)),
]

OPERATORS = [
    operator(
        "batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05)",
        function=F.batch_norm,
        calls={torch.batch_norm: renamed("batch_norm", *_ORDER)},
        modules=[
            Leaf(cls, tensors=_TENSORS, ranks=ranks, numbers=_number_of_channels(1)) for cls, ranks in _BATCH_NORMS
        ],
        rule=_per_channel_rule,
        shape=_batch_norm_shape,
        layout="kept",
        cost=_batch_norm_cost,
        resize=_batch_norm_resize,
        channels=_channels,
        in_full=lambda call: {1},
        constant="computed",
        normalizes=True,
    ),
    operator(
        "instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,\
 momentum=0.1, eps=1e-05)",
        function=F.instance_norm,
        calls={torch.instance_norm: renamed("instance_norm", *_ORDER[:5], "use_input_stats", *_ORDER[6:])},
        modules=[
            # It also takes a sample without a batch.
            Leaf(cls, tensors=_TENSORS, numbers=_number_of_channels(-1 - dims))
            for dims, cls in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), start=1)
        ],
        rule=_per_channel_rule,
        cost=_normalization_cost,
        channels=_channels,
        normalizes=True,
        needless={"resize": "no argument holds a length"},
    ),
    operator(
        "layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05)",
        function=F.layer_norm,
        calls={
            torch.layer_norm: renamed(
                "layer_norm", "input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"
            )
        },
        modules=[
            Leaf(
                nn.LayerNorm,
                tensors=("weight", "bias"),
                attributes=("normalized_shape", "eps"),
                complete=True,
                numbers=_layer_norm_numbers,
            )
        ],
        rule=_layer_norm_rule,
        shape=_layer_norm_shape,
        layout="contiguous",
        cost=_normalization_cost,
        resize=_layer_norm_resize,
        channels=_last,
        in_full=_normalized,
        constant="computed",
        normalizes=True,
    ),
    operator(
        "group_norm(input, num_groups, weight=None, bias=None, eps=1e-05)",
        function=F.group_norm,
        calls={
            torch.group_norm: renamed("group_norm", "input", "num_groups", "weight", "bias", "eps", "cudnn_enabled")
        },
        modules=[
            Leaf(
                nn.GroupNorm,
                tensors=("weight", "bias"),
                attributes=("num_groups", "eps"),
                complete=True,
                numbers=_group_norm_numbers,
            )
        ],
        rule=_group_norm_rule,
        shape=_group_norm_shape,
        layout="kept",
        cost=_normalization_cost,
        resize=_group_norm_resize,
        channels=_channels,
        normalizes=True,
    ),
    operator(
        "rms_norm(input, normalized_shape, weight=None, eps=None)",
        function=F.rms_norm,
        kinds={"eps": "number|none"},
        calls={torch.rms_norm: renamed("rms_norm", "input", "normalized_shape", "weight", "eps")},
        modules=[
            Leaf(
                nn.RMSNorm,
                tensors=("weight",),
                attributes=("normalized_shape", "eps"),
                complete=True,
                kinds={"eps": "number|none"},
                numbers=_layer_norm_numbers,
            )
        ],
        rule=_layer_norm_rule,
        shape=_layer_norm_shape,
        layout="contiguous",
        resize=_layer_norm_resize,
        channels=_last,
        in_full=_normalized,
        constant="computed",
        normalizes=True,
        needless={"cost": "fvcore does not count it"},
    ),
    operator(
        "local_response_norm(input, size, alpha=0.0001, beta=0.75, k=1.0)",
        kinds={"k": "number"},
        modules=[Leaf(nn.LocalResponseNorm, attributes=("size",), kinds={"k": "number"})],
        rule=_local_response_norm_rule,
        needless={
            "cost": "fvcore does not count it",
            "resize": "its size counts neighbours, and its operand is put back to its full length",
            "oracle": "zeros stand where channels were",
        },
    ),
    operator(
        "normalize(input, p=2.0, dim=1, eps=1e-12)",
        rule=like_the_first,
        shape=_normalize_shape,
        layout="kept",
        needless={
            "cost": "fvcore does not count it",
            "resize": "no argument holds a length",
            "oracle": "zeros have no part in a norm",
        },
    ),
    operator(
        "weight_norm(v, g, dim=0)",
        function=torch._weight_norm,
        names="_weight_norm",
        kinds={"v": "tensor", "g": "tensor", "dim": "int"},
        rule=_weight_norm_rule,
        needless={
            "cost": "fvcore does not count it",
            "resize": "no argument holds a length",
            "oracle": "zeros have no part in a norm",
        },
    ),
]
