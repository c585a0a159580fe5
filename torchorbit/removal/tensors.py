"""Parameters and buffers with what is removed cut away."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from torchorbit.labels import Mask
from torchorbit.orbits.selection import Selection


class CutTensors:
    """What is left of the parameters and buffers of a graph.

    Args:
        selection: what is removed.
        share: whether what loses nothing is shared with the whole graph instead of copied.

    Attributes:
        parameters: parameter of the whole graph -> that in its place.
        cuts: parameter that loses something -> its shape before, and the positions that are kept along every dimension.
    """

    def __init__(self, selection: Selection, share: bool):
        assert selection.orbits is not None
        self.parameters: dict[nn.Parameter, nn.Parameter] = {}
        self.cuts: dict[nn.Parameter, tuple[torch.Size, list[Tensor | None]]] = {}
        self._selection = selection
        self._model = selection.orbits.model
        self._share = share
        self._made: dict[int, Tensor] = {}  # id of an old tensor -> new one
        self._indices: dict[int, Tensor] = {}  # id of a mask -> the positions that it keeps

    def of(self, tensor: Tensor, path: str) -> Tensor:
        """What is left of a parameter or buffer, the same one whenever it is asked for."""
        made = self._made.get(id(tensor))
        if made is not None:
            return made
        kept = self.kept(tensor, path)
        with torch.no_grad():
            made = cut_tensor(tensor.detach(), kept)
            if made is tensor or made.data_ptr() == tensor.data_ptr():
                made = made if self._share or tensor.device.type == "meta" else made.clone()
        if isinstance(tensor, nn.Parameter):
            parameter = nn.Parameter(made, requires_grad=tensor.requires_grad)
            if tensor.grad is not None:
                grad = cut_tensor(tensor.grad, kept)
                parameter.grad = grad.clone() if grad is tensor.grad and not self._share else grad
            if any(index is not None for index in kept):
                self.cuts[tensor] = (tensor.shape, kept)
            self.parameters[tensor] = parameter
            made = parameter
        self._made[id(tensor)] = made
        return made

    def kept(self, tensor: Tensor, path: str) -> list[Tensor | None]:
        """The positions that are kept along every dimension of a parameter or buffer; None where all are."""
        values = self._selection.of_tensor(path)
        masks = [None] * tensor.dim() if values is None else self._selection.masks(values)
        return [None if mask is None else self._positions(mask, tensor.device) for mask in masks]

    def at(self, path: str) -> Tensor:
        """What is kept of a parameter or buffer."""
        tensor = self._model.tensor_at(path).detach()
        return cut_tensor(tensor, self.kept(self._model.tensor_at(path), path))

    def _positions(self, mask: Mask, device: torch.device) -> Tensor:
        found = self._indices.get(id(mask))
        if found is None:
            found = self._indices[id(mask)] = torch.from_numpy(np.flatnonzero(mask)).to(device)
        return found


def cut_tensor(tensor: Tensor, kept: list[Tensor | None]) -> Tensor:
    """A tensor with the given positions along each dimension; None where all are kept. Its memory format stays."""
    result = tensor
    for axis, index in enumerate(kept):
        if index is not None:
            result = result.index_select(axis, index.to(tensor.device))
    memory_format = None if result is tensor else _channels_last(tensor)
    return result if memory_format is None else torch.empty_like(result, memory_format=memory_format).copy_(result)


def _channels_last(tensor: Tensor) -> torch.memory_format | None:
    """The memory format of a tensor whose channels lie next to each other; None where it is of another."""
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if memory_format is None or tensor.stride(1) != 1:
        return None
    plain, last = (
        torch.empty(tensor.shape, device="meta", memory_format=form).stride()
        for form in (torch.contiguous_format, memory_format)
    )
    return memory_format if tensor.stride() == last != plain else None
