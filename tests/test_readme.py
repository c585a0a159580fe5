"""The README does what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def _blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found


def test_the_python_examples_run_as_written_one_after_the_other(tmp_path):
    program = "\n".join(_blocks("python"))
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "parameters will be removed" in run.stdout
    assert (tmp_path / "convnextv2_nano" / "graph.json").exists()


def test_the_help_that_it_shows_is_the_help_of_the_command():
    run = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True)
    assert run.stdout.strip() == _blocks("text")[0].strip()
