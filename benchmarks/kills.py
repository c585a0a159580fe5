"""Kills, in figures: a sweep, a publisher and a puller are killed at random moments, and what they leave is looked at.

- Of a sweep now the sweep itself is killed, now one of its workers, now a process that has a model. It goes on, and the
  records are those of a sweep that nobody disturbed; when it is done it begins anew, until there were enough kills.
- A publisher puts two versions into a directory by turns. Whatever moment it is killed at, `main` is one of the two, to
  the last bit; in the end so is every commit.
- A puller copies a version out of that directory. Under the name of a file there is that file, whole, or none.

What was not survived is printed, and the exit code is 1. Run it in the root of the repository:
``python -m benchmarks.kills``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn

import torchorbit
from harness.errors import HarnessError
from harness.records import read_records
from tests.harness.kills import gone, kill, start, values
from torchorbit.errors import TorchorbitError
from torchorbit.files import digest
from zoo.checkpoint import save_checkpoint
from zoo.publishing import publish
from zoo.pulling import fetch

MODELS = ("test_byobnet", "test_convnext*", "test_efficientnet", "test_nfnet", "test_resnet", "test_vit*")
LONGEST_SECONDS = 8.0
"""Between a kill of a sweep and the next one. A sweep takes about half of that to start."""
REPO = "lab/net"
X = torch.ones(1, 3, 16, 16)
VERSIONS = {"first": 8, "second": 64}


class Kills:
    """Counts what was tried and what was survived, and prints what was not."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.tried = 0
        self.survived = 0
        self._started = time.monotonic()

    def note(self, tried: int, *wrong: str) -> None:
        """Kills, and what was wrong after them."""
        self.tried += tried
        self.survived += 0 if wrong else tried
        for each in wrong:
            print(f"{self.what}: {each}", file=sys.stderr, flush=True)

    def row(self) -> tuple[str, int, int, float]:
        return self.what, self.tried, self.survived, time.monotonic() - self._started


def sweeping(folder: Path, number: int, chance: random.Random) -> Kills:
    """Kill sweeps."""
    kills = Kills("a sweep, its workers and their processes")
    undisturbed, out = folder / "undisturbed.jsonl", folder / "records.jsonl"
    command = [sys.executable, "-m", "torchorbit", "sweep", *MODELS, "--jobs", "2", "--no-cache", "--out"]
    if number:
        subprocess.run([*command, str(undisturbed)], check=True, capture_output=True)
    while kills.tried < number:
        out.unlink(missing_ok=True)
        tried, wrong = _one_sweep([*command, str(out)], out, number - kills.tried, chance)
        # A model whose process was killed twice is tried again by a sweep that goes on.
        last = subprocess.run([*command, str(out)], capture_output=True, text=True)
        if last.returncode or values(out) != values(undisturbed):
            wrong.append(f"in the end {last.stderr.strip() or 'other records'}")
        kills.note(tried, *wrong)
    return kills


def _one_sweep(command: list[str], out: Path, most: int, chance: random.Random) -> tuple[int, list[str]]:
    """Kill one sweep until it is done: how often, and what was wrong."""
    tried, wrong = 0, []
    running = start(command)
    try:
        while tried < most:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(chance.uniform(0, LONGEST_SECONDS))
            if running.poll() is not None:
                break
            victim = chance.choice(["sweep", "worker", "process"])
            theirs = kill(victim, running, chance)
            if theirs is None:
                continue
            if victim == "sweep":
                if not gone(theirs):
                    wrong.append("what it had started outlives the sweep")
                running = start(command)
            tried += 1
            try:
                if out.exists():
                    read_records(out)
            except HarnessError as error:
                wrong.append(f"after killing a {victim}: {error}")
        running.communicate()
    finally:
        running.kill()
    return tried, wrong


def killed(work: Callable[[], object], chance: random.Random, longest: float) -> None:
    """Run something in a copy of this process, and kill that at a random moment."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(chance.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _outputs(model: nn.Module) -> list[float]:
    with torch.no_grad():
        return model(X).flatten().tolist()


def _made(folder: Path) -> dict[str, list[float]]:
    """Save the two versions: what each of them computes."""
    found = {}
    for name, width in VERSIONS.items():
        model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 14), nn.Flatten())
        graph = torchorbit.convert(model.eval(), X)
        save_checkpoint(graph, folder / name, name=name)
        found[name] = _outputs(graph)
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def publishing(folder: Path, number: int, chance: random.Random) -> Kills:
    """Kill publishers."""
    kills = Kills("a publication to a directory")
    hub = folder / "hub"
    expected = _made(folder)

    def by_turns() -> None:
        for name in VERSIONS:
            publish(folder / name, REPO, hub=hub)

    longest = _seconds(by_turns) * 1.2
    for _ in range(number):
        killed(by_turns, chance, longest)
        kills.note(1, *_wrong(hub, "main", expected))
    by_turns()  # as if nothing had been
    commits = [path.stem for path in (hub / "models--lab--net" / "commits").iterdir() if not path.name.startswith(".")]
    for revision in ("main", *commits):
        kills.note(0, *_wrong(hub, revision, expected))
    return kills


def _wrong(hub: Path, revision: str, expected: dict[str, list[float]]) -> list[str]:
    try:
        model = torchorbit.from_pretrained(REPO, hub=hub, revision=revision)
    except TorchorbitError as error:
        return [f"{revision}: {error}"]
    assert model.manifest is not None
    return [] if _outputs(model) == expected[model.manifest.name] else [f"{revision}: it computes something else"]


def pulling(folder: Path, number: int, chance: random.Random) -> Kills:
    """Kill pullers: now the folder is there before, with the other version, and now it is not."""
    kills = Kills("a pull from it into a folder")
    hub, out = folder / "hub", folder / "pulled"
    commits = {name: publish(folder / name, REPO, hub=hub).commit for name in VERSIONS}

    def pull(name: str) -> None:
        fetch(REPO, hub=hub, revision=commits[name], out=out)

    published = {}
    for name in VERSIONS:
        pull(name)
        published[name] = _hashes(out)
        shutil.rmtree(out)
    whole = {file for files in published.values() for file in files.items()}

    longest = _seconds(lambda: pull("first")) * 1.2
    for turn in range(number):
        name = chance.choice(list(VERSIONS))
        killed(lambda name=name: pull(name), chance, longest)
        there = _hashes(out) if out.exists() else {}
        wrong = [f"{file} is not whole" for file, _ in there.items() - whole]
        pull(name)
        if _hashes(out) != published[name]:
            wrong.append(f"{name} was pulled again and is something else")
        kills.note(1, *wrong)
        if turn % 2:
            shutil.rmtree(out)
    return kills


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in folder.iterdir()}


def main() -> int:
    """Kill, and print the figures.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=100, help="kills of a sweep, about four seconds each")
    parser.add_argument("--publications", type=int, default=1000, help="kills of a publisher, several in a second")
    parser.add_argument("--pulls", type=int, default=1000, help="kills of a puller, several in a second")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no sweep is left
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        done = [
            publishing(Path(folder), options.publications, chance).row(),
            pulling(Path(folder), options.pulls, chance).row(),
            sweeping(Path(folder), options.sweeps, chance).row(),
        ]
    headers = ["killed", "kills", "survived", "seconds"]
    print(tabulate(done, headers, tablefmt="github", floatfmt=("", "", "", ".0f")))
    return int(any(tried != survived for _, tried, survived, _ in done))


if __name__ == "__main__":
    sys.exit(main())
