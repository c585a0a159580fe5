"""A sweep: every model to a worker, every record to the file the moment it exists, a summary at the end."""

from __future__ import annotations

import multiprocessing.resource_tracker
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
from joblib.externals.loky.backend import resource_tracker as loky_resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from harness.errors import HarnessError
from harness.memory import available_bytes
from harness.models import VERSIONS, expected_cost
from harness.records import Record, Versions, append_record, mend_last_line, read_records, write_records
from harness.tables import coverage_table
from harness.worker import Depth, Job, Outcome, run

_MEMORY_FRACTION = 0.9
"""How much of the memory that is free when a sweep starts its workers may use together."""


@dataclass(frozen=True)
class Summary:
    """What came of a sweep.

    Attributes:
        records: Of the models that were asked for, those of an earlier run included.
        skipped: How many of them are of an earlier run.
        wall_seconds: How long the sweep took.
        cpu_seconds: CPU time of all its workers, their imports included.
        peak_rss_mb: Peak resident memory of the worker that needed most, in MiB.
    """

    records: list[Record]
    skipped: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_mb: float

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
            f"{len(self.records)} models, {self.skipped} of them from an earlier run; {_duration(self.wall_seconds)}, "
            f"CPU time of the workers {_duration(self.cpu_seconds)}, at most {self.peak_rss_mb:.0f} MiB in one of them"
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
) -> Summary:
    """Find out about models, several at a time, and keep what was found out in a file.

    A sweep that was stopped, however that was, goes on where it was when it is started again.

    Args:
        names: The models.
        out: The file of records. Records of other models in it are kept.
        verify: By shape, or by numbers; the latter where the memory suffices for the model.
        jobs: How many models at a time; by default as many as there are cores.
        fresh: Sweep models again that have a record.
        memory_bytes: How much memory the workers may use together; by default most of what is free.

    Returns:
        The summary.

    Raises:
        HarnessError: The file is no file of records, or has records that were made with other versions.
    """
    started = time.perf_counter()
    earlier = _earlier_records(out, names, verify=verify, fresh=fresh)
    todo = sorted((name for name in names if name not in earlier), key=expected_cost, reverse=True)
    workers = _Workers(
        out,
        verify=verify,
        jobs=jobs or joblib.cpu_count(),
        memory_bytes=int(available_bytes() * _MEMORY_FRACTION) if memory_bytes is None else memory_bytes,
    )
    if todo:
        with tqdm(total=len(todo), desc="sweep", unit="model", disable=None) as progress:
            for record in workers.records(todo):
                progress.update()
                progress.set_postfix(converted=workers.converted, failed=workers.failed)
                earlier[record.model] = record
        write_records(out, earlier.values())
    return Summary(
        records=[earlier[name] for name in names],
        skipped=len(names) - len(todo),
        wall_seconds=time.perf_counter() - started,
        cpu_seconds=workers.cpu_seconds,
        peak_rss_mb=workers.peak_rss_mb,
    )


def _earlier_records(out: Path, names: Sequence[str], *, verify: Depth, fresh: bool) -> dict[str, Record]:
    """Read the records that a sweep starts from, and bring the file to where exactly those are in it."""
    if not out.exists():
        return {}
    mend_last_line(out)
    records = read_records(out)
    selected = set(names)
    kept = [record for record in records if record.model not in selected or not (fresh or _less_than(record, verify))]
    for record in kept:
        if record.versions != VERSIONS:
            raise HarnessError(
                f"{out} has records made with {_versions(record.versions)}, and this is {_versions(VERSIONS)}: "
                f"sweep into another file with --out, or all of its models again with --fresh"
            )
    if len(kept) < len(records):
        write_records(out, kept)
    return {record.model: record for record in kept}


def _less_than(record: Record, verify: Depth) -> bool:
    """Whether a record says less than is asked for now: shapes where numbers are, or nothing of pruning."""
    return not record.failed and ((verify == "numeric" and record.verified == "shape") or record.orbits is None)


