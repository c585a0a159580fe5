"""`nox -s nightly`, run by nox in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import Record, read_records, write_records

ROOT = Path(__file__).parent.parent
RECORD = Record(model="test_vit", timm="0.1", torch="2", torchorbit="3", converted=True, verified="shape", orbits=3)
FAILED = replace(RECORD, converted=False, verified=None, orbits=None, stage="convert", error="it did not")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs of the environment are scripts of a shell here")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the noxfile, in whose environment nothing is installed: pip is written down and not run."""
    shutil.copy(ROOT / "noxfile.py", tmp_path)
    programs = tmp_path / ".nox" / "environment" / "bin"
    programs.mkdir(parents=True)
    for name, line in {
        "python": 'echo "$@" >> pip.txt',
        "torchorbit": f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m harness.cli "$@"',
    }.items():
        script(programs / name, line)
    return tmp_path


def script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)


def sweeps_to(project: Path, records: list[Record], code: int) -> None:
    """Let every sweep come to these records, and to this exit code; all other commands stay what they are."""
    write_records(project / "swept.jsonl", records)
    program = project / ".nox" / "environment" / "bin" / "torchorbit"
    real = program.rename(program.with_name("real"))
    # The file of records is the last argument.
    script(
        program,
        f'[ "$1" = sweep ] || exec {real} "$@"',
        'echo "$@" >> sweeps.txt',
        'for file; do :; done; [ ! -e "$file" ] || exit 9',
        f'mkdir -p runs; cp swept.jsonl "$file"; exit {code}',
    )


def nightly(project: Path, *arguments: str, upgrade: str = "") -> subprocess.CompletedProcess[str]:
    pytest.importorskip("nox")
    return subprocess.run(
        [sys.executable, "-m", "nox", "-s", "nightly", "--", *arguments],
        capture_output=True,
        text=True,
        cwd=project,
        env=os.environ | {"NIGHTLY_UPGRADE": upgrade},
        check=False,
    )


def test_a_night_over_one_model_sweeps_it_and_compares_it_alone(project: Path) -> None:
    write_records(project / "results" / "coverage.jsonl", [FAILED, replace(RECORD, model="test_resnet")])

    night = nightly(project, "test_vit", "--jobs", "1")

    assert night.returncode == 0, night.stderr
    (record,) = read_records(project / "runs" / "nightly.jsonl")
    assert record.prunable
    summary = (project / "runs" / "summary.md").read_text()
    assert summary.startswith("# Coverage\n\n|")
    assert "| channel prunable          |            1 | 100.00%      |" in summary
    assert f"# Changes: timm 0.1 -> {record.timm}, torch 2 -> {record.torch}, " in summary
    assert "\nNothing lost, 1 newly convertible, 1 newly prunable (1 model compared).\n" in summary


def test_a_night_in_which_something_was_lost_fails_and_leaves_every_file(project: Path) -> None:
    write_records(project / "results" / "coverage.jsonl", [RECORD])
    sweeps_to(project, [FAILED], code=1)

    night = nightly(project, "--verify", "shape")

    assert night.returncode == 1
    runs = project / "runs"
    assert {path.name for path in runs.iterdir()} == {
        "nightly.jsonl",
        "coverage.md",
        "supported_models.md",
        "changes.md",
        "summary.md",
    }
    assert (runs / "summary.md").read_text() == (
        f"# Coverage\n\n{(runs / 'coverage.md').read_text()}\n{(runs / 'changes.md').read_text()}"
    )
    assert "| test_vit | converted, verified | convert | it did not |" in (runs / "changes.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "removed"),
    [
        ((), True),
        (("--verify", "numeric", "--jobs=2", "--memory", "3"), True),
        (("test_*", "--verify", "numeric"), False),
        (("--verify=numeric", "test_*"), False),
        (("--exclude", "resnet*"), False),
    ],
)
def test_models_count_as_removed_only_where_all_were_swept(
    project: Path, arguments: tuple[str, ...], removed: bool
) -> None:
    write_records(project / "results" / "coverage.jsonl", [RECORD, replace(RECORD, model="resnet18")])
    sweeps_to(project, [RECORD], code=0)

    night = nightly(project, *arguments)

    assert night.returncode == 0, night.stderr
    assert (project / "sweeps.txt").read_text().split() == ["sweep", *arguments, "--out", "runs/nightly.jsonl"]
    assert ("1 removed" in (project / "runs" / "summary.md").read_text()) == removed


def test_the_next_night_starts_from_scratch_and_an_upgrade_comes_after_the_pinned_versions(project: Path) -> None:
    write_records(project / "results" / "coverage.jsonl", [RECORD])
    sweeps_to(project, [RECORD], code=0)
    # Left by a night with which everything went well.
    write_records(project / "runs" / "nightly.jsonl", [RECORD])
    (project / "runs" / "summary.md").write_text("an old one")

    night = nightly(project, upgrade="timm 'torch<3'")

    assert night.returncode == 0, night.stderr
    first, second = (project / "pip.txt").read_text().splitlines()
    assert "--constraint constraints.txt --editable ." in first
    assert second == "-m pip install --quiet --upgrade timm torch<3"
    assert "an old one" not in (project / "runs" / "summary.md").read_text()


def test_a_night_whose_sweep_broke_off_leaves_no_page_of_the_night_before(project: Path) -> None:
    write_records(project / "results" / "coverage.jsonl", [RECORD])
    sweeps_to(project, [], code=1)
    for page in ("summary.md", "supported_models.md", "notes.md"):
        (project / "runs").mkdir(exist_ok=True)
        (project / "runs" / page).write_text("an old one")

    night = nightly(project)

    assert night.returncode == 1
    assert "has no records in it" in night.stdout + night.stderr
    assert sorted(path.name for path in (project / "runs").iterdir()) == ["nightly.jsonl", "notes.md"]
