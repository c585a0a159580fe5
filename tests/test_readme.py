"""The README does what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_python_example_runs_as_written(tmp_path):
    run = subprocess.run([sys.executable, "-c", _block("python")], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "convnextv2_nano" / "graph.json").exists()


def test_the_help_that_it_shows_is_the_help_of_the_command():
    run = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True)
    assert run.stdout.strip() == _block("text").strip()
