"""What a worker does: a job, which is the name of a model and how to verify it, becomes a record."""

from __future__ import annotations

import gc
import logging
import math
import os
import random
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import torchorbit
from harness import memory, pruning
from harness.cache import Cache, fingerprint_of
from harness.columns import Moment, Stage, fill
from harness.errors import one_line
from harness.findings import Findings
from harness.jobs import Job, Outcome
from harness.meta import QuickNormalizations
from harness.models import VERSIONS, build_on_meta, build_with_random_weights, example_input, input_size
from harness.recall import Recall
from harness.records import Record
from harness.verification import (
    TOLERANCE,
    VerificationError,
    check_shapes,
    packed_and_unpacked,
    random_input,
    relative_difference,
)
from harness.weights import normalize_by_first_run

Progress = Callable[[Record], None]
"""Called with what is known so far whenever a stage begins."""


def run(job: Job, progress: Progress = lambda record: None) -> Outcome:
    """Find out about one model.

    Args:
        job: The model, and the limits.
        progress: Told of every stage that begins.

    Returns:
        The outcome. Whatever goes wrong with the model is in its record and not raised.
    """
    torch.set_num_threads(job.threads)
    _settle_random_state(job.model)
    memory.reset_peak_rss()
    started = time.perf_counter()
    record = Record(model=job.model, **VERSIONS)
    inquiry = _Inquiry(job, record, progress)
    try:
        inquiry.find_out()
    except torchorbit.TorchorbitError as error:
        record.error = one_line(error, named=False)
    except BaseException as error:
        # Even what is meant to end a program, which this is not for a model to do.
        record.error = one_line(error)
    if not inquiry.cached:
        inquiry.found.seconds = time.perf_counter() - started
        inquiry.found.peak_rss_mb = memory.peak_rss_mb()
        inquiry.finish("done")
    # The graph and its orbits go before memory is given back.
    inquiry.found = Findings()
    if job.cache is not None and inquiry.fingerprint is not None and not inquiry.put_off:
        # Here, so that the next model finds it, which may start before anybody else has seen this record.
        Cache(Path(job.cache)).put(record, inquiry.fingerprint, job.verify)
    memory.release_memory()
    # What is left are modules that were imported and caches that were filled on the way: hundreds of thousands of
    # objects after the first model. The next collection is to see that job's remains alone, or it takes half a second.
    gc.freeze()
    return Outcome(
        job.model,
        None if inquiry.put_off else record,
        needed_bytes=inquiry.needed_bytes,
        process=str(os.getpid()),
        cpu_seconds=time.process_time(),
        cached=inquiry.cached,
        fingerprint=inquiry.fingerprint,
    )


