"""Re-estimate the running statistics of batch norms, which are those of the whole model until then."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from torchorbit.pruning.calibration.batches import (
    autocasting,
    batches_of,
    default_sample_to_model_inputs,
    unchanged_buffers,
)

_NAMES = tuple(inspect.signature(F.batch_norm).parameters)


@torch.no_grad()
def finetune_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    max_batches: int | None = None,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = default_sample_to_model_inputs,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> int:
    """Set running means and variances to those of data, and leave everything else of the model as it is.

    Every batch is normalized by its own statistics on its way through the model, as in training; everything else
    (dropout, say) is in the mode that it is in. The running statistics become the mean and the unbiased variance of
    what all batches have there together, so that it does not matter whether samples come in the order of their classes
    (ENOT's ``finetune_bn``; "precise batch norm", Wu & Johnson, 2021, arXiv 2105.07576). Where a batch has one value
    per channel only (its last sample, behind pooling), it is normalized by the running statistics and not counted.

    Args:
        model: a `DagModule`, or any module. Batch norms without running statistics are left alone.
        loader: batches of data; one pass over it is made.
        max_batches: so many batches at most; all by default.
        sample_to_model_inputs: gives positional and keyword arguments of the model for a batch.
        device: where batches go first; by default where the parameters are.
        autocast: dtype of mixed precision; none by default.
        progress: show a progress bar.

    Returns:
        How many batch norms were re-estimated.

    Raises:
        CalibrationError: the loader gives no batch, or one that is not what it should be.
    """
    statistics = BatchStatistics()
    batches = batches_of(
        loader, model, sample_to_model_inputs, lambda sample: 1, max_batches=max_batches, device=device
    )
    with unchanged_buffers(model):
        for batch in tqdm(batches, desc="batch norm", disable=not progress, leave=False):
            with autocasting(model, autocast), statistics:
                model(*batch.args, **batch.kwargs)
    return statistics.write()


class BatchStatistics(TorchFunctionMode):
    """Lets batch norms use the statistics of the batch, and puts those of all batches together."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[int, _Moments] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(zip(_NAMES, args, strict=False)) | (kwargs or {})
        if func is not F.batch_norm or given.get("running_mean") is None or given.get("running_var") is None:
            return func(*args, **(kwargs or {}))
        mean, var = given["running_mean"], given["running_var"]
        count = given["input"].numel() // len(mean)
        if count < 2:
            return func(**{**given, "training": False})
        own_mean, own_var = torch.zeros_like(mean), torch.ones_like(var)
        given.update(running_mean=own_mean, running_var=own_var, training=True, momentum=1.0)
        result = func(**given)
        self.moments.setdefault(id(mean), _Moments(mean, var)).add(own_mean, own_var, count)
        return result

    def write(self) -> int:
        """Set all running statistics to those of the batches so far; gives how many batch norms have some."""
        for moments in self.moments.values():
            moments.write()
        return len(self.moments)


class _Moments:
    """The mean and the variance of several batches, from their own."""

    def __init__(self, mean: Tensor, var: Tensor):
        self.mean, self.var = mean, var  # where they go
        self.count = 0
        self.sum, self.squares = (torch.zeros_like(mean, dtype=torch.float64, device="cpu") for _ in range(2))

    def add(self, mean: Tensor, var: Tensor, count: int) -> None:
        mean, var = mean.cpu().double(), var.cpu().double()
        self.count += count
        self.sum += count * mean
        self.squares += (count - 1) * var + count * mean.square()

    def write(self) -> None:
        mean = self.sum / self.count
        self.mean.copy_(mean)
        self.var.copy_(((self.squares - self.count * mean.square()) / (self.count - 1)).clamp(min=0))
