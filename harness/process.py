"""The process in which jobs run, started and watched by `harness.supervisor`.

Jobs come in on standard input and messages go out on what was standard output, as pickles behind their length. Whatever
a model prints goes to standard error, which the supervisor reads and logs at the level "debug". The end of standard
input is the end of whoever started the process, and ends it at once, whatever it is doing.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import sys
import threading
from typing import Any, BinaryIO

_LENGTH = struct.Struct("!Q")


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message.

    Raises:
        OSError: There is nobody to read it.
    """
    packed = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(packed)) + packed)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read a message.

    Raises:
        EOFError: There is none, or not all of it, and there will be no more.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    packed = stream.read(length)
    if len(packed) < length:
        raise EOFError
    return pickle.loads(packed)


def main() -> None:
    """Run jobs until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, jobs), daemon=True).start()

    from harness.errors import UsageError
    from harness.jobs import Outcome
    from harness.plugins import import_modules
    from harness.records import Record
    from harness.worker import run, settle_process

    settle_process()
    send(answers, ("ready", None))
    while True:
        job = jobs.get()
        try:
            import_modules(job.imports, job.folder)
        except UsageError as error:
            record = Record(model=job.model, **job.versions, stage="worker", error=str(error))
            send(answers, ("done", Outcome(job.model, record)))
            continue
        send(answers, ("done", run(job, lambda record: send(answers, ("progress", record)))))


def _read(stream: BinaryIO, jobs: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            jobs.put(receive(stream))
    except EOFError:
        os._exit(0)
