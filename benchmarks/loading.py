"""What loading a saved graph costs, beside `torch.load` of the same model pickled.

A model is pruned to half its FLOPs, saved as a folder with `DagModule.save`, and pickled with `torch.save`. Then both
are loaded in turns, on one thread: again and again in one process, and once in each of several new ones, where nothing
is imported and compiled yet but `import torchorbit` itself. A folder is checked and run on meta tensors while it is
loaded, and its weights are mapped; a pickle is trusted and read. The last column loads and then runs a forward, batch
1, so that what was only mapped is read, too.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

import torchorbit
from harness.models import VERSIONS, build, input_size

MODELS = ("resnet50", "vit_small_patch16_224", "convnext_tiny")

LOADERS: dict[str, Callable[[Path], Any]] = {
    "torchorbit.load": lambda folder: torchorbit.load(folder),
    "torch.load": lambda folder: torch.load(folder / "model.pt", weights_only=False),
}


def once(which: str, folder: Path, *, forward: bool = False) -> float:
    """Seconds of a load, and of a forward after it where that is asked for."""
    gc.collect()
    with torch.no_grad():
        started = time.perf_counter()
        model = LOADERS[which](folder)
        if forward:
            model(torch.zeros(model.provenance.input_shapes[0]))
        return time.perf_counter() - started


def in_turns(folder: Path, repeats: int, *, forward: bool = False) -> dict[str, float]:
    """Median seconds of each loader, taken in turns in this process."""
    times: dict[str, list[float]] = {which: [] for which in LOADERS}
    for turn in range(repeats + 1):
        for which, taken in times.items():
            seconds = once(which, folder, forward=forward)
            if turn:
                taken.append(seconds)
    return {which: statistics.median(taken) for which, taken in times.items()}


def in_new_processes(folder: Path, repeats: int) -> dict[str, float]:
    """Median seconds of the first load in a process."""
    times: dict[str, list[float]] = {which: [] for which in LOADERS}
    for _ in range(repeats):
        for which, taken in times.items():
            command = [sys.executable, __file__, "--once", which, str(folder)]
            taken.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {which: statistics.median(taken) for which, taken in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(MODELS), help="only the first so many models")
    parser.add_argument("--repeats", type=int, default=15, help="loads of each")
    parser.add_argument("--once", nargs=2, metavar=("LOADER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.once:
        print(once(options.once[0], Path(options.once[1])))
        return
    print(f"{platform.machine()}, one thread, " + ", ".join(f"{key} {value}" for key, value in VERSIONS.items()) + "\n")

    rows = []
    for name in MODELS[: options.models]:
        torch.manual_seed(0)
        model = build(name)
        dag = torchorbit.convert(model, torch.randn(1, *input_size(model)))
        pruned = torchorbit.prune(dag, flops=0.5, round_to=8)
        millions = sum(parameter.numel() for parameter in pruned.parameters()) / 1e6
        with tempfile.TemporaryDirectory() as folder:
            pruned.save(folder)
            torch.save(pruned, Path(folder) / "model.pt")
            del model, dag, pruned
            again = in_turns(Path(folder), options.repeats)
            first = in_new_processes(Path(folder), max(3, options.repeats // 3))
            run = in_turns(Path(folder), max(3, options.repeats // 3), forward=True)
        row: list[object] = [name, millions]
        for times in (again, first, run):
            ours, theirs = times.values()
            row += [ours * 1e3, theirs * 1e3, ours / theirs]
        rows.append(row)
    headers = ["model, pruned", "parameters, M"]
    for what in ("load", "first load in a process", "load and forward"):
        headers += [f"{what}, ms", "torch.load, ms", "ratio"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ".2f", *[".1f", ".1f", ".2f"] * 3)))


if __name__ == "__main__":
    main()
