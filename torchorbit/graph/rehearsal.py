"""Calls for real, on few elements, of what was tried on meta tensors.

Meta tensors have no values, and torch's meta kernels take operands that its other kernels refuse: whole numbers for
floating point ones, probabilities of 7, positions beyond what they pick from. So each call is made for real as well,
once for the same arguments: as it is where its tensors are small, or else with tensors of the same dtypes that are
shorter in every dimension, where it makes sense with these. What follows from buffers and numbers alone is computed,
and positions among it are compared with the length that they pick from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchorbit.containers import leaves, map_leaves
from torchorbit.errors import ArgumentError, ArgumentIndexError, ArgumentTypeError
from torchorbit.operators.declaring import Operator
from torchorbit.operators.shapes import shape_of_call

#: Elements of the operands and results of a call that is made as it is, and of a tensor whose values are known.
FEW = 16_384
_SHORT = (1, 2, 4, 8)

_CPU = torch.device("cpu")
_META = torch.device("meta")

_RANDOM = frozenset([
    "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "exponential",
    "uniform", "normal", "multinomial", "poisson", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_alpha_dropout", "rrelu", "gru", "lstm", "rnn_relu", "rnn_tanh", "scaled_dot_product_attention",
])  # fmt: skip
#: What leaves its values to chance, or to what was in memory.
_UNDECIDED = _RANDOM | {"empty", "empty_like", "new_empty"}
#: How the names of operators begin that refuse some matrices, and some pivots.
_OF_MATRICES = ("linalg_", "lu_")
#: Families whose operators compute with floating point numbers, with few exceptions.
_OF_FLOATS = frozenset([
    "convolutions", "contractions", "recurrent", "normalizations", "activations", "pooling", "resampling", "fourier",
    "losses",
])  # fmt: skip
#: Families whose numbers are positions, and as large as anybody likes at the end of a slice.
_OF_POSITIONS = frozenset(["indexing", "in_graph"])
_ALONG = (
    "index_select", "gather", "scatter_add", "scatter", "index_add", "index_copy", "index_reduce", "index_fill",
    "scatter_reduce",
)  # fmt: skip
#: Operator -> the arguments with what is picked from, the dimension (None: all of them), and the positions there.
_PICKS: Mapping[str, tuple[str, str | int | None, str]] = {
    **dict.fromkeys(_ALONG, ("input", "dim", "index")),
    "take_along_dim": ("input", "dim", "indices"),
    "select_positions": ("input", "dim", "index"),
    "embedding": ("weight", 0, "input"),
    "embedding_bag": ("weight", 0, "indices"),
    "take": ("input", None, "index"),
    "put": ("input", None, "index"),
}
_FROM_THE_END = frozenset({"take", "put"})  # where negative positions count from the end


def known(tensor: Tensor) -> Tensor | None:
    """The values of a tensor on meta, where these follow from buffers and numbers alone."""
    return getattr(tensor, "_known", None)


def keep_known(tensor: Tensor, values: Tensor | None) -> Tensor:
    """The same tensor on meta, of which the values are known from now on; few elements alone are kept."""
    few = values is not None and values.numel() <= FEW
    tensor._known = values.detach() if few and values is not None else None  # type: ignore[attr-defined]
    return tensor


def key_of(value: Any) -> Any:
    """What two values have in common that give the same result, as far as shapes and dtypes go; hashable.

    Raises:
        ArgumentTypeError: there is no such thing, as it holds values that are known. Python raises a ``TypeError``
            for what cannot be hashed.
    """
    if isinstance(value, Tensor):
        if known(value) is not None:
            raise ArgumentTypeError("the result follows from values, too")
        return value.shape, value.stride(), value.storage_offset(), value.dtype
    if isinstance(value, (list, tuple)):
        return type(value), tuple([key_of(item) for item in value])
    if isinstance(value, slice):
        return slice, key_of((value.start, value.stop, value.step))
    hash(value)
    return type(value), value


def rehearse(row: Operator, args: dict[str, Any], result: Any, call: Callable[[dict[str, Any]], Any]) -> None:
    """Make a call for real that was made on meta, and keep what is known of the values of its result.

    Args:
        row: the operator.
        args: by name, tensors on meta among them.
        result: what it gave on meta.
        call: makes a call.

    Whatever torch raises goes through where the call cannot be made.

    Raises:
        ArgumentError: whether it can be made cannot be tried.
    """
    operands = [leaf for value in args.values() for leaf in leaves(value) if isinstance(leaf, Tensor)]
    results = [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
    _check_positions(row.name, args)
    few = sum(tensor.numel() for tensor in (*operands, *results)) <= FEW
    if not row.elementwise and row.family not in _OF_POSITIONS and _has_large_number(args):
        # The time and memory of some calls grow with their arguments, and not with their operands.
        if few and row.family in ("opaque", "normalizations"):
            raise ArgumentError(f"{row.name} of few elements has a number beyond {FEW} among its arguments")
        return
    if few:
        found = _for_real(row, args, _as_it_is, call)
        if row.name not in _UNDECIDED and all(known(tensor) is not None for tensor in operands):
            values = [leaf for leaf in leaves(found) if isinstance(leaf, Tensor)]
            for tensor, value in zip(results, values, strict=False):
                keep_known(tensor, value)
        return
    if row.elementwise:
        _for_real(row, args, lambda tensor: _as_it_is(_short(tensor, 1)), call)
        return
    floats = all(tensor.is_floating_point() or tensor.is_complex() for tensor in operands)
    if floats and row.shape is None:
        return
    for length in _SHORT:
        shorten = partial(_short, length=length)
        shorter = {name: map_leaves(shorten, value) for name, value in args.items()}
        if _makes_sense(row, shorter, call, formula=floats):
            _for_real(row, shorter, _as_it_is, call)
            return
    if not floats and row.family in _OF_FLOATS:
        raise ArgumentError(f"{row.name} of {', '.join(sorted({str(t.dtype) for t in operands}))} cannot be tried")


def _has_large_number(args: Mapping[str, Any]) -> bool:
    return any(type(leaf) is int and abs(leaf) > FEW for value in args.values() for leaf in leaves(value))


def _short(value: Any, length: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty([min(size, length) for size in value.shape], dtype=value.dtype, device=_META)


def _makes_sense(row: Operator, args: dict[str, Any], call: Callable[[dict[str, Any]], Any], *, formula: bool) -> bool:
    """Whether a call is made on meta."""
    try:
        if formula:
            return shape_of_call(row.name, args) is not None
        call(args)
    except Exception:
        return False
    return True


def _for_real(
    row: Operator, args: dict[str, Any], real: Callable[[Tensor], Tensor], call: Callable[[dict[str, Any]], Any]
) -> Any:
    def change(value: Any) -> Any:
        if isinstance(value, Tensor):
            return real(value)
        return _CPU if isinstance(value, torch.device) else value

    made = {name: map_leaves(change, value) for name, value in args.items()}
    chance = torch.random.fork_rng(devices=[]) if row.name in _RANDOM else nullcontext()
    try:
        with chance:
            return call(made)
    except NotImplementedError:  # of these dtypes, whatever their values are
        raise
    except RuntimeError as error:
        if isinstance(error, torch.linalg.LinAlgError) or row.name.startswith(_OF_MATRICES):  # type: ignore[attr-defined]
            return None  # of these values it cannot be computed; the model's own may be others
        raise


def _as_it_is(tensor: Tensor) -> Tensor:
    values = known(tensor)
    if values is not None:
        return values.clone()
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_CPU)
    return made.fill_(1) if tensor.is_floating_point() or tensor.is_complex() else made.zero_()


def _check_positions(name: str, args: Mapping[str, Any]) -> None:
    """Compare positions that are known with the length that they pick from.

    Raises:
        ArgumentIndexError: one is beyond it.
    """
    if name in ("getitem", "setitem"):
        picked, index = args["input"], args["index"]
        for dim, positions in _places(picked.dim(), index if isinstance(index, tuple) else (index,)):
            _check_range(positions, picked.shape[dim], from_the_end=True)
    elif name == "index_put":
        for dim, positions in enumerate(args["indices"]):
            _check_range(positions, args["input"].shape[dim], from_the_end=True)
    elif name in _PICKS:
        source, axis, where = _PICKS[name]
        dimension = args.get(axis) if isinstance(axis, str) else axis
        picked = args[source]
        length = picked.numel() if dimension is None else picked.shape[dimension] if picked.dim() else 1
        _check_range(args[where], length, from_the_end=name in _FROM_THE_END)


def _places(rank: int, index: tuple[Any, ...]) -> Iterable[tuple[int, Any]]:
    """The dimension that each tensor or list of an index picks from."""
    taken = sum(_consumed(item) for item in index)
    dim = 0
    for item in index:
        if item is Ellipsis:
            dim += rank - taken
            continue
        if isinstance(item, (Tensor, list, tuple)):
            yield dim, item
        dim += _consumed(item)


def _consumed(item: Any) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return item.dim()
    return 1


def _check_range(positions: Any, length: int, *, from_the_end: bool) -> None:
    if isinstance(positions, (list, tuple)):
        values: Tensor | None = torch.tensor(
            [item for item in leaves(positions) if type(item) is int], dtype=torch.int64
        )
    else:
        values = known(positions)
    if values is None or not values.numel() or values.dtype in (torch.bool, torch.uint8) or values.is_floating_point():
        return
    least, most = int(values.min()), int(values.max())
    if least < (-length if from_the_end else 0) or most >= length:
        raise ArgumentIndexError(f"positions from {least} to {most} are picked of a length of {length}")
