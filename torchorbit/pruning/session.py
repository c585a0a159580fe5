"""One run of `torchorbit.prune`: score, choose and remove, as often as there are steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchorbit.comparing import same_modes
from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import DagModule
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit, Orbits
from torchorbit.pruning.batch_norm import finetune_batch_norm
from torchorbit.pruning.calibration import MaskedLoss, calibrate
from torchorbit.pruning.constraints import Constraint, Whole
from torchorbit.pruning.criteria import Criterion, Place, WeightCriterion
from torchorbit.pruning.describing import describe
from torchorbit.pruning.noise import BatchNormCorrections
from torchorbit.pruning.reconstruction.reconstructing import Method, adopt, reconstruct
from torchorbit.pruning.schedule import Original, Schedule
from torchorbit.pruning.scores import Scores
from torchorbit.pruning.selectors import Removed, Task
from torchorbit.removal.cutting import remove_channels
from torchorbit.removal.history import History, Pruning, Reconstruction


class Data:
    """What can be found out from data. The arguments are those of `torchorbit.prune`."""

    def __init__(
        self,
        loader: Iterable[Any],
        loss: Callable[[Any, Any], Tensor] | None,
        *,
        max_batches: int | None,
        reconstruct_batches: int | None,
        epochs: int,
        sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
        sample_to_n_samples: Callable[[Any], int],
        place: Place,
        device: torch.device | str | None,
        autocast: torch.dtype | None,
        progress: bool,
    ):
        self._loader = _Noticed(loader)
        self._loss = loss
        self._reconstruct_batches = reconstruct_batches
        self._batches: dict[str, Any] = {
            "max_batches": max_batches,
            "sample_to_model_inputs": sample_to_model_inputs,
            "device": device,
            "autocast": autocast,
        }
        self._counted: dict[str, Any] = {**self._batches, "sample_to_n_samples": sample_to_n_samples}
        self._calibration: dict[str, Any] = {"epochs": epochs, "place": place, "progress": progress}
        self._progress = progress

    @property
    def looked_at(self) -> bool:
        """Whether anything was found out yet."""
        return self._loader.looked_at

    def scores(self, orbits: Orbits, criterion: Criterion) -> Scores:
        """The scores of all units by a criterion."""
        options = {**self._calibration, **self._counted}
        return calibrate(orbits.model.dag, self._loader, self._loss, [criterion], orbits=orbits, **options)[criterion]

    def loss_without(self, orbits: Orbits) -> Callable[[Removed], float] | None:
        """The loss without some units; the batches are looked at when a selector asks for the first time."""
        loss = self._loss
        if loss is None:
            return None
        made: list[MaskedLoss] = []

        def ask(removed: Removed) -> float:
            if not made:
                made.append(MaskedLoss(orbits, self._loader, loss, **self._counted))
            return made[0](removed)

        return ask

    def reconstruct(
        self, dag: DagModule, removed: Mapping[Orbit, list[int]], method: Method, **options: Any
    ) -> DagModule:
        """A smaller graph whose layers make up for what is gone; the whole one is as it was."""
        counted = {**self._counted, "max_batches": self._reconstruct_batches or self._counted["max_batches"]}
        return reconstruct(dag, removed, self._loader, method=method, progress=self._progress, **counted, **options)

    def finetune_batch_norm(self, dag: DagModule) -> None:
        """Re-estimate the running statistics of batch norms."""
        finetune_batch_norm(dag, self._loader, progress=self._progress, **self._batches)


class _Noticed(Iterable[Any]):
    """Gives what a loader gives, and notes whether anybody asked."""

    def __init__(self, loader: Iterable[Any]):
        self.loader = loader
        self.looked_at = False

    def __iter__(self) -> Iterator[Any]:
        self.looked_at = True
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


class Session:
    """Comes down to a target in steps, in each of which what is left is scored anew.

    Args:
        scored: what units are scored by, or their scores.
        schedule: what chooses in which step, and what for.
        constraint: which widths orbits of the whole model may have.
        tokens: whether learned tokens may go as well.
        streams: whether channels of residual streams may.
        frozen: paths of what must stay as it is.
        data: None where there is none.
        reconstruct: how what consumed the channels that are gone makes up for them; None where it does not.
        finetune_bn: re-estimate the running statistics of batch norms after each step, or correct them where there is
            no data.
        between_steps: called after each step but the last.
        seed: of whatever is drawn.

    Raises:
        ArgumentError: there are scores, and something is frozen that they do not know of.
    """

    def __init__(
        self,
        scored: Criterion | Scores,
        schedule: Schedule,
        constraint: Constraint,
        *,
        tokens: bool,
        streams: bool,
        frozen: tuple[nn.Module | str, ...],
        data: Data | None,
        reconstruct: Method | None,
        finetune_bn: bool,
        between_steps: Callable[[DagModule, int], object] | None,
        seed: int,
    ):
        if isinstance(scored, Scores) and frozen:
            raise ArgumentError(
                "the scores are of orbits that were found before; give frozen to calibrate or to find_orbits"
            )
        self._scored = scored
        self._schedule = schedule
        self._constraint = constraint
        self._tokens = tokens
        self._streams = streams
        self._frozen = frozen
        self._data = data
        self._reconstruct = reconstruct
        self._reconstruction: Reconstruction | None = None
        self._finetune_bn = finetune_bn
        self._between_steps = between_steps
        self._seed = seed
        self._original: Original | None = None

    def run(self, dag: DagModule, *, inplace: bool, optimizer: Optimizer | None, adjust_dropout: bool) -> DagModule:
        """Take all steps.

        Args:
            dag: the whole graph.
            inplace: change it itself.
            optimizer: its state is cut along.
            adjust_dropout: make dropout less probable where channels go.

        Returns:
            The smaller graph, with a history that tells what was done.
        """
        whole, earlier = dag, dag.history
        removed_any = False
        for step in self._schedule:
            removed = self._chosen(dag, step)
            units = sum(map(len, removed.values()))
            self._schedule.record_removed(units)
            removed_any = removed_any or units > 0
            corrections = BatchNormCorrections.of(dag, removed) if self._finetune_bn and self._data is None else None
            dag = self._without(dag, removed, inplace or dag is not whole, optimizer, adjust_dropout)
            if corrections is not None:
                corrections.apply(dag)
            elif self._finetune_bn and self._data is not None:
                self._data.finetune_batch_norm(dag)
            if self._between_steps is not None and step < self._schedule.steps:
                with same_modes(dag):
                    self._between_steps(dag, step)
        if removed_any:
            before: tuple[Pruning, ...] = earlier.prunings if earlier is not None else ()
            dag.history = History(dag.history.original, (*before, self._record()))
        return dag

    def _without(
        self,
        dag: DagModule,
        removed: Mapping[Orbit, list[int]],
        inplace: bool,
        optimizer: Optimizer | None,
        adjust_dropout: bool,
    ) -> DagModule:
        """A graph without some units, which the rest makes up for where that is asked for."""
        fitted: DagModule | None = None
        if self._reconstruct is not None and self._data is not None and any(map(len, removed.values())):
            fitted = self._data.reconstruct(
                dag, removed, self._reconstruct, adjust_dropout=adjust_dropout, seed=self._seed
            )
            self._reconstruction = fitted.history.prunings[-1].reconstruction
            if not inplace and optimizer is None:
                return fitted
        smaller = remove_channels(dag, removed, inplace=inplace, optimizer=optimizer, adjust_dropout=adjust_dropout)
        if fitted is not None:
            adopt(fitted, smaller, optimizer)
        return smaller

    def _chosen(self, dag: DagModule, step: int) -> dict[Any, list[int]]:
        """The units that go in a step, from 1 on."""
        orbits = self._scored.orbits if isinstance(self._scored, Scores) else find_orbits(dag, frozen=self._frozen)
        self._original = self._original or Original(orbits)
        constraint = self._original.relative(self._constraint)
        if not self._tokens:
            constraint = Whole(constraint, lambda orbit: orbit.kind == "tokens")
        if not self._streams:
            constraint = Whole(constraint, lambda orbit: orbit.role == "stream")
        task = partial(
            Task,
            self._scores(dag, orbits),
            constraint=constraint,
            loss=None if self._data is None else self._data.loss_without(orbits),
            seed=self._seed,
        )
        if step == 1:
            self._schedule.begin(task(target=self._schedule.overall_target))
        selector = self._schedule.selector(step, self._original)
        chosen = selector.select(task(target=self._schedule.target(step)))
        return {orbit: list(units) for orbit, units in chosen.items()}

    def _scores(self, dag: DagModule, orbits: Orbits) -> Scores:
        if isinstance(self._scored, Scores):
            if orbits.model.dag is not dag:
                raise ArgumentError("the scores are of another graph; give the one that they were made with")
            return self._scored
        if isinstance(self._scored, WeightCriterion):
            return self._scored.scores(orbits)
        assert self._data is not None
        return self._data.scores(orbits, self._scored)

    def _record(self) -> Pruning:
        """What was done, for the graph's history."""
        schedule, scored = self._schedule, self._scored
        return Pruning(
            criterion=scored.description if isinstance(scored, Scores) else describe(scored),
            selector=describe(schedule.overall_selector),
            constraint=describe(self._constraint),
            target="" if schedule.overall_target is None else str(schedule.overall_target),
            steps=schedule.steps,
            finetune_bn=self._finetune_bn,
            seed=self._seed,
            data=self._data is not None and self._data.looked_at,
            reconstruction=self._reconstruction,
        )
