"""What a model asks of tensors while it is recorded: numbers, truth values, and shapes that follow from values.

A graph holds only the path that was taken. Where inputs or their sizes decide, a `check` in it refuses those for which
the answer would be another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchorbit.arguments import walk_args
from torchorbit.containers import leaves_of, map_leaves
from torchorbit.conversion.lines import line_running
from torchorbit.conversion.numbers import Traced, plain
from torchorbit.conversion.patching import meta_twin
from torchorbit.conversion.recording import CHECK, Answer, Step
from torchorbit.conversion.values import Known, Values

if TYPE_CHECKING:
    from torchorbit.conversion.recorder import Recorder

#: What these return is no tensor, and depends on what the tensor holds.
QUESTIONS = {
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero", "equal",
    "allclose", "numpy", "__contains__", "__array__",
}  # fmt: skip
#: What the tensors hold decides the shape of the result.
SHAPED_BY_VALUES = {
    "nonzero", "masked_select", "unique", "unique_consecutive", "argwhere", "bincount", "nonzero_static",
}  # fmt: skip


# Numbers that follow from the dtype, as ``torch.finfo(x.dtype).min`` does.
_LIMITS = {
    getattr(torch.finfo(dtype), name)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for name in ("min", "max", "eps", "tiny")
}


class Questions:
    """Answers what a model asks while it is recorded.

    Args:
        recorder: the recording that is being taken.
        examples: the example inputs, positional ones first.
    """

    def __init__(self, recorder: Recorder, examples: Sequence[Any]):
        self._recorder = recorder
        self._values = Values(recorder, examples)

    @property
    def asked(self) -> set[str]:
        """Paths of the parameters and buffers from which an answer follows."""
        return self._values.read

    def literal(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor made of Python numbers or an array: its values are kept, but for sizes, which are computed."""
        data: Any = args[0] if args else kwargs.get("data", kwargs.get("obj"))
        options = {key: kwargs[key] for key in ("dtype", "device") if kwargs.get(key) is not None}
        if type(data) in Traced or (isinstance(data, float) and data in _LIMITS):
            options.setdefault("dtype", torch.int64 if isinstance(data, int) else torch.get_default_dtype())
            with self._recorder:
                return torch.full((), data, **options)
        if _is_of_sizes(data):
            of_floats = any(isinstance(item, float) for item in data)
            options.setdefault("dtype", torch.get_default_dtype() if of_floats else torch.int64)
            with self._recorder:
                return torch.stack([torch.full((), item, **options) for item in data])
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "cpu"}
        return self.constant(func(*plain(args), **plain(kwargs)))

    def constant(self, made: Tensor) -> Tensor:
        """The meta tensor in the place of one whose values are kept."""
        twin = meta_twin(made)
        self._recorder.known_constants[id(twin)] = made
        self._recorder.capture(twin, made=True)
        return twin

    def answer(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer what a model asks; where inputs or sizes decide, the graph asks again when it runs."""
        tensors = leaves_of(Tensor, (args, kwargs))
        known = {id(tensor): self._values.of(tensor, name) for tensor in tensors}
        real_args, real_kwargs = map_leaves(lambda leaf: _held(leaf, known), (args, kwargs))
        found = func(*plain(real_args), **plain(real_kwargs))
        if not isinstance(found, int) and any(value.of_inputs for value in known.values()):
            raise self._recorder.error(
                "it takes a number out of a tensor whose values follow from an input or a parameter, and in a graph it "
                "would always be the same; compute with the tensor itself",
                name,
            )
        of_sizes = any(type(leaf) in Traced for leaf in walk_args((args, kwargs)))
        uniforms = self._recorder.uniforms
        if tensors and not of_sizes and all(uniforms.number(self._recorder.lookup(t)) is not None for t in tensors):
            return found
        if of_sizes or any(value.of_sizes or value.of_inputs for value in known.values()):
            with self._recorder:
                condition = asked_again(name, found, args, kwargs)
            recorder, line = self._recorder, line_running()
            recorder.steps.append(Step(CHECK, (recorder.lookup(condition),), {}, recorder.stack[-1], line=line))
            recorder.answers.append(Answer(len(recorder.steps), name, found, recorder.stack[-1], line))
        return found

    def computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function gives whose result has a shape that depends on values: constants are computed."""
        name = func.__name__
        known = {id(tensor): self._values.of(tensor, name) for tensor in leaves_of(Tensor, (args, kwargs))}
        if any(value.of_inputs for value in known.values()):
            raise self._recorder.error(
                "the shape of its result depends on the values of an input, which a graph cannot follow; mask elements "
                "instead of choosing them",
                name,
            )
        real_args, real_kwargs = map_leaves(lambda leaf: _held(leaf, known), (args, kwargs))
        result = func(*plain(real_args), **plain(real_kwargs))
        return map_leaves(lambda leaf: self.constant(leaf) if isinstance(leaf, Tensor) else leaf, result)

    def with_values(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with numbers for tensors of one number, and with positions for masks; the first one stays."""

        def valued(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if name == "__getitem__" and leaf.dtype in (torch.bool, torch.uint8):
                positions = self.computed(torch.nonzero, (leaf,), {"as_tuple": True})
                return positions[0] if leaf.dim() == 1 else positions
            return self.answer(Tensor.item, "item", (leaf,), {}) if leaf.dim() == 0 else leaf

        if name == "__getitem__" and isinstance(args[1], tuple):
            index: list[Any] = []
            for entry in args[1]:
                found = valued(entry)
                index.extend(found if isinstance(found, tuple) else [found])
            return (args[0], tuple(index)), kwargs
        return (*args[:1], *[map_leaves(valued, arg) for arg in args[1:]]), map_leaves(valued, kwargs)


def _held(leaf: Any, known: Mapping[int, Known]) -> Any:
    """An argument with what a tensor holds in its place."""
    return known[id(leaf)].tensor if isinstance(leaf, Tensor) else leaf


def _is_of_sizes(data: Any) -> bool:
    """Whether data for a tensor is a list of numbers, some of which are sizes or follow from them."""
    if type(data) not in (list, tuple) or not any(type(item) in Traced for item in data):
        return False
    return all(isinstance(item, (int, float)) for item in data)


def asked_again(name: str, answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Asks when the graph runs what was asked while recording: a tensor that is true where the answer is the same.

    Args:
        name: the function that asked.
        answer: what it gave.
        args: its arguments, on meta; functions of them are recorded.
        kwargs: likewise.
    """
    if name in ("equal", "allclose"):
        one, other, *more = args
        same = torch.eq(one, other) if name == "equal" else torch.isclose(one, other, *more, **kwargs)
        return same.all() if answer else torch.logical_not(same.all())
    if name == "__contains__":
        found = torch.eq(args[0], args[1]).any()
        return found if answer else torch.logical_not(found)
    if name in ("__bool__", "is_nonzero") or isinstance(answer, bool):
        return torch.ne(args[0], 0) if answer else torch.eq(args[0], 0)
    if name in ("tolist", "numpy", "__array__"):
        return torch.eq(args[0], torch.tensor(answer)).all()
    return torch.eq(args[0], answer)
