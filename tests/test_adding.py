"""What CONTRIBUTING says of adding something is true: one file, and an entry in a registry, in a copy of the packages.

Code that it shows begins with the file that it is for. Blocks of Python are whole files; blocks of differences are
applied to a file that is there.
"""

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("torchorbit", "zoo", "harness")


def section(title):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def apply(difference, text):
    """Apply lines that begin with a space, ``-`` or ``+``, each found after the one before it."""
    lines, at = text.splitlines(), 0
    for line in difference.splitlines():
        kind, content = line[:1], line[1:]
        if kind == "+":
            lines.insert(at, content)
            at += 1
            continue
        at = lines.index(content, at)
        if kind == "-":
            del lines[at]
        else:
            at += 1
    return "\n".join(lines) + "\n"


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def add(title, copy):
    """Do as CONTRIBUTING says; gives the files that are other ones now, those that are new first."""
    blocks = re.findall(r"```(python|diff)\n# (\S+)\n(.*?)```", section(title), re.DOTALL)
    assert blocks
    for language, name, content in blocks:
        path = copy / name
        assert path.exists() == (language == "diff"), name
        path.write_text(content if language == "python" else apply(content, path.read_text()))
    paths = [path.relative_to(copy) for path in copy.rglob("*.py")]
    new = [str(path) for path in paths if not (ROOT / path).exists()]
    other = [str(path) for path in paths if (ROOT / path).exists() and not filecmp.cmp(copy / path, ROOT / path, False)]
    return new + other


def run(copy, *arguments):
    """Run Python in the copy."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "TORCHORBIT_CACHE": str(copy / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def torchorbit(copy, *arguments):
    return run(copy, "-m", "harness.cli", *arguments)


def test_a_criterion_is_one_file(copy):
    registry = "torchorbit/pruning/criteria/__init__.py"
    assert add("Adding a criterion", copy) == ["torchorbit/pruning/criteria/largest.py", registry]
    torchorbit(copy, "prune", "test_resnet", "--ratio", "0.5", "--criterion", "largest", "--out", "pruned")
    code = """
import torch, torchorbit
step, = torchorbit.from_pretrained("pruned").manifest.steps
assert "largest" in str(step.criterion), step

model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 1, bias=False)).eval()
with torch.no_grad():
    model[0].weight.copy_(torch.tensor([[1.0, -5.0, 0.0], [2.0, 2.0, 2.0]]))
    model[1].weight.copy_(torch.tensor([[3.0, -4.0]]))
orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.zeros(1, 3)))
scores, = torchorbit.criteria.CRITERIA["largest"]().scores(orbits).values()
assert scores.tolist() == [5.0, 4.0], scores
"""
    run(copy, "-c", code)


def test_a_selector_is_one_file(copy):
    registry = "torchorbit/pruning/selectors/__init__.py"
    assert add("Adding a selector", copy) == ["torchorbit/pruning/selectors/narrowest.py", registry]
    code = """
import torch, torchorbit
model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)).eval()
pruned = torchorbit.prune(torchorbit.convert(model, torch.zeros(1, 3)), selector="narrowest", constraint=torchorbit.Bounds(3))
assert [orbit.width for orbit in torchorbit.find_orbits(pruned)] == [3]
"""
    run(copy, "-c", code)


def test_a_column_is_one_file(copy):
    assert add("Adding a column", copy) == ["harness/columns.py"]
    torchorbit(copy, "sweep", "test_resnet", "--jobs", "1", "--no-cache", "--out", "records.jsonl")
    torchorbit(copy, "tables", "--records", "records.jsonl", "--out", "tables")
    header, _, row = (copy / "tables" / "channel_pruning_supported_models.md").read_text().splitlines()[-3:]
    cells = dict(zip(header.split("|"), row.split("|"), strict=True))
    (widest,) = [value.strip() for name, value in cells.items() if name.strip() == "widest"]
    assert int(widest) > 1
    shown = torchorbit(copy, "show", "test_resnet", "--records", "records.jsonl", "--no-orbits")
    assert re.search(rf"^units of the widest orbit +{widest}$", shown, re.MULTILINE)
    # Records of before are still read.
    shown = torchorbit(copy, "show", "resnet18", "--records", str(ROOT / "results" / "coverage.jsonl"), "--no-orbits")
    assert re.search(r"^units of the widest orbit +not known$", shown, re.MULTILINE)


def test_a_command_is_one_file(copy):
    assert add("Adding a command", copy) == ["harness/cli/saved_models.py", "harness/cli/registry.py"]
    assert "\nSaved models:\n  size  Say how large a saved model is.\n" in torchorbit(copy, "--help")
    code = "import torch, torchorbit; torchorbit.convert(torch.nn.Linear(3, 4), torch.zeros(1, 3)).save('saved')"
    run(copy, "-c", code)
    assert torchorbit(copy, "size", "saved") == "16 parameters\n"


@pytest.mark.parametrize("title", ["criterion", "selector", "column", "command"])
def test_what_is_shown_looks_as_the_rest_does(title, copy):
    pytest.importorskip("ruff")
    for name in add(f"Adding a {title}", copy):
        for check in (["check"], ["format", "--check"]):
            run(copy, "-m", "ruff", *check, "--config", ROOT / "pyproject.toml", name)
