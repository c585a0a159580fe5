"""Compare recordings of one model taken under different conditions, and keep what is true in all of them.

A second recording has another batch size, other lengths, another dtype, training mode. Where the two agree, a
constant is a constant. Where they differ, the origin of the number (see `torchorbit.conversion.numbers`) says how it
follows from the sizes of tensors; a dtype follows the model's; a dropout rate follows the training flag. Anything
else is a disagreement, and the caller tries a milder variation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from torchorbit.arguments import PLAIN, ArgumentMap, Attr, Expr, SameDevice, SameDtype, Size, Transformer
from torchorbit.containers import items_like, items_of, rebuilt
from torchorbit.conversion.aligning import MODE_DEPENDENT, key_of, pairs, same_steps
from torchorbit.conversion.modes import FIRST_CHOICE, Modes, differing, within
from torchorbit.conversion.numbers import Traced, TracedFloat, TracedInt, untraced
from torchorbit.conversion.recording import (
    ALIAS,
    CHECK,
    MODULE,
    Answer,
    Comparison,
    ModuleCall,
    Recording,
    Step,
    Value,
    function_name,
)
from torchorbit.expressions import OF_DTYPES, computed
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import Mode

_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class DisagreementError(Exception):
    """Two recordings cannot be explained by one graph.

    Attributes:
        at: what differs; None for the output.
        reason: why.
        mode: whether the mode, which is not all that varied, may be the reason.
        module: path of the submodule in which they differ.
        line: file and line of the model's code where they differ; None where it is not known.
    """

    def __init__(
        self, at: Step | Answer | Comparison | None, reason: str, *, mode: bool = False, line: str | None = None
    ):
        self.at = at
        self.reason = reason
        self.mode = mode
        self.module = at.call.where() if at is not None else ""
        self.line = at.line if at is not None else line
        super().__init__(reason)


@dataclasses.dataclass(frozen=True, slots=True)
class Variation:
    """What is different in a recording, compared with the first one."""

    batch: bool = False
    lengths: bool = False
    dtype: bool = False
    training: bool = False

    def without_mode(self, other: Variation) -> bool:
        """Whether another recording, in evaluation, has what is different in this one apart from the mode."""
        mine, theirs = (self.batch, self.lengths, self.dtype), (other.batch, other.lengths, other.dtype)
        return not other.training and all(b or not a for a, b in zip(mine, theirs, strict=True))


@dataclasses.dataclass(slots=True)
class Item:
    """A step of the reconciled recording. ``number`` is what `Value`s refer to; ``mode`` as in vertices."""

    number: int
    step: Step
    call: ModuleCall
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mode: Mode = ""


@dataclasses.dataclass(slots=True)
class Reconciled:
    """What all recordings agree on."""

    items: list[Item]
    inputs: list[tuple[str, Any, bool]]
    input_shapes: list[Any]
    output: Any
    constants: dict[str, torch.Tensor]

    @property
    def only_evaluated(self) -> bool:
        """Whether some steps run in evaluation alone."""
        return any(item.mode == "evaluation" for item in self.items)


@dataclasses.dataclass(slots=True)
class Aligned:
    """Another recording, step by step beside the first one."""

    recording: Recording
    variation: Variation
    partner: list[int]  # step of the first recording -> step of this one; -1 where only evaluation has it
    number: dict[int, int]  # step of this one -> number in the result
    extras: dict[int, list[int]]  # step of the first recording -> steps of this one before its partner
    calls: dict[int, ModuleCall]  # id of a call in this recording -> the same call in the first one

    def numbered(self, position: int) -> int:
        """The number of a step of this recording in the result."""
        number = self.number.get(position)
        return len(self.partner) + position if number is None else number

    def value(self, value: Any) -> Any:
        """A value of this recording, in the numbering of the result."""
        if type(value) is not Value or value.step < 0:
            return value
        return Value(self.numbered(value.step), value.index)


def reconcile(
    first: Recording,
    others: list[tuple[Recording, Variation]],
    *,
    follows: Value | Attr | None,
    batch: tuple[Value, int, int] | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> Reconciled:
    """Merge recordings into one.

    Args:
        first: the recording whose steps are kept.
        others: further recordings of the same model, and what is different in each.
        follows: the tensor whose device and dtype stand for those of the run.
        batch: a tensor whose first dimension is the batch, its length in the first recording, and its length in
            recordings with another batch.
        dtypes: the floating-point dtype of the first recording, and that of recordings with another one.

    Raises:
        DisagreementError: they cannot be merged.
    """
    for recording, _ in others:
        _compare_constants(first, recording)
    aligned = [_align(first, recording, variation) for recording, variation in others]
    return _Merger(first, aligned, follows, batch, dtypes).merge()


def _compare_constants(first: Recording, other: Recording) -> None:
    """Tensors made from Python numbers are kept as they are: the numbers must not follow from a size."""
    for name, tensor in first.constants.items():
        theirs = other.constants.get(name)
        if theirs is tensor or theirs is None or tensor.device.type == "meta":
            continue
        if theirs.shape != tensor.shape or theirs.dtype != tensor.dtype or not torch.equal(theirs, tensor):
            line = first.constant_lines.get(name)
            raise DisagreementError(None, "a tensor is made from numbers that are not always the same", line=line)


def _align(first: Recording, other: Recording, variation: Variation) -> Aligned:
    ours, theirs = first.steps, other.steps
    if same_steps(ours, theirs, training=variation.training):
        found = list(zip(range(len(ours)), range(len(ours)), strict=True))
    elif not variation.training:
        raise parting(first, other)
    else:
        paired = pairs(ours, theirs, same_sizes=not (variation.batch or variation.lengths))
        if paired is None:
            raise DisagreementError(None, "in training the model takes another path from start to end")
        found = paired
    result = Aligned(other, variation, [-1] * len(ours), {}, {}, {})
    j = 0
    for number, position in [*found, (len(ours), len(theirs))]:
        if position > j:
            result.extras[number] = list(range(j, position))
        if number == len(ours):
            break
        result.partner[number] = position
        result.number[position] = number
        ours_call: ModuleCall | None = ours[number].call
        theirs_call: ModuleCall | None = theirs[position].call
        while theirs_call is not None and ours_call is not None and id(theirs_call) not in result.calls:
            result.calls[id(theirs_call)] = ours_call
            theirs_call, ours_call = theirs_call.parent, ours_call.parent
        j = position + 1
    return result


def parting(first: Recording, other: Recording) -> DisagreementError:
    """Where two recordings, of which one graph cannot hold both, take different paths."""
    ours, theirs = first.steps, other.steps
    pairs = zip(ours, theirs, strict=False)
    common = next((n for n, (a, b) in enumerate(pairs) if key_of(a) != key_of(b)), min(len(ours), len(theirs)))
    question = other_answer(first, other)
    if question is not None and question[0].at <= common:
        one, found = question
        return DisagreementError(one, f"{one.asked} is {one.found} first, and {found} then")
    if common < min(len(ours), len(theirs)):
        step = ours[common]
        return DisagreementError(step, f"the model takes another path at {_name(step)}")
    if len(ours) != len(theirs):
        return DisagreementError(max(ours, theirs, key=len)[common], "the model goes on differently at the end")
    for check, their in zip(first.checks, other.checks, strict=False):
        if check.outcome != their.outcome:
            return DisagreementError(check, "the model compares sizes, and it comes out differently")
    return DisagreementError(None, "the model takes another path")


def other_answer(first: Recording, other: Recording) -> tuple[Answer, Any] | None:
    """The first question that another recording answers otherwise, and that answer; None where there is none."""
    for one, their in zip(first.answers, other.answers, strict=False):
        if (one.asked, one.line, one.call.path) != (their.asked, their.line, their.call.path):
            break
        if not np.array_equal(one.found, their.found):
            return one, their.found
    return None


def _name(step: Step) -> str:
    if step.function is MODULE:
        return f"module {step.path}"
    return function_name(step.function)


class ValueMap(ArgumentMap, kinds={Value: "ref"}):
    """`torchorbit.arguments.map_args` for arguments in which tensors are `Value`s."""


class _Merger:
    def __init__(
        self,
        first: Recording,
        aligned: list[Aligned],
        follows: Value | Attr | None,
        batch: tuple[Value, int, int] | None,
        dtypes: tuple[torch.dtype, torch.dtype],
    ):
        self.first = first
        self.dtypes = dtypes
        self.batch = batch
        self.aligned = aligned
        self.having = aligned  # the recordings that have the step that is looked at
        self.follows = follows
        self.step: Step | None = None
        self.modes = Modes(first, aligned)
        self.choices: dict[Any, int] = {}  # values in the two modes and a call -> number of the step that chooses there
        self.chosen: list[Item] = []  # choices that come before the step that is looked at

    def merge(self) -> Reconciled:
        first = self.first
        items: list[Item] = []
        checks = self.checks()
        for other, number in self.modes.order():
            if other is None:
                items.extend(checks.get(number, ()))
            item = self.own(number) if other is None else self.extra(other, number)
            items.extend([*self.take_choices(), item])
        items.extend(checks.get(len(first.steps), ()))
        self.step, self.having = None, self.aligned
        output = self.arg(first.output, [other.recording.output for other in self.aligned])
        items.extend(self.take_choices())
        inputs = [
            (name, self.arg(value, [other.recording.inputs[n][1] for other in self.aligned]), keyword)
            for n, (name, value, keyword) in enumerate(first.inputs)
        ]
        return Reconciled(items, inputs, first.input_shapes, output, first.constants)

    def own(self, number: int) -> Item:
        """A step of the first recording, with what those say of its arguments that have it, too."""
        self.step = step = self.first.steps[number]
        if self.modes.alone:
            self.having = [other for other in self.aligned if other.partner[number] >= 0]
        partners = [other.recording.steps[other.partner[number]] for other in self.having]
        args = tuple([self.arg(a, [p.args[n] for p in partners]) for n, a in enumerate(step.args)])
        kwargs = {key: self.arg(a, [p.kwargs[key] for p in partners]) for key, a in step.kwargs.items()}
        call = self.modes.alone.get(number)
        if call is None:
            return Item(number, step, step.call, args, kwargs)
        return Item(number, step, call, self.returned(args, call), self.returned(kwargs, call), "evaluation")

    def returned(self, arg: Any, call: ModuleCall, *, training: bool = False) -> Any:
        """An argument of a step that one mode alone runs: what calls return is chosen where they are made."""

        def change(value: Any) -> Any:
            pair = self.modes.instead(value, call, training=training) if type(value) is Value else None
            returning = None if pair is None else self.modes.returning(pair)
            return value if pair is None or returning is None else self.chosen_value(pair, returning)

        return ValueMap(change).value(arg)

    # -- arguments

    def arg(self, base: Any, others: list[Any]) -> Any:
        kind = type(base)
        if kind is Value:
            mapped = [aligned.value(other) for aligned, other in zip(self.having, others, strict=True)]
            return base if all(m == base for m in mapped) else self.by_mode(base, others)
        if kind in Traced:
            return self.number(base, others)
        items = None if kind in PLAIN else items_of(base)
        if items is not None:
            theirs = [items_like(other, base) if type(other) is kind else None for other in others]
            alike = [found for found in theirs if found is not None]
            if len(alike) < len(others):
                return self.differ(base, others)
            return rebuilt(base, [self.arg(a, same) for a, *same in zip(items, *alike, strict=True)])
        if kind is torch.device:
            if base.type == "meta" and self.follows is not None:
                return SameDevice(self.follows)
            return base
        for other in others:
            if type(untraced(other)) is not kind or other != base:
                return self.differ(base, others)
        return base

    def differ(self, base: Any, others: list[Any]) -> Any:
        """A constant that is not the same in every recording."""
        if isinstance(base, torch.dtype):
            changed = [a.variation for a, other in zip(self.having, others, strict=True) if other != base]
            if self.follows is not None and all(variation.dtype for variation in changed):
                return SameDtype(self.follows)
        if type(base) in (int, float):
            pairs = zip(self.having, others, strict=True)
            changed = [a.variation for a, other in pairs if type(untraced(other)) is not type(base) or other != base]
            if all(variation == Variation(batch=True) for variation in changed):
                return self.unexplained(base, others)
        limit = self.limit(base, others) if type(base) is float and self.follows is not None else ""
        return Expr(limit, (SameDtype(self.follows),)) if limit else self.by_mode(base, others)

    def limit(self, base: float, others: list[Any]) -> str:
        """The limit of the numbers of the model's dtype that a constant is in every recording; "" where it is none."""
        for name in OF_DTYPES:
            ours, theirs = (computed(name, [dtype]) for dtype in self.dtypes)
            pairs = zip(self.having, others, strict=True)
            if base == ours and all(other == (theirs if a.variation.dtype else ours) for a, other in pairs):
                return name
        return ""

    def by_mode(self, base: Any, others: list[Any]) -> Any:
        training = None
        for aligned, other in zip(self.having, others, strict=True):
            plain = aligned.value(other) if type(base) is Value else untraced(other)
            if type(base) is type(plain) and base == plain:
                continue
            # Where other things than the mode differ, too, they may be the reason, unless that was tried.
            tried = [Variation(), *[other.variation for other in self.having]]
            only = aligned.variation.training and any(map(aligned.variation.without_mode, tried))
            name = getattr(self.step.function, "__name__", "") if self.step is not None else ""
            known = aligned.variation.training and name in MODE_DEPENDENT and type(base) is not Value
            if not only and not known:
                self.fail(f"{base} became {other}", mode=aligned.variation.training)
            training = _Unfolding(self, aligned).value(other)
        return self.choice(training, base)

    def choice(self, training: Any, evaluation: Any) -> Any:
        """One argument in training and another in evaluation; the module that makes the difference decides.

        Two tensors become one where that module is called, so that others need not know.
        """
        at = self.modes.root if self.step is None else self.step.call
        pair = (training, evaluation)
        call = self.modes.returning(pair)
        if call is not None and not within(at, call):
            return self.chosen_value(pair, call)
        training, evaluation = self.returned(training, at, training=True), self.returned(evaluation, at)
        call = self.modes.deciding(training, evaluation)
        tensors = type(training) is Value and type(evaluation) is Value
        if call is not None and tensors and not within(at, call):
            return self.chosen_value((training, evaluation), call)
        return differing(training, evaluation, call if call is not None and self.step is None else at)

    def measured(self, training: Value, evaluation: Value) -> Value:
        """A tensor of which a size is read, which is another one in each mode."""
        chosen = self.choice(training, evaluation)
        if type(chosen) is Value:
            return chosen
        return self.chosen_value((chosen.training, chosen.evaluation), self.step.call if self.step else self.modes.root)

    def chosen_value(self, pair: tuple[Value, Value], call: ModuleCall) -> Value:
        """One tensor that is another one in each mode, made in a call."""
        number = self.choices.get((pair, call))
        if number is None:
            number = self.choices[pair, call] = FIRST_CHOICE + len(self.choices)
            training, made = self.returned(pair[0], call, training=True), self.returned(pair[1], call)
            given = self.modes.given(call)
            before = None if given is None or given[1] != made else self.modes.returning(given)
            if given is not None and before is not None:
                made = self.chosen_value(given, before)
            argument = differing(training, made, call)
            known = 0 <= made.step < FIRST_CHOICE
            shape = pick(self.first.steps[made.step].shape, made.index) if known else None
            self.chosen.append(Item(number, Step(ALIAS, (), {}, call, shape=shape), call, (argument,), {}))
        return Value(number)

    def take_choices(self) -> list[Item]:
        """The choices that were made since they were taken last."""
        chosen, self.chosen = self.chosen, []
        return chosen

    def fail(self, reason: str, *, mode: bool = False) -> Any:
        where = _name(self.step) if self.step else "the output"
        raise DisagreementError(self.step, f"an argument of {where}: {reason}", mode=mode)

    # -- numbers

    def number(self, base: Any, others: list[Any]) -> Any:
        """A number with an origin. It is a constant where every size that it follows from is the same.

        That its value is the same is not enough: the padding up to a multiple of a window is zero in both recordings.
        """
        plain = untraced(base)
        equal = all(type(untraced(other)) is type(plain) and untraced(other) == plain for other in others)
        if not all(type(other) is type(base) for other in others):
            return plain if equal else self.unexplained(plain, others)
        try:
            return self.expression(base, others, equal)
        except DisagreementError:
            if equal:
                return plain
            raise

    def expression(self, base: Any, others: list[Any], equal: bool) -> Any:
        symbol, operands = base.origin
        origins = [other.origin for other in others]
        if any(origin[0] != symbol or len(origin[1]) != len(operands) for origin in origins):
            return self.unexplained(untraced(base), others)
        if symbol == "size":
            if equal:
                return untraced(base)
            value, dim = operands
            mapped = [a.value(origin[1][0]) for a, origin in zip(self.having, origins, strict=True)]
            if any(origin[1][1] != dim for origin in origins):
                return self.unexplained(untraced(base), others)
            for aligned, other in zip(self.having, mapped, strict=True):
                if other != value and not aligned.variation.training:
                    return self.unexplained(untraced(base), others)
            differ = [other for other in mapped if other != value]
            return Size(self.measured(differ[0], value) if differ else value, dim)
        parts = tuple([self.operand(a, [origin[1][n] for origin in origins]) for n, a in enumerate(operands)])
        return Expr(symbol, parts) if any(isinstance(part, (Size, Expr)) for part in parts) else untraced(base)

    def operand(self, base: Any, others: list[Any]) -> Any:
        if type(base) in Traced:
            return self.number(base, others)
        if all(untraced(other) == base for other in others):
            return base
        return self.unexplained(base, others)

    def unexplained(self, base: Any, others: list[Any]) -> Any:
        """A number that differs and has lost its origin: an affine function of the batch, or its reciprocal?"""
        pairs = list(zip(self.having, [untraced(other) for other in others], strict=True))
        changed = [(aligned.variation, other) for aligned, other in pairs if other != base]
        if self.batch is not None and all(v == Variation(batch=True) for v, _ in changed):
            tensor, length, longer = self.batch
            other = changed[0][1]
            same = all(their == other and type(their) is type(base) for _, their in changed)
            if same and type(base) is int and (other - base) % (longer - length) == 0:
                slope = (other - base) // (longer - length)
                return Expr("+", (Expr("*", (Size(tensor, 0), slope)), base - slope * length))
            if same and type(base) is float and math.isclose(base * length, other * longer, rel_tol=1e-12):
                return Expr("/", (base * length, Size(tensor, 0)))
        return self.fail(f"{base} became {[other for _, other in pairs]}, and nothing says why")

    def extra(self, aligned: Aligned, position: int) -> Item:
        step = aligned.recording.steps[position]
        unfolding = _Unfolding(self, aligned)
        args, kwargs = unfolding.tuple_(step.args), unfolding.dict_(step.kwargs)
        number = aligned.numbered(position)
        call = self.modes.alone[number]
        args, kwargs = (self.returned(found, call, training=True) for found in (args, kwargs))
        return Item(number, step, call, args, kwargs, "training")

    # -- checks

    def checks(self) -> dict[int, list[Item]]:
        """Comparisons that hold in every recording and could come out otherwise, as steps of their own."""
        lookup: list[dict[tuple[Any, ...], list[tuple[Any, ...]]]] = []
        for aligned in self.aligned:
            found: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
            numbers = {**aligned.number, len(aligned.recording.steps): len(self.first.steps)}
            for other in aligned.recording.checks:
                key = (numbers.get(other.at), other.call.path, other.symbol, other.outcome)
                found.setdefault(key, []).append(other.operands)
            lookup.append(found)
        result: dict[int, list[Item]] = {}
        seen: set[Any] = set()
        for check in self.first.checks:
            at, call, symbol, operands, outcome = check.at, check.call, check.symbol, check.operands, check.outcome
            theirs = []
            for found in lookup:
                candidates = found.get((at, call.path, symbol, outcome))
                if not candidates:
                    break
                theirs.append(candidates.pop(0))
            if not self.aligned or len(theirs) < len(self.aligned):
                continue
            try:
                parts = tuple(self.operand(a, [their[n] for their in theirs]) for n, a in enumerate(operands))
            except DisagreementError:
                continue
            if not any(isinstance(part, (Size, Expr)) for part in parts):
                continue
            if symbol == "bool":
                condition = Expr("!=" if outcome else "==", (parts[0], 0))
            else:
                condition = Expr(symbol if outcome else _NEGATED[symbol], parts)
            if (call, condition) in seen:
                continue
            seen.add((call, condition))
            number = -1_000_000 - len(seen)  # nothing refers to a check
            step = Step(CHECK, (), {}, call)
            result.setdefault(at, []).append(Item(number, step, call, (condition,), {}))
        return result


class _Unfolding(
    Transformer,
    kinds={Value: "tensor", TracedInt: "number", TracedFloat: "number", torch.device: "device", torch.dtype: "dtype"},
):
    """Gives arguments of a step that only one recording has: sizes in them stay expressions."""

    def __init__(self, merger: _Merger, aligned: Aligned):
        self.merger = merger
        self.aligned = aligned
        self.follows = merger.follows

    def tensor(self, arg: Value) -> Any:
        return self.aligned.value(arg)

    def number(self, arg: Any) -> Size | Expr:
        symbol, operands = arg.origin
        if symbol == "size":
            return Size(self.value(operands[0]), operands[1])
        return Expr(symbol, self.tuple_(operands))

    def device(self, arg: torch.device) -> Any:
        return SameDevice(self.follows) if arg.type == "meta" and self.follows is not None else arg

    def dtype(self, arg: torch.dtype) -> Any:
        cast = self.aligned.variation.dtype and arg in (torch.bfloat16, torch.float16)
        return SameDtype(self.follows) if cast and self.follows is not None else arg
