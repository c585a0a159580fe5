"""The shapes of results that need no kernel to be known.

torch's meta kernels for normalizations, attention, linear layers and arithmetic run in Python and take between
0.1 and 1.3 ms each; an empty tensor of the right shape takes 2 us. Recording a model only needs the shapes, so
the common cases are answered here. A rule returns None where it is not sure, and the real kernel runs: rules never
accept what the kernel would refuse. The graph that comes out is run through the real kernels by whoever verifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.operators.modules import LEAF_MODULES

_META = torch.device("meta")
_empty = torch.empty_strided


def _contiguous(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_META)


def _dense(x: Tensor) -> bool:
    """No gaps and no overlaps in memory: the layout that elementwise kernels keep."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, length in sorted(
        (stride, length) for stride, length in zip(x.stride(), x.shape, strict=True) if length != 1
    ):
        if stride != expected:
            return False
        expected *= length
    return True


def _like(x: Tensor) -> Tensor | None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or not _dense(x):
        return None
    return _empty(x.shape, x.stride(), dtype=x.dtype, device=_META)


def _unary(x: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return _like(x)


def _activation(module: nn.Module, x: Tensor) -> Tensor | None:
    # In place, the result is the argument itself: later uses of the argument must see it.
    return x if getattr(module, "inplace", False) else _like(x)


def _identity(module: nn.Module, x: Tensor) -> Tensor | None:
    # In memory it is the argument itself: a write into one is a write into the other.
    return None if getattr(module, "inplace", False) else x.detach()


def _batch_norm_module(module: Any, x: Tensor) -> Tensor | None:
    if x.dim() < 2 or x.shape[1] != module.num_features or not x.is_contiguous() or not x.is_floating_point():
        return None
    dims = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}.get(type(module))
    return _contiguous(x.shape, x.dtype) if dims and x.dim() in dims else None


def _batch_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, *_: Any, **__: Any) -> Tensor | None:
    if mean is None or var is None or x.dim() < 2 or not x.shape[1] == mean.shape[0] == var.shape[0]:
        return None
    if not x.is_contiguous() or not x.is_floating_point():
        return None
    return _contiguous(x.shape, x.dtype)


def _layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, *_: Any, **__: Any
) -> Tensor | None:
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape or not x.is_floating_point():
        return None
    if weight is not None and (weight.dtype != x.dtype or weight.shape != shape):
        return None
    return _contiguous(x.shape, x.dtype)


def _layer_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return _layer_norm(x, module.normalized_shape, module.weight)


def _group_norm(x: Tensor, groups: int, weight: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    if x.dim() < 2 or x.shape[1] % groups or not x.is_contiguous() or not x.is_floating_point():
        return None
    if weight is not None and weight.shape[0] != x.shape[1]:
        return None
    return _contiguous(x.shape, x.dtype)


def _group_norm_module(module: Any, x: Tensor) -> Tensor | None:
    return _group_norm(x, module.num_groups, module.weight)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        return None
    if bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1]):
        return None
    return _contiguous((*x.shape[:-1], weight.shape[0]), x.dtype)


def _linear_module(module: Any, x: Tensor) -> Tensor | None:
    return _linear(x, module.weight)


def _binary(x: Any, y: Any, **options: Any) -> Tensor | None:
    if options:
        return None
    if isinstance(x, Tensor):
        if isinstance(y, Tensor):
            if x.dtype != y.dtype or not x.is_floating_point():
                return None
            if x.shape == y.shape:
                return _like(x) if x.stride() == y.stride() or (x.is_contiguous() and y.is_contiguous()) else None
            if not (x.is_contiguous() and y.is_contiguous()):
                return None
            shape = _broadcast(x.shape, y.shape)
            return None if shape is None else _contiguous(shape, x.dtype)
        return _like(x) if type(y) in (int, float) else None
    return _like(y) if type(x) in (int, float) else None


def _broadcast(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...] | None:
    if len(first) < len(second):
        first, second = second, first
    shape = list(first)
    for position in range(1, len(second) + 1):
        a, b = shape[-position], second[-position]
        if a == 1:
            shape[-position] = b
        elif b not in (1, a):
            return None
    return tuple(shape)


