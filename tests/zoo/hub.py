"""A hub in a process of its own, as a test sees it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from tests.zoo.hub_faults import CONTROL, Fault, Request

_PROJECT = Path(__file__).parents[2]

# Not through a proxy: it is on this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Hub:
    """A running hub, what goes wrong there, and what it was asked for.

    Paths and methods are regular expressions: all of the method has to match, and some part of the path, which is
    followed by the query, unquoted. Large files come from and go to `/NAMESPACE/NAME/SHA256?...`, with `/datasets` before
    it where they are those of a dataset; where they come from, the query ends in their name.

    Attributes:
        endpoint: Its address.
        user: Whose tokens `token` and `read_token` are.
        token: Lets `user` do everything.
        read_token: Lets `user` read.
        other_user: Somebody else.
        other_token: Lets `other_user` do everything.
    """

    user = "alice"
    token = "hf_alice"
    read_token = "hf_alice_reads"
    other_user = "bob"
    other_token = "hf_bob"

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def api(self, token: str | None = None) -> HfApi:
        """A client with a token: the owner's if none is given."""
        return HfApi(endpoint=self.endpoint, token=token or self.token)

    def anonymous(self) -> HfApi:
        """A client without a token."""
        return HfApi(endpoint=self.endpoint, token=False)

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to use this hub.

        Args:
            home: Where the client keeps what it downloads.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    # What goes wrong

    def fail(
        self, status: int, *, path: str = "", method: str = ".*", times: int | None = 1, retry_after: object = None
    ) -> None:
        """Answer the next requests with a status, and do nothing."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._add(Fault("status", method, path, times, status=status, headers=headers))

    def cut_upload(
        self, after: int, *, path: str = "", method: str = "PUT", times: int | None = 1, reset: bool = False
    ) -> None:
        """Close the connection when so many bytes of the next uploads have come."""
        self._add(Fault("cut_upload", method, path, times, after=after, reset=reset))

    def cut_download(
        self, after: int, *, path: str = "", method: str = "GET", times: int | None = 1, reset: bool = False
    ) -> None:
        """Close the connection when so many bytes of the next downloads have gone."""
        self._add(Fault("cut_download", method, path, times, after=after, reset=reset))

    def lose_answer(self, *, path: str = "", method: str = ".*", times: int | None = 1) -> None:
        """Do what the next requests ask for, and close the connection instead of answering."""
        self._add(Fault("lose_answer", method, path, times))

    def corrupt(self, *, path: str = "", method: str = "GET", times: int | None = 1) -> None:
        """Change the first byte of the next answers."""
        self._add(Fault("corrupt", method, path, times))

    def replace_headers(
        self, headers: dict[str, str], *, path: str = "", method: str = ".*", times: int | None = 1
    ) -> None:
        """Replace headers of the next answers."""
        self._add(Fault("headers", method, path, times, headers=headers))

    def answer(
        self,
        content: bytes,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        path: str = "",
        method: str = ".*",
        times: int | None = None,
    ) -> None:
        """Answer the next requests with this, and do nothing."""
        more = {"status": status, "headers": headers or {}, "content": content.decode("latin-1")}
        self._add(Fault("answer", method, path, times, **more))

    def go_on(self, content: bytes, seconds: float = 0.0, *, path: str = "", method: str = "GET") -> None:
        """Answer all requests with this, again and again, and wait in between."""
        fault = Fault("endless", method, path, None, status=200, seconds=seconds, content=content.decode("latin-1"))
        self._add(fault)

    def drip(self, seconds: float, *, path: str = "", method: str = ".*") -> None:
        """Begin to answer all requests, and go on with one byte after the other of a header."""
        self._add(Fault("drip", method, path, None, seconds=seconds, content="x"))

    def slow(self, seconds: float, *, path: str = "", method: str = ".*", times: int | None = 1) -> None:
        """Wait before anything is done about the next requests."""
        self._add(Fault("slow", method, path, times, seconds=seconds))

    def mend(self) -> None:
        """Forget what was still to go wrong."""
        self._tell("mend")

    # What it was asked for

    def requests(self, *, path: str = "", method: str = ".*") -> list[Request]:
        """The requests that came since `forget` was last called, in their order."""
        with _OPENER.open(self.endpoint + CONTROL) as answer:
            found = [Request(**record) for record in json.load(answer)]
        wanted = Fault("slow", method, path, times=None)
        return [request for request in found if wanted.matches(request)]

    def uploaded(self) -> int:
        """How many bytes of files came, by any way, since `forget` was last called."""
        content = self.requests(method="PUT") + self.requests(method="POST", path="/commit/")
        return sum(request.received for request in content)

    def forget(self) -> None:
        """Forget all requests, and what was still to go wrong."""
        self._tell("clear")

    def empty(self) -> None:
        """Remove everything that was ever stored, and forget as `forget` does."""
        self._tell("empty")

    def _add(self, fault: Fault) -> None:
        self._tell("fault", fault=asdict(fault))

    def _tell(self, what: str, **more: Any) -> None:
        body = json.dumps({"do": what, **more}).encode()
        request = urllib.request.Request(self.endpoint + CONTROL, body, {"Content-Type": "application/json"})
        _OPENER.open(request).close()


@contextmanager
def running_hub(root: Path, port: int = 0) -> Iterator[Hub]:
    """Start a hub, and stop it at the end.

    Args:
        root: Where it keeps everything; what is there already is served.
        port: Where it listens; at a free port if 0.
    """
    command = [sys.executable, "-m", "tests.zoo.hub_server", "--root", str(root), "--port", str(port), "--with-parent"]
    with subprocess.Popen(command, cwd=_PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline().strip()
            assert said.isdigit(), "the hub did not start: what it says of that is on standard error"
            yield Hub(f"http://127.0.0.1:{said}")
        finally:
            # There is nothing that it would have to finish: what it answered for is on disk.
            process.kill()
