"""Sweeps that are killed, starved of disk, and deprived of their workers: nothing is lost, and nothing is found twice."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import read_records
from tests.harness.kills import gone, kill, processes_of, start, values

MODELS = """
    test_* resnet10t resnet14t resnet18 resnet18d resnet26 resnet26t resnet34 resnetv2_18 resnetv2_34 mobilenetv3_small_050
    mobilenetv3_small_075 mobilenetv3_small_100 mobilenetv2_035 mobilenetv2_050 lcnet_035 lcnet_050 lcnet_075 lcnet_100
    regnetx_002 regnetx_004 regnety_002 regnety_004 vgg11 vgg13 vit_tiny_patch16_224 convnext_atto convnext_femto
    efficientnet_lite0 mnasnet_small semnasnet_075 ghostnet_050 hardcorenas_a tinynet_e repvgg_a0 mixer_s32_224
    fastvit_t8 starnet_s1 mobileone_s0 levit_128s edgenext_xx_small poolformer_s12 pit_ti_224 xcit_nano_12_p16_224
"""


def command(out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "harness.cli",
        "sweep",
        *MODELS.split(),
        "--jobs",
        "2",
        "--no-cache",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The records of a sweep with one worker that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "records.jsonl"
    subprocess.run([*command(out), "--jobs", "1"], check=True, capture_output=True)
    found = values(out)
    assert len(found) >= 60
    return found


@pytest.mark.slow
def test_killed_twenty_times_it_finds_out_the_same(tmp_path: Path, undisturbed: dict[str, dict[str, Any]]) -> None:
    """Now the sweep itself, now one of its workers, now a process that has a model, at any moment."""
    out = tmp_path / "records.jsonl"
    chance = random.Random(20)
    kills = dict.fromkeys(("sweep", "worker", "process"), 0)
    running = start(command(out))
    while sum(kills.values()) < 20 or 0 in kills.values():
        before = len(read_records(out)) if out.exists() else 0
        # Some time after it found out more; the last ones, when little is left, at any time.
        deadline = time.monotonic() + 60
        while running.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.read_bytes().count(b"\n") > before:
                break
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.6))
        if running.poll() is not None:
            # It was done: begin again with what a third of the records leave to do.
            out.write_text("".join(out.read_text().splitlines(keepends=True)[: len(undisturbed) // 3]))
            running = start(command(out))
            continue
        victim = chance.choice(list(kills))
        killed = kill(victim, running, chance)
        if killed is None:
            continue
        if victim == "sweep":
            assert gone(killed), "workers outlive the sweep"
            running = start(command(out))
        kills[victim] += 1
        # What was killed twice in the same model's hands may be what its record says, until the sweep goes on.
        assert {record.stage for record in read_records(out)} <= {None, "worker"}
    running.communicate()
    subprocess.run(command(out), check=True, capture_output=True)

    assert values(out) == undisturbed


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_stops_cleanly(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    out = tmp_path / "records.jsonl"
    running = start(command(out), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for(lambda: out.exists() and b"\n" in out.read_bytes())
    theirs = processes_of(running.pid)

    running.send_signal(sent)
    output, _ = running.communicate(timeout=30)

    assert running.returncode == code
    assert "Traceback" not in output
    assert "the same command with --resume goes on" in output
    assert gone(theirs)
    assert all(record.stage is None for record in read_records(out))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_where_there_is_no_room_on_the_disk_it_stops_in_one_line_and_goes_on_later(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    arguments = [sys.executable, "-m", "harness.cli", "sweep", "test_*", "--jobs", "1", "--no-cache", "--out", str(out)]

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    full = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=little_room)

    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith(f"torchorbit: cannot write {out}: File too large")
    assert "Traceback" not in full.stderr
    kept = read_records(out)
    assert 1 <= len(kept) < 5
    assert out.read_bytes().endswith(b"\n")
    assert out.stat().st_size <= 2000

    later = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert f"{len(kept)} of them from an earlier run" in later.stdout
    assert len(values(out)) > 10


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "records.jsonl"

    found = subprocess.run(
        [sys.executable, "-m", "harness.cli", "sweep", "test_vit", "--out", str(out)], capture_output=True, text=True
    )

    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith(f"torchorbit: cannot write {out}: ")
    assert "Traceback" not in found.stderr


def test_a_second_sweep_on_the_same_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    # One that is not done before the second has begun, however little of the machine that one gets.
    first = start(command(out, "odd_endless", "--import", "tests.harness.odd_models"))
    try:
        wait_for(lambda: out.exists() and b"\n" in out.read_bytes())
        second = subprocess.run(command(out), capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    finally:
        first.terminate()
        first.wait()

    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith(f"torchorbit: another sweep is writing {out}")


def test_any_number_of_workers_in_any_order_finds_out_the_same(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 3):
        out = tmp_path / f"{jobs}.jsonl"
        arguments = ["sweep", "test_vit", "test_resnet", "test_convnext", "test_nfnet", "--verify", "numeric"]
        more = ["--jobs", str(jobs), "--no-cache", "--out", str(out)]
        subprocess.run([sys.executable, "-m", "harness.cli", *arguments, *more], check=True, capture_output=True)
        found.append(values(out))

    assert found[0] == found[1]