class _Inquiry:
    """The stages of a job, which fill in a record; when something is raised, the stage in which it was stays in it."""

    def __init__(self, job: Job, record: Record, progress: Progress) -> None:
        self.job = job
        self.record = record
        self.progress = progress
        self.found = Findings()
        self.put_off = False
        self.cached = False
        self.needed_bytes: int | None = None
        self.fingerprint: str | None = None

    def enter(self, stage: Stage) -> None:
        """Begin a stage."""
        self.record.stage = stage
        self.progress(self.record)

    def finish(self, moment: Moment) -> None:
        """Fill the columns that are known by now."""
        fill(self.record, self.found, moment)

    def remark(self, note: str) -> None:
        """Add to the note of the record."""
        self.record.note = f"{self.record.note}; {note}" if self.record.note else note

    def find_out(self) -> None:
        job, found = self.job, self.found
        self.enter("build")
        model = found.model = build_on_meta(job.model)
        found.input_size = input_size(model)
        self.finish("build")
        if self.known(model):
            return
        # What is the same has the same weights and images, whatever its name.
        found.seed = self.fingerprint or job.model

        # From here on a model that cannot run is found out, which conversion would be the first to do otherwise.
        self.enter("convert")
        spare = self.spare_bytes(model) if job.verify == "numeric" else None
        if self.put_off:
            return
        found.numeric = spare is not None
        if found.numeric:
            model = build_with_random_weights(job.model, found.seed)
        found.graph = torchorbit.convert(model, example_input(model))
        self.finish("convert")

        self.enter("verify")
        with torch.no_grad():
            self.verify(model, spare)
        self.finish("verify")

        with torch.no_grad():
            pruning.find_out(found, self)
        self.record.stage = None

    def verify(self, model: nn.Module, spare_bytes: int | None) -> None:
        """Compare a model with its graph, by numbers where there is memory for them."""
        found = self.found
        if spare_bytes is not None:
            inputs = random_input(found.input_size, found.seed)
            found.difference, found.output = _difference(model, found.graph, inputs, spare_bytes)
            return
        if self.job.verify == "numeric":
            # Too large for numbers; that its graph survives being saved can be shown all the same.
            found.graph = packed_and_unpacked(found.graph)
        inputs = torch.empty(1, *found.input_size, device="meta")
        found.output = model(inputs)
        with QuickNormalizations():
            check_shapes(found.output, found.graph(inputs))

    def known(self, model: nn.Module) -> bool:
        """Whether the same was found out before, of this model or of another with the same graph."""
        self.fingerprint = fingerprint_of(model)
        if self.job.cache is None or self.fingerprint is None:
            return False
        found = Cache(Path(self.job.cache)).record(self.fingerprint, self.job.verify, self.job.model)
        if found is None:
            return False
        self.cached = True
        self.record.__dict__.update(found.__dict__)
        return True

    def spare_bytes(self, model: nn.Module) -> int | None:
        """Memory that is left over when the model is verified by numbers; None where it does not suffice.

        Where that is because others have their share the job is put off; otherwise a note says why.
        """
        job = self.job
        needed = memory.needed_bytes(model, torch.empty(1, *self.found.input_size, device="meta"))
        self.needed_bytes = needed
        allowed = math.inf if job.memory_bytes is None else job.memory_bytes
        total = allowed if job.memory_total is None else job.memory_total
        self.put_off = job.measure or allowed < needed <= total
        if needed <= allowed:
            return int(min(allowed - needed, 2**40))
        self.remark(
            f"verified by shape only: by numbers it needs about {needed / 2**30:.1f} GiB of memory, "
            f"and {total / 2**30:.1f} GiB may be used"
        )
        return None


def _difference(
    model: nn.Module, graph: torchorbit.DagModule, inputs: torch.Tensor, spare_bytes: int
) -> tuple[float, Any]:
    """Compare a model with its graph by numbers, the graph having been packed and unpacked before it runs.

    Returns:
        The difference, and the model's output.
    """
    recall = Recall([*model.parameters(), *model.buffers()], limit_bytes=spare_bytes)
    with normalize_by_first_run(model), recall:
        expected = model(inputs)
    recall.first_run_is_over()
    unpacked = packed_and_unpacked(graph)
    with recall:
        actual = unpacked(inputs)
    difference = relative_difference(expected, actual)
    if difference > TOLERANCE:
        raise VerificationError(
            f"the graph's output differs from the source's by {difference:.2g} of the largest output, "
            f"more than {TOLERANCE:g}"
        )
    # Three digits say all there is to say about a rounding error.
    return float(f"{difference:.3g}"), expected


def _settle_random_state(model: str) -> None:
    """Let a model that draws numbers draw the same ones, whatever ran before it."""
    seed = zlib.crc32(model.encode())
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def settle_process() -> None:
    """Once in a process for jobs: settle what is the same for all of them."""
    warnings.simplefilter("ignore")
    logging.getLogger("timm").setLevel(logging.ERROR)
    # What has been imported stays. Left to itself, the collector would go through all of it again and again while a
    # model is built; frozen and switched off, it is called once after each job.
    gc.collect()
    gc.freeze()
    gc.disable()