class _Workers:
    """Worker processes, what they have used, and the file that their records go to."""

    def __init__(self, out: Path, *, verify: Depth, jobs: int, memory_bytes: int) -> None:
        self.converted = 0
        self.failed = 0
        self.peak_rss_mb = 0.0
        self._out = out
        self._verify = verify
        self._jobs = jobs
        self._memory_bytes = memory_bytes
        self._cpu_seconds: dict[int, float] = {}

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the workers have used."""
        return sum(self._cpu_seconds.values())

    def records(self, names: Sequence[str]) -> Iterator[Record]:
        """Make a record of each model; it is in the file when it comes out here.

        Side by side first. What does not fit beside others, and what was running when a worker died, has its turn by
        itself afterwards.
        """
        alone: list[str] = []
        for name, record in self._side_by_side(names):
            if record is None:
                alone.append(name)
            else:
                yield record
        for name in alone:
            yield self._alone(name)

    def _side_by_side(self, names: Sequence[str]) -> Iterator[tuple[str, Record | None]]:
        """Run models several at a time; those that have to run alone come out without a record."""
        waiting = iter(names)
        running: set[str] = set()
        share = self._memory_bytes // self._jobs

        def jobs() -> Iterator[Job]:
            for name in waiting:
                running.add(name)
                yield Job(name, self._verify, memory_share=share, memory_total=self._memory_bytes)

        while True:
            try:
                for outcome in self._outcomes(jobs(), at_once=self._jobs):
                    running.remove(outcome.model)
                    yield outcome.model, self._keep(outcome)
            except TerminatedWorkerError:
                # Which of them took its worker down is not known, and their results are lost.
                yield from ((name, None) for name in sorted(running))
                running.clear()
            else:
                return

    def _alone(self, name: str) -> Record:
        """Run one model with all of the memory and the cores."""
        job = Job(
            name, self._verify, memory_share=self._memory_bytes, memory_total=self._memory_bytes, threads=self._jobs
        )
        try:
            (outcome,) = self._outcomes(iter([job]), at_once=1)
        except TerminatedWorkerError as error:
            codes = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
            reason = f" with {codes[1]}" if codes else ""
            record = Record(model=name, **VERSIONS, stage="worker")
            record.error = f"its worker process died{reason}: out of memory, or a crash in native code"
            outcome = Outcome(name, record, process=0, cpu_seconds=0.0)
        kept = self._keep(outcome)
        assert kept is not None, "a job that has all of the memory is not put off"
        return kept

    def _keep(self, outcome: Outcome) -> Record | None:
        """Take account of an outcome, and put its record where nothing can lose it."""
        self._cpu_seconds[outcome.process] = outcome.cpu_seconds
        record = outcome.record
        if record is not None:
            append_record(self._out, record)
            self.converted += record.converted
            self.failed += record.failed
            self.peak_rss_mb = max(self.peak_rss_mb, record.peak_rss_mb or 0.0)
        return record

    def _outcomes(self, jobs: Iterator[Job], at_once: int) -> Iterator[Outcome]:
        """Run jobs in worker processes and give their outcomes in the order in which they come."""
        # With a single job at a time joblib would run it in this process, which a crash would end. So there are two
        # workers at least, of which no more than `at_once` are given something to do.
        parallel = joblib.Parallel(
            n_jobs=max(self._jobs, 2),
            backend="loky",
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=at_once,
        )
        with _interrupts_held_back():
            outcomes = parallel(joblib.delayed(run)(job) for job in jobs)
        # Closing it, on Ctrl-C for instance, ends the workers at once.
        with closing(outcomes):
            yield from outcomes


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let processes that are started inside be deaf to Ctrl-C, which is meant for the sweep; here it comes in later.

    A worker sees to it by itself too, but while it is still importing it would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # These are started with the first worker otherwise, and let interrupts in again when they are.
    for tracker in (multiprocessing.resource_tracker, loky_resource_tracker):
        tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _versions(versions: Versions) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
