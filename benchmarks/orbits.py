"""From a model to its orbits, and to a pruned model that runs, beside torch_pruning and torch-dag.

Every contestant gets the same models, initialized by timm, batch 1, one thread, and each model in a process of its own,
which is killed when it takes too long:

- `torchorbit`: `convert`, which leaves the graph written out without blocks, `find_orbits`, then `remove_channels` of
  half of every orbit;
- `torch_pruning`: `DependencyGraph.build_dependency`, `get_all_groups`, then `MetaPruner` with a ratio of 0.5, with
  what its example for timm sets up: unfused attention, the numbers of heads, the classifier ignored;
- `torch-dag`: `build_from_unstructured_module`, `GeneralOrbitalizer.orbitalize`, then `remove_channels_in_dag` with the
  logits of every orbit set to remove one half, as its own tests set them. Verification and statistics are off.

A process first goes from the model to a forward of the pruned one, which must have fewer parameters and an output of
the same shape; that is its warm-up, and what peak memory is measured over. Then it repeats what is timed three times,
as long as it has time: the table has the medians.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from families import FAMILIES

if TYPE_CHECKING:  # The parent stays small, and its workers import what they need.
    from torch import Tensor, nn

LIMIT = 120.0
"""Seconds that a process may take, from its start."""

# One per family; then hard ones; then large ones.
MODELS = (
    FAMILIES
    + """
    hrnet_w18 dpn68 halonet26t vit_base_patch16_clip_224 nasnetalarge

    vit_large_patch16_224 convnext_large swin_large_patch4_window7_224 resnet152 efficientnetv2_l
