"""Decompositions and functions of square matrices: rows and columns are frozen, what the matrices are of passes."""

from __future__ import annotations

from typing import Any

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.labelling import Labelled, Operands, several

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "no argument holds a length",
    "contraction": "it freezes the dimensions that it goes over",
    "oracle": "it freezes the dimensions that it goes over",
}


def _rule(operands: Operands) -> Any:
    x = next(iter(operands.tensors()))
    *stacks, rows, columns = x.dims
    operands.freeze(rows)
    operands.freeze(columns)

    def left(shape: Any) -> list[Dim]:
        return [*stacks, *[None] * (len(shape) - len(stacks))]

    if not several(operands):
        return left(operands.shape)
    return tuple([Labelled(tuple(shape), left(shape)) for shape in operands.shape])


_NAMES = """
    cholesky cholesky_inverse det inverse linalg_cholesky linalg_cholesky_ex linalg_det linalg_eig linalg_eigh
    linalg_eigvals linalg_eigvalsh linalg_inv linalg_inv_ex linalg_lu linalg_lu_factor linalg_lu_factor_ex
    linalg_matrix_exp linalg_matrix_power linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet linalg_svd
    linalg_svdvals logdet matrix_exp matrix_power pinverse qr slogdet svd
"""

OPERATORS = [aten_operator(name, rule=_rule) for name in _NAMES.split()]
