"""Checkpoints that earlier versions wrote still load, and compute what they computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchorbit
from tests.models import assert_same
from zoo.manifest import read_manifest

pytestmark = pytest.mark.numeric

DATA = Path(__file__).parent / "data"
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8)


def test_a_checkpoint_of_0_1_0_loads_and_computes_the_same() -> None:
    """Pruned and saved by version 0.1.0, whose operators `keep` and `spread` have other names today."""
    folder = DATA / "checkpoint-0.1.0"
    assert {'"keep"', '"spread"'} <= {word.strip(",") for word in (folder / "graph.json").read_text().split()}
    # What version 0.1.0 computed in float64 from the same weights.
    expected = torch.tensor(json.loads((DATA / "checkpoint-0.1.0.output.json").read_text()), dtype=torch.float64)
    dag = torchorbit.from_pretrained(folder).double()
    assert_same(dag(X), expected)
    manifest = read_manifest(folder)
    (step,) = manifest.steps
    assert (str(step.criterion), str(step.selector), step.target) == ("l2", "global", "flops=0.5")
    assert manifest.before.parameters == 872


def test_a_checkpoint_of_0_1_0_is_pruned_further_and_saved_anew(tmp_path: Path) -> None:
    dag = torchorbit.from_pretrained(DATA / "checkpoint-0.1.0").double()
    smaller = torchorbit.prune(dag, flops=0.7)
    removed = {orbit: [0] for orbit in torchorbit.find_orbits(dag)}
    assert torchorbit.verify_removal(dag, torchorbit.remove_channels(dag, removed), removed) < 1e-12
    smaller.save_pretrained(tmp_path / "smaller", name="smaller")
    again = torchorbit.from_pretrained(tmp_path / "smaller")
    assert torch.equal(again(X), smaller(X))
    assert [str(step.selector) for step in again.manifest.steps] == ["global", "knapsack"]
