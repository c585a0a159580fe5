"""What a record says of pruning: known figures, and what goes wrong."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

import torchorbit
from harness.models import build
from tests.harness.test_worker import record_of


def test_figures_of_a_model() -> None:
    record = record_of("resnet18", "shape")

    counted = FlopCountAnalysis(build("resnet18"), torch.empty(1, 3, 224, 224)).unsupported_ops_warnings(False)
    assert record.gflops == pytest.approx(2 * counted.total() / 1e9, rel=5e-3)
    # A width in each of the 8 blocks, and one for each of the 4 stages and the stem, which the first stage shares.
    assert (record.orbits, record.units) == (12, 2 * (64 + 128 + 256 + 512) + 64 + 128 + 256 + 512)
    assert (record.prunable, record.prunable_proportion, record.unruled_operators) == (True, 1.0, [])
    # Of the stem 1 of 64 channels is left, of what follows less.
    stem = 2 * 64 * 3 * 49 * 112 * 112 / 1e9
    assert record.gflops is not None
    assert 1 - stem / record.gflops < (record.removable_flops or 0) < 1 - stem / 64 / record.gflops
    assert record.removal_max_diff is None


def test_a_wrong_removal_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    remove = torchorbit.remove_channels

    def wrong(*args: object, **kwargs: object) -> torchorbit.DagModule:
        pruned = remove(*args, **kwargs)
        with torch.no_grad():
            next(pruned.parameters()).mul_(1.5)
        return pruned

    monkeypatch.setattr(torchorbit, "remove_channels", wrong)
    record = record_of("test_resnet", "numeric")

    assert (record.stage, record.prunable, record.converted) == ("prove", False, True)
    assert "differs from that of the whole one with zeros by" in (record.error or "")
    assert record.removable_flops is not None


def test_a_removal_that_fails_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> torchorbit.DagModule:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(torchorbit, "remove_channels", broken)
    record = record_of("test_resnet", "shape")

    assert (record.stage, record.error, record.prunable) == ("prune", "RuntimeError: no room", False)


def test_where_nothing_can_be_removed() -> None:
    record = record_of("odd_structured", "shape")

    assert (record.stage, record.prunable, record.removable_flops, record.orbits) == (None, False, 0.0, 0)
    assert record.note == "nothing can be removed: every channel is frozen"
    small = record_of("odd_structured", "numeric", memory_bytes=1)
    assert (small.note or "").endswith("; nothing can be removed: every channel is frozen")
    assert small.verified == "shape"
