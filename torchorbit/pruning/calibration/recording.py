"""What is seen at gates, and of parameters, put together to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchorbit.errors import CalibrationError
from torchorbit.orbits.orbit import Orbits
from torchorbit.pruning.calibration.gated import GatedModel, GateModule
from torchorbit.pruning.criteria.base import ActivationCriterion, Criterion, GradientCriterion
from torchorbit.pruning.describing import describe
from torchorbit.pruning.scores import Scores


class _Watch(torch.autograd.Function):
    """Passes a value on, and hands it with its gradient to a function in every backward.

    ``anchor`` requires a gradient, so that there is one for a value that does not require any itself.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, anchor: Tensor, copied: bool, seen: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.seen = seen
        ctx.save_for_backward(value)  # so that a value that was written into since is noticed
        return value.clone() if copied else value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        (value,) = ctx.saved_tensors
        ctx.seen(value, gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None, None


class Tally:
    """The sums of a criterion over samples.

    Attributes:
        total: for every unit.
        samples: how many.
    """

    def __init__(self, units: int):
        self.total = np.zeros(units)
        self.samples = 0

    def add(self, values: Tensor, samples: int) -> None:
        """Add what a batch gave, as (rows, units): rows are samples, or stand for all of them alike."""
        rows = values.detach().cpu().double()
        self.total += (rows.sum(0) * (samples / len(rows))).numpy()
        self.samples += samples


class GateRecorder:
    """Runs a graph with gates, and puts together what criteria see there.

    Args:
        gated: the graph.
        criteria: those that look at activations or gradients, by what they are known as.

    Attributes:
        needs_gradients: whether any criterion does.
    """

    def __init__(self, gated: GatedModel, criteria: Mapping[Any, Criterion]):
        self.gated = gated
        self.numbering = gated.numbering
        self.orbits: Orbits = gated.orbits
        self.criteria = dict(criteria)
        self.tallies = {key: Tally(self.numbering.count) for key in criteria}
        looking = {key: c for key, c in criteria.items() if isinstance(c, ActivationCriterion)}
        self.at_forward = {key: c for key, c in looking.items() if not c.gradients}
        self.at_backward = {key: c for key, c in looking.items() if c.gradients}
        self.of_weights = {key: c for key, c in criteria.items() if isinstance(c, GradientCriterion)}
        self.needs_gradients = bool(self.at_backward or self.of_weights)
        self._open: list[Run] = []
        self._cuts: dict[str, list[tuple[int, Tensor]]] = self._cuts_of_weights() if self.of_weights else {}

    def _cuts_of_weights(self) -> dict[str, list[tuple[int, Tensor]]]:
        """Path of a parameter -> the dimensions along which units own slices of it, and their units."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for part in self.orbits.parts:
            if part.path not in self.orbits.trainable:
                continue
            for reading in range(len(self.orbits.readings)):
                units = self.numbering.of_part(reading, part)
                if (units >= 0).any():
                    found.setdefault(part.path, []).append((part.axis, torch.from_numpy(units)))
        return found

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], samples: int, gradient_scale: float
    ) -> tuple[Any, Run]:
        """Run the model on a batch.

        Args:
            args: positional inputs.
            kwargs: keyword inputs.
            samples: how many there are in the batch.
            gradient_scale: makes the gradient of the mean loss of those that come in backward.

        Returns:
            The output, and what collects the statistics of this run.
        """
        self.settle(finished=False)
        run = Run(self, samples, gradient_scale)
        weights = None
        if self._cuts and torch.is_grad_enabled():
            weights = {path: run.watched(path) for path in self._cuts}
        output = self.gated.run(run, partial(self.gated.whole, *args, weights=weights, **kwargs))
        run.settle(self.at_forward)
        if self.needs_gradients:
            self._open.append(run)
        return output, run

    def settle(self, *, finished: bool = True) -> None:
        """Take the scores of all runs whose backward was run; when ``finished``, forget the others."""
        left = []
        for run in self._open:
            if run.touched:
                run.settle(self.at_backward)
                run.settle_weights()
                run.settled = True
            elif not finished:
                left.append(run)
        self._open = left

    def scores(self, key: Any) -> Scores:
        """The mean over all samples.

        Raises:
            CalibrationError: there were no samples, or no gradients; or something is not finite.
        """
        tally, criterion = self.tallies[key], self.criteria[key]
        if not tally.samples:
            missing = (
                "no backward was run" if self.needs_gradients and key not in self.at_forward else "nothing was run"
            )
            raise CalibrationError(f"{criterion}: there are no scores, for {missing} through the model")
        if not np.isfinite(tally.total).all():
            raise CalibrationError(
                f"{criterion}: activations or gradients are not finite; look at the data and the loss, and with "
                "float16 take bfloat16 instead"
            )
        values = {orbit: tally.total[self.numbering.slice_of(orbit)] / tally.samples for orbit in self.orbits}
        return Scores(
            self.orbits,
            values,
            criterion=describe(criterion),
            samples=tally.samples,
            comparable=criterion.comparable,
        )


class Run:
    """Collects the statistics of one forward, and of the backwards through it."""

    def __init__(self, recorder: GateRecorder, samples: int, gradient_scale: float):
        self.recorder = recorder
        self.samples = samples
        self.gradient_scale = gradient_scale
        self.touched = False
        self.settled = False
        self.sums: dict[Any, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.weights: dict[Any, dict[str, Tensor]] = {}
        self._anchors: dict[torch.device, Tensor] = {}

    @property
    def anchors(self) -> list[Tensor]:
        """A backward to these passes by all gates."""
        return list(self._anchors.values())

    def _anchor(self, device: torch.device) -> Tensor:
        if device not in self._anchors:
            self._anchors[device] = torch.zeros((), device=device, requires_grad=True)
        return self._anchors[device]

    # -- gates

    def visit(self, gate: GateModule, value: Tensor) -> Tensor:
        """Look at a value now, and at its gradient in backward."""
        recorder = self.recorder
        if recorder.at_forward:
            with torch.no_grad():
                self._add(gate, value.detach(), None)
        if not recorder.at_backward or not torch.is_grad_enabled():
            return value
        return _watch(
            value, self._anchor(value.device), gate.gate.slots is None, lambda v, g: self.gradient_at(gate, v, g)
        )

    def gradient_at(self, gate: GateModule, value: Tensor, gradient: Tensor) -> None:
        """Note the gradient by what went through a gate."""
        self._touch()
        self._add(gate, value, gradient)

    def _touch(self) -> None:
        if self.settled:
            raise CalibrationError(
                "a backward runs through a forward whose scores were taken already; run all backwards of a forward "
                "before the next forward"
            )
        self.touched = True

    def _add(self, gate: GateModule, value: Tensor, gradient: Tensor | None) -> None:
        criteria = self.recorder.at_forward if gradient is None else self.recorder.at_backward
        value = _precise(value)
        gradient = None if gradient is None else _precise(gradient) * self.gradient_scale
        for number in range(len(gate.gate.views)):
            activations, index = gate.arranged(value, number, self.samples)
            gradients = None if gradient is None else gate.arranged(gradient, number, self.samples)[0]
            apart = len(activations) == self.samples
            if gradients is not None and apart:
                gradients = gradients * self.samples  # of each sample's own loss
            for key, criterion in criteria.items():
                found = criterion.statistics(activations, gradients)
                if gradients is None and gate.per_sample and not apart:
                    found = found / self.samples  # they are of all samples
                self._sum(key, found, index)

    def _sum(self, key: Any, found: Tensor, index: Tensor) -> None:
        sums = self.sums.get(key)
        if sums is None:
            dtype = torch.float32 if found.device.type == "mps" else torch.float64
            shape = len(found), self.samples, self.recorder.numbering.count + 1
            sums = self.sums[key] = torch.zeros(shape, dtype=dtype, device=found.device)
        found = found.to(sums.device, sums.dtype).expand(-1, self.samples, -1)
        # What is of no unit has index -1: the last place, which nobody reads.
        sums.index_add_(2, torch.where(index < 0, sums.shape[2] - 1, index).to(sums.device), found)

    def settle(self, criteria: Mapping[Any, ActivationCriterion]) -> None:
        """Make scores of the statistics."""
        for key, criterion in criteria.items():
            sums = self.sums.pop(key, None)
            rows = torch.zeros(1, self.recorder.numbering.count)
            if sums is not None:
                rows = criterion.per_sample(sums[..., :-1])
            self.recorder.tallies[key].add(rows, self.samples)

    # -- parameters

    def watched(self, path: str) -> Tensor:
        """A parameter that is looked at in backward."""
        weight = self.recorder.orbits.model.tensor_at(path)
        return _watch(weight, self._anchor(weight.device), False, lambda v, g: self.gradient_of(path, v, g))

    def gradient_of(self, path: str, weight: Tensor, gradient: Tensor) -> None:
        """Note the gradient by a parameter. It is looked at now: an optimizer may change the parameter after."""
        self._touch()
        gradient = _precise(gradient) * self.gradient_scale
        total = self.gradients[path] = gradient + self.gradients[path] if path in self.gradients else gradient
        weight = _precise(weight)
        count = self.recorder.numbering.count
        for key, criterion in self.recorder.of_weights.items():
            sums = torch.zeros(count + 1, dtype=torch.float64)
            for axis, units in self.recorder._cuts[path]:
                first = [tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1) for tensor in (weight, total)]
                found = criterion.statistics(*first).cpu().double()
                sums.index_add_(0, torch.where(units < 0, count, units), found)
            self.weights.setdefault(key, {})[path] = sums[:-1]

    def settle_weights(self) -> None:
        """Make scores of what was seen of parameters."""
        for key, criterion in self.recorder.of_weights.items():
            sums = torch.zeros(self.recorder.numbering.count, dtype=torch.float64)
            for found in self.weights.get(key, {}).values():
                sums += found
            self.recorder.tallies[key].add(criterion.per_batch(sums)[None], self.samples)


def _watch(value: Tensor, anchor: Tensor, copied: bool, seen: Callable[[Tensor, Tensor], None]) -> Tensor:
    watched: Tensor = _Watch.apply(value, anchor, copied, seen)
    return watched


def _precise(value: Tensor) -> Tensor:
    return value.detach() if value.dtype == torch.float64 else value.detach().float()
