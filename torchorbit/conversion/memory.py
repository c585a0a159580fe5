"""What tensors hold after something was written in place into memory that they share.

A graph computes new tensors and writes into none. What a model writes into a tensor becomes that tensor's new value,
and views follow it: a write into a view is written back into the tensor of which it is a view, up to the one that is
no view, and every other view of that is taken anew when it is next read. Nothing is done before it is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchorbit.arguments import Attr, walk_args
from torchorbit.conversion.recording import MODULE, ModuleCall, Step, Value, function_name
from torchorbit.graph.shapes import called
from torchorbit.operators import OPERATORS
from torchorbit.operators.binding import bind
from torchorbit.operators.spelling import UnknownOperatorError

if TYPE_CHECKING:
    from torchorbit.conversion.recorder import Recorder

#: The function and its arguments that give a tensor after a write into a view of it; None: the view's own value.
WriteBack = tuple[Callable[..., Any], tuple[Any, ...]] | None


@dataclasses.dataclass(slots=True)
class _Write:
    """The last write into some memory.

    Attributes:
        step: that of the write.
        target: the tensor that was written into.
    """

    step: int
    target: Tensor


@dataclasses.dataclass(slots=True)
class _View:
    """How a tensor is a view.

    Attributes:
        of: the tensor of which it is one.
        step: the step that made it.
        index: where it is in the result of this step.
    """

    of: Tensor
    step: Step
    index: tuple[int | str, ...]


class Memory:
    """Follows what is written in place while a model is recorded.

    Attributes:
        written: storage -> the last write into it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.written: dict[int, _Write] = {}
        self._made: dict[int, Value | Attr] = {}  # id of a tensor that was written into -> what it stood for at first
        self._aliases: dict[int, set[int]] = {}  # storage -> ids of tensors that stand for what was written last

    def write(self, target: Tensor, before: Value | Attr | None, step: int) -> None:
        """A step changed a tensor.

        Args:
            target: the tensor.
            before: what it stood for until then.
            step: the number of the step.
        """
        storage = target.untyped_storage()._cdata
        self.written[storage] = _Write(step, target)
        self._aliases[storage] = {id(target)}
        if before is not None:
            self._made.setdefault(id(target), before)

    def current(self, tensor: Tensor, found: Value | Attr) -> Value | Attr:
        """What a tensor stands for now.

        Args:
            tensor: the tensor.
            found: what it stood for when it was last looked at.

        Raises:
            ConversionError: it shares memory that was written into in a way that a graph does not hold.
        """
        storage = tensor.untyped_storage()._cdata
        written = self.written.get(storage)
        if written is None or self._is_current(tensor, storage, found):
            return found
        self._write_back(written.target, storage)
        return self._taken_anew(tensor, storage)

    def unchanged_view(self, view: Any, base: Tensor, index: Any) -> bool:
        """Whether a tensor is ``base[index]`` and the last write went into it, with ``base`` unchanged before.

        Then ``base[index] = view``, which Python does after ``base[index] += y``, is all there is to write back.
        """
        if not self.written or not isinstance(view, Tensor):
            return False
        written = self.written.get(view.untyped_storage()._cdata)
        if written is None or written.target is not view:
            return False
        found = self._view(view)
        if found is None or found.of is not base or found.step.function is not Tensor.__getitem__:
            return False
        return found.step.args == (self._recorder.values.get(id(base)), self._recorder.freeze(index))

    def forget(self, tensor: Tensor) -> None:
        """Take the last write into a tensor's memory for written back already."""
        del self.written[tensor.untyped_storage()._cdata]

    def _is_current(self, tensor: Tensor, storage: int, found: Value | Attr) -> bool:
        after = type(found) is Value and found.step >= self.written[storage].step
        return after or id(tensor) in self._aliases[storage]

    def _write_back(self, tensor: Tensor, storage: int) -> None:
        """Give all tensors of which a tensor is a view the values that they have after it was written into."""
        recorder = self._recorder
        view = self._view(tensor)
        while view is not None:
            before = recorder.values[id(view.of)]
            if not self._is_current(view.of, storage, before):
                self._set(view.of, self._after_write(view, before, tensor), storage, before)
            tensor = view.of
            view = self._view(tensor)

    def _after_write(self, view: _View, before: Value | Attr, tensor: Tensor) -> Value | Attr:
        """What a tensor stands for after a write into a view of it."""
        value = self._recorder.values[id(tensor)]
        written = self._written_back(view, before, value, tensor)
        if written is None:
            return value
        function, args = written
        return self._step(Step(function, args, {}, self._call(), shape=view.of.shape, result=view.of))

    def _taken_anew(self, tensor: Tensor, storage: int) -> Value | Attr:
        """The value of a tensor, and of those between it and the one that is no view, after that was written into."""
        recorder = self._recorder
        chain: list[tuple[Tensor, _View]] = []
        base, view = tensor, self._view(tensor)
        while view is not None and not self._is_current(base, storage, recorder.values[id(base)]):
            chain.append((base, view))
            base = view.of
            view = self._view(base)
        if not self._is_current(base, storage, recorder.values[id(base)]):
            raise recorder.error("a tensor is used after memory that it shares was written in place through a view")
        for inner, view in reversed(chain):
            value = recorder.values[id(view.of)]
            if self._is_the_same(inner, view):
                self._set(inner, value, storage, recorder.values[id(inner)])
                continue
            args = tuple([self._with(arg, view.of, value) for arg in view.step.args])
            kwargs = {key: self._with(arg, view.of, value) for key, arg in view.step.kwargs.items()}
            made = self._step(dataclasses.replace(view.step, args=args, kwargs=kwargs, call=self._call()))
            recorder.values[id(inner)] = Value(made.step, view.index)
            self._made.pop(id(inner), None)
        return recorder.values[id(tensor)]

    def _with(self, arg: Any, base: Tensor, value: Value | Attr) -> Any:
        """The argument of a view with another value for the tensor of which it is one."""
        is_base = isinstance(arg, (Value, Attr)) and self._recorder.tensor_of(arg) is base
        return value if is_base else arg

    def _set(self, tensor: Tensor, value: Value | Attr, storage: int, before: Value | Attr) -> None:
        self._made.setdefault(id(tensor), before)
        self._recorder.values[id(tensor)] = value
        self._aliases[storage].add(id(tensor))

    def _step(self, step: Step) -> Value:
        self._recorder.steps.append(step)
        return Value(len(self._recorder.steps) - 1)

    def _call(self) -> ModuleCall:
        return self._recorder.stack[-1]

    def _view(self, tensor: Tensor) -> _View | None:
        """How a tensor is a view; None where it is none, or of something that no step knows."""
        recorder = self._recorder
        made = self._made.get(id(tensor), recorder.values[id(tensor)])
        if isinstance(made, Attr) or made.step < 0:
            return None
        step = recorder.steps[made.step]
        storage = tensor.untyped_storage()._cdata
        for arg in walk_args((step.args, step.kwargs)):
            if isinstance(arg, (Value, Attr)):
                base = recorder.tensor_of(arg)
                if base is not None and base is not tensor and base.untyped_storage()._cdata == storage:
                    return _View(base, step, made.index)
        return None

    def _is_the_same(self, tensor: Tensor, view: _View) -> bool:
        """Whether a view has all elements of a tensor in their order, with nothing computed."""
        base = view.of
        if getattr(view.step.function, "__name__", "") in _OF_SOME_SIZES:
            return False
        return (
            tensor.dtype == base.dtype
            and tensor.shape == base.shape
            and tensor.stride() == base.stride()
            and tensor.storage_offset() == base.storage_offset()
        )

    def _written_back(self, view: _View, before: Value | Attr, value: Value | Attr, tensor: Tensor) -> WriteBack:
        if view.step.function in _DETACHING and tensor.untyped_storage()._cdata not in self._recorder.state:
            raise self._recorder.error(
                "a result is written in place through a tensor that is detached from it, which its gradient would not "
                "see; write into the result itself",
                function_name(view.step.function),
            )
        if self._is_the_same(tensor, view):
            return None
        refusal = self._recorder.error(
            "a tensor is written in place through a view of it that a graph cannot write back; write into the tensor "
            "itself, or compute a new one",
            function_name(view.step.function),
        )
        if view.step.function is MODULE:
            raise refusal
        try:
            name, args = bind(view.step.function, view.step.args, view.step.kwargs, tensor.dim())
        except UnknownOperatorError:
            raise refusal from None
        lengths = self._recorder.sizes(Tensor.size, (view.of,), {})
        if name in _RESHAPING:
            return torch.reshape, (value, tuple(lengths))
        if name in _PERMUTING:
            return torch.permute, (value, _inverse(name, args, view.of.dim()))
        if name == "view_as_real":
            return torch.view_as_complex, (value,)
        if name == "view_as_complex":
            return torch.view_as_real, (value,)
        if name == "adjoint":
            return torch.adjoint, (value,)
        if name == "diagonal":
            places = args.get("offset", 0), args.get("dim1", 0), args.get("dim2", 1)
            return torch.diagonal_scatter, (before, value, *places)
        position = view.index[0] if view.index else 0
        index = _INDICES[name](args, lengths, position) if name in _INDICES else None
        if index is None:
            raise refusal
        return Tensor.__setitem__, (before, index, value)


