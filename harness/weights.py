"""Random weights for a model, without paying for its initialization.

A model's constructor spends most of its time, and up to a second copy of its memory, on drawing weights. A check that a
graph computes what its source computes needs no particular weights, only weights behind which no mistake can hide: no
zeros where a trained model has none (layer scales, residual gains, class tokens), and activations that neither vanish
nor overflow however deep the network is. So the constructor's own initialization is skipped and every parameter is
filled once, from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_BLOCK = 1_000_003
"""Length of the block of random numbers that is laid over every parameter again and again. A prime, so that the rows of
a matrix longer than the block still differ: no row length divides it."""

_ADDED = ("bias", "beta", "lambda", "tau")
"""Parts of the names of vectors that are added, compared or taken to the power of e, rather than multiplied with."""

_BatchNorm = nn.modules.batchnorm._NormBase

_INITIALIZING_METHODS = frozenset(
    {
        Tensor.add_,
        Tensor.clamp_,
        Tensor.copy_,
        Tensor.div_,
        Tensor.erfinv_,
        Tensor.fill_,
        Tensor.mul_,
        Tensor.normal_,
        Tensor.sub_,
        Tensor.uniform_,
        Tensor.zero_,
    }
)


class SkippedInitialization(TorchFunctionMode):
    """While active, parameters keep the memory they were allocated with: nothing is drawn, nothing is written.

    Buffers are computed as ever: index tables, masks and rotary tables are not weights, a model is wrong without them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func in _INITIALIZING_METHODS and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def fill_with_random_weights(model: nn.Module, seed: str) -> None:
    """Overwrite every parameter and every running statistic of a model, in place.

    The same model and seed give the same weights in every process. Before a model with batch normalization is compared
    with anything, `normalize_by_first_run` fits the running statistics to the weights.

    Args:
        model: A model on a real device.
        seed: Any text, for instance the model's name.
    """
    noise = _Noise(seed)
    filled: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Tied parameters appear under several modules; a second filling would be wasted.
            if id(parameter) not in filled:
                filled.add(id(parameter))
                _fill_parameter(noise, module, name, parameter)
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            noise.normal(module.get_buffer("running_mean"), 0.1)
            noise.uniform(module.get_buffer("running_var"), 0.5, 1.5)


@contextmanager
def normalize_by_first_run(model: nn.Module) -> Iterator[None]:
    """While active, each batch normalization scales its running statistics to the first tensor that it meets.

    With statistics that do not fit the weights, a network normalized by them loses its input: layer after layer the
    signal shrinks below the biases, or grows out of range (a factor of `2e-7` in `lcnet_050`, of `1e13` in
    `mobileone_s0`). The statistics are changed before the layer uses them, so the output of the run is already what the
    model gives afterwards: fitting costs no run of its own. Only the scale is fitted. Taking each channel's own mean
    and variance, as training does, makes deep random networks amplify rounding errors a thousand times.

    Args:
        model: A model in evaluation mode, filled by `fill_with_random_weights`.
    """
    handles: dict[nn.Module, Any] = {}

    def fit(module: nn.Module, args: tuple[Any, ...]) -> None:
        handles.pop(module).remove()
        # Root mean square of all of the tensor; not as a mean of squares, which would be another tensor as large.
        scale = torch.linalg.vector_norm(args[0]) / math.sqrt(args[0].numel())
        if scale > 0:
            module.get_buffer("running_mean").mul_(scale)
            module.get_buffer("running_var").mul_(scale.square())

    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            handles[module] = module.register_forward_pre_hook(fit)
    try:
        yield
    finally:
        for handle in handles.values():
            handle.remove()


def _fill_parameter(noise: _Noise, module: nn.Module, name: str, parameter: Tensor) -> None:
    """Choose the distribution of one parameter by what it is for."""
    fan_in = _fan_in(module, name, parameter)
    if fan_in is not None:
        noise.normal(parameter, 1.0 / math.sqrt(fan_in))
    elif sum(size > 1 for size in parameter.shape) > 1 or "token" in name or "latent" in name:
        # Tables and tokens: they are added to activations of about this size.
        noise.normal(parameter, 0.5)
    elif any(word in name for word in _ADDED):
        noise.normal(parameter, 0.1)
    else:
        # One number per channel that multiplies it: a norm's weight, a layer scale. Trained from 0 or 1e-6 in some
        # models, where a branch behind it could be wrong and nothing would show.
        noise.uniform(parameter, 0.5, 1.5)


def _fan_in(module: nn.Module, name: str, parameter: Tensor) -> float | None:
    """How many products are summed into one output of a matrix or kernel; None for parameters that are neither."""
    if "weight" not in name or parameter.ndim < 2:
        return None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        # (inputs, outputs / groups, *kernel): an output position is reached by 1 / stride of the kernel's positions.
        return parameter.numel() / parameter.shape[1] / module.groups / math.prod(module.stride)
    kernel_shape = getattr(module, "weight_shape", None)
    if kernel_shape is not None:
        # timm's CondConv2d keeps one flattened kernel (outputs, inputs, *kernel) per expert.
        return float(math.prod(kernel_shape[1:]))
    return parameter.numel() / parameter.shape[0]


class _Noise:
    """Random numbers for any number of tensors, drawn once and laid out repeatedly."""

    def __init__(self, seed: str) -> None:
        self._generator = torch.Generator().manual_seed(crc32(seed.encode()))
        self._normal = torch.randn(_BLOCK, generator=self._generator)
        self._uniform = torch.rand(_BLOCK, generator=self._generator)

    def normal(self, tensor: Tensor, deviation: float) -> None:
        """Fill a tensor with numbers of mean zero and the given standard deviation."""
        self._repeat(self._normal, tensor)
        tensor.mul_(deviation)

    def uniform(self, tensor: Tensor, low: float, high: float) -> None:
        """Fill a tensor with numbers between two bounds."""
        self._repeat(self._uniform, tensor)
        tensor.mul_(high - low).add_(low)

    def _repeat(self, block: Tensor, tensor: Tensor) -> None:
        # Start somewhere else for every tensor, or equal shapes would get equal weights.
        start = int(torch.randint(_BLOCK, (1,), generator=self._generator))
        flat = tensor.view(-1)
        head = min(len(flat), _BLOCK - start)
        flat[:head] = block[start : start + head]
        rest = flat[head:]
        whole = len(rest) // _BLOCK * _BLOCK
        rest[:whole].view(-1, _BLOCK).copy_(block.expand(whole // _BLOCK, -1))
        rest[whole:] = block[: len(rest) - whole]
