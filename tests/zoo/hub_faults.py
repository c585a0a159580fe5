"""What goes wrong between a client and a hub, on demand; and a record of every request."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONTROL = "/__control__"


@dataclass
class Request:
    """A request, and what became of it.

    Attributes:
        method: GET, PUT ...
        path: Its path, unquoted, with what follows the question mark.
        headers: Its headers, by their names in lower case, without the token.
        anonymous: Whether it came without a token.
        status: What was answered; None if nothing was.
        received: How many bytes its body brought.
        sent: How many bytes the body of the answer had.
        fault: What was done to it, if anything was.
    """

    method: str
    path: str
    headers: dict[str, str]
    anonymous: bool
    status: int | None = None
    received: int = 0
    sent: int = 0
    fault: str | None = None


@dataclass
class Fault:
    """Something that goes wrong with the next requests that match.

    Attributes:
        kind: `status` answers with it; `cut_upload` and `cut_download` close the connection in the middle of a body;
            `lose_answer` does what was asked, and closes the connection instead of saying so; `corrupt` changes a byte
            of what is sent; `headers` replaces headers of the answer; `slow` waits before anything is done; `answer`
            answers with other content; `endless` with that again and again; `drip` begins to answer, and goes on with a
            byte of a header now and then.
        method: A regular expression for all of the method.
        path: A regular expression for some of the path and the query.
        times: How many requests; None for all.
        status: The status.
        headers: Headers of the answer.
        after: How many bytes go through before the cut.
        reset: Whether the client is told that the connection was reset, not that it was closed.
        seconds: How long, or how long between one and the next.
        content: Bytes of the answer, as text in latin-1.
    """

    kind: Literal[
        "status", "cut_upload", "cut_download", "lose_answer", "corrupt", "headers", "slow", "answer", "endless", "drip"
    ]
    method: str = ".*"
    path: str = ""
    times: int | None = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    reset: bool = False
    seconds: float = 0.0
    content: str = ""

    def matches(self, request: Request) -> bool:
        wanted = re.fullmatch(self.method, request.method) and re.search(self.path, request.path)
        return self.times != 0 and wanted is not None


class Connections:
    """The connections that are open, by the addresses of both ends: an application is not given them."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, Any], asyncio.Transport] = {}

    def protocol(self) -> type[H11Protocol]:
        """The protocol that tells about its connections."""
        connections = self._open

        class Telling(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                self._ends = (self.client, self.server)
                connections[self._ends] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                connections.pop(self._ends, None)
                super().connection_lost(exc)

        return Telling

    def is_open(self, scope: Scope) -> bool:
        """Whether somebody still waits for the answer to a request."""
        return (scope["client"], scope["server"]) in self._open

    def write(self, scope: Scope, content: bytes) -> None:
        """Send bytes that need not be an answer."""
        self._open[scope["client"], scope["server"]].write(content)

    async def close(self, scope: Scope, reset: bool) -> None:
        """Close the connection of a request, in the middle of whatever it is doing."""
        transport = self._open[scope["client"], scope["server"]]
        while transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.001)
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
        # It is lost for the server, too, only once the loop has come round.
        while (scope["client"], scope["server"]) in self._open:
            await asyncio.sleep(0)


class _CutError(Exception):
    """The connection was closed on purpose."""


class Faults:
    """Stands before an application, writes down what passes, and disturbs it.

    Args:
        app: The application.
        connections: Those that it is reached through.
    """

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self.app = app
        self.connections = connections
        self.requests: list[Request] = []
        self.faults: list[Fault] = []

    def report(self) -> list[dict[str, Any]]:
        """All requests since the last clearing."""
        return [asdict(request) for request in self.requests]

    def clear(self) -> None:
        """Forget all requests, and all faults that are still to come."""
        self.requests.clear()
        self.faults.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        anonymous = headers.pop("authorization", None) is None
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        request = Request(scope["method"], unquote(scope["raw_path"].decode() + query), headers, anonymous)
        self.requests.append(request)
        fault = next((one for one in self.faults if one.matches(request)), None)
        if fault is not None:
            request.fault = fault.kind
            fault.times = None if fault.times is None else fault.times - 1
        passing = _Passing(self, scope, receive, send, request, fault)
        try:
            if fault is not None and fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
            if fault is not None and fault.kind == "status":
                await passing.drain()
                answer = JSONResponse({"error": f"told to answer {fault.status}"}, fault.status, fault.headers)
                await answer(scope, receive, passing.send)
            elif fault is not None and fault.kind in ("answer", "endless", "drip"):
                await passing.drain()
                await self._instead(fault, scope, receive, passing)
            else:
                await self.app(scope, passing.receive, passing.send)
        except (ClientDisconnect, _CutError):
            # Of a client that went away, too, there is no more to say than what the record has.
            pass

    async def _instead(self, fault: Fault, scope: Scope, receive: Receive, passing: _Passing) -> None:
        """Answer with what a fault says."""
        content = fault.content.encode("latin-1")
        if fault.kind == "answer":
            await Response(content, fault.status, fault.headers)(scope, receive, passing.send)
            return

        async def again() -> AsyncIterator[bytes]:
            while self.connections.is_open(scope):
                yield content
                await asyncio.sleep(fault.seconds)

        if fault.kind == "endless":
            await StreamingResponse(again(), fault.status, fault.headers)(scope, receive, passing.send)
            return
        self.connections.write(scope, b"HTTP/1.1 200 OK\r\nX-Drip: ")
        async for byte in again():
            self.connections.write(scope, byte)
        raise _CutError


class _Passing:
    """One request and its answer, on their way through."""

    def __init__(
        self, faults: Faults, scope: Scope, receive: Receive, send: Send, request: Request, fault: Fault | None
    ) -> None:
        self.faults, self.scope, self.request, self.fault = faults, scope, request, fault
        self._receive, self._send = receive, send
        self._gone = False

    async def drain(self) -> None:
        """Read a body to its end, as a server does that answers with an error."""
        while (await self.receive()).get("more_body"):
            pass

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        body = message.get("body", b"")
        if self._is("cut_upload"):
            assert self.fault is not None
            left = self.fault.after - self.request.received
            if len(body) >= left:
                self.request.received += left
                await self._cut()
        self.request.received += len(body)
        return message

    async def send(self, message: Message) -> None:
        fault = self.fault
        if self._gone:  # the framework wants to answer that something went wrong
            return
        if fault is None:
            pass
        elif self._is("lose_answer"):
            await self._cut()
        elif message["type"] == "http.response.start":
            if self._is("headers"):
                replaced = {name.lower().encode(): value.encode() for name, value in fault.headers.items()}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in replaced]
                message = {**message, "headers": [*kept, *replaced.items()]}
        elif self._is("corrupt") and message.get("body") and not self.request.sent:
            first, *others = message["body"]
            message = {**message, "body": bytes([first ^ 0xFF, *others])}
        elif self._is("cut_download"):
            left = fault.after - self.request.sent
            if len(message.get("body", b"")) >= left:
                await self._pass({**message, "body": message["body"][:left], "more_body": True})
                await self._cut()
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.request.status = message["status"]
        elif self.request.method != "HEAD":
            self.request.sent += len(message.get("body", b""))
        await self._send(message)

    def _is(self, kind: str) -> bool:
        return self.fault is not None and self.fault.kind == kind

    async def _cut(self) -> None:
        assert self.fault is not None
        self._gone = True
        await self.faults.connections.close(self.scope, self.fault.reset)
        raise _CutError
