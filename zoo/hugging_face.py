"""The Hugging Face Hub, or another server that speaks its language."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the client beneath, whichever that is: what went wrong on the way to the server
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random
from typing_extensions import override

from torchorbit.errors import HubError
from torchorbit.files import digest
from zoo.cards import LIBRARY
from zoo.hubs import MAIN, Content, Hub, RemoteFile, RepoType, check_repo, check_revision

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_ATTEMPTS = 4
"""The client itself asks some questions six times before it gives up, and others once."""

_LONGEST_WAIT = 60.0
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}|(?i:bearer)\s+\S+")
_GIT_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class UnreachableError(HubError):
    """The server does not answer, or nobody is to ask it."""


class _AgainError(Exception):
    """Something else came than what is known to be there."""


class HuggingFaceHub(Hub):
    """A hub on a server.

    Args:
        endpoint: address of the server; None for the Hugging Face Hub (or ``$HF_ENDPOINT``).
        token: by default the one that ``hf auth login`` keeps, or ``$HF_TOKEN``.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.address = endpoint
        self._endpoint = endpoint.rstrip("/") if endpoint else constants.ENDPOINT
        self._token = token
        self._api = HfApi(endpoint=self._endpoint, token=token, library_name=LIBRARY)

    @override
    def files(self, repo: str, revision: str, repo_type: RepoType = "model") -> dict[str, RemoteFile] | None:
        check_repo(repo)
        check_revision(revision)

        def listed() -> list[Any] | None:
            try:
                found = self._api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=repo_type)
                return list(found)
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if isinstance(error, GatedRepoError):
                    raise
                return None

        entries = self._patiently(listed, repo)
        if entries is None:
            return None
        return {
            entry.path: RemoteFile(
                size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None, git_sha1=entry.blob_id
            )
            for entry in entries
            if isinstance(entry, RepoFile)
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
        check_repo(repo)
        check_revision(revision)

        def commit() -> str:
            self._api.create_repo(repo, private=private, repo_type=repo_type, exist_ok=True)
            if revision != MAIN:
                self._api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
            with ExitStack() as open_files:
                # Made anew for every attempt, as they remember how far the last one came. What the server has it says
                # so of, and is not sent again.
                operations = [CommitOperationAdd(path, self._opened(c, open_files)) for path, c in contents.items()]
                done = self._api.create_commit(
                    repo, operations, commit_message=message, revision=revision, repo_type=repo_type
                )
            return str(done.oid)

        return self._patiently(commit, repo)

    @override
    def resolve(self, repo: str, revision: str, repo_type: RepoType = "model") -> str:
        check_repo(repo)
        check_revision(revision)
        info = self._patiently(
            lambda: self._api.repo_info(repo, revision=revision, repo_type=repo_type), repo, revision
        )
        return str(info.sha)

    @override
    def tag(self, repo: str, name: str, commit: str, repo_type: RepoType = "model") -> None:
        check_revision(name)

        def tags() -> dict[str, str]:
            found = self._api.list_repo_refs(repo, repo_type=repo_type)
            return {ref.name: ref.target_commit for ref in (*found.tags, *found.branches)}

        earlier = self._patiently(tags, repo).get(name)
        if earlier == commit:
            return
        if earlier is not None:
            raise HubError(f"{repo} has a revision {name!r} already, commit {earlier}; choose another tag")
        create = functools.partial(self._api.create_tag, repo, tag=name, revision=commit, repo_type=repo_type)
        self._patiently(functools.partial(create, exist_ok=True), repo)

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
        check_repo(repo)
        check_revision(revision)
        commit, silence = None, None
        if not local_files_only:
            try:
                commit = self.resolve(repo, revision)
            except UnreachableError as error:
                silence = error
        download = functools.partial(
            snapshot_download,
            repo,
            revision=revision,
            allow_patterns=list(names),
            endpoint=self._endpoint,
            token=self._token,
            cache_dir=cache_dir,
            local_files_only=commit is None,
            library_name=LIBRARY,
        )

        def downloaded() -> Path:
            try:
                found = Path(download())
            except LocalEntryNotFoundError as error:
                if commit is None:
                    raise
                raise _AgainError(str(error)) from error
            if commit is not None and found.name != commit:
                # What an earlier pull left, which the client returns where the server hesitates.
                raise _AgainError(f"commit {found.name} came instead of {commit}")
            return found

        try:
            folder = self._patiently(downloaded, repo, revision)
        except UnreachableError:
            if silence is not None:
                raise silence from None
            raise
        if silence is not None:
            _LOG.warning("%s; what an earlier pull left is used", silence)
        for name in names:
            path = folder / name
            if path.is_symlink() and not _is_what_it_is_called(path.resolve()):
                self.discard(path)
                raise HubError(
                    f"{name} of {repo} is not what the server says it is: its hash is another one; try again"
                )
        return folder

    @override
    def repositories(self, owner: str | None = None) -> list[str]:
        found = self._patiently(lambda: list(self._api.list_models(filter=LIBRARY, author=owner)), owner or "")
        return sorted(model.id for model in found)

    @override
    def url(self, repo: str, commit: str, repo_type: RepoType = "model") -> str:
        kind = "datasets/" if repo_type == "dataset" else ""
        return f"{self._endpoint}/{kind}{repo}/tree/{commit}"

    @override
    def discard(self, path: Path) -> None:
        """Take a file out of the cache, so that it is downloaded again."""
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _opened(self, content: Content, open_files: ExitStack) -> Any:
        """A file as the client is to send it.

        Given paths, it sends them by a protocol that other servers than the Hugging Face Hub may not speak.
        """
        if isinstance(content, bytes) or self._endpoint == constants.ENDPOINT:
            return content
        return open_files.enter_context(content.open("rb"))

    def _patiently(self, ask: Callable[[], _Result], repo: str, revision: str | None = None) -> _Result:
        """Ask the server, again where it may know better later, and say in one line what is wrong where it does not."""
        retrying = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=_wait,
            retry=retry_if_exception(_passes),
            before_sleep=_log_wait,
            reraise=True,
        )
        try:
            return retrying(ask)
        except (HTTPError, OSError, HFValidationError, ValueError, RuntimeError, _AgainError) as error:
            found = _root(error)
            kind = UnreachableError if _is_silence(found) else HubError
            raise kind(self._reason(found, repo, revision)) from None

    def _reason(self, error: BaseException, repo: str, revision: str | None) -> str:
        where = f"{repo} on {self._endpoint}" if repo else self._endpoint
        if isinstance(error, RevisionNotFoundError):
            return f"{where} has no revision {revision!r}"
        if isinstance(error, GatedRepoError):
            return f"{where} wants its terms accepted in a browser, and the token of who did (--token, HF_TOKEN)"
        if isinstance(error, RepositoryNotFoundError):
            token = "the token that was given does not open it" if self._token or get_token() else "no token was given"
            return f"{where} does not exist, or is private and {token} (hf auth login, --token, or HF_TOKEN)"
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return f"{where} is not in the cache, or not all of it, and the hub was not asked or did not answer"
        if isinstance(error, HfHubHTTPError):
            code = error.response.status_code
            if code in (401, 403):
                return f"{where}: not allowed (HTTP {code}); it takes a token that may (--token, HF_TOKEN)"
            said = f": {error.server_message}" if error.server_message else ""
            return _without_tokens(
                f"{where} answered HTTP {code}{said}" + (" again and again" if _passes(error) else "")
            )
        text = " ".join(str(error).split()) or type(error).__name__
        return _without_tokens(f"{where}: {text}")


