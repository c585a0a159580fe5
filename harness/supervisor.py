"""What joblib runs: each of its workers has a process of its own for the models, and watches it.

A model that hangs, takes too much memory or crashes is ended together with that process, and becomes a record of what
went wrong. The worker itself lives on, and so do the jobs of the others, on whatever backend they run.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import IO, Any

import psutil

from harness.jobs import Job, Outcome
from harness.limits import memory_budget
from harness.process import MARK, kill_marked, receive, send
from harness.records import Record

_LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
"""How often the memory of a process is looked at."""

_START_SECONDS = 300
"""How long a process may take to import torch and timm."""

_EXIT_SECONDS = 10
"""How long a process may take to end that does not answer any more."""

_LEFT_OVER_BYTES = 2**30
"""A process that holds on to so much more than it started with after a job is replaced by a new one."""

_NO_MESSAGE = "it wrote something else where its process answers"

_SENT_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a process and need not come from what runs in it."""

_PAUSE_SECONDS = 0.1

_WATCH_SECONDS = 0.2
"""How often a worker looks whether the sweep that started it is still there."""


def run(job: Job) -> Outcome:
    """Find out about one model, in a process that may die of it.

    Args:
        job: The model, and the limits.

    Returns:
        The outcome. Whatever goes wrong is in its record and not raised.
    """
    if not job.model:
        time.sleep(_PAUSE_SECONDS)
        return Outcome("")
    started = time.perf_counter()
    if job.memory_bytes is None:
        budget = memory_budget()
        job = replace(job, memory_bytes=budget, memory_total=budget)
    mine: _Process | None = getattr(_local, "process", None)
    fresh = mine is None or not mine.alive
    outcome, mine = _run_in(mine, job)
    if isinstance(outcome, _Failure) and not fresh:
        # Whatever the process did before may have been the reason.
        outcome, mine = _run_in(None, job)
    if isinstance(outcome, _Failure) and outcome.killed:
        # Somebody else may have done that.
        outcome, mine = _run_in(None, job)
    _local.process = mine
    if isinstance(outcome, _Failure):
        outcome = _outcome_of(outcome, job)
    return replace(outcome, busy_seconds=time.perf_counter() - started)


