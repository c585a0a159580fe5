"""Operators of which no more is known than torch's own schema: they freeze what they touch.

They are converted, saved and loaded as all others. The list is closed, as all tables are: functions of numbers alone
that write into nothing, read no file and give results whose shapes follow from those of their operands. Whoever wants
to remove channels through one gives it a row of its own in the file of its family.
"""

from __future__ import annotations

from torchorbit.operators.aten import aten_operator

NEEDLESS = {
    "cost": "fvcore does not count it",
    "rule": "it freezes what it touches, and is reported by name",
    "resize": "it freezes what it touches",
    "contraction": "it freezes what it touches",
    "oracle": "it freezes what it touches",
}

_NAMES = """
    addbmm addmv addr affine_grid_generator atleast_1d atleast_2d atleast_3d block_diag cartesian_prod cross ger kron
    trace

    cholesky_solve linalg_cond linalg_cross linalg_householder_product linalg_ldl_factor linalg_ldl_solve
    linalg_lu_solve linalg_matrix_norm linalg_multi_dot linalg_norm linalg_solve linalg_solve_ex
    linalg_solve_triangular linalg_tensorinv linalg_tensorsolve linalg_vander linalg_vecdot lu_solve lu_unpack orgqr
    triangular_solve

    count_nonzero cumulative_trapezoid dist gradient histc msort mvlgamma nanmean nanquantile pdist polygamma
    quantile renorm trapezoid trapz

    as_strided_scatter diag diagflat diagonal_scatter index_put isin masked_scatter put searchsorted take

    fft_hfft fft_hfft2 fft_hfftn fft_ihfft fft_ihfft2 fft_ihfftn stft

    multinomial poisson

    gru lstm rnn_relu rnn_tanh
"""

OPERATORS = [aten_operator(name) for name in _NAMES.split()]
