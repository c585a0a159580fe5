"""From the function that a model called to the operator that a graph holds.

``x + y``, ``torch.add(x, y)``, ``x.add_(y)`` and ``operator.add(x, y)`` become one operator with one set of argument
names; arguments that only say how to compute, not what (``inplace``, ``out``), go.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchorbit.arguments import SameDevice, SameDtype
from torchorbit.operators.table import OPERATORS, REQUIRED, Operator

Bound = tuple[str, dict[str, Any]]


class UnknownOperatorError(Exception):
    """A function is not in the table, or is called in a way that the table does not know."""


# The same operator under other names.
_ALIASES = {
    "true_divide": "div", "divide": "div", "__truediv__": "div", "__div__": "div", "multiply": "mul", "subtract": "sub",
    "__floordiv__": "floor_divide", "__mod__": "remainder", "__matmul__": "matmul", "__pow__": "pow",
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor", "__invert__": "bitwise_not",
    "negative": "neg", "absolute": "abs", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose",
    "swapdims": "transpose", "moveaxis": "movedim", "view": "reshape", "view_as": "reshape_as", "greater": "gt",
    "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne", "clip": "clamp", "fix": "trunc",
    "linalg_vector_norm": "vector_norm", "upsample": "interpolate", "split_with_sizes": "split",
    "unsafe_split": "split", "unsafe_split_with_sizes": "split", "unsafe_chunk": "chunk",
    "special_expit": "sigmoid", "special_erf": "erf", "max_pool1d_with_indices": "max_pool1d", "arccos": "acos",
    "max_pool2d_with_indices": "max_pool2d", "max_pool3d_with_indices": "max_pool3d", "arcsin": "asin",
    "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d", "arctan": "atan", "arctan2": "atan2",
    "adaptive_max_pool2d_with_indices": "adaptive_max_pool2d", "adaptive_max_pool3d_with_indices":
    "adaptive_max_pool3d", "row_stack": "vstack", "fft_fft": "fft", "fft_ifft": "ifft",
    "fft_rfft": "rfft", "fft_irfft": "irfft", "fft_fft2": "fft2", "fft_ifft2": "ifft2", "fft_rfft2": "rfft2",
    "fft_irfft2": "irfft2", "fft_fftn": "fftn", "fft_ifftn": "ifftn", "fft_rfftn": "rfftn", "fft_irfftn": "irfftn",
    "fft_fftshift": "fftshift", "fft_ifftshift": "ifftshift", "special_expm1": "expm1", "feature_dropout": "dropout2d",
    "_threshold": "threshold", "detach_copy": "detach", "log_sigmoid": "logsigmoid", "clamp_min": "clamp",
}  # fmt: skip

_REFLECTED = {
    "__radd__": "add", "__rsub__": "sub", "__rmul__": "mul", "__rdiv__": "div", "__rtruediv__": "div",
    "__rfloordiv__": "floor_divide", "__rmod__": "remainder", "__rpow__": "pow", "__rmatmul__": "matmul",
    "__rand__": "bitwise_and", "__ror__": "bitwise_or", "__rxor__": "bitwise_xor",
}  # fmt: skip

_PARAMETER_NAMES = {
    "self": "input", "x": "input", "axis": "dim", "axes": "dim", "keepdims": "keepdim", "tensor": "input",
    "split_size": "split_size_or_sections", "axis0": "dim0", "axis1": "dim1", "a": "input", "x1": "input",
    "x2": "other", "train": "training", "split_sizes": "split_size_or_sections", "sections": "indices_or_sections",
    "indices": "indices_or_sections", "from": "low", "to": "high",
}  # fmt: skip

# Say how to compute, or nothing that matters.
_DROPPED = {
    "inplace",
    "_stacklevel",
    "out",
    "requires_grad",
    "pin_memory",
    "layout",
    "non_blocking",
    "copy",
    "generator",
    "sparse_grad",
    "cudnn_enable",
    "cudnn_enabled",
}

_CASTS = {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16,
    "int": torch.int32, "long": torch.int64, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip


def bind(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """The operator that a call is, and its arguments by name, defaults left out.

    Args:
        function: what the model called.
        args: positional arguments.
        kwargs: keyword arguments.
        rank: number of dimensions of the result, where it is one tensor.

    Raises:
        UnknownOperatorError: the function is not in the table.
    """
    special = _SPECIAL_FUNCTIONS.get(function)
    if special is not None:
        return _finish(*special(args, kwargs, rank))
    name = getattr(function, "__name__", "")
    if name in _REFLECTED:
        return _finish(_REFLECTED[name], {"input": args[1], "other" if name != "__rpow__" else "exponent": args[0]})
    if name in _CASTS and getattr(Tensor, name, None) is function:
        return "to", {"input": args[0], "dtype": _CASTS[name]}
    operator = _find(function, name)
    arguments = _named(operator, function, args, kwargs)
    if "return_indices" in operator.parameters:  # not every function that returns them is told to
        arguments["return_indices"] = rank is None
    return _finish(operator.name, arguments)


def _find(function: Any, name: str) -> Operator:
    plain = name
    if plain.startswith("__") and plain.endswith("__"):
        plain = _ALIASES.get(plain, plain.strip("_"))
        if plain not in OPERATORS and plain.startswith("i"):
            plain = _ALIASES.get(f"__{plain[1:]}__", plain[1:])
    elif plain.endswith("_"):
        plain = plain.rstrip("_")
    plain = _ALIASES.get(plain, plain)
    if plain.startswith("special_"):
        plain = plain.removeprefix("special_")
    module = getattr(function, "__module__", None)
    owner = getattr(function, "__objclass__", None)
    of_torch = (module or "").startswith("torch") or (owner is not None and issubclass(Tensor, owner))
    if plain not in OPERATORS or not (of_torch or _bound_to_torch(function)):
        raise UnknownOperatorError(name)
    return OPERATORS[plain]


def _bound_to_torch(function: Any) -> bool:
    """Builtins of torch's C namespaces have no module of their own."""
    return isinstance(function, types.BuiltinFunctionType) and "torch" in repr(getattr(function, "__self__", ""))


