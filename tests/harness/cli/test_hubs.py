"""The commands that publish and find models, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

from harness.records import Record, write_records
from tests.harness.cli.helpers import Run
from zoo.manifest import read_manifest


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
