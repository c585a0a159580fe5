"""The shapes of results that need no kernel to be known: what formulas are made of, and who asks them.

torch's meta kernels for normalizations, attention, linear layers and arithmetic run in Python and take between 0.1 and
1.3 ms each; a formula takes a few microseconds. Recording a model, trying out a graph from a file and verifying shapes
ask the same formulas (`torchorbit.operators.declaring.Formula`), each for what it needs beside the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from torchorbit.errors import ArgumentError
from torchorbit.operators.declaring import Arguments
from torchorbit.operators.schema import MAX_INT, kind_of
from torchorbit.operators.table import KNOWN, LEAVES, OPERATORS

Shape = tuple[int, ...]


def shape_of_call(operator: str, args: Arguments) -> Shape | None:
    """The shape of what an operator returns.

    Args:
        operator: its name.
        args: its arguments by name.

    Returns:
        The shape of the one tensor that it returns, of the dtype of the first operand that is a tensor; None where no
        formula is sure of it.

    Raises:
        ArgumentError: the operands do not fit.
    """
    formula = OPERATORS[operator].shape
    if formula is None or any(_may_be_refused(operator, name, value) for name, value in args.items()):
        return None
    return formula(args)


def _may_be_refused(operator: str, name: str, value: Any) -> bool:
    """Whether it is a number that torch does not take for every number, or every flag."""
    kind = type(value)
    if kind not in (bool, int, complex):
        return False
    expected = kind_of(operator, name)
    if "number" in expected:
        return kind is not int or abs(value) > MAX_INT
    return kind is int and expected == "bool"


def shape_of_leaf(
    name: str, module: nn.Module, args: Sequence[Any], stand_in: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """The shape of what a leaf module returns, given positional arguments only.

    Args:
        name: its name in the table of leaf modules.
        module: the module.
        args: what it is called with.
        stand_in: gives a tensor to look at in place of a parameter or buffer.

    Returns:
        The shape, or containers of shapes; None where no formula is sure of it.

    Raises:
        ArgumentError: the operands do not fit.
    """
    leaf = LEAVES[name]
    if not leaf.operator:
        formula = KNOWN[name].shape
        return None if formula is None else formula({"module": module, **dict(zip("012", args, strict=False))})
    formula = OPERATORS[leaf.operator].shape
    if formula is None or len(args) != len(leaf.inputs):
        return None
    given = {}
    for argument, value in zip(leaf.inputs, args, strict=True):
        if not isinstance(value, Tensor):
            return None
        given[argument] = value
    if leaf.ranks and args[0].dim() not in leaf.ranks:
        raise misfit(f"a {name} of {args[0].dim()} dimensions", leaf.ranks)
    if leaf.exact is not None and not leaf.exact(module):
        return None
    if leaf.tensors:
        _add_tensors(given, leaf.tensors, module, stand_in)
    for argument, attribute in leaf.values:
        given[argument] = getattr(module, attribute)
    if leaf.fixed:
        given.update(leaf.fixed)
    return formula(given)


def _add_tensors(
    given: dict[str, Any], names: tuple[str, ...], module: nn.Module, stand_in: Callable[[Tensor], Tensor] | None
) -> None:
    parameters, buffers = module._parameters, module._buffers
    for name in names:
        tensor = parameters[name] if name in parameters else buffers.get(name)
        if tensor is not None:
            given[name] = tensor if stand_in is None else stand_in(tensor)


# -- what formulas are made of


def misfit(given: str, expected: Any) -> ArgumentError:
    """The error of operands that do not fit."""
    return ArgumentError(f"{given}, expected {expected}")


def are_floats(first: Any, *others: Any) -> bool:
    """Whether all are tensors of the same floating point dtype, those after the first that are None aside."""
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return False
    for tensor in others:
        if tensor is not None and (not isinstance(tensor, Tensor) or tensor.dtype is not first.dtype):
            return False
    return True


def same_shape(args: Arguments) -> Shape | None:
    """The formula of an operator that works on every number alike."""
    x = args["input"]
    return x.shape if isinstance(x, Tensor) and x.is_floating_point() else None


def broadcast(first: Shape, second: Shape) -> Shape:
    """The shape to which two are broadcast.

    Raises:
        ArgumentError: they are not.
    """
    if first == second:
        return first
    if len(first) < len(second):
        first, second = second, first
    result = list(first)
    for place, length in enumerate(second, len(first) - len(second)):
        if result[place] != length:
            if result[place] != 1 and length != 1:
                raise ArgumentError(f"the operands have shapes {tuple(first)} and {tuple(second)}, which do not fit")
            result[place] = length if result[place] == 1 else result[place]
    return tuple(result)


def per_axis(value: Any, count: int) -> tuple[int, ...] | None:
    """A number for every spatial dimension, from one for all or one for each; None where it is neither."""
    if type(value) is int:
        return (value,) * count
    listed = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(listed) == 1:
        listed *= count
    return listed if len(listed) == count and all(type(entry) is int for entry in listed) else None
