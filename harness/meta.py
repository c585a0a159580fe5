"""Running graphs on the `meta` device at less cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class QuickNormalizations(TorchFunctionMode):
    """While active, normalizations of tensors on `meta` check their operands' shapes and compute nothing else.

    On `meta` torch takes them apart into ten operators of Python each, which for many networks is half of a forward.
    Their result has the shape of their input; what can be wrong is the length of a weight or a statistic.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMALIZATIONS and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return _NORMALIZATIONS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and tuple(tensor.shape) != (input.shape[1],):
            raise RuntimeError(f"batch_norm of {input.shape[1]} channels is given {tuple(tensor.shape)}")
    return torch.empty_like(input)


def _layer_norm(
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    shape = tuple(normalized_shape)
    for found in (tuple(input.shape[-len(shape) :]), *[tuple(t.shape) for t in (weight, bias) if t is not None]):
        if found != shape:
            raise RuntimeError(f"layer_norm over {shape} is given {found}")
    return torch.empty_like(input)


_NORMALIZATIONS: dict[Any, Callable[..., Tensor]] = {F.batch_norm: _batch_norm, F.layer_norm: _layer_norm}
