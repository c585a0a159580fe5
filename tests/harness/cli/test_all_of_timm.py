"""The commands for all of timm, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import Record, read_records, write_records
from tests.harness.cli.helpers import MY_MODELS, ROOT, Run, console_script


def test_sweep_and_tables_work_together(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("sweep", "test_vit", "test_resnet", "--jobs", "2")

    assert code == 0
    assert "| channel prunable          |            2 | 100.00%      |" in out
    assert len(read_records(tmp_path / "runs" / "coverage.jsonl")) == 2

    code, out, _ = run("tables", "--records", "runs/coverage.jsonl", "--out", "tables")

    names = ("coverage", "supported_models", "channel_pruning_supported_models")
    assert (code, out) == (0, "".join(f"tables/{name}.md\n" for name in names))
    assert "| test_vit " in (tmp_path / "tables" / "supported_models.md").read_text()


def test_a_sweep_in_which_a_model_failed_exits_with_code_1(run: Run, tmp_path: Path) -> None:
    sweep = ("sweep", "test_vit", "--jobs", "1", "--out", "records.jsonl")
    run(*sweep)
    path = tmp_path / "records.jsonl"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"converted": False, "stage": "convert", "error": "it did not"}) + "\n")

    code, out, _ = run(*sweep)

    assert code == 1
    assert "test_vit (convert): it did not" in out


def test_modules_of_the_current_folder_come_after_those_that_are_installed(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "torch.py").write_text("raise RuntimeError('not this one')")

    done = console_script(tmp_path, "sweep", "my_net", "test_vit", "--import", "my_models", "--jobs", "1", "--no-cache")

    assert (done.returncode, done.stderr) == (0, "")
    assert [record.model for record in read_records(tmp_path / "runs" / "coverage.jsonl")] == ["my_net", "test_vit"]
    assert "hello" not in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "ModuleNotFoundError: No module named 'my_models'; it has to be a module that Python finds here"),
        ("def", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_bad_usage(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "my_models.py").write_text(text)

    done = console_script(tmp_path, "sweep", "my_net", "--import", "my_models")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"torchorbit: --import my_models: {message}")
    assert done.stderr.count("\n") == 1


def test_what_models_print_is_not_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        MY_MODELS.replace('"hello"', 'sys.stderr.write("hello") and ""').replace("from torch", "import sys\nfrom torch")
        + "\nfrom tests.harness import odd_models\n"
    )
    names = ("my_net", "odd_talkative", "test_vit")
    arguments = ("sweep", *names, "--import", "my_models", "--jobs", "2", "--no-cache")

    done = console_script(tmp_path, *arguments, "--log-json")

    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["model"] for line in done.stderr.splitlines()} == set(names)
    assert "hello" not in done.stdout


def test_diff_prints_the_page_and_tells_by_its_exit_code_whether_something_was_lost(run: Run, tmp_path: Path) -> None:
    converts = Record(model="test_vit", timm="1", torch="2", torchorbit="3", converted=True, verified="shape")
    fails = replace(converts, converted=False, verified=None, stage="convert", error="it did not")
    write_records(tmp_path / "converts.jsonl", [converts])
    write_records(tmp_path / "fails.jsonl", [fails])

    code, out, err = run("diff", "converts.jsonl", "fails.jsonl", "--out", "deeper/changes.md")

    assert (code, err) == (1, "")
    assert "| test_vit | converted, verified | convert | it did not |" in out
    assert (tmp_path / "deeper" / "changes.md").read_text() == out

    code, out, _ = run("diff", "fails.jsonl", "converts.jsonl")

    assert code == 0
    assert "Nothing lost, 1 newly convertible (1 model compared).\n" in out


def test_a_page_of_changes_that_cannot_be_written_is_not_taken_for_a_loss(run: Run, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [Record(model="test_vit", timm="1", torch="2", torchorbit="3")])
    (tmp_path / "file").write_text("")

    code, out, err = run("diff", "records.jsonl", "records.jsonl", "--out", "file/x.md")

    assert (code, out) == (2, "")
    assert err.startswith("torchorbit: cannot write file/x.md: ")
    assert err.count("\n") == 1


def test_diff_takes_models_that_are_missing_for_removed_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    records = [Record(model=name, timm="1", torch="2", torchorbit="3") for name in ("a", "b")]
    write_records(tmp_path / "old.jsonl", records)
    write_records(tmp_path / "new.jsonl", records[:1])

    for options, verdict in (((), "Nothing lost, 1 removed"), (("--only-swept",), "Nothing changed")):
        code, out, _ = run("diff", "old.jsonl", "new.jsonl", *options)

        assert code == 0
        assert f"\n{verdict} (1 model compared).\n" in out


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups to interrupt")
def test_ctrl_c_ends_a_sweep_cleanly_and_resuming_finishes_it(run: Run, tmp_path: Path) -> None:
    sweep = ["sweep", "test_*", "--jobs", "1", "--out", "records.jsonl"]
    path = tmp_path / "records.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *sweep],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background have it ignored, and programs that they start inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    # The file is there a moment before its first line is.
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    # As a terminal does: to everything in the foreground, the workers included.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped; what was finished is in records.jsonl" in err
    finished = len(read_records(path))
    assert finished >= 1

    code, out, _ = run(*sweep)
    assert code == 0
    assert f"models, {finished} of them from an earlier run" in out
