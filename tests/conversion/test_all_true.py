"""Masks that are true everywhere: what they have no effect on is left out of the graph."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, by_source, operators, outcome, reloaded

X = torch.randn(2, 6, 8)
MASK = torch.ones(2, 6, dtype=torch.bool)
MASK_STEPS = {"masked_fill", "where", "bitwise_not", "bitwise_and", "sub", "setitem", "mul", "add", "to", "getitem"}


class Attention(nn.Module):
    """As text models are written: the mask is made additive once, and the padding is emptied behind."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x, mask):
        if not mask.all():
            x = x.masked_fill(~mask.bool()[..., None], 0)
        q, k, v = self.qkv(x).chunk(3, -1)
        bias = (1.0 - mask[:, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = q @ k.mT / math.sqrt(8) + bias
            scores.masked_fill_(mask[:, None, :] == 0, float("-inf"))
            y = scores.softmax(-1) @ v
        y[~mask.bool()] = 0
        return self.out(y * mask.unsqueeze(-1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("fused", [True, False])
def test_a_mask_that_is_true_everywhere_leaves_no_step(fused, dtype):
    model = Attention(fused).eval()
    dag = torchorbit.convert(model, {"x": X, "mask": MASK.to(dtype)}, all_true=("mask",))
    assert not MASK_STEPS & set(operators(dag))
    assert operators(dag).count("check") == 1
    assert [vertex.name for vertex in dag.graph.inputs] == ["x", "mask"]
    assert dag.provenance.free_lengths
    assert dag.provenance.free_batch
    for graph in (dag, reloaded(dag), dag.flatten()):
        for batch, length in ((2, 6), (3, 9), (1, 1)):
            inputs = torch.randn(batch, length, 8), torch.ones(batch, length, dtype=dtype)
            assert_same(outcome(graph, inputs), outcome(model, inputs))
        inputs[1][0, -1] = 0
        with pytest.raises(torchorbit.errors.GraphRunError, match=r"'mask' has to be true everywhere, and is not$"):
            graph(*inputs)
    with pytest.warns(UserWarning, match="scored by their weights alone .* has to be true everywhere"):
        pruned = torchorbit.prune(dag, ratio=0.5)
    assert torchorbit.find_orbits(dag)
    assert outcome(pruned, (X, MASK.to(dtype))).shape == (2, 6, 4)


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x, mask: x * mask[..., None],
        lambda x, mask: mask[..., None] * x,
        lambda x, mask: x + (~mask)[..., None] * 2.0,
        lambda x, mask: x - (1 - mask.int())[..., None],
        lambda x, mask: x / mask.expand(-1, -1)[..., None],
        lambda x, mask: torch.where(mask[..., None], x, 0.0),
        lambda x, mask: torch.where(~mask[..., None], x, x * 3),
        lambda x, mask: x.masked_fill(torch.logical_not(mask).unsqueeze(2), 5.0),
        lambda x, mask: (x > 0) & mask[..., None],
        lambda x, mask: (x > 0) | ~mask[..., None],
        lambda x, mask: x * torch.cat([mask, mask], 1).chunk(2, 1)[1].unsqueeze(-1),
        lambda x, mask: x if mask.all() else -x,
        lambda x, mask: x if not (mask == 0).any() else -x,
    ),
)
def test_what_computes_nothing_is_left_out(function):
    model = Computes(function)
    dag = torchorbit.convert(model, (X, MASK), all_true=["input_1"])
    rest = set(operators(dag)) - {"all", "check"}
    assert rest <= {"gt", "mul"}, rest
    wide = torch.randn(3, 9, 8), torch.ones(3, 9, dtype=torch.bool)
    for inputs in ((X, MASK), wide):
        assert_same(outcome(dag, inputs), outcome(model, inputs))


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x, mask: x * mask.sum(1)[:, None, None],
        lambda x, mask: x * mask.cumsum(1)[..., None],
        lambda x, mask: x + mask[..., None],
        lambda x, mask: x * (mask.float().exp() - 1)[..., None],
        lambda x, mask: x[:, :1] * mask[..., None],
        lambda x, mask: x[:1] + (~mask)[..., None].float(),
        lambda x, mask: (x > 0).int() * mask[..., None].long(),
        lambda x, mask: x * F.pad(mask, (1, 0))[:, 1:, None],
        lambda x, mask: x * torch.cat([mask, ~mask], 1)[:, 3:9, None],
        lambda x, mask: x * torch.triu(mask[:, :, None] & mask[:, None])[..., :1],
        lambda x, mask: x + torch.zeros_like(x).masked_fill(mask[..., None], 2.0),
        lambda x, mask: x * mask.clone().index_fill_(1, torch.tensor([2]), False)[..., None],
        lambda x, mask: x.double() * mask[..., None] + x * 0.5,
    ),
)
def test_what_computes_something_stays(function):
    model = Computes(function)
    dag = torchorbit.convert(model, (X, MASK), all_true=["input_1"])
    inputs = torch.randn(3, 6, 8), torch.ones(3, 6, dtype=torch.bool)
    assert_same(outcome(dag, (X, MASK)), outcome(model, (X, MASK)))
    assert_same(outcome(dag, inputs), outcome(model, inputs))


