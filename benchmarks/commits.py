"""What conversion and orbit discovery cost in this tree, beside what they cost in another commit's.

Both trees answer in turn, in two processes of one thread each, model by model and pass by pass, so that whatever else
the machine does meets both alike; of every model the least time of each counts. The other commit is checked out into a
temporary folder, and runs with the packages that are installed for this one.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("convert", "find_orbits")


def answer() -> None:
    """Answer on standard output what is asked on standard input: a model's name, then an empty line for each pass."""
    warnings.filterwarnings("ignore")
    # Of the tree that is measured, as is `torchorbit`.
    import torch

    import torchorbit
    from harness.models import build_on_meta, example_input

    torch.set_num_threads(1)
    model = x = None
    print(json.dumps(torchorbit.__file__), flush=True)
    for line in sys.stdin:
        if name := line.strip():
            model = build_on_meta(name)
            x = example_input(model)
            print(json.dumps(None), flush=True)
            continue
        assert model is not None
        assert x is not None
        gc.collect()
        times = [time.perf_counter()]
        dag = torchorbit.convert(model, x)
        times.append(time.perf_counter())
        torchorbit.find_orbits(dag)
        times.append(time.perf_counter())
        print(json.dumps([after - before for before, after in itertools.pairwise(times)]), flush=True)


class Tree:
    """A process that measures what one tree holds."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )
        origin = Path(self._read())
        if not origin.is_relative_to(folder):
            raise SystemExit(f"the torchorbit that would be measured is that of {origin}, not of {folder}")

    def ask(self, line: str) -> Any:
        """Send one line and wait for what comes back."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process that measures ended with exit code {self._process.wait()}")
        return json.loads(answer)


def compare(before: Tree, after: Tree, name: str, passes: int) -> list[tuple[float, float]]:
    """Least seconds before and after, of each step."""
    for tree in (before, after):
        tree.ask(name)
        tree.ask("")  # to warm up
    times = [(before.ask(""), after.ask("")) for _ in range(passes)]
    return [
        (min(earlier[step] for earlier, _ in times), min(later[step] for _, later in times))
        for step in range(len(STEPS))
    ]


def main() -> None:
    from tabulate import tabulate

    from families import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="what to compare this tree with")
    parser.add_argument("--models", type=int, help="only so many")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this model; may be given repeatedly")
    parser.add_argument("--passes", type=int, default=5, help="measurements of each, of which the least counts")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        worktree = Path(folder).resolve() / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(worktree), arguments.commit], check=True)
        try:
            before, after = Tree(worktree), Tree(ROOT)
            names = (arguments.only or FAMILIES.split())[: arguments.models]
            measured = {name: compare(before, after, name, arguments.passes) for name in names}
        finally:
            subprocess.run([*git, "remove", "--force", str(worktree)], check=True)

    rows = []
    for name, steps in measured.items():
        rows.append([name])
        for earlier, later in steps:
            rows[-1] += [f"{1000 * earlier:.1f}", f"{1000 * later:.1f}", f"{later / earlier:.2f}"]
    headers = ["model", *(f"{step} {column}" for step in STEPS for column in ("before, ms", "now, ms", "ratio"))]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for index, step in enumerate(STEPS):
        ratios = [steps[index][1] / steps[index][0] for steps in measured.values()]
        print(f"{step}: median of the ratios {statistics.median(ratios):.3f}, highest {max(ratios):.3f}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        answer()
    else:
        main()
