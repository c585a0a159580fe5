from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.records import Record, write_records
from harness.tables import coverage_table, write_tables
from tests.harness.examples import RESNET18, VERSIONS

SNAPSHOTS = Path(__file__).parent / "snapshots"
RECORDS = [
    RESNET18,
    Record(
        model="vit_7b_patch16_dinov3",
        **VERSIONS,
        input_size=[3, 256, 256],
        params_m=6716.031,
        converted=True,
        verified="shape",
        gflops=3499.1,
        prunable_proportion=0.5,
        removable_flops=0.25,
        orbits=40,
        units=90000,
        unruled_operators=["cumprod"],
        note="verified by shape only: by numbers it needs about 26.1 GiB of memory, and 20.0 GiB may be used",
    ),
    Record(
        model="resnet101",
        **VERSIONS,
        input_size=[3, 224, 224],
        params_m=44.549,
        stage="convert",
        error="TypeError: int | None is no size",
    ),
    Record(model="beit_base", **VERSIONS, stage="build", error="ValueError: no such thing"),
]


@pytest.mark.parametrize("table", ["coverage.md", "supported_models.md", "channel_pruning_supported_models.md"])
def test_tables_look_as_they_did(tmp_path: Path, table: str) -> None:
    write_records(tmp_path / "records.jsonl", RECORDS)

    write_tables(tmp_path / "records.jsonl", tmp_path / "results")

    assert (tmp_path / "results" / table).read_text() == (SNAPSHOTS / table).read_text()


def test_tables_do_not_depend_on_the_order_in_which_workers_were_done(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(RECORDS, len(RECORDS))
    (tmp_path / "one.jsonl").write_text("".join(record.to_line() for record in RECORDS))
    (tmp_path / "two.jsonl").write_text("".join(record.to_line() for record in shuffled))

    pages = [
        [path.read_bytes() for path in write_tables(tmp_path / f"{name}.jsonl", tmp_path / name)]
        for name in ("one", "two")
    ]

    assert pages[0] == pages[1]


def test_a_file_without_records_says_where_records_come_from(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("")

    with pytest.raises(HarnessError, match=r"has no records in it; `torchorbit sweep"):
        write_tables(tmp_path / "records.jsonl", tmp_path)


def test_coverage_of_nothing_is_no_division_by_zero() -> None:
    assert "| all models          |            0 | 0.00%        |" in coverage_table([])


def test_records_of_a_sweep_that_did_not_prune_make_no_claims_about_pruning(tmp_path: Path) -> None:
    converted = Record(model="resnet18", **VERSIONS, converted=True, verified="shape")
    write_records(tmp_path / "records.jsonl", [converted])

    pages = write_tables(tmp_path / "records.jsonl", tmp_path)

    assert [page.name for page in pages] == ["coverage.md", "supported_models.md"]
    assert not any("prunable" in page.read_text() for page in pages)
