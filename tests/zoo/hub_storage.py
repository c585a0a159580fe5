"""Repositories on disk, as a hub keeps them: objects by their hash, commits, branches and tags.

    repos/TYPE/NAMESPACE/NAME/settings.json      whose it is, and whether it is private
                             /objects/SHA256     the bytes of every file of every commit
                             /commits/ID.json    parent, message, and the files by their paths
                             /refs/heads/BRANCH  an id of a commit
                             /refs/tags/TAG      the same

Whatever is written is written aside and renamed into place, and a branch moves last: whoever reads finds a commit with
all of its files, or no trace of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote, unquote

import yaml

Type = Literal["model", "dataset"]

PREFIXES: dict[Type, str] = {"dataset": "datasets/", "model": ""}
"""What stands before the name of a repository in addresses that are not those of the API."""

Kind = Literal["heads", "tags"]

LARGEST_REGULAR = 10 * 1024 * 1024
"""More than this is never put into git itself."""

GIT_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("arrow", "bin", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "tar", "zip")
)
"""What every repository starts with."""


class HubError(Exception):
    """An answer that says no.

    Args:
        status: Its HTTP status.
        message: What the client's error will show.
        code: How the client tells kinds of errors apart (`RepoNotFound`, `RevisionNotFound`, `EntryNotFound`).
        headers: More headers for the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True)
class File:
    """A file of a commit.

    Attributes:
        sha256: The hash of its bytes, and the name of the object that holds them.
        size: How many bytes.
        oid: The id of what git has: of the file, or of the pointer to it.
        lfs: Whether git has a pointer only.
    """

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def pointer_size(self) -> int:
        return len(_pointer(self.sha256, self.size))


@dataclass(frozen=True)
class Commit:
    """A commit, with all of its files by their paths."""

    id: str
    parent: str | None
    title: str
    message: str
    user: str
    date: str
    files: dict[str, File]


@dataclass
class Change:
    """What a commit does to the files of its parent.

    Attributes:
        added: Files by their paths.
        deleted: Paths of files.
        deleted_folders: Paths of folders.
    """

    added: dict[str, File] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    deleted_folders: list[str] = field(default_factory=list)


