"""Prune a model: score its units, choose among them, remove, as often as asked for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchorbit.conversion import convert
from torchorbit.conversion.converting import entered_at
from torchorbit.cost.base import PredictedCost
from torchorbit.cost.targets import Target
from torchorbit.errors import ArgumentError, ArgumentTypeError, CalibrationError
from torchorbit.graph.dag import DagModule
from torchorbit.pruning.calibration import default_sample_to_model_inputs, default_sample_to_n_samples
from torchorbit.pruning.calibration.batches import batches_of, require_repeatable
from torchorbit.pruning.constraints import Bounds, Constraint
from torchorbit.pruning.criteria import CRITERIA, Criterion, FisherNoise, Magnitude, Place, WeightCriterion
from torchorbit.pruning.freezing import frozen_paths
from torchorbit.pruning.naming import made_by_name
from torchorbit.pruning.noise import refusal
from torchorbit.pruning.reconstruction.reconstructing import Method, require_method
from torchorbit.pruning.schedule import Schedule
from torchorbit.pruning.scores import Scores
from torchorbit.pruning.selectors import SELECTORS, Global, Selector, Uniform
from torchorbit.pruning.session import Data, Session
from torchorbit.removal.optimizers import check


def prune(
    model: nn.Module,
    example_inputs: Any = None,
    loader: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    target: Target | None = None,
    ratio: float | None = None,
    flops: float | None = None,
    parameters: float | None = None,
    criterion: Criterion | str | Scores | None = None,
    selector: Selector | str | None = None,
    constraint: Constraint | None = None,
    round_to: int = 1,
    tokens: bool = False,
    streams: bool = True,
    frozen: Iterable[nn.Module | str] | nn.Module | str = (),
    steps: int = 1,
    between_steps: Callable[[DagModule, int], object] | None = None,
    reconstruct: bool | Method = False,
    reconstruct_batches: int | None = None,
    finetune_bn: bool = False,
    inplace: bool = False,
    optimizer: Optimizer | None = None,
    adjust_dropout: bool = False,
    entry_point: str = "forward",
    max_batches: int | None = None,
    calibration_epochs: int = 1,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]] = default_sample_to_model_inputs,
    sample_to_n_samples: Callable[[Any], int] = default_sample_to_n_samples,
    place: Place = "consumed",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
    seed: int = 0,
) -> DagModule:
    """Prune a model: the units that it needs least go, until it costs no more than it may.

    By default those units go without which the outputs change least for what they cost, as noise tells it. With data,
    say::

        torchorbit.prune(model, images, loader, lambda output, sample: F.cross_entropy(output, sample[1]),
                         flops=0.5, criterion="taylor", selector="knapsack")

    Args:
        model: a `DagModule`, or any module, which is then converted. It should be in the mode in which it is to be
            calibrated, evaluation mostly.
        example_inputs: what to convert it with, as for `torchorbit.convert`; by default what the first batch of
            ``loader`` has for the model.
        loader: batches of data, for criteria and selectors that look at some and for ``finetune_bn``. It is gone
            through several times: a `torch.utils.data.DataLoader` or a list, but no iterator.
        loss: gives the loss of a batch from the model's output and what the loader gave: the mean over its samples, or
            one number for each of them.
        target: what the result may cost, by FLOPs, parameters, or any function of a model.
        ratio: share of the units to remove, of every orbit where the selector is ``"uniform"``, as it is by default
            then, and of all where it is ``"global"``.
        flops: how many FLOPs the result may have: a fraction of the model's where it is below 1, else their number
            (two per multiply-accumulate, one sample of the recorded size). The same as ``Target.flops(flops)``.
        parameters: how many parameters it may have, likewise.
        criterion: what units are scored by: a name in `torchorbit.criteria.CRITERIA`, one of the classes there with
            other options, or scores that were made before by `torchorbit.calibrate`. By default ``"fisher_noise"``;
            where the model does not run on noise, ``"magnitude"``, with a warning.
        selector: how many go where: a name in `torchorbit.selectors.SELECTORS`, or one of the classes there. By default
            it is ``"knapsack"`` for scores that add up, as those of the default criterion do, and a target that can be
            computed, as FLOPs can; and ``"uniform"`` for others, and for latencies that are measured.
        constraint: which widths orbits may have; by default any from 1 on.
        round_to: numbers of channels are multiples of this, where an orbit is wide enough. Whole heads and groups are
            not rounded. The same as ``Bounds(round_to=round_to)``.
        tokens: remove learned tokens as well, registers and queries say, which are orbits of kind ``"tokens"``.
        streams: remove channels of residual streams as well; where it is false, those that are inner to blocks alone
            (`torchorbit.Orbit.role`).
        frozen: what must stay as it is, as for `torchorbit.find_orbits`; modules may be those of ``model``.
        steps: reach the target in so many steps, in each of which the same part of the cost (or of the units) goes; the
            units that are left are scored anew in each.
        between_steps: called after each step but the last with the graph and the number of the step, from 1 on; to
            train it, say; afterwards the graph is again in the mode that it was in. With ``optimizer=`` the optimizer
            has the smaller parameters by then.
        reconstruct: give what consumed the channels that are gone new weights, in closed form, that make up for them on
            the loader's data, as `torchorbit.reconstruct` does; labels are not looked at. ``True`` is ``"layerwise"``.
        reconstruct_batches: how many batches that looks at; by default as many as ``max_batches`` says.
        finetune_bn: re-estimate the running statistics of batch norms on the loader's data after each step. Without a
            loader they are corrected by as much as those of noise change.
        inplace: change the graph itself. The model that it was converted from has the same parameters, and no longer
            runs.
        optimizer: its state is cut along.
        adjust_dropout: make dropout less probable where channels go, as for `torchorbit.remove_channels`.
        entry_point: the method of the model that is converted and pruned, as for `torchorbit.convert`.
        max_batches: how many batches are looked at, by a criterion, a selector or ``finetune_bn``; by default all
            (a criterion all, ``calibration_epochs`` times). A selector that asks for losses keeps them in memory.
        calibration_epochs: how often a criterion goes through the loader.
        sample_to_model_inputs: gives the model's positional and keyword arguments for what the loader gives; by default
            its first item is the only one.
        sample_to_n_samples: gives the number of samples in what the loader gives; by default the length of its first
            tensor.
        place: where criteria look at activations.
        device: where batches go; by default where the parameters are.
        autocast: dtype of mixed precision while criteria look at data; none by default.
        progress: show progress bars.
        seed: of whatever the criterion and the selector draw.

    Returns:
        The smaller graph.

    Raises:
        ArgumentError: nothing says how much is to go, or more than one thing does; a number is out of range; there is
            no criterion or selector of that name; the selector adds scores up, and those of the criterion do not; the
            criterion needs data and there is none; the graph is on the meta device; or ``optimizer`` has none of its
            parameters.
        TargetError: the target cannot be reached, and the message says what can.
        ArgumentTypeError: an argument is of the wrong type, or ``loader`` can be gone through only once.
        ConversionError: the model cannot be converted.
        CalibrationError: the loader gives no batch, or one that is not what it should be; the loss is not finite, or
            does not depend on the model; or the model gives nothing on noise that ``"fisher_noise"`` could score.
    """
    scored = FisherNoise(seed=seed) if criterion is None else criterion
    if not isinstance(scored, (Criterion, Scores)):
        scored = made_by_name("criterion", scored, CRITERIA, seed=seed)
    chosen, aim = _aim(selector, scored, target, ratio=ratio, flops=flops, parameters=parameters)
    method: Method | None = "layerwise" if reconstruct is True else reconstruct or None
    _check(scored, chosen, loader, constraint, round_to, steps, between_steps, method)
    Schedule(chosen, aim, steps)  # refuses what it cannot do before the model is converted
    allowed = constraint or Bounds(round_to=round_to)
    dag = _graph(model, example_inputs, loader, sample_to_model_inputs, entry_point)
    reason = refusal(dag) if criterion is None else ""
    if reason:
        warnings.warn(
            f"units are scored by their weights alone (criterion='magnitude'), as the model cannot be run on noise: "
            f"{reason}",
            stacklevel=2,
        )
        scored = Magnitude()
        chosen, aim = _aim(selector, scored, target, ratio=ratio, flops=flops, parameters=parameters)
        _check(scored, chosen, loader, constraint, round_to, steps, between_steps, method)
    schedule = Schedule(chosen, aim, steps)
    if optimizer is not None:
        check(optimizer, list(dag.parameters()))
    data = None
    if loader is not None:
        data = Data(
            loader,
            loss,
            max_batches=max_batches,
            reconstruct_batches=reconstruct_batches,
            epochs=calibration_epochs,
            sample_to_model_inputs=sample_to_model_inputs,
            sample_to_n_samples=sample_to_n_samples,
            place=place,
            device=device,
            autocast=autocast,
            progress=progress,
        )
    session = Session(
        scored,
        schedule,
        allowed,
        tokens=tokens,
        streams=streams,
        frozen=frozen_paths(dag, frozen),
        data=data,
        reconstruct=method,
        finetune_bn=finetune_bn,
        between_steps=between_steps,
        seed=seed,
    )
    with torch.inference_mode(False):  # what is left is to be trained
        return session.run(dag, inplace=inplace, optimizer=optimizer, adjust_dropout=adjust_dropout)


def _check(
    scored: Criterion | Scores,
    selector: Selector,
    loader: Iterable[Any] | None,
    constraint: Constraint | None,
    round_to: int,
    steps: int,
    between_steps: Any,
    method: Method | None,
) -> None:
    """Refuse arguments that exclude each other, or of which one needs another."""
    if constraint is not None and not isinstance(constraint, Constraint):
        raise ArgumentTypeError(f"constraint={constraint!r}, expected a Constraint, as Bounds(round_to=8)")
    if constraint is not None and round_to != 1:
        raise ArgumentError("give either constraint or round_to; Bounds(round_to=...) is a constraint that rounds")
    if isinstance(scored, Scores) and steps != 1:
        raise ArgumentError(f"the scores are those of the whole model, and steps={steps} score anew: give a criterion")
    if not isinstance(scored, (Scores, WeightCriterion)) and loader is None:
        raise ArgumentError(f"the criterion {scored} looks at data: give a loader, and the loss")
    if method is not None:
        require_method(method, "reconstruct")
        if loader is None:
            raise ArgumentError(f"reconstruct={method!r} needs data, labels or none: give a loader")
    if selector.adds_scores and isinstance(scored, Criterion) and not _add_up(scored):
        data = "'taylor', or without data " if loader is not None else ""
        raise ArgumentError(
            f"the selector {selector} adds scores of different orbits up and sets them against costs, and those by "
            f"{scored} do not stand that: whatever costs most would go; give criterion={data}'fisher_noise', or "
            "selector='uniform' or 'global', or say how to normalize scores, as Knapsack(normalization='mean')"
        )
    if loader is not None:
        require_repeatable(loader)
    if between_steps is not None and not callable(between_steps):
        raise ArgumentTypeError(
            f"between_steps={between_steps!r}, expected a function of the graph and the number of the step"
        )


def _add_up(scored: Criterion | Scores) -> bool:
    """Whether scores of different orbits add up to what the units are worth together."""
    if isinstance(scored, Criterion):
        return scored.comparable and scored.additive
    kind = CRITERIA.get(scored.description.name)
    return scored.comparable and (kind is None or kind.additive)


def _aim(
    selector: Selector | str | None,
    scored: Criterion | Scores,
    target: Target | None,
    *,
    ratio: float | None,
    flops: float | None,
    parameters: float | None,
) -> tuple[Selector, Target | None]:
    """The selector, and what it aims at."""
    given = {"target": target, "ratio": ratio, "flops": flops, "parameters": parameters}
    named = [f"{name}={value}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ArgumentError(f"given {' and '.join(named)}; expected one of them, which says how much is to go")
    if ratio is not None:
        if not isinstance(ratio, (int, float)) or isinstance(ratio, bool):
            raise ArgumentTypeError(f"ratio={ratio!r}, expected a number")
        if not 0 <= ratio < 1:
            raise ArgumentError(f"ratio={ratio}, expected a share from 0 up to but not including 1")
        if selector not in (None, "uniform", "global"):
            raise ArgumentError(f"ratio={ratio} is for the selectors 'uniform' and 'global'; given {selector!r}")
        return (Global(ratio) if selector == "global" else Uniform(ratio)), None
    if target is not None and not isinstance(target, Target):
        raise ArgumentTypeError(
            f"target={target!r}, expected a Target, as Target.flops(0.5) or Target(latency, seconds)"
        )
    aim = Target.flops(flops) if flops is not None else None if parameters is None else Target.parameters(parameters)
    aim = aim or target
    if selector is None:
        # Knapsack asks for the costs of many models, which is for nobody to wait for unasked where each is measured.
        computed = aim is not None and isinstance(aim.cost, PredictedCost)
        selector = "knapsack" if computed and _add_up(scored) else "uniform"
    chosen = selector if isinstance(selector, Selector) else made_by_name("selector", selector, SELECTORS)
    if aim is None and chosen.needs_target:
        raise ArgumentError(
            f"nothing says how much is to go: give flops, parameters or target for the selector {chosen}"
        )
    if aim is not None and not chosen.needs_target:
        raise ArgumentError(
            f"given {named[0]}, and the selector {chosen} says itself how much goes; give one of the two"
        )
    return chosen, aim


def _graph(
    model: nn.Module,
    example_inputs: Any,
    loader: Iterable[Any] | None,
    sample_to_model_inputs: Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]],
    entry_point: str,
) -> DagModule:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}, expected an nn.Module")
    if isinstance(model, DagModule) and entry_point == "forward":
        return model
    if example_inputs is None:
        if loader is None:
            raise ArgumentError(
                f"example_inputs is missing: a {type(model).__name__} is converted to a graph first, and says nothing "
                "of what it takes"
            )
        batch = next(batches_of(loader, model, sample_to_model_inputs, lambda sample: 1, max_batches=1))
        forward = (model if entry_point == "forward" else entered_at(model, entry_point)).forward
        example_inputs = _named(forward, batch.args, batch.kwargs) if batch.kwargs else batch.args
    return convert(model, example_inputs, entry_point=entry_point)


def _named(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional and keyword inputs, all by name."""
    parameters = list(inspect.signature(forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
        raise CalibrationError(
            f"sample_to_model_inputs gives {len(args)} positional inputs and {', '.join(kwargs)}, and the model takes "
            f"{', '.join(names) or 'none by position'}; give example_inputs"
        )
    return {**dict(zip(names, args, strict=False)), **kwargs}
