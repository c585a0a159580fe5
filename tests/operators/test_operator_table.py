"""Every row of the table of operators: one model that calls it, in each way in which it is usually written."""

import operator

import pytest
import torch
import torch.nn.functional as F

from tests.models import assert_converts, operators, refusal
from torchorbit.operators.table import OPERATORS

pytestmark = pytest.mark.numeric

torch.manual_seed(0)
X = torch.randn(2, 4, 6)
IMAGE = torch.randn(2, 4, 8, 8)
POSITIVE = torch.rand(2, 4, 6) + 0.5
UNIT = torch.rand(2, 4, 6) * 1.8 - 0.9
WHOLE = torch.randint(0, 8, (2, 4, 6))
FLAGS = torch.rand(2, 4, 6) > 0.5
COMPLEX = torch.complex(X, X.flip(0))
PAIR = (X, torch.randn(2, 4, 6))
SQUARE = torch.randn(2, 5, 5)
W1 = torch.randn(4, 2, 3)
W2 = torch.randn(4, 2, 3, 3)
W3 = torch.randn(4, 2, 2, 2, 2)
VOLUME = torch.randn(2, 4, 5, 5, 5)
PICK = torch.tensor([0, 2, 1])


def at(tensor, index):
    """An index tensor of the rank of ``tensor``, made in forward."""
    return torch.tensor(index).expand(*tensor.shape[:-1], len(index))


def written(base, write):
    """What a function leaves in a copy of a tensor that it writes into."""
    out = base.clone()
    write(out)
    return out


