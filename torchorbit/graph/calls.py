"""What a vertex calls, written one way: an operator of the table and its arguments by name.

A ``Conv2d`` vertex and a vertex of the operator ``conv2d`` compute the same thing. Whoever asks what a vertex does to
its operands (orbits, FLOPs, the proof of a removal) asks here, and needs one answer for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchorbit.arguments import Attr
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex


@dataclass(slots=True)
class Call:
    """An operator with its arguments.

    Attributes:
        operator: its name in the table of operators; for a module kept whole, the qualified name of its class.
        args: arguments by name, as in vertices; parameters and buffers of a leaf module are `Attr`.
    """

    operator: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Leaf:
    operator: str
    inputs: tuple[str, ...] = ("input",)
    tensors: tuple[str, ...] = ()  # parameters and buffers
    values: tuple[str, ...] = ()  # attributes; "argument=attribute" where the names differ
    fixed: tuple[tuple[str, Any], ...] = ()


_CONV = ("stride", "padding", "dilation", "groups")
_NORM = ("running_mean", "running_var", "weight", "bias")
_POOL = ("kernel_size", "stride", "padding")

_LEAVES: dict[str, _Leaf] = {
    **{f"Conv{n}d": _Leaf(f"conv{n}d", tensors=("weight", "bias"), values=_CONV) for n in (1, 2, 3)},
    **{
        f"ConvTranspose{n}d": _Leaf(
            f"conv_transpose{n}d", tensors=("weight", "bias"), values=(*_CONV, "output_padding")
        )
        for n in (1, 2, 3)
    },
    "Linear": _Leaf("linear", tensors=("weight", "bias")),
    "Bilinear": _Leaf("bilinear", ("input1", "input2"), tensors=("weight", "bias")),
    "Embedding": _Leaf("embedding", tensors=("weight",)),
    **{f"BatchNorm{n}d": _Leaf("batch_norm", tensors=_NORM) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": _Leaf("instance_norm", tensors=_NORM) for n in (1, 2, 3)},
    "LayerNorm": _Leaf("layer_norm", tensors=("weight", "bias"), values=("normalized_shape", "eps")),
    "RMSNorm": _Leaf("rms_norm", tensors=("weight",), values=("normalized_shape", "eps")),
    "GroupNorm": _Leaf("group_norm", tensors=("weight", "bias"), values=("num_groups", "eps")),
    "LocalResponseNorm": _Leaf("local_response_norm", values=("size",)),
    "PReLU": _Leaf("prelu", tensors=("weight",)),
    "GLU": _Leaf("glu", values=("dim",)),
    "Softmax": _Leaf("softmax", values=("dim",)),
    "Softmax2d": _Leaf("softmax", fixed=(("dim", -3),)),
    "LogSoftmax": _Leaf("log_softmax", values=("dim",)),
    **{f"MaxPool{n}d": _Leaf(f"max_pool{n}d", values=(*_POOL, "return_indices")) for n in (1, 2, 3)},
    **{f"AvgPool{n}d": _Leaf(f"avg_pool{n}d", values=_POOL) for n in (1, 2, 3)},
    **{f"LPPool{n}d": _Leaf(f"lp_pool{n}d", values=("kernel_size", "stride")) for n in (1, 2)},
    **{f"AdaptiveAvgPool{n}d": _Leaf(f"adaptive_avg_pool{n}d", values=("output_size",)) for n in (1, 2, 3)},
    **{
        f"AdaptiveMaxPool{n}d": _Leaf(f"adaptive_max_pool{n}d", values=("output_size", "return_indices"))
        for n in (1, 2, 3)
    },
    "Identity": _Leaf("clone"),
    "Flatten": _Leaf("flatten", values=("start_dim", "end_dim")),
    "Unflatten": _Leaf("unflatten", values=("dim", "sizes=unflattened_size")),
    "Upsample": _Leaf("interpolate", values=("size", "scale_factor", "mode")),
    "UpsamplingNearest2d": _Leaf("interpolate", values=("size", "scale_factor", "mode")),
    "UpsamplingBilinear2d": _Leaf("interpolate", values=("size", "scale_factor", "mode")),
    "PixelShuffle": _Leaf("pixel_shuffle", values=("upscale_factor",)),
    "PixelUnshuffle": _Leaf("pixel_unshuffle", values=("downscale_factor",)),
    "ChannelShuffle": _Leaf("channel_shuffle", values=("groups",)),
    "Fold": _Leaf("col2im", values=("output_size", "kernel_size", "dilation", "padding", "stride")),
    "Unfold": _Leaf("im2col", values=("kernel_size", "dilation", "padding", "stride")),
    **{
        f"{kind}Pad{n}d": _Leaf("pad", values=("pad=padding",), fixed=(("mode", mode),))
        for kind, mode in (
            ("Zero", "constant"),
            ("Constant", "constant"),
            ("Reflection", "reflect"),
            ("Replication", "replicate"),
            ("Circular", "circular"),
        )
        for n in (1, 2, 3)
    },
    **{
        name: _Leaf(operator)
        for name, operator in (
            ("ReLU", "relu"), ("ReLU6", "relu6"), ("GELU", "gelu"), ("SiLU", "silu"), ("Mish", "mish"),
            ("Sigmoid", "sigmoid"), ("Tanh", "tanh"), ("Hardswish", "hardswish"), ("Hardsigmoid", "hardsigmoid"),
            ("Hardtanh", "hardtanh"), ("ELU", "elu"), ("CELU", "celu"), ("SELU", "selu"), ("LeakyReLU", "leaky_relu"),
            ("RReLU", "rrelu"), ("Softplus", "softplus"), ("Softsign", "softsign"), ("Softshrink", "softshrink"),
            ("Hardshrink", "hardshrink"), ("Tanhshrink", "tanhshrink"), ("Threshold", "threshold"),
            ("LogSigmoid", "logsigmoid"), ("Dropout", "dropout"), ("Dropout1d", "dropout"), ("Dropout2d", "dropout"),
            ("Dropout3d", "dropout"), ("AlphaDropout", "dropout"), ("FeatureAlphaDropout", "dropout"),
            ("StochasticDepth", "dropout"),
        )
    },
}  # fmt: skip

#: Leaf modules with no operator of their own; rules are registered for them by these names.
MODULE_OPERATORS = ("RNN", "LSTM", "GRU", "CosineSimilarity", "PairwiseDistance", "Softmin")


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a module itself; None where it has none of that name."""
    for members in (module._parameters, module._buffers):
        if name in members:
            return members[name]
    found = getattr(module, name, None)  # a view that a recurrent layer keeps of itself
    return found if isinstance(found, Tensor) else None


