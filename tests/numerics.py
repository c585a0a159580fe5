"""Comparisons in which the kernels of the processor are not seen.

What follows from a formula (removals, scores, gradients, statistics, prices) is compared in float64, where rounding is
far below the effect of any mistake: within 1e-12 in models of a few layers, within 1e-9 in deep ones. What has to be
compared in float32 may differ by a small multiple of what the source itself rounds, which `allowed` measures.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchorbit.comparing import paired, relative_difference


@contextmanager
def in_float64() -> Iterator[None]:
    """While active, `Tensor.float` gives float64.

    Some models sum in float32 whatever they compute in (EvoNorm, the linear attention of ``efficientvit_b0``), for the
    sake of half precision. Converted meanwhile and cast to float64, they are in float64 throughout.
    """
    with mock.patch.object(Tensor, "float", Tensor.double):
        yield


def allowed(model: nn.Module, inputs: Any) -> float:
    """What another way to compute what a model does in float32 may differ by, over the largest output.

    Ten times the rounding of the model itself: another order of the same sums shows about as much, rarely twice. At
    least 1e-6, since the rounding of a small model may be nothing by chance.

    Args:
        model: a model in float32.
        inputs: a tensor, or a tuple of positional arguments.
    """
    return max(10 * rounding(model, inputs), 1e-6)


def rounding(model: nn.Module, inputs: Any) -> float:
    """How far the output of a model in float32 is from that of its copy in float64, over the largest output."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    precise = pytree.tree_map_only(Tensor, _doubled, given)
    with torch.no_grad():
        output = model(*given)
        with in_float64():
            expected = copy.deepcopy(model).double()(*precise)
    return relative_difference(paired(expected, pytree.tree_map_only(Tensor, _doubled, output)))


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
