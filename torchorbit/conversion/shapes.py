"""Results of recorded calls that need no kernel: tensors on meta of the shape that a formula knows.

A recording needs more than shapes: where the elements lie in memory, and whether a result is its operand itself. Where
one of these is not known, the real kernel runs. The graph that comes out is run through the real kernels by whoever
verifies it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.operators.binding import bind, functions_of, positional_names
from torchorbit.operators.declaring import Layout, Operator
from torchorbit.operators.shapes import Shape, shape_of_leaf
from torchorbit.operators.spelling import DROPPED, PARAMETER_NAMES
from torchorbit.operators.table import LEAVES, OPERATORS

_META = torch.device("meta")


def _quick_functions() -> dict[Any, tuple[Operator, tuple[str, ...]]]:
    """Functions and methods of torch with a formula -> the operator, and the names of their positional arguments.

    There are no names where a function has arguments of its own.
    """
    found: dict[Any, tuple[Operator, tuple[str, ...]]] = {}
    for row in OPERATORS.values():
        if row.shape is not None and row.layout:
            found.update(dict.fromkeys(row.calls, (row, ())))
            for function in functions_of(row):
                names = positional_names(row, function)
                known = [name if name in row.parameters else PARAMETER_NAMES.get(name, name) for name in names]
                found[function] = (row, tuple(known))
            for name in row.reflected:
                first, second, *_ = row.parameters
                found[getattr(Tensor, name)] = (row, (second, first))
    return found


_QUICK = _quick_functions()
_LAYOUTS: dict[str, Layout] = {
    name: leaf.layout if leaf.layout is not None else OPERATORS[leaf.operator].layout if leaf.operator else ""
    for name, leaf in LEAVES.items()
}


def function_result(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a torch function returns on meta tensors, if that is known without running it."""
    known = _QUICK.get(function)
    if known is None:
        return None
    row, names = known
    try:
        given = _by_name(row, names, function, args, kwargs)
        shape = None if given is None or row.shape is None else row.shape(given)
        return None if given is None or shape is None else _laid_out(row.layout, shape, given.values())
    except Exception:  # not called as the formula expects, or with what does not fit; the function itself says so
        return None


def _by_name(
    row: Operator, names: tuple[str, ...], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any] | None:
    if not names:
        name, given = bind(function, args, kwargs, None)
        return given if name == row.name else None
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in DROPPED or value:  # what torch's own functions pass on has no effect
            given[name] = value
    fits = len(args) <= len(names) and given.keys() <= row.parameters.keys()
    return given if fits else None


def module_result(module: nn.Module, leaf: str, args: tuple[Any, ...]) -> Any:
    """What a leaf module returns on meta tensors, if that is known without running it.

    Args:
        module: the module.
        leaf: its name in the table of leaf modules.
        args: its positional arguments.
    """
    layout = _LAYOUTS[leaf]
    if not layout or len(args) != 1:
        return None
    x = args[0]
    try:
        if layout in ("alias", "dense") and getattr(module, "inplace", False):
            # In place, the result is the argument itself: later uses of the argument must see it.
            return x if layout == "dense" else None
        if layout == "alias":
            # In memory it is the argument itself: a write into one is a write into the other.
            return x.detach() if x.dim() in (LEAVES[leaf].ranks or (x.dim(),)) else None
        shape = shape_of_leaf(leaf, module, args)
        if shape is None:
            return None
        if layout == "dense" and x.is_contiguous():
            return torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=_META)
        return layout(module, x, shape) if callable(layout) else _laid_out(layout, shape, args)
    except Exception:  # not called as the formula expects, or with what does not fit; the module itself says so
        return None


def _laid_out(layout: Layout, shape: Shape, operands: Iterable[Any]) -> Tensor | None:
    """A tensor of a shape, with its elements where the kernel would put them."""
    first = None
    contiguous = True
    for operand in operands:
        if isinstance(operand, Tensor):
            first = operand if first is None else first
            contiguous = contiguous and operand.is_contiguous()
        elif isinstance(operand, list | tuple) and operand and isinstance(operand[0], Tensor):
            first = operand[0] if first is None else first
            contiguous = contiguous and all(map(Tensor.is_contiguous, operand))
    assert first is not None
    if contiguous or layout == "contiguous":
        if layout == "dense" and first.shape == shape:
            return torch.empty_strided(shape, first.stride(), dtype=first.dtype, device=_META)
        return torch.empty(shape, dtype=first.dtype, device=_META)
    return _as_operands(first, shape, operands) if layout == "dense" else None


def _as_operands(first: Tensor, shape: Shape, operands: Iterable[Any]) -> Tensor | None:
    """A result whose elements lie as those of all operands, which have no gaps and no overlaps in memory."""
    for tensor in operands:
        if isinstance(tensor, Tensor) and (tensor.shape != shape or tensor.stride() != first.stride()):
            return None
    expected = 1
    lengths = zip(first.stride(), first.shape, strict=True)
    for stride, length in sorted([(stride, length) for stride, length in lengths if length != 1]):
        if stride != expected:
            return None
        expected *= length
    return torch.empty_strided(shape, first.stride(), dtype=first.dtype, device=_META)
