"""Sums of products: linear layers, matrix products, attention. Labels meet along the contracted dimension."""

from __future__ import annotations

import itertools
import string

import numpy as np

from torchorbit.labels import Dim
from torchorbit.operators.registry import Labelled, Operands, rule


@rule("linear")
def _linear(operands: Operands) -> list[Dim]:
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


@rule("bilinear")
def _bilinear(operands: Operands) -> list[Dim]:
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


def _matmul(operands: Operands, first: Labelled, second: Labelled) -> list[Dim]:
    shape = tuple(operands.shape)
    labels = operands.labels
    left, right = first.dims[-1], second.dims[-2] if len(second.shape) > 1 else second.dims[-1]
    labels.meet(left, right)
    rows = [first.dims[-2]] if len(first.shape) > 1 else []
    columns = [second.dims[-1]] if len(second.shape) > 1 else []
    batch = shape[: len(shape) - len(rows) - len(columns)]
    stacks = [Labelled(tuple(t.shape[:-2]), t.dims[:-2]) for t in (first, second) if len(t.shape) > 2]
    return [*operands.broadcast(stacks, batch), *rows, *columns]


@rule("matmul")
def _matrix_product(operands: Operands) -> list[Dim]:
    return _matmul(operands, operands.tensor(), operands.tensor("other"))


@rule("bmm", "mm")
def _bmm(operands: Operands) -> list[Dim]:
    return _matmul(operands, operands.tensor(), operands.tensor("mat2"))


@rule("mv")
def _mv(operands: Operands) -> list[Dim]:
    return _matmul(operands, operands.tensor(), operands.tensor("vec"))


@rule("dot")
def _dot(operands: Operands) -> list[Dim]:
    operands.labels.meet(operands.tensor().dims[0], operands.tensor("tensor").dims[0])
    return []


@rule("outer")
def _outer(operands: Operands) -> list[Dim]:
    return [operands.tensor().dims[0], operands.tensor("vec2").dims[0]]


@rule("addmm", "baddbmm")
def _addmm(operands: Operands) -> list[Dim]:
    names = ("mat1", "mat2") if operands.operator == "addmm" else ("batch1", "batch2")
    product = _matmul(operands, operands.tensor(names[0]), operands.tensor(names[1]))
    shape = tuple(operands.shape)
    return operands.broadcast([operands.tensor(), Labelled(shape, product)], shape)


@rule("tensordot")
def _tensordot(operands: Operands) -> list[Dim]:
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


@rule("cdist")
def _cdist(operands: Operands) -> list[Dim]:
    first, second = operands.tensor("x1"), operands.tensor("x2")
    operands.labels.meet(first.dims[-1], second.dims[-1])
    stacks = [Labelled(tuple(t.shape[:-2]), t.dims[:-2]) for t in (first, second)]
    return [*operands.broadcast(stacks, tuple(operands.shape[:-2])), first.dims[-2], second.dims[-2]]


def subscripts(equation: str, ranks: list[int]) -> tuple[list[str], str]:
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


@rule("einsum")
def _einsum(operands: Operands) -> list[Dim]:
    tensors = list(operands.args["operands"])
    terms, result = subscripts(operands.args["equation"], [len(tensor.shape) for tensor in tensors])
    meeting: dict[str, list[tuple[int, Dim]]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, length, dim in zip(term, tensor.shape, tensor.dims, strict=True):
            meeting.setdefault(letter, []).append((length, dim))
    dims: dict[str, Dim] = {}
    for letter, found in meeting.items():
        longest = max(length for length, _ in found)
        dims[letter] = operands.labels.meet(*[dim for length, dim in found if length == longest])
    return [dims[letter] for letter in result]


@rule("scaled_dot_product_attention")
def _attention(operands: Operands) -> list[Dim]:
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
