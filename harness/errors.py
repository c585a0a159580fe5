"""Errors that a user can do something about: one line that says what was given, what was expected, and what to do."""

from __future__ import annotations

from harness.redaction import redacted
from torchorbit.errors import ArgumentError, TorchorbitError


class HarnessError(TorchorbitError):
    """Something could not be done. The command line prints it without a traceback and exits with code 1."""


class UsageError(HarnessError, ArgumentError):
    """What was asked for makes no sense as it was written. The command line exits with code 2."""


def one_line(error: BaseException) -> str:
    """An error as one line of text, its type included where the message alone would say little.

    Args:
        error: Any exception.

    Returns:
        The message with its line breaks made spaces, without tokens and the name of the user's folder, shortened where
        it is very long.
    """
    message = redacted(" ".join(str(error).split()))
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
