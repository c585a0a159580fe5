from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.meta import QuickNormalizations


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm2d(6), (2, 6, 4, 5)),
        (nn.BatchNorm1d(6, affine=False), (2, 6)),
        (nn.LayerNorm((4, 5)), (2, 3, 4, 5)),
    ],
)
def test_results_are_like_those_of_torch(module: nn.Module, shape: tuple[int, ...]) -> None:
    module.to("meta").eval()
    x = torch.empty(shape, device="meta")

    with QuickNormalizations():
        quick = module(x)

    expected = module(x)
    assert (quick.shape, quick.dtype, quick.device) == (expected.shape, expected.dtype, expected.device)


def test_a_weight_of_another_length_is_refused() -> None:
    x, weight = torch.empty(2, 6, 4, device="meta"), torch.empty(5, device="meta")

    with QuickNormalizations(), pytest.raises(RuntimeError, match="6 channels"):
        F.batch_norm(x, weight, weight)
    with QuickNormalizations(), pytest.raises(RuntimeError, match="layer_norm over"):
        F.layer_norm(x, (5,), weight)


def test_numbers_are_computed() -> None:
    x = torch.randn(2, 6, 4)

    with QuickNormalizations():
        assert torch.equal(F.layer_norm(x, (4,)), nn.LayerNorm(4, elementwise_affine=False)(x))
