from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.overview import find_record, orbits_page, record_page
from harness.records import Record, append_record
from tests.harness import odd_models  # noqa: F401 - registers them with timm
from tests.harness.examples import RESNET18, VERSIONS

import timm  # isort: skip - importable once harness.models is


def test_a_record_is_written_with_words_and_units() -> None:
    record = replace(RESNET18, unruled_operators=["cumprod", "cummax"])

    rows = dict(line.split("  ", 1) for line in record_page(record).splitlines())

    assert {name: value.strip() for name, value in rows.items()} == {
        "model": "resnet18",
        "timm": "1.0.31",
        "torch": "2.13.0",
        "torchorbit": "0.1.0",
        "input size": "3x224x224 (channels, height, width)",
        "parameters": "11.690 M",
        "FLOPs of one sample": "3.638 G, two per multiply-accumulate",
        "converted": "yes",
        "verified": "by numbers",
        "difference of the graph": "1.2e-07 of the largest output",
        "prunable": "yes",
        "touched by orbits": "100.00% of all FLOPs",
        "removable": "99.89% of all FLOPs",
        "difference after removal": "2.5e-07 of the largest output",
        "orbits": "12",
        "units": "2880",
        "operators without a rule": "cumprod, cummax",
        "time of the job": "0.5 s",
        "peak memory of the job": "400 MiB",
    }


def test_no_column_of_a_record_is_left_out() -> None:
    shown = record_page(Record(model="a", **VERSIONS, stage="build", error="it did not", note="a word"))

    assert len(shown.partition("\n\n")[0].splitlines()) == len(fields(Record)) - len(("stage", "error", "note"))
    assert shown.endswith("\n\nfailed (build): it did not\n\nnote: a word")


def test_what_is_not_known_is_not_called_a_no() -> None:
    not_looked_at_for_pruning = record_page(Record(model="a", **VERSIONS, converted=True, verified="shape"))
    failed = record_page(Record(model="a", **VERSIONS, stage="convert", error="it did not"))

    def value(page: str, name: str) -> str:
        return next(line.removeprefix(name).strip() for line in page.splitlines() if line.startswith(name))

    assert value(not_looked_at_for_pruning, "prunable") == "not known"
    assert [value(failed, name) for name in ("converted", "verified", "prunable")] == ["no", "no", "no"]
    assert value(failed, "removable") == "not known"


def test_a_record_is_found_by_its_name_with_or_without_a_tag(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    for name in ("resnet18", "resnet18d"):
        append_record(path, Record(model=name, **VERSIONS))

    assert find_record(path, "resnet18.a1_in1k") == Record(model="resnet18", **VERSIONS)
    assert find_record(path, "resnet1") is None
    assert find_record(tmp_path / "none.jsonl", "resnet18") is None


def test_the_orbits_are_those_of_the_model() -> None:
    head, _, columns, _, *rows = orbits_page("test_resnet").splitlines()

    widths = [int(row.split()[1]) for row in rows]
    assert head.startswith(f"{len(widths)} orbits, {sum(widths)} units (timm {timm.__version__}, ")
    assert columns.split()[:2] == ["orbit", "width"]
    # The stem is one of them, with all of its channels.
    assert rows[0].split()[:5] == [
        "0",
        str(timm.create_model("test_resnet").conv1[0].out_channels),
        "channels",
        "inner",
        "conv1__0",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("odd_unbuildable", r"^odd_unbuildable \(build\): ValueError: this constructor always fails$"),
        ("odd_unrunnable", r"^odd_unrunnable \(convert\): .*this forward never runs"),
    ],
)
def test_a_stage_that_fails_is_named_with_its_error(model: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        orbits_page(model)
