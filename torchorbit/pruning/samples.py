"""What a loader gives, and what a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: Gives the positional and the keyword arguments of the model for what a loader gives.
SampleToModelInputs = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]
#: Gives the number of samples in what a loader gives.
SampleToNSamples = Callable[[Any], int]


def default_sample_to_model_inputs(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first item is the model's only input, as in ``(images, labels)``; a tensor is the input itself.

    Raises:
        TypeError: it is something else; the caller then needs a function of their own.
    """
    if isinstance(sample, Tensor):
        return (sample,), {}
    if isinstance(sample, (tuple, list)) and sample:
        return (sample[0],), {}
    raise TypeError(
        f"the loader gives a {type(sample).__name__}, expected (inputs, labels); say by sample_to_model_inputs= what the "
        "model takes of it: a function that returns a tuple of positional and a dict of keyword arguments"
    )


def default_sample_to_n_samples(sample: Any) -> int:
    """The length of the first tensor.

    Raises:
        TypeError: there is no tensor.
    """
    if isinstance(sample, Mapping):
        sample = list(sample.values())
    for leaf in pytree.tree_leaves(sample):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise TypeError(
        f"the loader gives a {type(sample).__name__} without a tensor; say by sample_to_n_samples= how many samples it is"
    )


def moved(inputs: Any, device: torch.device | None) -> Any:
    """The same with every tensor on a device."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device) if device is not None else tensor, inputs)
