from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import torchorbit
from harness.jobs import Depth, Job
from harness.models import VERSIONS, build_on_meta
from harness.records import Record
from harness.worker import run
from tests.harness import odd_models  # noqa: F401  (registers the models)

PLENTY = 2**36


def record_of(model: str, verify: Depth, memory_bytes: int = PLENTY) -> Record:
    record = run(Job(model, verify, VERSIONS, memory_bytes=memory_bytes, memory_total=memory_bytes)).record
    assert record is not None
    assert Record.from_line(record.to_line()) == record
    return record


def test_verification_by_shape_needs_no_weights() -> None:
    record = record_of("vit_giant_patch14_224", "shape")

    assert (record.converted, record.verified, record.max_diff) == (True, "shape", None)
    assert (record.stage, record.error, record.note) == (None, None, None)
    assert record.params_m == pytest.approx(1012.6, abs=0.1)
    assert record.input_size == [3, 224, 224]
    assert record.versions == VERSIONS
    assert record.seconds is not None
    assert record.seconds > 0
    assert record.peak_rss_mb is not None
    assert record.peak_rss_mb > 100


@pytest.mark.numeric
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet_evos", "levit_128s", "odd_structured"]
)
def test_verification_by_numbers_compares_outputs(name: str) -> None:
    record = record_of(name, "numeric")

    assert (record.stage, record.error) == (None, None)
    assert record.verified == "numeric"
    assert record.max_diff is not None
    assert record.max_diff <= 1e-5


@pytest.mark.parametrize(
    ("name", "stage", "error"),
    [
        ("odd_unbuildable", "build", "ValueError: this constructor always fails"),
        ("odd_unrunnable", "convert", "this forward never runs"),
        ("odd_constant", "verify", "the output of the source is constant, so comparing with it proves nothing"),
        ("odd_not_finite", "verify", "the output of the source is not finite, so comparing with it proves nothing"),
        ("no_such_model", "build", "has no model 'no_such_model'"),
    ],
)
def test_whatever_goes_wrong_is_in_the_record(name: str, stage: str, error: str) -> None:
    record = record_of(name, "shape" if stage == "build" else "numeric", PLENTY)

    assert record.stage == stage
    assert record.error is not None
    assert error in record.error
    assert "\n" not in record.error
    assert record.converted == (stage == "verify")
    assert record.verified is None


def test_a_graph_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = torchorbit.convert

    def convert_wrongly(*args: Any, **kwargs: Any) -> torchorbit.DagModule:
        graph = copy.deepcopy(convert(*args, **kwargs))
        with torch.no_grad():
            # A hundredth of one bias of one norm in the first block.
            graph.get_parameter("layer1.0.bn1.bias")[0].add_(0.01)
        return graph

    monkeypatch.setattr(torchorbit, "convert", convert_wrongly)

    record = record_of("test_resnet", "numeric")

    assert (record.stage, record.verified, record.converted) == ("verify", None, True)
    assert record.error is not None
    assert "differs from the source's by" in record.error


@pytest.mark.numeric
def test_where_tokens_are_removed_that_is_proved_at_the_recorded_size() -> None:
    record = record_of("odd_registers", "numeric")

    assert (record.stage, record.prunable) == (None, True)
    assert record.removal_max_diff is not None
    assert record.removal_max_diff < 1e-5


def test_a_model_too_large_for_the_memory_is_verified_by_shape_and_says_so() -> None:
    record = record_of("vit_base_patch16_224", "numeric", memory_bytes=2**29)

    assert (record.verified, record.max_diff, record.stage) == ("shape", None, None)
    assert record.note is not None
    assert "needs about 1.0 GiB" in record.note
    assert "0.5 GiB may be used" in record.note


def test_a_model_too_large_for_a_share_is_put_off() -> None:
    outcome = run(Job("vit_base_patch16_224", "numeric", VERSIONS, memory_bytes=2**29, memory_total=PLENTY))

    assert outcome.record is None
    assert outcome.model == "vit_base_patch16_224"
    assert outcome.needed_bytes is not None
    assert 2**29 < outcome.needed_bytes < 2**31


def test_asked_for_the_memory_that_is_needed_it_does_nothing_else() -> None:
    outcome = run(Job("test_vit", "numeric", VERSIONS, measure=True))

    assert outcome.record is None
    assert outcome.needed_bytes is not None
    assert outcome.needed_bytes < 2**30


def test_every_stage_is_told() -> None:
    stages = []
    run(Job("test_vit", "numeric", VERSIONS), lambda record: stages.append((record.stage, record.converted)))

    assert stages == [
        ("build", False),
        ("convert", False),
        ("verify", True),
        ("orbits", True),
        ("prune", True),
        ("prove", True),
    ]


def test_jobs_leave_nothing_behind() -> None:
    import gc
    import weakref

    import harness.worker

    models = []

    def build(name: str) -> torch.nn.Module:
        model = build_on_meta(name)
        models.append(weakref.ref(model))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.worker, "build_on_meta", build)
        gc.disable()
        try:
            record_of("test_vit", "shape")
            record_of("odd_unrunnable", "shape")
        finally:
            gc.enable()

    assert [reference() for reference in models] == [None, None]
