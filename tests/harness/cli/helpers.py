"""Commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness

Run = Callable[..., tuple[int, str, str]]

ROOT = Path(harness.__file__).parents[1]


def in_new_process(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and environment variables."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def printed_by(code: str, cwd: Path | None = None) -> str:
    """Run a program that has to succeed; gives what it prints."""
    done = in_new_process("-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def console_script(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as the installed program does: the current folder is not where modules are found."""
    script = cwd / "bin" / "torchorbit"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"import sys; sys.path.append({str(ROOT)!r}); from harness.cli import main; sys.exit(main())")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


#: A module that registers a model with timm, and prints something.
MY_MODELS = """
from torch import nn
from timm.models import register_model

print("hello")


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@register_model
def my_net(**kwargs):
    return Net()
"""
