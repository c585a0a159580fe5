"""A model of every family of timm, pruned, published and pulled: the same output to the last bit."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch.utils import _pytree as pytree

import torchorbit
from harness.models import build_with_random_weights, example_input, input_size
from harness.records import Record, read_records
from harness.verification import random_input
from tests.models import outcome

RECORDS = Path(torchorbit.__file__).parents[1] / "results" / "coverage.jsonl"
MOST_MIB, MOST_PARAMETERS, MOST_GFLOPS = 1500, 40e6, 20


@cache
def families() -> list[str]:
    """The cheapest model of every module of timm that has one that is cheap, and can be pruned."""
    records = {record.model: record for record in read_records(RECORDS)}
    chosen = []
    for module in timm.list_modules():
        there = [records[name] for name in timm.list_models(module=module) if name in records]
        cheap = [record for record in there if _is_cheap(record) and not record.model.startswith("test_")]
        if cheap:
            chosen.append(min(cheap, key=lambda record: (record.params_m or 0) + (record.gflops or 0)).model)
    return chosen


def _is_cheap(record: Record) -> bool:
    known = record.prunable and record.params_m and record.gflops and record.peak_rss_mb
    return bool(
        known
        and 1e6 * (record.params_m or 0) < MOST_PARAMETERS
        and (record.gflops or 0) < MOST_GFLOPS
        and (record.peak_rss_mb or 0) < MOST_MIB
    )


def test_there_are_at_least_sixty_families() -> None:
    assert len(families()) >= 60
    assert len(set(families())) == len(families())


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_what_is_pulled_gives_the_same_output_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = build_with_random_weights(name)
    dag = torchorbit.convert(model, example_input(model))
    pruned = torchorbit.prune(dag, flops=0.5)
    image = random_input(input_size(model), "image")
    del model, dag
    try:
        publication = pruned.push_to_hub(f"timm/{name.lower()}", hub=tmp_path)
        pulled = torchorbit.from_pretrained(f"timm/{name.lower()}", hub=tmp_path, revision=publication.commit)
    finally:
        shutil.rmtree(tmp_path)  # a hundred of them are more than a small disk has room for

    ours, theirs = (pytree.tree_leaves(outcome(graph.eval(), image)) for graph in (pulled, pruned))
    assert len(ours) == len(theirs) > 0
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, expected)
    assert list(pulled.state_dict()) == list(pruned.state_dict())
