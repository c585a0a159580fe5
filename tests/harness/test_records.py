from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.models import model_names
from harness.records import Record, append_record, mend_last_line, natural_order, read_records, write_records
from torchorbit.files import replace_text


def record(model: str, **values: object) -> Record:
    return Record(model=model, timm="1", torch="2", torchorbit="3", **values)  # type: ignore[arg-type]


def test_a_record_is_one_line_that_reads_back_as_it_was() -> None:
    original = record("resnet18", input_size=[3, 224, 224], max_diff=1.5e-7, error="two words", converted=True)

    line = original.to_line()

    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert Record.from_line(line) == original


def test_every_field_is_in_the_line_even_where_nothing_is_known() -> None:
    assert '"max_diff": null' in record("resnet18").to_line()
    assert all(f'"{name}"' in record("resnet18").to_line() for name in asdict(record("resnet18")))


def test_appended_records_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "records.jsonl"
    for name in ("b", "a"):
        append_record(path, record(name))

    assert [each.model for each in read_records(path)] == ["b", "a"]


def test_of_several_records_of_a_model_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append_record(path, record("a", error="old"))
    append_record(path, record("a", error="new"))

    assert [each.error for each in read_records(path)] == ["new"]


def test_a_broken_line_is_reported_with_its_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record("a").to_line() + '{"model": "b", \n' + record("c").to_line())

    with pytest.raises(HarnessError, match=r"records\.jsonl:2: not a line of JSON .* remove the line"):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]\n", "a JSON list where a record"),
        (record("a").to_line().replace('"torch":', '"torchvision":'), "it has no 'torch', an unknown 'torchvision'"),
        (record("a").to_line().replace('"note"', '"remark"'), "another version of torchorbit: .* unknown 'remark'"),
        ("[" * 100_000 + "\n", "not a line of JSON that can be read"),
    ],
)
def test_what_is_no_record_of_this_version_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(line)

    with pytest.raises(HarnessError, match=message) as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""), ("model", 3), ("torch", None), ("params_m", -1), ("params_m", "11.7"), ("gflops", "NaN"),
        ("max_diff", float("nan")), ("gflops", float("inf")), ("input_size", [3, 0, 4]), ("input_size", "3x4x4"),
        ("input_size", [3, 224.5, 224]), ("converted", 1), ("converted", None), ("verified", "somehow"),
        ("removable_flops", 1.5), ("prunable_proportion", -0.1), ("orbits", 2.5), ("units", True), ("stage", "lunch"),
        ("unruled_operators", [1]), ("error", ["a"]), ("seconds", -1e-9),
    ],
)  # fmt: skip
def test_a_value_that_its_column_cannot_have_is_reported_with_its_line(
    tmp_path: Path, name: str, value: object
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record("a").to_line() + json.dumps({**asdict(record("b")), name: value}) + "\n")

    with pytest.raises(HarnessError, match=rf"records\.jsonl:2: its '{name}.*' is .*; remove the line") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


def test_what_editors_do_to_a_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    text = "".join(record(name, note="two words").to_line() for name in "ab")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())

    assert read_records(path) == [record(name, note="two words") for name in "ab"]
    append_record(path, record("c"))
    assert [each.model for each in read_records(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "records.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()

    for function in (mend_last_line, read_records):
        with pytest.raises(HarnessError, match=r"records\.jsonl is no regular file"):
            function(path)


def test_a_column_that_came_later_is_null_in_an_older_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record("a").to_line().replace('"note": null, ', ""))

    assert read_records(path) == [record("a")]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\n"])
def test_an_unreadable_file_is_an_error_of_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "records.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(HarnessError, match=r"records\.jsonl"):
        read_records(path)


def test_a_half_written_last_line_is_passed_over_and_can_be_mended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record("a").to_line() + record("b").to_line()[:40])

    assert [each.model for each in read_records(path)] == ["a"]
    mend_last_line(path)
    append_record(path, record("c"))
    assert [each.model for each in read_records(path)] == ["a", "c"]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record("a").to_line() + record("b").to_line().rstrip("\n"))

    assert [each.model for each in read_records(path)] == ["a", "b"]
    mend_last_line(path)
    append_record(path, record("c"))
    assert [each.model for each in read_records(path)] == ["a", "b", "c"]


def test_a_file_that_holds_nothing_but_half_a_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"model": ')

    mend_last_line(path)

    assert path.read_text() == ""


@pytest.mark.parametrize(
    "content",
    [
        b'{"important": "x"}',
        b"[1, 2]",
        b"12",
        b"some notes",
        b'{important: "x"}',
        b"\xff\xfe",
        b'{"model": "a\xff',
        record("a").to_line().encode() + record("b").to_line().replace('"note"', '"remark"').rstrip("\n").encode(),
        record("a").to_line().encode() + b'{"model": "b"}',
        b'{"model": "b", "half\n' + record("a").to_line().encode()[:20],
    ],
)
def test_what_no_sweep_wrote_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)

    for function in (mend_last_line, read_records):
        with pytest.raises(HarnessError, match=r"config\.json") as caught:
            function(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_wherever_a_record_breaks_off_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = record("a", error="a word").to_line()
    for end in range(1, len(line)):
        for before in ("", record("b").to_line()):
            path.write_text(before + line[:end])
            mend_last_line(path)
            assert path.read_text() == (before if end < len(line) - 1 else before + line)


def test_rewritten_records_are_sorted_as_people_sort(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    write_records(path, [record(name) for name in ("resnet101", "Resnet34", "resnet18", "beit")])

    assert [each.model for each in read_records(path)] == ["beit", "resnet18", "Resnet34", "resnet101"]


def test_names_sort_as_timm_sorts_them() -> None:
    names = model_names()

    assert sorted(names, key=natural_order) == names


def test_a_failed_rewrite_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half of it, then \ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
