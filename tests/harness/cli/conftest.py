"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import cli
from tests.harness.cli.helpers import Run
from tests.zoo.conftest import waits  # noqa: F401 - a fixture


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
