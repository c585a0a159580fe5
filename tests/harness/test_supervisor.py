"""The processes in which models run: where they find modules, when they are replaced, and what is said of their end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import supervisor
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
