"""Commands that are stopped: by Ctrl-C, or by what stops services and containers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALLED = 128
"""Shells report this much more than the number of the signal that ended a program."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; what ends a command on Ctrl-C ends it then, too."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(reason: BaseException | None) -> int:
    """The exit code of a command that was stopped.

    Args:
        reason: What stopped it.
    """
    return _SIGNALLED + (signal.SIGTERM if isinstance(reason, TerminatedError) else signal.SIGINT)
