"""The closed table of operators that a graph may hold.

Every way of writing an operation (``x + y``, ``torch.add(x, y)``, ``x.add_(y)``) becomes one operator with one
signature. A saved graph names operators by their name in this table and nothing else, so loading one imports
nothing and calls nothing that is not listed here.

A row is a signature. The arguments are called as in the function that is behind it; ``*`` starts the
keyword-only ones; a parameter written ``name: ints`` takes a tuple of integers that callers may also spread over
several arguments (``x.permute(0, 2, 1)``).
"""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table.

    Attributes:
        name: the operator's name in graphs and in saved files.
        style: how a call is written in generated code: ``"function"``, ``"method"`` of the first argument,
            ``"infix"`` (a Python operator between the two arguments), ``"index"`` (``x[index]``).
        function: what is called; for methods the name is enough.
        parameters: parameter name -> default, `REQUIRED` where there is none; in the order of the function.
        keyword_only: the parameters that must be passed by name.
        ints: the parameters that take a tuple of integers which callers may spread.
        symbol: the Python operator of the infix style.
    """

    name: str
    style: str
    function: Callable[..., Any]
    parameters: dict[str, Any]
    keyword_only: frozenset[str] = frozenset()
    ints: frozenset[str] = frozenset()
    symbol: str = ""


def _assign(target: Tensor, value: Tensor) -> None:
    """Write a value into a parameter or buffer."""
    with torch.no_grad():
        target.copy_(value)


def _check(condition: bool, message: str) -> None:
    """Refuse inputs for which the source model would have taken another path."""
    if not condition:
        raise RuntimeError(message)


def _setitem(input: Tensor, index: Any, value: Any) -> Tensor:
    """``input[index] = value`` without changing ``input``."""
    out = input.clone()
    out[index] = value
    return out


def _einsum(equation: str, operands: tuple[Tensor, ...]) -> Tensor:
    return torch.einsum(equation, *operands)


def _meshgrid(tensors: tuple[Tensor, ...], indexing: str = "ij") -> tuple[Tensor, ...]:
    return tuple(torch.meshgrid(*tensors, indexing=indexing))


def _uniform(input: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.empty_like(input).uniform_(low, high)


def _normal(input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.empty_like(input).normal_(mean, std)


def _fill(input: Tensor, value: Any) -> Tensor:
    return torch.full_like(input, value)


def _copy(input: Tensor, src: Tensor) -> Tensor:
    return src.expand_as(input).to(dtype=input.dtype, device=input.device, copy=True)


def _keep(input: Tensor, dim: int, index: tuple[int, ...]) -> Tensor:
    """The positions ``index`` along a dimension."""
    return input.index_select(dim, torch.tensor(index, device=input.device))


def _spread(input: Tensor, dim: int, index: tuple[int, ...], length: int) -> Tensor:
    """Zeros of another length along a dimension, with ``input`` at the positions ``index``."""
    shape = list(input.shape)
    shape[dim] = length
    return input.new_zeros(shape).index_copy(dim, torch.tensor(index, device=input.device), input)


_OWN: dict[str, Callable[..., Any]] = {
    "assign": _assign,
    "check": _check,
    "setitem": _setitem,
    "einsum": _einsum,
    "meshgrid": _meshgrid,
    "uniform": _uniform,
    "normal": _normal,
    "fill": _fill,
    "copy": _copy,
    "keep": _keep,
    "spread": _spread,
    "im2col": F.unfold,
    "col2im": F.fold,
    "vector_norm": torch.linalg.vector_norm,
    **{name: getattr(torch.fft, name) for name in ("fft", "ifft", "rfft", "irfft")},
    **{name: getattr(torch.fft, name) for name in ("fft2", "ifft2", "rfft2", "irfft2")},
    **{name: getattr(torch.fft, name) for name in ("fftn", "ifftn", "rfftn", "irfftn", "fftshift", "ifftshift")},
}

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floor_divide": "//",
    "remainder": "%",
    "pow": "**",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "bitwise_and": "&",
    "bitwise_or": "|",
    "bitwise_xor": "^",
}

_METHODS = """
    expand(input, size: ints)
    expand_as(input, other)
    repeat(input, repeats: ints)
    reshape_as(input, other)
    contiguous(input, *, memory_format=None)
    to(input, *, dtype=None, device=None, memory_format=None)
    type_as(input, other)
    unfold(input, dimension, size, step)
    new_zeros(input, size: ints, *, dtype=None, device=None)
    new_ones(input, size: ints, *, dtype=None, device=None)
    new_empty(input, size: ints, *, dtype=None, device=None)
    new_full(input, size, fill_value, *, dtype=None, device=None)
