"""Pooling: space changes, channels pass."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import nn

from torchorbit.labels import Dim
from torchorbit.operators.aten import aten_operator
from torchorbit.operators.declaring import Leaf, Operator, Shapes, operator
from torchorbit.operators.labelling import Operands, Rule
from torchorbit.operators.resampling import over_space
from torchorbit.operators.shapes import Shape

NEEDLESS = {
    "cost": "fvcore does not count it",
    "resize": "no argument holds a number of channels",
    "contraction": "it goes over space only",
    "oracle": "it goes over space only",
}


def _rule(count: int) -> Rule:
    """Pooling of the last dimensions."""
    return lambda operands: over_space(operands, count)


def _unpool_rule(count: int) -> Rule:
    """Every element goes to the place in its own channel that its position says."""

    def rule(operands: Operands) -> list[Dim]:
        positions, x = operands.tensor("indices"), operands.tensor()
        operands.broadcast([x, positions], x.shape)
        dims = over_space(operands, count)
        assert isinstance(dims, list)
        return dims

    return rule


def _adaptive_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(shapes("input")))


_WINDOW = ("kernel_size", "stride", "padding")
_AVERAGE = "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True"
_LARGEST = "input, kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False, return_indices=False"


def _pools(n: int) -> list[Operator]:
    """The poolings of one, two or three dimensions of space."""
    rule = _rule(n)
    return [
        operator(
            f"max_pool{n}d({_LARGEST})",
            function=getattr(F, f"max_pool{n}d"),
            names=f"max_pool{n}d_with_indices",
            modules=[Leaf(getattr(nn, f"MaxPool{n}d"), attributes=(*_WINDOW, "return_indices"))],
            rule=rule,
            constant="same",
        ),
        operator(
            f"avg_pool{n}d({_AVERAGE if n == 1 else f'{_AVERAGE}, divisor_override=None'})",
            modules=[Leaf(getattr(nn, f"AvgPool{n}d"), attributes=_WINDOW)],
            rule=rule,
        ),
        operator(
            f"adaptive_avg_pool{n}d(input, output_size)",
            modules=[Leaf(getattr(nn, f"AdaptiveAvgPool{n}d"), attributes=("output_size",))],
            rule=rule,
            cost=_adaptive_cost,
            constant="same",
        ),
        operator(
            f"adaptive_max_pool{n}d(input, output_size, return_indices=False)",
            function=getattr(F, f"adaptive_max_pool{n}d"),
            names=f"adaptive_max_pool{n}d_with_indices",
            modules=[Leaf(getattr(nn, f"AdaptiveMaxPool{n}d"), attributes=("output_size", "return_indices"))],
            rule=rule,
            constant="same",
        ),
    ]


OPERATORS = [
    *[pool for n in (1, 2, 3) for pool in _pools(n)],
    *[
        operator(
            f"lp_pool{n}d(input, norm_type, kernel_size, stride=None, ceil_mode=False)",
            modules=[Leaf(getattr(nn, f"LPPool{n}d"), attributes=("norm_type", "kernel_size", "stride", "ceil_mode"))],
            rule=_rule(n),
        )
        for n in (1, 2)
    ],
    *[aten_operator(f"max_unpool{n}d", rule=_unpool_rule(n)) for n in (2, 3)],
]