class Repository:
    """One repository in its folder.

    Attributes:
        type: What it is a repository of.
        id: Its name, which another one of another type may have, too.
        path: Its name in addresses, which no other one has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.type = cast(Type, folder.parent.parent.name)
        self.id = f"{folder.parent.name}/{folder.name}"
        self.path = f"{PREFIXES[self.type]}{self.id}"

    # Settings

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "settings.json").read_text())

    def set(self, **settings: Any) -> None:
        """Change some settings."""
        path = self.folder / "settings.json"
        _put(path, json.dumps({**(self.settings if path.exists() else {}), **settings}).encode())

    @property
    def owner(self) -> str:
        return self.settings["owner"]

    @property
    def private(self) -> bool:
        return self.settings["private"]

    # Objects

    def object(self, sha256: str) -> Path:
        """Where the bytes with this hash are, or would be."""
        return self.folder / "objects" / sha256

    def put_regular(self, content: bytes) -> File:
        """Store a file that git itself keeps."""
        if len(content) > LARGEST_REGULAR:
            raise HubError(400, f"A file of {len(content)} bytes is too large for git: it has to go through LFS")
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.object(sha256).exists():
            _put(self.object(sha256), content)
        return File(sha256, len(content), _git_oid(content), lfs=False)

    def adopt(self, path: Path, sha256: str, size: int) -> None:
        """Take in the bytes that were uploaded, if they are those that were promised.

        Args:
            path: A file with the bytes; it is gone afterwards, one way or the other.
            sha256: Their hash.
            size: Their number.
        """
        try:
            found = _hash_of(path)
            if (found, path.stat().st_size) != (sha256, size):
                raise HubError(
                    400, f"BadDigest: {path.stat().st_size} bytes with sha256 {found} are not those promised"
                )
            self.object(sha256).parent.mkdir(parents=True, exist_ok=True)
            path.replace(self.object(sha256))
        finally:
            path.unlink(missing_ok=True)

    def lfs_file(self, sha256: str, size: int | None) -> File:
        """A file that a commit refers to, whose bytes have to be here already."""
        stored = self.object(sha256).stat().st_size if self.object(sha256).exists() else None
        if stored is None or size not in (None, stored):
            raise HubError(400, f"The commit refers to the LFS object {sha256}, which was not uploaded")
        return File(sha256, stored, _git_oid(_pointer(sha256, stored)), lfs=True)

    # Branches and tags

    def refs(self, kind: Kind) -> dict[str, str]:
        """The branches or the tags, and the ids of their commits."""
        folder = self.folder / "refs" / kind
        return {unquote(path.name): path.read_text() for path in sorted(folder.glob("[!.]*"))}

    def set_ref(self, kind: Kind, name: str, commit: str) -> None:
        """Make a branch or a tag, or move it."""
        _put(self.folder / "refs" / kind / quote(name, safe=""), commit.encode())

    def delete_ref(self, kind: Kind, name: str) -> None:
        """Forget a branch or a tag."""
        if name not in self.refs(kind):
            raise _no_revision(name)
        (self.folder / "refs" / kind / quote(name, safe="")).unlink()

    # Commits

    def commit(self, revision: str) -> Commit:
        """The commit of a branch, of a tag, or with this id (or one that starts like this)."""
        named = self.refs("heads").get(revision) or self.refs("tags").get(revision)
        if named is None and re.fullmatch("[0-9a-f]{7,40}", revision):
            matches = list((self.folder / "commits").glob(f"{revision}*.json"))
            named = matches[0].stem if len(matches) == 1 else None
        if named is None:
            raise _no_revision(revision)
        record = json.loads((self.folder / "commits" / f"{named}.json").read_text())
        return Commit(**{**record, "files": {path: File(**file) for path, file in record["files"].items()}})

    def history(self, revision: str) -> Iterable[Commit]:
        """A commit and those before it."""
        commit = self.commit(revision)
        yield commit
        while commit.parent is not None:
            commit = self.commit(commit.parent)
            yield commit

    def add_commit(
        self, branch: str, change: Change, title: str, message: str, user: str, parent: str | None = None
    ) -> Commit:
        """Put a commit on a branch.

        Args:
            branch: The branch; it is made if the repository has none yet.
            change: What the commit does.
            title: The first line of its message.
            message: The rest of it.
            user: Who made it.
            parent: The commit that it has to follow, if the author insists.
        """
        heads = self.refs("heads")
        if heads and branch not in heads:
            raise _no_revision(branch)
        head = self.commit(branch) if heads else None
        if parent is not None and (head is None or self.commit(parent).id != head.id):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = _changed(head.files if head else {}, change)
        record = {
            "parent": head.id if head else None,
            "title": title,
            "message": message,
            "user": user,
            "date": now(),
            "files": {path: asdict(file) for path, file in sorted(files.items())},
        }
        # The nonce, so that two commits of one millisecond that do the same differ.
        identifier = hashlib.sha1(json.dumps([record, uuid.uuid4().hex]).encode()).hexdigest()
        record["id"] = identifier
        _put(self.folder / "commits" / f"{identifier}.json", json.dumps(record).encode())
        self.set_ref("heads", branch, identifier)
        return self.commit(identifier)

    # What it says about itself

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> Literal["lfs", "regular"]:
        """How a file has to be uploaded, by its name, its size, and how it starts."""
        attributes = commit.files.get(".gitattributes")
        text = self.object(attributes.sha256).read_text() if attributes else ""
        patterns = [line.split()[0] for line in text.splitlines() if "filter=lfs" in line]
        by_name = any(fnmatch(path, pattern) or fnmatch(Path(path).name, pattern) for pattern in patterns)
        return "lfs" if by_name or size > LARGEST_REGULAR or b"\0" in sample else "regular"

    def card(self, commit: Commit) -> dict[str, Any]:
        """What the front matter of README.md says."""
        readme = commit.files.get("README.md")
        text = self.object(readme.sha256).read_text(encoding="utf-8") if readme else ""
        try:
            return front_matter(text)
        except yaml.YAMLError:
            return {}


class Storage:
    """All repositories in a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clear_uploads()

    def repositories(self, type_: Type) -> list[Repository]:
        """All of a type, the last made first."""
        found = [Repository(path.parent) for path in self.root.glob(f"repos/{type_}/*/*/settings.json")]
        return sorted(found, key=lambda repository: (repository.settings["created"], repository.id), reverse=True)

    def find(self, type_: Type, identifier: str) -> Repository | None:
        """The repository of this type and name, if there is one."""
        return next((one for one in self.repositories(type_) if one.id == identifier), None)

    def create(self, type_: Type, identifier: str, owner: str, private: bool) -> Repository:
        """Make a repository, with the commit that every one starts with."""
        if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", identifier):
            raise HubError(400, f"{identifier!r} is not a name for a repository")
        repository = Repository(self.root / "repos" / type_ / identifier)
        repository.folder.mkdir(parents=True)
        change = Change(added={".gitattributes": repository.put_regular(GIT_ATTRIBUTES.encode())})
        repository.add_commit("main", change, "initial commit", "", owner)
        repository.set(owner=owner, private=private, created=now())
        return repository

    def delete(self, repository: Repository) -> None:
        """Remove a repository for good."""
        shutil.rmtree(repository.folder)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root / "repos", ignore_errors=True)
        self.clear_uploads()

    # What is on its way

    @property
    def uploads(self) -> Path:
        """Where bytes are until all of them are here."""
        return self.root / "uploads"

    def clear_uploads(self) -> None:
        """Remove what is left of uploads that did not come to an end."""
        shutil.rmtree(self.uploads, ignore_errors=True)
        self.uploads.mkdir(parents=True)


def now() -> str:
    """The time, as the hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def front_matter(text: str) -> dict[str, Any]:
    """The metadata at the top of a card.

    Raises:
        yaml.YAMLError: It is no YAML, or no mapping.
    """
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    found = yaml.safe_load(match[1])
    if not isinstance(found, dict | None):
        raise yaml.YAMLError("the metadata is no mapping")
    return found or {}


def _changed(files: dict[str, File], change: Change) -> dict[str, File]:
    for path in change.added:
        if path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
            raise HubError(400, f"{path!r} is not a path of a file in a repository")
    files = dict(files)
    for path in change.deleted:
        if path not in files:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        del files[path]
    for folder in change.deleted_folders:
        inside = [path for path in files if path.startswith(f"{folder}/")]
        if not inside:
            raise HubError(404, f"A folder with this name doesn't exist: {folder}", "EntryNotFound")
        for path in inside:
            del files[path]
    return {**files, **change.added}


def _no_revision(name: str) -> HubError:
    return HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _put(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
