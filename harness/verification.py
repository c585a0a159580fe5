"""Whether a graph is the model that it was made from: by its outputs' shapes, or by the outputs themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

import torchorbit
from harness.errors import HarnessError
from torchorbit import comparing
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack

TOLERANCE = 1e-5
"""Largest difference between two outputs, over the largest output, at which they count as equal."""


class VerificationError(HarnessError):
    """A graph does not do what its source does, or the comparison would prove nothing. The message is one line."""


def packed_and_unpacked(graph: torchorbit.DagModule) -> torchorbit.DagModule:
    """What loading a graph gives after saving it, without the disk in between and without a second copy of its weights.

    Args:
        graph: Any graph.

    Returns:
        A graph made from nothing but the text of the first one's document, and its tensors.
    """
    document, tensors = pack(graph)
    return unpack(json.loads(json.dumps(document)), tensors)


def random_input(size: Sequence[int], seed: str) -> Tensor:
    """A batch of one image of noise on two scales.

    Fine noise alone averages out wherever a network pools, and every image would look the same to it.

    Args:
        size: `(channels, height, width)`.
        seed: Any text, for instance the model's name.

    Returns:
        A tensor `(1, channels, height, width)`, the same in every process.
    """
    channels, height, width = size
    generator = torch.Generator().manual_seed(crc32(seed.encode()))
    fine = torch.randn(1, channels, height, width, generator=generator)
    coarse = torch.randn(1, channels, 4, 4, generator=generator)
    return fine + nn.functional.interpolate(coarse, size=(height, width), mode="nearest")


def check_shapes(expected: Any, actual: Any) -> None:
    """Compare two outputs by structure, shapes and types.

    Args:
        expected: What the source gives: a tensor, or tuples, lists and dicts of tensors.
        actual: What the graph gives.

    Raises:
        VerificationError: They differ; the message names the first place where they do.
    """
    _pairs(expected, actual)


def relative_difference(expected: Any, actual: Any) -> float:
    """Compare two outputs by their numbers.

    Args:
        expected: What the source gives: a tensor, or tuples, lists and dicts of tensors.
        actual: What the graph gives.

    Returns:
        The largest difference over the largest output, in whichever tensor of the output it is largest.

    Raises:
        VerificationError: Structure, shapes or types differ, or an output of the source is not finite or the same
            number everywhere, with which anything could be made to agree.
    """
    pairs = _pairs(expected, actual)
    for place, wanted, given in pairs:
        if not comparing.is_inexact(wanted):
            if not torch.equal(wanted, given):
                raise VerificationError(f"{place} of type {wanted.dtype} is not the source's")
            continue
        if not torch.isfinite(wanted).all():
            raise VerificationError(f"{place} of the source is not finite, so comparing with it proves nothing")
        if wanted.numel() > 1 and (wanted == wanted.flatten()[0]).all():
            raise VerificationError(f"{place} of the source is constant, so comparing with it proves nothing")
        if not torch.isfinite(given).all():
            raise VerificationError(f"{place} of the graph is not finite, the source's is")
    return comparing.relative_difference(pairs)


def _pairs(expected: Any, actual: Any) -> list[comparing.Pair]:
    try:
        return comparing.paired(expected, actual, names=("the source", "the graph"))
    except ValueError as error:
        raise VerificationError(str(error)) from None
