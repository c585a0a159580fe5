"""Logs of a sweep: a line per model, for people or as JSON, with nothing in it that should not leave the machine."""

from __future__ import annotations

import json
import logging
import time
import warnings
from typing import Any, TextIO

from harness.records import Record
from harness.redaction import redacted


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
        # Not the finished line, in which some characters are written in another way.
        return json.dumps({key: redacted(value) if isinstance(value, str) else value for key, value in line.items()})


def write_to(stream: TextIO, *, verbose: bool, as_json: bool) -> None:
    """Let the harness log to a stream, in place of what it did before; and with it Python's warnings, and others' logs.

    What models print is not in it: it goes to the log of the worker that has the model, at the level "debug", which is
    shown where workers are set up for that.

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
    # Whoever has set up no log of their own writes to this one, and not to standard error between its lines.
    logging.lastResort = handler
    warnings.showwarning = _log_warning


def _log_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    logging.getLogger("harness.warnings").warning("%s: %s", category.__name__, message)
