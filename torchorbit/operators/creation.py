"""Tensors made in forward, random ones among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import operator, operators
from torchorbit.operators.labelling import Labelled, Operands, like_the_first
from torchorbit.operators.resizing import sizes
from torchorbit.operators.spelling import DROPPED, Bound, UnknownOperatorError, refused, renamed

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "no argument holds a number of channels",
    "contraction": "it sums over nothing",
    "oracle": "it computes with no channels",
}


def _mesh_grid(tensors: tuple[Tensor, ...], indexing: str = "ij") -> tuple[Tensor, ...]:
    return tuple(torch.meshgrid(*tensors, indexing=indexing))


def _uniform(input: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.empty_like(input).uniform_(low, high)


def _normal(input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.empty_like(input).normal_(mean, std)


_NUMBERS = {"window_length": "int", "periodic": "bool", "beta": "number", "base": "number"}
_DRAWN = ("low", "high", "size")


# -- other ways of calling them


def _arange_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = dict(kwargs)
    if len(args) == 1 and "end" not in kwargs:
        arguments.update(start=0, end=args[0])
    else:
        arguments.update(zip(("start", "end", "step"), args, strict=False))
        arguments.setdefault("start", 0)
    return "arange", {key: value for key, value in arguments.items() if key not in DROPPED}


def _randint_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``randint(high, size)`` and ``randint(low, high, size)``."""
    names = ("low", "high", "size") if len(args) + sum(name in kwargs for name in _DRAWN) > 2 else ("high", "size")
    arguments = {"low": 0, **dict(zip(names, args, strict=False)), **kwargs}
    return "randint", {key: value for key, value in arguments.items() if key not in DROPPED}


def _randint_like_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``randint_like(x, high)`` and ``randint_like(x, low, high)``."""
    names = ("input", "low", "high") if len(args) > 2 else ("input", "low" if "high" in kwargs else "high")
    arguments = {"low": 0, **dict(zip(names, args, strict=False)), **kwargs}
    return "randint_like", {key: value for key, value in arguments.items() if key not in DROPPED}


def _meshgrid_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    return "meshgrid", {"tensors": tuple(tensors), "indexing": kwargs.get("indexing") or "ij"}


def _bernoulli_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``x.bernoulli_(p)``, whose default is a half; ``torch.bernoulli(x)`` takes its input for probabilities."""
    arguments = {"p": 0.5, **dict(zip(("input", "p"), args, strict=False)), **kwargs}
    if not isinstance(arguments["p"], (int, float)):
        raise UnknownOperatorError("bernoulli_ with a tensor of probabilities")
    return "bernoulli", {key: value for key, value in arguments.items() if key not in DROPPED}


# -- labels


def _alike_rule(operands: Operands) -> list[Dim]:
    # A length that is a number of the model's may be a number of channels, and any number of them can be made.
    sizes = operands.args["size"]
    sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
    return [
        operands.labels.fresh(length) if length > 1 and isinstance(size, int) else None
        for size, length in zip(sizes, operands.shape, strict=True)
    ]


def _each_different_rule(operands: Operands) -> list[Dim]:
    return [None] * len(operands.shape)


def _meshgrid_rule(operands: Operands) -> tuple[Labelled, ...]:
    for tensor in operands.tensors():
        operands.freeze(tensor)
    return tuple([Labelled(tuple(shape), [None] * len(shape)) for shape in operands.shape])


