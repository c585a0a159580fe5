"""Logs of a sweep: a line per model, for people or as JSON, with nothing in it that should not leave the machine."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import TextIO

from harness.records import Record

_TOKENS = re.compile(r"\b(?:hf|ghp|gho|ghs|ghr|github_pat)_[A-Za-z0-9_]{8,}|(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")


def redacted(text: str) -> str:
    """A text without tokens, and with `~` in place of the user's folder."""
    home = str(Path.home())
    text = _TOKENS.sub("***", text)
    return text.replace(home, "~") if len(home) > 1 else text


def line_of(record: Record) -> str:
    """A record in one line for people."""
    if record.failed:
        return f"{record.model}: failed ({record.stage}): {record.error}"
    parts = [f"verified by {'numbers' if record.verified == 'numeric' else record.verified}"]
    if record.orbits is not None:
        parts.append(f"{record.orbits} orbits")
    if record.removable_flops is not None:
        parts.append(f"{record.removable_flops:.2%} of the FLOPs removable")
    if record.seconds is not None:
        parts.append(f"{record.seconds:.1f} s")
    return f"{record.model}: {', '.join(parts)}"


class _ForPeople(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        found = getattr(record, "record", None)
        text = line_of(found) if isinstance(found, Record) else record.getMessage()
        return redacted(text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}")


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        found = getattr(record, "record", None)
        known = isinstance(found, Record)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": "model" if known else "message",
        }
        line |= json.loads(found.to_line()) if isinstance(found, Record) else {"message": record.getMessage()}
        return redacted(json.dumps(line))


def write_to(stream: TextIO, *, verbose: bool, as_json: bool) -> None:
    """Let the harness log to a stream, in place of what it did before.

    Args:
        stream: Standard error, for instance.
        verbose: A line per model, and not only what is wrong.
        as_json: One JSON object per line; the keys of a model's line are those of its record.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_AsJson() if as_json else _ForPeople())
    logger = logging.getLogger("harness")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if verbose or as_json else logging.WARNING)