# What shares memory with a tensor, but not its gradient.
_DETACHING = {torch.detach, Tensor.detach, Tensor.data.__get__}  # type: ignore[attr-defined]
# Views that are the whole tensor, as it is, at some sizes alone.
_OF_SOME_SIZES = {
    "squeeze", "view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as", "narrow", "select",
    "__getitem__", "chunk", "split", "tensor_split", "expand", "expand_as", "broadcast_to", "transpose", "permute",
    "diagonal", "adjoint",
}  # fmt: skip
# Views of all elements in the order in which they are in memory.
_RESHAPING = {"reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"}
# Views of all elements, with dimensions in another order.
_PERMUTING = {"permute", "transpose", "movedim"}


def _inverse(name: str, args: dict[str, Any], rank: int) -> tuple[int, ...]:
    """The order of dimensions that undoes another one."""
    lengths = range(2, 2 + rank)  # each its own, to be known again
    others = {key: arg for key, arg in args.items() if not isinstance(arg, (Value, Attr))}
    moved = called(OPERATORS[name], {**others, "input": torch.empty(tuple(lengths), device="meta")})
    return tuple([moved.shape.index(length) for length in lengths])


def _along(dim: int, entry: Any, rank: int) -> tuple[Any, ...]:
    """The index of some positions along a dimension."""
    return (*[slice(None)] * (dim % rank), entry)


