"""Publish the records of a sweep, and the tables made of them."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from harness.records import read_records
from harness.tables import coverage_table, write_tables
from torchorbit.extras import require
from torchorbit.graph.files import CARD_FILE
from zoo.choosing import choose
from zoo.hubs import Content, Publication, check_repo
from zoo.publishing import commit_new

_RECORDS_FILE = "data/coverage.parquet"


def publish_tables(
    records: Path,
    repo: str,
    *,
    hub: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish the records of a sweep as a data set, with the tables that are made from them.

    Args:
        records: file of records.
        repo: ``"organization/name"`` of a data set.
        hub: a folder, or the address of a hub; by default the Hugging Face Hub.
        private: make a new repository one that only its owner sees.
        revision: branch to publish to; ``main`` by default.
        tag: name to give the publication.
        token: by default the one that ``hf auth login`` keeps.
        dry_run: only find out what would be published.

    Returns:
        Which commit it is, and what it changed.

    Raises:
        HarnessError: it is no file of records.
        MissingExtraError: pandas or pyarrow is not installed.
        HubError: the hub refuses, or cannot be reached.
    """
    require("harness", "publishing records", "pandas", "pyarrow")
    import pandas

    check_repo(repo)
    found = read_records(records)
    contents: dict[str, Content] = {}
    with tempfile.TemporaryDirectory() as aside:
        for path in write_tables(records, Path(aside)):
            contents[Path(path).name] = Path(path).read_bytes()
    rows = [asdict(record) for record in found]
    buffer = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(buffer, index=False)
    contents[_RECORDS_FILE] = buffer.getvalue()
    versions = sorted({json.dumps(record.versions, sort_keys=True) for record in found})
    contents[CARD_FILE] = (
        "---\ntags:\n- torchorbit\n- timm\n- pruning\nconfigs:\n- config_name: default\n  data_files: "
        f"{_RECORDS_FILE}\n---\n\n# Which models of timm torchorbit converts and prunes\n\n{coverage_table(found)}\n\n"
        f"One row per model. Made with {'; '.join(_said(json.loads(version)) for version in versions)}.\n"
    ).encode()
    place = choose(hub, token)
    return commit_new(
        place,
        repo,
        contents,
        f"{len(found)} models",
        private=private,
        revision=revision,
        tag=tag,
        dry_run=dry_run,
        repo_type="dataset",
    )


def _said(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
