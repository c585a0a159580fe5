"""Functions of torch that are written in Python: what they call is recorded."""

import pytest
import torch
import torch.nn.functional as F

import torchorbit
from tests.models import assert_converts, assert_same, operators, outcome
from torchorbit.operators.binding import is_composite

X = torch.randn(2, 4, 6)

CASES = {
    "gumbel_softmax": (X, lambda x: F.gumbel_softmax(x, tau=0.5, hard=True)),
    "stft": (torch.randn(2, 64), lambda x: torch.stft(x, 16, window=torch.hann_window(16), return_complex=True).abs()),
    "embedding_bag": (torch.randint(0, 9, (2, 4)), lambda x: F.embedding_bag(x, torch.ones(9, 5), mode="max")),
    "max_unpool1d": (X, lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2)),
    "lp_pool3d": (torch.randn(2, 3, 4, 4, 4), lambda x: F.lp_pool3d(x, 2.0, 2)),
    "loss of several labels": (X, lambda x: F.multilabel_soft_margin_loss(x[:, 0], x[:, 1].sigmoid())),
    "triplet loss of a distance": (X, lambda x: F.triplet_margin_with_distance_loss(x, x + 1, x - 2, swap=True)),
    "attention": (
        X.transpose(0, 1),
        lambda x: F.multi_head_attention_forward(
            x, x, x, 6, 2, torch.ones(18, 6) / 7, None, None, None, False, 0.0, torch.eye(6), None, need_weights=False
        )[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_function_in_python_is_recorded_by_what_it_calls(name):
    example, function = CASES[name]
    other = torch.cat([example, example.flip(0)], 1 if name == "attention" else 0)
    assert_converts(function, example, other)


def test_numbers_become_a_tensor_of_another_ones_dtype():
    dag = assert_converts(lambda x: x * x.new_tensor([1, 2, 3, 4, 5, 6]) + x.new_tensor(7, dtype=x.dtype), X)
    assert "type_as" in operators(dag)
    half = X.bfloat16()
    assert_same(outcome(dag, half), half * half.new_tensor([1, 2, 3, 4, 5, 6]) + half.new_tensor(7))


def test_a_tensor_as_a_tensor_is_cast():
    assert_converts(lambda x: torch.as_tensor(x) + torch.as_tensor(x.argmax(-1), dtype=torch.float32)[..., None], X)


def test_what_an_operator_stands_for_is_not_looked_into():
    assert not is_composite(F.softmax)
    assert not is_composite(F.interpolate)
    assert not is_composite(torch.relu)
    assert is_composite(F.gumbel_softmax)


def test_a_function_asks_for_modes_again_after_it_was_recorded():
    asked = F.has_torch_function_unary
    assert_converts(lambda x: F.gumbel_softmax(x), X)
    with pytest.raises(torchorbit.ConversionError, match="greater than 0"):
        assert_converts(lambda x: F.triplet_margin_with_distance_loss(x, x, x, margin=-1), X)
    assert F.has_torch_function_unary is asked