def _of_chunk(args: dict[str, Any], lengths: Any, position: Any) -> tuple[Any, ...]:
    dim = args.get("dim", 0)
    size = (lengths[dim] + (args["chunks"] - 1)) // args["chunks"]
    return _along(dim, slice(position * size, (position + 1) * size), len(lengths))


def _of_split(args: dict[str, Any], lengths: Any, position: Any) -> tuple[Any, ...]:
    dim, size = args.get("dim", 0), args["split_size_or_sections"]
    if isinstance(size, (tuple, list)):
        return _along(dim, slice(sum(size[:position]), sum(size[: position + 1])), len(lengths))
    return _along(dim, slice(position * size, (position + 1) * size), len(lengths))


def _of_tensor_split(args: dict[str, Any], lengths: Any, position: Any) -> tuple[Any, ...] | None:
    dim, sections = args.get("dim", 0), args.get("indices_or_sections")
    if isinstance(sections, int):
        start = sum([(lengths[dim] + (sections - 1 - part)) // sections for part in range(position)])
        stop = start + (lengths[dim] + (sections - 1 - position)) // sections
        return _along(dim, slice(start, stop), len(lengths))
    if not isinstance(sections, (tuple, list)):
        return None
    bounds = [0, *sections, None]
    return _along(dim, slice(bounds[position], bounds[position + 1]), len(lengths))


def _of_narrow(args: dict[str, Any], lengths: Any, position: Any) -> tuple[Any, ...]:
    start = args["start"]
    if isinstance(start, int) and start < 0:
        start = lengths[args["dim"]] + start
    return _along(args["dim"], slice(start, start + args["length"]), len(lengths))


# Views of some elements -> their index, from the arguments, the lengths of the whole, and the position in the result.
_INDICES: dict[str, Callable[[dict[str, Any], Any, Any], Any]] = {
    "getitem": lambda args, lengths, position: args["index"],
    "select": lambda args, lengths, position: _along(args["dim"], args["index"], len(lengths)),
    "narrow": _of_narrow,
    "chunk": _of_chunk,
    "split": _of_split,
    "tensor_split": _of_tensor_split,
    "unbind": lambda args, lengths, position: _along(args.get("dim", 0), position, len(lengths)),
}
