"""Functions of torch that are recorded as others which do the same, and those that no graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Functions of memory, and what to write instead.
OF_MEMORY = {
    "resize_": "it changes how long a tensor is in memory; use reshape, or copy into a new tensor of that shape",
    "resize_as_": "it changes how long a tensor is in memory; use reshape, or copy into a new tensor of that shape",
    "as_strided": "it looks at how a tensor lies in memory; use reshape, unfold or an index",
    "as_strided_": "it looks at how a tensor lies in memory; use reshape, unfold or an index",
}


def _split(dim: Callable[[Tensor], int]) -> Callable[..., Any]:
    def split(input: Tensor, indices_or_sections: Any = None, *, sections: Any = None, indices: Any = None) -> Any:
        parts = next(given for given in (indices_or_sections, sections, indices) if given is not None)
        return torch.tensor_split(input, parts, dim=dim(input))

    return split


def _fill_diagonal(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    if wrap:
        input.view(-1)[:: input.shape[1] + 1].fill_(fill_value)
    elif input.dim() == 2:
        input.diagonal().fill_(fill_value)
    else:
        positions = torch.arange(input.shape[0], device=input.device)
        input[(positions,) * input.dim()] = fill_value
    return input


def _diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:  # noqa: N803
    return torch.diagonal(A, offset, dim1, dim2)


def _same(input: Tensor) -> Tensor:
    return input.view_as(input)


# Functions by their names -> what they do, in functions that are known.
_AS_OTHERS: dict[str, Callable[..., Any]] = {
    "hsplit": _split(lambda tensor: 0 if tensor.dim() == 1 else 1),
    "vsplit": _split(lambda tensor: 0),
    "dsplit": _split(lambda tensor: 2),
    "fill_diagonal_": _fill_diagonal,
    "linalg_diagonal": _diagonal,
    "positive": _same,
    "__pos__": _same,
}
_OF_LISTS = "_foreach_"
_FUNCTIONS: dict[str, Callable[..., Any]] = {"norm": torch.linalg.vector_norm}
# What they are called with a number instead of a tensor.
_WITH_A_NUMBER = {"maximum": "clamp_min", "minimum": "clamp_max"}
# These take what comes last by name alone.
_WITH_VALUE = {"addcmul", "addcdiv"}


def parts_of(name: str) -> Callable[..., Any] | None:
    """What does the same as a function of torch, with functions that can be recorded; None where it needs none."""
    if not name.startswith(_OF_LISTS):
        return _AS_OTHERS.get(name)
    name = name.removeprefix(_OF_LISTS)
    known = name in _FUNCTIONS or hasattr(Tensor, name) or hasattr(Tensor, name.removesuffix("_"))
    return (lambda *args, **kwargs: _one_by_one(name, args, kwargs)) if known else None


def _one_by_one(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call a function for the first item of all lists, then for the second, and so on."""
    base, in_place = name.removesuffix("_"), name.endswith("_")
    lists = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, tuple))]
    made: list[Any] = []
    for position in range(len(lists[0])):
        given = [_item(arg, position) for arg in args]
        named = {"value" if key == "scalars" else key: _item(arg, position) for key, arg in kwargs.items()}
        if base in _WITH_VALUE and len(given) > 3:
            named["value"] = given.pop()
        if len(given) > 1 and not isinstance(given[1], Tensor):
            base = _WITH_A_NUMBER.get(base, base)
        if in_place and hasattr(Tensor, f"{base}_"):
            getattr(Tensor, f"{base}_")(*given, **named)
            continue
        # A number may be given to the power of tensors.
        function = _FUNCTIONS.get(base) or getattr(Tensor if isinstance(given[0], Tensor) else torch, base)
        result = function(*given, **named)
        made.append(given[0].copy_(result) if in_place else result)
    return args[0] if in_place else tuple(made)


def _item(arg: Any, position: int) -> Any:
    return arg[position] if isinstance(arg, (list, tuple)) else arg
