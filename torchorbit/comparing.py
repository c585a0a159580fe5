"""Compare two models by what they compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, treespec_pprint

from torchorbit.errors import ArgumentError
from torchorbit.records import opened

#: A place in an output, and the tensors that two models have there.
Pair = tuple[str, Tensor, Tensor]


def compare_module_outputs(first: nn.Module, second: nn.Module, input_shape: Sequence[int], atol: float = 1e-5) -> None:
    """Assert that two models give the same output for one random input, in evaluation mode.

    The name, the arguments and the error are torch-dag's; it compares the mean difference, this the largest.
    Both models are put back into the mode they were in.

    Args:
        first: a model that takes one tensor.
        second: another one, on the same device.
        input_shape: shape of the input, the batch included.
        atol: largest absolute difference that counts as equal. NaNs are never equal.

    Raises:
        AssertionError: the outputs have another structure, other shapes or types, or differ by more than ``atol``.
    """
    like = next((p for p in first.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.randn(*input_shape, device=like.device, dtype=like.dtype)
    with evaluating(first, second), torch.no_grad():
        outputs = first(x), second(x)
    try:
        pairs = paired(*outputs, names=("the first model", "the second model"))
    except ValueError as error:
        raise AssertionError(str(error)) from None
    for place, a, b in pairs:
        if not is_inexact(a):
            a, b = a.double(), b.double()
        difference = (a - b).abs().max().item() if a.numel() else 0.0
        if not difference <= atol:
            raise AssertionError(f"{place} differs by {difference:.3g}, more than atol={atol:.3g}")


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """While active, models are in evaluation mode; afterwards every submodule is in the mode that it was in."""
    with same_modes(*models):
        for model in models:
            model.eval()
        yield


@contextmanager
def same_modes(*models: nn.Module) -> Iterator[None]:
    """Whatever is done meanwhile, afterwards every submodule is in the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def paired(expected: Any, actual: Any, *, names: tuple[str, str] = ("the first", "the second")) -> list[Pair]:
    """The tensors that stand in the same place of two outputs that agree in everything but their numbers.

    Args:
        expected: a tensor, or tuples, lists, dicts and objects with named fields, of tensors and other values.
        actual: another one.
        names: what gave them, for the message of the error.

    Raises:
        ArgumentError: structures, shapes, types or values that are no tensors differ; the message names the first place
            where they do.
    """
    ours, theirs = names
    expected_leaves, expected_structure = tree_flatten(opened(expected))
    actual_leaves, actual_structure = tree_flatten(opened(actual))
    if expected_structure != actual_structure:
        given, wanted = _written(actual_structure), _written(expected_structure)
        raise ArgumentError(f"{theirs} returns {given} where {ours} returns {wanted}")
    pairs = []
    for index, (wanted, given) in enumerate(zip(expected_leaves, actual_leaves, strict=True)):
        place = "the output" if len(expected_leaves) == 1 else f"output #{index}"
        if not isinstance(wanted, Tensor) or not isinstance(given, Tensor):
            if type(wanted) is not type(given) or wanted != given:
                raise ArgumentError(f"{place} of {theirs} is {given!r} where {ours}'s is {wanted!r}")
            continue
        if wanted.shape != given.shape or wanted.dtype != given.dtype:
            raise ArgumentError(f"{place} of {theirs} is {_kind(given)} where {ours}'s is {_kind(wanted)}")
        pairs.append((place, wanted, given))
    return pairs


def relative_difference(pairs: Iterable[Pair]) -> float:
    """The largest difference over the largest expected number, in whichever pair it is largest.

    Infinite where a number is not finite, and where flags or whole numbers are not the same.
    """
    worst = 0.0
    for _, wanted, given in pairs:
        if not is_inexact(wanted):
            worst = max(worst, 0.0 if torch.equal(wanted, given) else math.inf)
        elif wanted.numel():
            if not (torch.isfinite(wanted).all() and torch.isfinite(given).all()):
                return math.inf
            largest, difference = wanted.abs().max().item(), (wanted - given).abs().max().item()
            worst = max(worst, difference / largest if largest else math.inf if difference else 0.0)
    return worst


def is_inexact(tensor: Tensor) -> bool:
    """Whether equal results may differ by rounding: flags and whole numbers may not."""
    return tensor.is_floating_point() or tensor.is_complex()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _written(structure: TreeSpec) -> str:
    return " ".join(treespec_pprint(structure).split())
