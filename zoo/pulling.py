"""Pull checkpoints from a hub, and find them there."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from torchorbit.errors import CheckpointError, HubError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.files import CARD_FILE
from zoo.checkpoint import CHECKPOINT_FILES, check_files, copy_checkpoint, load_checkpoint, load_files
from zoo.choosing import choose
from zoo.hubs import MAIN, Hub
from zoo.manifest import MANIFEST_FILE, Manifest, read_manifest

_LOG = logging.getLogger(__name__)
_AT_ONCE = 8


def pull(
    repo: str | Path,
    *,
    hub: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
) -> DagModule:
    """See `torchorbit.from_pretrained`."""
    # An absolute path is no name of a repository; a relative one is where there is no checkpoint.
    if hub is None and (Path(repo).is_absolute() or (Path(repo) / MANIFEST_FILE).is_file()):
        return load_checkpoint(repo, device=device)
    place = choose(hub, token)
    folder = _fetched(place, str(repo), revision, local_files_only, cache_dir)
    return load_files(folder, read_manifest(folder), device, spoiled=place.discard)


def _fetched(place: Hub, repo: str, revision: str | None, local_files_only: bool, cache_dir: str | Path | None) -> Path:
    """Where the files of a checkpoint are, which nobody has looked at yet."""
    return place.fetch(
        repo,
        (*CHECKPOINT_FILES, CARD_FILE),
        revision=revision or MAIN,
        local_files_only=local_files_only,
        cache_dir=None if cache_dir is None else Path(cache_dir),
    )


def fetch(
    repo: str,
    *,
    hub: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    out: Path | None = None,
) -> tuple[Path, Manifest]:
    """Have a published checkpoint on this machine, its files compared with the hashes in its manifest.

    Args:
        repo: ``"organization/name"``.
        hub: a folder that models were published to, or the address of a hub; by default the Hugging Face Hub.
        revision: a branch, a tag or a commit; ``main`` by default.
        token: by default the one that ``hf auth login`` keeps.
        local_files_only: take it from the cache, and ask no server.
        cache_dir: where files of a hub are kept; by default where everything from the Hugging Face Hub is.
        out: copy it here; by default it stays in the cache, or in the folder that is the hub.

    Returns:
        Where it is, and what it says about itself.

    Raises:
        HubError: there is no such model or revision, it needs a token, or the hub cannot be reached.
        CheckpointError: it is no checkpoint, or a file is not the one that was published; then it is not kept.
    """
    place = choose(hub, token)
    folder = _fetched(place, repo, revision, local_files_only, cache_dir)
    manifest = read_manifest(folder)
    check_files(folder, manifest, spoiled=place.discard)
    if out is not None:
        copy_checkpoint(folder, out)
        folder = out
    return folder, manifest


@dataclass(frozen=True)
class Entry:
    """A checkpoint on a hub."""

    repo: str
    manifest: Manifest


def entries(hub: Hub, owner: str | None = None, cache_dir: Path | None = None) -> Iterator[Entry]:
    """The checkpoints on a hub. One whose manifest cannot be read is passed over, and logged.

    Args:
        hub: the hub.
        owner: whose; None for everybody's.
        cache_dir: where manifests are kept.

    Raises:
        HubError: the hub cannot be reached.
    """

    def entry(repo: str) -> Entry | None:
        try:
            return Entry(repo, read_manifest(hub.fetch(repo, [MANIFEST_FILE], revision=MAIN, cache_dir=cache_dir)))
        except (CheckpointError, HubError) as error:
            _LOG.warning("%s is passed over: %s", repo, error)
            return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(entry, hub.repositories(owner)):
            if found is not None:
                yield found


def search(
    hub: Hub,
    *,
    owner: str | None = None,
    source: str | None = None,
    max_gflops: float | None = None,
    max_parameters: float | None = None,
    min_accuracy: float | None = None,
    dataset: str | None = None,
) -> list[Entry]:
    """Find checkpoints.

    Args:
        hub: where.
        owner: whose.
        source: wildcard over the names of the models that were pruned.
        max_gflops: at most so many 10^9 FLOPs.
        max_parameters: at most so many parameters.
        min_accuracy: at least this top-1 accuracy, from 0 to 1, on any data set that it was measured on.
        dataset: wildcard over the names of these data sets.

    Returns:
        Those that all of it is true of, those with the fewest FLOPs first.

    Raises:
        HubError: the hub cannot be reached.
    """

    def fits(manifest: Manifest) -> bool:
        name = manifest.source.model
        measured = [a.after for a in manifest.accuracy if dataset is None or fnmatch.fnmatch(a.dataset, dataset)]
        return (
            (source is None or fnmatch.fnmatch(name, source) or fnmatch.fnmatch(name.partition(".")[0], source))
            and (max_gflops is None or manifest.after.gflops <= max_gflops)
            and (max_parameters is None or manifest.after.parameters <= max_parameters)
            and (dataset is None or bool(measured))
            and (min_accuracy is None or any(accuracy >= min_accuracy for accuracy in measured))
        )

    found = [entry for entry in entries(hub, owner) if fits(entry.manifest)]
    return sorted(found, key=lambda entry: (entry.manifest.after.gflops, entry.repo))