"""

# Unary operators of torch without further arguments.
_UNARY = """
    abs acos acosh angle asin asinh atan atanh bitwise_not ceil conj cos cosh deg2rad detach digamma erf erfc erfinv
    exp exp2 expm1 floor frac imag isfinite isinf isnan lgamma log log10 log1p log2 logical_not neg rad2deg real
    reciprocal relu rsqrt sgn sigmoid sign sin sinc sinh sqrt square tan tanh trunc view_as_complex view_as_real
    hardsigmoid hardswish logsigmoid mish relu6 selu silu softsign tanhshrink
"""

_TABLE = """
    add(input, other, *, alpha=1)
    sub(input, other, *, alpha=1)
    mul(input, other)
    div(input, other, *, rounding_mode=None)
    floor_divide(input, other)
    remainder(input, other)
    fmod(input, other)
    pow(input, exponent)
    eq(input, other)
    ne(input, other)
    lt(input, other)
    le(input, other)
    gt(input, other)
    ge(input, other)
    bitwise_and(input, other)
    bitwise_or(input, other)
    bitwise_xor(input, other)
    logical_and(input, other)
    logical_or(input, other)
    logical_xor(input, other)
    maximum(input, other)
    minimum(input, other)
    atan2(input, other)
    hypot(input, other)
    logaddexp(input, other)
    lerp(input, end, weight)
    addcmul(input, tensor1, tensor2, *, value=1)
    addcdiv(input, tensor1, tensor2, *, value=1)
    where(condition, input, other)
    masked_fill(input, mask, value)
    clamp(input, min=None, max=None)
    nan_to_num(input, nan=None, posinf=None, neginf=None)
    round(input, *, decimals=0)
    clone(input, *, memory_format=None)
    complex(real, imag)
    polar(abs, angle)
    fill(input, value)
    copy(input, src)

    gelu(input, *, approximate='none')
    hardtanh(input, min_val=-1.0, max_val=1.0)
    elu(input, alpha=1.0)
    celu(input, alpha=1.0)
    leaky_relu(input, negative_slope=0.01)
    prelu(input, weight)
    rrelu(input, lower=0.125, upper=0.3333333333333333, training=False)
    softplus(input, beta=1.0, threshold=20.0)
    hardshrink(input, lambd=0.5)
    softshrink(input, lambd=0.5)
    threshold(input, threshold, value)
    glu(input, dim=-1)
    softmax(input, dim, dtype=None)
    log_softmax(input, dim, dtype=None)
    normalize(input, p=2.0, dim=1, eps=1e-12)
    dropout(input, p=0.5, training=True)
    dropout1d(input, p=0.5, training=True)
    dropout2d(input, p=0.5, training=True)
    dropout3d(input, p=0.5, training=True)
    alpha_dropout(input, p=0.5, training=False)
    feature_alpha_dropout(input, p=0.5, training=False)

    mean(input, dim=None, keepdim=False, *, dtype=None)
    sum(input, dim=None, keepdim=False, *, dtype=None)
    prod(input, dim=None, keepdim=False, *, dtype=None)
    amax(input, dim=(), keepdim=False)
    amin(input, dim=(), keepdim=False)
    aminmax(input, *, dim=None, keepdim=False)
    max(input, dim=None, keepdim=False)
    min(input, dim=None, keepdim=False)
    median(input, dim=None, keepdim=False)
    argmax(input, dim=None, keepdim=False)
    argmin(input, dim=None, keepdim=False)
    any(input, dim=None, keepdim=False)
    all(input, dim=None, keepdim=False)
    var(input, dim=None, *, correction=1, keepdim=False)
    std(input, dim=None, *, correction=1, keepdim=False)
    var_mean(input, dim=None, *, correction=1, keepdim=False)
    std_mean(input, dim=None, *, correction=1, keepdim=False)
    norm(input, p='fro', dim=None, keepdim=False, *, dtype=None)
    vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None)
    logsumexp(input, dim, keepdim=False)
    cumsum(input, dim, *, dtype=None)
    cumprod(input, dim, *, dtype=None)
    topk(input, k, dim=-1, largest=True, sorted=True)
    sort(input, *, dim=-1, descending=False, stable=False)
    argsort(input, *, dim=-1, descending=False, stable=False)

    reshape(input, shape: ints)
    flatten(input, start_dim=0, end_dim=-1)
    unflatten(input, dim, sizes)
    permute(input, dims: ints)
    transpose(input, dim0, dim1)
    movedim(input, source, destination)
    squeeze(input, dim=None)
    unsqueeze(input, dim)
    broadcast_to(input, size: ints)
    tile(input, dims: ints)
    repeat_interleave(input, repeats, dim=None, *, output_size=None)
    flip(input, dims: ints)
    roll(input, shifts, dims=None)
    rot90(input, k=1, dims=(0, 1))
    narrow(input, dim, start, length)
    select(input, dim, index)
    index_select(input, dim, index)
    gather(input, dim, index)
    take_along_dim(input, indices, dim=None)
    scatter(input, dim, index, src)
    scatter_add(input, dim, index, src)
    index_add(input, dim, index, source, *, alpha=1)
    setitem(input, index, value)
    chunk(input, chunks, dim=0)
    split(input, split_size_or_sections, dim=0)
    tensor_split(input, indices_or_sections, dim=0)
    unbind(input, dim=0)
    stack(tensors, dim=0)
    cat(tensors, dim=0)
    hstack(tensors)
    vstack(tensors)
    pixel_shuffle(input, upscale_factor)
    pixel_unshuffle(input, downscale_factor)
    channel_shuffle(input, groups)
    diagonal(input, offset=0, dim1=0, dim2=1)
    diag_embed(input, offset=0, dim1=-2, dim2=-1)
    tril(input, diagonal=0)
    triu(input, diagonal=0)
    meshgrid(tensors, indexing='ij')
    one_hot(tensor, num_classes=-1)
    bucketize(input, boundaries, *, out_int32=False, right=False)

    matmul(input, other)
    bmm(input, mat2)
    mm(input, mat2)
    mv(input, vec)
    dot(input, tensor)
    outer(input, vec2)
    addmm(input, mat1, mat2, *, beta=1, alpha=1)
    baddbmm(input, batch1, batch2, *, beta=1, alpha=1)
    tensordot(a, b, dims=2)
    cdist(x1, x2, p=2.0, compute_mode='use_mm_for_euclid_dist_if_necessary')
    einsum(equation, operands)
    linear(input, weight, bias=None)
    bilinear(input1, input2, weight, bias=None)
    embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False)
    scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,\
 enable_gqa=False)
    conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)
    conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)
    conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)
    conv_transpose1d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    conv_transpose3d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    im2col(input, kernel_size, dilation=1, padding=0, stride=1)
    col2im(input, output_size, kernel_size, dilation=1, padding=0, stride=1)

    batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-05)
    instance_norm(input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,\
 momentum=0.1, eps=1e-05)
    layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-05)
    group_norm(input, num_groups, weight=None, bias=None, eps=1e-05)
    rms_norm(input, normalized_shape, weight=None, eps=None)
    local_response_norm(input, size, alpha=0.0001, beta=0.75, k=1.0)

    max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False, return_indices=False)
    max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False, return_indices=False)
    max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False, return_indices=False)
    avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)
    avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,\
 divisor_override=None)
    avg_pool3d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,\
 divisor_override=None)
    lp_pool2d(input, norm_type, kernel_size, stride=None, ceil_mode=False)
    adaptive_avg_pool1d(input, output_size)
    adaptive_avg_pool2d(input, output_size)
    adaptive_avg_pool3d(input, output_size)
    adaptive_max_pool1d(input, output_size, return_indices=False)
    adaptive_max_pool2d(input, output_size, return_indices=False)
    adaptive_max_pool3d(input, output_size, return_indices=False)
    interpolate(input, size=None, scale_factor=None, mode='nearest', align_corners=None,\
 recompute_scale_factor=None, antialias=False)
    grid_sample(input, grid, mode='bilinear', padding_mode='zeros', align_corners=None)
    affine_grid(theta, size, align_corners=None)
    pad(input, pad, mode='constant', value=None)

    arange(start, end, step=1, *, dtype=None, device=None)
    linspace(start, end, steps, *, dtype=None, device=None)
    eye(n, m=None, *, dtype=None, device=None)
    zeros(size: ints, *, dtype=None, device=None)
    ones(size: ints, *, dtype=None, device=None)
    empty(size: ints, *, dtype=None, device=None, memory_format=None)
    full(size, fill_value, *, dtype=None, device=None)
    rand(size: ints, *, dtype=None, device=None)
    randn(size: ints, *, dtype=None, device=None)
    randperm(n, *, dtype=None, device=None)
    zeros_like(input, *, dtype=None, device=None, memory_format=None)
    ones_like(input, *, dtype=None, device=None, memory_format=None)
    empty_like(input, *, dtype=None, device=None, memory_format=None)
    full_like(input, fill_value, *, dtype=None, device=None, memory_format=None)
    rand_like(input, *, dtype=None, device=None, memory_format=None)
    randn_like(input, *, dtype=None, device=None, memory_format=None)
    bernoulli(input, p=None)
    uniform(input, low=0.0, high=1.0)
    normal(input, mean=0.0, std=1.0)

    fft(input, n=None, dim=-1, norm=None)
    ifft(input, n=None, dim=-1, norm=None)
    rfft(input, n=None, dim=-1, norm=None)
    irfft(input, n=None, dim=-1, norm=None)
    fft2(input, s=None, dim=(-2, -1), norm=None)
    ifft2(input, s=None, dim=(-2, -1), norm=None)
    rfft2(input, s=None, dim=(-2, -1), norm=None)
    irfft2(input, s=None, dim=(-2, -1), norm=None)
    fftn(input, s=None, dim=None, norm=None)
    ifftn(input, s=None, dim=None, norm=None)
    rfftn(input, s=None, dim=None, norm=None)
    irfftn(input, s=None, dim=None, norm=None)
    fftshift(input, dim=None)
    ifftshift(input, dim=None)

    keep(input, dim, index)
    spread(input, dim, index, length)

    assign(target, value)
    check(condition, message)
