"""Noise in place of data: for what depends on weights and architecture alone, but is easier measured than derived.

Images of noise are unlike any that a model was trained on, and so are the statistics that its batch norms see. Where
each batch norm normalizes by those instead, what comes out of it has the mean and the variance that it has in the
trained model, layer by layer. Layer norms do so by themselves.

The amplitudes of images fall with the frequency f as 1/f ("Relations between the statistics of natural images and the
response properties of cortical cells", Field, 1987), and so do those of this noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchorbit.comparing import evaluating
from torchorbit.containers import leaves_of, map_leaves
from torchorbit.errors import GraphRunError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.orbit import Orbit
from torchorbit.pruning.batch_norm import BatchStatistics
from torchorbit.pruning.calibration.batches import unchanged_buffers
from torchorbit.records import opened
from torchorbit.removal.cutting import remove_channels
from torchorbit.removal.masked import random_inputs

_SAMPLES = 64
_BATCH_SIZE = 16
#: Added to variances before they are compared, as batch norms do it.
_EPSILON = 1e-5


@dataclass(frozen=True)
class NoiseBatch:
    """Inputs of a graph.

    Attributes:
        args: positional ones.
        kwargs: keyword ones.
        samples: how many samples they are.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    samples: int


def noise(dag: DagModule, *, samples: int, batch_size: int, seed: int) -> list[NoiseBatch]:
    """Inputs of the recorded sizes and kinds, with mean 0 and variance 1 where they are floating point numbers.

    Those with two dimensions in space or more, after samples and channels, have amplitudes that fall as 1/f there;
    others are white. Where numbers are whole they are zeros and ones.

    Args:
        dag: the graph.
        samples: how many at least.
        batch_size: of each batch, where that of the graph is free.
        seed: of the numbers; other seeds give others.
    """
    found: list[NoiseBatch] = []
    generator = torch.Generator().manual_seed(seed)
    while sum(batch.samples for batch in found) < samples:
        drawn = int(torch.randint(2**62, (), generator=generator))
        args, kwargs = map_leaves(_coloured, random_inputs(dag, drawn, batch=batch_size))
        first = next((tensor for tensor in leaves_of(Tensor, [args, kwargs]) if tensor.dim()), None)
        found.append(NoiseBatch(args, kwargs, 1 if first is None else max(len(first), 1)))
    return found


def _coloured(value: Any) -> Any:
    """White noise with amplitudes that fall as 1/f in space, of variance 1; anything else as it is.

    The lowest frequency is that of half a wave; a constant has the amplitude of that.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 4 or not value.numel():
        return value
    space = tuple(range(2, value.dim()))
    squares = torch.zeros(())
    for dim in space:
        length = value.shape[dim]
        along = torch.fft.rfftfreq(length) if dim == space[-1] else torch.fft.fftfreq(length)
        squares = squares[..., None] + along.square()
    amplitudes = squares.sqrt().clamp(min=1 / max(value.shape[2:])).reciprocal().to(value.device)
    spectrum = torch.fft.rfftn(value.float(), dim=space) * amplitudes
    noise = torch.fft.irfftn(spectrum, s=value.shape[2:], dim=space)
    return (noise / noise.square().mean().sqrt().clamp(min=_EPSILON)).to(value.dtype)


@contextmanager
def fitted_to_noise(dag: DagModule, batches: Sequence[NoiseBatch]) -> Iterator[None]:
    """While active, the running statistics of batch norms are those of noise; afterwards they are as before."""
    with unchanged_buffers(dag):
        _fit(dag, batches)
        yield


def refusal(dag: DagModule) -> str:
    """Why a graph cannot be scored on noise, in words; empty where it can.

    Inputs may have to be of a kind that noise is not: a mask that is true everywhere, indices that mean something.
    """
    if any(parameter.is_meta for parameter in dag.parameters()):
        return ""  # which is refused whatever units are scored by
    (batch, *_) = noise(dag, samples=1, batch_size=1, seed=0)
    try:
        with evaluating(dag), torch.no_grad():
            output = dag(*batch.args, **batch.kwargs)
    except GraphRunError as error:
        return str(error)
    if not any(tensor.is_floating_point() for tensor in leaves_of(Tensor, opened(output))):
        return "it gives no floating point numbers"
    return ""


@dataclass(frozen=True)
class BatchNormCorrections:
    """What the running statistics of batch norms change by when channels go, as noise tells it.

    Attributes:
        ratios: path of a running variance -> what each is multiplied by, of shape (channels left,).
        shifts: path of a running mean -> the path of its variance, and what is added, in standard deviations.
    """

    ratios: dict[str, Tensor]
    shifts: dict[str, tuple[str, Tensor]]

    @classmethod
    def of(cls, dag: DagModule, removed: Mapping[Orbit, Iterable[int]], *, seed: int = 0) -> BatchNormCorrections:
        """Compare a graph, before and after a removal, on noise. The graph itself stays as it is.

        Args:
            dag: the whole graph.
            removed: what is to go.
            seed: of the noise.
        """
        batches = noise(dag, samples=_SAMPLES, batch_size=_BATCH_SIZE, seed=seed)
        with evaluating(dag), fitted_to_noise(dag, batches):
            smaller = remove_channels(dag, removed)
        paths = {id(buffer): path for path, buffer in smaller.named_buffers()}
        before = {path: buffer.clone() for path, buffer in smaller.named_buffers()}
        with evaluating(smaller):
            pairs = _fit(smaller, batches)
        ratios, shifts = {}, {}
        for mean, var in pairs:
            path = paths[id(var)]
            was = before[path] + _EPSILON
            ratios[path] = (var + _EPSILON) / was
            shifts[paths[id(mean)]] = path, (mean - before[paths[id(mean)]]) / was.sqrt()
        return cls(ratios, shifts)

    @torch.no_grad()
    def apply(self, smaller: DagModule) -> None:
        """Correct the statistics of the graph that is left after the removal."""
        buffers = dict(smaller.named_buffers())
        for mean, (var, shift) in self.shifts.items():
            buffers[mean].add_(shift * (buffers[var] + _EPSILON).sqrt())
        for var, ratio in self.ratios.items():
            buffers[var].mul_(ratio)


@torch.no_grad()
def _fit(dag: DagModule, batches: Sequence[NoiseBatch]) -> list[tuple[Tensor, Tensor]]:
    """Make the running statistics those of noise; gives them, each mean with its variance."""
    statistics = BatchStatistics()
    for batch in batches:
        with statistics:
            dag(*batch.args, **batch.kwargs)
    statistics.write()
    return [(moments.mean, moments.var) for moments in statistics.moments.values()]
