"""Scores from a loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from torchorbit.errors import ArgumentError, CalibrationError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.calibration.batches import (
    Batch,
    Loss,
    autocasting,
    batches_of,
    default_sample_to_model_inputs,
    default_sample_to_n_samples,
    require_loss,
    unchanged_buffers,
)
from torchorbit.pruning.calibration.calibrator import Criteria, LossReduction, resolved, resolved_orbits
from torchorbit.pruning.calibration.gated import GatedModel
from torchorbit.pruning.calibration.masking import OrbitLosses
from torchorbit.pruning.calibration.recording import GateRecorder, Tally
from torchorbit.pruning.criteria.base import LossCriterion, Place, WeightCriterion
from torchorbit.pruning.scores import Scores

# Gradients of half precision are lost below 6e-8. Those by activations are of one sample's loss, far below 64.
_HALF_PRECISION_SCALE = 1024.0


def calibrate(
    dag: DagModule,
    loader: Iterable[Any],
    loss: Loss | None,
    criteria: Criteria,
    *,
    orbits: Orbits | None = None,
    max_batches: int | None = None,
    epochs: int = 1,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = default_sample_to_model_inputs,
    sample_to_n_samples: Callable[[Any], int] = default_sample_to_n_samples,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    place: Place = "consumed",
    progress: bool = False,
    frozen: Iterable[nn.Module | str] | nn.Module | str = (),
    loss_reduction: LossReduction = "mean",
) -> dict[Any, Scores]:
    """Score every unit of every orbit from data.

    One pass over the loader serves all criteria. The model runs in the mode that it is in: put it in evaluation first,
    unless it is used in training mode. Nothing of it changes, neither parameters and their gradients, nor buffers.

    Args:
        dag: an outermost graph.
        loader: gives batches, ``(images, labels)`` say.
        loss: gives the loss of the model's output and a batch: a scalar, or one number for each sample; None where no
            criterion needs one.
        criteria: names in `torchorbit.criteria.CRITERIA`, or criteria.
        orbits: what `torchorbit.find_orbits` found; by default it is asked.
        max_batches: how many batches to take at most, over all epochs; None for all.
        epochs: how often to go through the loader.
        sample_to_model_inputs: makes positional and keyword inputs of a batch; by default its first item is the only
            input.
        sample_to_n_samples: gives the number of samples of a batch; by default the length of the first tensor in it.
        device: where batches go; by default where the model is. The model itself is not moved.
        autocast: run forward in this dtype where mixed precision does; statistics are taken in full precision.
        place: where activations are looked at, as `Calibrator` takes it.
        progress: show a progress bar.
        frozen: as `torchorbit.find_orbits` takes it, where no ``orbits`` are given.
        loss_reduction: what a scalar loss is over the samples of a batch: their ``"mean"`` or their ``"sum"``.

    Returns:
        Name or criterion, as it was given -> its scores: means over samples, each by its own loss where samples can be
        told apart.

    Raises:
        CalibrationError: the loader gives nothing; the loss is no tensor, of another shape, not finite, or does not
            depend on the model; inputs are not what they should be; or scores are not finite.
        ArgumentTypeError: ``dag`` is no graph, something is no criterion, ``loader`` is used up by the first of
            several epochs, or an argument is of the wrong type.
        ArgumentError: an argument is out of range, a criterion needs a loss and there is none, or the graph has no
            weights.
    """
    found = resolved(criteria)
    orbits = resolved_orbits(dag, orbits, frozen)
    if loss_reduction not in ("mean", "sum"):
        raise ArgumentError(f"loss_reduction={loss_reduction!r}, expected 'mean' or 'sum'")
    results = {key: c.scores(orbits) for key, c in found.items() if isinstance(c, WeightCriterion)}
    asking = {key: c for key, c in found.items() if isinstance(c, LossCriterion)}
    looking = {key: c for key, c in found.items() if key not in results and key not in asking}
    if not asking and not looking:
        return results
    if loss is not None:
        require_loss(loss)
    recorder = GateRecorder(GatedModel(orbits, place), looking)
    if loss is None and (asking or recorder.needs_gradients):
        needing = [str(c) for c in found.values() if not isinstance(c, WeightCriterion)]
        raise ArgumentError(f"loss is None, and one of {', '.join(needing)} needs a loss")
    recorder.tallies |= {key: Tally(recorder.numbering.count) for key in asking}
    recorder.criteria |= asking
    # Units are switched off where they are consumed, wherever activations are looked at.
    masked = None if not asking else recorder.gated if place == "consumed" else GatedModel(orbits)
    batches = batches_of(
        loader, dag, sample_to_model_inputs, sample_to_n_samples, max_batches=max_batches, epochs=epochs, device=device
    )
    with unchanged_buffers(dag), tqdm(total=_length(loader, max_batches, epochs), disable=not progress) as bar:
        bar.set_description("calibration")
        for number, batch in enumerate(batches):
            if looking:
                _look(recorder, batch, loss, loss_reduction, autocast)
            if masked is not None and loss is not None:
                _ask(recorder, masked, asking, batch, loss, loss_reduction, autocast, number)
            bar.update()
    recorder.settle()
    return {key: results[key] if key in results else recorder.scores(key) for key in found}


def _look(
    recorder: GateRecorder, batch: Batch, loss: Loss | None, reduction: LossReduction, autocast: torch.dtype | None
) -> None:
    """Run a batch forward, and backward where a criterion needs gradients."""
    scale = _HALF_PRECISION_SCALE if autocast == torch.float16 else 1.0
    with torch.set_grad_enabled(recorder.needs_gradients):
        with autocasting(recorder.gated.dag, autocast):
            output, run = recorder.forward(batch.args, batch.kwargs, batch.samples, 1 / (scale * batch.samples))
            if loss is None or not recorder.needs_gradients:
                return
            value = batch.losses(loss, output, reduction)
        if value.requires_grad and run.anchors:
            # Only what leads to a gate is computed, and no gradient is left anywhere.
            total = value.mean() * (scale * batch.samples)
            torch.autograd.grad(total, run.anchors, allow_unused=True)
        if not run.touched:
            raise CalibrationError(
                "the loss does not depend on the model: no gradient came back to any channel; compute it from the "
                "output that it is given, without detaching it"
            )


def _ask(
    recorder: GateRecorder,
    gated: GatedModel,
    criteria: Mapping[Any, LossCriterion],
    batch: Batch,
    loss: Loss,
    reduction: LossReduction,
    autocast: torch.dtype | None,
    number: int,
) -> None:
    """Let criteria ask for losses without units, one orbit after the other."""
    count = recorder.numbering.count
    values = {key: torch.zeros(batch.samples, count, dtype=torch.float64) for key in criteria}
    for orbit in recorder.orbits:
        losses = OrbitLosses(gated, orbit, batch, loss, reduction, autocast, number)
        for key, criterion in criteria.items():
            values[key][:, recorder.numbering.slice_of(orbit)] = criterion.per_sample(losses)
    for key in criteria:
        recorder.tallies[key].add(values[key], batch.samples)


def _length(loader: Iterable[Any], max_batches: int | None, epochs: int) -> int | None:
    """How many batches there will be, where that is known."""
    try:
        length = len(loader) * epochs  # type: ignore[arg-type]
    except TypeError:
        return max_batches
    return length if max_batches is None else min(max_batches, length)
