"""The processes in which models run: where they find modules, when they are replaced, and what is said of their end."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import process, supervisor
from harness.jobs import Job, Outcome
from harness.models import VERSIONS

ODD = ("tests.harness.odd_models",)


@pytest.fixture(autouse=True)
def _no_process_of_another_test() -> Iterator[None]:
    yield
    if getattr(supervisor._local, "process", None) is not None:
        supervisor._local.process.end()
        supervisor._local.process = None


def run(model: str, imports: tuple[str, ...] = ODD) -> Outcome:
    return supervisor.run(Job(model, "shape", VERSIONS, imports=imports))


def found_out(outcome: Outcome) -> dict[str, Any]:
    """What a record says, without what a clock or the memory says."""
    assert outcome.record is not None
    return {**vars(outcome.record), "model": None, "seconds": None, "peak_rss_mb": None}


def test_a_process_is_kept_until_a_model_leaves_memory_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LEFT_OVER_BYTES", 2**28)
    outcomes = [run(name) for name in ("odd_twin", "odd_other_twin", "odd_leaky", "odd_twin", "odd_other_twin")]

    assert all(outcome.record is not None and outcome.record.converted for outcome in outcomes)
    first, second, leaky, fourth, fifth = (outcome.process for outcome in outcomes)
    assert first == second == leaky != fourth == fifth


def test_a_process_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_program", lambda: "raise ImportError('there is no timm')")

    record = run("test_vit").record

    assert record is not None
    assert (record.stage, record.error) == (
        "worker",
        "the process for models did not start, it ended with exit code 1: ImportError: there is no timm",
    )


def test_a_module_that_only_the_worker_cannot_import_is_in_the_record() -> None:
    record = run("test_vit", imports=("no_such_module",)).record

    assert record is not None
    assert record.stage == "worker"
    assert (record.error or "").startswith("--import no_such_module: ModuleNotFoundError: ")


def test_what_a_model_prints_is_in_the_log_of_its_worker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="harness.supervisor")

    assert run("odd_talkative").record is not None
    assert "printed: hello again" in caplog.text


def test_processes_find_modules_where_their_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    supervisor._local.process = None

    record = run("test_vit", imports=()).record

    assert record is not None
    assert record.converted, record.error


def test_errors_of_every_kind_are_told_as_what_they_are_and_cost_no_process() -> None:
    errors = {
        "odd_exit_politely": "SystemExit: 3",
        "odd_interrupt": "KeyboardInterrupt",
        "odd_base": "BaseException: at the base",
        "odd_without_words": "_WithoutWordsError, whose text raises ValueError",
        "odd_colourful": "ValueError: [31mred [0m back",
        "odd_verbose": f"ValueError: {'word ' * 98}..."[:497] + "...",
    }

    outcomes = {name: run(name) for name in errors}

    assert {name: (o.record.stage, o.record.error) for name, o in outcomes.items() if o.record is not None} == {
        name: ("build", error) for name, error in errors.items()
    }
    assert len({outcome.process for outcome in outcomes.values()}) == 1


def test_a_model_that_comes_back_twice_answers_for_itself_alone() -> None:
    first = run("odd_twin")
    forked, after = run("odd_fork"), run("odd_twin")

    assert found_out(forked) == found_out(after) == found_out(first)
    assert after.process != first.process  # in which a copy of itself may run


def test_what_models_start_ends_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    monkeypatch.setenv("ODD_FILE", str(started))

    outcomes = [run("odd_parent"), run("odd_parent_that_dies")]

    assert [o.record.error for o in outcomes if o.record is not None] == [None, "its process died with exit code 5"]
    children = [int(line) for line in started.read_text().split()]
    assert len(children) == 4
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "some outlive their model"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_whatever_is_written_where_a_process_answers_the_next_model_has_its_record() -> None:
    garbled, after = run("odd_garbler"), run("odd_twin")

    assert garbled.record is not None
    assert garbled.record.error == "it wrote something else where its process answers"
    assert after.record is not None
    assert after.record.converted


@given(st.binary(max_size=200) | st.builds(lambda text: len(text).to_bytes(8, "big") + text, st.binary(max_size=200)))
def test_whatever_comes_is_a_message_or_none(sent: bytes) -> None:
    stream = io.BytesIO(sent)
    try:
        while True:
            assert isinstance(process.receive(stream), dict)
    except (EOFError, ValueError):
        pass


def test_no_model_changes_what_is_found_out_about_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = {name: found_out(run(name)) for name in ("odd_twin", "odd_gambler")}
    supervisor._local.process.end()
    monkeypatch.chdir(tmp_path)

    vandal = run("odd_vandal")

    assert set(vandal.changed) >= {
        "the default dtype", "whether gradients are recorded", "the current folder", "the environment",
        "how signals are handled", "limits of the process", "threads, which still run", "torch.nn.functional.relu",
        "torch.nn.modules.linear.Linear.forward", "torch.nn.modules.module.Module.extra",
    }  # fmt: skip
    outcomes = {name: run(name) for name in expected}
    assert {name: found_out(outcome) for name, outcome in outcomes.items()} == expected
    assert all(outcome.process != vandal.process and not outcome.changed for outcome in outcomes.values())


@pytest.mark.parametrize("when", ["while it starts", "while it has a model"])
def test_a_model_whose_process_somebody_kills_is_tried_again(when: str) -> None:
    if when == "while it has a model":
        run("odd_twin")
    before = {child.pid for child in psutil.Process().children()} if when == "while it starts" else set()
    killed = []

    def kill() -> None:
        while not killed:
            for child in psutil.Process().children():
                if child.pid not in before:
                    time.sleep(0.3)
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.05)

    killing = threading.Thread(target=kill)
    killing.start()
    outcome = run("odd_slow")
    killing.join()

    assert outcome.record is not None
    assert outcome.record.converted, outcome.record.error
    assert not outcome.process.endswith(f":{killed[0]}")
