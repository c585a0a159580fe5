"""Publish checkpoints, tables, and the page that lists a zoo."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas

from harness.records import read_records
from harness.tables import coverage_table, write_tables
from torchorbit.errors import HubError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.files import CARD_FILE
from zoo.cards import card, index_card
from zoo.checkpoint import CHECKPOINT_FILES, check_files, load_checkpoint, save_checkpoint
from zoo.hubs import MAIN, Content, Hub, Publication, RepoType, check_repo, choose
from zoo.manifest import read_manifest
from zoo.pulling import entries

_RECORDS_FILE = "data/coverage.parquet"


def publish(
    folder: str | Path,
    repo: str,
    *,
    hub: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish a checkpoint, in one commit.

    It is loaded first, so that nothing is published that nobody could load. What the repository has already is not sent
    again; where it has everything, nothing is done.

    Args:
        folder: of the checkpoint.
        repo: ``"organization/name"``.
        hub: a folder, or the address of a hub; by default the Hugging Face Hub.
        private: make a new repository one that only its owner sees.
        revision: branch to publish to; ``main`` by default.
        tag: name to give the publication.
        token: by default the one that ``hf auth login`` keeps.
        dry_run: only find out what would be published.

    Returns:
        Which commit it is, and what it changed.

    Raises:
        CheckpointError: it is no valid checkpoint.
        HubError: the hub refuses, or cannot be reached.
    """
    folder = Path(folder)
    check_repo(repo)
    load_checkpoint(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    place = choose(hub, token)
    contents: dict[str, Content] = {name: folder / name for name in CHECKPOINT_FILES if (folder / name).exists()}
    contents[CARD_FILE] = card(manifest, repo, place.address).encode()
    message = f"{manifest.name}: {manifest.after.gflops:.3f} of {manifest.before.gflops:.3f} GFLOPs"
    return _publish(place, repo, contents, message, private=private, revision=revision, tag=tag, dry_run=dry_run)


def push(
    dag: DagModule,
    repo: str,
    *,
    hub: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    **details: Any,
) -> Publication:
    """See `DagModule.push_to_hub`."""
    check_repo(repo)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / repo.rpartition("/")[2]
        save_checkpoint(dag, folder, **details)
        return publish(folder, repo, hub=hub, private=private, revision=revision, tag=tag, token=token)


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
        HubError: the hub refuses, or cannot be reached.
    """
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
    return _publish(
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


def publish_index(
    repo: str,
    *,
    hub: str | Path | None = None,
    owner: str | None = None,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish the page that lists the checkpoints of a zoo with their figures.

    Args:
        repo: ``"organization/name"`` of the page.
        hub: a folder, or the address of a hub; by default the Hugging Face Hub.
        owner: whose checkpoints; by default those of the organization in ``repo``.
        private: make a new repository one that only its owner sees.
        token: by default the one that ``hf auth login`` keeps.
        dry_run: only find out what would be published.

    Returns:
        Which commit it is, and what it changed.

    Raises:
        HubError: the hub refuses, or cannot be reached.
    """
    check_repo(repo)
    place = choose(hub, token)
    owner = owner or repo.partition("/")[0]
    listed = [(entry.repo, entry.manifest) for entry in entries(place, owner=owner)]
    page = index_card(listed, f"Pruned models of {owner}", place.address)
    return _publish(
        place, repo, {CARD_FILE: page.encode()}, f"{len(listed)} checkpoints", private=private, dry_run=dry_run
    )


def _publish(
    hub: Hub,
    repo: str,
    contents: Mapping[str, Content],
    message: str,
    *,
    private: bool,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    repo_type: RepoType = "model",
) -> Publication:
    """Commit what is new."""
    branch = revision or MAIN
    if tag == branch:
        raise HubError(f"{tag!r} is the branch to publish to; choose another name for the tag")
    there = hub.files(repo, branch, repo_type) or {}
    changed = {
        path: content for path, content in contents.items() if path not in there or not there[path].holds(content)
    }
    if tag is not None and changed and hub.files(repo, tag, repo_type) is not None:
        raise HubError(f"{repo} has a revision {tag!r} already, and this would be another; choose another tag")
    if dry_run:
        return Publication(repo, None, tuple(changed), "", dry_run=True)
    if changed:
        commit = hub.commit(repo, contents, message=message, private=private, revision=branch, repo_type=repo_type)
    else:
        commit = hub.resolve(repo, branch, repo_type)
    if tag is not None:
        hub.tag(repo, tag, commit, repo_type)
    return Publication(repo, commit, tuple(changed), hub.url(repo, commit, repo_type))


def _said(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
