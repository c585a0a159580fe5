"""Batches as they come from a loader, and the losses on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchorbit.errors import ArgumentError, ArgumentTypeError, CalibrationError

#: Gives the loss of a model's output on a batch, as a scalar or as a number for each sample.
Loss = Callable[[Any, Any], Tensor]


def default_sample_to_model_inputs(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first item of a batch is the model's input; a batch that is a tensor is the input itself.

    Args:
        sample: a batch, ``(images, labels)`` say.

    Returns:
        Positional and keyword inputs of the model.

    Raises:
        CalibrationError: the batch is nothing of both.
    """
    if isinstance(sample, Tensor):
        return (sample,), {}
    if isinstance(sample, (tuple, list)) and sample:
        return (sample[0],), {}
    raise CalibrationError(
        f"a batch is a {type(sample).__name__}, expected a tensor or a tuple that begins with the model's input; say "
        "with sample_to_model_inputs what of it the model takes"
    )


def default_sample_to_n_samples(sample: Any) -> int:
    """The length of the first tensor in a batch.

    Raises:
        CalibrationError: there is none.
    """
    for leaf in pytree.tree_leaves(sample):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise CalibrationError(
        f"a batch ({type(sample).__name__}) holds no tensor; say with sample_to_n_samples how many samples it has"
    )


@dataclass(frozen=True)
class Batch:
    """A batch.

    Attributes:
        sample: what the loader gave, on the device of the model.
        args: positional inputs of the model.
        kwargs: keyword inputs.
        samples: how many samples it has.
    """

    sample: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int

    def losses(self, loss: Loss, output: Any, reduction: Literal["mean", "sum"]) -> Tensor:
        """The loss of every sample, of shape (samples,); or their mean, a scalar.

        Raises:
            CalibrationError: the loss is no tensor of real numbers of either shape, or not finite.
        """
        value = loss(output, self.sample)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise CalibrationError(f"the loss is {given}, expected a tensor of floating point numbers")
        if value.shape not in ((), (self.samples,)):
            raise CalibrationError(
                f"the loss is of shape {tuple(value.shape)}, expected a scalar or one number for each of the "
                f"{self.samples} samples"
            )
        if not value.detach().isfinite().all():
            raise CalibrationError(
                "the loss is not finite; look at the data, the mode of the model (is it in evaluation?) and the "
                "precision (is it float16?)"
            )
        return value / self.samples if reduction == "sum" and not value.dim() else value


def batches_of(
    loader: Iterable[Any],
    model: nn.Module,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
    sample_to_n_samples: Callable[[Any], int],
    *,
    max_batches: int | None = None,
    epochs: int = 1,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """The batches of a loader.

    Args:
        loader: gives them; gone through once for each epoch.
        model: what they are for.
        sample_to_model_inputs: makes positional and keyword inputs of a batch.
        sample_to_n_samples: gives the number of samples of a batch.
        max_batches: how many to take at most.
        epochs: how often to go through the loader.
        device: where they go; by default where the parameters of the model are.

    Raises:
        CalibrationError: there is none, or inputs are not what they should be.
        ArgumentTypeError: the loader cannot be gone through, or only once although there are several epochs; or
            ``max_batches`` or ``epochs`` is no whole number.
        ArgumentError: ``max_batches`` or ``epochs`` is not positive.
    """
    for name, number in (("max_batches", max_batches), ("epochs", epochs)):
        if number is None:
            continue
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
            raise ArgumentTypeError(f"{name}={number!r}, expected a whole number")
        if number < 1:
            raise ArgumentError(f"{name}={number}, expected a positive number")
    if epochs > 1:
        require_repeatable(loader)
    elif not isinstance(loader, Iterable):
        raise ArgumentTypeError(f"loader is a {type(loader).__name__}, expected something that gives batches")
    if device is None:
        device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), None)
    return _batches(loader, sample_to_model_inputs, sample_to_n_samples, max_batches, epochs, device)


def _batches(
    loader: Iterable[Any],
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
    sample_to_n_samples: Callable[[Any], int],
    max_batches: int | None,
    epochs: int,
    device: torch.device | str | None,
) -> Iterator[Batch]:
    count = 0
    for _ in range(epochs):
        for sample in loader:
            sample = _moved(sample, device)
            yield _batch(sample, sample_to_model_inputs(sample), sample_to_n_samples(sample))
            count += 1
            if count == max_batches:
                return
    if not count:
        raise CalibrationError("the loader gives no batch")


def require_repeatable(loader: Iterable[Any]) -> None:
    """Refuse what gives its batches only once.

    Raises:
        ArgumentTypeError: it does, or gives none at all.
    """
    if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
        used_up = ", which is used up by one pass" if isinstance(loader, Iterator) else ""
        raise ArgumentTypeError(
            f"loader is a {type(loader).__name__}{used_up}; expected something that gives batches as often as it is "
            "gone through: a DataLoader, or a list"
        )


def _batch(sample: Any, inputs: Any, samples: Any) -> Batch:
    if not (
        isinstance(inputs, tuple)
        and len(inputs) == 2
        and isinstance(inputs[0], (tuple, list))
        and isinstance(inputs[1], Mapping)
    ):
        raise CalibrationError(
            f"sample_to_model_inputs gives {_described(inputs)}, expected a tuple of positional inputs and a dict of "
            "keyword inputs: (images,), {}"
        )
    return Batch(sample, tuple(inputs[0]), dict(inputs[1]), checked_count(samples))


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return f"a {type(value).__name__}"


def require_loss(loss: Any) -> None:
    """Refuse what is no function.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not callable(loss):
        raise ArgumentTypeError(
            f"loss is a {type(loss).__name__}, expected a function of the model's output and a batch"
        )


def checked_count(samples: Any) -> int:
    """A number of samples.

    Raises:
        CalibrationError: it is none.
    """
    if not isinstance(samples, (int, np.integer)) or isinstance(samples, bool) or samples < 1:
        raise CalibrationError(f"a batch has {samples!r} samples, expected a positive whole number of them")
    return int(samples)


def _moved(sample: Any, device: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), sample)


def autocasting(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Mixed precision where the model is; none where no dtype is given.

    Raises:
        ArgumentTypeError: ``dtype`` is none.
    """
    if dtype is None:
        return nullcontext()
    if not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(f"autocast={dtype!r}, expected a dtype, as torch.bfloat16, or None")
    device = next((tensor.device.type for tensor in [*model.parameters(), *model.buffers()]), "cpu")
    return torch.autocast(device, dtype=dtype)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """While active, buffers may change (running statistics in training mode); afterwards they are as before."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in kept:
                module._buffers[name] = buffer
                buffer.copy_(before)
