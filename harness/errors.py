"""Errors that a user can do something about: one line that says what was given, what was expected, and what to do."""

from __future__ import annotations

import itertools

from harness.redaction import redacted
from torchorbit.errors import ArgumentError, TorchorbitError

_LONGEST = 500
_MUCH = 10_000
"""So much of a message is looked at, of which what is shown is left."""


class HarnessError(TorchorbitError):
    """Something could not be done. The command line prints it without a traceback and exits with code 1."""


class UsageError(HarnessError, ArgumentError):
    """What was asked for makes no sense as it was written. The command line exits with code 2."""


def one_line(error: BaseException, *, named: bool = True) -> str:
    """An error as one line of text.

    Args:
        error: Any exception.
        named: Begin with its type, without which the message of many an error says little.

    Returns:
        The message with its line breaks and what else cannot be printed made spaces, without tokens and the name of
        the user's folder, shortened where it is very long.
    """
    kind = type(error).__name__
    try:
        said = "".join(itertools.islice(str(error), _MUCH))
    except Exception as another:
        return f"{kind}, whose text raises {type(another).__name__}"
    message = redacted(" ".join("".join(c if c.isprintable() else " " for c in said).split()))
    text = message or kind if not named else f"{kind}: {message}" if message else kind
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
