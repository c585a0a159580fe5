"""Reductions: the reduced dimensions drop out. What is left of them is reduced over what is kept."""

from __future__ import annotations

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


def reduced_axes(axes: object, rank: int) -> set[int]:
    """The dimensions that a reduction's argument names; all of them where it names none."""
    if axes is None or axes == ():
        return set(range(rank))
    return {axis % rank for axis in ((axes,) if isinstance(axes, int) else axes)}  # type: ignore[attr-defined]


def _left(operands: Operands, x: Labelled, rank: int) -> list[Dim]:
    axes = reduced_axes(operands.arg("dim"), len(x.shape))
    if rank == len(x.shape):
        return [None if axis in axes else dim for axis, dim in enumerate(x.dims)]
    return [dim for axis, dim in enumerate(x.dims) if axis not in axes]


@rule("mean", "sum", "prod", "amax", "amin", "any", "all", "var", "std", "norm", "logsumexp")
def _reduction(operands: Operands) -> list[Dim]:
    return _left(operands, operands.tensor(), len(operands.shape))


@rule("vector_norm")
def _vector_norm(operands: Operands) -> list[Dim]:
    return _left(operands, operands.tensor("x"), len(operands.shape))


@rule("var_mean", "std_mean")
def _two_statistics(operands: Operands) -> tuple[Labelled, ...]:
    x = operands.tensor()
    return tuple([Labelled(tuple(shape), _left(operands, x, len(shape))) for shape in operands.shape])


@rule("argmax", "argmin")
def _position(operands: Operands) -> list[Dim]:
    x = operands.tensor()
    for axis in reduced_axes(operands.arg("dim"), len(x.shape)):
        operands.freeze(x.dims[axis])
    return _left(operands, x, len(operands.shape))
