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

from torchorbit.pruning.calibration.batches import autocasting, batches_of, default_sample_to_model_inputs

_NAMES = tuple(inspect.signature(F.batch_norm).parameters)


@torch.no_grad()
def finetune_batch_norm(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    steps: int | None = None,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = default_sample_to_model_inputs,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> int:
    """Set running means and variances to those of data, and leave everything else of the model as it is.

    Every batch is normalised by its own statistics on its way through the model, as in training; everything else (
    dropout, say) is in the mode that it is in. The running statistics become the means over all batches, each weighted
    by how many values it has (ENOT's ``finetune_bn``; "precise batch norm", Wu & Johnson, 2021, arXiv 2105.07576).

    Args:
        model: a `DagModule`, or any module. Batch norms without running statistics are left alone.
        loader: batches of data; one pass over it is made.
        steps: so many batches at most; all by default.
        sample_to_model_inputs: gives positional and keyword arguments of the model for a batch.
        device: where batches go first; by default where the parameters are.
        autocast: dtype of mixed precision; none by default.
        progress: show a progress bar.

    Returns:
        How many batch norms were re-estimated.

    Raises:
        CalibrationError: the loader gives no batch, or one that is not what it should be.
    """
    statistics = _Statistics()
    batches = batches_of(loader, model, sample_to_model_inputs, lambda sample: 1, steps=steps, device=device)
    for batch in tqdm(batches, desc="batch norm", disable=not progress, leave=False):
        with autocasting(model, autocast), statistics:
            model(*batch.args, **batch.kwargs)
    return statistics.write()


class _Statistics(TorchFunctionMode):
    """Lets batch norms use the statistics of the batch, and keeps their means over all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[int, tuple[Tensor, Tensor, Tensor, Tensor, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(zip(_NAMES, args, strict=False)) | (kwargs or {})
        if func is not F.batch_norm or given.get("running_mean") is None or given.get("running_var") is None:
            return func(*args, **(kwargs or {}))
        mean, var = given["running_mean"], given["running_var"]
        own_mean, own_var = torch.zeros_like(mean), torch.ones_like(var)
        given.update(running_mean=own_mean, running_var=own_var, training=True, momentum=1.0)
        result = func(**given)
        count = given["input"].numel() // len(mean)
        zero = torch.zeros_like(mean, dtype=torch.float64)
        _, _, mean_sum, var_sum, total = self.sums.get(id(mean), (mean, var, zero, zero, 0))
        self.sums[id(mean)] = (mean, var, mean_sum + count * own_mean, var_sum + count * own_var, total + count)
        return result

    def write(self) -> int:
        for mean, var, mean_sum, var_sum, count in self.sums.values():
            mean.copy_(mean_sum / count)
            var.copy_(var_sum / count)
        return len(self.sums)
