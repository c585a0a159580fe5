"""The Hugging Face Hub, or another server that speaks its language."""

from __future__ import annotations

import base64
import functools
import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

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
from zoo.answers import LONGEST_ANSWER, Rules, is_secret_safe, origin, without_xet
from zoo.cards import LIBRARY
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
from zoo.manifest import MANIFEST_FILE, MOST_BYTES
from zoo.texts import one_line

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_ATTEMPTS = 4
"""The client itself asks some questions six times before it gives up, and others once."""

_LONGEST_QUESTION = 600.0
"""Seconds that an operation goes on asking, where it needs more than one answer."""

_MOST_LISTED = 100_000
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{4,}|(?i:bearer)\s+\S+")
_IS_TOKEN = re.compile(r"[\x21-\x7e]+")
_DEFAULT = "https://huggingface.co"
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
        given = (endpoint or constants.ENDPOINT).rstrip("/")
        place = origin(given)
        parts = urlsplit(given)
        self._endpoint = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self.address = self._endpoint if endpoint else None
        own = {origin(address) for address in (constants.ENDPOINT, _DEFAULT)}
        self._origins = frozenset(own if place in own else {place})
        self._is_foreign = place not in own
        self._basic = None
        if parts.username is not None:
            named = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._basic = "Basic " + base64.b64encode(named.encode()).decode()
        if token is not None and not _IS_TOKEN.fullmatch(token):
            raise HubError("the token is none: expected letters, digits and signs in one word; see `hf auth login`")
        if token is not None and self._basic is not None:
            raise HubError(f"{self._endpoint} is given with a password and with a token; give one of them")
        if (token is not None or self._basic is not None) and not is_secret_safe(place):
            raise HubError(
                f"{self._endpoint} is asked over plain HTTP, where everybody on the way can read a token or password; "
                "use https://, or give none"
            )
        if token is None and self._basic is None and not self._is_foreign and is_secret_safe(place):
            token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        self._token = token

    @override
    def files(self, repo: str, revision: str, repo_type: RepoType = "model") -> dict[str, RemoteFile] | None:
        check_repo(repo)
        check_revision(revision)
        rules = self._question()

        def listed() -> list[Any] | None:
            try:
                found = self._api(rules).list_repo_tree(repo, recursive=True, revision=revision, repo_type=repo_type)
                return self._some(found)
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                if isinstance(error, GatedRepoError):
                    raise
                return None

        entries = self._patiently(listed, repo)
        if entries is None:
            return None
        return {
            entry.path: self._remote_file(entry)
            for entry in entries
            if isinstance(entry, RepoFile) and _is_path(entry.path)
        }

    def _remote_file(self, entry: RepoFile) -> RemoteFile:
        sha256, git_sha1 = entry.lfs.sha256 if entry.lfs else None, entry.blob_id
        known = _is_hash(_SHA256, sha256) or (entry.lfs is None and _is_hash(_GIT_SHA1, git_sha1))
        if not known or type(entry.size) is not int or entry.size < 0:
            raise HubError(f"{self._endpoint} does not tell size and hash of {entry.path} as hubs do; try another hub")
        return RemoteFile(size=entry.size, sha256=sha256, git_sha1=git_sha1)

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
        check_branch(revision)
        rules = self._rules()
        api = self._api(rules)

        def commit() -> str:
            api.create_repo(repo, private=private, repo_type=repo_type, exist_ok=True)
            if revision != MAIN:
                api.create_branch(repo, branch=revision, repo_type=repo_type, exist_ok=True)
            with ExitStack() as open_files:
                # Made anew for every attempt, as they remember how far the last one came. What the server has it says
                # so of, and is not sent again.
                operations = [CommitOperationAdd(path, self._opened(c, open_files)) for path, c in contents.items()]
                done = api.create_commit(
                    repo, operations, commit_message=message, revision=revision, repo_type=repo_type
                )
            return str(done.oid)

        return self._commit_id(self._patiently(commit, repo))

    @override
    def resolve(self, repo: str, revision: str, repo_type: RepoType = "model") -> str:
        check_repo(repo)
        check_revision(revision)
        rules = self._question()
        info = self._patiently(
            lambda: self._api(rules).repo_info(repo, revision=revision, repo_type=repo_type), repo, revision
        )
        found = self._commit_id(info.sha)
        if is_commit_id(revision) and found != revision:
            raise HubError(f"{repo} on {self._endpoint}: commit {found} came instead of {revision}")
        return found

    def _commit_id(self, told: Any) -> str:
        if not isinstance(told, str) or not is_commit_id(told):
            raise HubError(
                f"{self._endpoint} answered with {one_line(repr(told), longest=100)} where the id of a commit is "
                "expected, 40 hexadecimal digits"
            )
        return told

    @override
    def tag(self, repo: str, name: str, commit: str, repo_type: RepoType = "model") -> None:
        check_branch(name)
        rules = self._question()
        api = self._api(rules)

        def tags() -> dict[str, str]:
            found = api.list_repo_refs(repo, repo_type=repo_type)
            return {ref.name: ref.target_commit for ref in (*found.tags, *found.branches)}

        earlier = self._patiently(tags, repo).get(name)
        if earlier == commit:
            return
        if earlier is not None:
            raise HubError(f"{repo} has a revision {name!r} already, commit {one_line(earlier)}; choose another tag")
        create = functools.partial(api.create_tag, repo, tag=name, revision=commit, repo_type=repo_type)
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
        names = list(names)
        commit, silence = None, None
        there: dict[str, RemoteFile] = {}
        if not local_files_only:
            try:
                commit = self.resolve(repo, revision)
                listed = self.files(repo, commit) or {}
                there = {name: listed[name] for name in names if name in listed}
            except UnreachableError as error:
                commit, silence = None, error
        if MANIFEST_FILE in there and there[MANIFEST_FILE].size > MOST_BYTES:
            raise HubError(
                f"{MANIFEST_FILE} of {repo} has {there[MANIFEST_FILE].size} bytes, and a manifest at most {MOST_BYTES}"
            )
        rules = self._rules(longest=max([LONGEST_ANSWER, *(file.size for file in there.values())]))
        if cache_dir is None and self._is_foreign:
            # A commit that is on one hub is not what another calls so.
            cache_dir = Path(constants.HF_HUB_CACHE).parent / "torchorbit" / "-".join(map(str, origin(self._endpoint)))
        download = functools.partial(
            snapshot_download,
            repo,
            revision=revision,
            allow_patterns=names,
            endpoint=self._endpoint,
            token=self._token or False,
            headers=rules.headers(),
            cache_dir=cache_dir,
            local_files_only=commit is None,
            library_name=LIBRARY,
        )

        def downloaded() -> Path:
            try:
                with without_xet() if self._is_foreign else nullcontext():
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
            if not os.path.lexists(path):
                continue
            blob = path.resolve()
            if name in there:
                # What it is called where it is kept, too: it is found by that later.
                hash_ = there[name].sha256 or there[name].git_sha1
                whole = (blob.name == hash_ or not path.is_symlink()) and there[name].holds(blob)
            else:
                whole = _is_what_it_is_called(blob)
            if not whole:
                self.discard(path)
                raise HubError(
                    f"{name} of {repo} is not what the server says it is: its hash is another one; try again"
                )
        return folder

    @override
    def repositories(self, owner: str | None = None) -> list[str]:
        rules = self._question()
        found = self._patiently(
            lambda: self._some(self._api(rules).list_models(filter=LIBRARY, author=owner)), owner or ""
        )
        names = []
        for model in found:
            try:
                check_repo(str(model.id))
                names.append(str(model.id))
            except HubError as error:
                _LOG.warning("%s lists what is passed over: %s", self._endpoint, one_line(error))
        return sorted(names)

    @override
    def url(self, repo: str, commit: str, repo_type: RepoType = "model") -> str:
        kind = "datasets/" if repo_type == "dataset" else ""
        return f"{self._endpoint}/{kind}{repo}/tree/{commit}"

    @override
    def discard(self, path: Path) -> None:
        """Take a file out of the cache, so that it is downloaded again."""
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _rules(self, longest: int = LONGEST_ANSWER, until: float | None = None) -> Rules:
        return Rules(self._origins, self._basic, self._is_foreign, longest, until)

    def _question(self) -> Rules:
        """The rules of an operation that only asks."""
        return self._rules(until=time.monotonic() + _LONGEST_QUESTION)

    def _api(self, rules: Rules) -> HfApi:
        """A client whose requests are by rules, which whoever uses it has to keep for as long."""
        return HfApi(endpoint=self._endpoint, token=self._token or False, library_name=LIBRARY, headers=rules.headers())

    def _some(self, found: Iterable[Any]) -> list[Any]:
        """What a server lists, if that comes to an end."""
        some = list(itertools.islice(found, _MOST_LISTED + 1))
        if len(some) > _MOST_LISTED:
            raise HubError(f"{self._endpoint} lists more than {_MOST_LISTED} things, which are the most that are read")
        return some

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
        except (LookupError, TypeError, AttributeError, AssertionError) as error:
            where = f"{repo} on {self._endpoint}" if repo else self._endpoint
            raise HubError(
                f"{where}: the answer is not one of a hub ({type(error).__name__}: {one_line(error, longest=200)})"
            ) from None

    def _reason(self, error: BaseException, repo: str, revision: str | None) -> str:
        where = f"{repo} on {self._endpoint}" if repo else self._endpoint
        if isinstance(error, RevisionNotFoundError):
            return f"{where} has no revision {revision!r}"
        if isinstance(error, GatedRepoError):
            return f"{where} wants its terms accepted in a browser, and the token of who did (--token, HF_TOKEN)"
        if isinstance(error, RepositoryNotFoundError):
            token = "the token that was given does not open it" if self._token else "no token was given"
            return f"{where} does not exist, or is private and {token} (hf auth login, --token, or HF_TOKEN)"
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return f"{where} is not in the cache, or not all of it, and the hub was not asked or did not answer"
        if isinstance(error, HfHubHTTPError):
            code = error.response.status_code
            if code in (401, 403):
                return f"{where}: not allowed (HTTP {code}); it takes a token that may (--token, HF_TOKEN)"
            said = f": {one_line(error.server_message)}" if error.server_message else ""
            return _without_tokens(
                f"{where} answered HTTP {code}{said}" + (" again and again" if _passes(error) else "")
            )
        text = one_line(error) or type(error).__name__
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
    return float(asked) if asked else _exponential(state)


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0.0
    _LOG.warning("%s; trying again in %.1f s", _without_tokens(one_line(error, longest=200)), seconds)


def _is_hash(form: re.Pattern[str], told: object) -> bool:
    return isinstance(told, str) and form.fullmatch(told) is not None


def _is_path(told: object) -> bool:
    """Whether that is the name of a file; what is called otherwise is nobody's business here."""
    try:
        check_path(str(told))
    except HubError:
        return False
    return isinstance(told, str)


def _without_tokens(text: str) -> str:
    return _TOKEN.sub("***", text)


def _is_what_it_is_called(blob: Path) -> bool:
    """Whether a file of the cache, which has the hash that the server told for its name, has that hash."""
    if _SHA256.fullmatch(blob.name):
        return digest(blob, "sha256") == blob.name
    if _GIT_SHA1.fullmatch(blob.name):
        return digest(blob, "sha1", f"blob {blob.stat().st_size}\0".encode()) == blob.name
    return True
