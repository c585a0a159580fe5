"""What is sent to a server of a hub, and what may come back.

The client of the hub believes what a server says: it calls files as headers of answers tell it, reads an answer to its
end however long that is, waits for as long as it is asked to, and takes tokens along. Anybody may run a server. So
hooks of the client look at every request that the zoo has it make, and at every answer before the client does. A
header, which is taken away before anything is sent, says by which rules.
"""

from __future__ import annotations

import email.utils
import importlib
import ipaddress
import logging
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import _http as client_http

from torchorbit.errors import HubError
from zoo.hubs import is_commit_id
from zoo.texts import one_line

_LOG = logging.getLogger(__name__)

# The client beneath that of the hub: it is httpx, or what followed it.
_beneath = importlib.import_module(HTTPError.__module__.partition(".")[0])

Origin = tuple[str, str, int]

LONGEST_ANSWER = 64 * 2**20
LONGEST_WAIT = 60
"""Seconds that are waited because a server asks for it."""

PATIENCE = 120.0
"""Seconds for an answer to begin, and for what comes of it to get faster than `SLOWEST`."""

SLOWEST = 16 * 2**10
"""Bytes in a second."""

_HEADER = "X-Torchorbit-Rules"
_EXTENSION = "torchorbit"
_ETAG = re.compile(r'(W/)?"?[0-9a-f]{40}([0-9a-f]{24})?"?')
_PINNED = re.compile(r"/resolve/([0-9a-f]{40})/")
_PORTS = {"http": 80, "https": 443}


@dataclass(eq=False)
class Rules:
    """What holds for the requests of one operation.

    Attributes:
        origins: those that what opens the hub goes to; none for requests that carry nothing of that kind.
        basic: what opens the hub where that is no token, as the header has it.
        foreign: whether the server is another one than the user's own.
        longest: bytes that an answer has at most.
        until: when the last request is sent, on the monotonic clock.
    """

    origins: frozenset[Origin] = frozenset()
    basic: str | None = None
    foreign: bool = True
    longest: int = LONGEST_ANSWER
    until: float | None = None
    _key: str = field(default_factory=secrets.token_hex)

    def headers(self) -> dict[str, str]:
        """What the client is to be given, so that its requests are those of the operation."""
        _install()
        _RULES[self._key] = self
        return {_HEADER: self._key}


_RULES: WeakValueDictionary[str, Rules] = WeakValueDictionary()
_OF_UPLOADS = Rules()
"""For what the client sends without any header of ours: the bytes of files."""