def end_with(parent: int) -> None:
    """End this worker, and with it its process for models, as soon as its parent is no more.

    Args:
        parent: The process that started the worker.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        # The process for models ends with its standard input.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class _Failure:
    """What a process died of, and how far it had come.

    Attributes:
        error: In words.
        record: What was known by then.
        seconds: How long it took.
        peak_bytes: The most memory that it was seen to use.
        too_large: It was ended because that was too much.
        killed: A signal ended it that others send.
    """

    error: str
    record: Record | None
    seconds: float
    peak_bytes: int
    too_large: bool = False
    killed: bool = False


_local = threading.local()


def _run_in(process: _Process | None, job: Job) -> tuple[Outcome | _Failure, _Process | None]:
    """Run a job in a process, or in a new one; a process that is worn out does not come back."""
    if process is None or not process.alive:
        try:
            process = _Process()
        except _NotStartedError as error:
            return _Failure(str(error), None, 0.0, 0, killed=error.killed), None
    outcome = process.run(job)
    if not isinstance(outcome, _Failure) and outcome.changed:
        _LOG.debug("%s changed for those after it: %s", job.model, ", ".join(outcome.changed))
    if isinstance(outcome, _Failure) or outcome.changed or process.worn:
        process.end()
        return outcome, None
    return outcome, process


def _outcome_of(failure: _Failure, job: Job) -> Outcome:
    """The record of a model that its process did not survive."""
    if failure.too_large and job.memory_total is not None and (job.memory_bytes or 0) < job.memory_total:
        # It can have more, once others are done.
        return Outcome(job.model, needed_bytes=min(2 * (job.memory_bytes or 0), job.memory_total))
    record = failure.record or Record(model=job.model, **job.versions, stage="worker")
    record.error = failure.error
    if failure.killed:
        # It says nothing of the model.
        record.error += f", twice, in the stage {record.stage!r}"
        record.stage = "worker"
    record.seconds = round(failure.seconds, 3)
    record.peak_rss_mb = round(failure.peak_bytes / 2**20, 1)
    return Outcome(job.model, record)


class _NotStartedError(Exception):
    """A process for models could not be started.

    Args:
        reason: In words.
        killed: A signal ended it that others send.
    """

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class _Process:
    """A process for models.

    Raises:
        _NotStartedError: It could not be started.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _program()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Its own session: Ctrl-C is meant for the sweep, which ends it.
            start_new_session=True,
            env={**os.environ, MARK: self._mark},
        )
        atexit.register(self.end)
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._last_words = ""
        self._jobs = 0
        self._garbled = False
        listening = threading.Thread(target=self._overhear, args=(self._popen.stderr,), daemon=True)
        listening.start()
        threading.Thread(target=self._listen, daemon=True).start()
        self._memory = psutil.Process(self._popen.pid)
        try:
            message = self._messages.get(timeout=_START_SECONDS)
        except queue.Empty:
            self.end()
            raise _NotStartedError(f"the process for models did not start within {_START_SECONDS} seconds") from None
        if message is None:
            code = self._exit_code()
            why = _why(code)
            self.end()
            listening.join(_EXIT_SECONDS)
            said = f": {self._last_words}" if self._last_words else ""
            raise _NotStartedError(
                f"the process for models did not start, it ended{why}{said}", killed=_is_killed(code)
            )
        self._fresh_bytes = self._rss()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def worn(self) -> bool:
        """Whether it holds on to memory of jobs that are done."""
        return self._rss() > self._fresh_bytes + _LEFT_OVER_BYTES

    def run(self, job: Job) -> Outcome | _Failure:
        """Run a job, and end the process if it breaks a limit."""
        started = time.perf_counter()
        record: Record | None = None
        peak = 0
        assert self._popen.stdin is not None
        # If it is dead, that will be noticed at once.
        self._jobs += 1
        with contextlib.suppress(OSError):
            send(self._popen.stdin, {"number": self._jobs, "job": job.to_line()})  # type: ignore[arg-type]
        dead = False
        while True:
            try:
                message = self._messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if dead:
                    # What it started may hold the pipe open.
                    return self._death(record, time.perf_counter() - started, peak)
                dead = not self.alive
                seconds = time.perf_counter() - started
                now = self._rss()
                peak = max(peak, now)
                if job.memory_bytes is not None and now > job.memory_bytes:
                    error = f"it took more than {job.memory_bytes / 2**30:.1f} GiB of memory, which is the limit"
                    return _Failure(error, record, seconds, peak, too_large=True)
                if job.timeout is not None and seconds > job.timeout:
                    return _Failure(f"it took more than {job.timeout:g} seconds", record, seconds, peak)
                continue
            if message is None:
                return self._death(record, time.perf_counter() - started, peak)
            if message.get("process") != self._popen.pid or message.get("number") != self._jobs:
                continue
            try:
                if message.get("kind") == "done":
                    outcome = Outcome.from_line(message["content"])
                    return replace(outcome, process=f"{socket.gethostname()}:{self._popen.pid}")
                record = Record.from_line(message["content"])
            except (KeyError, TypeError, ValueError):
                return _Failure(_NO_MESSAGE, record, time.perf_counter() - started, peak)

    def _death(self, record: Record | None, seconds: float, peak: int) -> _Failure:
        """What there is to say when nothing comes any more."""
        if self._garbled:
            return _Failure(_NO_MESSAGE, record, seconds, peak)
        code = self._exit_code()
        error = "its process stopped answering" if code is None else f"its process died{_why(code)}"
        return _Failure(error, record, seconds, peak, killed=_is_killed(code))

    def end(self) -> None:
        """End it and whatever models started in it, at once."""
        atexit.unregister(self.end)
        # It leads a group of its own, of which some may be left when it is not; others have left the group.
        with contextlib.suppress(OSError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        kill_marked(self._mark)
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                # What was not sent has nobody to be read by.
                with contextlib.suppress(OSError):
                    stream.close()

    def _exit_code(self) -> int | None:
        """The exit code of a process that does not answer any more; None where it does not end either."""
        try:
            return self._popen.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def _overhear(self, stream: IO[bytes]) -> None:
        """Read what models print: nobody else would, and once a pipe is full whoever prints has to wait."""
        with stream:
            # A line may have no end.
            while words := stream.readline(4096):
                self._last_words = words.decode(errors="replace").strip() or self._last_words
                _LOG.debug("process %d printed: %s", self._popen.pid, self._last_words)

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        try:
            while True:
                self._messages.put(receive(self._popen.stdout))  # type: ignore[arg-type]
        except (EOFError, OSError):
            pass
        except Exception:
            # Whatever came: what comes after it cannot be told apart any more.
            self._garbled = True
        self._messages.put(None)

    def _rss(self) -> int:
        try:
            return int(self._memory.memory_info().rss)
        except psutil.Error:
            return 0


def _program() -> str:
    """What a process for models runs.

    It finds modules where this process does. With `-m` the current folder would come before what is installed.
    """
    return f"import sys; sys.path[:] = {sys.path!r}; from harness.process import main; main()"


def _is_killed(code: int | None) -> bool:
    return code is not None and -code in _SENT_BY_OTHERS


def _why(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return ""
    if code >= 0:
        return f" with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {"SIGKILL": ", which is what a system does that is out of memory", "SIGSEGV": ", a crash in native code"}
    return f" of {name}{hints.get(name, '')}"
