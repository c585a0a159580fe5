"""The README does what it says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo.hub import running_hub

README = Path(__file__).parent.parent / "README.md"


def _blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found


@pytest.mark.slow
def test_the_examples_run_as_written_one_after_the_other(tmp_path):
    """With a hub on this machine for the Hugging Face Hub, and without weights that only that one has."""

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def here(text):
        return text.replace("my-lab", hub.user).replace("/mnt/zoo", str(tmp_path / "zoo")).replace(" --pretrained", "")

    with running_hub(tmp_path / "server") as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": hub.token}
        (block,) = [block for block in _blocks("bash") if "torchorbit prune" in block]
        lines = [shlex.split(line, comments=True) for line in here(block).splitlines()]
        said = [run(sys.executable, "-m", "harness.cli", *arguments) for _, *arguments in lines]
        assert "published" in said[1]
        assert "published" in said[2]
        assert "alice/resnet50-half" in said[3]
        said = run(sys.executable, "-c", here("\n".join(_blocks("python"))))
        assert "parameters will be removed" in said
        assert (tmp_path / "convnextv2_nano" / "graph.json").exists()
        assert hub.api().repo_info("alice/resnet50-smaller", revision="v1").sha


def test_the_help_that_it_shows_is_the_help_of_the_command():
    run = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True)
    assert run.stdout.strip() == _blocks("text")[0].strip()
