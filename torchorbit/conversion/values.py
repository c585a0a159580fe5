"""What tensors hold where a model asks: the recorded steps that lead to one are run for real.

A recording runs on meta tensors, which hold nothing. Where a model asks for a number (``int(x)``, ``if mask.all()``),
the steps that made this tensor are run on the model's own parameters, buffers and constants, and, where it follows
from an input, on the example inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, walk_args
from torchorbit.containers import leaves_of, map_leaves
from torchorbit.conversion.numbers import Traced, untraced
from torchorbit.conversion.recording import ASSIGN, CHECK, MODULE, Step, Value, function_name, writes_in_place

if TYPE_CHECKING:
    from torchorbit.conversion.recorder import Recorder

_CPU = torch.device("cpu")
#: Functions whose results nobody can know. Dropout is none of them: what is asked behind it rarely hangs on it.
_RANDOM = {
    "rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "uniform_", "normal_", "rand_like",
    "randn_like", "randint_like", "bernoulli_", "exponential_", "empty", "empty_like", "new_empty",
}  # fmt: skip
# More elements than this are not computed to answer a question.
_MOST_ELEMENTS = 2**28


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What a tensor holds.

    Attributes:
        tensor: with real elements.
        of_sizes: whether a size of an input decides.
        of_inputs: whether the elements of an input decide, or those of a parameter, which training changes.
    """

    tensor: Any
    of_sizes: bool = False
    of_inputs: bool = False


class UnknownError(Exception):
    """Nobody can know what a tensor holds; the message says why."""


