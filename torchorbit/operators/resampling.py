"""Pooling and resampling: space changes, channels pass."""

from __future__ import annotations

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


def _spatial(operands: Operands, count: int) -> list[Dim] | tuple[Labelled, ...]:
    x = operands.tensor()
    for dim in x.dims[-count:]:
        operands.freeze(dim)
    dims: list[Dim] = [*x.dims[:-count], *[None] * count]
    if operands.shape and isinstance(operands.shape[0], tuple):
        return tuple([Labelled(tuple(shape), dims) for shape in operands.shape])
    return dims


for _count in (1, 2, 3):

    @rule(
        *[f"{kind}_pool{_count}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")],
    )
    def _pooling(operands: Operands, count: int = _count) -> list[Dim] | tuple[Labelled, ...]:
        return _spatial(operands, count)


@rule("interpolate")
def _interpolate(operands: Operands) -> list[Dim] | tuple[Labelled, ...]:
    return _spatial(operands, len(operands.tensor().shape) - 2)


@rule("grid_sample")
def _grid_sample(operands: Operands) -> list[Dim] | tuple[Labelled, ...]:
    operands.freeze(operands.tensor("grid"))
    return _spatial(operands, len(operands.tensor().shape) - 2)


@rule("affine_grid")
def _affine_grid(operands: Operands) -> list[Dim]:
    operands.freeze(operands.tensor("theta"))
    return [None] * len(operands.shape)
