"""Copies of a tensor: as it is, of another dtype or on another device, with other values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import SameDevice, SameDtype
from torchorbit.operators.declaring import Arguments, Leaf, operator
from torchorbit.operators.labelling import elementwise, like_the_first
from torchorbit.operators.shapes import Shape, same_shape
from torchorbit.operators.spelling import DROPPED, Binder, Bound, renamed, unary

NEEDLESS = {
    "cost": "it computes nothing",
    "resize": "no argument holds a length",
    "contraction": "it sums over nothing",
    "oracle": "what is left does not depend on the zeros beside it",
}

_CASTS = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip


def _filled(input: Tensor, value: Any) -> Tensor:
    return torch.full_like(input, value)


def _copied(input: Tensor, src: Tensor) -> Tensor:
    return src.expand_as(input).to(dtype=input.dtype, device=input.device, copy=True)


# -- other ways of calling them


def _to_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments: dict[str, Any] = {"input": args[0]}
    given = {key: value for key, value in kwargs.items() if key not in DROPPED}
    other = given.pop("other", None)
    for value in args[1:]:
        if isinstance(value, torch.dtype):
            given["dtype"] = value
        elif isinstance(value, (torch.device, str)):
            given["device"] = torch.device(value)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, torch.memory_format):
            given["memory_format"] = value
        elif isinstance(value, SameDtype):
            given["dtype"] = value
        elif isinstance(value, SameDevice):
            given["device"] = value
        else:
            other = value
    if other is not None:
        return "type_as", {"input": args[0], "other": other}
    arguments.update(given)
    return "to", arguments


def _as_tensor_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``torch.as_tensor`` of what is a tensor already."""
    arguments = {**dict(zip(("input", "dtype", "device"), args, strict=False)), **kwargs}
    arguments["input"] = next(arguments.pop(name) for name in ("input", "data", "obj") if name in arguments)
    return "to", {name: value for name, value in arguments.items() if name not in DROPPED}


def _moved_call(device: str) -> Binder:
    return lambda args, kwargs, rank: ("to", {"input": args[0], "device": torch.device(device)})


def _cast_call(dtype: torch.dtype) -> Binder:
    """``x.float()``, ``x.long()``."""
    return lambda args, kwargs, rank: ("to", {"input": args[0], "dtype": dtype})


def _plain_shape(args: Arguments) -> Shape | None:
    return same_shape(args) if len(args) == 1 else None  # a memory format may not fit


OPERATORS = [
    operator(
        "clone(input, *, memory_format=None)",
        modules=[Leaf(nn.Identity, layout="alias", constructor=())],
        rule=like_the_first,
        shape=_plain_shape,
        constant="same",
    ),
    operator(
        "contiguous(input, *, memory_format=None)",
        style="method",
        rule=like_the_first,
        shape=_plain_shape,
        constant="same",
    ),
    operator(
        "detach(input)",
        names="detach_copy",
        calls={Tensor.data.__get__: unary("detach")},  # type: ignore[attr-defined]
        rule=elementwise,
        shape=_plain_shape,
    ),
    operator(
        "to(input, *, dtype=None, device=None, memory_format=None)",
        style="method",
        calls={
            Tensor.to: _to_call,
            Tensor.type: _to_call,
            torch.as_tensor: _as_tensor_call,
            torch.asarray: _as_tensor_call,
            Tensor.cpu: _moved_call("cpu"),
            Tensor.cuda: _moved_call("cuda"),
            **{getattr(Tensor, name): _cast_call(dtype) for name, dtype in _CASTS.items()},
        },
        rule=like_the_first,
    ),
    operator("type_as(input, other)", style="method", kinds={"other": "tensor"}, rule=like_the_first),
    operator(
        "fill(input, value)",
        function=_filled,
        calls={Tensor.zero_: unary("fill", value=0), torch.zero_: unary("fill", value=0)},
        rule=like_the_first,
    ),
    operator(
        "copy(input, src)",
        function=_copied,
        kinds={"src": "tensor"},
        calls={Tensor.copy_: renamed("copy", "input", "src", "non_blocking")},
        rule=elementwise,
    ),
]
