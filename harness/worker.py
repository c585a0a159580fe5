"""What a worker does: a job, which is the name of a model and how to verify it, becomes a record."""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import os
import signal
import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

import torchorbit
from harness import memory, pruning
from harness.errors import one_line
from harness.meta import QuickNormalisations
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
from harness.weights import normalise_by_first_run

Depth = Literal["shape", "numeric"]


@dataclass(frozen=True)
class Job:
    """One model to find out about.

    Attributes:
        model: Its name in timm.
        verify: By shape, or by numbers where the memory suffices.
        memory_share: Bytes that the job may use while other workers have jobs too.
        memory_total: Bytes that it may use when it is the only one running.
        threads: Threads that its kernels may use.
    """

    model: str
    verify: Depth
    memory_share: int
    memory_total: int
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        model: The job's model.
        record: What was found out; None if the job needs more than its share of the memory, and has to run alone.
        process: Id of the process that ran it.
        cpu_seconds: CPU time that this process has used since it started, imports included.
    """

    model: str
    record: Record | None
    process: int
    cpu_seconds: float


class _NeedsToRunAlone(Exception):  # noqa: N818 - nothing is wrong
    """More memory than a share, less than all of it."""


def run(job: Job) -> Outcome:
    """Find out about one model.

    Args:
        job: The model, and the limits.

    Returns:
        The outcome. Whatever goes wrong with the model is in its record and not raised.
    """
    prepare_process()
    torch.set_num_threads(job.threads)
    memory.reset_peak_rss()
    started = time.perf_counter()
    record = Record(model=job.model, **VERSIONS)
    put_off = False
    try:
        _find_out(job, record)
    except _NeedsToRunAlone:
        put_off = True
    except (torchorbit.TorchorbitError, VerificationError) as error:
        record.error = " ".join(str(error).split())
    except Exception as error:
        record.error = one_line(error)
    record.seconds = round(time.perf_counter() - started, 3)
    record.peak_rss_mb = round(memory.peak_rss_mb(), 1)
    memory.release_memory()
    return Outcome(job.model, None if put_off else record, os.getpid(), time.process_time())


def _find_out(job: Job, record: Record) -> None:
    """Fill in a record, stage by stage; when something is raised, the stage in which it was stays in the record."""
    record.stage = "build"
    model = build_on_meta(job.model)
    size = input_size(model)
    record.input_size = list(size)
    record.params_m = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3)

    # From here on a model that cannot run is found out, which conversion would be the first to do otherwise.
    record.stage = "convert"
    spare = _spare_bytes(job, record, model) if job.verify == "numeric" else None
    numeric = spare is not None
    if numeric:
        model = build_with_random_weights(job.model)
    graph = torchorbit.convert(model, example_input(model))
    record.converted = True

    record.stage = "verify"
    with torch.no_grad():
        if spare is not None:
            record.max_diff, output = _difference(model, graph, random_input(size, job.model), spare)
        else:
            if job.verify == "numeric":
                # Too large for numbers; that its graph survives being saved can be shown all the same.
                graph = packed_and_unpacked(graph)
            inputs = torch.empty(1, *size, device="meta")
            output = model(inputs)
            with QuickNormalisations():
                check_shapes(output, graph(inputs))
    record.verified = "numeric" if numeric else "shape"

    with torch.no_grad():
        pruning.find_out(record, graph, size, output, numeric=numeric)
    record.stage = None


def _difference(
    model: nn.Module, graph: torchorbit.DagModule, inputs: torch.Tensor, spare_bytes: int
) -> tuple[float, Any]:
    """Compare a model with its graph by numbers, the graph having been packed and unpacked before it runs.

    Returns:
        The difference, and the model's output.
    """
    recall = Recall([*model.parameters(), *model.buffers()], limit_bytes=spare_bytes)
    with normalise_by_first_run(model), recall:
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


def _spare_bytes(job: Job, record: Record, model: nn.Module) -> int | None:
    """Memory that is left over when a model is verified by numbers; None where it does not suffice, and a note why.

    Raises:
        _NeedsToRunAlone: It does once the other workers are done.
    """
    needed = memory.needed_bytes(model, torch.empty(1, *record.input_size or (), device="meta"))
    if needed <= job.memory_share:
        return job.memory_share - needed
    if needed <= job.memory_total:
        raise _NeedsToRunAlone
    record.note = (
        f"verified by shape only: by numbers it needs about {needed / 2**30:.1f} GiB of memory, "
        f"and {job.memory_total / 2**30:.1f} GiB may be used"
    )
    return None


@functools.cache
def prepare_process() -> None:
    """Once per process: settle what is the same for every job."""
    if multiprocessing.parent_process() is None:
        # A test or a debugger runs the job: the process is not ours to settle.
        return
    # Ctrl-C reaches the whole group; it is the sweep's to answer, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.getLogger("timm").setLevel(logging.ERROR)
    # What has been imported stays. Left to itself, the collector would go through all of it again and again while a
    # model is built; frozen and switched off, it is called once after each job and sees that job's remains alone.
    gc.collect()
    gc.freeze()
    gc.disable()
