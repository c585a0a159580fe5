"""A sweep: every model to a worker, every record to the file the moment it exists, a summary at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from harness import supervisor
from harness.backends import Backend, WorkersLostError
from harness.cache import Cache
from harness.errors import HarnessError
from harness.jobs import Depth, Job, Outcome
from harness.limits import memory_budget
from harness.models import VERSIONS, expected_cost
from harness.plugins import import_modules
from harness.records import (
    Record,
    Versions,
    append_record,
    check_regular,
    mend_last_line,
    read_records,
    write_records,
)
from harness.redaction import redacted
from harness.tables import coverage_table

_LOG = logging.getLogger(__name__)

_MEMORY_MARGIN = 1.3
"""What a job may use, over what it is estimated to need."""

_MOST_ATTEMPTS = 3
"""How often a model is run whose worker died with it before it is given up."""


@dataclass(frozen=True)
class Summary:
    """What came of a sweep.

    Attributes:
        records: Of the models that were asked for, those of an earlier run included.
        skipped: How many of them are of an earlier run.
        wall_seconds: How long the sweep took.
        cpu_seconds: CPU time of all its workers, their imports included.
        peak_rss_mb: Peak resident memory of the worker that needed most, in MiB.
        cached: How many records are those of models that have not changed, or of others with the same graph.
        utilisation: Time that workers had something to do, over the time that they had.
    """

    records: list[Record]
    skipped: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    cached: int = 0
    utilisation: float = 0.0

    @property
    def failures(self) -> list[Record]:
        """The records of models with which something went wrong."""
        return [record for record in self.records if record.failed]

    def __str__(self) -> str:
        parts = [coverage_table(self.records) + "\n"]
        if self.failures:
            parts.append(f"{len(self.failures)} failed:")
            parts += [f"  {record.model} ({record.stage}): {record.error}" for record in self.failures]
        parts += [f"{record.model}: {record.note}" for record in self.records if record.note]
        parts.append(
            f"{len(self.records)} models, {self.skipped} of them from an earlier run, {self.cached} from the cache; "
            f"{_duration(self.wall_seconds)}, CPU time of the workers {_duration(self.cpu_seconds)}, at most "
            f"{self.peak_rss_mb:.0f} MiB in one of them, busy {self.utilisation:.0%} of the time"
        )
        return "\n".join(parts)


def sweep(
    names: Sequence[str],
    out: Path,
    *,
    verify: Depth = "shape",
    jobs: int | None = None,
    fresh: bool = False,
    memory_bytes: int | None = None,
    timeout: float | None = 300.0,
    backend: Backend | None = None,
    cache: Cache | None = None,
    imports: Sequence[str] = (),
    progress: bool = True,
) -> Summary:
    """Find out about models, several at a time, and keep what was found out in a file.

    A sweep that was stopped, however that was, goes on where it was when it is started again.

    Args:
        names: The models.
        out: The file of records. Records of other models in it are kept.
        verify: By shape, or by numbers; the latter where the memory suffices for the model.
        jobs: How many models at a time; by default as many as there are cores. Not with ``backend``, which says so.
        fresh: Sweep models again that have a record.
        memory_bytes: How much memory the workers may use together, on a cluster each of them; by default most of what
            is free.
        timeout: Seconds after which a model is given up; None for never.
        backend: Where workers run; by default on this machine.
        cache: Where records of models are that have not changed; None to find out everything anew.
        imports: Python modules to import first, here and in every worker, which register models with timm. They may be
            in the current folder.
        progress: Show a progress bar, where there is a terminal.

    Returns:
        The summary.

    Raises:
        HarnessError: One of ``imports`` cannot be imported; or the file is no file of records, has records that were
            made with other versions, is being written by another sweep, or cannot be written.
    """
    started = time.perf_counter()
    import_modules(imports, str(Path.cwd()))
    with _alone(out), backend or Backend(jobs=jobs) as where:
        earlier = _earlier_records(out, names, verify=verify, fresh=fresh)
        todo = [name for name in names if name not in earlier]
        swept = _Sweep(out, where, verify, memory_bytes, timeout, cache, tuple(imports))
        if todo:
            with tqdm(total=len(todo), desc="sweep", unit="model", disable=None if progress else True) as bar:
                for record in swept.records(todo):
                    bar.update()
                    bar.set_postfix(converted=swept.converted, failed=swept.failed)
                    earlier[record.model] = record
            write_records(out, earlier.values())
    wall = time.perf_counter() - started
    return Summary(
        records=[earlier[name] for name in names],
        skipped=len(names) - len(todo),
        wall_seconds=wall,
        cpu_seconds=swept.cpu_seconds,
        peak_rss_mb=swept.peak_rss_mb,
        cached=swept.cached,
        utilisation=swept.busy_seconds / (wall * max(where.jobs, 1)),
    )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other sweeps away from a file of records."""
    check_regular(out)
    lock = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise HarnessError(f"another sweep is writing {out}: wait for it, or choose another file with --out") from None
    except OSError as error:
        raise HarnessError(f"cannot write {out}: {error.strerror or error}; choose another file with --out") from None
    with held:
        yield


