"""How an operator is declared: once, in the file of its family, with everything that is known of it.

A family's file has a list ``OPERATORS``, and beside it the functions that the declarations in it name::

    OPERATORS = [
        operator(
            "group_norm(input, num_groups, weight=None, bias=None, eps=1e-05)",
            function=F.group_norm,
            modules=[Leaf(nn.GroupNorm, tensors=("weight", "bias"), attributes=("num_groups", "eps"))],
            rule=_group_norm_rule,
            cost=_normalization_cost,
            resize=_group_norm_resize,
        ),
    ]

`torchorbit.operators.registry` puts the tables together from these lists, and the rest of the package asks the tables.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.operators import labelling
from torchorbit.operators.table import REQUIRED

if TYPE_CHECKING:
    from torchorbit.operators.resizing import Resized
    from torchorbit.operators.sums import Meeting, Ranks

#: Arguments of a call by name. What shapes are asked of has tensors as tensors, all on meta.
Arguments = Mapping[str, Any]
#: Gives the shape of an argument by its name; None where it is no tensor or absent.
Shapes = Callable[[str], Any]

#: The shape of the result, which is one tensor of the dtype of the first operand that is a tensor; or, of a class of
#: modules that is no operator, containers of shapes. None where the formula is not sure: torch's own kernel answers
#: then. Operands that do not fit raise an ArgumentError. A formula never accepts what the kernel refuses.
Formula = Callable[[Arguments], Any]
#: Multiply-accumulates, from the shapes of operands, the shape of the result, and the arguments.
Cost = Callable[[Shapes, Any, dict[str, Any]], float]
#: Recomputes the numbers in the arguments of a call whose operands or result lose channels.
Resize = Callable[["Resized"], None]
#: The dimensions of operands that meet in sums of products, from the arguments and the ranks of operands.
Contraction = Callable[[dict[str, Any], "Ranks"], "list[Meeting]"]
#: The dimension with the channels, from the ranks of the operand or result and of the weight, and the module.
ChannelAxis = Callable[[int, int, "nn.Module | None"], int]
#: The operator and its arguments by name, from positional and keyword arguments, and the rank of the result.
Binder = Callable[[tuple[Any, ...], dict[str, Any], "int | None"], tuple[str, dict[str, Any]]]

#: Where the elements of a result are in memory, which a recording needs to know beside its shape: as those of the
#: operands where these have no gaps (``"dense"``), contiguous where the operands are (``"kept"``), always contiguous,
#: or in the operand itself (``"alias"``). A class of modules may have a function that makes its results.
Layout = Literal["dense", "kept", "contiguous", "alias", ""] | Callable[..., Any]

#: What becomes of a constant that is of length one in the dimensions in which it does not vary: it can be computed with
#: as it is, it is left the same in evaluation, it is seen in other dimensions, or moved along those that it has.
OfConstant = Literal["computed", "same", "viewed", "moved", ""]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A class of modules that is a vertex of its own and is never looked into.

    Attributes:
        cls: the class; a saved graph names it by its ``__name__``.
        inputs: the arguments of the operator that it is called with, by position.
        tensors: parameters and buffers that are arguments of the operator.
        attributes: attributes that are; ``"argument=attribute"`` where the names differ.
        fixed: arguments that are always the same.
        constructor: the arguments of its constructor that a file holds, where these are not all that it takes.
        kept_as: constructor argument -> the attribute that holds it, where the names differ.
        kinds: constructor argument -> its kind (`torchorbit.operators.schema`), where its name does not say it.
        stand_ins: qualified name of a class of another library that does the same -> gives the constructor arguments.
        ranks: the ranks of its input, where it insists on some.
        exact: whether the operator's shape formula holds for a module; None where it does for all.
        layout: of its result; None where it is the operator's.
        probability: attribute with the probability with which it drops elements or channels.
        complete: whether its forward passes these tensors and attributes to the operator, and nothing else.
        nested: whether it takes tuples of tensors.
        numbers: the numbers that it keeps which follow from a call of it, by attribute.
        settle: sets the numbers that it keeps which follow from its tensors, after these were cut.
        operator: the operator that it is; filled in by `operator`, empty where it is none.
    """

    cls: type[nn.Module]
    inputs: tuple[str, ...] = ("input",)
    tensors: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    constructor: tuple[str, ...] | None = None
    kept_as: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    exact: Callable[[Any], bool] | None = None
    layout: Layout | None = None
    probability: str = ""
    complete: bool = False
    nested: bool = False
    numbers: Callable[[Resized], dict[str, Any]] | None = None
    settle: Callable[[Any], None] | None = None
    operator: str = ""
    values: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        pairs = [name.partition("=") for name in self.attributes]
        values = tuple([(argument, attribute or argument) for argument, _, attribute in pairs])
        object.__setattr__(self, "values", values)

    @property
    def name(self) -> str:
        """Its name in a saved graph."""
        return self.cls.__name__


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """What is known of an operator.

    Attributes:
        name: its name in graphs and in saved files.
        style: how a call is written in generated code: ``"function"``, ``"method"`` of the first argument,
            ``"infix"`` (a Python operator between the two arguments), ``"index"`` (``x[index]``); ``"module"`` for a
            class of modules that is no operator.
        function: what is called; for methods the name is enough.
        parameters: parameter name -> default, `REQUIRED` where there is none; in the order of the function.
        keyword_only: the parameters that must be passed by name.
        ints: the parameters that take a tuple of integers which callers may spread.
        symbol: the Python operator of the infix style.
        names: other names of functions and methods of torch that are it.
        reflected: names of methods that are it with its two operands the other way around.
        calls: functions whose arguments are not those of the signature -> what binds them.
        modules: the classes of modules whose calls are calls of it.
        kinds: parameter -> its kind (`torchorbit.operators.schema`), where its name does not say it.
        rule: what it does to labels (`torchorbit.operators.labelling`); what it touches is frozen without one.
        shape: shape of its result without running it.
        layout: where the result of which that is the shape lies in memory; empty where that is not known.
        cost: its multiply-accumulates; it costs nothing without.
        resize: recomputes the numbers in its arguments (`torchorbit.operators.resizing`).
        contraction: along which dimensions it sums over products (`torchorbit.operators.sums`).
        sinks: whether its rule names what it consumes (`Operands.sink`), so that nothing else of an operand is.
        reduces: the operand that it sums, averages or takes a norm of.
        pieces: how many tensors a call returns, where arguments decide it.
        channels: the dimension of its operand and its result with the channels.
        channels_in: whether its operand has channels there, too.
        bias_of_nothing: whether it gives its bias when it is given no channels.
        in_full: the dimensions of an operand that it does not take to be of length one where they are longer.
        constant: what becomes of a constant operand.
        probability: argument with the probability with which it drops elements or channels.
        creates: whether it makes a tensor of numbers alone, the same one at every call.
        flags: whether its results are true or false.
        normalizes: whether it normalizes, with a scale per channel that a criterion may look at.
        effect: whether it is there for what it does, and has no result.
        of_schema: whether it is declared by torch's schema (`torchorbit.operators.aten`). Functions of Python that have
            its name have other arguments, and call it.
        needless: capability -> why this operator needs none; the page of operators shows other gaps as such.
        family: name of the file that declares it; filled in by the registry.
    """

    name: str
    style: str
    function: Callable[..., Any]
    parameters: dict[str, Any]
    keyword_only: frozenset[str] = frozenset()
    ints: frozenset[str] = frozenset()
    symbol: str = ""
    names: tuple[str, ...] = ()
    reflected: tuple[str, ...] = ()
    calls: Mapping[Any, Binder] = field(default_factory=dict)
    modules: tuple[Leaf, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    rule: labelling.Rule | None = None
    shape: Formula | None = None
    layout: Layout = ""
    cost: Cost | None = None
    resize: Resize | None = None
    contraction: Contraction | None = None
    sinks: bool = False
    reduces: str = ""
    pieces: Callable[[Arguments], int] | None = None
    channels: ChannelAxis | None = None
    channels_in: bool = True
    bias_of_nothing: bool = False
    in_full: Callable[[Resized], set[int]] | None = None
    constant: OfConstant = ""
    probability: str = ""
    creates: bool = False
    flags: bool = False
    normalizes: bool = False
    effect: bool = False
    of_schema: bool = False
    needless: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    by_mode: bool = field(init=False)
    elementwise: bool = field(init=False)

    def __post_init__(self) -> None:
        # Whether an argument says which mode the model is in.
        object.__setattr__(self, "by_mode", not _OF_MODES.isdisjoint(self.parameters))
        # Whether the result at a position depends on the operands at that position, which are broadcast.
        object.__setattr__(self, "elementwise", self.rule is labelling.elementwise)
        if self.elementwise and not self.constant:
            object.__setattr__(self, "constant", "computed")


_OF_MODES = frozenset({"training", "use_input_stats", "dropout_p"})


def operator(
    signature: str,
    *,
    style: str = "function",
    function: Callable[..., Any] | None = None,
    symbol: str = "",
    names: str = "",
    reflected: str = "",
    calls: Mapping[Any, Binder] = _NOTHING,
    modules: Iterable[Leaf] = (),
    **known: Any,
) -> Operator:
    """Declare an operator.

    Args:
        signature: its name, and its arguments, called as in the function that is behind it. ``*`` starts the
            keyword-only ones; a parameter written ``name: ints`` takes a tuple of integers that callers may also
            spread over several arguments (``x.permute(0, 2, 1)``).
        style: how it is written in generated code; with a ``symbol`` that is between its operands.
        function: what is called, where that is not the function of this name of torch, or else of
            torch.nn.functional.
        symbol: the Python operator that it is.
        names: other names of functions and methods that are it, a space between them.
        reflected: names of methods that are it with the operands the other way around, a space between them.
        calls: functions that are called in ways of their own -> what binds their arguments.
        modules: the classes of modules whose calls are calls of it.
        known: all else that is known of it, by the names of the attributes of `Operator`.
    """
    name, parameters, keyword_only, ints = _parsed(signature)
    if symbol:
        style = "infix"
    if function is None:
        function = getattr(Tensor, name) if style == "method" else getattr(torch, name, None) or getattr(F, name)
    modules = tuple(modules)
    for leaf in modules:
        object.__setattr__(leaf, "operator", name)
    return Operator(
        name,
        style,
        function,
        parameters,
        keyword_only,
        ints,
        symbol,
        names=tuple(names.split()),
        reflected=tuple(reflected.split()),
        calls=calls,
        modules=modules,
        **known,
    )


def operators(signatures: str, **known: Any) -> list[Operator]:
    """Declare operators of which the same is known.

    Args:
        signatures: a signature per line; or names only, of operators with one argument ``input``, a space between them.
        known: what is known of all of them, by the arguments of `operator`.
    """
    lines = [line.strip() for line in signatures.splitlines() if line.strip()]
    if "(" not in signatures:
        lines = [f"{name}(input)" for name in signatures.split()]
    return [operator(line, **known) for line in lines]


def module_operator(leaf: Leaf, **known: Any) -> Operator:
    """Declare a class of modules that is no operator.

    Its call has the positional arguments ``"0"``, ``"1"``, ..., and its parameters and buffers under their own names.

    Args:
        leaf: the class.
        known: what is known of its calls, by the names of the attributes of `Operator`.
    """
    return Operator(leaf.name, "module", leaf.cls, {}, modules=(leaf,), **known)


def _parsed(signature: str) -> tuple[str, dict[str, Any], frozenset[str], frozenset[str]]:
    definition = ast.parse(f"def {signature}: ...").body[0]
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    required = [REQUIRED] * (len(arguments.args) - len(arguments.defaults))
    defaults = [*required, *map(ast.literal_eval, arguments.defaults)]
    defaults += [REQUIRED if node is None else ast.literal_eval(node) for node in arguments.kw_defaults]
    every = [*arguments.args, *arguments.kwonlyargs]
    parameters = {arg.arg: default for arg, default in zip(every, defaults, strict=True)}
    keyword_only = frozenset(arg.arg for arg in arguments.kwonlyargs)
    return definition.name, parameters, keyword_only, frozenset(arg.arg for arg in every if arg.annotation is not None)
