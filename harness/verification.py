"""Whether a graph is the model that it was made from: by its outputs' shapes, or by the outputs themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, treespec_pprint

import torchorbit
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack

TOLERANCE = 1e-5
"""Largest difference between two outputs, over the largest output, at which they count as equal."""


class VerificationError(Exception):
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
    _paired_leaves(expected, actual)


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
    largest = 0.0
    for place, wanted, given in _paired_leaves(expected, actual):
        if wanted.numel() == 0:
            continue
        if not wanted.is_floating_point():
            if not torch.equal(wanted, given):
                raise VerificationError(f"{place} of type {wanted.dtype} is not the source's")
            continue
        if not torch.isfinite(wanted).all():
            raise VerificationError(f"{place} of the source is not finite, so comparing with it proves nothing")
        if wanted.numel() > 1 and wanted.min() == wanted.max():
            raise VerificationError(f"{place} of the source is constant, so comparing with it proves nothing")
        if not torch.isfinite(given).all():
            raise VerificationError(f"{place} of the graph is not finite, the source's is")
        difference = (wanted - given).abs().max() / wanted.abs().max()
        largest = max(largest, float(difference))
    return largest


def _paired_leaves(expected: Any, actual: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Tensors that stand in the same place of two outputs that agree in everything but their numbers."""
    expected_leaves, expected_structure = tree_flatten(expected)
    actual_leaves, actual_structure = tree_flatten(actual)
    if expected_structure != actual_structure:
        given, wanted = _structure(actual_structure), _structure(expected_structure)
        raise VerificationError(f"the graph returns {given} where the source returns {wanted}")
    pairs = []
    for index, (wanted, given) in enumerate(zip(expected_leaves, actual_leaves, strict=True)):
        place = "the output" if len(expected_leaves) == 1 else f"output #{index}"
        if not isinstance(wanted, Tensor) or not isinstance(given, Tensor):
            if type(wanted) is not type(given) or wanted != given:
                raise VerificationError(f"{place} of the graph is {given!r} where the source's is {wanted!r}")
            continue
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            raise VerificationError(f"{place} of the graph is {_kind(given)} where the source's is {_kind(wanted)}")
        pairs.append((place, wanted, given))
    return pairs


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _structure(structure: TreeSpec) -> str:
    return " ".join(treespec_pprint(structure).split())
