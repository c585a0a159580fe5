"""Compare two models by what they compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


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
        AssertionError: the outputs have another structure, other shapes, or differ by more than ``atol``.
    """
    like = next((p for p in first.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.randn(*input_shape, device=like.device, dtype=like.dtype)
    outputs = []
    for module in (first, second):
        modes = [(m, m.training) for m in module.modules()]
        module.eval()
        try:
            with torch.no_grad():
                outputs.append(module(x))
        finally:
            for submodule, training in modes:
                submodule.training = training
    (ours, ours_structure), (theirs, theirs_structure) = map(pytree.tree_flatten, outputs)
    if ours_structure != theirs_structure:
        raise AssertionError(f"the outputs have another structure: {ours_structure} and {theirs_structure}")
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if type(a) is not type(b) or a != b:
                raise AssertionError(f"output {n} is {a!r} in one, {b!r} in the other")
            continue
        if a.shape != b.shape:
            raise AssertionError(f"output {n} has shape {tuple(a.shape)} in one, {tuple(b.shape)} in the other")
        if not (a.is_floating_point() or a.is_complex()):
            a, b = a.double(), b.double()
        difference = (a - b).abs().max().item() if a.numel() else 0.0
        if not difference <= atol:
            raise AssertionError(f"output {n} differs by {difference:.3g}, more than atol={atol:.3g}")
