"""What is asked of a worker, and what it answers. Importing this imports no torch: supervisors have no need of it."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from harness.records import Record, Versions
from torchorbit.errors import ArgumentError

Depth = Literal["shape", "numeric"]


@dataclass(frozen=True)
class Job:
    """One model to find out about.

    Attributes:
        model: Its name in timm; empty for a worker that is to wait a moment.
        verify: By shape, or by numbers where the memory suffices.
        versions: What is installed where the sweep was started.
        memory_bytes: Memory that the job may use; None for most of what the machine has that runs it.
        memory_total: Memory that it could have at best, which a note on too large a model speaks of.
        measure: Only find out how much memory the numbers need.
        timeout: Seconds after which the model is given up.
        threads: Threads that its kernels may use.
        imports: Modules to import first, which register models with timm.
        folder: Where these are looked for after what is installed: the current folder of the sweep.
        cache: Folder of the cache; None for none.
    """

    model: str
    verify: Depth
    versions: Versions
    memory_bytes: int | None = None
    memory_total: int | None = None
    measure: bool = False
    timeout: float | None = None
    threads: int = 1
    imports: tuple[str, ...] = ()
    folder: str = "."
    cache: str | None = None

    def to_line(self) -> str:
        """The job as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Job:
        """Read what `to_line` wrote.

        Raises:
            ArgumentError: It is no job.
        """
        return _read(cls, line)


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        model: The job's model.
        record: What was found out; None where that was not the question, or the memory did not suffice.
        needed_bytes: Memory that the job needs, where it was asked for or more than it may use.
        process: Which process ran it, in all of the cluster.
        cpu_seconds: CPU time that this process has used since it started, imports included.
        busy_seconds: How long the worker had the job.
        cached: The record is that of another job with the same graph.
        fingerprint: What determines the record (`harness.cache`); None where that cannot be told.
        changed: What the model changed in its process, in which no other model runs then.
    """

    model: str
    record: Record | None = None
    needed_bytes: int | None = None
    process: str = ""
    cpu_seconds: float = 0.0
    busy_seconds: float = 0.0
    cached: bool = False
    fingerprint: str | None = None
    changed: tuple[str, ...] = ()

    def to_line(self) -> str:
        """The outcome as JSON, which knows nothing of numbers that are not finite."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Outcome:
        """Read what `to_line` wrote.

        Raises:
            ArgumentError: It is no outcome.
        """
        return _read(cls, line)


@functools.cache
def _reader(name: str) -> TypeAdapter[Any]:
    return TypeAdapter({"Job": Job, "Outcome": Outcome}[name])


def _read(kind: type[Job] | type[Outcome], line: str) -> Any:
    try:
        return _reader(kind.__name__).validate_json(line)
    except ValidationError as error:
        raise ArgumentError(f"this is no {kind.__name__}: {error.errors(include_url=False)[0]['msg']}") from None
