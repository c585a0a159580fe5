from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.models import build_with_random_weights, input_size
from harness.recall import Recall
from harness.verification import random_input


class _Attention(nn.Module):
    """Two matrix products, and a write into the memory that the first one returned."""

    def __init__(self, writes: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 8)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x)
        weights = x @ x.transpose(-2, -1)
        if self.writes:
            weights[:, 1:] = weights[:, 1:] + 1.0
        return weights @ x


def recalled(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Recall]:
    """Outputs of two modules, the second one run with what was kept of the first."""
    recall = Recall([*first.parameters(), *first.buffers()], limit_bytes=2**30)
    with torch.no_grad():
        with recall:
            expected = first(x)
        recall.first_run_is_over()
        with recall:
            actual = second(x)
    return expected, actual, recall


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mvitv2_tiny"])
def test_the_same_run_gives_the_same_output_with_little_computed(name: str) -> None:
    model = build_with_random_weights(name)

    expected, actual, recall = recalled(model, model, random_input(input_size(model), name))

    assert torch.equal(expected, actual)
    assert recall.used > recall.computed


def test_a_result_that_was_written_to_is_computed_again() -> None:
    module = _Attention()
    x = torch.randn(2, 4, 8)

    expected, actual, _ = recalled(module, module, x)

    assert torch.equal(expected, actual)


def test_a_write_that_is_left_out_is_found_out() -> None:
    first, second = _Attention(), _Attention(writes=False)
    second.projection = first.projection
    x = torch.randn(2, 4, 8)

    expected, actual, _ = recalled(first, second, x)

    assert torch.equal(actual, second(x))
    assert not torch.allclose(expected, actual)


def test_other_weights_and_other_inputs_are_computed() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    x = torch.randn(2, 8)

    _, actual, recall = recalled(first, second, x)

    assert torch.equal(actual, second(x))
    assert (recall.used, recall.computed) == (0, 1)


def test_a_weight_that_was_written_to_is_another_weight() -> None:
    class Drifting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            self.weight.mul_(2.0)
            return result

    module = Drifting(8, 8)
    x = torch.randn(2, 8)

    expected, actual, recall = recalled(module, module, x)

    assert not torch.equal(expected, actual)
    assert recall.used == 0


def test_nothing_is_kept_beyond_the_limit() -> None:
    module = nn.Linear(8, 8)
    recall = Recall(module.parameters(), limit_bytes=8)
    x = torch.randn(2, 8)

    with torch.no_grad(), recall:
        module(x)
        recall.first_run_is_over()
        module(x)

    assert (recall.used, recall.computed) == (0, 1)