"""
)

PACKAGES = ("torchorbit", "torch_pruning", "torch-dag")


# -- in a worker


@dataclass
class Contestant:
    """How one of the packages goes about it.

    Attributes:
        steps: What is timed; each takes what the one before it gave, the first the model.
        prune: Makes a pruned model of the model and of what the steps of the first pass gave.
        first_pass: How many of the steps pruning needs.
    """

    steps: dict[str, Callable[[Any], Any]]
    prune: Callable[[Any, Any], nn.Module]
    first_pass: int


def torchorbit_contestant(x: Tensor) -> Contestant:
    """Ours."""
    import torchorbit

    def orbits(dag: Any) -> Any:
        return dag, torchorbit.find_orbits(dag)

    def prune(model: nn.Module, found: Any) -> nn.Module:
        dag, orbits = found
        return torchorbit.remove_channels(dag, {orbit: range(orbit.width // 2) for orbit in orbits})

    return Contestant({"conversion": lambda model: torchorbit.convert(model, x), "orbits": orbits}, prune, 2)


def torch_pruning_contestant(x: Tensor) -> Contestant:
    """torch_pruning, used as its example for timm uses it (examples/timm_models/prune_timm_models.py)."""
    import torch_pruning
    from torch import nn

    classifiers: list[nn.Module] = []

    def graph(model: nn.Module) -> Any:
        classifiers[:] = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == _classes(model)]
        classifiers.extend(m for m in [getattr(model, "get_classifier", lambda: None)()] if isinstance(m, nn.Module))
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)

    def groups(graph: Any) -> int:
        return sum(1 for _ in graph.get_all_groups(ignored_layers=list(classifiers)))

    def prune(model: Any, _: Any) -> nn.Module:
        attentions = [m for m in model.modules() if hasattr(m, "num_heads") and isinstance(_qkv(m), nn.Module)]
        heads = {_qkv(m): m.num_heads for m in attentions}
        pruner = torch_pruning.pruner.MetaPruner(
            model,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=0.5,
            num_heads=heads,
            ignored_layers=list(classifiers),
        )
        pruner.step()
        for attention in attentions:
            attention.num_heads = heads[_qkv(attention)]
            attention.head_dim = _qkv(attention).weight.shape[0] // (3 * attention.num_heads)
            if hasattr(attention, "attn_dim"):  # today's timm stores it, too
                attention.attn_dim = attention.head_dim * attention.num_heads
        return model

    # Pruning builds a graph of its own, groups included.
    return Contestant({"conversion": graph, "orbits": groups}, prune, 1)


def _classes(model: Any) -> int | None:
    return getattr(model, "num_classes", None)


def _qkv(attention: Any) -> Any:
    return getattr(attention, "qkv", None) or getattr(attention, "qkv_proj", None)


def torch_dag_contestant(x: Tensor) -> Contestant:
    """torch-dag. All that it imports is there in today's torch and timm, so that no name has to be made up for it."""
    import torch
    import torch_dag
    from torch_dag_algorithms.pruning import GeneralOrbitalizer, get_orbits_dict, remove_channels_in_dag

    def conversion(model: nn.Module) -> Any:
        _take_one_argument(type(model))
        return torch_dag.build_from_unstructured_module(model)

    def orbits(dag: Any) -> Any:
        # Without a shape it does not run the model before and after, to compare them.
        dag, _ = GeneralOrbitalizer().orbitalize(dag, prune_stem=True, input_shape=None, force_log_stats=False)
        return dag

    def prune(_: Any, dag: Any) -> nn.Module:
        for orbit in get_orbits_dict(dag).values():
            orbit.debug_logits = torch.ones(orbit.num_channels)
            orbit.debug_logits[: orbit.num_channels // 2] = -1
        dag.cache_forward_dict = True
        dag = remove_channels_in_dag(dag, input_shape=tuple(x.shape))
        dag.clear_tensor_dicts()
        dag.cache_forward_dict = False
        return dag

    return Contestant({"conversion": conversion, "orbits": orbits}, prune, 2)


def _take_one_argument(kind: Any) -> None:
    """Take away the optional arguments of a model's forward, which no model of timm 0.9 had: torch-dag would make
    inputs of the graph of them, and could not run it.
    """
    forward = kind.forward
    if len(inspect.signature(forward).parameters) > 2:
        kind.forward = lambda self, x: forward(self, x)


CONTESTANTS = dict(zip(PACKAGES, (torchorbit_contestant, torch_pruning_contestant, torch_dag_contestant), strict=True))


def work(package: str, name: str) -> None:
    """Take a model through a package, and write to standard output what happens as it happens: a line of JSON each."""
    started = time.monotonic()
    output, sys.stdout = sys.stdout, sys.stderr  # for whatever else prints

    def say(**what: object) -> None:
        print(json.dumps(what), file=output, flush=True)

    warnings.filterwarnings("ignore")
    if package == "torch_pruning":
        os.environ["TIMM_FUSED_ATTN"] = "0"
    say(stage="building")
    import logging

    import torch

    from harness.memory import peak_rss_mb
    from harness.models import build, input_size

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable(logging.ERROR)
    model = build(name)
    x = torch.randn(1, *input_size(model))
    with torch.no_grad():
        shape = model(x).shape
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(parameters=parameters, stage="import")
    contestant = CONTESTANTS[package](x)

    try:
        found: Any = model
        for step in list(contestant.steps)[: contestant.first_pass]:
            say(stage=step)
            gc.collect()
            before = time.perf_counter()
            found = contestant.steps[step](found)
            say(seconds={step: time.perf_counter() - before}, peak=peak_rss_mb())
        say(stage="pruning")
        pruned: Any = contestant.prune(model, found)
        say(stage="forward", peak=peak_rss_mb())
        with torch.no_grad():
            result = pruned(x)
        left = sum(parameter.numel() for parameter in pruned.parameters())
        if result.shape != shape:
            raise ValueError(f"the output was {tuple(shape)}, is {tuple(result.shape)}")
        if left >= parameters:
            say(stage="nothing pruned")
            raise ValueError(f"{left} parameters of {parameters} are left")
        say(pruned=left / parameters, peak=peak_rss_mb())
    except Exception as error:
        say(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])

    found = pruned = None
    model = build(name)  # some prune the model itself
    seconds: dict[str, list[float]] = {step: [] for step in contestant.steps}
    for _ in range(3):
        round_started = time.monotonic()
        found = model
        for step, action in contestant.steps.items():
            gc.collect()
            before = time.perf_counter()
            found = action(found)
            seconds[step].append(time.perf_counter() - before)
            say(seconds={step: statistics.median(seconds[step])})
        found = None
        if time.monotonic() - started + 2 * (time.monotonic() - round_started) > LIMIT:
            break


# -- in the parent


