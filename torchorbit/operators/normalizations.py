"""Normalizations: what is normalized by itself has its own scale and shift."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from torchorbit.labels import Dim
from torchorbit.operators.registry import Operands, rule


def channel_axis(rank: int, module: nn.Module | None) -> int:
    """Where a normalization finds channels: instance norms also take a sample without a batch."""
    unbatched = module._get_no_batch_dim() if isinstance(module, _InstanceNorm) else None
    return 0 if rank == unbatched else 1


def _per_channel(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    axis = channel_axis(len(dims), operands.module)
    beside = [operands.maybe(name) for name in ("running_mean", "running_var", "weight", "bias")]
    dims[axis] = operands.labels.meet(dims[axis], *[tensor.dims[0] for tensor in beside if tensor is not None])
    return dims


@rule("batch_norm")
def _batch_norm(operands: Operands) -> list[Dim]:
    return _per_channel(operands)


@rule("instance_norm")
def _instance_norm(operands: Operands) -> list[Dim]:
    return _per_channel(operands)


@rule("group_norm")
def _group_norm(operands: Operands) -> list[Dim]:
    dims = _per_channel(operands)
    groups, channels = operands.arg("num_groups"), operands.tensor().shape[1]
    if groups not in (1, channels):
        # Every group keeps the same number of channels.
        operands.labels.split(dims[1], (groups, channels // groups))
    return dims


@rule("layer_norm", "rms_norm")
def _layer_norm(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    dims = list(x.dims)
    for name in ("weight", "bias"):
        tensor = operands.maybe(name)
        if tensor is not None:
            for position in range(1, len(tensor.shape) + 1):
                dims[-position] = operands.labels.meet(dims[-position], tensor.dims[-position])
    return dims
