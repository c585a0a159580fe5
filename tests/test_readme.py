"""The README does what it says."""

import os
import shlex
import sys

import pytest

from tests.documents import README, ROOT, blocks, run, run_python
from tests.zoo.hub import running_hub


@pytest.mark.slow
def test_the_examples_run_as_written_one_after_the_other(tmp_path):
    """With a hub on this machine for the Hugging Face Hub, and without weights that only that one has."""

    def here(text):
        return text.replace("my-lab", hub.user).replace("/mnt/zoo", str(tmp_path / "zoo")).replace(" --pretrained", "")

    with running_hub(tmp_path / "server") as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": hub.token}
        environment["PYTHONPATH"] = str(ROOT)
        (block,) = [block for block in blocks(README, "bash") if "torchorbit prune" in block]
        lines = [shlex.split(line, comments=True) for line in here(block).splitlines()]
        command = (sys.executable, "-m", "harness.cli")
        said = [run(tmp_path, *command, *arguments, environment=environment) for _, *arguments in lines]
        assert "published" in said[1]
        assert "published" in said[2]
        assert "alice/resnet50-half" in said[3]
        said = run_python(tmp_path, here("\n".join(blocks(README, "python"))), environment)
        assert "parameters will be removed" in said
        assert (tmp_path / "resnet18-half" / "graph.json").exists()
        assert (tmp_path / "convnextv2_nano" / "graph.json").exists()
        assert hub.api().repo_info("alice/resnet50-smaller", revision="v1").sha


def test_the_first_example_prunes_a_model_in_five_lines(tmp_path):
    example = blocks(README, "python")[0]
    assert len(example.strip().splitlines()) <= 6  # with an empty one
    run_python(
        tmp_path,
        f"{example}\nwhole, half = torchorbit.convert(model, torch.randn(1, 3, 224, 224)), torchorbit.load('resnet18-half')\n"
        "assert torchorbit.flops(half).total <= torchorbit.flops(whole).total / 2",
    )


def test_the_two_commands_come_first_among_those_for_a_shell():
    sweep, check = blocks(README, "bash")[1:3]
    assert sweep == "python3 -m venv .venv && .venv/bin/python -m pip install -q nox && .venv/bin/nox -s sweep\n"
    assert check == "bash .ci/run\n"


def test_the_help_that_it_shows_is_the_help_of_the_command():
    assert run(ROOT, sys.executable, "-m", "harness.cli", "--help").strip() == blocks(README, "text")[0].strip()
