"""Masks that the user says are true everywhere, and what follows from them while a model is recorded.

Such a mask is one number everywhere, and so is what elementwise operators, views and casts make of it. A step that
computes nothing with such a tensor, as adding zeros or writing where a mask is false, becomes another name for its
operand, which the graph leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchorbit.arguments import Attr, walk_args
from torchorbit.containers import placed_leaves
from torchorbit.conversion.numbers import plain, untraced
from torchorbit.conversion.recording import CHECK, Step, Value
from torchorbit.graph.shapes import called
from torchorbit.operators import OPERATORS
from torchorbit.operators.binding import bind
from torchorbit.operators.labelling import elementwise
from torchorbit.operators.spelling import UnknownOperatorError

if TYPE_CHECKING:
    from torchorbit.conversion.recorder import Recorder

# Results hold elements of the first operand and nothing else, whatever sizes, or a cast of them.
_OF_THE_FIRST = {
    "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "adjoint",
    "movedim", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave", "flip", "roll", "rot90",
    "unfold", "diagonal", "getitem", "narrow", "select", "index_select", "gather", "take_along_dim", "split", "chunk",
    "tensor_split", "unbind", "clone", "contiguous", "detach", "to", "type_as", "all", "any", "amax", "amin",
}  # fmt: skip
# Those of them that neither cast nor ask anything.
_MOVING = _OF_THE_FIRST - {"to", "type_as", "all", "any"}
_JOINING = {"cat", "stack", "hstack", "vstack"}
_CREATED: dict[str, Callable[[dict[str, Any]], Any]] = {
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), lambda args: 0),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), lambda args: 1),
    **dict.fromkeys(("full", "new_full", "full_like"), lambda args: args.get("fill_value")),
}


class Uniforms:
    """Knows the tensors of a recording that are one number everywhere.

    Args:
        recorder: the recording that is being taken.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._known: dict[Value, Any] = {}
        self._least: dict[Value, int] = {}  # positions -> what none of them is below

    def __bool__(self) -> bool:
        return bool(self._known)

    def number(self, value: Any) -> Any:
        """The number that a tensor is everywhere; None where it is not known to be one."""
        return self._known.get(value) if type(value) is Value else None

    def least(self, value: Any) -> Any:
        """What no element of a tensor of positions is below; None where that is not known."""
        return self._least.get(value) if type(value) is Value else None

    def assume(self, mask: Tensor, name: str) -> None:
        """Take an input for true everywhere. The graph checks that it is."""
        recorder = self._recorder
        with recorder:
            condition = mask.all() if mask.dtype == torch.bool else torch.eq(mask, 1).all()
        message = f"converted with all_true=('{name}',): the mask '{name}' has to be true everywhere, and is not"
        recorder.steps.append(Step(CHECK, (recorder.lookup(condition),), {"message": message}, recorder.stack[-1]))
        place = recorder.lookup(mask)
        assert isinstance(place, Value)
        self._known[place] = True if mask.dtype == torch.bool else 1

    def bound(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Bound | None:
        """A call as what it does to such tensors; None where none of them is among its operands.

        Args:
            func: the function of torch.
            args: its arguments, with values for tensors.
            kwargs: likewise.
            result: what it gave.
        """
        rank = result.dim() if isinstance(result, Tensor) else None
        try:
            name, given = bind(func, args, kwargs, rank)
        except UnknownOperatorError:
            return None
        values = [arg for arg in walk_args(tuple(given.values())) if isinstance(arg, (Value, Attr))]
        known = any(self.number(value) is not None or self.least(value) is not None for value in values)
        if not known and name not in _CREATED and name != "arange":
            return None
        return Bound(self, self._recorder, name, given, values)

    def note(self, bound: Bound, value: Value, result: Any) -> None:
        """Remember that the result of a call is one number everywhere, where it is."""
        least = bound.least()
        for index, leaf in placed_leaves(result):
            if isinstance(leaf, Tensor):
                place = Value(value.step, (*value.index, *index))
                number = bound.result(leaf.dtype)
                if number is not None and number == number:
                    self._known[place] = number
                if least is not None:
                    self._least[place] = least

    def without_masks(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of an attention without a mask that hides nothing."""
        if name != "scaled_dot_product_attention":
            return args, kwargs
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if not isinstance(mask, Tensor) or not self.hides_nothing(mask, additive=mask.dtype != torch.bool):
            return args, kwargs
        query, key = args[0] if args else kwargs["query"], args[1] if len(args) > 1 else kwargs["key"]
        scores = (*query.shape[:-1], key.shape[-2])
        if mask.dim() > len(scores) or any(
            length not in (1, full) for length, full in zip(mask.shape[::-1], scores[::-1], strict=False)
        ):
            return args, kwargs
        if len(args) > 3:
            return (*args[:3], None, *args[4:]), kwargs
        return args, {**kwargs, "attn_mask": None}

    def hides_nothing(self, mask: Tensor, *, additive: bool) -> bool:
        """Whether a mask that is added, or that is true where attention goes, is known to have no effect."""
        number = self.number(self._recorder.lookup(mask))
        return number is not None and number == (0 if additive else 1)


class Bound:
    """A call of an operator with some operand that is one number everywhere."""

    def __init__(self, uniforms: Uniforms, recorder: Recorder, name: str, args: dict[str, Any], values: list[Any]):
        self._number = uniforms.number
        self._least = uniforms.least
        self._recorder = recorder
        self.name = name
        self.args = args
        self.values = values

    def operand(self, result: Any, target: Any) -> Value | None:
        """The operand that the result is, element by element; None where something is computed.

        Args:
            result: what the call gave; None of ``x[index] = y``.
            target: the tensor that the call writes into; None where it writes into none.
        """
        whole = target if result is None else result
        value = self._kept()
        if type(value) is not Value or not isinstance(whole, Tensor) or self._number(value) is not None:
            return None
        kept = self._recorder.tensor_of(value)
        if kept is None or kept.shape != whole.shape or kept.dtype != whole.dtype:
            return None
        return value if target is None or self._recorder.lookup(target) == value else None

    def _kept(self) -> Any:
        args = self.args
        number = {key: self._number(arg) for key, arg in args.items()}
        first, second = args.get("input"), args.get("other")
        match self.name:
            case "add" if number["other"] == 0:
                return first
            case "add" if number["input"] == 0 and args.get("alpha", 1) == 1:
                return second
            case "sub" if number["other"] == 0:
                return first
            case "mul" if number["other"] == 1:
                return first
            case "mul" if number["input"] == 1:
                return second
            case "div" if number["other"] == 1 and args.get("rounding_mode") is None:
                return first
            case "bitwise_and" | "bitwise_or" | "logical_and" | "logical_or":
                idle = self.name.endswith("and")
                return first if number["other"] is idle else second if number["input"] is idle else None
            case "masked_fill" if number["mask"] is False:
                return first
            case "where" if number["condition"] is not None:
                return first if number["condition"] else second
            case "setitem" if self._number(_only(args["index"])) is False:
                return first
        return None

    def result(self, dtype: torch.dtype) -> Any:
        """The number that the result is everywhere, None where it may not be one."""
        if self.name in _CREATED:
            return _cast(untraced(_CREATED[self.name](self.args)), dtype)
        row, least = OPERATORS[self.name], self._least(self.args.get("input"))
        if self.name == "ge" and least is not None and type(self.args["other"]) is int:
            return True if least >= self.args["other"] else None
        if self.name in _OF_THE_FIRST:
            return _cast(self._number(self.args.get("input")), dtype)
        numbers = [self._number(value) for value in self.values]
        if any(number is None for number in numbers):
            return None
        if self.name in _JOINING:
            return _cast(numbers[0], dtype) if len(set(numbers)) == 1 else None
        if row.rule is not elementwise:
            return None
        with torch.no_grad():
            given = {key: self._filled(arg) for key, arg in self.args.items()}
            made = called(row, plain(given))
        return _cast(made.item(), dtype)

    def least(self) -> int | None:
        """What no element of the result is below, for positions counted from a number on; None for anything else."""
        if self.name == "arange":
            start, step = self.args.get("start", 0), self.args.get("step", 1)
            return start if type(start) is int and type(step) is int and step > 0 else None
        least = self._least(self.args.get("input"))
        if self.name == "add" and least is not None and type(self.args["other"]) is int and "alpha" not in self.args:
            return least + self.args["other"]
        return least if self.name in _MOVING else None

    def _filled(self, arg: Any) -> Any:
        """A tensor of one element in the place of one that is the same everywhere."""
        if type(arg) is not Value:
            return arg
        tensor = self._recorder.tensor_of(arg)
        assert tensor is not None
        return torch.full((1,) * tensor.dim(), self._number(arg), dtype=tensor.dtype)


def _only(index: Any) -> Any:
    """The one entry of an index."""
    return index[0] if isinstance(index, tuple) and len(index) == 1 else index


def _cast(number: Any, dtype: torch.dtype) -> Any:
    return None if number is None else torch.tensor(number).to(dtype).item()