def _earlier_records(out: Path, names: Sequence[str], *, verify: Depth, fresh: bool) -> dict[str, Record]:
    """Read the records that a sweep starts from, and bring the file to where exactly those are in it."""
    if not out.exists():
        return {}
    records = read_records(out)
    selected = set(names)
    kept = [r for r in records if r.model not in selected or not (fresh or _less_than(r, verify))]
    for record in kept:
        if record.versions != VERSIONS:
            raise HarnessError(
                f"{out} has records made with {_versions(record.versions)}, and this is {_versions(VERSIONS)}: "
                f"sweep into another file with --out, or all of its models again with --fresh"
            )
    if len(kept) < len(records):
        write_records(out, kept)
    else:
        mend_last_line(out)
    return {record.model: record for record in kept}


def _less_than(record: Record, verify: Depth) -> bool:
    """Whether a record says less than is asked for now.

    Shapes where numbers are, nothing of pruning, or of a process that was killed, which says nothing of the model.
    """
    shapes_only = verify == "numeric" and record.verified == "shape" and not record.failed
    return shapes_only or record.says_nothing_of_pruning or record.stage == "worker"


class _Sweep:
    """Workers, the models that they have, what they have used, and the file that their records go to."""

    def __init__(
        self,
        out: Path,
        backend: Backend,
        verify: Depth,
        memory_bytes: int | None,
        timeout: float | None,
        cache: Cache | None,
        imports: tuple[str, ...],
    ) -> None:
        self.converted = 0
        self.failed = 0
        self.cached = 0
        self.peak_rss_mb = 0.0
        self.busy_seconds = 0.0
        self._out = out
        self._backend = backend
        self._verify = verify
        self._timeout = timeout
        self._cache = cache
        self._imports = imports
        # Of machines that are not this one, each worker finds out for itself.
        self._memory_bytes = memory_budget() if memory_bytes is None and not backend.remote else memory_bytes
        self._cpu_seconds: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the workers have used."""
        return sum(self._cpu_seconds.values())

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """Make a record of each model; it is in the file when it comes out here."""
        todo = []
        for name in names:
            known = None if self._cache is None else self._cache.known(name, self._verify)
            if known is None:
                todo.append(name)
            else:
                self.cached += 1
                yield self._keep(known)
        needs: dict[str, int] = {}
        todo.sort(key=expected_cost, reverse=True)
        if self._verify == "numeric" and not self._backend.remote:
            # How much memory each will need is known before any runs, and so which can run side by side.
            for outcome in self._outcomes(_Queue(dict.fromkeys(todo, 0), None, self._backend.jobs), measure=True):
                if outcome.record is None:
                    needs[outcome.model] = outcome.needed_bytes or 0
                else:
                    yield self._kept(outcome, outcome.record)
            todo = sorted(needs, key=lambda name: needs[name], reverse=True)
        together = None if self._backend.remote else self._memory_bytes
        waiting = _Queue({name: needs.get(name, 0) for name in todo}, together, self._backend.jobs)
        for outcome in self._outcomes(waiting):
            if outcome.record is None:
                waiting.put(outcome.model, outcome.needed_bytes or 0)
            else:
                yield self._kept(outcome, outcome.record)

    def _outcomes(self, waiting: _Queue, *, measure: bool = False) -> Iterator[Outcome]:
        """Run what waits, until nothing does; what was running when a worker died is run again."""

        def jobs() -> Iterator[Job]:
            while (chosen := waiting.next()) is not None:
                name, memory_bytes = chosen
                yield Job(
                    name,
                    self._verify,
                    VERSIONS,
                    memory_bytes=self._memory_bytes if self._backend.remote else memory_bytes,
                    memory_total=self._memory_bytes,
                    measure=measure,
                    timeout=self._timeout,
                    imports=self._imports,
                    folder=str(Path.cwd()),
                    cache=None if self._cache is None else str(self._cache.folder),
                )

        while not waiting.empty:
            try:
                for outcome in self._backend.outcomes(supervisor.run, jobs()):
                    if outcome.model:
                        waiting.done(outcome.model)
                        self._cpu_seconds[outcome.process] = outcome.cpu_seconds
                        self.busy_seconds += outcome.busy_seconds
                        yield outcome
            except WorkersLostError:
                for name in waiting.take_back():
                    self._attempts[name] += 1
                    if self._attempts[name] < _MOST_ATTEMPTS:
                        # Beside others it would cost them their attempts, if it is what the worker died of.
                        waiting.put(name, 0, alone=True)
                        continue
                    record = Record(model=name, **VERSIONS, stage="worker")
                    record.error = f"the worker that had it died, {_MOST_ATTEMPTS} times"
                    yield Outcome(name, record)

    def _kept(self, outcome: Outcome, record: Record) -> Record:
        """Take account of a record that a worker made."""
        self.cached += outcome.cached
        if self._cache is not None and outcome.fingerprint is not None and self._backend.remote:
            # What the worker put into its own is not here.
            self._cache.put(record, outcome.fingerprint, self._verify)
        return self._keep(record)

    def _keep(self, record: Record) -> Record:
        """Put a record where nothing can lose it."""
        record.error = record.error and redacted(record.error)
        record.note = record.note and redacted(record.note)
        append_record(self._out, record)
        self.converted += record.converted
        self.failed += record.failed
        self.peak_rss_mb = max(self.peak_rss_mb, record.peak_rss_mb or 0.0)
        _LOG.info("%s", record.model, extra={"record": record})
        return record


class _Queue:
    """The models that wait, those that run, and how much memory each of these may use.

    Args:
        needs: Name -> bytes, 0 where that is not known; in the order in which to run them where the memory allows.
        memory_bytes: What they may use together; None where that does not matter.
        jobs: How many run at a time.
    """

    def __init__(self, needs: dict[str, int], memory_bytes: int | None, jobs: int) -> None:
        self._waiting = dict(needs)
        self._memory_bytes = memory_bytes
        self._jobs = jobs
        self._running: dict[str, int] = {}
        self._alone: set[str] = set()
        # joblib asks for the next job in a thread of its own.
        self._lock = threading.Lock()

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def next(self) -> tuple[str, int | None] | None:
        """The next model and the bytes that it may use; a name that is empty when nothing can start now.

        None when nothing is left that could.
        """
        with self._lock:
            if self.empty:
                return None
            if self._alone:
                name = next(iter(self._alone))
                if self._running:
                    return "", None
                del self._waiting[name]
                self._running[name] = self._memory_bytes or 0
                return name, self._memory_bytes
            if self._memory_bytes is None:
                if not self._waiting:
                    return None
                name = next(iter(self._waiting))
                del self._waiting[name]
                self._running[name] = 0
                return name, None
            # A request means that a slot is free. Where all slots seem taken, some jobs have ended and not been
            # reported yet; count as ended those that need the least memory, which is the safe guess.
            ended = max(len(self._running) - (self._jobs - 1), 0)
            free = self._memory_bytes - sum(sorted(self._running.values())[ended:])
            share = self._memory_bytes // self._jobs
            for name, needed in self._waiting.items():
                wanted = min(max(int(needed * _MEMORY_MARGIN), share), self._memory_bytes)
                least = min(int(needed * _MEMORY_MARGIN), self._memory_bytes) if needed else share
                if least <= free:
                    del self._waiting[name]
                    self._running[name] = min(wanted, free)
                    return name, self._running[name]
            # Something may come back that needs more than it got.
            return "", None

    def put(self, name: str, needed: int, *, alone: bool = False) -> None:
        """Let a model wait, with what is now known of the memory that it needs.

        Args:
            name: The model.
            needed: Bytes, 0 where that is not known.
            alone: Run it before all others, and none beside it.
        """
        with self._lock:
            self._waiting = {name: needed, **self._waiting}
            if alone:
                self._alone.add(name)

    def done(self, name: str) -> None:
        """A model no longer runs."""
        with self._lock:
            self._running.pop(name, None)
            self._alone.discard(name)

    def take_back(self) -> list[str]:
        """The models that were running when a worker died."""
        with self._lock:
            lost = sorted(self._running)
            self._running.clear()
            self._alone.difference_update(lost)
            return lost


def _versions(versions: Versions) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
