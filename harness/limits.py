"""How much memory a machine has to give. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")

_AVAILABLE_FRACTION = 0.95
_TOTAL_FRACTION = 0.9

_GIBIBYTE = 2**30


def available_bytes() -> int:
    """Memory that can be taken now without swapping, the limit of the container included."""
    available = int(psutil.virtual_memory().available)
    limit, used = container_limit(), _read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        available = min(available, max(limit - used, 0))
    return available


def container_limit() -> int | None:
    """The memory limit of the container that this runs in, if it has one."""
    return _read_number(_CGROUP / "memory.max")


def memory_budget() -> int:
    """What a sweep may use by default: most of the machine's memory, or of what is free of it.

    It is a whole number of GiB where it is more than a few, so that what a sweep says does not depend on the last MiB.
    """
    total = int(psutil.virtual_memory().total)
    limit = container_limit()
    budget = min(int(available_bytes() * _AVAILABLE_FRACTION), int(min(total, limit or total) * _TOTAL_FRACTION))
    return budget // _GIBIBYTE * _GIBIBYTE if budget >= 4 * _GIBIBYTE else budget


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