def _root(error: BaseException) -> BaseException:
    """What went wrong, where the client only says that something did."""
    wrapped = isinstance(error, RuntimeError) and isinstance(error.__cause__, (HTTPError, OSError))
    return error.__cause__ or error if wrapped else error


def _passes(error: BaseException) -> bool:
    """Whether the same question may have another answer later."""
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, _AgainError) or (isinstance(error, HTTPError) and not isinstance(error, OSError))


def _is_silence(error: BaseException) -> bool:
    """Whether no server said anything."""
    silent = isinstance(error, HTTPError) and not isinstance(error, OSError)
    return silent or isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError))


_exponential = wait_exponential(multiplier=0.5, max=8) + wait_random(0, 0.25)


def _wait(state: RetryCallState) -> float:
    """Longer each time, or as long as the server asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), _LONGEST_WAIT) if asked.isdigit() else _exponential(state)


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0.0
    _LOG.warning("%s; trying again in %.1f s", _without_tokens(" ".join(str(error).split())[:200]), seconds)


def _without_tokens(text: str) -> str:
    return _TOKEN.sub("***", text)


def _is_what_it_is_called(blob: Path) -> bool:
    """Whether a file of the cache, which has the hash that the server told for its name, has that hash."""
    if _SHA256.fullmatch(blob.name):
        return digest(blob, "sha256") == blob.name
    if _GIT_SHA1.fullmatch(blob.name):
        return digest(blob, "sha1", f"blob {blob.stat().st_size}\0".encode()) == blob.name
    return True
