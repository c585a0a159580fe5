"""Texts without what should not leave the machine: tokens, and the name of the user's folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

_TOKENS = re.compile(
    r"""
    \b (?: hf | gh[opsru] | github_pat | npm ) _ \w{8,}
    | \b (?: pypi | glpat | xox[abeprs] ) - [\w-]{8,}
    | \b sk- [\w-]{16,}
    | \b (?: AKIA | ASIA ) [A-Z0-9]{12,}
    | \b AIza [\w-]{20,}
    | \b eyJ [\w-]{8,} \. [\w.-]+
    | (?<= :// ) [^/\s]+ (?= @ )
    """,
    re.VERBOSE,
)
_AFTER_THEIR_NAMES = re.compile(
    r"""
    (
        \b bearer \s+ (?= [\w.~+/=-]{8} )
        | \b authorization ['"]? \s* [:=] \s* ['"]? (?: \w+ \s+ )? (?= [\w.~+/=-]{8} )
        | [?&] [\w.-]* (?: token | key | secret | signature | password ) [\w.-]* =
    )
    [^\s&,;'"]+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text without tokens, and with `~` in place of the user's folder."""
    text = _AFTER_THEIR_NAMES.sub(r"\1***", _TOKENS.sub("***", text))
    for folder in {str(Path.home()), str(Path.home().resolve())}:
        if len(folder) > 1:
            # Errors quote paths in several ways.
            ways = {folder, json.dumps(folder)[1:-1], repr(folder)[1:-1], repr(os.fsencode(folder))[2:-1]}
            for way in sorted(ways, key=len, reverse=True):
                text = re.sub(re.escape(way) + r"(?![\w-])", "~", text)
    return text
