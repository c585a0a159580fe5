"""The values that may stand in the arguments of vertices, and the ways to go through them.

An argument of a vertex is a plain Python constant (None, bool, int, float, complex, str, dtype, device, memory
format, ...), a container of arguments (tuple, named tuple, list, dict, slice, record), or one of the small classes
here, which stand for something that is known only when the graph runs.

Whatever goes through arguments is a `Visitor`, which has a method for every kind of argument:

- an `Interpreter` gives what an argument stands for;
- a `Transformer` gives another argument; `map_args` is one that is made of functions;
- a `Collector` gives what is found in an argument, as `walk_args`, `operands_of`, `measured_in` and `owners_in` do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torchorbit.containers import items_of, rebuilt
from torchorbit.expressions import computed
from torchorbit.records import Record


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another vertex, or an item inside it: ``index`` walks through tuples and dicts."""

    vertex: str
    index: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attr:
    """A parameter or buffer of the graph, by its dotted path relative to the graph's own module."""

    path: str


@dataclass(frozen=True, slots=True)
class Size:
    """The length of one dimension of a value: ``value.size(dim)``."""

    value: Any  # Ref or Attr
    dim: int


@dataclass(frozen=True, slots=True)
class Expr:
    """Arithmetic on sizes. ``operator`` is one of `torchorbit.expressions.EXPRESSIONS`."""

    operator: str
    operands: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ByMode:
    """One argument while training, another in evaluation.

    ``owner`` is the path of the module whose ``training`` flag decides, relative to the graph's own module.
    """

    training: Any
    evaluation: Any
    owner: str = ""


@dataclass(frozen=True, slots=True)
class SameDevice:
    """The device of a value, known when the graph runs."""

    value: Any  # Ref or Attr


@dataclass(frozen=True, slots=True)
class SameDtype:
    """The dtype of a value, known when the graph runs."""

    value: Any  # Ref or Attr


#: Every kind of argument that is no constant, with the method of a `Visitor` that meets it.
KINDS: dict[type, str] = {
    Ref: "ref",
    Attr: "attr",
    Size: "size",
    Expr: "expr",
    ByMode: "by_mode",
    SameDevice: "same_device",
    SameDtype: "same_dtype",
    tuple: "tuple_",
    list: "list_",
    dict: "dict_",
    slice: "slice_",
    Record: "record",
}
#: The kinds of constants that most arguments are.
PLAIN: frozenset[type] = frozenset({bool, int, float, str, type(None)})


class Visitor(ABC):
    """Goes through an argument: what it makes of each kind is a method.

    A subclass may meet further types by methods of their own, where such stand among arguments::

        class Bits(Interpreter, kinds={torch.dtype: "dtype"}):
            def dtype(self, arg: torch.dtype) -> int:
                return arg.itemsize * 8
    """

    _kinds: ClassVar[dict[type, str]] = KINDS
    _methods: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {}
    # The types of items that need not be looked at: empty where constants do not stand for themselves.
    _as_they_are: ClassVar[frozenset[type]] = frozenset()

    def __init_subclass__(cls, *, kinds: Mapping[type, str] | None = None) -> None:
        cls._kinds = {**cls._kinds, **(kinds or {})}
        methods = {kind: getattr(cls, name) for kind, name in cls._kinds.items()}
        cls._methods = {**dict.fromkeys(PLAIN, cls.constant), **methods}
        cls._as_they_are = PLAIN - cls._kinds.keys() if cls.constant is Visitor.constant else frozenset()

    def value(self, arg: Any) -> Any:
        """What this visitor makes of an argument."""
        method = self._methods.get(type(arg))
        if method is not None:
            return method(self, arg)
        return self.named_tuple(arg) if isinstance(arg, tuple) else self.constant(arg)

    @abstractmethod
    def ref(self, arg: Ref) -> Any:
        """Meet a result of another vertex."""

    @abstractmethod
    def attr(self, arg: Attr) -> Any:
        """Meet a parameter or buffer."""

    @abstractmethod
    def size(self, arg: Size) -> Any:
        """Meet the length of a dimension of a tensor."""

    @abstractmethod
    def expr(self, arg: Expr) -> Any:
        """Meet arithmetic on sizes."""

    @abstractmethod
    def by_mode(self, arg: ByMode) -> Any:
        """Meet an argument that depends on the training flag of a module."""

    @abstractmethod
    def same_device(self, arg: SameDevice) -> Any:
        """Meet the device of a tensor."""

    @abstractmethod
    def same_dtype(self, arg: SameDtype) -> Any:
        """Meet the dtype of a tensor."""

    @abstractmethod
    def tuple_(self, arg: tuple[Any, ...]) -> Any:
        """Meet a tuple."""

    @abstractmethod
    def named_tuple(self, arg: tuple[Any, ...]) -> Any:
        """Meet a tuple of a class of its own."""

    @abstractmethod
    def list_(self, arg: list[Any]) -> Any:
        """Meet a list."""

    @abstractmethod
    def dict_(self, arg: dict[Any, Any]) -> Any:
        """Meet a dict; its keys are constants."""

    @abstractmethod
    def slice_(self, arg: slice) -> Any:
        """Meet a slice, of which start, stop and step are arguments."""

    @abstractmethod
    def record(self, arg: Record) -> Any:
        """Meet an object of a class that gives names to what it holds."""

    def constant(self, arg: Any) -> Any:
        """Meet anything else, which stands for itself."""
        return arg


