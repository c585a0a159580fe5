"""Steps of a recording as calls of operators and modules, without those that nothing uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from torchorbit.arguments import Attr, SameDevice, walk_args
from torchorbit.conversion.reconcile import Item, Reconciled, ValueMap
from torchorbit.conversion.recording import ALIAS, ASSIGN, CHECK, MODULE, ModuleCall, Value, function_name
from torchorbit.errors import ConversionError
from torchorbit.graph.vertices import Mode
from torchorbit.operators import OPERATORS
from torchorbit.operators import binding as canonical
from torchorbit.operators.spelling import UnknownOperatorError

# Operators made of nothing but Python values; they are made on the device of the run.
_FACTORIES = {name for name, row in OPERATORS.items() if "device" in row.parameters and "input" not in row.parameters}


@dataclasses.dataclass(slots=True)
class BoundStep:
    """A step with its operator known, in the scope in which it will stand."""

    number: int
    call: ModuleCall
    args: dict[str, Any]
    operator: str | None  # None: a module
    module: nn.Module | None = None
    path: str = ""
    mode: Mode = ""
    leaf: str | None = None
    shape: Any = None

    def values(self) -> Iterable[Any]:
        """Every value among the arguments, see `torchorbit.arguments.walk_args`."""
        return walk_args(tuple(self.args.values()))


def bound_steps(recording: Reconciled, follows: Value | Attr | None) -> list[BoundStep]:
    """The steps of a recording, in order, whose results something uses; sets the recording's output to match.

    Args:
        recording: what a model does.
        follows: the tensor whose device and dtype stand for those of the run.

    Raises:
        ConversionError: a function of the model is not in the table of operators.
    """
    bound = [_bind(item, follows) for item in recording.items]
    bound, recording.output = _cut_gradients(bound, recording.items, recording.output)
    bound, recording.output = _without_aliases(bound, recording.output)
    return _without_dead(bound, recording.output)


def _bind(item: Item, follows: Value | Attr | None) -> BoundStep:
    step = item.step
    # What only training does was recorded at other sizes; a number has none.
    shape = None if item.mode == "training" and step.shape != torch.Size() else step.shape
    if step.function is MODULE:
        args = {str(n): a for n, a in enumerate(item.args)} | item.kwargs
        return BoundStep(item.number, item.call, args, None, step.module, step.path or "", item.mode, step.leaf, shape)
    if step.function is ASSIGN:
        args = {"target": item.args[0], "value": item.args[1]}
        return BoundStep(item.number, item.call, args, "assign", mode=item.mode)
    if step.function is ALIAS:
        return BoundStep(item.number, item.call, {"input": item.args[0]}, "alias", shape=step.shape)
    if step.function is CHECK:
        message = "the model was recorded with other sizes, for which it takes another path here"
        if "message" in item.kwargs:
            message = item.kwargs["message"]
        elif isinstance(item.args[0], Value):
            message = "the model was recorded with inputs of other values, for which it takes another path here"
        args = {"condition": item.args[0], "message": message}
        return BoundStep(item.number, item.call, args, "check", mode=item.mode)
    rank = len(step.shape) if isinstance(step.shape, torch.Size) else None
    try:
        operator, args = canonical.bind(step.function, item.args, item.kwargs, rank)
    except UnknownOperatorError as error:
        name = function_name(step.function)
        reason = f"{error} is not in the table of operators; list the class of its module in atomic to keep it whole"
        raise ConversionError("build", step.call.where(), name, reason, step.line) from error
    if operator in _FACTORIES and "device" not in args and follows is not None:
        args["device"] = SameDevice(follows)
    return BoundStep(item.number, item.call, args, operator, mode=item.mode, shape=shape)


def _cut_gradients(bound: list[BoundStep], items: list[Item], output: Any) -> tuple[list[BoundStep], Any]:
    """Where the source computes under ``torch.no_grad()``, detach what leaves that region."""
    inside = {item.number for item in items if item.step.no_grad and item.step.function not in (ASSIGN, CHECK)}
    if not inside:
        return bound, output
    fresh: dict[Value, Value] = {}
    result: list[BoundStep] = []
    free = max(b.number for b in bound) + 1
    made = {b.number: b for b in bound}

    def cut(arg: Any, call: ModuleCall) -> Any:
        for value in walk_args(arg):
            if isinstance(value, Value) and value.step in inside and value not in fresh:
                fresh[value] = Value(free + len(fresh))
                mode = made[value.step].mode
                result.append(BoundStep(fresh[value].step, call, {"input": value}, "detach", mode=mode))
        return ValueMap(lambda v: fresh.get(v, v)).value(arg)

    for step in bound:
        if step.number not in inside and (step.operator is None or not OPERATORS[step.operator].effect):
            step.args = cut(step.args, step.call)
        result.append(step)
    root = bound[0].call
    while root.parent is not None:
        root = root.parent
    return result, cut(output, root)


def _without_aliases(bound: list[BoundStep], output: Any) -> tuple[list[BoundStep], Any]:
    """Leave out steps that only give a tensor another name."""
    names: dict[Value, Value] = {}
    renamed = ValueMap(lambda value: names.get(value, value))
    kept: list[BoundStep] = []
    for step in bound:
        if names:
            step.args = renamed.value(step.args)
        if step.operator == "alias" and type(step.args["input"]) is Value:
            names[Value(step.number)] = step.args["input"]
        else:
            kept.append(step)
    return kept, renamed.value(output)


def _without_dead(bound: list[BoundStep], output: Any) -> list[BoundStep]:
    """Leave out steps that nothing uses. Checks of sizes do not keep a step alive, those of values do.

    What moves statistics of batches in training is used in training, even where its result is not.
    """
    alive = {value.step for value in walk_args(output) if isinstance(value, Value)}
    trained: set[int] = set()  # steps that are there for what training does to statistics
    kept: list[BoundStep] = []
    for step in reversed(bound):
        if step.operator == "check" and not isinstance(step.args["condition"], Value):
            kept.append(step)
        elif step.number in alive or step.operator in ("assign", "check"):
            alive.update(value.step for value in step.values() if isinstance(value, Value))
            kept.append(step)
        elif step.mode != "evaluation" and (step.number in trained or _moves_statistics(step)):
            trained.update(value.step for value in step.values() if isinstance(value, Value))
            if step.mode != "training":
                step.mode, step.shape = "training", None
            kept.append(step)
    kept.reverse()
    alive |= trained

    def possible(step: BoundStep) -> bool:
        return all(value.step in alive or value.step < 0 for value in step.values() if isinstance(value, Value))

    return [step for step in kept if step.operator != "check" or possible(step)]


def _moves_statistics(step: BoundStep) -> bool:
    """Whether a step moves running statistics when it runs in training."""
    if step.operator is None:
        return isinstance(step.module, _NormBase) and step.module.running_mean is not None
    return isinstance(step.args.get("running_mean"), Attr)