# Operator -> (inputs, ways of writing it).
CASES = {
    "add": (PAIR, [
        lambda x, y: x + y, torch.add, lambda x, y: x.add(y), operator.add, lambda x, y: x.clone().add_(y),
        lambda x, y: operator.iadd(x.clone(), y), lambda x, y: torch.add(x, y, alpha=0.5), lambda x, y: x.add(other=y),
        lambda x, y: torch.add(input=x, other=y), lambda x, y: 1 + x, lambda x, y: sum([x, y]),
        lambda x, y: x.__radd__(y), lambda x, y: x.add(y, alpha=2), lambda x, y: x.clone().add_(y, alpha=2),
    ]),
    "sub": (PAIR, [
        lambda x, y: x - y, torch.sub, lambda x, y: x.sub(y), lambda x, y: 1 - x, lambda x, y: torch.subtract(x, y),
        lambda x, y: torch.rsub(x, y), lambda x, y: torch.sub(x, y, alpha=3), lambda x, y: x.clone().sub_(y),
        lambda x, y: operator.isub(x.clone(), y), lambda x, y: torch.rsub(x, y, alpha=2), lambda x, y: torch.rsub(x, other=y),
        lambda x, y: torch.rsub(input=x, other=y, alpha=2), lambda x, y: torch.sub(x1=x, x2=y),
        lambda x, y: torch.rsub(x, 1, 2), lambda x, y: torch.rsub(x, 1, alpha=2),
    ]),
    "mul": (PAIR, [
        lambda x, y: x * y, torch.mul, lambda x, y: x.mul(y), lambda x, y: 2 * x, torch.multiply,
        lambda x, y: x.clone().mul_(y), lambda x, y: operator.imul(x.clone(), 3), lambda x, y: x.mul(other=2.0),
    ]),
    "div": (PAIR, [
        lambda x, y: x / y, torch.div, lambda x, y: x.div(y), lambda x, y: 1 / x, torch.true_divide, torch.divide,
        lambda x, y: x.div(y, rounding_mode="floor"), lambda x, y: x.clone().div_(y), lambda x, y: x.true_divide(2),
        lambda x, y: torch.div(x, y, rounding_mode="trunc"), lambda x, y: operator.itruediv(x.clone(), 2),
    ]),
    "floor_divide": (PAIR, [lambda x, y: x // y, torch.floor_divide, lambda x, y: x // 0.3, lambda x, y: 2 // y]),
    "remainder": (PAIR, [lambda x, y: x % y, torch.remainder, lambda x, y: x % 0.3, lambda x, y: 3 % y]),
    "fmod": (PAIR, [torch.fmod, lambda x, y: x.fmod(0.3)]),
    "pow": (POSITIVE, [
        lambda x: x**2, lambda x: 2**x, lambda x: torch.pow(x, 0.5), lambda x: x.pow(x), lambda x: torch.pow(2.0, x),
        lambda x: x.clone().pow_(2), lambda x: x.pow(exponent=3),
    ]),
    "eq": (WHOLE, [lambda x: x == 3, lambda x: torch.eq(x, 3), lambda x: x.eq(x.flip(0)), lambda x: 3 == x]),
    "ne": (WHOLE, [lambda x: x != 3, lambda x: torch.ne(x, 3), lambda x: x.not_equal(3)]),
    "lt": (X, [lambda x: x < 0, lambda x: torch.lt(x, 0.1), lambda x: x.less(0)]),
    "le": (X, [lambda x: x <= 0, lambda x: x.le(0), lambda x: 0 >= x]),
    "gt": (X, [lambda x: x > 0, lambda x: 0 < x, lambda x: x.greater(0.2)]),
    "ge": (X, [lambda x: x >= 0, lambda x: torch.greater_equal(x, 0)]),
    "bitwise_and": (FLAGS, [lambda x: x & x.flip(0), lambda x: torch.bitwise_and(x, ~x.flip(0)), lambda x: True & x]),
    "bitwise_or": (FLAGS, [lambda x: x | x.flip(0), lambda x: operator.ior(x.clone(), x.flip(0))]),
    "bitwise_xor": (FLAGS, [lambda x: x ^ x.flip(0), lambda x: x.bitwise_xor(x.flip(0))]),
    "logical_and": (FLAGS, [lambda x: x.logical_and(x.flip(0))]),
    "logical_or": (FLAGS, [lambda x: torch.logical_or(x, x.flip(0))]),
    "logical_xor": (FLAGS, [lambda x: torch.logical_xor(x, x.flip(0))]),
    "maximum": (PAIR, [
        torch.maximum, lambda x, y: torch.max(x, y), lambda x, y: x.max(y), lambda x, y: torch.max(x, other=y),
        lambda x, y: torch.max(input=x, other=y),
    ]),
    "minimum": (PAIR, [torch.minimum, lambda x, y: torch.min(x, y), lambda x, y: x.min(y)]),
    "atan2": (PAIR, [torch.atan2, lambda x, y: torch.arctan2(x, y)]),
    "hypot": (PAIR, [torch.hypot]),
    "logaddexp": (PAIR, [torch.logaddexp]),
    "lerp": (PAIR, [lambda x, y: torch.lerp(x, y, 0.3), lambda x, y: x.lerp(y, x), lambda x, y: x.clone().lerp_(y, 0.1)]),
    "addcmul": (PAIR, [lambda x, y: torch.addcmul(x, y, y, value=2), lambda x, y: x.clone().addcmul_(y, y)]),
    "addcdiv": (PAIR, [lambda x, y: x.addcdiv(y, y.abs() + 1, value=0.5)]),
    "where": (PAIR, [
        lambda x, y: torch.where(x > 0, x, y), lambda x, y: x.where(x > 0, y), lambda x, y: torch.where(x > 0, x, 0.0),
        lambda x, y: torch.where(condition=x > 0, input=x, other=y), lambda x, y: (x > 0).where(y > 0, x < y),
    ]),
    "masked_fill": (X, [
        lambda x: x.masked_fill(x > 0, 1.0), lambda x: torch.masked_fill(x, x > 0, float("-inf")),
        lambda x: x.clone().masked_fill_(x < 0, value=2.0),
    ]),
    "clamp": (X, [
        lambda x: x.clamp(-0.5, 0.5), lambda x: torch.clamp(x, min=0), lambda x: x.clamp(max=0.3), lambda x: x.clip(0, 1),
        lambda x: x.clone().clamp_(0), lambda x: torch.clip(x, -1, 1), lambda x: x.clamp_min(0), lambda x: x.clamp_max(0.1),
        lambda x: torch.clamp_max(x, max=0.2), lambda x: x.clone().clamp_min_(0.2), lambda x: x.clone().clamp_max_(0.2),
    ]),
    "nan_to_num": (X, [lambda x: x.log().nan_to_num(0.0), lambda x: torch.nan_to_num(x.log(), nan=1.0, neginf=-3.0)]),
    "round": (X, [
        torch.round, lambda x: x.round(decimals=1), lambda x: x.clone().round_(),
        lambda x: x.round().reshape(round(x.shape[0] * 1.0), abs(-x.shape[1]), int(x.shape[2] / 1)),
    ]),
    "clone": (X, [lambda x: x.clone() + 0, lambda x: torch.clone(x, memory_format=torch.contiguous_format)]),
    "complex": (PAIR, [torch.complex]),
    "polar": (PAIR, [lambda x, y: torch.polar(x.abs(), y)]),
    "fill": (X, [
        lambda x: x.clone().fill_(2.0), lambda x: x.clone().zero_(), lambda x: torch.fill(x, 3),
        lambda x: torch.zero_(x.clone()),
    ]),
    "copy": (PAIR, [lambda x, y: x.clone().copy_(y), lambda x, y: written(x, lambda out: out.copy_(y[:1])), lambda x, y: x.clone().copy_(y, True)]),
    # activations
    "gelu": (X, [F.gelu, lambda x: F.gelu(x, approximate="tanh"), lambda x: F.gelu(input=x)]),
    "hardtanh": (X, [F.hardtanh, lambda x: F.hardtanh(x, -0.3, 0.4), lambda x: F.hardtanh(x.clone(), 0.0, 1.0, True)]),
    "elu": (X, [F.elu, lambda x: F.elu(x, 0.5), lambda x: F.elu(x.clone(), inplace=True)]),
    "celu": (X, [F.celu, lambda x: torch.celu(x, 0.4), lambda x: F.celu(x, alpha=0.3)]),
    "leaky_relu": (X, [F.leaky_relu, lambda x: F.leaky_relu(x, 0.2, True), lambda x: F.leaky_relu_(x.clone(), 0.3)]),
    "prelu": (X, [lambda x: F.prelu(x, torch.full((4,), 0.3)), lambda x: torch.prelu(x, torch.tensor([0.1]))]),
    "rrelu": (X, [lambda x: F.rrelu(x), lambda x: F.rrelu(x, 0.1, 0.2, True), lambda x: torch.rrelu(x, 0.3, 0.4)]),
    "softplus": (X, [F.softplus, lambda x: F.softplus(x, 2.0, 3.0), lambda x: F.softplus(x, beta=0.5)]),
    "hardshrink": (X, [F.hardshrink, lambda x: torch.hardshrink(x, 0.2)]),
    "softshrink": (X, [F.softshrink, lambda x: F.softshrink(x, 0.1)]),
    "threshold": (X, [lambda x: F.threshold(x, 0.1, 3.0), lambda x: torch.threshold(x, 0.1, 3.0), lambda x: F.threshold_(x.clone(), 0, 1)]),
    "glu": (X, [F.glu, lambda x: F.glu(x, 1), lambda x: F.glu(x, dim=1)]),
    "softmax": (X, [
        lambda x: F.softmax(x, -1), lambda x: x.softmax(1), lambda x: torch.softmax(x, dim=1), lambda x: F.softmax(x),
        lambda x: F.softmax(x, dim=-1, dtype=torch.float64), lambda x: torch.softmax(x, -1, torch.float64),
        lambda x: F.softmax(input=x, dim=1), lambda x: F.softmax(x[0]), lambda x: F.softmax(x[..., None]),
        lambda x: F.softmax(x, -1, 3, torch.float64), lambda x: torch._softmax(x, -1, False),
    ]),
    "log_softmax": (X, [lambda x: F.log_softmax(x, -1), lambda x: x.log_softmax(1), lambda x: torch.log_softmax(x, 1, torch.float64)]),
    "normalize": (X, [F.normalize, lambda x: F.normalize(x, dim=-1), lambda x: F.normalize(x, 1.0, 2, 1e-3), lambda x: F.normalize(input=x, p=3.0)]),
    "dropout": (X, [
        lambda x: F.dropout(x, 0.5, True), lambda x: F.dropout(x), lambda x: torch.dropout(x, 0.3, True),
        lambda x: F.dropout(x.clone(), 0.4, True, True), lambda x: F.dropout(x, p=0.2, training=False),
        lambda x: torch.dropout(input=x, p=0.3, train=False),
    ]),
    "dropout1d": (X, [lambda x: F.dropout1d(x, 0.5, True)]),
    "dropout2d": (IMAGE, [lambda x: F.dropout2d(x, 0.5, True), lambda x: F.dropout2d(x, training=False)]),
    "dropout3d": (VOLUME, [lambda x: F.dropout3d(x, 0.5, True)]),
    "alpha_dropout": (X, [lambda x: F.alpha_dropout(x, 0.5, True), lambda x: F.alpha_dropout(x)]),
    "feature_alpha_dropout": (IMAGE, [lambda x: F.feature_alpha_dropout(x, 0.5, True)]),
    # reductions
    "mean": (X, [
        torch.mean, lambda x: x.mean(1), lambda x: x.mean((1, 2), keepdim=True), lambda x: x.mean(dim=[-1]), lambda x: x.mean(-1, True),
        lambda x: torch.mean(x, dtype=torch.float64), lambda x: x.mean(axis=1), lambda x: torch.mean(x, axis=1, keepdims=True), lambda x: torch.mean(input=x, dim=1),
    ]),
    "sum": (X, [torch.sum, lambda x: x.sum(1), lambda x: x.sum((0, 2)), lambda x: x.sum(-1, keepdim=True), lambda x: (x > 0).sum(1), lambda x: x.sum(1, dtype=torch.float64), lambda x: x.sum(axis=-1)]),
    "prod": (X, [torch.prod, lambda x: x.prod(1), lambda x: x.prod(-1, keepdim=True)]),
    "amax": (X, [torch.amax, lambda x: x.amax(1), lambda x: x.amax((1, 2), keepdim=True), lambda x: torch.amax(x, dim=-1)]),
    "amin": (X, [torch.amin, lambda x: x.amin((1, 2))]),
    "aminmax": (X, [lambda x: tuple(torch.aminmax(x)), lambda x: x.aminmax(dim=1, keepdim=True).max]),
    "max": (X, [torch.max, lambda x: x.max(1)[0], lambda x: x.max(-1).indices, lambda x: torch.max(x, dim=1, keepdim=True).values, lambda x: x.max(1, True)[0], lambda x: x.max(dim=-1)[1]]),
    "min": (X, [torch.min, lambda x: x.min(1)[0], lambda x: x.min(dim=-1)]),
    "median": (X, [torch.median, lambda x: x.median(1)[0], lambda x: torch.median(x, dim=-1, keepdim=True).values]),
    "argmax": (X, [torch.argmax, lambda x: x.argmax(-1), lambda x: x.argmax(dim=1, keepdim=True)]),
    "argmin": (X, [torch.argmin, lambda x: x.argmin(1)]),
    "any": (FLAGS, [torch.any, lambda x: x.any(1), lambda x: torch.any(x, dim=-1, keepdim=True)]),
    "all": (FLAGS, [torch.all, lambda x: x.all(dim=1)]),
    "var": (X, [
        torch.var, lambda x: x.var(1), lambda x: x.var((1, 2), unbiased=False, keepdim=True), lambda x: x.var(1, False), lambda x: x.var(False),
        lambda x: x.var(1, correction=0), lambda x: torch.var(x, [1, 2], correction=2), lambda x: torch.var(x, dim=1, unbiased=True), lambda x: x.var(1, False, True),
    ]),
    "std": (X, [torch.std, lambda x: x.std(1, unbiased=False), lambda x: torch.std(x, (1, 2), correction=0, keepdim=True)]),
    "var_mean": (X, [torch.var_mean, lambda x: torch.var_mean(x, (1, 2), keepdim=True), lambda x: torch.var_mean(x, 1, False), lambda x: torch.var_mean(x, dim=1, correction=0)[0]]),
    "std_mean": (X, [torch.std_mean, lambda x: torch.std_mean(x, 1, unbiased=False)]),
    "norm": (X, [torch.norm, lambda x: x.norm(dim=1), lambda x: x.norm(p=1, dim=-1, keepdim=True), lambda x: torch.norm(x, 2, 1)]),
    "vector_norm": (X, [torch.linalg.vector_norm, lambda x: torch.linalg.vector_norm(x, dim=1), lambda x: torch.linalg.vector_norm(x, 1, (1, 2), True)]),
    "logsumexp": (X, [lambda x: x.logsumexp(1), lambda x: torch.logsumexp(x, dim=(1, 2), keepdim=True)]),
    "cumsum": (X, [lambda x: x.cumsum(1), lambda x: torch.cumsum(x, dim=-1, dtype=torch.float64)]),
    "cumprod": (X, [lambda x: x.cumprod(1)]),
    "topk": (X, [lambda x: x.topk(2)[0], lambda x: torch.topk(x, k=3, dim=1).indices, lambda x: x.topk(2, -1, False, True)]),
    "sort": (X, [lambda x: x.sort()[0], lambda x: torch.sort(x, dim=1, descending=True).indices, lambda x: x.sort(-1, True).values, lambda x: torch.sort(x), lambda x: x.sort(stable=True, dim=1)[1]]),
    "argsort": (X, [lambda x: x.argsort(), lambda x: torch.argsort(x, dim=1, descending=True), lambda x: x.argsort(stable=True)]),
    # views
    "reshape": (X, [
        lambda x: x.reshape(x.shape[0], -1), lambda x: x.view(x.size(0), 24), lambda x: x.reshape((x.shape[0], 2, 12)), lambda x: torch.reshape(x, (-1, 6)),
        lambda x: x.view([x.shape[0], -1, 3]), lambda x: x.reshape(shape=(-1,)), lambda x: x.view(-1), lambda x: x.view(size=(-1, 6)), lambda x: x.view(x.shape),
        lambda x: torch.reshape(input=x, shape=(-1, 2)), lambda x: x.ravel(),
    ]),
    "flatten": (X, [torch.flatten, lambda x: x.flatten(1), lambda x: x.flatten(start_dim=0, end_dim=1), lambda x: torch.flatten(x, -2)]),
    "unflatten": (X, [lambda x: x.unflatten(-1, (2, 3)), lambda x: torch.unflatten(x, 1, (2, -1)), lambda x: x.unflatten(dim=2, sizes=[3, 2])]),
    "permute": (X, [lambda x: x.permute(0, 2, 1), lambda x: x.permute((2, 0, 1)), lambda x: torch.permute(x, [1, 0, 2]), lambda x: x.permute(dims=(0, 2, 1)), lambda x: x[0].T, lambda x: x[0].clone().t_()]),
    "transpose": (X, [
        lambda x: x.transpose(1, 2), lambda x: torch.transpose(x, 0, -1), lambda x: x.swapaxes(1, 2), lambda x: torch.swapdims(x, 0, 1), lambda x: x.mT,
        lambda x: torch.transpose(x, dim0=0, dim1=1), lambda x: x.clone().transpose_(1, 2),
    ]),
    "movedim": (X, [lambda x: x.movedim(1, -1), lambda x: torch.movedim(x, (0, 1), (1, 2)), lambda x: torch.moveaxis(x, 0, 2)]),
    "squeeze": (X[:, :1], [lambda x: x.squeeze(1), lambda x: x.squeeze(), lambda x: torch.squeeze(x, dim=1), lambda x: x.squeeze((1,)), lambda x: x.clone().squeeze_(1)]),
    "unsqueeze": (X, [lambda x: x.unsqueeze(1), lambda x: torch.unsqueeze(x, -1), lambda x: x.unsqueeze(dim=0), lambda x: x.clone().unsqueeze_(1)]),
    "broadcast_to": (X, [lambda x: torch.broadcast_to(x, (3, *x.shape)), lambda x: x[:, :1].broadcast_to(x.shape)]),
    "tile": (X, [lambda x: x.tile(2), lambda x: torch.tile(x, (1, 2, 1)), lambda x: x.tile(1, 3, 1)]),
    "repeat_interleave": (X, [lambda x: x.repeat_interleave(2, 1), lambda x: torch.repeat_interleave(x, 3, dim=-1), lambda x: x.repeat_interleave(2), lambda x: x.repeat_interleave(repeats=2, dim=1), lambda x: x.repeat_interleave(2, 1, output_size=8)]),
    "flip": (X, [lambda x: x.flip(1), lambda x: x.flip(0, 1), lambda x: torch.flip(x, [1, 2]), lambda x: x.flip(dims=(2,))]),
    "roll": (X, [lambda x: x.roll(1), lambda x: x.roll(1, 2), lambda x: torch.roll(x, shifts=(1, -1), dims=(1, 2))]),
    "rot90": (X, [lambda x: torch.rot90(x, 1, (1, 2)), lambda x: x.rot90(2, [1, 2])]),
    "narrow": (X, [lambda x: x.narrow(1, 1, 2), lambda x: torch.narrow(x, 2, 0, 3)]),
    "select": (X, [lambda x: x.select(1, 2), lambda x: torch.select(x, -1, 0)]),
    "index_select": (X, [lambda x: x.index_select(1, PICK), lambda x: torch.index_select(x, dim=2, index=PICK)]),
    "gather": (X, [lambda x: x.gather(-1, at(x, [0, 3])), lambda x: torch.gather(x, 2, at(x, [5]))]),
    "take_along_dim": (X, [lambda x: torch.take_along_dim(x, x.argsort(1), dim=1), lambda x: x.take_along_dim(x.argmax(1, keepdim=True), 1)]),
    "scatter": (X, [lambda x: x.scatter(-1, at(x, [0, 3]), x[..., :2] * 2), lambda x: torch.scatter(x, 2, at(x, [1]), 5.0), lambda x: x.clone().scatter_(2, at(x, [1]), 3.0), lambda x: x.scatter(2, at(x, [1]), value=3.0)]),
    "scatter_add": (X, [lambda x: x.scatter_add(-1, at(x, [0, 3]), x), lambda x: x.clone().scatter_add_(2, at(x, [1]), x)]),
    "index_add": (X, [lambda x: x.index_add(2, PICK, x[..., 3:]), lambda x: x.clone().index_add_(2, PICK, x[..., :3]), lambda x: x.index_add(2, PICK, x[..., 3:], alpha=2)]),
    "setitem": (PAIR, [
        lambda x, y: written(x, lambda out: operator.setitem(out, (slice(None), 0), y[:, 1])), lambda x, y: written(x, lambda out: operator.setitem(out, 0, 1.0)),
        lambda x, y: written(x, lambda out: operator.setitem(out, (..., slice(1, 3)), 0)), lambda x, y: written(x, lambda out: operator.setitem(out, x > 0, 0.0)),
        lambda x, y: written(x, lambda out: operator.setitem(out, (slice(None), PICK), y[:, :3])), lambda x, y: written(x, lambda out: operator.setitem(out, (slice(None), slice(None, None, 2)), y[:, ::2])),
        lambda x, y: x.clone().index_put_((PICK[:2] * 0,), y[:1, 0]), lambda x, y: x.index_put([PICK[:1]], values=y[0], accumulate=False),
    ]),
    "getitem": (X, [
        lambda x: x[:, 0], lambda x: x[..., -1], lambda x: x[:, None], lambda x: x[:, [0, 2]], lambda x: x[:, PICK], lambda x: x[0], lambda x: x[:, 1:-1:2], lambda x: x[..., None],
        lambda x: x[(slice(None), 1)], lambda x: x[:, -2:], lambda x: x[:, :, PICK[:, None]], lambda x: operator.getitem(x, 0), lambda x: x[:],
    ]),
    "chunk": (X, [lambda x: x.chunk(2, 1), lambda x: torch.chunk(x, 3, dim=-1)[1], lambda x: x.chunk(chunks=2, dim=1)[0]]),
    "split": (X, [lambda x: x.split(2, 1), lambda x: torch.split(x, [1, 3], dim=1)[1], lambda x: x.split((2, 4), dim=-1)[0], lambda x: torch.split(tensor=x, split_size_or_sections=3, dim=2)[0], lambda x: x.split(split_size=3, dim=2)[1], lambda x: torch.split_with_sizes(x, split_sizes=(1, 3), dim=1)[1]]),
    "tensor_split": (X, [lambda x: x.tensor_split(3, 1)[0], lambda x: torch.tensor_split(x, (1, 3), dim=2)[1], lambda x: torch.tensor_split(x, indices=(1, 3), dim=1)[1], lambda x: x.tensor_split(sections=2, dim=1)[0]]),
    "unbind": (X, [lambda x: x.unbind(1), lambda x: torch.unbind(x, dim=-1)[0]]),
    "stack": (PAIR, [lambda x, y: torch.stack((x, y)), lambda x, y: torch.stack([x, y], 1), lambda x, y: torch.stack(tensors=(x, y), dim=-1)]),
    "cat": (PAIR, [lambda x, y: torch.cat((x, y)), lambda x, y: torch.cat([x, y], 1), lambda x, y: torch.concat((x, y), dim=-1), lambda x, y: torch.cat(tensors=[x, y], dim=2), lambda x, y: torch.concatenate((x, y), axis=1), lambda x, y: torch.cat((x, y), axis=1)]),
    "hstack": (PAIR, [lambda x, y: torch.hstack((x, y))]),
    "vstack": (PAIR, [lambda x, y: torch.vstack([x, y]), lambda x, y: torch.row_stack((x, y))]),
    "pixel_shuffle": (IMAGE, [lambda x: F.pixel_shuffle(x, 2)]),
    "pixel_unshuffle": (IMAGE, [lambda x: F.pixel_unshuffle(x, 2)]),
    "channel_shuffle": (IMAGE, [lambda x: F.channel_shuffle(x, 2)]),
    "diagonal": (SQUARE, [lambda x: x.diagonal(0, 1, 2), lambda x: torch.diagonal(x, offset=1, dim1=-2, dim2=-1)]),
    "diag_embed": (X, [torch.diag_embed, lambda x: x.diag_embed(1)]),
    "tril": (SQUARE, [torch.tril, lambda x: x.tril(-1), lambda x: torch.tril(x, diagonal=1), lambda x: x.clone().tril_()]),
    "triu": (SQUARE, [lambda x: x.triu(1)]),
    "meshgrid": (X, [
        lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"), lambda x: torch.meshgrid([x[0, 0], x[0, 1]], indexing="xy"),
        lambda x: x + torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")[1], lambda x: torch.meshgrid((x[0, 0], x[0, 0])),
    ]),
    "one_hot": (WHOLE, [lambda x: F.one_hot(x, 8), lambda x: F.one_hot(x, num_classes=10)]),
    "bucketize": (X, [lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), lambda x: torch.bucketize(x, torch.tensor([0.0]), right=True), lambda x: torch.bucketize(x, torch.tensor([0.0]), out_int32=True)]),
    # contractions
    "matmul": (PAIR, [lambda x, y: x @ y.mT, lambda x, y: torch.matmul(x, y.transpose(1, 2)), lambda x, y: x.matmul(y[0].T), lambda x, y: torch.matmul(x, other=y.mT), lambda x, y: operator.matmul(x, y.mT), lambda x, y: x.__rmatmul__(y.mT)]),
    "bmm": (PAIR, [lambda x, y: torch.bmm(x, y.mT), lambda x, y: x.bmm(y.mT), lambda x, y: torch.bmm(input=x, mat2=y.mT)]),
    "mm": (PAIR, [lambda x, y: torch.mm(x[:, 0], y[0].T), lambda x, y: x[:, 0].mm(y[0].T)]),
    "mv": (PAIR, [lambda x, y: torch.mv(x[:, 0], y[0, 0])]),
    "dot": (PAIR, [lambda x, y: x[0, 0].dot(y[0, 0])]),
    "vdot": (PAIR, [lambda x, y: torch.vdot(x[0, 0], y[0, 0])]),
    "outer": (PAIR, [lambda x, y: torch.outer(x[0, 0], y[0, 0])]),
    "addmm": (PAIR, [lambda x, y: torch.addmm(x[:, 0, :4], x[:, 0], y[0].T), lambda x, y: torch.addmm(x[0, :1, :4], x[:, 1], y[0].T, beta=0.5, alpha=2)]),
    "baddbmm": (PAIR, [lambda x, y: torch.baddbmm(x[..., :4], x, y.mT, beta=0.3), lambda x, y: x[..., :4].clone().baddbmm_(x, y.mT)]),
    "tensordot": (PAIR, [lambda x, y: torch.tensordot(x, y[0], dims=([2], [1])), lambda x, y: torch.tensordot(x, y[0].T, 1)]),
    "adjoint": (X, [lambda x: x.mH, torch.adjoint, lambda x: x[0].H, lambda x: torch.complex(x, x).mH]),
    "cosine_similarity": (PAIR, [F.cosine_similarity, torch.cosine_similarity, lambda x, y: F.cosine_similarity(x, y, dim=-1, eps=0.1)]),
    "pairwise_distance": (PAIR, [F.pairwise_distance, lambda x, y: torch.pairwise_distance(x, y, p=1.0), lambda x, y: F.pairwise_distance(x, y, keepdim=True)]),
    "weight_norm": (PAIR, [lambda x, y: torch._weight_norm(x, y[:, :1, :1]), lambda x, y: torch._weight_norm(x, y[:1, :, :1], 1)]),
    "broadcast_tensors": (PAIR, [lambda x, y: torch.broadcast_tensors(x, y[:, :1])[1], lambda x, y: torch.add(*torch.broadcast_tensors(x[:, :, :1], y))]),
    "hann_window": (X, [lambda x: x * torch.hann_window(6), lambda x: x * torch.hann_window(6, False, device=x.device), lambda x: x * torch.hann_window(x.shape[-1], periodic=False)]),
    "randint": (X, [
        lambda x: x + torch.randint(5, (6,)), lambda x: x + torch.randint(2, 5, (6,)), lambda x: x + torch.randint(high=3, size=(4, 6)),
        lambda x: x + torch.randint(1, high=3, size=x.shape, dtype=torch.float32, device=x.device), lambda x: x + torch.randint(2, size=(6,)),
    ]),
    "randint_like": (X, [lambda x: torch.randint_like(x, 5), lambda x: torch.randint_like(x, 2, 5), lambda x: torch.randint_like(x, low=2, high=5), lambda x: torch.randint_like(x, 2, high=5)]),
    "logspace": (X, [lambda x: x * torch.logspace(0, 1, 6), lambda x: x * torch.logspace(0, 1, steps=6, base=2.0)]),
    "scalar_tensor": (X, [lambda x: x * torch.scalar_tensor(3.0)]),
    "blackman_window": (X, [lambda x: x * torch.blackman_window(6)]),
    "bartlett_window": (X, [lambda x: x * torch.bartlett_window(6, periodic=False)]),
    "kaiser_window": (X, [lambda x: x * torch.kaiser_window(6), lambda x: x * torch.kaiser_window(6, False, beta=8.0)]),
    "hamming_window": (X, [lambda x: x * torch.hamming_window(6)]),
    "cdist": (PAIR, [torch.cdist, lambda x, y: torch.cdist(x, y, p=1.0), lambda x, y: torch.cdist(x1=x, x2=y), lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")]),
    "einsum": (PAIR, [lambda x, y: torch.einsum("bij,bkj->bik", x, y), lambda x, y: torch.einsum("bij, bij -> b", [x, y]), lambda x, y: torch.einsum("...i->...", x), lambda x, y: torch.functional.einsum("bij->bji", x)]),
    "linear": (X, [lambda x: F.linear(x, torch.ones(3, 6)), lambda x: F.linear(x, torch.eye(6), torch.arange(6.0)), lambda x: F.linear(input=x, weight=torch.eye(6), bias=None)]),
    "bilinear": (PAIR, [lambda x, y: F.bilinear(x, y, torch.linspace(0, 1, 72).reshape(2, 6, 6), torch.ones(2))]),
    "embedding": (WHOLE, [
        lambda x: F.embedding(x, torch.linspace(0, 1, 24).reshape(8, 3)), lambda x: F.embedding(x, torch.linspace(0, 1, 24).reshape(8, 3), padding_idx=1),
        lambda x: torch.embedding(torch.linspace(0, 1, 24).reshape(8, 3), x),
        lambda x: torch.embedding(weight=torch.linspace(0, 1, 24).reshape(8, 3), indices=x, padding_idx=2),
    ]),
    "scaled_dot_product_attention": (PAIR, [
        lambda x, y: F.scaled_dot_product_attention(x, y, y), lambda x, y: F.scaled_dot_product_attention(x, y, y, is_causal=True, scale=0.3), lambda x, y: F.scaled_dot_product_attention(query=x, key=y, value=x),
        lambda x, y: F.scaled_dot_product_attention(x, y, y, torch.eye(4) > 0), lambda x, y: F.scaled_dot_product_attention(x, y, y, attn_mask=x @ y.mT, dropout_p=0.0),
    ]),
    "conv1d": (X, [lambda x: F.conv1d(x, W1, groups=2), lambda x: F.conv1d(x, W1, torch.ones(4), 2, 1, 1, 2), lambda x: torch.conv1d(x, W1, None, 1, 2, 2, 2), lambda x: F.conv1d(x, W1, padding="same", groups=2)]),
    "conv2d": (IMAGE, [lambda x: F.conv2d(x, W2, groups=2), lambda x: torch.conv2d(x, W2, torch.ones(4), (2, 1), (1, 0), 1, 2), lambda x: F.conv2d(input=x, weight=W2, stride=2, groups=2)]),
    "conv3d": (VOLUME, [lambda x: F.conv3d(x, W3, None, 1, 1, 1, 2)]),
    "conv_transpose1d": (X, [lambda x: F.conv_transpose1d(x, W1, None, 2, 1, 1, 1, 1), lambda x: F.conv_transpose1d(x, W1, stride=2, groups=2)]),
    "conv_transpose2d": (IMAGE, [lambda x: F.conv_transpose2d(x, W2, None, 2, 1, 1, 2, 1), lambda x: torch.conv_transpose2d(x, W2, stride=2)]),
    "conv_transpose3d": (VOLUME, [lambda x: F.conv_transpose3d(x, W3, stride=2)]),
    "im2col": (IMAGE, [lambda x: F.unfold(x, 3), lambda x: F.unfold(x, (3, 2), 1, 1, 2), lambda x: F.unfold(x, kernel_size=2, stride=2)]),
    "col2im": (IMAGE, [lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2), lambda x: F.fold(F.unfold(x, 3, 1, 1, 1), (8, 8), 3, 1, 1, 1)]),
    # normalization
    "batch_norm": (IMAGE, [
        lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4) * 2), lambda x: F.batch_norm(x, None, None, torch.ones(4), torch.ones(4), True, 0.2, 1e-3),
        lambda x: F.batch_norm(x, running_mean=torch.ones(4), running_var=torch.ones(4), eps=0.1),
        lambda x: torch.batch_norm(x, torch.arange(4.0), torch.ones(4), torch.zeros(4), torch.ones(4) * 3, False, 0.1, 1e-3, True),
    ]),
    "instance_norm": (IMAGE, [F.instance_norm, lambda x: F.instance_norm(x, weight=torch.ones(4) * 2, bias=torch.ones(4), eps=1e-3), lambda x: torch.instance_norm(x, torch.arange(4.0), torch.ones(4), None, None, True, 0.1, 1e-3, True)]),
    "layer_norm": (X, [lambda x: F.layer_norm(x, (6,)), lambda x: F.layer_norm(x, [4, 6], torch.ones(4, 6) * 3, None, 1e-2), lambda x: torch.layer_norm(x, (6,), eps=0.1), lambda x: F.layer_norm(input=x, normalized_shape=(6,)), lambda x: F.layer_norm(x, x.shape[1:]), lambda x: torch.layer_norm(x, (6,), None, None, 1e-2, False)]),
    "group_norm": (IMAGE, [lambda x: F.group_norm(x, 2), lambda x: F.group_norm(x, num_groups=2, weight=torch.arange(4.0), eps=1e-2), lambda x: torch.group_norm(x, 4), lambda x: torch.group_norm(x, 2, None, None, 1e-2, False)]),
    "rms_norm": (X, [lambda x: F.rms_norm(x, (6,)), lambda x: torch.rms_norm(x, (6,), torch.arange(6.0), 1e-2), lambda x: F.rms_norm(x, (6,), eps=0.1)]),
    "local_response_norm": (IMAGE, [lambda x: F.local_response_norm(x, 3), lambda x: F.local_response_norm(x, 2, 0.1, 0.5, 2.0)]),
    # pooling and resampling
    "max_pool1d": (X, [lambda x: F.max_pool1d(x, 2), lambda x: F.max_pool1d(x, 3, 2, 1, 1, True), lambda x: torch.max_pool1d(x, 2, stride=1), lambda x: torch.max_pool1d_with_indices(x, 2)[1]]),
    "max_pool2d": (IMAGE, [
        lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True), lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
        lambda x: torch.max_pool2d(x, 2, 1, 1), lambda x: F.max_pool2d_with_indices(x, 2)[0], lambda x: F.max_pool2d_with_indices(x, 2)[1],
    ]),
    "max_pool3d": (VOLUME, [lambda x: F.max_pool3d(x, 2)]),
    "avg_pool1d": (X, [lambda x: F.avg_pool1d(x, 2), lambda x: torch.avg_pool1d(x, 3, 2, 1, True, False)]),
    "avg_pool2d": (IMAGE, [lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), lambda x: F.avg_pool2d(x, 2, divisor_override=3)]),
    "avg_pool3d": (VOLUME, [lambda x: F.avg_pool3d(x, 2, 1)]),
    "lp_pool1d": (X, [lambda x: F.lp_pool1d(x, 2, 2), lambda x: F.lp_pool1d(x, norm_type=1.0, kernel_size=3, stride=1)]),
    "lp_pool2d": (IMAGE, [lambda x: F.lp_pool2d(x, 2.0, 2), lambda x: F.lp_pool2d(x, 3.0, 3, 2, ceil_mode=True)]),
    "adaptive_avg_pool1d": (X, [lambda x: F.adaptive_avg_pool1d(x, 3), lambda x: torch.adaptive_avg_pool1d(x, 1)]),
    "adaptive_avg_pool2d": (IMAGE, [lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_avg_pool2d(x, (2, None))]),
    "adaptive_avg_pool3d": (VOLUME, [lambda x: F.adaptive_avg_pool3d(x, (1, 2, 2))]),
    "adaptive_max_pool1d": (X, [lambda x: F.adaptive_max_pool1d(x, 2), lambda x: F.adaptive_max_pool1d(x, 2, True)[1], lambda x: torch.adaptive_max_pool1d(x, 2)[0], lambda x: torch.adaptive_max_pool1d(x, 2)[1]]),
    "adaptive_max_pool2d": (IMAGE, [lambda x: F.adaptive_max_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1]]),
    "adaptive_max_pool3d": (VOLUME, [lambda x: F.adaptive_max_pool3d(x, 2)]),
    "interpolate": (IMAGE, [
        lambda x: F.interpolate(x, (5, 7)), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False), lambda x: F.interpolate(x, x.shape[-2:], mode="bicubic", antialias=True),
        lambda x: F.interpolate(x, None, 0.5), lambda x: F.upsample(x, scale_factor=2),
    ]),
    "grid_sample": (IMAGE, [lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False), lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), "nearest", "border", True)]),
    "affine_grid": (IMAGE, [lambda x: F.affine_grid(x[:, 0, :2, :3], (x.shape[0], 1, 4, 4), align_corners=False)]),
    "pad": (IMAGE, [lambda x: F.pad(x, (1, 2)), lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), lambda x: F.pad(x, [0, 1, 2, 0], mode="constant", value=3.0), lambda x: F.pad(x, (0, -1)), lambda x: F.pad(input=x, pad=(1, 0), value=-1.0)]),
    # constants
    "arange": (X, [
        lambda x: x + torch.arange(6), lambda x: x + torch.arange(1, 7), lambda x: x + torch.arange(0, 12, 2), lambda x: x + torch.arange(end=6), lambda x: x + torch.arange(x.shape[-1], dtype=torch.float32),
        lambda x: x + torch.arange(start=0, end=6, step=1), lambda x: x + torch.arange(2, end=8), lambda x: torch.arange(x.shape[0]), lambda x: x + torch.arange(6, device=x.device),
    ]),
    "linspace": (X, [lambda x: x + torch.linspace(-1, 1, 6), lambda x: x * torch.linspace(start=0, end=1, steps=x.shape[-1], dtype=x.dtype, device=x.device)]),
    "eye": (SQUARE, [lambda x: x + torch.eye(5), lambda x: x + torch.eye(x.shape[-1], dtype=torch.bool), lambda x: x[:, :, :3] * torch.eye(5, 3), lambda x: x + torch.eye(n=5)]),
    "zeros": (X, [lambda x: x + torch.zeros(4, 6), lambda x: torch.cat((x, torch.zeros((x.shape[0], 1, 6))), 1), lambda x: x + torch.zeros(size=(6,)), lambda x: x + torch.zeros([])]),
    "ones": (X, [lambda x: x + torch.ones(6), lambda x: torch.ones(x.shape), lambda x: x * torch.ones((x.size(0), 1, 1), dtype=torch.int32)]),
    "empty": (X, [lambda x: torch.empty(x.shape).fill_(3), lambda x: torch.empty(x.shape, memory_format=torch.contiguous_format).fill_(1), lambda x: x + torch.empty(4, 6).zero_()]),
    "full": (X, [lambda x: x + torch.full((4, 6), 2.0), lambda x: torch.full(x.shape, 3, dtype=torch.int64), lambda x: x + torch.full(size=(6,), fill_value=0.5)]),
    "rand": (X, [lambda x: x + torch.rand(6), lambda x: x + torch.rand(x.shape), lambda x: x * torch.rand((x.shape[0], 1, 1))]),
    "randn": (X, [lambda x: x + torch.randn(4, 6), lambda x: torch.randn(x.shape)]),
    "randperm": (X, [lambda x: x[:, torch.randperm(4)], lambda x: x[torch.randperm(x.shape[0], device=x.device)]]),
    "zeros_like": (X, [lambda x: torch.zeros_like(x), lambda x: torch.zeros_like(x, dtype=torch.int64), lambda x: torch.zeros_like(x, memory_format=torch.contiguous_format)]),
    "ones_like": (X, [torch.ones_like, lambda x: torch.ones_like(x[:, 0])]),
    "empty_like": (X, [lambda x: torch.empty_like(x).fill_(1.5)]),
    "full_like": (X, [lambda x: torch.full_like(x, 3.0), lambda x: torch.full_like(x, fill_value=2)]),
    "rand_like": (X, [torch.rand_like]),
    "randn_like": (X, [lambda x: x + torch.randn_like(x)]),
    "bernoulli": (X, [lambda x: torch.bernoulli(x.sigmoid()), lambda x: x.clone().bernoulli_(0.3), lambda x: x.new_empty(3).bernoulli_(p=0.5), lambda x: x.sigmoid().bernoulli_()]),
    "uniform": (X, [lambda x: x.clone().uniform_(-1, 1), lambda x: x.new_empty(x.shape).uniform_(), lambda x: x.clone().uniform_(-1, to=3)]),
    "normal": (X, [lambda x: x.clone().normal_(), lambda x: x.clone().normal_(2.0, std=0.3)]),
    # methods
    "expand": (X, [lambda x: x[:, :1].expand(-1, 3, -1), lambda x: x[:, :1].expand((x.shape[0], 4, 6)), lambda x: x[0].expand(3, 4, 6), lambda x: x[:, :1].expand(size=(-1, 2, 6))]),
    "expand_as": (X, [lambda x: x[:, :1].expand_as(x)]),
    "repeat": (X, [lambda x: x.repeat(1, 2, 1), lambda x: x.repeat((2, 1, 1, 1)), lambda x: x.repeat(x.shape[0], 1, 1), lambda x: x.repeat(repeats=(1, 1, 2))]),
    "reshape_as": (X, [lambda x: x.flatten(1).reshape_as(x), lambda x: x.flatten(1).view_as(x)]),
    "contiguous": (X, [lambda x: x.mT.contiguous(), lambda x: x[..., None].contiguous(memory_format=torch.channels_last)]),
    "to": (X, [
        lambda x: x.to(torch.float64), lambda x: x.to(dtype=torch.int32), lambda x: x.double(), lambda x: x.half(), lambda x: x.long(), lambda x: x.bool(), lambda x: x.to("cpu"),
        lambda x: x.to(x.device, torch.float64), lambda x: x.type(torch.float16), lambda x: x.cpu(), lambda x: x.to(torch.bfloat16, copy=True), lambda x: x.to(x.dtype, non_blocking=True) + 1,
    ]),
    "type_as": (X, [lambda x: x.long().type_as(x), lambda x: x.to(x.double())]),
    "unfold": (X, [lambda x: x.unfold(2, 3, 1), lambda x: x.unfold(dimension=1, size=2, step=2)]),
    "new_zeros": (X, [lambda x: torch.cat((x, x.new_zeros(x.shape[0], 1, 6)), 1), lambda x: x.new_zeros((3, 4)), lambda x: x.new_zeros(3, dtype=torch.int64), lambda x: x.new_zeros(size=(2,))]),
    "new_ones": (X, [lambda x: x + x.new_ones(6)]),
    "new_empty": (X, [lambda x: x.new_empty(3).zero_()]),
    "new_full": (X, [lambda x: x + x.new_full((6,), 2.0)]),
    # Fourier
    "fft": (X, [torch.fft.fft, lambda x: torch.fft.fft(x, n=8, dim=1, norm="ortho")]),
    "ifft": (COMPLEX, [torch.fft.ifft]),
    "rfft": (X, [torch.fft.rfft, lambda x: torch.fft.rfft(x, dim=1)]),
    "irfft": (COMPLEX, [torch.fft.irfft, lambda x: torch.fft.irfft(x, n=6)]),
    "fft2": (X, [torch.fft.fft2]),
    "ifft2": (COMPLEX, [lambda x: torch.fft.ifft2(x, norm="ortho")]),
    "rfft2": (X, [lambda x: torch.fft.rfft2(x, dim=(1, 2), norm="ortho")]),
    "irfft2": (COMPLEX, [lambda x: torch.fft.irfft2(x, s=(4, 6), dim=(1, 2))]),
    "fftn": (X, [lambda x: torch.fft.fftn(x, dim=(1, 2))]),
    "ifftn": (COMPLEX, [lambda x: torch.fft.ifftn(x, dim=(1,))]),
    "rfftn": (X, [lambda x: torch.fft.rfftn(x, dim=(1, 2))]),
    "irfftn": (COMPLEX, [lambda x: torch.fft.irfftn(x, dim=(1, 2))]),
    "fftshift": (X, [lambda x: torch.fft.fftshift(x, dim=(1, 2))]),
    "ifftshift": (X, [lambda x: torch.fft.ifftshift(x, dim=1)]),
}  # fmt: skip