class Values:
    """Runs recorded steps for real.

    Args:
        recorder: the recording that is being taken.
        examples: the example inputs, positional ones first; their tensors may have other sizes than those recorded.
    """

    def __init__(self, recorder: Recorder, examples: Sequence[Any]):
        self._recorder = recorder
        self._examples = examples
        self._results: dict[int, Known] = {}
        self.read: set[str] = set()  # paths of the parameters and buffers that were looked at

    def of(self, tensor: Tensor, asked: str) -> Known:
        """What a tensor holds.

        Args:
            tensor: the tensor, on meta.
            asked: the name of the function that asks, for errors.

        Raises:
            ConversionError: it follows from random numbers, or from weights or inputs on meta, or it is too large.
        """
        recorder = self._recorder
        with torch._C.DisableTorchFunction(), torch.no_grad():
            value = recorder.lookup(tensor)
            inside, recorder.inside_leaf = recorder.inside_leaf, True
            try:
                return self._value(value)
            except UnknownError as error:
                raise recorder.error(
                    f"the model's path depends on the values of a tensor, which are not known: {error}; or list the "
                    "class of the module in atomic, to keep it whole",
                    asked,
                ) from error
            finally:
                recorder.inside_leaf = inside

    def _value(self, value: Value | Attr) -> Known:
        if isinstance(value, Value) and value.step >= 0:
            for number in self._needed(value.step):
                self._results[number] = self._run(self._recorder.steps[number])
        return self._look_up(value)

    def _needed(self, number: int) -> list[int]:
        """The steps that lead to a step, and it itself, in order; without those whose results are here."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            at = waiting.pop()
            if at < 0 or at in found or at in self._results:
                continue
            found.add(at)
            step = self._recorder.steps[at]
            waiting += [arg.step for arg in walk_args((step.args, step.kwargs)) if isinstance(arg, Value)]
        return sorted(found)

    def _look_up(self, value: Value | Attr) -> Known:
        if isinstance(value, Attr):
            return Known(self._attribute(value), of_inputs=self._trains(value))
        if value.step < 0:
            return Known(self._input(value), of_inputs=True)
        known = self._results[value.step]
        result = known.tensor
        for place in value.index:
            result = result[place]
        return dataclasses.replace(known, tensor=result)

    def _trains(self, attr: Attr) -> bool:
        """Whether training changes it, so that an answer about it is one of today."""
        twin = self._recorder.attributes[attr.path]
        original = self._recorder.originals.get(id(twin))
        return isinstance(original, nn.Parameter) and original.requires_grad

    def _attribute(self, attr: Attr) -> Tensor:
        recorder = self._recorder
        self.read.add(attr.path)
        twin = recorder.attributes[attr.path]
        original = recorder.originals.get(id(twin), recorder.known_constants.get(id(twin), twin))
        if original.device.type == "meta":
            raise UnknownError(f"'{attr.path}' is on meta; give the model weights before it is converted")
        return original.detach().to(_CPU, twin.dtype)

    def _input(self, value: Value) -> Tensor:
        """The tensor of an example input, repeated to the size at which it was recorded."""
        recorder = self._recorder
        position = -1 - value.step
        wanted, given = recorder.inputs[position], self._examples[position]
        for place in value.index:
            wanted, given = wanted[place], given[place]
        if recorder.uniforms.number(value) is not None:
            return torch.ones(tuple(wanted.shape), dtype=wanted.dtype)
        if given.device.type == "meta":
            raise UnknownError("they follow from an input that is on meta; give example inputs with values")
        given = given.detach().to(_CPU)
        for dim, length in enumerate(wanted.shape):
            if given.shape[dim] != length:
                positions = torch.arange(untraced(length)) % max(given.shape[dim], 1)
                given = given.index_select(dim, positions)
        return given.to(wanted.dtype)

    def _run(self, step: Step) -> Known:
        if step.function in (ASSIGN, CHECK):
            return Known(None)
        name = getattr(step.function, "__name__", "")
        if name in _RANDOM:
            raise UnknownError(f"they follow from random numbers, of {function_name(step.function)}")
        operands = [self._look_up(arg) for arg in walk_args((step.args, step.kwargs)) if isinstance(arg, (Value, Attr))]
        if sum(leaf.numel() for known in operands for leaf in leaves_of(Tensor, known.tensor)) > _MOST_ELEMENTS:
            raise UnknownError("they follow from tensors that are too large to be computed")
        traced = [leaf for leaf in walk_args((step.args, step.kwargs)) if type(leaf) in Traced]
        args, kwargs = map_leaves(self._real, step.args), map_leaves(self._real, step.kwargs)
        result = self._call(step, name, args, kwargs)
        of_sizes = bool(traced) or any(known.of_sizes for known in operands)
        # What is dropped at random may change the answer, as inputs may.
        of_inputs = any(known.of_inputs for known in operands) or _drops(step) or _has_parameters(step)
        return Known(result, of_sizes, of_inputs)

    def _call(self, step: Step, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if step.function is MODULE:
            assert step.module is not None
            prefix = f"{step.path}."
            own = {path: self._attribute(Attr(prefix + path)).clone() for path in self._names(step)}
            return torch.func.functional_call(step.module, own, args, kwargs)
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _CPU}
        if name in ("cuda", "cpu"):
            return args[0]
        if name == "to":
            args = tuple([_CPU if isinstance(arg, (str, torch.device)) else arg for arg in args])
        if writes_in_place(name, step.function, args, kwargs):
            # What a step makes of a tensor is a tensor of its own.
            target = args[0].clone() if args else None
            if target is None:
                raise UnknownError(f"they follow from {function_name(step.function)} by keyword")
            result = step.function(target, *args[1:], **kwargs)
            return target if result is None else result
        return step.function(*args, **kwargs)

    def _names(self, step: Step) -> list[str]:
        module: Any = step.module
        return [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, (Value, Attr)):
            return self._look_up(leaf).tensor
        if isinstance(leaf, torch.Size):
            return torch.Size([untraced(length) for length in leaf])
        return _CPU if isinstance(leaf, torch.device) else untraced(leaf)


def _drops(step: Step) -> bool:
    """Whether a step drops something at random."""
    if step.function is MODULE:
        module: Any = step.module
        return module.training and bool(getattr(module, "p", 0)) and "ropout" in type(module).__name__
    return "dropout" in getattr(step.function, "__name__", "") and step.kwargs.get("training", True) is True


def _has_parameters(step: Step) -> bool:
    return step.module is not None and any(parameter.requires_grad for parameter in step.module.parameters())