OPERATORS = [
    operator(
        "arange(start, end, step=1, *, dtype=None, device=None)",
        calls={torch.arange: _arange_call},
        rule=_each_different_rule,
        creates=True,
    ),
    operator("linspace(start, end, steps, *, dtype=None, device=None)", rule=_each_different_rule, creates=True),
    operator("eye(n, m=None, *, dtype=None, device=None)", kinds={"n": "int"}, rule=_each_different_rule, creates=True),
    operator("randperm(n, *, dtype=None, device=None)", kinds={"n": "int"}, rule=_each_different_rule),
    operator(
        "randint(low, high, size: ints, *, dtype=None, device=None)",
        kinds={"low": "int", "high": "int"},
        calls={torch.randint: _randint_call},
        rule=_alike_rule,
        resize=sizes("size"),
    ),
    operator(
        "randint_like(input, low, high, *, dtype=None, device=None, memory_format=None)",
        kinds={"low": "int", "high": "int"},
        calls={torch.randint_like: _randint_like_call},
        rule=like_the_first,
    ),
    operator(
        "logspace(start, end, steps, base=10.0, *, dtype=None, device=None)", kinds=_NUMBERS, rule=_each_different_rule
    ),
    operator("scalar_tensor(s, *, dtype=None, device=None)", kinds={"s": "number"}, rule=_each_different_rule),
    aten_operator("tril_indices", rule=_each_different_rule),
    aten_operator("triu_indices", rule=_each_different_rule),
    *operators(
        """
        hann_window(window_length, periodic=True, *, dtype=None, device=None)
        hamming_window(window_length, periodic=True, *, dtype=None, device=None)
        blackman_window(window_length, periodic=True, *, dtype=None, device=None)
        bartlett_window(window_length, periodic=True, *, dtype=None, device=None)
        kaiser_window(window_length, periodic=True, beta=12.0, *, dtype=None, device=None)
        """,
        kinds=_NUMBERS,
        rule=_each_different_rule,
    ),
    *operators(
        """
        zeros(size: ints, *, dtype=None, device=None)
        ones(size: ints, *, dtype=None, device=None)
        empty(size: ints, *, dtype=None, device=None, memory_format=None)
        full(size, fill_value, *, dtype=None, device=None)
        rand(size: ints, *, dtype=None, device=None)
        randn(size: ints, *, dtype=None, device=None)
        """,
        rule=_alike_rule,
        resize=sizes("size"),
    ),
    *operators(
        """
        new_zeros(input, size: ints, *, dtype=None, device=None)
        new_ones(input, size: ints, *, dtype=None, device=None)
        new_empty(input, size: ints, *, dtype=None, device=None)
        new_full(input, size, fill_value, *, dtype=None, device=None)
        """,
        style="method",
        rule=_alike_rule,
        resize=sizes("size"),
    ),
    *operators(
        """
        zeros_like(input, *, dtype=None, device=None, memory_format=None)
        ones_like(input, *, dtype=None, device=None, memory_format=None)
        empty_like(input, *, dtype=None, device=None, memory_format=None)
        full_like(input, fill_value, *, dtype=None, device=None, memory_format=None)
        rand_like(input, *, dtype=None, device=None, memory_format=None)
        randn_like(input, *, dtype=None, device=None, memory_format=None)
        """,
        rule=like_the_first,
    ),
    operator(
        "bernoulli(input, p=None)",
        kinds={"p": "tensor|number|none"},
        calls={Tensor.bernoulli_: _bernoulli_call},
        rule=like_the_first,
    ),
    aten_operator("exponential", rule=like_the_first),
    operator(
        "uniform(input, low=0.0, high=1.0)",
        function=_uniform,
        calls={Tensor.uniform_: renamed("uniform", "input", "low", "high")},
        rule=like_the_first,
    ),
    operator(
        "normal(input, mean=0.0, std=1.0)",
        function=_normal,
        calls={
            Tensor.normal_: renamed("normal", "input", "mean", "std"),
            torch.normal: refused("normal as a function; torch.randn and Tensor.normal_ are known"),
        },
        rule=like_the_first,
    ),
    operator(
        "meshgrid(tensors, indexing='ij')",
        function=_mesh_grid,
        calls=dict.fromkeys((torch.meshgrid, torch.functional.meshgrid), _meshgrid_call),
        rule=_meshgrid_rule,
    ),
]