# Unary operators: function, method where there is one, and in place where there is one.
UNARY = {
    POSITIVE: "log log10 log1p log2 sqrt rsqrt reciprocal lgamma digamma",
    UNIT: "acos asin atanh erfinv",
    POSITIVE + 1: "acosh",
    X: """abs angle asinh atan ceil cos cosh deg2rad detach erf erfc exp exp2 expm1 floor frac isfinite isinf isnan neg
        rad2deg real relu sgn sigmoid sign sin sinc sinh square tan tanh trunc""",
    FLAGS: "bitwise_not logical_not",
    COMPLEX: "conj imag view_as_real",
}
for example, names in UNARY.items():
    for name in names.split():
        ways = [getattr(torch, name)] if hasattr(torch, name) else []
        if hasattr(torch.Tensor, name) and name not in ("real", "imag"):
            ways.append(lambda x, name=name: getattr(x, name)())
        if hasattr(torch.Tensor, f"{name}_") and name != "detach":
            ways.append(lambda x, name=name: getattr(x.clone(), f"{name}_")())
        CASES[name] = (example, ways)
for name in ["hardsigmoid", "hardswish", "logsigmoid", "mish", "relu6", "selu", "silu", "softsign", "tanhshrink"]:
    CASES[name] = (X, [getattr(F, name)])
