"""What one run of a model did: its steps, and the tensors and module calls in them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn
from torch.overrides import resolve_name

_IN_PLACE_OPERATORS = {
    "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ifloordiv__", "__imod__", "__ipow__",
    "__iand__", "__ior__", "__ixor__", "__setitem__",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A tensor seen in a recording: the result of step ``step`` (inputs are -1, -2, ...), or an item inside it."""

    step: int
    index: tuple[int | str, ...] = ()


@dataclasses.dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module that is no leaf."""

    module: nn.Module
    path: str | None  # None where the module is no submodule of the model
    parent: ModuleCall | None
    arguments: tuple[tuple[str, Any], ...] = ()  # names and values of its forward's own arguments
    unary: bool = False  # given nothing but its forward's first argument
    result: Any = None  # what the tensor that it returned stands for; None where it returned anything else

    def where(self) -> str:
        """Path of the innermost submodule of the model that is being called."""
        call: ModuleCall | None = self
        while call is not None and call.path is None:
            call = call.parent
        return "" if call is None or call.path is None else call.path


@dataclasses.dataclass(slots=True, eq=False)
class Step:
    """One step of a recording: a torch function, a leaf module, or an assignment to a parameter or buffer."""

    function: Any  # a function, or one of the markers below
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: ModuleCall
    module: nn.Module | None = None
    path: str | None = None
    no_grad: bool = False
    shape: Any = None  # of the result: a torch.Size, or the result's own container of them
    result: Any = None  # tensors on meta; of a write the tensor that was written into
    leaf: str | None = None
    line: str | None = None  # of the model's code


class _Marker:
    def __init__(self, name: str):
        self.__name__ = name

    def __repr__(self) -> str:
        return self.__name__


MODULE = _Marker("module")
ASSIGN = _Marker("assign")
CHECK = _Marker("check")
ALIAS = _Marker("alias")


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of traced numbers.

    Attributes:
        at: the step before which it was made.
        call: the module that made it.
        symbol: the operator, ``"bool"`` for a number's truth.
        operands: the numbers.
        outcome: how it came out.
        line: of the model's code.
    """

    at: int
    call: ModuleCall
    symbol: str
    operands: tuple[Any, ...]
    outcome: bool
    line: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a model was told when it asked what tensors hold.

    Attributes:
        at: the step before which it asked.
        asked: the name of the function that asked.
        found: what it gave.
        call: the module that asked.
        line: of the model's code.
    """

    at: int
    asked: str
    found: Any
    call: ModuleCall
    line: str | None


@dataclasses.dataclass(slots=True)
class Recording:
    """What one run of a model did.

    Attributes:
        steps: in the order in which they ran.
        inputs: names of the forward's arguments and what was passed, tensors replaced by `Value`s.
        input_shapes: the shapes of what was passed, in its own containers.
        output: what the forward returned, tensors replaced by `Value`s.
        checks: comparisons of traced numbers with their outcome, and the step before which they were made.
        constants: tensors that are neither parameters nor buffers nor results, by the name given to them.
        constant_lines: the line of the model's code at which each of them appeared first.
        answers: what was asked of tensors and has to be answered the same way again, in order.
        training_reads: paths of modules, no leaves, whose forward looked at ``self.training``.
    """

    steps: list[Step]
    inputs: list[tuple[str, Any, bool]]
    input_shapes: list[Any]
    output: Any
    output_shapes: list[tuple[int, ...]]
    checks: list[Comparison]
    constants: dict[str, Tensor]
    constant_lines: dict[str, str | None]
    answers: list[Answer]
    training_reads: list[str]


def function_name(function: Any) -> str:
    """A readable name of a recorded function."""
    return resolve_name(function) or getattr(function, "__name__", None) or repr(function)


def writes_in_place(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of a torch function changes its first argument."""
    if name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__")):
        return True
    if kwargs.get("inplace"):
        return True
    code = getattr(func, "__code__", None)
    if code is not None and "inplace" in code.co_varnames[: code.co_argcount]:
        position = code.co_varnames.index("inplace")
        return len(args) > position and bool(args[position])
    return False
