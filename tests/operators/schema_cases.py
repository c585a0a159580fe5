"""For every operator that is declared by torch's schema of it: inputs, and a call of it as it is usually written."""

import torch
import torch.nn.functional as F

torch.manual_seed(0)
X = torch.randn(2, 4, 6)
POSITIVE = torch.rand(2, 4, 6) + 0.5
UNIT = torch.rand(2, 4, 6) * 0.8 + 0.1
PAIR = (X, torch.randn(2, 4, 6))
POSITIVE_PAIR = (POSITIVE, torch.rand(2, 4, 6) + 0.5)
WHOLE = torch.randint(1, 8, (2, 4, 6))
WHOLES = (WHOLE, torch.randint(1, 8, (2, 4, 6)))
SQUARE = torch.randn(2, 5, 5)
DEFINITE = SQUARE @ SQUARE.mT + 5 * torch.eye(5)
IMAGE = torch.randn(2, 4, 8, 8)
VOLUME = torch.randn(2, 4, 4, 4, 4)
SCORES = (torch.randn(2, 5), torch.tensor([1, 3]))
VECTORS = (torch.randn(2, 6), torch.randn(2, 6))


def _functions(names, example, *places):
    """Cases of functions of one name each, in whatever namespace of torch they are."""
    found = {}
    for name in names.split():
        place = next(place for place in (torch, torch.special, F, *places) if hasattr(place, name))
        found[name] = (example, getattr(place, name))
    return found


def _of_linalg(names, example):
    return {f"linalg_{name}": (example, getattr(torch.linalg, name)) for name in names.split()}


def _state(width):
    return lambda x: (x[:, :width], x[:, :width] * 2)


def _cell(function, several, gates):
    def call(x):
        state = (x[:, :3], 2 * x[:, :3]) if several else x[:, :3]
        return function(
            x, state, torch.ones(gates * 3, 6) / 9, torch.ones(gates * 3, 3) / 7, torch.ones(gates * 3), None
        )

    return (torch.randn(2, 6), call)


def _layers(function, gates, several):
    """A whole recurrent layer as a function of its weights."""

    def call(x):
        weights = [torch.ones(gates * 3, 6) / 9, torch.ones(gates * 3, 3) / 7]
        state = torch.zeros(1, x.shape[1], 3)
        return function(x, (state, state) if several else state, weights, False, 1, 0.0, False, False, False)

    return (torch.randn(2, 4, 6).transpose(0, 1).contiguous().transpose(0, 1), call)