class _Rebuilding(Visitor):
    """Gives containers like those that it meets."""

    def tuple_(self, arg: tuple[Any, ...]) -> Any:
        """A tuple of what is made of its items."""
        value, as_they_are = self.value, self._as_they_are
        return tuple([item if type(item) in as_they_are else value(item) for item in arg])

    def list_(self, arg: list[Any]) -> Any:
        """A list of what is made of its items."""
        value, as_they_are = self.value, self._as_they_are
        return [item if type(item) in as_they_are else value(item) for item in arg]

    def dict_(self, arg: dict[Any, Any]) -> Any:
        """A dict with the same keys."""
        return {key: self.value(item) for key, item in arg.items()}

    def slice_(self, arg: slice) -> Any:
        """A slice of what is made of its parts."""
        return slice(self.value(arg.start), self.value(arg.stop), self.value(arg.step))

    def record(self, arg: Record) -> Any:
        """A record of the same class."""
        return arg.holding([self.value(item) for item in arg.held])

    def named_tuple(self, arg: tuple[Any, ...]) -> Any:
        """A tuple of the same class."""
        return rebuilt(arg, [self.value(item) for item in arg])


class Interpreter(_Rebuilding):
    """Gives what arguments stand for, in evaluation: tensors, numbers, devices, dtypes and containers of them.

    A subclass says what a `Ref` and an `Attr` stand for, and whatever else is not as it is when the graph runs.
    """

    def size(self, arg: Size) -> Any:
        """The length of a dimension of the tensor."""
        return self.value(arg.value).size(arg.dim)

    def expr(self, arg: Expr) -> Any:
        """What the arithmetic gives."""
        return computed(arg.operator, [self.value(operand) for operand in arg.operands])

    def by_mode(self, arg: ByMode) -> Any:
        """What the argument stands for in evaluation."""
        return self.value(arg.evaluation)

    def same_device(self, arg: SameDevice) -> Any:
        """The device of the tensor."""
        return self.value(arg.value).device

    def same_dtype(self, arg: SameDtype) -> Any:
        """The dtype of the tensor."""
        return self.value(arg.value).dtype


class Transformer(_Rebuilding):
    """Gives an argument in the place of another one; this class an equal one."""

    def ref(self, arg: Any) -> Any:
        """The argument in its place."""
        return arg

    def attr(self, arg: Any) -> Any:
        """The argument in its place."""
        return arg

    def size(self, arg: Size) -> Any:
        """A size of the argument in the tensor's place."""
        return Size(self.value(arg.value), arg.dim)

    def expr(self, arg: Expr) -> Any:
        """The same arithmetic on other operands."""
        return Expr(arg.operator, self.tuple_(arg.operands))

    def by_mode(self, arg: ByMode) -> Any:
        """The same choice between other arguments."""
        return ByMode(self.value(arg.training), self.value(arg.evaluation), self.owner(arg.owner))

    def same_device(self, arg: SameDevice) -> Any:
        """The device of the argument in the tensor's place."""
        return SameDevice(self.value(arg.value))

    def same_dtype(self, arg: SameDtype) -> Any:
        """The dtype of the argument in the tensor's place."""
        return SameDtype(self.value(arg.value))

    def owner(self, path: str) -> str:
        """The path of the module whose training flag decides, in the place of another one."""
        return path


