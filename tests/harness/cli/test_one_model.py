"""The commands for one model, as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchorbit
from harness.models import build_with_random_weights, input_size
from harness.records import Record, write_records
from harness.verification import random_input
from tests.harness import odd_models  # noqa: F401 - registers them with timm
from tests.harness.cli.helpers import MY_MODELS, Run, console_script, printed_by


def test_weights_that_do_not_fit_fail_in_one_line_and_leave_nothing(run: Run, tmp_path: Path) -> None:
    torch.save(build_with_random_weights("test_resnet").state_dict(), tmp_path / "weights.pth")

    code, _, err = run("convert", "test_vit", "--out", "folder", "--weights", "weights.pth")

    assert code == 1
    assert err.count("\n") == 1
    assert "Missing key" in err
    assert not (tmp_path / "folder").exists()


@pytest.mark.numeric
def test_a_converted_model_loads_where_timm_cannot_be_imported(run: Run, tmp_path: Path) -> None:
    source = build_with_random_weights("test_vit")
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    image = random_input(input_size(source), "image")
    with torch.no_grad():
        torch.save((image.double(), source.double()(image.double())), tmp_path / "sample.pt")

    code, out, err = run("convert", "test_vit", "--out", "folder", "--weights", "weights.pth")

    assert (code, err) == (0, "")
    assert "test_vit (0.37 M parameters) is in folder" in out
    check = (
        "import sys; sys.modules['timm'] = None; import torch, torchorbit; "
        "image, expected = torch.load('sample.pt'); actual = torchorbit.load('folder').double().eval()(image); "
        "assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()"
    )
    printed_by(check, cwd=tmp_path)


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

    assert printed_by(code, cwd=tmp_path).endswith("\n\nfailed (convert): TypeError: int is no size\n")


def test_show_of_a_model_that_fails_is_its_stage_and_error_and_exit_code_1(run: Run) -> None:
    code, out, err = run("show", "odd_unrunnable")

    assert code == 1
    assert out.startswith("no record of odd_unrunnable")
    assert err.startswith("torchorbit: odd_unrunnable (convert): ")
    assert "this forward never runs" in err
    assert err.count("\n") == 1
