"""How much faster a model is once it is pruned to half its FLOPs.

`torchorbit.prune(flops=0.5, round_to=8)`, then forwards of the original model and of the pruned one in turns, batch 1,
in one process: on one thread, and on as many as torch takes by itself.
"""

from __future__ import annotations

import argparse
import platform

import torch
from tabulate import tabulate

import torchorbit
from harness.models import VERSIONS, build, input_size
from torchorbit.latency import MeasuredLatency

MODELS = ("resnet50", "vit_small_patch16_224", "convnext_tiny")


def gflops_and_millions(dag: torchorbit.DagModule) -> tuple[float, float]:
    """GFLOPs, two per multiply-accumulate, and parameters in millions."""
    return torchorbit.flops(dag).total / 1e9, sum(parameter.numel() for parameter in dag.parameters()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(MODELS), help="only the first so many models")
    parser.add_argument("--repeats", type=int, default=50, help="forwards of each")
    options = parser.parse_args()
    all_threads = torch.get_num_threads()
    versions = ", ".join(f"{key} {value}" for key, value in VERSIONS.items())
    print(f"{platform.machine()}, {all_threads} threads at most, {versions}\n")

    rows = []
    for name in MODELS[: options.models]:
        torch.manual_seed(0)
        model = build(name)
        x = torch.randn(1, *input_size(model))
        dag = torchorbit.convert(model, x)
        pruned = torchorbit.prune(dag, flops=0.5, round_to=8)
        (gflops, millions), (gflops_left, millions_left) = gflops_and_millions(dag), gflops_and_millions(pruned)
        for threads in sorted({1, all_threads}):
            latency = MeasuredLatency(x, repeats=options.repeats, threads=threads)
            before, after = latency.in_turns(model, pruned)
            row = (gflops, gflops_left, millions, millions_left, before * 1e3, after * 1e3, after / before)
            rows.append((name, threads, *row))
    headers = (
        "model",
        "threads",
        "GFLOPs",
        "pruned",
        "parameters, M",
        "pruned",
        "latency, ms",
        "pruned",
        "pruned / original",
    )
    formats = ("", "", *[".2f"] * 4, *[".1f"] * 2, ".3f")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=formats))


if __name__ == "__main__":
    main()