for name in ("hardsigmoid", "hardswish", "mish", "relu6", "selu", "silu"):
    CASES[name][1].append(lambda x, name=name: getattr(F, name)(x.clone(), inplace=True))
CASES["view_as_complex"] = (X.reshape(2, 4, 3, 2), [torch.view_as_complex])
CASES["relu"][1].extend(
    [
        F.relu,
        lambda x: F.relu(x.clone(), True),
        lambda x: F.relu_(x.clone()),
        lambda x: torch.relu_(x.clone()),
        lambda x: torch.relu_(input=x.clone()),
    ]
)
CASES["sigmoid"][1].extend([F.sigmoid, torch.special.expit, lambda x: torch.sigmoid(input=x)])
CASES["erf"][1].append(torch.special.erf)
CASES["neg"][1].extend([lambda x: -x, torch.negative, operator.neg])
CASES["abs"][1].extend([torch.absolute, abs])
CASES["bitwise_not"][1].extend([lambda x: ~x, operator.invert])
CASES["real"][1].append(lambda x: torch.complex(x, x).real)
CASES["imag"][1].append(lambda x: x.imag)
CASES["detach"][1].append(lambda x: x.data)
CASES["trunc"][1].append(torch.fix)

# Not functions of torch that a model calls, but what else the recording of one leads to; tested where they come from.
ELSEWHERE = {"alias", "assign", "check", "select_positions", "scatter_positions"}


def test_every_row_of_the_table_has_a_case():
    of_schema = {name for name, row in OPERATORS.items() if row.of_schema}  # test_declared_by_schema.py has those
    assert set(OPERATORS) - ELSEWHERE - set(CASES) - of_schema == set()


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, n, id=f"{name}-{n}") for name, (_, ways) in CASES.items() for n in range(len(ways))],
)
def test_a_call_becomes_the_operator(name, way):
    example, ways = CASES[name]
    dag = assert_converts(ways[way], example)
    assert name in operators(dag)


@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda x: torch.normal(x, x), POSITIVE),
        (lambda x: x + torch.normal(0.0, 1.0, (6,)), X),
        (lambda x: x.clone().bernoulli_(x), POSITIVE),
        (lambda x: x.scatter(2, at(x, [1]), x, reduce="add"), X),
        (lambda x: x.view(torch.int32), X),
    ],
    ids=["normal of tensors", "normal of numbers", "bernoulli_ of a tensor", "scatter", "view"],
)
def test_a_call_that_no_operator_stands_for_is_refused(function, example):
    assert "is not in the table of operators" in (refusal(function, example) or "it is converted")
