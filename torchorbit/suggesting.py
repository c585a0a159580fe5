"""What to say of a name that there is not: the names that are like it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def close_to(name: str, names: Iterable[str]) -> str:
    """What to say of names that are like one that there is not."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.6)
    return f"; close to it: {', '.join(close)}" if close else ""