def _matmul(x: Any, y: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dim() != y.dim() or x.dim() < 3:
        return None
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2] or x.dtype != y.dtype:
        return None
    return _contiguous((*x.shape[:-1], y.shape[-1]), x.dtype)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
) -> Tensor | None:
    if attn_mask is not None or options.get("enable_gqa") or not query.dim() == key.dim() == value.dim() >= 3:
        return None
    if query.shape[:-2] != key.shape[:-2] or key.shape[:-1] != value.shape[:-1] or query.shape[-1] != key.shape[-1]:
        return None
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        return None
    return _contiguous((*query.shape[:-1], value.shape[-1]), query.dtype)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor | None:
    if dtype is not None or not x.is_floating_point():
        return None
    rank = x.dim()
    dims = range(rank) if dim is None else (dim,) if type(dim) is int else dim
    if not rank or any(not -rank <= d < rank for d in dims) or not dims:
        return None
    reduced = {d % rank for d in dims}
    if len(reduced) != len(dims):
        return None
    if keepdim:
        shape = tuple(1 if d in reduced else n for d, n in enumerate(x.shape))
    else:
        shape = tuple(n for d, n in enumerate(x.shape) if d not in reduced)
    return _contiguous(shape, x.dtype) if x.is_contiguous() else None


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    rank = first.dim()
    if not rank or not -rank <= dim < rank:
        return None
    dim %= rank
    total = 0
    for x in tensors:
        if x.dim() != rank or x.dtype != first.dtype or not x.is_contiguous():
            return None
        if any(a != b for d, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if d != dim):
            return None
        total += x.shape[dim]
    return _contiguous((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype)


def _softmax(x: Tensor, dim: Any = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if dtype is not None else _norm_like(x)


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, *_: Any, **__: Any) -> Tensor | None:
    return _norm_like(x) if -x.dim() <= dim < x.dim() else None


def _norm_like(x: Tensor) -> Tensor | None:
    return _contiguous(x.shape, x.dtype) if x.is_contiguous() and x.is_floating_point() else None


def _recurrent(module: Any, x: Tensor) -> Any:
    """Recurrent layers, whose meta kernel walks through every step of the sequence."""
    if x.dim() != 3 or x.shape[-1] != module.input_size or not x.numel() or x.dtype != module.weight_ih_l0.dtype:
        return None
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size
    batch = x.shape[0 if module.batch_first else 1]
    out = _contiguous((x.numel() // module.input_size // batch, batch, directions * width), x.dtype)
    if module.batch_first:
        out = out.transpose(0, 1)
    hidden = _contiguous((directions * module.num_layers, batch, width), x.dtype)
    if module.mode != "LSTM":
        return out, hidden
    return out, (hidden, _contiguous((directions * module.num_layers, batch, module.hidden_size), x.dtype))


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor | None:
    if mode != "constant" or len(pad) % 2 or len(pad) > 2 * x.dim() or not x.is_contiguous():
        return None
    shape: list[int] = list(x.shape)
    for position in range(len(pad) // 2):
        shape[-1 - position] += pad[2 * position] + pad[2 * position + 1]
    return _contiguous(shape, x.dtype) if min(shape) > 0 else None


_ACTIVATIONS = (
    "ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh", "Hardswish", "Hardsigmoid", "Hardtanh", "ELU", "CELU",
    "SELU", "LeakyReLU", "Softplus",
)  # fmt: skip

_MODULE_RULES: dict[type, Callable[[Any, Tensor], Any]] = {
    **{LEAF_MODULES[name]: _activation for name in _ACTIVATIONS},
    nn.Identity: _identity,
    nn.Dropout: _identity,
    nn.Dropout2d: _identity,
    LEAF_MODULES["StochasticDepth"]: _identity,
    nn.BatchNorm1d: _batch_norm_module,
    nn.BatchNorm2d: _batch_norm_module,
    nn.BatchNorm3d: _batch_norm_module,
    nn.LayerNorm: _layer_norm_module,
    nn.GroupNorm: _group_norm_module,
    nn.Linear: _linear_module,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
}

_FUNCTION_RULES: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    F.normalize: _normalize,
    F.softmax: _softmax,
    F.pad: _pad,
    torch.cat: _cat,
    torch.mean: _mean,
    Tensor.mean: _mean,
    torch.sum: _mean,
    Tensor.sum: _mean,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    **{getattr(Tensor, name): _binary for name in ("add", "sub", "mul", "div", "__add__", "__sub__", "__mul__")},
    **{getattr(Tensor, name): _binary for name in ("__truediv__", "__radd__", "__rmul__")},
    **{getattr(torch, name): _binary for name in ("add", "sub", "mul", "div")},
    **{getattr(torch, name): _unary for name in ("sigmoid", "tanh", "relu", "exp", "neg", "rsqrt", "sqrt", "square")},
    **{getattr(Tensor, name): _unary for name in ("sigmoid", "tanh", "relu", "exp", "neg", "rsqrt", "sqrt", "square")},
    F.gelu: _unary,
}


def module_result(module: nn.Module, stand_in: type[nn.Module], args: tuple[Any, ...]) -> Any:
    """What a leaf module returns on meta tensors, if that is known without running it.

    Args:
        module: the module.
        stand_in: the class of the table of leaf modules that it computes the same as.
        args: its positional arguments.
    """
    rule = _MODULE_RULES.get(stand_in)
    if rule is None or len(args) != 1:
        return None
    try:
        return rule(module, args[0])
    except Exception:  # not called as the rule expects; the module itself says what comes of it
        return None


def function_result(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a torch function returns on meta tensors, if that is known without running it."""
    rule = _FUNCTION_RULES.get(function)
    if rule is None:
        return None
    try:
        return rule(*args, **kwargs)
    except Exception:  # not called as the rule expects; the function itself says what comes of it
        return None
