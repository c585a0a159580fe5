from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from joblib.externals.loky import get_reusable_executor

import harness.sweep
from harness.backends import Backend
from harness.errors import HarnessError, UsageError
from harness.jobs import Job, Outcome
from harness.records import Record, append_record, read_records
from harness.sweep import sweep

NAMES = ["test_vit", "test_resnet", "test_convnext"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "records.jsonl"


ODD = ("tests.harness.odd_models",)


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
    monkeypatch.setattr("joblib.Parallel", None)

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


def test_a_record_of_a_process_that_was_killed_is_made_again(out: Path) -> None:
    for name, stage in (("test_vit", "worker"), ("test_resnet", "convert")):
        append_record(out, Record(model=name, **harness.sweep.VERSIONS, stage=stage, error="..."))

    assert [record.stage for record in sweep(["test_vit", "test_resnet"], out, jobs=1).records] == [None, "convert"]


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


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b'{"important": "x"}',
        b"\x00\xff\xfe",
        Record(model="test_vit", timm="9", torch="9", torchorbit="9").to_line().encode() + b'{"model": "b", "new": 1}',
        Record(model="other", timm="9", torch="9", torchorbit="9").to_line().encode() + b'{"model": "b", "ti',
    ],
)
def test_a_file_that_a_sweep_cannot_go_on_with_is_left_as_it_is(out: Path, content: bytes, fresh: bool) -> None:
    out.parent.mkdir()
    out.write_bytes(content)

    with pytest.raises(HarnessError, match=r"records\.jsonl") as caught:
        sweep(["test_vit"], out, jobs=1, fresh=fresh)

    assert "\n" not in str(caught.value)
    assert out.read_bytes() == content


def test_models_that_fail_become_records_and_stop_nothing(out: Path) -> None:
    names = ["odd_unbuildable", "odd_unrunnable", "test_vit"]

    summary = sweep(names, out, jobs=2, imports=ODD)

    assert {record.model: record.stage for record in read_records(out)} == {
        "odd_unbuildable": "build",
        "odd_unrunnable": "convert",
        "test_vit": None,
    }
    assert "2 failed:" in str(summary)
    assert "odd_unbuildable (build): ValueError: this constructor always fails" in str(summary)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_process_that_dies_costs_its_own_model_only(out: Path, jobs: int) -> None:
    names = ["test_vit", "odd_deadly", "test_resnet", "odd_segfault", "test_convnext", "odd_exit", "test_convnext2"]

    summary = sweep(names, out, jobs=jobs, imports=ODD)

    assert {failure.model: (failure.stage, failure.error) for failure in summary.failures} == {
        "odd_deadly": (
            "worker",
            "its process died of SIGKILL, which is what a system does that is out of memory, twice, in the stage "
            "'build'",
        ),
        "odd_segfault": ("build", "its process died of SIGSEGV, a crash in native code"),
        "odd_exit": ("build", "its process died with exit code 7"),
    }  # fmt: skip
    assert sum(record.converted for record in read_records(out)) == 4


def test_a_model_that_hangs_is_given_up(out: Path) -> None:
    names = ["odd_endless", "odd_endless_forward", "test_vit"]

    summary = sweep(names, out, jobs=2, imports=ODD, timeout=10)

    assert {failure.model: (failure.stage, failure.error) for failure in summary.failures} == {
        "odd_endless": ("build", "it took more than 10 seconds"),
        "odd_endless_forward": ("convert", "it took more than 10 seconds"),
    }
    # What is known of it is in its record.
    assert summary.records[1].params_m == pytest.approx(0.0077, abs=1e-3)
    assert all((failure.seconds or 0) > 10 for failure in summary.failures)


def test_a_model_that_takes_too_much_memory_is_ended(out: Path) -> None:
    summary = sweep(["odd_greedy", "test_vit"], out, jobs=2, imports=ODD, memory_bytes=3 * 2**30)

    (failure,) = summary.failures
    assert (failure.model, failure.stage) == ("odd_greedy", "build")
    # First with its share, then with all of it.
    assert failure.error == "it took more than 3.0 GiB of memory, which is the limit"
    assert 3 * 1024 < (failure.peak_rss_mb or 0) < 4 * 1024