def call_of(vertex: Vertex, module_at: Callable[[str], nn.Module]) -> Call | OperatorVertex | None:
    """What a vertex calls.

    Args:
        vertex: any vertex of a graph without nested blocks.
        module_at: gives the submodule at a path.

    Returns:
        The call; None for an input. A vertex of an operator is its own call. A leaf that has no operator, and a module
        that is kept whole, is a call of its class: its positional arguments are named by their position, and every
        parameter and buffer of it is an argument under its own name.
    """
    if isinstance(vertex, OperatorVertex):
        return vertex
    if isinstance(vertex, InputVertex):
        return None
    module = module_at(vertex.target)
    row = _LEAVES.get(vertex.leaf)
    if row is None:
        return _whole(vertex, module)
    args: dict[str, Any] = dict(zip(row.inputs, vertex.args, strict=False))
    args.update(vertex.kwargs)
    for name in row.tensors:
        if tensor_of(module, name) is not None:
            args[name] = Attr(f"{vertex.target}.{name}")
    for name in row.values:
        argument, _, attribute = name.partition("=")
        args[argument] = getattr(module, attribute or argument)
    args.update(row.fixed)
    return Call(row.operator, args)


def _whole(vertex: ModuleVertex, module: nn.Module) -> Call:
    args: dict[str, Any] = {str(position): arg for position, arg in enumerate(vertex.args)}
    args.update(vertex.kwargs)
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        args[name] = Attr(f"{vertex.target}.{name}")
    kind = type(module)
    return Call(vertex.leaf or f"{kind.__module__}.{kind.__qualname__}", args)
