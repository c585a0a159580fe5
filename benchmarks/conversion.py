"""What conversion costs, beside what it could cost at the least and beside `torch.export`.

For every model, in one process and on one thread:

- `meta forward`: one forward of the source on meta tensors;
- `convert`: `torchorbit.convert`, from the model on meta to a `DagModule`;
- `export`: `torch.export.export` of the source on meta with a free batch size;
- `floor`: CPU time of building the model on meta and running it once, in a worker process;
- `sweep`: CPU time of the job that a sweep with `--verify shape` runs for the model, in a worker process;
- `graph / source`: the forward of the graph over that of the source, with weights, batch 1, for some of the models.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from tabulate import tabulate

import torchorbit
from families import FAMILIES
from harness.jobs import Job
from harness.limits import available_bytes
from harness.memory import release_memory
from harness.models import VERSIONS, build_on_meta, build_with_random_weights, example_input, input_size
from harness.worker import run, settle_process

# A subset for running with weights: twenty, convolutional and transformer, small and not so small.
RUN = """
    resnet50 resnext50_32x4d vit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_tiny efficientnet_b0
    mobilenetv3_small_100 regnety_004 densenet121 cait_xxs24_224 coat_lite_tiny edgenext_small fastvit_t8 ghostnet_100
    hiera_tiny_224 mixer_s16_224 mobilevit_s poolformer_s12 pvt_v2_b0 xcit_nano_12_p16_224
"""


def timed(action: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of an action in seconds, after one run to warm up."""
    action()
    times = []
    for _ in range(repeats):
        started = clock()
        action()
        times.append(clock() - started)
    return statistics.median(times)


def conversion(name: str) -> tuple[float, float, float | None]:
    """Seconds for one meta forward, for conversion, and for export (None where export refuses the model)."""
    model = build_on_meta(name)
    x = example_input(model)
    with torch.no_grad():
        forward = timed(lambda: model(x), 3)
    convert = timed(lambda: torchorbit.convert(model, x), 3)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    try:
        started = time.perf_counter()
        torch.export.export(model, (x,), dynamic_shapes=shapes)
        export = time.perf_counter() - started
    except Exception:
        export = None
    return forward, convert, export


def floor(names: list[str]) -> float:
    """CPU seconds for building models on meta and running each once."""
    settle_process()
    torch.set_num_threads(1)
    started = time.process_time()
    for name in names:
        model = build_on_meta(name)
        with torch.no_grad():
            model(example_input(model))
        del model
        release_memory()
    return time.process_time() - started


def sweep(names: list[str]) -> float:
    """CPU seconds of the jobs that a sweep runs for models."""
    settle_process()
    budget = available_bytes()
    started = time.process_time()
    for name in names:
        outcome = run(Job(name, "shape", VERSIONS, memory_bytes=budget, memory_total=budget))
        if outcome.record is None or outcome.record.failed:
            raise SystemExit(f"{name} failed: {outcome.record and outcome.record.error}")
    return time.process_time() - started


def in_a_worker(action: Callable[[list[str]], float], names: list[str]) -> float:
    """Call a function in a process of its own, as the workers of a sweep are."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(action, names).result()


def running(name: str, repeats: int) -> tuple[float, float]:
    """Median seconds of a forward of the source and of its graph, taken in turns."""
    model = build_with_random_weights(name)
    graph = torchorbit.convert(model, example_input(model))
    x = torch.randn(1, *input_size(model))
    times: dict[str, list[float]] = {"source": [], "graph": []}
    with torch.no_grad():
        for turn in range(repeats + 3):
            for which, module in (("source", model), ("graph", graph)):
                started = time.perf_counter()
                module(x)
                if turn >= 3:
                    times[which].append(time.perf_counter() - started)
    return statistics.median(times["source"]), statistics.median(times["graph"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(FAMILIES.split()), help="only the first so many models")
    parser.add_argument("--repeats", type=int, default=15, help="forwards per model when running with weights")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names = FAMILIES.split()[: options.models]
    print(f"{platform.machine()}, one thread, " + ", ".join(f"{key} {value}" for key, value in VERSIONS.items()) + "\n")

    print_conversion(names)
    floors, sweeps = in_a_worker(floor, names), in_a_worker(sweep, names)
    print(f"sweep / floor, CPU time: {sweeps / floors:.2f} ({sweeps:.1f} s over {floors:.1f} s, {len(names)} models)\n")
    print_running([name for name in RUN.split() if name in names], options.repeats)


def print_conversion(names: list[str]) -> None:
    """Conversion beside a meta forward and beside export."""
    rows = []
    over_forward, over_convert = [], []
    for name in names:
        forward, convert, export = conversion(name)
        over_forward.append(convert / forward)
        row: list[object] = [name, forward * 1e3, convert * 1e3, convert / forward, None, None]
        if export is not None:
            over_convert.append(export / convert)
            row[4:] = [export * 1e3, export / convert]
        rows.append(row)
    headers = ("model", "meta forward, ms", "convert, ms", "convert / forward", "export, ms", "export / convert")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".2f") + "\n")
    print(f"convert / meta forward: median {statistics.median(over_forward):.2f} over {len(rows)} models")
    print(
        f"export / convert: median {statistics.median(over_convert):.1f} over the {len(over_convert)} that it takes\n"
    )


def print_running(names: list[str], repeats: int) -> None:
    """Running a graph beside running its source."""
    rows = []
    ratios = []
    for name in names:
        source, graph = running(name, repeats)
        ratios.append(graph / source)
        rows.append((name, source * 1e3, graph * 1e3, graph / source))
    headers = ("model", "source, ms", "graph, ms", "graph / source")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3f") + "\n")
    print(f"graph / source, forward at batch 1: median {statistics.median(ratios):.3f} over {len(ratios)} models")


if __name__ == "__main__":
    main()
