"""Sweeps in processes of their own, which are killed, or some of what they start is."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil


def start(arguments: list[str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **more
    )


def processes_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def kind_of(process: psutil.Process) -> str:
    """What a process that a sweep started is there for."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    return "process" if "harness.process" in line else "worker" if "loky.backend.popen_loky" in line else ""


def kill(victim: str, sweep: subprocess.Popen[str], chance: random.Random) -> list[psutil.Process] | None:
    """Kill the `"sweep"`, one of its workers (`"worker"`), or a `"process"` that has a model.

    Returns:
        What the sweep had started; None where there is no such victim just now.
    """
    theirs = processes_of(sweep.pid)
    if victim == "sweep":
        sweep.kill()
        sweep.wait()  # and not for its output, which is open for as long as a worker lives
        return theirs
    there = [process for process in theirs if kind_of(process) == victim]
    if not there:
        return None
    # A crash in native code would be taken for the model's own.
    signals = [signal.SIGKILL, signal.SIGTERM, *([signal.SIGSEGV] if victim == "worker" else [])]
    try:
        chance.choice(there).send_signal(chance.choice(signals))
    except psutil.NoSuchProcess:
        return None
    return theirs


def values(path: Path) -> dict[str, dict[str, Any]]:
    """What was found out, without what a clock or the memory says; one line per model."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["model"] for line in lines}) == len(lines)
    return {line["model"]: {k: v for k, v in line.items() if k not in ("seconds", "peak_rss_mb")} for line in lines}