def test_a_mask_that_is_written_into_is_no_longer_true_everywhere():
    def cut(x, mask):
        mask = mask.clone()
        row = mask[:, 0]
        mask[:, 2:4] = False
        y = x * mask[..., None]
        row.logical_not_()
        return y, x * mask[..., None], x * row[:, None, None]

    model = Computes(cut)
    dag = torchorbit.convert(model, (X, MASK), all_true=["input_1"])
    assert_same(outcome(dag, (X, MASK)), outcome(model, (X, MASK)))


def test_what_is_left_out_shares_no_memory_with_its_operand():
    def written(m, x, mask):
        y = m.layer(x)
        z = y * mask[..., None]
        part = z[:, 1:3]
        z.mul_(2)
        part.add_(1)
        with torch.no_grad():
            still = y * mask[..., None]
        return y, z, part * 1, still

    model = Computes(written, layer=nn.Linear(8, 8))
    dag = torchorbit.convert(model, (X, MASK), all_true=["input_1"])
    assert_same(outcome(dag, (X, MASK)), outcome(model, (X, MASK)))


def test_gradients_are_those_of_the_source():
    def forward(m, x, mask):
        y = m.layer(x)
        with torch.no_grad():
            still = y * mask[..., None]
        return y * mask[..., None] + still

    model = Computes(forward, layer=nn.Linear(8, 8))
    dag = torchorbit.convert(copy.deepcopy(model), (X, MASK), all_true=["input_1"])
    for one in (model, dag):
        one(X, MASK).square().sum().backward()
    assert_same(dag.layer.weight.grad, model.layer.weight.grad)


def test_masks_and_names_that_do_not_fit_are_refused():
    model = Attention(True)
    given = {"x": X, "mask": MASK}
    with pytest.raises(torchorbit.errors.ArgumentTypeError, match="expected names of inputs"):
        torchorbit.convert(model, given, all_true="mask")
    with pytest.raises(torchorbit.errors.ArgumentError, match=r"names 'masks', expected .*'mask'"):
        torchorbit.convert(model, given, all_true=["masks"])
    with pytest.raises(torchorbit.errors.ArgumentTypeError, match=r"'x', which is a torch\.float32"):
        torchorbit.convert(model, given, all_true=["x"])
    cut = MASK.clone()
    cut[0, 3] = False
    with pytest.raises(torchorbit.errors.ArgumentError, match="everywhere in example_inputs"):
        torchorbit.convert(model, {"x": X, "mask": cut}, all_true=["mask"])
    with pytest.raises(torchorbit.errors.ArgumentError, match=r"everywhere in other_examples\[0\]"):
        torchorbit.convert(model, given, other_examples=[{"x": X, "mask": cut}], all_true=["mask"])
    torchorbit.convert(model, given, other_examples=[given], all_true=["mask"])
    torchorbit.convert(model, {"x": X, "mask": MASK.to("meta")}, all_true=["mask"])


def test_without_the_option_nothing_is_left_out():
    dag = assert_converts(Computes(lambda x, mask: x * mask[..., None]), (X, MASK))
    assert operators(dag) == ["getitem", "mul"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_model_of_transformers_has_no_masked_step_left(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    model = transformers.BertModel._from_config(config, attn_implementation=attention).eval()
    ids = torch.randint(3, 50, (2, 7))
    dag = torchorbit.convert(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, all_true=("attention_mask",)
    )
    assert not {"where", "bitwise_and", "ge", "arange", "new_ones"} & set(operators(dag))
    for batch, length in ((2, 7), (3, 11)):
        ids = torch.randint(3, 50, (batch, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert_same(outcome(dag, inputs)[0], outcome(model, inputs)[0])
    assert outcome(torchorbit.prune(dag, ratio=0.5), inputs)[0].shape == (3, 11, 16)