CASES = {
    # elementwise
    **_functions("copysign fmax fmin heaviside igamma igammac isclose ldexp logaddexp2 nextafter xlog1py xlogy", POSITIVE_PAIR),
    **_functions("float_power zeta", (POSITIVE + 1, POSITIVE + 1)),
    **_functions("bitwise_left_shift bitwise_right_shift gcd lcm", WHOLES),
    **_functions("i0 i0e i1 i1e isneginf isposinf isreal log_ndtr ndtr signbit conj_physical", X),
    **_functions("entr erfcx logit ndtri", UNIT),
    "fake_quantize_per_tensor_affine": (X, lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)),
    "fake_quantize_per_channel_affine": (X, lambda x: torch.fake_quantize_per_channel_affine(x, torch.full((4,), 0.1), torch.zeros(4, dtype=torch.int32), 1, -128, 127)),
    # order
    "cummax": (X, lambda x: torch.cummax(x, 1)),
    "cummin": (X, lambda x: x.cummin(dim=1)),
    "kthvalue": (X, lambda x: torch.kthvalue(x, 2, dim=1)),
    "mode": (X, lambda x: torch.mode(x, 1)),
    "nanmedian": (X, lambda x: torch.nanmedian(x, 1)),
    # reductions
    "logcumsumexp": (X, lambda x: torch.logcumsumexp(x, 1)),
    "diff": (X, lambda x: torch.diff(x, dim=1, prepend=x[:, :1])),
    "nansum": (X, lambda x: x.nansum(1)),
    # creation
    "exponential": (X, lambda x: x.clone().exponential_(2.0)),
    "tril_indices": (SQUARE, lambda x: x[:, torch.tril_indices(5, 5)[0], torch.tril_indices(5, 5, device=x.device)[1]]),
    "triu_indices": (SQUARE, lambda x: x[:, torch.triu_indices(5, 5, offset=1)[0]]),
    # indexing
    "index_copy": (PAIR, lambda x, y: x.index_copy(1, torch.tensor([0, 2]), y[:, :2])),
    "index_fill": (X, lambda x: x.clone().index_fill_(1, torch.tensor([0, 2]), 3.0)),
    "index_reduce": (PAIR, lambda x, y: x.index_reduce(1, torch.tensor([0, 2]), y[:, :2], "amax")),
    "scatter_reduce": (PAIR, lambda x, y: x.scatter_reduce(2, torch.zeros_like(x, dtype=torch.long), y, reduce="amin", include_self=False)),
    "select_scatter": (PAIR, lambda x, y: torch.select_scatter(x, y[:, 0], 1, 2)),
    "slice_scatter": (PAIR, lambda x, y: torch.slice_scatter(x, y[:, :2], 1, 1, 3)),
    "embedding_bag": (WHOLE[:, 0], lambda x: F.embedding_bag(x, torch.arange(48.0).view(8, 6).sin(), mode="sum", padding_idx=2)),
    # pooling
    "max_unpool2d": (IMAGE, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "max_unpool3d": (VOLUME, lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2)),
    # recurrent
    "lstm_cell": _cell(torch.lstm_cell, True, 4),
    "gru_cell": _cell(torch.gru_cell, False, 3),
    "rnn_tanh_cell": _cell(torch.rnn_tanh_cell, False, 1),
    "rnn_relu_cell": _cell(torch.rnn_relu_cell, False, 1),
    # linear algebra
    "cholesky": (SQUARE, lambda x: torch.cholesky(x @ x.mT + 5 * torch.eye(5))),
    "linalg_cholesky": (SQUARE, lambda x: torch.linalg.cholesky(x @ x.mT + 5 * torch.eye(5))),
    **_functions("cholesky_inverse det inverse logdet pinverse qr slogdet svd matrix_exp", DEFINITE),
    "matrix_power": (SQUARE, lambda x: torch.matrix_power(x, 3)),
    **_of_linalg("cholesky_ex det eigvalsh eigvals inv inv_ex lu_factor lu_factor_ex lu matrix_exp matrix_rank pinv qr slogdet svdvals eigh eig svd", DEFINITE),
    "linalg_matrix_power": (SQUARE, lambda x: torch.linalg.matrix_power(x, 2)),
    # losses
    **_functions("mse_loss l1_loss smooth_l1_loss huber_loss", PAIR),
    "soft_margin_loss": (SCORES, lambda x, y: F.soft_margin_loss(x[:, 0], (y % 2) * 2.0 - 1)),
    "binary_cross_entropy": (PAIR, lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid())),
    "binary_cross_entropy_with_logits": ((X, UNIT), F.binary_cross_entropy_with_logits),
    "cosine_embedding_loss": (VECTORS, lambda x, y: F.cosine_embedding_loss(x, y, torch.ones(x.shape[0]), reduction="none")),
    "cross_entropy_loss": (SCORES, lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1, reduction="sum")),
    "hinge_embedding_loss": (PAIR, lambda x, y: F.hinge_embedding_loss(x, y.sign())),
    "kl_div": (PAIR, lambda x, y: F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean")),
    "margin_ranking_loss": (PAIR, lambda x, y: F.margin_ranking_loss(x, y, x.sign())),
    "multi_margin_loss": (SCORES, lambda x, y: F.multi_margin_loss(x, y, reduction="none")),
    "multilabel_margin_loss": (SCORES, lambda x, y: F.multilabel_margin_loss(x, y[:, None].expand(-1, 5))),
    "nll_loss": (SCORES, lambda x, y: torch._C._nn.nll_loss(x, y, None, 1, -100)),
    "nll_loss2d": ((IMAGE, torch.randint(0, 4, (2, 8, 8))), lambda x, y: torch._C._nn.nll_loss2d(x, y, None, 1, -100)),
    "nll_loss_nd": (SCORES, lambda x, y: F.nll_loss(x.log_softmax(1), y)),
    "poisson_nll_loss": (POSITIVE_PAIR, F.poisson_nll_loss),
    "triplet_margin_loss": (VECTORS, lambda x, y: F.triplet_margin_loss(x, y, x - y)),
    # of which no more is known
    "addbmm": (SQUARE, lambda x: torch.addbmm(x[0], x, x)),
    "addmv": (SQUARE, lambda x: torch.addmv(x[0, 0], x[0], x[0, 1])),
    "addr": (SQUARE, lambda x: torch.addr(x[0], x[0, 0], x[0, 1])),
    "ger": (SQUARE, lambda x: torch.ger(x[0, 0], x[0, 1])),
    "kron": (X, lambda x: torch.kron(x, torch.ones(2, 2))),
    "trace": (SQUARE, lambda x: torch.trace(x[0])),
    "affine_grid_generator": (torch.randn(2, 2, 3), lambda x: torch.affine_grid_generator(x, (x.shape[0], 3, 8, 8), False)),
    "atleast_1d": (X, torch.atleast_1d),
    "atleast_2d": (X, torch.atleast_2d),
    "atleast_3d": (X, torch.atleast_3d),
    "block_diag": (SQUARE, lambda x: torch.block_diag(x[0], x[1])),
    "cartesian_prod": (SQUARE, lambda x: torch.cartesian_prod(x[0, 0], x[0, 1])),
    "cholesky_solve": (DEFINITE, lambda x: torch.cholesky_solve(x, x.tril())),
    **_of_linalg("cond matrix_norm norm", DEFINITE),
    "cross": (PAIR, lambda x, y: torch.cross(x[..., :3], y[..., :3], dim=-1)),
    "linalg_cross": (PAIR, lambda x, y: torch.linalg.cross(x[..., :3], y[..., :3])),
    "linalg_householder_product": (SQUARE, lambda x: torch.linalg.householder_product(x.tril(), x[..., 0])),
    "linalg_ldl_factor": (DEFINITE, torch.linalg.ldl_factor),
    "linalg_ldl_solve": (DEFINITE, lambda x: torch.linalg.ldl_solve(*torch.linalg.ldl_factor(x), x)),
    "linalg_lu_solve": (DEFINITE, lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x)),
    "linalg_multi_dot": (SQUARE, lambda x: torch.linalg.multi_dot([x[0], x[1], x[0]])),
    "linalg_solve": (DEFINITE, lambda x: torch.linalg.solve(x, x + 1)),
    "linalg_solve_ex": (DEFINITE, lambda x: torch.linalg.solve_ex(x, x + 1)),
    "linalg_solve_triangular": (DEFINITE, lambda x: torch.linalg.solve_triangular(x.triu(), x, upper=True)),
    "linalg_tensorinv": (DEFINITE, lambda x: torch.linalg.tensorinv(x[0], 1)),
    "linalg_tensorsolve": (DEFINITE, lambda x: torch.linalg.tensorsolve(x[0], x[1, 0])),
    "linalg_vander": (X, torch.linalg.vander),
    "linalg_vecdot": (PAIR, torch.linalg.vecdot),
    "lu_solve": (DEFINITE, lambda x: torch.lu_solve(x, *torch.linalg.lu_factor(x))),
    "lu_unpack": (DEFINITE, lambda x: torch.lu_unpack(*torch.linalg.lu_factor(x))),
    "orgqr": (SQUARE, lambda x: torch.orgqr(x.tril(), x[..., 0])),
    "triangular_solve": (DEFINITE, lambda x: torch.triangular_solve(x, x.triu())),
    **_functions("count_nonzero msort nanmean", X),
    **_functions("dist", PAIR),
    "cumulative_trapezoid": (X, torch.cumulative_trapezoid),
    "gradient": (X, lambda x: torch.gradient(x, dim=1)),
    "histc": (X, lambda x: torch.histc(x, 10, -1, 1)),
    "mvlgamma": (POSITIVE + 2, lambda x: torch.mvlgamma(x, 2)),
    "nanquantile": (X, lambda x: torch.nanquantile(x, 0.3, dim=1)),
    "pdist": (X, lambda x: torch.pdist(x[0])),
    "polygamma": (POSITIVE, lambda x: torch.polygamma(1, x)),
    "quantile": (X, lambda x: torch.quantile(x, 0.5, dim=1, keepdim=True)),
    "renorm": (X, lambda x: torch.renorm(x, 2, 1, 1.0)),
    **_functions("trapezoid trapz", X),
    "as_strided_scatter": (X, lambda x: torch.as_strided_scatter(x[0], x[0, :2, :2] * 2, (2, 2), (1, 2))),
    "diag": (SQUARE, lambda x: torch.diag(x[0])),
    "diagflat": (SQUARE, lambda x: torch.diagflat(x[0, 0])),
    "diagonal_scatter": (SQUARE, lambda x: torch.diagonal_scatter(x, x[:, 0], 0, 1, 2)),
    "index_put": (X, lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 0])), x[:2, 0], accumulate=True)),
    "isin": (WHOLE, lambda x: torch.isin(x, torch.tensor([1, 2]))),
    "masked_scatter": (PAIR, lambda x, y: x.masked_scatter(x > 0, y)),
    "put": (X, lambda x: x.put(torch.tensor([1, 3]), x[0, 0, :2])),
    "searchsorted": (X, lambda x: torch.searchsorted(torch.linspace(-1, 1, 5), x)),
    "take": (X, lambda x: torch.take(x, torch.tensor([0, 5]))),
    **{f"fft_{name}": (SQUARE, getattr(torch.fft, name)) for name in ("hfft", "hfft2", "hfftn", "ihfft", "ihfft2", "ihfftn")},
    "stft": (torch.randn(2, 64), lambda x: torch.stft(x, 16, window=torch.hann_window(16), return_complex=True)),
    "multinomial": (UNIT[:, 0], lambda x: torch.multinomial(x.sigmoid(), 2)),
    "poisson": (POSITIVE, lambda x: torch.poisson(x.exp())),
    "gru": _layers(torch.gru, 3, False),
    "lstm": _layers(torch.lstm, 4, True),
    "rnn_relu": _layers(torch.rnn_relu, 1, False),
    "rnn_tanh": _layers(torch.rnn_tanh, 1, False),
}  # fmt: skip
