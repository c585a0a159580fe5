from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from harness import memory
from harness.models import build_on_meta


def needed(name: str, size: int) -> int:
    return memory.needed_bytes(build_on_meta(name), torch.empty(1, 3, size, size, device="meta"))


def test_weights_and_activations_are_counted() -> None:
    model = build_on_meta("vgg16")
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())

    small, large = needed("vgg16", 224), needed("vgg16", 448)

    assert small > weights
    # The first two feature maps are alive together: 64 channels of 448 x 448 floats each.
    assert large - small > 1.5 * 2 * 64 * (448**2 - 224**2) * 4 * 0.9


def test_only_what_is_alive_at_the_same_time_is_counted() -> None:
    with torch.device("meta"):
        shallow, deep = (nn.Sequential(*[nn.ReLU() for _ in range(depth)]) for depth in (3, 30))
    inputs = torch.empty(1, 2**20, device="meta")

    assert memory.needed_bytes(deep, inputs) == memory.needed_bytes(shallow, inputs)


def test_views_of_weights_are_no_activations() -> None:
    with torch.device("meta"):
        model = nn.Linear(4096, 4096, bias=False)

    with_views = memory.needed_bytes(model, torch.empty(1, 4096, device="meta"))

    # Once for the weights and once for a kernel's own layout of it, not a third time.
    assert with_views < memory.needed_bytes(nn.Identity(), torch.empty(1, device="meta")) + 2.1 * 4096 * 4096 * 4


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets the peak be reset")
def test_the_peak_counts_from_its_last_reset() -> None:
    torch.ones(2**26)  # 256 MiB, gone at once
    memory.release_memory()
    memory.reset_peak_rss()
    before = memory.peak_rss_mb()

    torch.ones(2**25)

    assert memory.peak_rss_mb() - before == pytest.approx(128, abs=16)
