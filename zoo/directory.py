"""A plain directory as a hub: for labs without internet, and for whoever wants no other.

It is laid out as the cache of the Hugging Face Hub, with the history beside it::

    models--organization--name/
        blobs/<SHA-256>           every file that was ever published, once
        snapshots/<commit>/...    the files of a commit, as links into blobs
        commits/<commit>.json     parent, message and time of a commit, and its files
        refs/<branch or tag>      the id of a commit
        tags/<tag>                marks the names that do not move

A commit is written aside and renamed into place before a branch points to it, so that whoever reads sees all of it or
nothing.
"""

from __future__ import annotations

import filecmp
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock
from typing_extensions import override

from torchorbit.errors import HubError
from torchorbit.files import digest, replace_text, replacing
from zoo.hubs import MAIN, Content, Hub, RemoteFile, RepoType, check_repo, check_revision
from zoo.manifest import MANIFEST_FILE

_LOG = logging.getLogger(__name__)
_FOLDERS = ("blobs", "snapshots", "commits", "refs", "tags")


class _File(TypedDict):
    sha256: str
    size: int


@dataclass(frozen=True)
class _KeptFile(RemoteFile):
    """A file that is there to be looked at: what was damaged since it was published is published again."""

    blob: Path = Path()

    @override
    def holds(self, content: Content) -> bool:
        try:
            if isinstance(content, Path):
                return filecmp.cmp(content, self.blob, shallow=False)
            return self.blob.read_bytes() == content
        except FileNotFoundError:
            return False


class DirectoryHub(Hub):
    """A directory with repositories.

    Args:
        folder: it is made when something is published.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.address = str(self.folder)

    @override
    def files(self, repo: str, revision: str, repo_type: RepoType = "model") -> dict[str, RemoteFile] | None:
        place = self._place(repo, repo_type)
        commit = self._found(place, revision)
        if commit is None:
            return None
        return {
            path: _KeptFile(size=file["size"], sha256=file["sha256"], blob=place / "blobs" / file["sha256"])
            for path, file in self._commit(place, commit)["files"].items()
        }

    @override
    def commit(
        self,
        repo: str,
        contents: Mapping[str, Content],
        *,
        message: str,
        private: bool,
        revision: str,
        repo_type: RepoType = "model",
    ) -> str:
        check_revision(revision)
        place = self._place(repo, repo_type)
        with self._writing(place, private):
            if (place / "tags" / revision).exists():
                raise HubError(f"{revision!r} is a tag of {repo}, which does not move; publish to a branch")
            parent = self._found(place, revision) or self._found(place, MAIN)
            files = dict(self._commit(place, parent)["files"]) if parent else {}
            for path, content in contents.items():
                files[path] = self._keep(place, content)
            details = {
                "parent": parent,
                "message": message,
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "files": dict(sorted(files.items())),
            }
            commit = digest(json.dumps(details, sort_keys=True).encode(), "sha1")
            self._lay_out(place, commit, files)
            replace_text(place / "commits" / f"{commit}.json", json.dumps(details, indent=1) + "\n")
            replace_text(place / "refs" / revision, commit)
        return commit

    @override
    def resolve(self, repo: str, revision: str, repo_type: RepoType = "model") -> str:
        place = self._place(repo, repo_type)
        commit = self._found(place, revision)
        if commit is None:
            names = sorted(path.name for path in (place / "refs").glob("[!.]*"))
            if not names:
                raise HubError(f"the hub in {self.address} has no repository {repo}")
            raise HubError(
                f"{repo} in {self.address} has no revision {revision!r}; it has {', '.join(names)}, and commits"
            )
        return commit

    @override
    def tag(self, repo: str, name: str, commit: str, repo_type: RepoType = "model") -> None:
        check_revision(name)
        place = self._place(repo, repo_type)
        with self._writing(place, private=False):
            earlier = self._found(place, name)
            if earlier == commit and (place / "tags" / name).exists():
                return
            if earlier is not None:
                raise HubError(f"{repo} has a revision {name!r} already, commit {earlier}; choose another tag")
            replace_text(place / "tags" / name, commit)
            replace_text(place / "refs" / name, commit)

    @override
    def fetch(
        self,
        repo: str,
        names: Iterable[str],
        *,
        revision: str,
        local_files_only: bool = False,
        cache_dir: Path | None = None,
    ) -> Path:
        # It is on this machine, or where this machine sees it: there is nothing to copy.
        return self._place(repo, "model") / "snapshots" / self.resolve(repo, revision)

    @override
    def repositories(self, owner: str | None = None) -> list[str]:
        found = []
        for place in sorted(self.folder.glob("models--*--*")):
            _, theirs, name = place.name.split("--", 2)
            repo = f"{theirs}/{name}"
            if owner not in (None, theirs):
                continue
            try:
                files = self.files(repo, MAIN)
            except HubError as error:
                if not isinstance(error.__cause__, PermissionError):  # what is private is nobody else's business
                    _LOG.warning("%s is passed over: %s", repo, error)
                continue
            if files is not None and MANIFEST_FILE in files:
                found.append(repo)
        return found

    @override
    def url(self, repo: str, commit: str, repo_type: RepoType = "model") -> str:
        return str(self._place(repo, repo_type) / "snapshots" / commit)

    # -- on the disk

    def _place(self, repo: str, repo_type: RepoType) -> Path:
        check_repo(repo)
        return self.folder / f"{repo_type}s--{repo.replace('/', '--')}"

    @contextmanager
    def _writing(self, place: Path, private: bool) -> Iterator[None]:
        """Keep others from writing to a repository, which is made if absent."""
        try:
            place.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
            for name in _FOLDERS:
                (place / name).mkdir(exist_ok=True)
            with FileLock(place / ".lock"):
                self._clear(place)
                yield
        except OSError as error:
            raise HubError(f"cannot write to {place}: {error.strerror or error}") from error

    def _clear(self, place: Path) -> None:
        """Remove what was written aside by somebody who was stopped before it was put in place."""
        for name in _FOLDERS:
            for path in (place / name).glob(".*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _found(self, place: Path, revision: str) -> str | None:
        check_revision(revision)
        try:
            return (place / "refs" / revision).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return revision if (place / "commits" / f"{revision}.json").exists() else None
        except OSError as error:
            raise HubError(f"cannot read {place}: {error.strerror or error}") from error

    def _commit(self, place: Path, commit: str) -> Any:
        path = place / "commits" / f"{commit}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HubError(f"{path} is damaged: {error}") from error

    def _keep(self, place: Path, content: Content) -> _File:
        """Put a file among the blobs, if it is not there."""
        sha256 = digest(content, "sha256")
        blob = place / "blobs" / sha256
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if not blob.exists() or digest(blob, "sha256") != sha256:
            with replacing(blob) as aside:
                if isinstance(content, Path):
                    shutil.copyfile(content, aside)
                else:
                    aside.write_bytes(content)
                aside.chmod(0o444)
        return {"sha256": sha256, "size": size}

    def _lay_out(self, place: Path, commit: str, files: Mapping[str, _File]) -> None:
        """Make the folder of a commit."""
        final = place / "snapshots" / commit
        if final.exists():
            return
        with tempfile.TemporaryDirectory(prefix=".", dir=final.parent) as aside:
            made = Path(aside) / commit
            made.mkdir()
            for name, file in files.items():
                path = made / name
                path.parent.mkdir(parents=True, exist_ok=True)
                up = Path(*[".."] * (len(Path(name).parts) + 1))
                path.symlink_to(up / "blobs" / file["sha256"])
            made.replace(final)
