"""Publish checkpoints, and the page that lists a zoo."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchorbit.errors import HubError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.files import CARD_FILE
from zoo.cards import card, index_card
from zoo.checkpoint import CHECKPOINT_FILES, check_files, load_checkpoint, save_checkpoint
from zoo.choosing import choose
from zoo.hubs import MAIN, Content, Hub, Publication, RepoType, check_branch, check_repo
from zoo.manifest import read_manifest
from zoo.pulling import entries


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
    return commit_new(place, repo, contents, message, private=private, revision=revision, tag=tag, dry_run=dry_run)


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
    return commit_new(
        place, repo, {CARD_FILE: page.encode()}, f"{len(listed)} checkpoints", private=private, dry_run=dry_run
    )


def commit_new(
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
    """Publish files in one commit, if there is anything new among them.

    Args:
        hub: where.
        repo: ``"organization/name"``.
        contents: path in the repository -> what is to be there.
        message: of the commit.
        private: make a new repository one that only its owner sees.
        revision: branch to publish to; ``main`` by default.
        tag: name to give the publication.
        dry_run: only find out what would be published.
        repo_type: ``"model"`` or ``"dataset"``.

    Returns:
        Which commit it is, and what it changed.

    Raises:
        HubError: the hub refuses, or cannot be reached; or the tag is there already, and is of something else.
    """
    branch = revision or MAIN
    for name in {branch, tag or branch}:
        check_branch(name)
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
