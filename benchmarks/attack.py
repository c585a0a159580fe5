"""Attacks on the loading of saved graphs, in figures: graphs made by hand to take long, and thousands that are drawn.

Every one of the first is loaded in a process of its own, so that its memory can be told. The drawn ones are those of
the tests (`tests/graph/generated.py`). Run it in the root of the repository: ``python -m benchmarks.attack``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import time

import torch
from tabulate import tabulate

import torchorbit
from tests.graph.bombs import BOMBS
from torchorbit.graph.loading import unpack


def load(name: str) -> tuple[str, str, float, float]:
    """What became of a graph made by hand, the seconds of processor time that it took, and the megabytes."""
    document, tensors = BOMBS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.thread_time()
    try:
        unpack(document, tensors)
        outcome = "loaded"
    except torchorbit.CheckpointError:
        outcome = "refused"
    seconds = time.thread_time() - started
    return name, outcome, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Load, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=20_000, help="drawn from the table of operators")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.map(load, BOMBS, chunksize=1)
    headers = ["made by hand", "outcome", "seconds", "MB"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", ".2f", ".0f")))
    slowest, largest = max(row[2] for row in rows), max(row[3] for row in rows)
    print(f"\n{len(rows)} made by hand: at most {slowest:.1f} s and {largest:.0f} MB")
    command = [sys.executable, "-W", "ignore", "-m", "tests.graph.generated", str(options.graphs), str(options.seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    drawn = json.loads(done.stdout.splitlines()[-1])
    print(f"{options.graphs} drawn: " + ", ".join(f"{value} {key}" for key, value in drawn.items()))


if __name__ == "__main__":
    main()
