from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchorbit
from harness import cli
from harness.models import build_with_random_weights, input_size
from harness.records import Record, read_records, write_records
from harness.verification import random_input
from tests.harness import odd_models  # noqa: F401 - registers them with timm

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


ROOT = Path(cli.__file__).parents[1]


def in_new_process(code: str, cwd: Path | None = None) -> str:
    """Run a program that has to succeed; gives what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
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


def test_help_reads_like_a_table_of_contents(run: Run) -> None:
    code, out, _ = run("--help")

    assert code == 0
    order = ["One model:", "  convert ", "  explain ", "  show ", "All of timm:", "  sweep ", "  tables ", "  diff "]
    assert sorted(order, key=out.index) == order


def test_help_imports_neither_torch_nor_timm_nor_pandas() -> None:
    code = (
        "import sys; from harness.cli import main; assert main(['sweep', '--help']) == 0; "
        "sys.exit(bool({'torch', 'timm', 'pandas', 'joblib'} & set(sys.modules)))"
    )

    assert "--resume / --fresh" in in_new_process(code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["swep"], "No such command 'swep'"),
        (["sweep", "--jbos", "2"], "No such option"),
        (["sweep", "--jobs", "0"], "'--jobs': 0 is not in the range"),
        (["sweep", "--verify", "hope"], "'hope' is not one of 'shape', 'numeric'"),
        (["sweep", "nothing_like_it*"], "no model of timm"),
        (["sweep", "test_vit", "--exclude", "*"], "every model that matches is excluded"),
        (["convert", "test_vit"], "Missing option '--out'"),
        (["convert", "test_vitt", "--out", "folder"], "did you mean 'test_vit'"),
        (["convert", "test_vit", "--out", "folder", "--weights", "missing.pth"], "'missing.pth' does not exist"),
        (["convert", "test_vit", "--out", "folder", "--weights", __file__, "--pretrained"], "exclude each other"),
        (["show", "test_vitt"], "did you mean 'test_vit'"),
        (["show", "test_vitt", "--no-orbits"], "did you mean 'test_vit'"),
        (["sweep", "test_vit", "--exclude", "resnett*"], "matches 'resnett*'"),
        (["sweep", "test_vit", "--memory", "nan"], "'--memory': nan is not a finite number"),
        (["sweep", "test_vit", "--memory", "inf"], "'--memory': inf is not a finite number"),
        (["sweep", "test_vit", "--timeout", "nan"], "'--timeout': nan is not a finite number"),
        (["sweep", "test_vit", "--timeout", "Infinity"], "'--timeout': Infinity is not a finite number"),
        (["show", "test_vit", "--import", "no_such_module"], "--import no_such_module: ModuleNotFoundError"),
        (["diff", "missing.jsonl", __file__], "'missing.jsonl' does not exist"),
        (["diff", __file__, __file__], "not a line of JSON"),
        (["diff", os.devnull, os.devnull], "has no records in it"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("torchorbit: ")
    assert err.count("\n") == 1
    assert message in err


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


def test_weights_that_do_not_fit_fail_in_one_line_and_leave_nothing(run: Run, tmp_path: Path) -> None:
    torch.save(build_with_random_weights("test_resnet").state_dict(), tmp_path / "weights.pth")

    code, _, err = run("convert", "test_vit", "--out", "folder", "--weights", "weights.pth")

    assert code == 1
    assert err.count("\n") == 1
    assert "Missing key" in err
    assert not (tmp_path / "folder").exists()


def test_a_converted_model_loads_where_timm_cannot_be_imported(run: Run, tmp_path: Path) -> None:
    source = build_with_random_weights("test_vit")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    image = random_input(input_size(source), "image")
    with torch.no_grad():
        torch.save((image, source(image)), tmp_path / "sample.pt")

    code, out, err = run("convert", "test_vit", "--out", "folder", "--weights", "weights.pth")

    assert (code, err) == (0, "")
    assert "test_vit (0.37 M parameters) is in folder" in out
    check = (
        "import sys; sys.modules['timm'] = None; import torch, torchorbit; "
        "image, expected = torch.load('sample.pt'); actual = torchorbit.load('folder').eval()(image); "
        "assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()"
    )
    in_new_process(check, cwd=tmp_path)


def test_converting_without_weights_saves_those_of_timms_initialization(run: Run, tmp_path: Path) -> None:
    code, _, _ = run("convert", "test_resnet", "--out", "folder")

    assert code == 0
    loaded = torchorbit.load(tmp_path / "folder")
    # The mean of a hundred thousand draws is near zero, and not all of them are zero.
    assert 0 < loaded.state_dict()["conv1.0.weight"].abs().mean() < 1


def test_explain_tells_what_converts(run: Run) -> None:
    code, out, err = run("explain", "test_resnet")

    assert (code, err) == (0, "")
    assert "ResNet" in out


def test_sweep_and_tables_work_together(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("sweep", "test_vit", "test_resnet", "--jobs", "2")

    assert code == 0
    assert "| channel prunable          |            2 | 100.00%      |" in out
    assert len(read_records(tmp_path / "runs" / "coverage.jsonl")) == 2

    code, out, _ = run("tables", "--records", "runs/coverage.jsonl", "--out", "tables")

    names = ("coverage", "supported_models", "channel_pruning_supported_models")
    assert (code, out) == (0, "".join(f"tables/{name}.md\n" for name in names))
    assert "| test_vit " in (tmp_path / "tables" / "supported_models.md").read_text()


def test_a_sweep_in_which_a_model_failed_exits_with_code_1(run: Run, tmp_path: Path) -> None:
    sweep = ("sweep", "test_vit", "--jobs", "1", "--out", "records.jsonl")
    run(*sweep)
    path = tmp_path / "records.jsonl"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"converted": False, "stage": "convert", "error": "it did not"}) + "\n")

    code, out, _ = run(*sweep)

    assert code == 1
    assert "test_vit (convert): it did not" in out


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


def test_modules_of_the_current_folder_come_after_those_that_are_installed(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "torch.py").write_text("raise RuntimeError('not this one')")

    done = console_script(tmp_path, "sweep", "my_net", "test_vit", "--import", "my_models", "--jobs", "1", "--no-cache")

    assert (done.returncode, done.stderr) == (0, "")
    assert [record.model for record in read_records(tmp_path / "runs" / "coverage.jsonl")] == ["my_net", "test_vit"]
    assert "hello" not in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "ModuleNotFoundError: No module named 'my_models'; it has to be a module that Python finds here"),
        ("def", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_bad_usage(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "my_models.py").write_text(text)

    done = console_script(tmp_path, "sweep", "my_net", "--import", "my_models")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"torchorbit: --import my_models: {message}")
    assert done.stderr.count("\n") == 1


def test_what_models_print_is_not_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        MY_MODELS.replace('"hello"', 'sys.stderr.write("hello") and ""').replace("from torch", "import sys\nfrom torch")
        + "\nfrom tests.harness import odd_models\n"
    )
    names = ("my_net", "odd_talkative", "test_vit")
    arguments = ("sweep", *names, "--import", "my_models", "--jobs", "2", "--no-cache")

    done = console_script(tmp_path, *arguments, "--log-json")

    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["model"] for line in done.stderr.splitlines()} == set(names)
    assert "hello" not in done.stdout


def test_diff_prints_the_page_and_tells_by_its_exit_code_whether_something_was_lost(run: Run, tmp_path: Path) -> None:
    converts = Record(model="test_vit", timm="1", torch="2", torchorbit="3", converted=True, verified="shape")
    fails = replace(converts, converted=False, verified=None, stage="convert", error="it did not")
    write_records(tmp_path / "converts.jsonl", [converts])
    write_records(tmp_path / "fails.jsonl", [fails])

    code, out, err = run("diff", "converts.jsonl", "fails.jsonl", "--out", "deeper/changes.md")

    assert (code, err) == (1, "")
    assert "| test_vit | converted, verified | convert | it did not |" in out
    assert (tmp_path / "deeper" / "changes.md").read_text() == out

    code, out, _ = run("diff", "fails.jsonl", "converts.jsonl")

    assert code == 0
    assert "Nothing lost, 1 newly convertible (1 model compared).\n" in out


def test_a_page_of_changes_that_cannot_be_written_is_not_taken_for_a_loss(run: Run, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [Record(model="test_vit", timm="1", torch="2", torchorbit="3")])
    (tmp_path / "file").write_text("")

    code, out, err = run("diff", "records.jsonl", "records.jsonl", "--out", "file/x.md")

    assert (code, out) == (2, "")
    assert err.startswith("torchorbit: cannot write file/x.md: ")
    assert err.count("\n") == 1


def test_diff_takes_models_that_are_missing_for_removed_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    records = [Record(model=name, timm="1", torch="2", torchorbit="3") for name in ("a", "b")]
    write_records(tmp_path / "old.jsonl", records)
    write_records(tmp_path / "new.jsonl", records[:1])

    for options, verdict in (((), "Nothing lost, 1 removed"), (("--only-swept",), "Nothing changed")):
        code, out, _ = run("diff", "old.jsonl", "new.jsonl", *options)

        assert code == 0
        assert f"\n{verdict} (1 model compared).\n" in out


def test_show_shows_the_record_and_the_orbits(run: Run, tmp_path: Path) -> None:
    record = Record(model="test_vit", timm="1", torch="2", torchorbit="3", params_m=0.37, converted=True)
    write_records(tmp_path / "results" / "coverage.jsonl", [record])

    code, out, err = run("show", "test_vit")

    assert (code, err) == (0, "")
    assert "0.370 M" in out
    assert out.index("0.370 M") < out.index(" orbits, ") < out.index("M parameters")


@pytest.mark.parametrize("records", [None, "other"])
def test_show_goes_on_where_there_is_no_record(run: Run, tmp_path: Path, records: str | None) -> None:
    if records:
        write_records(tmp_path / "records.jsonl", [Record(model=records, timm="1", torch="2", torchorbit="3")])

    code, out, err = run("show", "test_vit", "--records", "records.jsonl")

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == (
        "records.jsonl has no record of test_vit" if records else "no record of test_vit: records.jsonl does not exist"
    )
    assert " orbits, " in out


def test_show_shows_the_record_of_a_model_that_timm_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    record = Record(model="my_net", timm="1", torch="2", torchorbit="3", params_m=0.37, converted=True)
    write_records(tmp_path / "records.jsonl", [record])
    show = ("show", "my_net", "--records", "records.jsonl")

    without, with_it = console_script(tmp_path, *show), console_script(tmp_path, *show, "--import", "my_models")

    assert (without.returncode, without.stderr) == (0, "")
    assert "0.370 M" in without.stdout
    assert "\nno orbits: timm " in without.stdout
    assert " has no model 'my_net'" in without.stdout
    assert (with_it.returncode, with_it.stderr) == (0, "")
    assert with_it.stdout.index("0.370 M") < with_it.stdout.index("orbits, ")


def test_show_without_orbits_imports_neither_torch_nor_timm(tmp_path: Path) -> None:
    error = "TypeError: int is no size"
    record = Record(model="of_an_older_timm", timm="1", torch="2", torchorbit="3", stage="convert", error=error)
    write_records(tmp_path / "records.jsonl", [record])
    code = (
        "import sys; from harness.cli import main; "
        "assert main(['show', 'of_an_older_timm', '--records', 'records.jsonl', '--no-orbits']) == 0; "
        "sys.exit(bool({'torch', 'timm'} & set(sys.modules)))"
    )

    assert in_new_process(code, cwd=tmp_path).endswith("\n\nfailed (convert): TypeError: int is no size\n")


def test_show_of_a_model_that_fails_is_its_stage_and_error_and_exit_code_1(run: Run) -> None:
    code, out, err = run("show", "odd_unrunnable")

    assert code == 1
    assert out.startswith("no record of odd_unrunnable")
    assert err.startswith("torchorbit: odd_unrunnable (convert): ")
    assert "this forward never runs" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups to interrupt")
def test_ctrl_c_ends_a_sweep_cleanly_and_resuming_finishes_it(run: Run, tmp_path: Path) -> None:
    sweep = ["sweep", "test_*", "--jobs", "1", "--out", "records.jsonl"]
    path = tmp_path / "records.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *sweep],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background have it ignored, and programs that they start inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    # The file is there a moment before its first line is.
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    # As a terminal does: to everything in the foreground, the workers included.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in err
    assert "stopped; what was finished is in records.jsonl" in err
    finished = len(read_records(path))
    assert finished >= 1

    code, out, _ = run(*sweep)
    assert code == 0
    assert f"models, {finished} of them from an earlier run" in out