class ArgumentMap(Transformer):
    """Applies a function to every `Ref` and `Attr` of an argument, see `map_args`."""

    def __init__(self, change: Callable[[Any], Any], owner: Callable[[str], str] | None = None):
        self._change = change
        self._owner = owner

    def ref(self, arg: Any) -> Any:
        """What the function makes of it."""
        return self._change(arg)

    attr = ref

    def owner(self, path: str) -> str:
        """What the function for owners makes of it."""
        return path if self._owner is None else self._owner(path)


class Collector(Visitor):
    """Gathers what it is made for, in the order in which it stands in an argument; this class every leaf.

    Attributes:
        found: what was gathered.
    """

    def __init__(self) -> None:
        self.found: list[Any] = []

    def collect(self, arg: Any) -> list[Any]:
        """All that was found, in an argument and those before it."""
        self.value(arg)
        return self.found

    def leaf(self, arg: Any) -> None:
        """Gather a `Ref`, an `Attr` or a constant."""
        self.found.append(arg)

    ref = attr = constant = leaf

    def container(self, arg: Any) -> None:
        """Go through what a container holds."""
        items = items_of(arg)
        for item in arg if items is None else items:
            self.value(item)

    tuple_ = named_tuple = list_ = dict_ = slice_ = record = container

    def part(self, arg: Any) -> None:
        """Go through the tensor of which something is read."""
        self.value(arg.value)

    size = same_device = same_dtype = part

    def expr(self, arg: Expr) -> None:
        """Go through the operands."""
        self.container(arg.operands)

    def by_mode(self, arg: ByMode) -> None:
        """Go through both arguments."""
        self.value(arg.training)
        self.value(arg.evaluation)

    def nothing(self, arg: Any) -> None:
        """Pass by."""


class _Operands(Collector):
    """Tensors that a vertex computes with."""

    constant = size = expr = same_device = same_dtype = Collector.nothing


class _OperandsInEvaluation(_Operands):
    def by_mode(self, arg: ByMode) -> None:
        self.value(arg.evaluation)


class _Measured(Collector):
    """Tensors of which something is read but their values."""

    ref = attr = constant = Collector.nothing

    def part(self, arg: Any) -> None:
        self.found.append(arg.value)

    size = same_device = same_dtype = part


class _Owners(Collector):
    """Modules whose training flags decide."""

    ref = attr = constant = size = expr = same_device = same_dtype = Collector.nothing

    def by_mode(self, arg: ByMode) -> None:
        self.found.append(arg.owner)
        super().by_mode(arg)


def map_args(arg: Any, change: Callable[[Any], Any], owner: Callable[[str], str] | None = None) -> Any:
    """Rebuild an argument with ``change`` applied to every `Ref` and `Attr` in it, and ``owner`` to owners."""
    return ArgumentMap(change, owner).value(arg)


def walk_args(arg: Any) -> list[Any]:
    """Every value in an argument that is no container, the parts of sizes and expressions included."""
    return Collector().collect(arg)


def operands_of(arg: Any, *, training: bool = True) -> list[Ref | Attr]:
    """The results and attributes in an argument that a vertex computes with; of sizes and devices there are none.

    Args:
        arg: the argument.
        training: where it depends on the mode, count both modes instead of evaluation alone.
    """
    return (_Operands() if training else _OperandsInEvaluation()).collect(arg)


def measured_in(arg: Any) -> list[Ref | Attr]:
    """The tensors in an argument of which the size, the device or the dtype is read."""
    return _Measured().collect(arg)


def owners_in(arg: Any) -> list[str]:
    """Paths of the modules whose training flags an argument depends on."""
    return _Owners().collect(arg)
