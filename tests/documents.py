"""Pages of documentation, and their examples, as tests see them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"

#: Before any example: where torch is a build without CUDA and torchvision is not, timm cannot be imported otherwise.
PREAMBLE = "from torchorbit.torchvision_parts import declare_missing_operators\ndeclare_missing_operators()\n"


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Pages written by hand: those at the root, and those of the site."""
    others = [ROOT / "results" / "README.md", ROOT / "benchmarks" / "README.md"]
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), *others]


def name(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def run(folder: Path, *command: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints that is run in a folder; it must not fail."""
    done = subprocess.run(command, cwd=folder, env=environment or _environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_python(folder: Path, code: str, environment: dict[str, str] | None = None) -> str:
    """What an example prints that is run in a folder, in a process of its own."""
    return run(folder, sys.executable, "-c", PREAMBLE + code, environment=environment)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
