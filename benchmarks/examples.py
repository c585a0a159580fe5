"""Example inputs of models, at whatever batch size they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Any, ...] | dict[str, Any]
Example = Callable[[int], Inputs]
"""Gives inputs for a batch size: a tuple of positional arguments, or a dictionary of those given by name."""


@dataclass(frozen=True)
class Case:
    """A model of the benchmark.

    Attributes:
        source: whose model it is.
        name: what it is called there.
        build: makes it, with random weights.
        example: makes its inputs.
    """

    source: str
    name: str
    build: Callable[[], nn.Module]
    example: Example

    @property
    def key(self) -> str:
        """Its name in the records."""
        return f"{self.source}/{self.name}"


def floats(*shapes: tuple[int, ...]) -> Example:
    """Random numbers, a tensor for each shape, which is without the batch."""
    return lambda batch: tuple([torch.randn(batch, *shape) for shape in shapes])


def images(side: int = 64, channels: int = 3) -> Example:
    """One square image per sample."""
    return floats((channels, side, side))


def whole(length: int, below: int, batch: int) -> Tensor:
    """Random whole numbers ``(batch, length)``, which are at least 3: lower ones mark padding and ends of texts."""
    return torch.randint(3, below, (batch, length))


def tokens(length: int = 12, below: int = 99) -> Example:
    """A sequence of whole numbers per sample."""
    return lambda batch: (whole(length, below, batch),)


def named(**examples: Example) -> Example:
    """Inputs given by name, of which each example makes one."""
    return lambda batch: {name: example(batch)[0] for name, example in examples.items()}


def together(*examples: Example) -> Example:
    """The inputs of several examples, one after the other."""
    return lambda batch: tuple([value for example in examples for value in example(batch)])
