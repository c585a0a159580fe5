"""Whether a model computes the same when it runs again: what it keeps in Python, no graph can keep for it.

Two passes are compared by what their results are made of, as in value numbering: steps with the same function and the
same arguments give the same. A table that the first pass makes and the second one finds is the same table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchorbit.arguments import Attr
from torchorbit.containers import items_of
from torchorbit.conversion.numbers import untraced
from torchorbit.conversion.preserving import Snapshot
from torchorbit.conversion.reaching import MISSING, Change
from torchorbit.conversion.recording import ASSIGN, Recording, Step, Value, function_name
from torchorbit.errors import ConversionError
from torchorbit.records import record_of

# Of the tensors that these are given, from one position on, nothing but shape, dtype and device matters.
_LIKE = {
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), 0),
    **dict.fromkeys(("rand_like", "randn_like", "randint_like"), 0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"), 0),
    **dict.fromkeys(("to", "type_as", "expand_as", "view_as", "reshape_as"), 1),
}  # fmt: skip
# So many of the changes are named.
_NAMED = 4


def random_states(snapshot: Snapshot) -> tuple[Any, ...]:
    """The states of the random numbers of Python and of numpy, and of the generators that a model has, to compare."""
    name, keys, *others = np.random.get_state(legacy=True)
    own = [repr(kept.state()) for kept in snapshot.generators]
    return random.getstate(), name, np.asarray(keys).tobytes(), *others, *own


def plain_numbers(changes: Sequence[Change]) -> list[tuple[int, str, Any]]:
    """What plain numbers, flags and texts are among some changes, to be compared."""
    plain = [(id(change.holder), repr(change.name), untraced(change.now)) for change in changes]
    return [found for found in plain if isinstance(found[2], (int, float, str))]


class Numbering:
    """Gives equal numbers to equal results, of several passes."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._constants: list[Tensor] = []

    def steps(
        self,
        steps: Sequence[Step],
        constants: Mapping[str, Tensor],
        inputs: Callable[[int], Any],
        known: Sequence[Any] = (),
    ) -> list[Any]:
        """The numbers of the results of steps, those behind ``known`` ones.

        Args:
            steps: all steps, those that have numbers included.
            constants: path -> a tensor that is neither a parameter nor a buffer.
            inputs: gives what stands for an input.
            known: numbers of the first steps.
        """
        numbers = list(known)

        def key(arg: Any, like: bool = False) -> Any:
            kind = type(arg)
            if kind is Value:
                if like:
                    return "like", self._shape(steps, arg)
                whole = numbers[arg.step] if arg.step >= 0 else inputs(arg.step)
                return "value", whole, arg.index
            if kind is Attr and arg.path in constants:
                return "constant", self._constant(constants[arg.path])
            record = record_of(arg)
            items = items_of(arg) if record is None else record.held
            if items is not None:
                names = tuple(arg) if isinstance(arg, Mapping) else ()
                return kind.__name__, names, tuple([key(item, like) for item in items])
            plain = untraced(arg)
            return type(plain).__name__, repr(plain)

        self._key = key
        for step in steps[len(numbers) :]:
            name = getattr(step.function, "__name__", "")
            first = _LIKE.get(name, len(step.args))
            args = tuple([key(arg, position >= first) for position, arg in enumerate(step.args)])
            others = tuple([(name, key(arg, name == "other")) for name, arg in step.kwargs.items()])
            # Getters of torch, as of a real part, are another object every time, and equal.
            whole = (step.function, step.path, args, others, step.no_grad)
            numbers.append(self._numbers.setdefault(whole, len(self._numbers)))
        return numbers

    def result(self, output: Any, steps: Sequence[Step], start: int = 0) -> Any:
        """What stands for the output of the steps that were numbered last, and for what they leave in buffers."""
        left = {step.args[0].path: self._key(step.args[1]) for step in steps[start:] if step.function is ASSIGN}
        return self._key(output), left

    def _constant(self, tensor: Tensor) -> int:
        for number, known in enumerate(self._constants):
            if known is tensor:
                return number
            alike = known.shape == tensor.shape and known.dtype == tensor.dtype and known.device == tensor.device
            if alike and known.device.type != "meta" and torch.equal(known, tensor):
                return number
        self._constants.append(tensor)
        return len(self._constants) - 1

    @staticmethod
    def _shape(steps: Sequence[Step], value: Value) -> Any:
        found: Any = steps[value.step].result if value.step >= 0 else None
        for place in value.index if found is not None else ():
            found = found[place]
        return (tuple(found.shape), str(found.dtype)) if isinstance(found, Tensor) else None


def refuse_another(first: Recording, again: Recording) -> None:
    """Refuse a model of which a second recording under the same conditions is another one.

    Raises:
        ConversionError: it is.
    """
    numbering = Numbering()
    numbers = []
    results = []
    for recording in (first, again):
        numbers.append(numbering.steps(recording.steps, recording.constants, lambda step: ("input", step)))
        results.append(numbering.result(recording.output, recording.steps))
    if results[0] != results[1]:
        step = parted_at(again.steps, numbers[1], numbers[0])
        where = "" if step is None else step.call.where()
        line = None if step is None else step.line
        raise ConversionError("reconcile", where, None, reason_of(step, None, ()), line)


def parted_at(steps: Sequence[Step], numbers: Sequence[Any], others: Sequence[Any]) -> Step | None:
    """The first of some steps whose result is none of other ones; None where there is none."""
    known = set(others)
    return next((step for step, number in zip(steps, numbers, strict=True) if number not in known), None)


def reason_of(step: Step | None, snapshot: Snapshot | None, changes: Sequence[Change], drawn: bool = False) -> str:
    """Why a model cannot be converted that computes something else when it runs again.

    Args:
        step: the first step that is another one.
        snapshot: what the model held; None where nothing is known to have changed.
        changes: what its forward has left otherwise.
        drawn: whether it draws random numbers of Python or numpy.
    """
    if drawn:
        return (
            "it draws random numbers of Python or numpy, of which a graph would keep those that were drawn first; draw "
            "them with torch (as torch.rand), or pass them as an input"
        )
    at = "" if step is None or step.function is ASSIGN else f", from {function_name(step.function)} on"
    reason = f"it computes something else when it runs once more with the same inputs{at}"
    if changes and snapshot is not None:
        # Numbers first: what else forward leaves is often kept for others to look at.
        order = sorted(changes, key=lambda change: not isinstance(change.now, (int, float, str)))
        said = [f"'{snapshot.called(c)}', which was {_said(c.before)} and is {_said(c.now)}" for c in order[:_NAMED]]
        more = f" and {len(order) - _NAMED} more" if len(order) > _NAMED else ""
        reason += f"; its forward changes {', '.join(said)}{more}"
    else:
        reason += "; it may read the time, count by an iterator, or draw random numbers that are not torch's"
    return (
        f"{reason}. A graph would keep for good what Python found in the first pass: register what changes as a buffer "
        "and update it in place (self.register_buffer('n', torch.zeros(())); self.n += 1), or pass it as an input"
    )


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is MISSING:
        return "not there"
    plain = untraced(value)
    return repr(plain) if isinstance(plain, (int, float, str, type(None))) else f"a {type(value).__name__}"
