"""Texts of strangers, as they are shown to people."""

from __future__ import annotations


def one_line(text: object, without: str = "", longest: int = 500) -> str:
    """A text on one line, as plain characters.

    Whatever a terminal acts upon instead of showing it becomes a space: line breaks, escapes, and what turns the
    direction of writing.

    Args:
        text: what somebody else may have written.
        without: characters that become spaces as well.
        longest: what is beyond so many characters is left out.
    """
    whole = str(text)
    kept = " ".join("".join(c if c.isprintable() and c not in without else " " for c in whole).split())
    return kept if len(kept) <= longest else f"{kept[:longest]}..."
