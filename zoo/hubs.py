"""What publishing and pulling need of a hub."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchorbit.errors import HubError
from torchorbit.files import digest
from zoo.texts import one_line

RepoType = Literal["model", "dataset"]
Content = Path | bytes
"""What a file is to hold: what is in another one, or these bytes."""

MAIN = "main"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LAST = tuple("-.")
"""What the name of a repository does not end with: beside a separator it would be taken for another name."""

_COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_LONGEST_PATH = 1000


@dataclass(frozen=True)
class RemoteFile:
    """A file that a hub has.

    Attributes:
        size: in bytes.
        sha256: of its bytes; None where the hub only tells the other one.
        git_sha1: what git calls it.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def holds(self, content: Content) -> bool:
        """Whether it has these bytes."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != self.size:
            return False
        if self.sha256 is not None:
            return digest(content, "sha256") == self.sha256
        return digest(content, "sha1", f"blob {size}\0".encode()) == self.git_sha1


@dataclass(frozen=True)
class Publication:
    """What came of publishing.

    Attributes:
        repo: the repository.
        commit: the commit that has it; None where nothing was done and there is none.
        changed: files that the commit added or changed; none where all was there already.
        url: where to look at it.
        dry_run: nothing was done.
    """

    repo: str
    commit: str | None
    changed: tuple[str, ...]
    url: str
    dry_run: bool = False

    def __str__(self) -> str:
        files = ", ".join(self.changed)
        if self.dry_run:
            return f"{self.repo}: would publish {files}" if files else f"{self.repo}: nothing to publish, all is there"
        if not self.changed:
            return f"{self.repo}: nothing to publish, all is there already in commit {self.commit} ({self.url})"
        return f"{self.repo}: published {files} in commit {self.commit} ({self.url})"


class Hub(ABC):
    """Repositories with revisions.

    Attributes:
        address: as users name it; None for the Hugging Face Hub.
    """

    address: str | None

    @abstractmethod
    def files(self, repo: str, revision: str, repo_type: RepoType = "model") -> dict[str, RemoteFile] | None:
        """Path -> file, of a revision; None where there is no such repository or revision.

        Raises:
            HubError: it may not be seen, or the hub cannot be reached.
        """

    @abstractmethod
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
        """Add or replace files in one commit, in a repository and on a branch that are made if absent.

        What of them is there already is part of it all the same: it may be gone by the time of the commit.

        Returns:
            The id of the commit.

        Raises:
            HubError: the hub refuses, or cannot be reached.
        """

    @abstractmethod
    def resolve(self, repo: str, revision: str, repo_type: RepoType = "model") -> str:
        """The id of the commit that a branch, a tag or a commit's id means.

        Raises:
            HubError: there is none, or the hub cannot be reached.
        """

    @abstractmethod
    def tag(self, repo: str, name: str, commit: str, repo_type: RepoType = "model") -> None:
        """Name a commit. Naming it again the same is no error.

        Raises:
            HubError: another commit has the name; or the hub refuses, or cannot be reached.
        """

    @abstractmethod
    def fetch(
        self,
        repo: str,
        names: Iterable[str],
        *,
        revision: str,
        local_files_only: bool = False,
        cache_dir: Path | None = None,
    ) -> Path:
        """Have files of a model on this machine.

        Returns:
            A folder with those of them that the revision has.

        Raises:
            HubError: there is no such repository or revision, it may not be seen, or the hub cannot be reached.
        """

    @abstractmethod
    def repositories(self, owner: str | None = None) -> list[str]:
        """The models of torchorbit that the hub has, all or those of one owner.

        Raises:
            HubError: the hub cannot be reached.
        """

    @abstractmethod
    def url(self, repo: str, commit: str, repo_type: RepoType = "model") -> str:
        """Where to look at a commit."""

    def discard(self, path: Path) -> None:
        """A fetched file is not what was published: see that it is not used again, where the hub did not make it."""
        return


def check_repo(repo: str) -> None:
    """Make sure that a name can be one of a repository.

    Raises:
        HubError: it cannot.
    """
    owner, _, name = repo.partition("/")
    bad = [p for p in (owner, name) if not _NAME.fullmatch(p) or ".." in p or "--" in p or p.endswith(_LAST)]
    if bad:
        raise HubError(f"{repo!r} is no name of a repository; expected 'organization/name' in letters, digits and ._-")


def check_revision(revision: str) -> None:
    """Make sure that a name can be one of a branch, tag or commit.

    Raises:
        HubError: it cannot.
    """
    if not _NAME.fullmatch(revision) or ".." in revision:
        raise HubError(f"{revision!r} is no name of a revision; expected letters, digits and ._-")


def is_commit_id(revision: str) -> bool:
    """Whether a revision is the id of a commit, which is never the name of a branch or a tag."""
    return _COMMIT_ID.fullmatch(revision) is not None


def check_branch(name: str) -> None:
    """Make sure that a name can be one of a branch or a tag.

    Raises:
        HubError: it cannot.
    """
    check_revision(name)
    if _COMMIT_ID.fullmatch(name.lower()):
        raise HubError(f"{name!r} is the id of a commit; choose another name for a branch or a tag")


def check_path(path: str) -> None:
    """Make sure that a name can be one of a file in a repository.

    Raises:
        HubError: it cannot.
    """
    parts = path.split("/")
    bad = len(path) > _LONGEST_PATH or not path.isprintable() or any(c in path for c in "\\:")
    if bad or any(part in ("", ".", "..") for part in parts):
        raise HubError(f"{one_line(path)!r} is no path of a file in a repository; expected 'file' or 'folder/file'")
