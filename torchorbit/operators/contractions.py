"""Sums of products: linear layers, matrix products, attention. Labels meet along the contracted dimension."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchorbit.labels import Dim
from torchorbit.operators.declaring import Arguments, Contraction, Leaf, Shapes, operator
from torchorbit.operators.labelling import Labelled, Operands
from torchorbit.operators.resizing import Resized
from torchorbit.operators.shapes import Shape, are_floats, broadcast, misfit
from torchorbit.operators.spelling import Bound
from torchorbit.operators.sums import Meeting, Operand, Ranks, last_dimensions

NEEDLESS = {
    "resize": "no argument holds a length",
    "oracle": "zeros have no part in a sum of products",
}


# -- other ways of calling them


def _einsum_of(equation: str, operands: tuple[Tensor, ...]) -> Tensor:
    return torch.einsum(equation, *operands)


def _einsum_call(args: tuple[Any, ...], kwargs: dict[str, Any], rank: int | None) -> Bound:
    operands = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    return "einsum", {"equation": args[0], "operands": tuple(operands)}


# -- labels


def _linear_rule(operands: Operands) -> list[Dim]:
    x, weight, bias = operands.tensor(), operands.tensor("weight"), operands.maybe("bias")
    labels = operands.labels
    labels.meet(x.dims[-1], weight.dims[-1])
    operands.sink(weight.dims[-1])
    if len(weight.shape) == 1:
        return x.dims[:-1]
    out = weight.dims[0]
    if bias is not None and bias.shape[-1] == weight.shape[0]:
        out = labels.meet(out, bias.dims[-1])
    operands.source(weight.dims[0])
    return [*x.dims[:-1], out]


def _bilinear_rule(operands: Operands) -> list[Dim]:
    first, second, weight = operands.tensor("input1"), operands.tensor("input2"), operands.tensor("weight")
    labels = operands.labels
    labels.meet(first.dims[-1], weight.dims[1])
    labels.meet(second.dims[-1], weight.dims[2])
    out, bias = weight.dims[0], operands.maybe("bias")
    if bias is not None:
        out = labels.meet(out, bias.dims[0])
    operands.source(out)
    batch = [labels.meet(a, b) for a, b in zip(first.dims[:-1], second.dims[:-1], strict=True)]
    return [*batch, out]


def _product_labels(operands: Operands, first: Labelled, second: Labelled) -> list[Dim]:
    shape = tuple(operands.shape)
    labels = operands.labels
    left, right = first.dims[-1], second.dims[-2] if len(second.shape) > 1 else second.dims[-1]
    labels.meet(left, right)
    rows = [first.dims[-2]] if len(first.shape) > 1 else []
    columns = [second.dims[-1]] if len(second.shape) > 1 else []
    batch = shape[: len(shape) - len(rows) - len(columns)]
    stacks = [Labelled(tuple(t.shape[:-2]), t.dims[:-2]) for t in (first, second) if len(t.shape) > 2]
    return [*operands.broadcast(stacks, batch), *rows, *columns]


def _matmul_rule(operands: Operands) -> list[Dim]:
    return _product_labels(operands, operands.tensor(), operands.tensor("other"))


def _bmm_rule(operands: Operands) -> list[Dim]:
    return _product_labels(operands, operands.tensor(), operands.tensor("mat2"))


def _mv_rule(operands: Operands) -> list[Dim]:
    return _product_labels(operands, operands.tensor(), operands.tensor("vec"))


def _dot_rule(operands: Operands) -> list[Dim]:
    first, second = operands.tensors()
    operands.labels.meet(first.dims[0], second.dims[0])
    return []


def _outer_rule(operands: Operands) -> list[Dim]:
    return [operands.tensor().dims[0], operands.tensor("vec2").dims[0]]


def _addmm_rule(operands: Operands) -> list[Dim]:
    names = ("mat1", "mat2") if operands.operator == "addmm" else ("batch1", "batch2")
    product = _product_labels(operands, operands.tensor(names[0]), operands.tensor(names[1]))
    shape = tuple(operands.shape)
    return operands.broadcast([operands.tensor(), Labelled(shape, product)], shape)


def _tensordot_rule(operands: Operands) -> list[Dim]:
    first, second, axes = operands.tensor("a"), operands.tensor("b"), operands.arg("dims")
    if isinstance(axes, int):
        axes = (range(len(first.shape) - axes, len(first.shape)), range(axes))
    pairs = [(a % len(first.shape), b % len(second.shape)) for a, b in zip(*axes, strict=True)]
    for a, b in pairs:
        operands.labels.meet(first.dims[a], second.dims[b])
    used = [{a for a, _ in pairs}, {b for _, b in pairs}]
    return [
        dim for tensor, gone in zip((first, second), used, strict=True)
        for axis, dim in enumerate(tensor.dims) if axis not in gone
    ]  # fmt: skip


def _cdist_rule(operands: Operands) -> list[Dim]:
    first, second = operands.tensor("x1"), operands.tensor("x2")
    operands.labels.meet(first.dims[-1], second.dims[-1])
    stacks = [Labelled(tuple(t.shape[:-2]), t.dims[:-2]) for t in (first, second)]
    return [*operands.broadcast(stacks, tuple(operands.shape[:-2])), first.dims[-2], second.dims[-2]]


def _subscripts(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of every operand of an einsum and of its result, with letters in place of an ellipsis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    longest = max(
        [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term],
        default=0,
    )
    stand_in = "".join(itertools.islice(free, longest))
    written = []
    for term, rank in zip(terms, ranks, strict=True):
        missing = rank - len(term.replace("...", ""))
        written.append(term.replace("...", stand_in[longest - missing :] if missing else ""))
    if not arrow:
        every = "".join(terms).replace("...", "")
        right = "..." * ("..." in left) + "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    return written, right.replace("...", stand_in)


def _einsum_rule(operands: Operands) -> list[Dim]:
    tensors = list(operands.args["operands"])
    terms, result = _subscripts(operands.args["equation"], [len(tensor.shape) for tensor in tensors])
    meeting: dict[str, list[tuple[int, Dim]]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, length, dim in zip(term, tensor.shape, tensor.dims, strict=True):
            meeting.setdefault(letter, []).append((length, dim))
    dims: dict[str, Dim] = {}
    for letter, found in meeting.items():
        longest = max(length for length, _ in found)
        dims[letter] = operands.labels.meet(*[dim for length, dim in found if length == longest])
    return [dims[letter] for letter in result]


def _attention_rule(operands: Operands) -> list[Dim]:
    query, key, value = operands.tensor("query"), operands.tensor("key"), operands.tensor("value")
    mask, labels = operands.maybe("attn_mask"), operands.labels
    labels.meet(query.dims[-1], key.dims[-1])
    rows, columns = query.dims[-2], labels.meet(key.dims[-2], value.dims[-2])
    if operands.arg("is_causal"):
        # Which tokens a token sees depends on its place among them.
        operands.freeze(rows)
        operands.freeze(columns)
        rows = columns = None
    batch = tuple(query.shape[:-2])
    stacks = [Labelled(tuple(t.shape[:-2]), list(t.dims[:-2])) for t in (query, key, value)]
    if operands.arg("enable_gqa") and query.shape[-3] != key.shape[-3]:
        # Every head of keys and values serves several heads of queries.
        share = query.shape[-3] // key.shape[-3]
        for stack in stacks[1:]:
            heads = stack.dims[-1]
            stack.dims[-1] = np.repeat(heads, share) if isinstance(heads, np.ndarray) else heads
            stack.shape = batch
    if mask is not None and len(mask.shape) >= 2:
        if mask.shape[-2] != 1:
            rows = labels.meet(rows, mask.dims[-2])
        if mask.shape[-1] != 1:
            labels.meet(columns, mask.dims[-1])
        stacks.append(Labelled(tuple(mask.shape[:-2]), mask.dims[:-2]))
    return [*operands.broadcast(stacks, batch), rows, value.dims[-1]]


def _similarity_rule(operands: Operands) -> list[Dim]:
    return _compared(operands, operands.arg("dim"), keep=False)


def _distance_rule(operands: Operands) -> list[Dim]:
    return _compared(operands, -1, keep=operands.arg("keepdim"))


def _compared(operands: Operands, axis: int, *, keep: bool) -> list[Dim]:
    """The labels of a comparison of vectors, which are along one dimension."""
    first, second = operands.tensor("x1"), operands.tensor("x2")
    shape = tuple(np.broadcast_shapes(first.shape, second.shape))
    dims = operands.broadcast([first, second], shape)
    axis %= len(dims)
    return [*dims[:axis], *([None] if keep else []), *dims[axis + 1 :]]


# -- shapes


def _linear_shape(args: Arguments) -> Shape | None:
    x, weight, bias = args["input"], args.get("weight"), args.get("bias")
    if weight is None or not are_floats(x, weight, bias) or weight.dim() != 2 or x.dim() < 2:
        return None
    if x.shape[-1] != weight.shape[1]:
        raise misfit(f"the input has shape {tuple(x.shape)}", f"{weight.shape[1]} features")
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return (*x.shape[:-1], weight.shape[0])


def _matmul_shape(args: Arguments) -> Shape | None:
    x, y = args["input"], args["other"]
    if not are_floats(x, y) or x.dim() != y.dim() or x.dim() < 3 or x.shape[:-2] != y.shape[:-2]:
        return None
    if x.shape[-1] != y.shape[-2]:
        raise misfit(f"the operands have shapes {tuple(x.shape)} and {tuple(y.shape)}", "matrices that fit")
    return (*x.shape[:-1], y.shape[-1])


def _attention_shape(args: Arguments) -> Shape | None:
    query, key, value, mask = args["query"], args["key"], args["value"], args.get("attn_mask")
    if not are_floats(query, key, value) or query.dim() < 3 or not query.dim() == key.dim() == value.dim():
        return None
    if args.get("enable_gqa") or not 0 <= args.get("dropout_p", 0.0) <= 1:
        return None
    batch = tuple(query.shape[:-2])
    if not batch == tuple(key.shape[:-2]) == tuple(value.shape[:-2]) or query.shape[-1] != key.shape[-1]:
        return None
    if key.shape[-2] != value.shape[-2]:
        return None
    if mask is not None:
        fits = mask.dtype is torch.bool or mask.dtype is query.dtype
        scores = (*batch, query.shape[-2], key.shape[-2])
        if args.get("is_causal") or not fits or broadcast(mask.shape, scores) != scores:
            return None
    return (*query.shape[:-1], value.shape[-1])


# -- multiply-accumulates


def _linear_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * shapes("weight")[-1])


def _bilinear_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.prod(result) * math.prod(shapes("weight")[1:]))


def _product_cost(first: str) -> Any:
    """A matrix product, of which one operand has the rows."""

    def cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
        return float(math.prod(result) * shapes(first)[-1])

    return cost


def _tensordot_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    return float(math.sqrt(math.prod(result) * math.prod(shapes("a")) * math.prod(shapes("b"))))


def _einsum_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    """One operand after the other is multiplied in; one alone is only put in another order, or summed."""
    operands = shapes("operands")
    terms, left = _subscripts(args["equation"], [len(shape) for shape in operands])
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        for letter, length in zip(term, shape, strict=True):
            lengths[letter] = max(lengths.get(letter, 1), length)
    total, so_far = 0, set(terms[0])
    for n, term in enumerate(terms[1:], start=1):
        so_far |= set(term)
        total += math.prod([lengths[letter] for letter in so_far])
        so_far &= set(left).union(*terms[n + 1 :])
    return float(total)


def _attention_cost(shapes: Shapes, result: Shape, args: dict[str, Any]) -> float:
    rows = math.prod(result[:-1])
    return float(rows * shapes("key")[-2] * (shapes("query")[-1] + result[-1]))


# -- numbers after a removal


def _attention_resize(call: Resized) -> None:
    # The scale was made for the width that the model was trained with.
    if call.args.get("scale") is None and call.masks("query")[-1] is not None:
        call.args["scale"] = call.shape_of("query")[-1] ** -0.5


def _settle_linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _settle_bilinear(module: Any) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


# -- channels


def _product(first: str, second: str) -> Contraction:
    """The dimensions that meet in a matrix product of two operands."""
    return lambda args, rank: [(Operand(first, rank(first) - 1), Operand(second, max(rank(second) - 2, 0)))]


def _cdist_contraction(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [(Operand("x1", rank("x1") - 1), Operand("x2", rank("x2") - 1))]


def _tensordot_contraction(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    axes: Any = args.get("dims", 2)
    if isinstance(axes, int):
        axes = (range(rank("a") - axes, rank("a")), range(axes))
    pairs: Sequence[tuple[int, int]] = list(zip(*axes, strict=True))
    return [(Operand("a", a % rank("a")), Operand("b", b % rank("b"))) for a, b in pairs]


def _einsum_contraction(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    terms, result = _subscripts(args["equation"], list(rank("operands")))
    letters = dict.fromkeys(letter for term in terms for letter in term if letter not in result)
    return [
        tuple([Operand("operands", term.index(letter), n) for n, term in enumerate(terms) if letter in term])
        for letter in letters
    ]


def _attention_contraction(args: dict[str, Any], rank: Ranks) -> list[Meeting]:
    return [
        (Operand("query", rank("query") - 1), Operand("key", rank("key") - 1)),
        (Operand("key", rank("key") - 2), Operand("value", rank("value") - 2)),
    ]


_OF_COMPARISONS = {"cost": "fvcore does not count it", "contraction": "scores look at what it is given"}


def _last(rank: int, weight_rank: int, module: nn.Module | None) -> int:
    return rank - 1


OPERATORS = [
    operator(
        "matmul(input, other)",
        names="__matmul__",
        reflected="__rmatmul__",
        kinds={"other": "tensor"},
        rule=_matmul_rule,
        shape=_matmul_shape,
        layout="contiguous",
        cost=_product_cost("input"),
        contraction=_product("input", "other"),
    ),
    operator("bmm(input, mat2)", rule=_bmm_rule, cost=_product_cost("input"), contraction=_product("input", "mat2")),
    operator("mm(input, mat2)", rule=_bmm_rule, cost=_product_cost("input"), contraction=_product("input", "mat2")),
    operator("mv(input, vec)", rule=_mv_rule, cost=_product_cost("input"), contraction=_product("input", "vec")),
    operator(
        "dot(input, tensor)", rule=_dot_rule, cost=_product_cost("input"), contraction=_product("input", "tensor")
    ),
    operator("vdot(input, other)", rule=_dot_rule, cost=_product_cost("input"), contraction=_product("input", "other")),
    operator(
        "outer(input, vec2)",
        rule=_outer_rule,
        cost=_product_cost("input"),
        needless={"contraction": "it sums over nothing"},
    ),
    operator(
        "addmm(input, mat1, mat2, *, beta=1, alpha=1)",
        rule=_addmm_rule,
        cost=_product_cost("mat1"),
        contraction=_product("mat1", "mat2"),
    ),
    operator(
        "baddbmm(input, batch1, batch2, *, beta=1, alpha=1)",
        rule=_addmm_rule,
        cost=_product_cost("batch1"),
        contraction=_product("batch1", "batch2"),
    ),
    operator(
        "tensordot(a, b, dims=2)",
        kinds={"dims": "int|pairs"},
        rule=_tensordot_rule,
        cost=_tensordot_cost,
        contraction=_tensordot_contraction,
    ),
    operator(
        "cdist(x1, x2, p=2.0, compute_mode='use_mm_for_euclid_dist_if_necessary')",
        rule=_cdist_rule,
        contraction=_cdist_contraction,
        needless={"cost": "fvcore does not count it"},
    ),
    operator(
        "einsum(equation, operands)",
        function=_einsum_of,
        calls=dict.fromkeys((torch.einsum, torch.functional.einsum), _einsum_call),
        rule=_einsum_rule,
        cost=_einsum_cost,
        contraction=_einsum_contraction,
    ),
    operator(
        "linear(input, weight, bias=None)",
        modules=[Leaf(nn.Linear, tensors=("weight", "bias"), complete=True, settle=_settle_linear)],
        rule=_linear_rule,
        shape=_linear_shape,
        layout="contiguous",
        cost=_linear_cost,
        contraction=last_dimensions("input"),
        sinks=True,
        channels=_last,
        bias_of_nothing=True,
        in_full=lambda call: {len(call.shape_of("input")) - 1},
        constant="computed",
    ),
    operator(
        "bilinear(input1, input2, weight, bias=None)",
        function=F.bilinear,
        modules=[Leaf(nn.Bilinear, inputs=("input1", "input2"), tensors=("weight", "bias"), settle=_settle_bilinear)],
        rule=_bilinear_rule,
        cost=_bilinear_cost,
        contraction=last_dimensions("input1", "input2"),
        channels=_last,
        channels_in=False,
    ),
    operator(
        "scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,\
 enable_gqa=False)",
        kinds={"value": "tensor"},
        rule=_attention_rule,
        shape=_attention_shape,
        layout="contiguous",
        cost=_attention_cost,
        resize=_attention_resize,
        contraction=_attention_contraction,
    ),
    operator(
        "cosine_similarity(x1, x2, dim=1, eps=1e-08)",
        modules=[Leaf(nn.CosineSimilarity, inputs=("x1", "x2"), attributes=("dim", "eps"))],
        kinds={"dim": "int"},
        rule=_similarity_rule,
        needless=_OF_COMPARISONS,
    ),
    operator(
        "pairwise_distance(x1, x2, p=2.0, eps=1e-06, keepdim=False)",
        modules=[
            Leaf(
                nn.PairwiseDistance,
                inputs=("x1", "x2"),
                attributes=("p=norm", "eps", "keepdim"),
                kept_as={"p": "norm"},
            )
        ],
        rule=_distance_rule,
        needless=_OF_COMPARISONS,
    ),
]