"""

# In both torch and torch.nn.functional, with different signatures: the functional one is meant.
_FUNCTIONAL_FIRST = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
    "instance_norm", "layer_norm", "group_norm", "rms_norm", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "embedding", "affine_grid", "grid_sample",
    "celu", "selu", "prelu", "rrelu", "hardshrink", "relu", "threshold", "bilinear",
}  # fmt: skip


def _row(line: str, style: str) -> Operator:
    definition = ast.parse(f"def {line}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    name, arguments = definition.name, definition.args
    required = [REQUIRED] * (len(arguments.args) - len(arguments.defaults))
    defaults = [*required, *map(ast.literal_eval, arguments.defaults)]
    defaults += [REQUIRED if node is None else ast.literal_eval(node) for node in arguments.kw_defaults]
    every = [*arguments.args, *arguments.kwonlyargs]
    parameters = {arg.arg: default for arg, default in zip(every, defaults, strict=True)}
    keyword_only = frozenset(arg.arg for arg in arguments.kwonlyargs)
    ints = frozenset(arg.arg for arg in every if arg.annotation is not None)
    if style == "method":
        return Operator(name, style, getattr(Tensor, name), parameters, keyword_only, ints)
    if name in _INFIX:
        return Operator(name, "infix", getattr(torch, name), parameters, keyword_only, ints, _INFIX[name])
    if name in _OWN:
        function = _OWN[name]
    elif name in _FUNCTIONAL_FIRST or not hasattr(torch, name):
        function = getattr(F, name)
    else:
        function = getattr(torch, name)
    return Operator(name, "function", function, parameters, keyword_only, ints)


def _table() -> dict[str, Operator]:
    rows = [_row(line.strip(), "function") for line in _TABLE.splitlines() if line.strip()]
    rows += [_row(line.strip(), "method") for line in _METHODS.splitlines() if line.strip()]
    rows += [_row(f"{name}(input)", "function") for name in _UNARY.split()]
    getitem = Operator("getitem", "index", operator.getitem, {"input": REQUIRED, "index": REQUIRED})
    return {row.name: row for row in (*rows, getitem)}


#: Operator name -> its row.
OPERATORS: dict[str, Operator] = _table()
