"""The same sweep on a cluster: a real scheduler and real workers, all on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.backends import Backend
from harness.errors import HarnessError
from harness.records import read_records
from harness.sweep import sweep
from torchorbit.errors import MissingExtraError

NAMES = """
    test_vit test_resnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_nfnet test_mambaout
    test_vit2 test_vit3 test_vit4 test_byobnet resnet10t resnet18 vit_tiny_patch16_224 convnext_atto
"""


def values(path: Path) -> dict[str, dict[str, Any]]:
    records = read_records(path)
    return {record.model: {**vars(record), "seconds": None, "peak_rss_mb": None} for record in records}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a sweep on this machine finds out."""
    out = tmp_path_factory.mktemp("here") / "records.jsonl"
    sweep(NAMES.split(), out, jobs=1)
    return values(out)


@pytest.fixture
def dask() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler's address, and its two workers."""
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    cli = [sys.executable, "-m", "distributed.cli"]
    own = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*cli[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        **own,
    )
    workers = [
        subprocess.Popen(
            [*cli[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"], **own
        )
        for _ in range(2)
    ]
    yield address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


@pytest.mark.slow
def test_on_dask_though_a_worker_is_killed(
    tmp_path: Path,
    here: dict[str, dict[str, Any]],
    dask: tuple[str, list[subprocess.Popen[bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, workers = dask
    out = tmp_path / "records.jsonl"

    def kill_one() -> None:
        while not out.exists() or len(out.read_text().splitlines()) < 3:
            time.sleep(0.05)
        workers[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    summary = sweep(NAMES.split(), out, backend=Backend("dask", address=address))

    killer.join(timeout=1)
    assert workers[0].poll() is not None
    assert workers[1].poll() is None
    assert summary.failures == []
    assert values(out) == here


@pytest.mark.slow
def test_on_ray(tmp_path: Path, here: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        summary = sweep(NAMES.split(), tmp_path / "records.jsonl", backend=Backend("ray"))
    finally:
        ray.shutdown()

    assert summary.failures == []
    assert values(tmp_path / "records.jsonl") == here


def test_no_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("harness.backends.CONNECT_SECONDS", 1)

    with pytest.raises(HarnessError, match=r"no dask cluster at tcp://127\.0\.0\.1:9: ") as raised:
        sweep(["test_vit"], tmp_path / "records.jsonl", backend=Backend("dask", address="tcp://127.0.0.1:9"))

    assert "\n" not in str(raised.value)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(
        MissingExtraError,
        match=r"--backend dask needs distributed, which is not installed: pip install 'torchorbit\[distributed\]'",
    ):
        sweep(["test_vit"], tmp_path / "records.jsonl", backend=Backend("dask"))
