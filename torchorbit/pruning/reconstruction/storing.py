"""What runs through two graphs is kept between their vertices, in memory as far as it may be, and else in files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: Results of both graphs by the names of vertices.
Values = tuple[dict[str, Any], dict[str, Any]]


class Batches:
    """The values of every batch.

    Use it as a context: files are gone when it ends.

    Args:
        values: for every batch the inputs of both graphs.
        samples: how many samples each has.
        most_bytes: how much of memory all may take together. What is more is kept in temporary files.
    """

    def __init__(self, values: Sequence[Values], samples: Sequence[int], most_bytes: int):
        self.samples = tuple(samples)
        self._values: list[Values | None] = list(values)
        self._most_bytes = most_bytes
        self._sizes = [_bytes_in(value) for value in values]
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values = []
        if self._folder is not None:
            self._folder.cleanup()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.samples)))

    @contextmanager
    def values(self, number: int) -> Iterator[Values]:
        """The values of a batch, which may be changed meanwhile."""
        held = self._values[number]
        if held is None:
            held = torch.load(self._path(number), weights_only=False)
        yield held
        self._sizes[number] = _bytes_in(held)
        if sum(self._sizes) <= self._most_bytes:
            self._values[number] = held
        else:
            self._values[number] = None
            torch.save(held, self._path(number))

    def _path(self, number: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="torchorbit-")
        return Path(self._folder.name) / f"{number}.pt"


def _bytes_in(values: Values) -> int:
    storages = {
        leaf.untyped_storage()._cdata: leaf.untyped_storage().nbytes()
        for leaf in pytree.tree_leaves(values)
        if isinstance(leaf, Tensor)
    }
    return sum(storages.values())
