"""The program as a whole: its help, its exit codes, and what it says of errors."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.cli import registry
from tests.harness.cli.helpers import ROOT, Run, printed_by
from tests.harness.examples import RESNET18


def test_help_reads_like_a_table_of_contents(run: Run) -> None:
    code, out, _ = run("--help")

    assert code == 0
    order = ["One model:", "  convert ", "  explain ", "  show ", "All of timm:", "  sweep ", "  tables ", "  diff "]
    assert sorted(order, key=out.index) == order


def test_help_of_every_command_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys; from harness.cli import main\n"
        "from harness.cli.registry import sections\n"
        "names = [[command.name] for commands in sections().values() for command in commands]\n"
        "for command in ([], *names, ['zoo', 'list'], ['zoo', 'search'], ['zoo', 'index']):\n"
        "    assert main([*command, '--help']) == 0\n"
        "slow = {'torch', 'timm', 'numpy', 'scipy', 'pandas', 'joblib', 'huggingface_hub', 'pydantic'}\n"
        "sys.exit(' '.join(slow & set(sys.modules)) or 0)"
    )

    said = printed_by(code)

    for option in ("--resume / --fresh", "--flops", "--hub", "--dry-run", "--min-accuracy"):
        assert option in said


def test_every_module_with_commands_is_registered() -> None:
    modules = [
        importlib.import_module(f"harness.cli.{found.name}")
        for found in pkgutil.iter_modules(cli.__path__)
        if found.name != "__main__"
    ]

    with_commands = {module.__name__.rpartition(".")[2] for module in modules if hasattr(module, "COMMANDS")}

    assert with_commands == set(registry.MODULES)
    listed = [command.name for commands in registry.sections().values() for command in commands]
    assert len(listed) == len(set(listed))


def test_every_command_says_what_it_does() -> None:
    for heading, commands in registry.sections().items():
        for command in commands:
            assert command.help, (heading, command.name)
            assert command.get_short_help_str().endswith("."), (heading, command.name)


PRUNE = ("prune", "test_resnet", "--out", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command"),
        (("swep",), "No such command 'swep'"),
        (("sweep", "--jbos", "2"), "No such option"),
        (("sweep", "--jobs", "0"), "'--jobs': 0 is not in the range"),
        (("sweep", "--verify", "hope"), "'hope' is not one of 'shape', 'numeric'"),
        (("sweep", "nothing_like_it*"), "no model of timm"),
        (("sweep", "test_vit", "--exclude", "*"), "every model that matches is excluded"),
        (("convert", "test_vit"), "Missing option '--out'"),
        (("convert", "test_vitt", "--out", "folder"), "close to it: test_vit"),
        (("convert", "test_vit", "--out", "folder", "--weights", "missing.pth"), "'missing.pth' does not exist"),
        (("convert", "test_vit", "--out", "folder", "--weights", __file__, "--pretrained"), "exclude each other"),
        (("show", "test_vitt"), "close to it: test_vit"),
        (("show", "test_vitt", "--no-orbits"), "close to it: test_vit"),
        (("sweep", "test_vit", "--exclude", "resnett*"), "matches 'resnett*'"),
        (("sweep", "test_vit", "--memory", "nan"), "'--memory': nan is not a finite number"),
        (("sweep", "test_vit", "--memory", "inf"), "'--memory': inf is not a finite number"),
        (("sweep", "test_vit", "--timeout", "nan"), "'--timeout': nan is not a finite number"),
        (("sweep", "test_vit", "--timeout", "Infinity"), "'--timeout': Infinity is not a finite number"),
        (("show", "test_vit", "--import", "no_such_module"), "--import no_such_module: ModuleNotFoundError"),
        (("diff", "missing.jsonl", __file__), "'missing.jsonl' does not exist"),
        (("diff", __file__, __file__), "not a line of JSON"),
        (("diff", "file", "file"), "has no records in it"),
        (("diff", os.devnull, os.devnull), "is no regular file"),
        (PRUNE, "give one of --flops, --parameters and --ratio"),
        ((*PRUNE, "--flops", "0.5", "--ratio", "0.5"), "give one of --flops, --parameters and --ratio"),
        ((*PRUNE, "--flops", "1"), "--flops 1 is one in number"),
        ((*PRUNE, "--flops", "0"), "'--flops'"),
        ((*PRUNE, "--ratio", "1"), "'--ratio'"),
        ((*PRUNE, "--ratio", "0.5", "--round-to", "0"), "'--round-to'"),
        ((*PRUNE, "--ratio", "0.5", "--dtype", "int8"), "'--dtype'"),
        (("prune", "test_resnet", "--ratio", "0.5"), "Missing option '--out'"),
        (("prune", "test_resnett", "--ratio", "0.5", "--out", "a"), "close to it: test_resnet"),
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


def test_a_failure_is_one_line_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("nonsense\n")

    for arguments in (
        ["tables"],
        ["tables", "--records", "broken.jsonl"],
        ["sweep", "test_vit", "--out", "broken.jsonl"],
    ):
        code, out, err = run(*arguments)

        assert (code, out) == (1, "")
        assert err.startswith("torchorbit: ")
        assert err.count("\n") == 1


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
    assert not re.search(r"[A-Za-z]+(Error|Exception)\b", err)
    assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("how", ["| true", "| head -n 1", ">&-"])
def test_that_nobody_reads_what_it_prints_is_no_error(tmp_path: Path, how: str) -> None:
    (tmp_path / "records.jsonl").write_text(RESNET18.to_line() * 3000)
    program = f"{shlex.quote(sys.executable)} -m harness.cli"
    failing = RESNET18.to_line().replace('"converted": true', '"converted": false')
    (tmp_path / "worse.jsonl").write_text(failing)

    codes = []
    for arguments in (
        "tables --records records.jsonl --out tables",
        "diff records.jsonl records.jsonl",
        "diff records.jsonl worse.jsonl",
    ):
        done = subprocess.run(
            ["bash", "-c", f"{program} {arguments} {how}; echo ${{PIPESTATUS[0]}} >&2"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        *said, code = done.stderr.splitlines()
        assert said == []
        codes.append(code)

    assert codes == ["0", "0", "1"]  # something was lost
    assert len(list((tmp_path / "tables").iterdir())) > 1
