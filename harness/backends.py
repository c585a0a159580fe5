"""Where workers run: on this machine, or on a cluster through joblib's backends for dask and ray."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Literal

import joblib
from joblib.externals.loky.backend import resource_tracker as loky_resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError

from harness.errors import HarnessError, UsageError
from harness.jobs import Job, Outcome
from harness.supervisor import end_with
from torchorbit.extras import require

CONNECT_SECONDS = 30
"""How long a cluster may take to answer."""

BackendName = Literal["loky", "dask", "ray"]


class WorkersLostError(HarnessError):
    """Workers died, and the results of what they were doing are lost."""


class Backend:
    """Runs jobs.

    Args:
        name: `loky` for processes on this machine, or the engine of a cluster.
        address: Of the cluster's scheduler; without one, dask and ray start one on this machine.
        jobs: How many at a time; None for as many as the machine has cores, or the cluster has slots.
    """

    def __init__(self, name: BackendName = "loky", *, address: str | None = None, jobs: int | None = None) -> None:
        if name == "loky" and address is not None:
            raise UsageError("--address is where a cluster is: it needs --backend dask or --backend ray")
        self.name = name
        self.address = address
        self._jobs = jobs
        self._open = ExitStack()
        self.jobs = 0

    @property
    def remote(self) -> bool:
        """Whether workers may run on other machines, of whose memory nothing is known here."""
        return self.name != "loky"

    def __enter__(self) -> Backend:
        """Find the cluster.

        Raises:
            HarnessError: There is none at the address.
            MissingExtraError: What it takes is not installed.
        """
        if self.name == "loky":
            self.jobs = self._jobs or joblib.cpu_count()
        else:
            require("distributed", f"--backend {self.name}", "distributed" if self.name == "dask" else "ray")
            connect = self._connect_dask if self.name == "dask" else self._connect_ray
            try:
                slots = connect()
            except (OSError, TimeoutError, ConnectionError, RuntimeError, ValueError) as error:
                where = self.address or "this machine"
                raise HarnessError(f"no {self.name} cluster at {where}: {' '.join(str(error).split())}") from None
            self.jobs = min(self._jobs or slots, slots)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the cluster as it was."""
        self._open.close()

    def outcomes(self, function: Callable[[Job], Outcome], jobs: Iterator[Job]) -> Iterator[Outcome]:
        """Run jobs and give their outcomes in the order in which they come.

        Args:
            function: Runs one.
            jobs: Asked for the next one whenever a worker is free.

        Raises:
            WorkersLostError: A worker died.
        """
        with ExitStack() as stack:
            if self.name == "loky":
                # Before the first job: a sweep may be killed while its workers start.
                config = joblib.parallel_config(backend="loky", initializer=end_with, initargs=(os.getpid(),))
            else:
                config = joblib.parallel_config(backend=self.name)
            stack.enter_context(config)
            # With a single job at a time joblib would run it in this process. So there are two workers at least, of
            # which no more than there should be are given something to do.
            parallel = joblib.Parallel(
                n_jobs=max(self.jobs, 2),
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch=self.jobs,
            )
            with _interrupts_held_back():
                found = parallel(joblib.delayed(function)(job) for job in jobs)
            # Closing it, on Ctrl-C for instance, ends the workers at once.
            with closing(found):
                try:
                    yield from found
                except TerminatedWorkerError as error:
                    raise WorkersLostError from error

    def _connect_dask(self) -> int:
        from distributed import Client

        client = self._open.enter_context(Client(self.address, timeout=CONNECT_SECONDS))
        threads: dict[str, int] = client.nthreads()
        if not threads:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
            threads = client.nthreads()
        return sum(threads.values())

    def _connect_ray(self) -> int:
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        _let_ray_give_results_as_they_come()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, configure_logging=False)
            self._open.callback(ray.shutdown)
        return int(ray.cluster_resources().get("CPU", 1))


def _let_ray_give_results_as_they_come() -> None:
    """Allow generators with ray's backend.

    It inherits from joblib's backend for multiprocessing that they are refused, because the pools of the standard
    library do not end well when a generator is left early. Ray's own pool does not have that fault.
    """
    from joblib.parallel import BACKENDS
    from ray.util.joblib.ray_backend import RayBackend

    class Streaming(RayBackend):
        supports_return_generator = True

    BACKENDS["ray"] = Streaming


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let processes that are started inside be deaf to Ctrl-C, which is meant for the sweep; here it comes in later."""
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
