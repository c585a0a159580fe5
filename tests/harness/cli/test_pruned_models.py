"""The commands that prune a model, as they are typed, up to where somebody else pulls it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import torchorbit
from harness.models import build_with_random_weights, input_size
from tests.harness.cli.helpers import Run, in_new_process
from zoo.checkpoint import load_checkpoint
from zoo.manifest import read_manifest


def outputs(model: torch.nn.Module, size: tuple[int, ...] = (3, 160, 160)) -> torch.Tensor:
    with torch.no_grad():
        return model.double()(torch.randn(2, *size, generator=torch.Generator().manual_seed(1)).double())


PRUNE = ("prune", "test_resnet", "--out", "a")


def test_from_a_model_of_timm_to_one_that_somebody_else_pulls(run: Run, tmp_path: Path) -> None:
    code, out, err = run("prune", "test_resnet", "--flops", "0.5", "--out", "pruned")
    assert (code, err) == (0, "")
    assert re.search(r"test_resnet\.pruned-0\.\d\d: 0\.208 -> 0\.\d+ GFLOPs, 0\.470 -> 0\.\d+ M parameters", out)

    code, out, err = run("publish", "pruned", "lab/net", "--hub", "hub", "--dry-run")
    assert (code, err) == (0, "")
    assert "lab/net: would publish checkpoint.json, graph.json" in out
    assert not (tmp_path / "hub").exists()

    code, out, err = run("publish", "pruned", "lab/net", "--hub", "hub", "--tag", "v1", "--private")
    assert (code, err) == (0, "")
    assert "lab/net: published checkpoint.json, graph.json" in out
    assert (tmp_path / "hub" / "models--lab--net").stat().st_mode & 0o077 == 0

    code, out, err = run("publish", "pruned", "lab/net", "--hub", "hub")
    assert (code, err) == (0, "")
    assert "nothing to publish, all is there already" in out

    code, out, err = run("pull", "lab/net", "--hub", "hub", "--revision", "v1", "--out", "copy")
    assert (code, err) == (0, "")
    assert "| GFLOPs " in out
    assert "lab/net is in copy; torchorbit.from_pretrained('copy') loads it" in out
    assert torch.equal(outputs(load_checkpoint(tmp_path / "copy")), outputs(load_checkpoint(tmp_path / "pruned")))

    code, out, err = run("pull", "lab/net", "--hub", "hub")
    assert (code, err) == (0, "")
    (folder,) = re.findall(r"lab/net is in (\S+);", out)
    assert torch.equal(outputs(torchorbit.from_pretrained(folder)), outputs(load_checkpoint(tmp_path / "pruned")))

    code, out, err = run(
        "prune", "copy", "--ratio", "0.3", "--round-to", "2", "--dtype", "bfloat16", "--out", "further"
    )
    assert (code, err) == (0, "")
    manifest = read_manifest(tmp_path / "further")
    assert [(step.target, str(step.selector)) for step in manifest.steps] == [
        ("flops=0.5", "knapsack"),
        ("", "uniform(ratio=0.3)"),
    ]
    assert manifest.dtype == "bfloat16"
    code, _, _ = run("publish", "further", "lab/smaller", "--hub", "hub", "--revision", "try-out")
    assert code == 0
    code, _, err = run("pull", "lab/smaller", "--hub", "hub")
    assert (code, err.count("\n")) == (1, 1)
    assert "has no revision 'main'; it has try-out" in err


def test_in_a_process_of_its_own_it_does_the_same_and_remembers_what_was_typed(tmp_path: Path) -> None:
    out = tmp_path / "a folder" / "pruned"
    process = in_new_process(
        "-m", "harness.cli", "prune", "test_resnet", "--ratio", "0.5", f"--out={out}", "--seed", "3", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    (step,) = read_manifest(out).steps
    assert step.command == "torchorbit prune test_resnet --ratio 0.5 --out=pruned --seed 3"
    assert str(tmp_path) not in "".join(path.read_text() for path in (out / "checkpoint.json", out / "README.md"))

    process = in_new_process("-m", "harness.cli", "pull", "lab/nothing", "--hub", "hub", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (1, "")
    assert re.fullmatch(r"torchorbit: the hub in .* has no repository lab/nothing\n", process.stderr)


@pytest.mark.numeric
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_weights_of_a_file_are_those_that_are_pruned(run: Run, tmp_path: Path, suffix: str) -> None:
    source = build_with_random_weights("test_resnet")
    if suffix == "pth":
        torch.save(source.state_dict(), tmp_path / "mine.pth")
    else:
        save_file(source.state_dict(), tmp_path / "mine.safetensors")

    code, _, err = run("prune", "test_resnet", "--weights", f"mine.{suffix}", "--ratio", "0", "--out", "a")

    assert (code, err) == (0, "")
    expected = outputs(source, input_size(source))
    difference = (outputs(load_checkpoint(tmp_path / "a")) - expected).abs().max()
    assert difference <= 1e-9 * expected.abs().max()
    manifest = read_manifest(tmp_path / "a")
    assert re.fullmatch(rf"mine\.{suffix} \(SHA-256 [0-9a-f]{{64}}\)", manifest.source.weights)
    assert (manifest.source.base_model, manifest.source.license, manifest.steps) == (None, None, ())
    # Another file is another source.
    assert run("prune", "test_resnet", "--ratio", "0", "--out", "b", "--seed", "4")[0] == 0
    assert read_manifest(tmp_path / "b").source.weights == "as timm initializes them, seed 4"


def test_the_same_seed_draws_the_same_weights(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("prune", "test_resnet", "--ratio", "0.5", "--seed", seed, "--out", name)[0] == 0
    a, b, c = (outputs(load_checkpoint(tmp_path / name)) for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_target_that_cannot_be_reached_says_the_least_that_can(run: Run, tmp_path: Path) -> None:
    code, _, err = run(*PRUNE, "--flops", "0.0001")
    (least,) = re.findall(r"least width ([0-9.e+]+) are left", err)
    assert code == 1
    code, _, err = run(*PRUNE, "--flops", str(float(least) * 1.001))  # it says four digits
    assert (code, err) == (0, "")


def test_a_checkpoint_has_its_weights_already(run: Run, tmp_path: Path) -> None:
    assert run(*PRUNE, "--ratio", "0.5")[0] == 0
    (tmp_path / "file").write_text("")
    for options in (("--pretrained",), ("--weights", "file")):
        code, _, err = run("prune", "a", "--ratio", "0.5", "--out", "b", *options)
        assert code == 2
        assert "a is a checkpoint, which has its weights" in err


def test_pretrained_weights_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    process = in_new_process(
        "-m", "harness.cli", *PRUNE, "--pretrained", "--ratio", "0.5", cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME="none"
    )
    assert (process.returncode, process.stdout) == (1, "")
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("torchorbit: ")
    assert not (tmp_path / "a").exists()


class Registers(torch.nn.Module):
    """Patches of images, with four learned tokens beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, 4, 4)
        self.registers = torch.nn.Parameter(torch.randn(1, 4, 8))
        self.mix = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((self.registers.expand(x.shape[0], -1, -1), self.patches(x).flatten(2).mT), 1)
        return self.mix(x, x, x)[0][:, 4:].mean(1)


@pytest.mark.parametrize("tokens", [False, True])
def test_learned_tokens_go_only_where_that_is_asked_for(run: Run, tmp_path: Path, tokens: bool) -> None:
    torchorbit.convert(Registers().eval(), torch.randn(1, 3, 16, 16)).save(tmp_path / "whole")
    more = ["--tokens"] if tokens else []
    code, _, err = run("prune", "whole", "--ratio", "0.5", "--out", "pruned", *more)
    assert (code, err) == (0, "")
    assert load_checkpoint(tmp_path / "pruned").registers.shape[1] == (2 if tokens else 4)
