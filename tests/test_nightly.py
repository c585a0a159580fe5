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


def torchorbit(project: Path, *arguments: str) -> None:
    """Run the program of the environment."""
    program = project / ".nox" / "environment" / "bin" / "torchorbit"
    subprocess.run([program, *arguments], cwd=project, env=environment(project), check=True, capture_output=True)


def environment(project: Path) -> dict[str, str]:
    return os.environ | {"TORCHORBIT_CACHE": str(project / "cache")}


def nightly(project: Path, *arguments: str, upgrade: str = "") -> subprocess.CompletedProcess[str]:
    pytest.importorskip("nox")
    return subprocess.run(
        [sys.executable, "-m", "nox", "-s", "nightly", "--", *arguments],
        capture_output=True,
        text=True,
        cwd=project,
        env=environment(project) | {"NIGHTLY_UPGRADE": upgrade},
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


MY_MODELS = """
from torch import nn
from timm.models import register_model
from my_blocks import Better, Worse


def net(block):
    return nn.Sequential(nn.Conv2d(3, 8, 3), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@register_model
def mine_better(**kwargs):
    return net(Better())


@register_model
def mine_worse(**kwargs):
    return net(Worse())
"""
MY_BLOCKS = """
from torch import nn


class Better(nn.Module):
    def forward(self, x):
        return x.relu()


class Worse(nn.Module):
    def forward(self, x):
        return x.sigmoid()
"""


def test_a_night_with_one_model_that_was_made_worse_names_it_and_fails(project: Path) -> None:
    (project / "my_models.py").write_text(MY_MODELS)
    (project / "my_blocks.py").write_text(MY_BLOCKS)
    arguments = ("mine_*", "--import", "my_models", "--jobs", "1")
    torchorbit(project, "sweep", *arguments, "--out", "results/coverage.jsonl")

    same = nightly(project, *arguments)
    # What a forward does depends on the values of the input now, which no graph holds for all inputs.
    worse = MY_BLOCKS.replace("x.sigmoid()", "x.sigmoid() if x.mean() > 0 else x")
    (project / "my_blocks.py").write_text(worse)
    night = nightly(project, *arguments)

    assert same.returncode == 0, same.stderr
    assert night.returncode == 1
    better, lost = read_records(project / "runs" / "nightly.jsonl")
    assert (better.model, better.prunable) == ("mine_better", True)
    assert (lost.model, lost.converted, lost.stage) == ("mine_worse", False, "convert")
    summary = (project / "runs" / "summary.md").read_text()
    assert "\n1 lost (2 models compared).\n" in summary
    assert "| mine_worse | converted, verified, prunable | convert | " in summary
    assert "mine_better" not in summary


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


def test_the_next_night_starts_with_new_files_and_an_upgrade_comes_after_the_pinned_versions(project: Path) -> None:
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


def test_a_night_on_github_begins_with_the_cache_of_the_newest_and_leaves_its_own() -> None:
    yaml = pytest.importorskip("yaml")
    sweep = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text())["jobs"]["sweep"]
    steps = [(step.get("uses") or step["run"]).split("@")[0].split(" --")[0] for step in sweep["steps"]]
    restore, night, save = map(steps.index, ("actions/cache/restore", "nox -s nightly", "actions/cache/save"))

    assert restore < night < save
    assert "always()" in sweep["steps"][save]["if"]
    restored, saved = (sweep["steps"][place]["with"] for place in (restore, save))
    assert restored["path"] == saved["path"] == "${{ env.TORCHORBIT_CACHE }}"
    assert "TORCHORBIT_CACHE" in sweep["env"]
    # No night has the key of another, and any other one's beginning is this one's.
    assert restored["key"] == saved["key"]
    assert "github.run_id" in saved["key"]
    assert saved["key"].startswith(restored["restore-keys"])
