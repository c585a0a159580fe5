"""The commands for pruned models, as they are typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import torchorbit
from harness import cli
from harness.models import build_with_random_weights, input_size
from harness.records import Record, write_records
from zoo.checkpoint import load_checkpoint
from zoo.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def in_new_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def outputs(model: torch.nn.Module, size: tuple[int, ...] = (3, 160, 160)) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randn(2, *size, generator=torch.Generator().manual_seed(1)))


def test_help_imports_neither_torch_nor_timm_nor_the_hubs_client(tmp_path: Path) -> None:
    code = (
        "import sys; from harness.cli import main\n"
        "for command in (['prune'], ['publish'], ['publish-tables'], ['pull'], ['zoo'], ['zoo', 'search']):\n"
        "    assert main([*command, '--help']) == 0\n"
        "sys.exit(bool({'torch', 'timm', 'pandas', 'huggingface_hub', 'pydantic'} & set(sys.modules)))"
    )
    process = in_new_process("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for option in ("--flops", "--hub", "--dry-run", "--min-accuracy"):
        assert option in process.stdout


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
        ("flops=0.5", "uniform"),
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
    assert difference <= 1e-5 * expected.abs().max()
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


PRUNE = ("prune", "test_resnet", "--out", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (PRUNE, "give one of --flops, --parameters and --ratio"),
        ((*PRUNE, "--flops", "0.5", "--ratio", "0.5"), "give one of --flops, --parameters and --ratio"),
        ((*PRUNE, "--flops", "1"), "--flops 1 is one in number"),
        ((*PRUNE, "--flops", "0"), "'--flops'"),
        ((*PRUNE, "--ratio", "1"), "'--ratio'"),
        ((*PRUNE, "--ratio", "0.5", "--round-to", "0"), "'--round-to'"),
        ((*PRUNE, "--ratio", "0.5", "--dtype", "int8"), "'--dtype'"),
        (("prune", "test_resnet", "--ratio", "0.5"), "Missing option '--out'"),
        (("prune", "test_resnett", "--ratio", "0.5", "--out", "a"), "did you mean 'test_resnet'"),
        (("prune", "empty", "--ratio", "0.5", "--out", "a"), "has no model 'empty'"),
        ((*PRUNE, "--ratio", "0.5", "--weights", "missing.pth"), "'missing.pth' does not exist"),
        ((*PRUNE, "--ratio", "0.5", "--weights", "file", "--pretrained"), "exclude each other"),
        ((*PRUNE[:-1], "file", "--ratio", "0.5"), "'--out'"),
        (("publish", "missing", "lab/net"), "'missing' does not exist"),
        (("publish", "file", "lab/net"), "is a file"),
        (("publish", "empty"), "Missing argument 'REPO'"),
        (("publish-tables", "lab/net", "--records", "missing"), "'missing' does not exist"),
        (("pull",), "Missing argument 'REPO'"),
        (("zoo",), "Missing command"),
        (("zoo", "serch"), "No such command 'serch'"),
        (("zoo", "search", "--min-accuracy", "70"), "'--min-accuracy'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"torchorbit: [^\n]*\n", err)
    assert message in err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PRUNE, "--flops", "0.0001"), "cannot be reached: with every orbit at its least width"),
        ((*PRUNE, "--flops", "nan"), "flops=nan, expected a positive number"),
        ((*PRUNE, "--ratio", "0.5", "--weights", "file"), ""),
        ((*PRUNE[:-1], "full", "--ratio", "0.5"), "holds something that is no checkpoint"),
        (("publish", "full", "lab/net", "--hub", "hub"), "holds no checkpoint.json"),
        (("publish", "full", "a/b/c", "--hub", "hub"), "is no name of a repository"),
        (("publish-tables", "lab/net", "--records", "file", "--hub", "hub"), "file"),
        (("pull", "lab/net", "--hub", "hub"), "has no repository lab/net"),
        (("pull", "../net", "--hub", "hub"), "is no name of a repository"),
        (("zoo", "index", "../net", "--hub", "hub"), "is no name of a repository"),
        (("zoo", "list", "--hub", "http://localhost:1"), "localhost:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(
    run: Run,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    (tmp_path / "file").write_text("no record, no weights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"torchorbit: [^\n]*\n", err)
    assert message in err
    assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


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


def test_the_zoo_is_listed_searched_and_put_on_a_page(run: Run, tmp_path: Path) -> None:
    assert run("zoo", "list", "--hub", "hub") == (0, "there is none\n", "")
    for ratio in ("0.5", "0.25"):
        assert run("prune", "test_resnet", "--ratio", ratio, "--out", ratio)[0] == 0
        assert run("publish", ratio, f"lab/net-{ratio}", "--hub", "hub")[0] == 0
    code, out, err = run("zoo", "list", "--hub", "hub")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["lab/net-0.5", "lab/net-0.25"]

    least = read_manifest(tmp_path / "0.5").after
    for options, found in (
        (("test_res*",), 2),
        (("vit*",), 0),
        (("--max-gflops", str(least.gflops)), 1),
        (("--max-params", str(least.parameters / 1e6)), 1),
        (("--min-accuracy", "0"), 0),
        (("--owner", "nobody"), 0),
    ):
        code, out, err = run("zoo", "search", *options, "--hub", "hub")
        assert (code, err, out.count("lab/net-")) == (0, "", found), options

    assert "would publish README.md" in run("zoo", "index", "lab/zoo", "--hub", "hub", "--dry-run")[1]
    assert "published README.md" in run("zoo", "index", "lab/zoo", "--hub", "hub")[1]
    assert "nothing to publish" in run("zoo", "index", "lab/zoo", "--hub", "hub")[1]


def test_the_records_of_a_sweep_are_published(run: Run, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [Record(model="a", timm="1", torch="2", torchorbit="3", converted=True)])
    command = ("publish-tables", "lab/coverage", "--records", "records.jsonl", "--hub", "hub")
    assert "would publish" in run(*command, "--dry-run")[1]
    code, out, err = run(*command, "--tag", "v1")
    assert (code, err) == (0, "")
    assert "data/coverage.parquet" in out
    assert "nothing to publish" in run(*command)[1]
    (commit,) = (tmp_path / "hub" / "datasets--lab--coverage" / "commits").iterdir()
    assert json.loads(commit.read_text())["message"] == "1 models"