@dataclass
class Result:
    """What a worker told about a model.

    Attributes:
        stage: The last one that it began.
        error: Why it went no further; None if it reached a pruned model that runs.
        seconds: What the steps took.
        peak: Peak memory in MiB.
        parameters: How many the model has.
        pruned: The share of them that is left.
    """

    stage: str = "start"
    error: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak: float | None = None
    parameters: int = 0
    pruned: float | None = None

    @property
    def to_orbits(self) -> float | None:
        """Seconds from the model to the orbits; None if it did not come so far."""
        return sum(self.seconds.values()) if {"conversion", "orbits"} <= self.seconds.keys() else None

    @property
    def outcome(self) -> str:
        """In a word."""
        return f"{self.pruned:.0%}" if self.pruned is not None else self.failure

    @property
    def failure(self) -> str:
        """Where it ended."""
        return f"over {LIMIT:.0f} s" if self.error == f"over {LIMIT:.0f} s" else f"fails: {self.stage}"

    def cell(self, step: str) -> str:
        """Milliseconds of a step, or why there are none."""
        if step in self.seconds:
            return f"{self.seconds[step] * 1e3:.1f}"
        return self.failure if self.pruned is None else "fails"


def measure(package: str, name: str) -> Result:
    """Run a worker, and kill it when its time is over."""
    command = [sys.executable, __file__, "--worker", package, "--only", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    killed: list[float] = []

    def kill() -> None:
        killed.append(_peak(process.pid))
        process.kill()

    timer = Timer(LIMIT, kill)
    timer.start()
    assert process.stdout is not None
    result = Result()
    for line in process.stdout:
        told = json.loads(line)
        result.seconds.update(told.pop("seconds", {}))
        for key, value in told.items():
            setattr(result, key, value)
    process.wait()
    timer.cancel()
    if result.error is None and result.pruned is None:
        result.error = f"over {LIMIT:.0f} s" if killed else f"ended with status {process.returncode}"
        result.peak = max([result.peak or 0.0, *killed]) or None
    return result


def _peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


Results = dict[str, dict[str, Result]]
"""Model -> package -> what came of it."""


def print_models(results: Results, packages: Sequence[str]) -> None:
    """A row per model."""
    rows = []
    for name, by_package in results.items():
        row = [name, f"{max(result.parameters for result in by_package.values()) / 1e6:.1f}"]
        for package in packages:
            result = by_package[package]
            row += [result.cell("conversion"), result.cell("orbits"), result.outcome]
            row += ["" if result.peak is None else f"{result.peak:.0f}"]
        rows.append(row)
    headers = ["model", "parameters, M"]
    for package in packages:
        first, second = ("graph", "groups") if package == "torch_pruning" else ("conversion", "orbits")
        headers += [f"{package}: {first}, ms", f"{second}, ms", "parameters left", "peak, MiB"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n")


def print_find_orbits(results: Results) -> None:
    """What takes how long of ours, in a sentence."""
    times = {
        name: by_package["torchorbit"].seconds["orbits"] * 1e3
        for name, by_package in results.items()
        if "orbits" in by_package["torchorbit"].seconds
    }
    if times:
        slowest = max(times, key=lambda name: times[name])
        median = statistics.median(times.values())
        print(f"find_orbits alone: median {median:.1f} ms, at most {times[slowest]:.1f} ms ({slowest})\n")
        ratios = {name: ms / 1e3 / results[name]["torchorbit"].seconds["conversion"] for name, ms in times.items()}
        worst = max(ratios, key=lambda name: ratios[name])
        median = statistics.median(ratios.values())
        print(f"find_orbits / conversion: median {median:.2f}, at most {ratios[worst]:.2f} ({worst})\n")


def print_summary(results: Results, packages: Sequence[str]) -> None:
    """A row per package, each over the models that it took itself."""
    rows = []
    for package in packages:
        mine = [by_package[package] for by_package in results.values()]
        row: list[object] = [package, f"{sum(result.pruned is not None for result in mine)} of {len(mine)}"]
        for step in ("conversion", "orbits", None):
            times = [r.to_orbits if step is None else r.seconds.get(step) for r in mine]
            row.append(_spread([seconds * 1e3 for seconds in times if seconds is not None]))
        row.append(_spread([result.peak for result in mine if result.peak is not None], mean=False))
        rows.append(row)
    headers = (
        "",
        "pruned models that run",
        "conversion / graph, ms: median, mean, max",
        "orbits / groups, ms: median, mean, max",
        "model to orbits, ms: median, mean, max",
        "peak, MiB: median, max",
    )
    print(tabulate(rows, headers, tablefmt="github") + "\n")


def _spread(values: Sequence[float], mean: bool = True) -> str:
    if not values:
        return ""
    numbers = [statistics.median(values), *([statistics.mean(values)] if mean else []), max(values)]
    return ", ".join(f"{number:.1f}" if mean else f"{number:.0f}" for number in numbers)


def print_ratios(results: Results, packages: Sequence[str]) -> None:
    """Ours against each other, over the models for which both have the number."""
    rows = []
    for package in packages:
        if package == "torchorbit":
            continue
        for what, ours_of, theirs_of in _comparisons(package):
            pairs = [(ours_of(pair["torchorbit"]), theirs_of(pair[package])) for pair in results.values()]
            both = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
            if not both:
                continue
            ours, theirs = zip(*both, strict=True)
            rows.append(
                (
                    f"{package}: {what}",
                    len(both),
                    f"{statistics.median(ours):.1f} / {statistics.median(theirs):.1f}",
                    statistics.median(ours) / statistics.median(theirs),
                    f"{statistics.mean(ours):.1f} / {statistics.mean(theirs):.1f}",
                    statistics.mean(ours) / statistics.mean(theirs),
                    statistics.median([mine / other for mine, other in both]),
                    sum(mine < other for mine, other in both),
                )
            )
    headers = ("torchorbit / other", "models", "medians", "ratio", "means", "ratio", "median of ratios", "ours less on")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3f") + "\n")


def _comparisons(
    package: str,
) -> Iterator[tuple[str, Callable[[Result], float | None], Callable[[Result], float | None]]]:
    def step(name: str) -> Callable[[Result], float | None]:
        return lambda result: result.seconds[name] * 1e3 if name in result.seconds else None

    def to_orbits(result: Result) -> float | None:
        return None if result.to_orbits is None else result.to_orbits * 1e3

    def peak(result: Result) -> float | None:
        return result.peak if result.pruned is not None else None

    if package == "torch_pruning":
        yield "model to orbits / graph alone, ms", to_orbits, step("conversion")
        yield "model to orbits / graph and groups, ms", to_orbits, to_orbits
        yield "find_orbits / graph alone, ms", step("orbits"), step("conversion")
        yield "find_orbits / groups, ms", step("orbits"), step("orbits")
        yield "find_orbits / graph and groups, ms", step("orbits"), to_orbits
    else:
        yield "model to orbits, ms", to_orbits, to_orbits
        yield "conversion, ms", step("conversion"), step("conversion")
        yield "find_orbits / orbitalize, ms", step("orbits"), step("orbits")
    yield "peak memory where both prune, MiB", peak, peak


def print_failures(results: Results) -> None:
    """What went wrong, in the words of whom it went wrong for."""
    rows = [
        (name, package, result.stage, (result.error or "").replace("|", "\\|"))
        for name, by_package in results.items()
        for package, result in by_package.items()
        if result.pruned is None
    ]
    if rows:
        print(tabulate(rows, ("model", "", "stage", "error"), tablefmt="github") + "\n")


def main() -> None:
    """Measure and print."""
    names = MODELS.split()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(names), help="only the first so many models")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this model of timm; can be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time; for a quick look, timings suffer")
    parser.add_argument("--worker", choices=PACKAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.only[0])
        return
    packages = [package for package in PACKAGES if _version(package)]
    versions = [f"{package} {_version(package)}" for package in (*packages, "torch", "timm")]
    print(f"{platform.machine()}, one thread, Python {platform.python_version()}, {', '.join(versions)}\n")
    for package in PACKAGES:
        if package not in packages:
            print(f"{package} is not installed and left out.\n")

    def take(name: str) -> dict[str, Result]:
        found = {package: measure(package, name) for package in packages}
        print(name, ", ".join(f"{key}: {result.outcome}" for key, result in found.items()), file=sys.stderr, flush=True)
        return found

    chosen = options.only or names[: options.models]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(chosen, pool.map(take, chosen), strict=True))
    print_models(results, packages)
    print_find_orbits(results)
    print_summary(results, packages)
    print_ratios(results, packages)
    print_failures(results)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
