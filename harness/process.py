"""The process in which jobs run, started and watched by `harness.supervisor`.

Jobs come in on standard input and messages go out on what was standard output, as JSON behind its length. A message
says which process sent it and of which job it is: what a copy of the process says that a model made is not taken for an
answer, and neither is what comes too late. Whatever a model prints goes to standard error, which the supervisor reads
and logs at the level "debug". The end of standard input is the end of whoever started the process, and ends it and
whatever models started at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

import psutil

from torchorbit.errors import ArgumentError

if TYPE_CHECKING:
    from harness.jobs import Job

_LENGTH = struct.Struct("!Q")
MARK = "TORCHORBIT_PROCESS"
"""The variable in the environment of a process for models that tells what started in it."""

_LARGEST_MESSAGE = 2**24
"""In bytes. A record has less than a thousandth of it."""


def send(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write a message.

    Raises:
        OSError: There is nobody to read it.
    """
    packed = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(packed)) + packed)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Read a message.

    Raises:
        EOFError: There is none, or not all of it, and there will be no more.
        ArgumentError: What came is no message.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    if length > _LARGEST_MESSAGE:
        raise ArgumentError(f"a message of {length} bytes, expected {_LARGEST_MESSAGE} at most")
    packed = stream.read(length)
    if len(packed) < length:
        raise EOFError
    try:
        message = json.loads(packed)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"no JSON where a message was expected: {error}") from None
    if not isinstance(message, dict):
        raise ArgumentError(f"a JSON {type(message).__name__} where a message was expected")
    return message


def kill_marked(mark: str) -> None:
    """End the processes that have a mark in their environment, which they got from the one that started them.

    Args:
        mark: Value of the variable `MARK`.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()


def main() -> None:
    """Run jobs until there are no more."""
    mark = os.environ[MARK]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # A copy of this process has no part in the conversation.
    os.register_at_fork(after_in_child=lambda: os.dup2(nowhere, answers.fileno(), inheritable=False))
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs, mark), daemon=True).start()

    from harness.footprint import Footprint
    from harness.jobs import Job
    from harness.plugins import import_modules
    from harness.worker import settle_process

    settle_process()
    myself = os.getpid()
    _Answer(answers, myself, 0)("ready")
    before = None
    imported: tuple[str, ...] | None = None
    while True:
        message = jobs.get()
        job = Job.from_line(message["job"])
        answer = _Answer(answers, myself, message["number"])
        try:
            import_modules(job.imports, job.folder)
            if before is None or job.imports != imported:
                before, imported = Footprint(), job.imports
        except Exception as error:
            _refuse(job, error, answer)
            continue
        _run(job, before, answer)


class _Answer:
    """Sends what is known of a job. In a copy of the process it ends that instead.

    Args:
        stream: Where answers go.
        process: The process that has the job.
        number: Of the job.
    """

    def __init__(self, stream: BinaryIO, process: int, number: int) -> None:
        self._stream = stream
        self._process = process
        self._number = number

    def __call__(self, kind: str, content: str = "") -> None:
        """Send something of a kind."""
        if os.getpid() != self._process:
            os._exit(0)
        send(self._stream, {"process": self._process, "number": self._number, "kind": kind, "content": content})


def _run(job: Job, before: Any, answer: _Answer) -> None:
    from harness.worker import run

    try:
        outcome = run(job, lambda record: answer("progress", record.to_line()))
        answer("done", replace(outcome, changed=tuple(before.changes())).to_line())
    except Exception as error:
        # What a model left in its record, or in the process, can be none of what is sent.
        _refuse(job, error, answer)


def _refuse(job: Job, error: BaseException, answer: _Answer) -> None:
    from harness.errors import UsageError, one_line
    from harness.jobs import Outcome
    from harness.records import Record

    record = Record(model=job.model, **job.versions, stage="worker")
    record.error = one_line(error, named=not isinstance(error, UsageError))
    answer("done", Outcome(job.model, record).to_line())


def _read(stream: BinaryIO, jobs: queue.SimpleQueue[Any], mark: str) -> None:
    try:
        while True:
            jobs.put(receive(stream))
    except EOFError:
        kill_marked(mark)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(0)
