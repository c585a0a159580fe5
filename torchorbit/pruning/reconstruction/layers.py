"""Layers whose outputs are linear in their weights, as least squares see them: rows of inputs, and rows of outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.operators.shapes import per_axis

_PLAIN = {f"conv{n}d": n for n in (1, 2, 3)}
_TRANSPOSED = {f"conv_transpose{n}d": n for n in (1, 2, 3)}
#: The operators that are such layers.
OPERATORS = frozenset({"linear", *_PLAIN, *_TRANSPOSED})


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of a layer come from its input, and how its weights are matrices.

    A row of inputs is what one place of the output depends on: the features of a token, the patch under a kernel, group
    by group.

    Attributes:
        operator: one of `OPERATORS`.
        groups: of channels.
        stride: of every dimension of space; none for a linear layer.
        padding: zeros, or what else the mode says, before and behind every dimension of space.
        dilation: likewise.
        padding_mode: as for ``torch.nn.functional.pad``; ``"constant"`` for zeros.
    """

    operator: str
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    padding_mode: str = "constant"

    @classmethod
    def of(cls, operator: str, args: dict[str, Any], weight: Tensor, module: nn.Module | None) -> Shape | None:
        """That of a call; None where it is not known before it runs.

        Args:
            operator: one of `OPERATORS`.
            args: of the call.
            weight: its weights.
            module: the layer, where it is one.
        """
        if operator == "linear":
            return cls(operator) if weight.dim() == 2 else None
        count = weight.dim() - 2
        groups = args.get("groups", 1)
        stride, dilation = (per_axis(args.get(name, 1), count) for name in ("stride", "dilation"))
        if type(groups) is not int or stride is None or dilation is None:
            return None
        kernel = weight.shape[2:]
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        given = args.get("padding", 0)
        if given == "valid":
            padding = [(0, 0)] * count
        elif given == "same":
            padding = [(n // 2, n - n // 2) for n in reach]
        else:
            sides = per_axis(given, count)
            if sides is None:
                return None
            padding = [(n, n) for n in sides]
        if operator in _TRANSPOSED:
            more = per_axis(args.get("output_padding", 0), count)
            if more is None or type(args.get("output_size")) not in (type(None),):
                return None
            padding = [(n - p, n - p + m) for n, (p, _), m in zip(reach, padding, more, strict=True)]
        mode = getattr(module, "padding_mode", "zeros")
        return cls(operator, groups, stride, tuple(padding), dilation, "constant" if mode == "zeros" else mode)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.operator in _TRANSPOSED

    def matrices(self, weight: Tensor) -> Tensor:
        """The weights of every group as a matrix, of shape (groups, outputs, inputs of a row)."""
        if self.operator == "linear":
            return weight[None]
        if self.transposed:
            turned = weight.flip(tuple(range(2, weight.dim()))).flatten(2)
            parts = turned.reshape(self.groups, -1, *turned.shape[1:])  # groups, inputs, outputs, kernel
            return parts.transpose(1, 2).flatten(2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, matrices: Tensor, like: Tensor) -> Tensor:
        """What `matrices` makes of weights, undone.

        Args:
            matrices: of shape (groups, outputs, inputs of a row).
            like: of the shape of the weights.
        """
        if not self.transposed:
            return matrices.reshape(like.shape)
        groups, outputs, _ = matrices.shape
        parts = matrices.reshape(groups, outputs, like.shape[0] // groups, -1).transpose(1, 2)
        return parts.reshape(like.shape).flip(tuple(range(2, like.dim())))

    def outputs(self, y: Tensor, index: Tensor) -> Tensor:
        """Rows of the output, of shape (groups, rows, outputs).

        Args:
            y: the output.
            index: the places.
        """
        last = y if self.operator == "linear" else y.movedim(1, -1)
        rows = last.reshape(-1, last.shape[-1])[index]
        return rows.reshape(len(index), self.groups, -1).transpose(0, 1)

    def inputs(self, x: Tensor, kernel: Sequence[int], index: Tensor) -> Tensor:
        """Rows of the input, of shape (groups, rows, inputs of a row).

        Args:
            x: the input.
            kernel: lengths of the kernel in space.
            index: the places in the output.
        """
        if self.operator == "linear":
            return x.reshape(-1, x.shape[-1])[index][None]
        x = self._padded(x)
        stride = (1,) * len(kernel) if self.transposed else self.stride
        lengths = [
            (n - d * (k - 1) - 1) // s + 1
            for n, d, k, s in zip(x.shape[2:], self.dilation, kernel, stride, strict=True)
        ]
        places = torch.unravel_index(index, (x.shape[0], *lengths))
        count = len(kernel)
        where: list[Any] = [places[0].reshape(-1, *[1] * count), slice(None)]
        for axis, (place, k, d, s) in enumerate(zip(places[1:], kernel, self.dilation, stride, strict=True)):
            offsets = place[:, None] * s + d * torch.arange(k, device=x.device)
            where.append(offsets.reshape(-1, *[k if n == axis else 1 for n in range(count)]))
        patches = x[tuple(where)]  # rows, kernel, channels: what is indexed comes first
        patches = patches.movedim(-1, 1) if count else patches
        return patches.reshape(len(index), self.groups, -1).transpose(0, 1)

    def channels(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows of the channels of the input alone, of shape (groups, rows, channels).

        Args:
            x: the input.
            index: places in the input.
        """
        last = x if self.operator == "linear" else x.movedim(1, -1)
        return last.reshape(-1, last.shape[-1])[index].reshape(len(index), self.groups, -1).transpose(0, 1)

    def _padded(self, x: Tensor) -> Tensor:
        if self.transposed and any(step > 1 for step in self.stride):
            lengths = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
            apart = x.new_zeros(*x.shape[:2], *lengths)
            every: tuple[Any, ...] = tuple([slice(None, None, step) for step in self.stride])
            apart[(..., *every)] = x
            x = apart
        if any(itertools.chain.from_iterable(self.padding)):
            x = F.pad(x, list(itertools.chain.from_iterable(reversed(self.padding))), mode=self.padding_mode)
        return x

    def with_batch(self, x: Tensor, weight: Tensor) -> Tensor:
        """An input or output with a dimension for the batch, which convolutions can do without."""
        return x[None] if self.operator != "linear" and x.dim() == weight.dim() - 1 else x

    def places(self, y: Tensor) -> int:
        """How many rows an output has."""
        return math.prod(y.shape[:-1]) if self.operator == "linear" else y.shape[0] * math.prod(y.shape[2:])
