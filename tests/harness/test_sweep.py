from __future__ import annotations

from pathlib import Path

import pytest

import harness.sweep
from harness.errors import HarnessError
from harness.records import Record, append_record, read_records
from harness.sweep import sweep
from tests.harness import odd_models

NAMES = ["test_vit", "test_resnet", "test_convnext"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "records.jsonl"


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker processes know the odd models."""
    monkeypatch.setattr(harness.sweep, "run", odd_models.run)


def test_a_sweep_leaves_a_sorted_record_of_every_model(out: Path) -> None:
    summary = sweep(NAMES, out, jobs=2)

    records = read_records(out)
    assert [record.model for record in records] == sorted(NAMES)
    assert all(record.converted and record.verified == "shape" for record in records)
    assert [record.model for record in summary.records] == NAMES
    assert (summary.failures, summary.skipped) == ([], 0)
    assert summary.cpu_seconds > 0
    assert summary.peak_rss_mb == max(record.peak_rss_mb or 0 for record in records)
    assert "| converted                 |            3 | 100.00%      |" in str(summary)
    assert "3 models, 0 of them from an earlier run" in str(summary)


def test_a_worker_needs_less_memory_than_was_estimated(out: Path) -> None:
    (record,) = sweep(["vit_small_patch16_224"], out, verify="numeric", jobs=1).records

    assert record.verified == "numeric"
    assert record.peak_rss_mb is not None
    # 700 MiB for the process, 84 for the weights, and the activations.
    assert record.peak_rss_mb < 850


def test_resuming_sweeps_only_what_has_no_record(out: Path) -> None:
    first = sweep(NAMES[:2], out, jobs=2)
    content = out.read_text()

    second = sweep(NAMES, out, jobs=2)

    assert (first.skipped, second.skipped) == (0, 2)
    assert set(content.splitlines()) < set(out.read_text().splitlines())
    assert [record.model for record in second.records] == NAMES


def test_resuming_a_complete_sweep_starts_no_worker(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        append_record(out, Record(model=name, **harness.sweep.VERSIONS, verified="shape", converted=True, orbits=1))
    content = out.read_text()
    monkeypatch.setattr(harness.sweep.joblib, "Parallel", None)

    assert sweep(NAMES, out, jobs=2).skipped == 3
    assert out.read_text() == content


def test_fresh_replaces_the_records_of_what_was_asked_for_and_keeps_the_others(out: Path) -> None:
    for name in (NAMES[0], "another_model"):
        append_record(out, Record(model=name, **harness.sweep.VERSIONS, note="old"))

    sweep(NAMES, out, jobs=2, fresh=True)

    assert {record.model: record.note for record in read_records(out)} == {
        "another_model": "old",
        **dict.fromkeys(NAMES),
    }


def test_a_record_verified_by_shape_is_not_enough_where_numbers_are_asked_for(out: Path) -> None:
    sweep(["test_vit"], out, jobs=1)

    assert sweep(["test_vit"], out, jobs=1, verify="numeric").records[0].verified == "numeric"
    assert sweep(["test_vit"], out, jobs=1, verify="shape").skipped == 1


def test_a_record_that_says_nothing_of_pruning_is_made_again(out: Path) -> None:
    append_record(out, Record(model="test_vit", **harness.sweep.VERSIONS, converted=True, verified="shape"))

    assert sweep(["test_vit"], out, jobs=1).records[0].prunable


def test_a_half_written_line_is_swept_again(out: Path) -> None:
    append_record(out, Record(model=NAMES[0], **harness.sweep.VERSIONS, converted=True, verified="shape", orbits=1))
    with out.open("a") as file:
        file.write(Record(model=NAMES[1], **harness.sweep.VERSIONS).to_line()[:50])

    summary = sweep(NAMES[:2], out, jobs=1)

    assert summary.skipped == 1
    assert [record.model for record in read_records(out)] == sorted(NAMES[:2])


def test_records_of_other_versions_are_not_mixed_in(out: Path) -> None:
    append_record(out, Record(model="another_model", timm="0.9.5", torch="2.0", torchorbit="0"))
    content = out.read_text()

    with pytest.raises(HarnessError, match=r"made with timm 0\.9\.5, torch 2\.0, torchorbit 0, and this is timm"):
        sweep(NAMES, out, jobs=1, fresh=True)
    assert out.read_text() == content


@pytest.mark.usefixtures("odd")
def test_models_that_fail_become_records_and_stop_nothing(out: Path) -> None:
    names = ["odd_unbuildable", "odd_unrunnable", "test_vit"]

    summary = sweep(names, out, jobs=2)

    assert {record.model: record.stage for record in read_records(out)} == {
        "odd_unbuildable": "build",
        "odd_unrunnable": "convert",
        "test_vit": None,
    }
    assert "2 failed:" in str(summary)
    assert "odd_unbuildable (build): ValueError: this constructor always fails" in str(summary)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_worker_that_dies_costs_its_own_model_only(out: Path, jobs: int) -> None:
    names = ["test_vit", "odd_deadly", "test_resnet", "test_convnext", "test_convnext2"]

    summary = sweep(names, out, jobs=jobs)

    (failure,) = summary.failures
    assert (failure.model, failure.stage, failure.converted) == ("odd_deadly", "worker", False)
    assert failure.error == "its worker process died with SIGKILL(-9): out of memory, or a crash in native code"
    assert sum(record.converted for record in read_records(out)) == 4


def test_models_that_do_not_fit_side_by_side_run_alone(out: Path) -> None:
    # Enough for one vit_small with real weights, not for two beside each other.
    summary = sweep(
        ["vit_small_patch16_224", "vit_base_patch16_224"], out, verify="numeric", jobs=2, memory_bytes=2**30
    )

    by_name = {record.model: record for record in summary.records}
    assert by_name["vit_small_patch16_224"].verified == "numeric"
    assert by_name["vit_base_patch16_224"].verified == "shape"
    assert "by numbers it needs about 1.0 GiB of memory, and 1.0 GiB may be used" in str(summary)
