"""What the two modes of a model do differently: steps that one of them alone runs, and values that differ.

A step that one mode alone runs stands in the innermost call that both modes make. Where a call returns one tensor in
training and another in evaluation, the two become one where that module is called: then its own flag decides, and
whoever uses the result need not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from torchorbit.arguments import ByMode
from torchorbit.containers import leaves_of
from torchorbit.conversion.recording import ModuleCall, Recording, Value

if TYPE_CHECKING:
    from torchorbit.conversion.reconcile import Aligned

#: Choices between the values of two modes are numbered from here on, behind the steps of all recordings.
FIRST_CHOICE = 1_000_000_000
#: A step: its number in the first recording, or in another one.
Place = tuple["Aligned | None", int]


def within(call: ModuleCall, outer: ModuleCall) -> bool:
    """Whether a call is another one, or was made in it."""
    inner: ModuleCall | None = call
    while inner is not None and inner is not outer:
        inner = inner.parent
    return inner is not None


#: A value -> the calls that return it, and what each of them returns in training and in evaluation.
_Results = dict[Value, list[tuple[ModuleCall, tuple[Value, Value]]]]


def _depth(call: ModuleCall) -> int:
    return 0 if call.parent is None else _depth(call.parent) + 1


class Modes:
    """What evaluation, the first recording, and training do differently.

    Args:
        first: the first recording.
        aligned: the others, of which one at most was taken in training mode.

    Attributes:
        alone: number of a step that one mode alone runs -> the call in which it stands.
        root: the call of the model itself.
    """

    def __init__(self, first: Recording, aligned: Sequence[Aligned]):
        self._first = first
        self._aligned = aligned
        self.alone: dict[int, ModuleCall] = {}
        self.root = self._root()
        self._shared = {id(call) for other in aligned for call in other.calls.values()}
        for number, step in enumerate(first.steps):
            if any(other.partner[number] < 0 for other in aligned):
                self.alone[number] = self._shared_call(step.call)
        # Calls that evaluation makes without a step -> the next step that it has, and what they are given.
        self._idle: dict[ModuleCall, int] = {}
        self._given: dict[ModuleCall, tuple[Value, Value]] = {}
        self._known_calls: dict[int, list[ModuleCall]] = {}
        for other in aligned:
            for following, group in other.extras.items():
                for position in group:
                    call = self._made_in_both(other, other.recording.steps[position].call, following)
                    self.alone[other.numbered(position)] = call
        self._returned: dict[tuple[Value, Value], ModuleCall] = {}
        # In training and in evaluation: value -> the calls that return it, from the inside out, and what these return.
        self._instead: tuple[_Results, _Results] = ({}, {})
        for other in aligned:
            if other.variation.training:
                self._compare_results(other)

    def _root(self) -> ModuleCall:
        steps = [
            step for recording in (self._first, *[o.recording for o in self._aligned]) for step in recording.steps[:1]
        ]
        call: ModuleCall | None = steps[0].call if steps else None
        while call is not None and call.parent is not None:
            call = call.parent
        return call or ModuleCall(nn.Module(), "", None)

    def _shared_call(self, call: ModuleCall) -> ModuleCall:
        """The innermost call around a step of the first recording that all make."""
        while id(call) not in self._shared and call.parent is not None:
            call = call.parent
        return call

    def _made_in_both(self, other: Aligned, call: ModuleCall, following: int) -> ModuleCall:
        """The innermost call around a step of training that evaluation makes, too, if without a step.

        A module that looked at its flag in evaluation was called, and its own flag decides. Where it takes one tensor
        and gives one, it gives back what it takes.
        """
        if id(call) in other.calls or call.parent is None:
            return other.calls.get(id(call), call)
        outer = self._made_in_both(other, call.parent, following)
        if call.path is None or call.path not in self._first.training_reads:
            return outer
        made = other.calls[id(call)] = ModuleCall(call.module, call.path, outer)
        self._idle[made] = following
        taken = [value for _, value in call.arguments if type(value) is Value]
        evaluation = self._counterpart(other, taken[0], outer) if len(taken) == 1 else None
        if evaluation is not None:
            self._given[made] = other.value(taken[0]), evaluation
            made.result = evaluation
        return made

    def _counterpart(self, other: Aligned, value: Value, call: ModuleCall) -> Value | None:
        """What is in evaluation in the place of a value of training, within a call; None where that is not known."""
        extra = value.step >= 0 and value.step not in other.number
        found = None if extra else other.value(value)
        for theirs in self._calls(other):
            ours = other.calls.get(id(theirs))
            if ours is not None and theirs.result == value and type(ours.result) is Value and not within(call, ours):
                found = ours.result
        return found

    def _calls(self, other: Aligned) -> list[ModuleCall]:
        """The calls of another recording, from the inside out."""
        if id(other) not in self._known_calls:
            calls: dict[int, ModuleCall] = {}
            for step in other.recording.steps:
                call: ModuleCall | None = step.call
                while call is not None and id(call) not in calls:
                    calls[id(call)] = call
                    call = call.parent
            self._known_calls[id(other)] = sorted(calls.values(), key=_depth, reverse=True)
        return self._known_calls[id(other)]

    def given(self, call: ModuleCall) -> tuple[Value, Value] | None:
        """What a call takes, and gives back in evaluation, in training and in evaluation; None for all other calls."""
        return self._given.get(call)

    def _compare_results(self, other: Aligned) -> None:
        """Note which calls return one tensor in training and another in evaluation."""
        for theirs in self._calls(other):
            ours = other.calls.get(id(theirs))
            if ours is None or type(ours.result) is not Value or type(theirs.result) is not Value:
                continue
            pair = other.value(theirs.result), ours.result
            if pair[0] == pair[1]:
                continue
            self._returned.setdefault(pair, ours)
            for value, instead in zip(pair, self._instead, strict=True):
                if value.step >= 0 and within(self.call_of(value), ours):  # else others may use it as it is, too
                    instead.setdefault(value, []).append((ours, pair))

    def call_of(self, value: Value) -> ModuleCall:
        """The call in which the step stands that made a value."""
        return self.alone.get(value.step) or self._first.steps[value.step].call

    def order(self) -> Iterator[Place]:
        """All steps, in an order in which what a call does in both modes stands together."""
        if not self.alone:
            yield from [(None, number) for number in range(len(self._first.steps))]
            return
        begin = 0
        for number in range(len(self._first.steps) + 1):
            if number < len(self._first.steps) and number in self.alone:
                continue
            own: list[Place] = [(None, n) for n in range(begin, number)]
            extras: list[Place] = [
                (other, position)
                for other in self._aligned
                for n in range(begin, number + 1)
                for position in other.extras.get(n, ())
            ]
            if own or extras:
                around = self._first.steps[begin - 1 : begin] if begin else [], self._first.steps[number : number + 1]
                yield from self._together(own, extras, None, *[[step.call for step in steps] for steps in around])
            if number < len(self._first.steps):
                yield None, number
            begin = number + 1

    def _together(
        self,
        own: list[Place],
        extras: list[Place],
        outer: ModuleCall | None,
        before: list[ModuleCall],
        after: list[ModuleCall],
    ) -> Iterator[Place]:
        """Steps of two modes between two that both have; those of one call stand together.

        Args:
            own: those of evaluation.
            extras: those of training.
            outer: the call around all of them.
            before: the call of the step before them, if there is one.
            after: that of the step behind them.
        """

        def rank(call: ModuleCall | None) -> int:
            """What goes on with a call comes first, what begins one that goes on comes last."""
            if call is not None and any(within(step, call) for step in before):
                return 0
            return 2 if call is not None and any(within(step, call) for step in after) else 1

        ours, theirs = self._by_call(own, outer), self._by_call(extras, outer)
        for call, places in ours:
            same = next((n for n, (other, _) in enumerate(theirs) if call is not None and other is call), None)
            earlier = sum(rank(other) < rank(call) for other, _ in theirs) if same is None else same
            for _, others in theirs[:earlier]:
                yield from others
            if same is None:
                yield from places
                theirs = theirs[earlier:]
            else:
                yield from self._together(places, theirs[same][1], call, before, after)
                theirs = theirs[same + 1 :]
        for _, places in theirs:
            yield from places

    def _by_call(self, places: list[Place], outer: ModuleCall | None) -> list[tuple[ModuleCall | None, list[Place]]]:
        """Steps grouped by the calls just below another one in which they stand; None for those in none."""
        groups: list[tuple[ModuleCall | None, list[Place]]] = []
        for other, position in places:
            call: ModuleCall | None = self.alone[position if other is None else other.numbered(position)]
            below = None
            while call is not None and call is not outer:
                below, call = call, call.parent
            if groups and groups[-1][0] is below:
                groups[-1][1].append((other, position))
            else:
                groups.append((below, [(other, position)]))
        return groups

    def instead(self, value: Value, call: ModuleCall, *, training: bool) -> tuple[Value, Value] | None:
        """What a call that a value comes from returns in the two modes; None where others use it as it is.

        Args:
            value: a tensor that is used in one mode alone.
            call: where it is used.
            training: in which mode.
        """
        results = self._instead[0 if training else 1].get(value, ())
        return next((pair for made, pair in reversed(results) if not within(call, made)), None)

    def returning(self, pair: Any) -> ModuleCall | None:
        """The innermost call that returns one tensor in training and another in evaluation."""
        return self._returned.get(pair) if type(pair[0]) is type(pair[1]) is Value else None

    def deciding(self, training: Any, evaluation: Any) -> ModuleCall | None:
        """The innermost call in which arguments differ between the modes; None where no step tells."""
        values = leaves_of(Value, (training, evaluation))
        alone = [self.alone[value.step] for value in values if value.step in self.alone]
        if not alone:
            return None
        call = alone[0]
        while call.parent is not None and not all(within(other, call) for other in alone[1:]):
            call = call.parent
        for value in values:
            # What was made after the call began has to be made in it.
            while 0 <= value.step < FIRST_CHOICE and call.parent is not None and not self._known_in(value, call):
                call = call.parent
        return call

    def _known_in(self, value: Value, call: ModuleCall) -> bool:
        """Whether a value is made in a call, or before it."""
        made = self.call_of(value)
        if within(made, call):
            return True
        if value.step in self.alone:
            return False
        began = (n for n, step in enumerate(self._first.steps) if within(step.call, call))
        return value.step < next(began, self._idle.get(call, 0))


def differing(training: Any, evaluation: Any, call: ModuleCall | None) -> ByMode:
    """One argument in training, another in evaluation, as the flag of the module that is called says."""
    return ByMode(training, evaluation, "" if call is None else call.where())
