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

Others may write to the folder, too. What they wrote is read as what a stranger sent: only so much of it, from regular
files, and nothing in it is a name of a file before it was looked at. A commit is the one that its id stands for, with
the files that it names, or none.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import override

from torchorbit.errors import ArgumentError, CheckpointError, HubError
from torchorbit.files import digest, replace_text, replacing
from torchorbit.graph.files import opened, parsed
from zoo.hubs import (
    MAIN,
    Content,
    Hub,
    RemoteFile,
    RepoType,
    check_branch,
    check_path,
    check_repo,
    check_revision,
    is_commit_id,
)
from zoo.manifest import MANIFEST_FILE
from zoo.texts import one_line

_LOG = logging.getLogger(__name__)
_FOLDERS = ("blobs", "snapshots", "commits", "refs", "tags")
_LONGEST_COMMIT = 16 * 2**20
_LONGEST_REF = 1000
_MOST_NAMED = 20


def _path(text: str) -> str:
    try:
        check_path(text)
    except HubError as error:
        raise ArgumentError(str(error)) from error
    return text


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _File(_Part):
    """A file of a commit, as it is written down."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, le=2**62)]


class _Commit(_Part):
    """A commit, as it is written down."""

    parent: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    message: Annotated[str, Field(max_length=100_000)]
    time: Annotated[str, Field(max_length=100)]
    files: dict[Annotated[str, AfterValidator(_path)], _File] = Field(max_length=100_000)


@dataclass(frozen=True)
class _KeptFile(RemoteFile):
    """A file that is there to be looked at: what was damaged since it was published is published again."""

    blob: Path = Path()

    @override
    def holds(self, content: Content) -> bool:
        return super().holds(content) and _is_whole(self.blob, self.size, self.sha256)


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
            path: _KeptFile(size=file.size, sha256=file.sha256, blob=place / "blobs" / file.sha256)
            for path, file in self._commit(place, commit).files.items()
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
        check_branch(revision)
        for path in contents:
            check_path(path)
        place = self._place(repo, repo_type)
        with self._writing(place, private):
            if os.path.lexists(place / "tags" / revision):
                raise HubError(f"{revision!r} is a tag of {repo}, which does not move; publish to a branch")
            parent = self._found(place, revision) or self._found(place, MAIN)
            files = dict(self._commit(place, parent).files) if parent else {}
            for path, content in contents.items():
                files[path] = self._keep(place, content)
            details = {
                "parent": parent,
                "message": message,
                "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "files": {path: file.model_dump() for path, file in sorted(files.items())},
            }
            commit = _id(details)
            self._lay_out(place, commit, files)
            replace_text(place / "commits" / f"{commit}.json", json.dumps(details, indent=1) + "\n")
            replace_text(place / "refs" / revision, commit)
        return commit

    @override
    def resolve(self, repo: str, revision: str, repo_type: RepoType = "model") -> str:
        place = self._place(repo, repo_type)
        commit = self._found(place, revision)
        if commit is None:
            names = sorted(one_line(path.name) for path in (place / "refs").glob("[!.]*"))
            if not names:
                raise HubError(f"the hub in {self.address} has no repository {repo}")
            names[_MOST_NAMED:] = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
            raise HubError(
                f"{repo} in {self.address} has no revision {revision!r}; it has {', '.join(names)}, and commits"
            )
        self._commit(place, commit)
        return commit

    @override
    def tag(self, repo: str, name: str, commit: str, repo_type: RepoType = "model") -> None:
        check_branch(name)
        place = self._place(repo, repo_type)
        with self._writing(place, private=False):
            self._commit(place, commit)
            earlier = self._found(place, name)
            if earlier == commit and os.path.lexists(place / "tags" / name):
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
        place = self._place(repo, "model")
        commit = self.resolve(repo, revision)
        files = self._commit(place, commit).files
        snapshot = place / "snapshots" / commit
        if snapshot.resolve() != place.resolve() / "snapshots" / commit:
            raise HubError(f"'{snapshot}' is a link, which is not followed; publish the checkpoint again")
        for name in names:
            path = snapshot / name
            if os.path.lexists(path) and name not in files:
                raise HubError(f"'{path}' is not part of commit {commit}; remove it, or publish the checkpoint again")
            if path.is_symlink() and os.readlink(path) != os.fspath(_blob(name, files[name])):  # noqa: PTH115
                raise HubError(f"'{path}' is not the file that commit {commit} names; publish the checkpoint again")
            # The manifest has the hashes of the others, which are compared when they are read.
            hashed = name == MANIFEST_FILE or not path.is_symlink()
            if path.exists() and hashed and not _is_whole(path.resolve(), files[name].size, files[name].sha256):
                raise CheckpointError(
                    f"'{path}' is not the file that was published in commit {commit}; publish the checkpoint again"
                )
        return snapshot

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
            self._check_layout(place)
            with FileLock(place / ".lock"):
                self._clear(place)
                yield
        except OSError as error:
            raise HubError(f"cannot write to {place}: {error.strerror or error}") from error

    def _clear(self, place: Path) -> None:
        """Remove what was written aside by somebody who was stopped before it was put in place."""
        for name in _FOLDERS:
            for path in (place / name).glob(".*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _check_layout(self, place: Path) -> None:
        """What a repository consists of is in its folder, and not behind a link that somebody put there."""
        links = [name for name in (*_FOLDERS, ".lock") if (place / name).is_symlink()]
        if links:
            raise HubError(f"'{place / links[0]}' is a link, which is not followed; remove it and publish again")

    def _read(self, path: Path, longest: int) -> str | None:
        """The text of a small file of a repository; None where there is none."""
        place = path.parents[1]
        try:
            self._check_layout(place)
            with opened(path) as file:
                content = file.read(longest + 1)
            if len(content) > longest:
                raise HubError(f"{path} is damaged: it is longer than the {longest} bytes that it may have")
            return content.decode("utf-8")
        except (CheckpointError, OSError) as error:
            reason = error.__cause__ if isinstance(error, CheckpointError) else error
            if isinstance(reason, FileNotFoundError):
                return None
            if isinstance(reason, OSError):
                raise HubError(f"cannot read {place}: {reason.strerror or reason}") from reason
            raise HubError(f"{path} is damaged: it is no regular file") from error
        except UnicodeDecodeError as error:
            raise HubError(f"{path} is damaged: it is no text in UTF-8 ({error.reason})") from error

    def _found(self, place: Path, revision: str) -> str | None:
        check_revision(revision)
        if is_commit_id(revision):
            # Whatever somebody calls a branch: an id is of one commit.
            return None if self._read(place / "commits" / f"{revision}.json", _LONGEST_COMMIT) is None else revision
        path = place / "refs" / revision
        text = self._read(path, _LONGEST_REF)
        if text is None:
            return None
        commit = text.strip()
        if not is_commit_id(commit):
            raise HubError(f"{path} is damaged: it holds no id of a commit, 40 hexadecimal digits")
        return commit

    def _commit(self, place: Path, commit: str) -> _Commit:
        path = place / "commits" / f"{commit}.json"
        text = self._read(path, _LONGEST_COMMIT)
        if text is None:
            raise HubError(f"{path} is damaged: there is no such file; put it back, or remove the repository")
        try:
            details = parsed(text.encode(), path.name)
            found = _Commit.model_validate(details)
        except (CheckpointError, ValidationError) as error:
            raise HubError(f"{path} is damaged: {one_line(error)}") from error
        if _id(details) != commit:
            raise HubError(f"{path} is damaged: it is another commit than its name says, {_id(details)}")
        return found

    def _keep(self, place: Path, content: Content) -> _File:
        """Put a file among the blobs, if it is not there."""
        sha256 = digest(content, "sha256")
        blob = place / "blobs" / sha256
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if not _is_whole(blob, size, sha256):
            with replacing(blob) as aside:
                if isinstance(content, Path):
                    shutil.copyfile(content, aside)
                else:
                    aside.write_bytes(content)
                aside.chmod(0o444)
        return _File(sha256=sha256, size=size)

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
                path.symlink_to(_blob(name, file))
            made.replace(final)


def _blob(name: str, file: _File) -> Path:
    """Where a file of a snapshot is, from its place there."""
    return Path(*[".."] * (len(Path(name).parts) + 1), "blobs", file.sha256)


def _id(details: object) -> str:
    """The id of a commit, which stands for all that is written down of it."""
    return digest(json.dumps(details, sort_keys=True).encode(), "sha1")


def _is_whole(path: Path, size: int, sha256: str | None) -> bool:
    """Whether a regular file has these bytes."""
    try:
        with opened(path) as file:
            return os.fstat(file.fileno()).st_size == size and digest(file) == sha256
    except (CheckpointError, OSError):
        return False
