"""What may stand in the arguments of operators and in the configurations of leaf modules.

Two closed tables say what can be called; this one says with what. The kinds go by the names of arguments, which mean
the same wherever they stand; where one does not, the operator or the class is declared with its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchorbit.operators.table import LEAVES, OPERATORS

#: Integers that count or measure something lie between ``-MAX_INT`` and ``MAX_INT``.
MAX_INT = 2**31 - 1
_MAX_DIMS = 64

# Kinds, alternatives joined by "|", and the arguments that are of them.
_KINDS = {
    "tensor": """
        input input1 input2 tensor1 tensor2 condition mask real imag abs angle indices index tensor boundaries mat1
        mat2 vec vec2 batch1 batch2 a b x x1 x2 query key grid theta target
    """,
    "tensor|none": "weight bias running_mean running_var attn_mask",
    "tensor|number": "other exponent value fill_value src",
    "tensor|number|none": "min max",
    "tensors": "tensors operands",
    "number": """
        alpha beta eps min_val max_val negative_slope lower upper threshold lambd p start end step low high mean std
        dropout_p init dropout correction
    """,
    "number|none": "momentum nan posinf neginf scale max_norm",
    "number|numbers|none": "scale_factor",
    "number|str": "ord",
    "number|str|none": "norm_type",
    "bool": """
        training keepdim largest sorted descending stable out_int32 right scale_grad_by_freq sparse is_causal
        enable_gqa use_input_stats ceil_mode return_indices count_include_pad antialias inplace affine
        track_running_stats elementwise_affine batch_first bidirectional scale_by_keep
    """,
    "bool|none": "align_corners recompute_scale_factor",
    "int": """
        decimals k start_dim end_dim dim0 dim1 dim2 length chunks upscale_factor downscale_factor groups offset diagonal
        num_classes num_groups steps dimension in_channels out_channels in_features out_features in1_features
        in2_features num_embeddings embedding_dim num_features num_channels num_parameters input_size hidden_size
        num_layers proj_size
    """,
    "int|none": "n m padding_idx divisor_override",
    "int|ints": "shifts source destination dims kernel_size dilation output_padding normalized_shape pad",
    "int|ints|none": "dim size s stride",
    "int|ints|str": "padding",
    "int|lengths|none": "output_size",
    "int|sections": "split_size_or_sections indices_or_sections",
    "ints": "shape sizes unflattened_size",
    "int|ints|tensor": "repeats",
    "str": "approximate indexing compute_mode equation mode padding_mode message nonlinearity",
    "str|none": "rounding_mode norm",
    "dtype|none": "dtype",
    "device|none": "device",
    "memory_format|none": "memory_format",
}

# The bias of a leaf module is a flag; of an operator, it is the tensor.
_LEAF_BIAS = "bool"


def _is_int(value: Any) -> bool:
    return type(value) is int and -MAX_INT <= value <= MAX_INT


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex))


def _sequence(item: Callable[[Any], bool], longest: int | None = _MAX_DIMS) -> Callable[[Any], bool]:
    def is_sequence(value: Any) -> bool:
        short = isinstance(value, (tuple, list)) and (longest is None or len(value) <= longest)
        return short and all(item(entry) for entry in value)

    return is_sequence


def _is_index(value: Any, depth: int = 0) -> bool:
    if value is None or value is Ellipsis or isinstance(value, (bool, int, Tensor)):
        return True
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return all(part is None or (isinstance(part, int) and not isinstance(part, bool)) for part in parts)
    return isinstance(value, (tuple, list)) and depth < 4 and all(_is_index(entry, depth + 1) for entry in value)


_is_ints = _sequence(_is_int)
_TESTS: dict[str, Callable[[Any], bool]] = {
    "none": lambda value: value is None,
    "tensor": lambda value: isinstance(value, Tensor),
    "tensors": _sequence(lambda entry: isinstance(entry, Tensor), None),
    "number": _is_number,
    "numbers": _sequence(_is_number),
    "bool": lambda value: value is True or value is False or (type(value) is int and value in (0, 1)),
    "int": _is_int,
    "ints": _is_ints,
    "lengths": _sequence(lambda entry: entry is None or _is_int(entry)),
    "sections": _sequence(_is_int, None),
    "pairs": _sequence(lambda entry: _is_int(entry) or _is_ints(entry)),
    "index": _is_index,
    "str": lambda value: isinstance(value, str),
    "dtype": lambda value: isinstance(value, torch.dtype),
    "device": lambda value: isinstance(value, torch.device),
    "memory_format": lambda value: isinstance(value, torch.memory_format),
}

_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names.split()}


def kind_of(owner: str, argument: str, *, leaf: bool = False) -> str:
    """The kind of an argument of an operator, or of the constructor of a leaf module.

    Args:
        owner: name of the operator or of the class.
        argument: name of the argument.
        leaf: whether it is one of a class.
    """
    if leaf and argument == "bias":
        return _LEAF_BIAS
    kinds = LEAVES[owner].kinds if leaf else OPERATORS[owner].kinds
    return kinds.get(argument) or _KIND_OF[argument]


def is_of_kind(value: Any, kind: str) -> bool:
    """Whether a value may stand where a kind is expected."""
    return any(_TESTS[word](value) for word in kind.split("|"))
