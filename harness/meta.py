"""Running graphs on the `meta` device at less cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchorbit.errors import ArgumentError
from torchorbit.operators import OPERATORS
from torchorbit.operators.binding import bind

# Function of torch.nn.functional -> the formula for the shape of its result.
_FORMULAS = {
    row.function: row.shape
    for row in OPERATORS.values()
    if row.family == "normalizations" and row.normalizes and row.shape is not None
}


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
        formula = _FORMULAS.get(func)
        if formula is not None and args and isinstance(args[0], Tensor) and args[0].is_meta:
            try:
                shape = formula(bind(func, args, kwargs, None)[1])
            except ArgumentError as error:
                raise RuntimeError(str(error)) from error
            if shape is not None:
                return torch.empty_like(args[0])
        return func(*args, **kwargs)