_signatures: dict[Any, tuple[str, ...]] = {}


def _positional_names(operator: Operator, function: Any) -> tuple[str, ...]:
    if isinstance(function, types.FunctionType):
        if function not in _signatures:
            try:
                parameters = inspect.signature(function).parameters
            except ValueError:  # a wrapper around a builtin
                parameters = types.MappingProxyType({})
            # Some functions of torch only pass on what they are given.
            opaque = not parameters or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
            _signatures[function] = tuple(operator.parameters if opaque else parameters)
        return _signatures[function]
    return tuple(operator.parameters)


def _named(operator: Operator, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    spread = next(iter(operator.ints), None)
    names = _positional_names(operator, function)
    if spread is not None:
        position = list(operator.parameters).index(spread)
        if len(args) > position and not isinstance(args[position], (tuple, list)):
            args = (*args[:position], tuple(args[position:]))
        names = tuple(operator.parameters)
    if len(args) > len(names):
        raise UnknownOperatorError(f"{operator.name} with {len(args)} arguments")
    arguments: dict[str, Any] = {}
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        if name in _DROPPED:
            continue
        if name not in operator.parameters:
            name = _PARAMETER_NAMES.get(name, name)
            if name == "input" and name not in operator.parameters:
                name = next(iter(operator.parameters))
        if name not in operator.parameters:
            raise UnknownOperatorError(f"{operator.name} with an argument '{name}'")
        arguments[name] = value
    return arguments


def _finish(name: str, arguments: dict[str, Any]) -> Bound:
    """Arguments in the table's order, defaults left out, spread integers as a tuple."""
    operator = OPERATORS[name]
    unknown = [parameter for parameter in arguments if parameter not in operator.parameters]
    if unknown:
        raise UnknownOperatorError(f"{name} with an argument '{unknown[0]}'")
    ordered: dict[str, Any] = {}
    for parameter, default in operator.parameters.items():
        if parameter not in arguments:
            if default is REQUIRED:
                raise UnknownOperatorError(f"{name} without an argument '{parameter}'")
            continue
        value = arguments[parameter]
        if parameter in operator.ints:
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if default is not REQUIRED and type(value) is type(default) and value == default:
            continue
        ordered[parameter] = value
    return name, ordered


# -- operators with more than one way to be called


def _variance_call(name: str) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    """``var(x, dim, unbiased, keepdim)``, ``var(x, unbiased)`` and ``var(x, dim, *, correction, keepdim)``."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {_PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
        rest = list(args[1:])
        arguments.setdefault("input", args[0] if args else None)
        if rest and isinstance(rest[0], bool):
            arguments["unbiased"] = rest.pop(0)
        for parameter in ("dim", "unbiased", "keepdim"):
            if rest:
                arguments[parameter] = rest.pop(0)
        unbiased = arguments.pop("unbiased", None)
        if unbiased is not None:
            arguments["correction"] = 1 if unbiased else 0
        return name, arguments

    return bind_call


def _extreme(name: str) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    """``max(x)``, ``max(x, dim)`` and ``max(x, other)``."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {_PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
        arguments.update(zip(("input", "dim", "keepdim"), args, strict=False))
        second = arguments.get("other", arguments.get("dim"))
        if second is not None and not isinstance(second, int):
            return f"{name}imum", {"input": arguments["input"], "other": second}
        return name, arguments

    return bind_call


def _arange(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = dict(kwargs)
    if len(args) == 1 and "end" not in kwargs:
        arguments.update(start=0, end=args[0])
    else:
        arguments.update(zip(("start", "end", "step"), args, strict=False))
        arguments.setdefault("start", 0)
    return "arange", {key: value for key, value in arguments.items() if key not in _DROPPED}


def _to(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments: dict[str, Any] = {"input": args[0]}
    given = {key: value for key, value in kwargs.items() if key not in _DROPPED}
    other = given.pop("other", None)
    for value in args[1:]:
        if isinstance(value, torch.dtype):
            given["dtype"] = value
        elif isinstance(value, (torch.device, str)):
            given["device"] = torch.device(value)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, torch.memory_format):
            given["memory_format"] = value
        elif isinstance(value, SameDtype):
            given["dtype"] = value
        elif isinstance(value, SameDevice):
            given["device"] = value
        else:
            other = value
    if other is not None:
        return "type_as", {"input": args[0], "other": other}
    arguments.update(given)
    return "to", arguments


def _moved(device: str) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    return lambda args, kwargs, rank: ("to", {"input": args[0], "device": torch.device(device)})


def _transposed(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    return "transpose", {"input": args[0], "dim0": -2, "dim1": -1}


def _reversed(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    return "permute", {"input": _only(args, kwargs), "dims": tuple(range((rank or 0) - 1, -1, -1))}


def _one(name: str, **fixed: Any) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    return lambda args, kwargs, rank: (name, {"input": _only(args, kwargs), **fixed})


def _only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _einsum(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    return "einsum", {"equation": args[0], "operands": tuple(operands)}


def _meshgrid(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    return "meshgrid", {"tensors": tuple(tensors), "indexing": kwargs.get("indexing") or "ij"}


def _rsub(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = {_PARAMETER_NAMES.get(key, key): value for key, value in kwargs.items()}
    arguments.update(zip(("input", "other", "alpha"), args, strict=False))
    arguments["input"], arguments["other"] = arguments["other"], arguments["input"]
    return "sub", arguments


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``torch.embedding``: the table comes first, and no padding is a number, too."""
    names = ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse")
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    arguments["input"] = arguments.pop("indices")
    if arguments.get("padding_idx", -1) < 0:
        arguments["padding_idx"] = None
    return "embedding", arguments


def _index_put(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    arguments = {**dict(zip(("input", "indices", "values", "accumulate"), args, strict=False)), **kwargs}
    if arguments.get("accumulate"):
        raise UnknownOperatorError("index_put with accumulate")
    return "setitem", {"input": arguments["input"], "index": tuple(arguments["indices"]), "value": arguments["values"]}


def _scatter(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``scatter(x, dim, index, src)`` and ``scatter(x, dim, index, value)``."""
    arguments = {"src" if key == "value" else _PARAMETER_NAMES.get(key, key): a for key, a in kwargs.items()}
    return "scatter", {**dict(zip(("input", "dim", "index", "src"), args, strict=False)), **arguments}


def _bernoulli_in_place(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    """``x.bernoulli_(p)``, whose default is a half; ``torch.bernoulli(x)`` takes its input for probabilities."""
    arguments = {"p": 0.5, **dict(zip(("input", "p"), args, strict=False)), **kwargs}
    if not isinstance(arguments["p"], (int, float)):
        raise UnknownOperatorError("bernoulli_ with a tensor of probabilities")
    return "bernoulli", {key: value for key, value in arguments.items() if key not in _DROPPED}


def _normal(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    raise UnknownOperatorError("normal as a function; torch.randn and Tensor.normal_ are known")


def _plain_softmax(name: str) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    """``torch._softmax``, whose third argument is whether a half becomes a float."""

    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {**dict(zip(("input", "dim", "half_to_float"), args, strict=False)), **kwargs}
        dtype = {"dtype": torch.float32} if arguments["half_to_float"] else {}
        return name, {"input": arguments["input"], "dim": arguments["dim"], **dtype}

    return bind_call


def _view(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    if (len(args) > 1 and isinstance(args[1], torch.dtype)) or "dtype" in kwargs:
        raise UnknownOperatorError("view as another dtype")
    shape = kwargs.get("size", args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:])
    return "reshape", {"input": args[0], "shape": shape}


def _unfold_method(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    return "unfold", {**dict(zip(("input", "dimension", "size", "step"), args, strict=False)), **kwargs}


def _renamed(name: str, parameters: tuple[str, ...]) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {key if key in parameters else _PARAMETER_NAMES.get(key, key): a for key, a in kwargs.items()}
        arguments.update(zip(parameters, args, strict=False))
        return name, {key: value for key, value in arguments.items() if key not in _DROPPED}

    return bind_call


def _softmax_call(name: str) -> Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]:
    def bind_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
        arguments = {**dict(zip(("input", "dim", "_stacklevel", "dtype"), args, strict=False)), **kwargs}
        if arguments.get("dim") is None:  # torch's own rule for softmax without a dimension
            arguments["dim"] = 0 if rank in (0, 1, 3) else 1
        if name == "softmin":
            raise UnknownOperatorError("softmin as a function; nn.Softmin is known")
        return name, {key: value for key, value in arguments.items() if key != "_stacklevel"}

    return bind_call


_NORM = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")

_SPECIAL_FUNCTIONS: dict[Any, Callable[[tuple[Any, ...], dict[str, Any], int | None], Bound]] = {
    **{f: _variance_call(f.__name__) for f in (torch.var, torch.std, torch.var_mean, torch.std_mean)},
    **{f: _variance_call(f.__name__) for f in (Tensor.var, Tensor.std)},
    **{f: _extreme(f.__name__) for f in (torch.max, torch.min, Tensor.max, Tensor.min)},
    torch.arange: _arange,
    Tensor.to: _to,
    Tensor.type: _to,
    Tensor.cpu: _moved("cpu"),
    Tensor.cuda: _moved("cuda"),
    Tensor.T.__get__: _reversed,  # type: ignore[attr-defined]
    Tensor.mT.__get__: _transposed,  # type: ignore[attr-defined]
    Tensor.t: _reversed,
    Tensor.t_: _reversed,
    torch.t: _reversed,
    Tensor.data.__get__: _one("detach"),  # type: ignore[attr-defined]
    Tensor.real.__get__: _one("real"),  # type: ignore[attr-defined]
    Tensor.imag.__get__: _one("imag"),  # type: ignore[attr-defined]
    torch.einsum: _einsum,
    torch.functional.einsum: _einsum,
    torch.meshgrid: _meshgrid,
    torch.functional.meshgrid: _meshgrid,
    Tensor.zero_: _one("fill", value=0),
    torch.zero_: _one("fill", value=0),
    torch.ravel: _one("reshape", shape=(-1,)),
    Tensor.ravel: _one("reshape", shape=(-1,)),
    torch.rsub: _rsub,
    torch.embedding: _embedding,
    Tensor.where: _renamed("where", ("input", "condition", "other")),
    **{
        getattr(owner, name): _renamed("clamp", ("input", "max"))
        for owner in (torch, Tensor)
        for name in ("clamp_max", "clamp_max_")
    },
    **{getattr(owner, name): _index_put for owner in (torch, Tensor) for name in ("index_put", "index_put_")},
    **dict.fromkeys((torch.scatter, Tensor.scatter, Tensor.scatter_), _scatter),
    torch._softmax: _plain_softmax("softmax"),
    torch._log_softmax: _plain_softmax("log_softmax"),
    # In torch and in torch.nn.functional their arguments are not the same.
    torch.batch_norm: _renamed("batch_norm", _NORM),
    torch.instance_norm: _renamed("instance_norm", (*_NORM[:5], "use_input_stats", *_NORM[6:])),
    torch.layer_norm: _renamed("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable")),
    torch.group_norm: _renamed("group_norm", ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled")),
    Tensor.view: _view,
    Tensor.unfold: _unfold_method,
    F.unfold: _renamed("im2col", ("input", "kernel_size", "dilation", "padding", "stride")),
    F.fold: _renamed("col2im", ("input", "output_size", "kernel_size", "dilation", "padding", "stride")),
    F.softmax: _softmax_call("softmax"),
    F.log_softmax: _softmax_call("log_softmax"),
    F.softmin: _softmax_call("softmin"),
    torch.dropout: _renamed("dropout", ("input", "p", "training")),
    torch.rms_norm: _renamed("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    Tensor.uniform_: _renamed("uniform", ("input", "low", "high")),
    Tensor.normal_: _renamed("normal", ("input", "mean", "std")),
    torch.normal: _normal,
    Tensor.bernoulli_: _bernoulli_in_place,
    Tensor.copy_: _renamed("copy", ("input", "src", "non_blocking")),
}