def origin(url: str) -> Origin:
    """Scheme, host and port of an address.

    Raises:
        HubError: it is no address of a server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise HubError("the hub's address is not one of a server; expected https://HOST or https://HOST:PORT")
    return parts.scheme, parts.hostname.lower(), port or _PORTS[parts.scheme]


def is_secret_safe(place: Origin) -> bool:
    """Whether nobody on the way to a server can read what is sent."""
    scheme, host, _ = place
    if scheme == "https" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_LOCK = threading.Lock()
_without = 0


@contextmanager
def without_xet() -> Iterator[None]:
    """Have the client take files by HTTP alone, so that all of it passes here."""
    global _without, _xet
    with _LOCK:
        if not _without:
            _xet = constants.HF_HUB_DISABLE_XET
        _without += 1
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        with _LOCK:
            _without -= 1
            if not _without:
                constants.HF_HUB_DISABLE_XET = _xet


_xet = constants.HF_HUB_DISABLE_XET


def _install() -> None:
    """Have the client of the hub made with the hooks, whoever makes it."""
    make = client_http._GLOBAL_CLIENT_FACTORY
    if getattr(make, "_of_torchorbit", False):
        return

    def made() -> Any:
        client = make()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [_on_request, *hooks.get("request", [])],
            "response": [_on_response, *hooks.get("response", [])],
        }
        return client

    made._of_torchorbit = True  # type: ignore[attr-defined]
    set_client_factory(made)


def _on_request(request: Any) -> None:
    key = request.headers.pop(_HEADER, None)
    rules = request.extensions.get(_EXTENSION) if key is None else _RULES.get(key)
    if rules is None:
        if "hf_hub/" in request.headers.get("user-agent", ""):
            return  # somebody else's
        rules = _OF_UPLOADS
    place = origin(str(request.url))
    if rules.until is not None and time.monotonic() > rules.until:
        raise HubError(f"{_named(request)} goes on answering without coming to an end; try another hub")
    if place not in rules.origins:
        request.headers.pop("Authorization", None)
    elif rules.basic is not None:
        request.headers["Authorization"] = rules.basic
    if "Authorization" in request.headers and not is_secret_safe(place):
        raise HubError(f"{_named(request)} is not asked with a token over plain HTTP; use https://")
    request.headers["Accept-Encoding"] = "identity"  # so that its length is the one that counts
    waits = request.extensions.get("timeout") or {}
    request.extensions = {
        **request.extensions,
        _EXTENSION: rules,
        "timeout": {kind: waits.get(kind) or PATIENCE for kind in ("connect", "read", "write", "pool")},
        "trace": _Beginning(request, place).trace,
    }


def _on_response(response: Any) -> None:
    rules = response.request.extensions.get(_EXTENSION)
    if rules is None:
        return
    headers, name = response.headers, _named(response.request)
    _check_names(response, name)
    if rules.foreign:
        headers.pop("X-Xet-Hash", None)
    for warning in headers.get_list("X-HF-Warning"):
        _LOG.warning("%s says: %s", name, one_line(warning))
    headers.pop("X-HF-Warning", None)
    wait = _seconds(headers.pop("Retry-After", ""))
    if wait is not None:
        headers["Retry-After"] = str(wait)
    headers.pop("RateLimit", None)  # the same in other words, that may be any number of seconds
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise HubError(f"{name} answered with compressed data, which it was asked not to")
    length = headers.get("Content-Length", "")
    if response.request.method != "HEAD":
        if length.isdecimal() and int(length) > rules.longest:
            raise HubError(f"{name} answered with {int(length)} bytes, and {rules.longest} are the most that is read")
        response.stream = _Bounded(response.stream, rules.longest, name)


def _check_names(response: Any, name: str) -> None:
    """Of what the client makes names of files: hashes and ids of commits, and nothing else."""
    headers = response.headers
    commit = headers.get("X-Repo-Commit")
    pinned = _PINNED.search(response.request.url.path)
    if commit is not None and (not is_commit_id(commit) or (pinned and pinned[1] != commit)):
        raise HubError(f"{name} answered with {one_line(commit, longest=100)!r} where the id of a commit is expected")
    if response.request.method != "HEAD":
        return
    for header in ("X-Linked-Etag", "ETag"):
        told = headers.get(header)
        if told is None or _ETAG.fullmatch(told):
            continue
        if header == "ETag" and (response.has_redirect_location or "X-Linked-Etag" in headers):
            headers.pop(header)  # of the redirect, and not of the file
        elif response.status_code < 400:
            raise HubError(
                f"{name} answered with {one_line(told, longest=100)!r} where the hash of a file is expected, "
                "40 or 64 hexadecimal digits"
            )


def _named(request: Any) -> str:
    scheme, host, port = origin(str(request.url))
    return f"{scheme}://{host}" + (f":{port}" if port != _PORTS[scheme] else "")


def _seconds(asked: str) -> int | None:
    """How long to wait, where a server says so in any of the ways that there are."""
    asked = asked.strip()
    if asked.isascii() and asked.isdecimal():
        return LONGEST_WAIT if len(asked) > 9 else min(int(asked), LONGEST_WAIT)
    with suppress(ValueError, TypeError, OverflowError):
        when = email.utils.parsedate_to_datetime(asked)
        now = datetime.now(timezone.utc if when.tzinfo else None)
        return int(min(max((when - now).total_seconds(), 0), LONGEST_WAIT))
    return None


class _Beginning:
    """Sees that an answer begins in time, however its first bytes come.

    The client beneath has a limit for every read, and none for all of them: a server that sends one byte after the
    other would be listened to for a day. Its connection is ended instead.
    """

    _open: ClassVar[WeakKeyDictionary[Any, Origin]] = WeakKeyDictionary()

    def __init__(self, request: Any, place: Origin) -> None:
        self._request = request
        self._place = place
        self._own: Any = None
        self._timer: threading.Timer | None = None
        self._is_late = False

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What the client beneath tells of a request, as it comes along."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._own = info["return_value"]
            self._open[self._own] = self._place
        elif event.endswith("receive_response_headers.started"):
            self._timer = threading.Timer(PATIENCE, self._end)
            self._timer.daemon = True
            self._timer.start()
        elif ".receive_response_headers." in event and self._timer is not None:
            self._timer.cancel()
            if self._is_late:
                raise HubError(f"{_named(self._request)} did not begin to answer within {PATIENCE:.0f} s")

    def _end(self) -> None:
        self._is_late = True
        # Where the connection was there before, one of these it is; the others are asked again.
        streams = [self._own]
        if self._own is None:
            streams = [stream for stream, place in list(self._open.items()) if place == self._place]
        for stream in streams:
            with suppress(OSError, AttributeError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _Bounded(_beneath.SyncByteStream):  # type: ignore[name-defined]
    """A body of which not more is read than there may be, and not for longer than it may take."""

    def __init__(self, stream: Any, longest: int, name: str) -> None:
        self._stream = stream
        self._longest = longest
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        started, read = time.monotonic(), 0
        for chunk in self._stream:
            read += len(chunk)
            if read > self._longest:
                raise HubError(f"{self._name} answered with more than the {self._longest} bytes that are read at most")
            seconds = time.monotonic() - started
            if seconds > PATIENCE + read / SLOWEST:
                raise HubError(f"{self._name} answered with {read} bytes in {seconds:.0f} s, which is too slow")
            yield chunk

    def close(self) -> None:
        self._stream.close()
