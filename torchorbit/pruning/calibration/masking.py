"""The loss of a model when some of its units are zero wherever they are consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.orbits.selection import Selection
from torchorbit.pruning.calibration.batches import (
    Batch,
    Loss,
    autocasting,
    batches_of,
    default_sample_to_model_inputs,
    default_sample_to_n_samples,
    require_loss,
    require_repeatable,
    unchanged_buffers,
)
from torchorbit.pruning.calibration.calibrator import LossReduction
from torchorbit.pruning.calibration.gated import GatedModel, GateModule
from torchorbit.pruning.criteria.base import Losses
from torchorbit.pruning.criteria.slices import require_weights


class UnitMasks:
    """Puts zeros where units are removed.

    Args:
        gated: the graph.
        removed: orbit -> positions of its units.
    """

    def __init__(self, gated: GatedModel, removed: Mapping[Orbit, Any]):
        self.kept = torch.ones(gated.numbering.count + 1, dtype=torch.bool)  # the last stands for what is of no unit
        self.views: dict[int, set[int]] = {}
        for orbit, positions in removed.items():
            units = gated.numbering.starts[orbit] + np.asarray(positions, np.int64)
            self.kept[torch.from_numpy(units)] = False
            for gate, number in gated.views_of(orbit) if len(units) else ():
                self.views.setdefault(id(gate), set()).add(number)

    def visit(self, gate: GateModule, value: Tensor) -> Tensor:
        """Multiply by the masks of all orbits that the value has units of."""
        for number in sorted(self.views.get(id(gate), ())):
            axis = gate.gate.views[number].axis
            if self.kept.device != value.device:
                self.kept = self.kept.to(value.device)
            mask = self.kept[gate.index(number, value.shape[axis], value.device)]
            value = value * mask.to(value.dtype).reshape([-1 if n == axis else 1 for n in range(value.dim())])
        return value


class MaskedLoss:
    """The mean loss over data, as a function of the units that are zero wherever they are consumed.

    Nothing is rebuilt: every call runs the graph with masks in it. For a network without normalization over channels
    this is the loss of what `torchorbit.remove_channels` would make; layer normalization and its like see zeros here,
    and fewer channels there. The model runs in the mode that it is in; nothing of it changes.

    Args:
        orbits: what `torchorbit.find_orbits` found.
        loader: gives batches.
        loss: gives the loss of an output and a batch: a scalar, or one number for each sample.
        max_batches: how many batches to take; None for all.
        cache: keep the batches, on the model's device; otherwise the loader is gone through in every call, and should
            give the same ones each time.
        sample_to_model_inputs: makes positional and keyword inputs of a batch.
        sample_to_n_samples: gives the number of samples of a batch.
        device: where batches go; by default where the model is.
        autocast: run in this dtype where mixed precision does.
        loss_reduction: what a scalar loss is over the samples of a batch.

    Raises:
        CalibrationError: the loader gives nothing; later: a loss is not what it should be, or not finite.
        ArgumentTypeError: ``loss`` is no function; or the loader gives its batches only once, and they are not kept.
        ArgumentError: the graph has no weights.
    """

    def __init__(
        self,
        orbits: Orbits,
        loader: Iterable[Any],
        loss: Loss,
        *,
        max_batches: int | None = None,
        cache: bool = True,
        sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = (
            default_sample_to_model_inputs
        ),
        sample_to_n_samples: Callable[[Any], int] = default_sample_to_n_samples,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
        loss_reduction: LossReduction = "mean",
    ):
        require_weights(orbits)
        require_loss(loss)
        if not cache:
            require_repeatable(loader)
        self.orbits = orbits
        self._gated = GatedModel(orbits)
        self._loss = loss
        self._autocast = autocast
        self._reduction: LossReduction = loss_reduction

        def batches() -> Iterable[Batch]:
            return batches_of(
                loader,
                orbits.model.dag,
                sample_to_model_inputs,
                sample_to_n_samples,
                max_batches=max_batches,
                device=device,
            )

        kept = list(batches()) if cache else None
        self._batches = batches if kept is None else lambda: kept

    @torch.no_grad()
    def __call__(self, removed: Mapping[Orbit, Iterable[int]]) -> float:
        """The mean loss over all samples.

        Args:
            removed: orbit -> positions of the units that are zero; all of an orbit may be.

        Raises:
            CalibrationError: a loss is not what it should be, or not finite.
            ArgumentError: an orbit is of another graph, or a position is out of range.
        """
        dag = self.orbits.model.dag
        selection = Selection(removed, dag, allow_empty=True)
        if selection.orbits is not None and selection.orbits is not self.orbits:
            raise ArgumentError("the units are of another call of find_orbits; use those that this loss was made with")
        masks = UnitMasks(self._gated, selection.removed)
        total, samples = 0.0, 0
        with unchanged_buffers(dag):
            for batch in self._batches():
                with autocasting(dag, self._autocast):
                    output = self._gated.run(masks, partial(self._gated.whole, *batch.args, **batch.kwargs))
                    losses = batch.losses(self._loss, output, self._reduction)
                total += losses.cpu().double().mean().item() * batch.samples
                samples += batch.samples
        return total / samples


class OrbitLosses(Losses):
    """Losses on one batch without units of one orbit. What comes before its first gate is run once.

    Args:
        gated: the graph.
        orbit: the one.
        batch: the data.
        loss: of an output and a batch.
        reduction: what a scalar loss is over the samples.
        autocast: run in this dtype where mixed precision does.
        seed: tells this batch from others.
    """

    def __init__(
        self,
        gated: GatedModel,
        orbit: Orbit,
        batch: Batch,
        loss: Loss,
        reduction: LossReduction,
        autocast: torch.dtype | None,
        seed: int,
    ):
        self.width = orbit.width
        self.seed = (seed, orbit.index)
        self._gated, self._orbit, self._batch, self._loss = gated, orbit, batch, loss
        self._reduction: LossReduction = reduction
        self._autocast = autocast
        parts = gated.apart(orbit)
        self._after = None
        self._values: dict[str, Any] = {}
        if parts is not None:
            before, self._after = parts
            with torch.no_grad(), autocasting(gated.dag, autocast):
                self._values = gated.run(None, partial(before, *batch.args, **batch.kwargs))

    @torch.no_grad()
    def without(self, removed: Tensor) -> Tensor:
        """The loss of every sample, or of the batch, when some units are zero."""
        gated, batch = self._gated, self._batch
        with autocasting(gated.dag, self._autocast):
            if self._after is None:
                output = gated.whole(*batch.args, **batch.kwargs)
            else:
                after, masks = self._after, UnitMasks(gated, {self._orbit: removed.nonzero()[:, 0].numpy()})
                output = gated.run(masks, partial(after, **self._values))
            return batch.losses(self._loss, output, self._reduction).cpu().double().reshape(-1)