def test_what_a_process_did_before_is_no_fault_of_the_next_model(out: Path) -> None:
    summary = sweep(["odd_first", "odd_after_another"], out, jobs=1, imports=ODD)

    assert summary.failures == []


def test_what_a_model_prints_is_no_message(out: Path) -> None:
    assert sweep(["odd_talkative", "test_vit"], out, jobs=1, imports=ODD).failures == []


def test_a_worker_that_dies_costs_nothing(out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ODD_FILE", str(tmp_path / "done"))
    # Workers are kept for the next sweep, and those of the one before know nothing of the variable.
    get_reusable_executor().shutdown(wait=True, kill_workers=True)

    summary = sweep(["odd_breaks_its_worker", *NAMES], out, jobs=2, imports=ODD)

    assert summary.failures == []
    assert (tmp_path / "done").exists()
    assert len(out.read_text().splitlines()) == 4


def test_a_model_that_kills_every_worker_costs_its_own_record_only(out: Path) -> None:
    names = ["odd_slow", "odd_always_breaks_its_worker", "odd_other_slow", "test_vit"]

    summary = sweep(names, out, jobs=2, imports=ODD)

    assert [(failure.model, failure.stage, failure.error) for failure in summary.failures] == [
        ("odd_always_breaks_its_worker", "worker", "the worker that had it died, 3 times")
    ]
    assert sum(record.converted for record in read_records(out)) == len(names) - 1


def test_what_may_have_killed_a_worker_runs_alone() -> None:
    for memory in (None, 8):
        waiting = harness.sweep._Queue(dict.fromkeys("abcd", 0), memory_bytes=memory, jobs=2)
        assert [waiting.next()[0], waiting.next()[0]] == ["a", "b"]
        for name in waiting.take_back():
            waiting.put(name, 0, alone=True)

        started = []
        for _ in range(2):
            started.append(waiting.next())
            assert waiting.next() == ("", None)
            waiting.done(started[-1][0])

        assert sorted(started) == [("a", memory), ("b", memory)]
        assert [waiting.next()[0], waiting.next()[0]] == ["c", "d"]


def test_two_sweeps_on_one_file_are_refused(out: Path) -> None:
    with harness.sweep._alone(out), pytest.raises(HarnessError, match="another sweep is writing"):
        sweep(NAMES, out, jobs=1)
    assert not out.exists()


def test_errors_in_records_have_no_tokens_and_no_name_of_the_users_folder(out: Path) -> None:
    (record,) = sweep(["odd_indiscreet"], out, jobs=1, imports=ODD).records

    assert record.error == "ValueError: no file ~/weights.pth, token ***"
    assert read_records(out) == [record]


def test_the_utilisation_is_the_share_of_their_time_in_which_workers_had_a_job(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoWorkers(Backend):
        """One of them has jobs for 30 seconds, the other one for 10 and waits for the rest."""

        def outcomes(self, function: Callable[[Job], Outcome], jobs: Iterator[Job]) -> Iterator[Outcome]:
            for job, seconds in zip(jobs, (20.0, 10.0, 10.0), strict=False):
                yield Outcome("", busy_seconds=7.0)
                yield Outcome(job.model, Record(model=job.model, **harness.sweep.VERSIONS), busy_seconds=seconds)

    clock = SimpleNamespace(perf_counter=iter((100.0, 140.0)).__next__)
    monkeypatch.setattr(harness.sweep, "time", clock)
    summary = sweep(["test_vit", "test_resnet", "test_convnext"], out, backend=TwoWorkers(jobs=2))

    assert summary.utilisation == pytest.approx(40 / 80)
    assert "busy 50% of the time" in str(summary)


def test_one_model_keeps_one_of_two_workers_busy_at_most(out: Path) -> None:
    assert 0 < sweep(["test_vit"], out, jobs=2).utilisation <= 0.5


def test_an_address_needs_a_cluster() -> None:
    with pytest.raises(UsageError, match="--backend dask or --backend ray"):
        Backend(address="tcp://localhost:8786")


def test_models_that_do_not_fit_side_by_side_run_alone(out: Path) -> None:
    # Enough for one vit_small with real weights, not for two beside each other.
    summary = sweep(
        ["vit_small_patch16_224", "vit_base_patch16_224"], out, verify="numeric", jobs=2, memory_bytes=2**30
    )

    by_name = {record.model: record for record in summary.records}
    assert by_name["vit_small_patch16_224"].verified == "numeric"
    assert by_name["vit_base_patch16_224"].verified == "shape"
    assert "by numbers it needs about 1.0 GiB of memory, and 1.0 GiB may be used" in str(summary)


@pytest.mark.parametrize(("gibibytes", "together"), [(2, False), (64, True)])
def test_large_models_run_side_by_side_only_where_they_fit(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gibibytes: int, together: bool
) -> None:
    diary = tmp_path / "diary"
    monkeypatch.setenv("ODD_FILE", str(diary))
    # Where they run side by side, the first waits until the other has begun.
    monkeypatch.setenv("ODD_SECONDS", "120" if together else "3")
    get_reusable_executor().shutdown(wait=True, kill_workers=True)

    names = ["odd_rendezvous", "odd_other_rendezvous"]
    summary = sweep(names, out, verify="numeric", jobs=2, imports=ODD, memory_bytes=gibibytes * 2**30, timeout=None)

    assert [record.verified for record in summary.records] == ["numeric", "numeric"], str(summary)
    lines = diary.read_text().split()
    assert (lines.index("ends") > [place for place, line in enumerate(lines) if line == "begins"][1]) == together


def test_models_that_run_never_have_more_memory_than_there_is() -> None:
    chance = random.Random(0)
    for _ in range(200):
        memory, jobs = chance.randint(4, 40), chance.randint(1, 4)
        needs = {str(number): chance.randint(0, memory) for number in range(12)}
        waiting = harness.sweep._Queue(needs, memory_bytes=memory, jobs=jobs)
        running: dict[str, int] = {}
        begun = []
        while not waiting.empty:
            found = waiting.next() if len(running) < jobs else None
            if found is not None and found[0]:
                name, allowed = found
                assert allowed is not None
                assert allowed >= min(int(needs[name] * harness.sweep._MEMORY_MARGIN), memory)
                running[name] = allowed
                begun.append(name)
                assert sum(running.values()) <= memory
            else:
                # What does not start while nothing runs never will.
                ended = chance.choice(sorted(running))
                del running[ended]
                waiting.done(ended)
        assert sorted(begun) == sorted(needs)


def test_a_worker_that_asks_has_room_though_nobody_has_said_so_yet() -> None:
    """joblib asks for the next job before it hands out the result of the last one."""
    waiting = harness.sweep._Queue(dict.fromkeys("abcd", 0), memory_bytes=8, jobs=2)
    assert [waiting.next() for _ in range(3)] == [("a", 4), ("b", 4), ("c", 4)]
    waiting.done("b")
    assert waiting.next() == ("d", 4)

    unequal = harness.sweep._Queue({"large": 6, "small": 1, "other": 6}, memory_bytes=10, jobs=2)
    assert [unequal.next(), unequal.next()] == [("large", 7), ("small", 3)]
    # It may be the small one that has ended.
    assert unequal.next() == ("", None)
    unequal.done("large")
    assert unequal.next() == ("other", 7)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what the process took")
def test_the_main_process_stays_small(out: Path) -> None:
    program = (
        "import re, sys; from pathlib import Path; from harness.cli import main; "
        "code = main(sys.argv[1:]); "
        "print('PEAK', re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1)); sys.exit(code)"
    )
    # The cache is asked for every model of timm that matches, which reads the sources of nearly all of it.
    arguments = ["sweep", *NAMES, "test_*", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rsplit("PEAK", 1)[1]) / 1024 < 500
