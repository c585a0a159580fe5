"""Tensors made in forward."""

from __future__ import annotations

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


@rule("zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full")
def _alike_everywhere(operands: Operands) -> list[Dim]:
    # A length that is a number of the model's may be a number of channels, and any number of them can be made.
    sizes = operands.args["size"]
    sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
    return [
        operands.labels.fresh(length) if length > 1 and isinstance(size, int) else None
        for size, length in zip(sizes, operands.shape, strict=True)
    ]


@rule("arange", "linspace", "eye", "randperm")
def _each_different(operands: Operands) -> list[Dim]:
    return [None] * len(operands.shape)


@rule("meshgrid")
def _meshgrid(operands: Operands) -> tuple[Labelled, ...]:
    for tensor in operands.tensors():
        operands.freeze(tensor)
    return tuple([Labelled(tuple(shape), [None] * len(shape)) for shape in operands.shape])


@rule("check")
def _check(operands: Operands) -> None:
    """Compares sizes of dimensions that have no channels."""
