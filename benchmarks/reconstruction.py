"""What reconstruction costs and brings: its time, what is left of the error in every family, how many samples it needs.

- ``time``: pruning with reconstruction from 256 images of 224 x 224, over the forward passes of the whole model on the
  same images, in one run.
- ``families``: one model of each family of timm, with random weights and four images of noise: how far the output is
  from the whole model's, before and after. That is no measure of quality; it shows what is accepted, and that nothing
  becomes worse.
- ``samples``: top-1 on digits of models that are trained here (`trained.py`), by the number of images without labels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import torchorbit
from families import FAMILIES
from harness.models import example_input
from harness.timm_import import timm

PACKAGES = ("torchorbit", "torch", "timm")
TIMED = ("resnet50", "vit_small_patch16_224")
TRAINED = ("resnet18", "vit")
NUMBERS = (0, 1, 8, 32, 128, 512)
BATCH = 32


def _say(*row: Any) -> None:
    print(*row, file=sys.stderr, flush=True)


@torch.no_grad()
def _outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    return torch.cat([model(batch) for batch in batches])


def times(images: int, flops: float) -> Iterator[list[str]]:
    """Seconds of reconstruction and of forward passes."""
    for name in TIMED:
        torch.manual_seed(0)
        model = timm.create_model(name, scriptable=False).eval()
        batches = list(torch.randn(images, 3, 224, 224).split(BATCH))
        dag = torchorbit.convert(model, batches[0][:1])
        _outputs(dag, batches[:1])
        started = time.perf_counter()
        _outputs(dag, batches)
        forward = time.perf_counter() - started
        for method in ("layerwise", "affine"):
            started = time.perf_counter()
            torchorbit.prune(
                dag, loader=batches, flops=flops, criterion="magnitude", selector="uniform", reconstruct=method
            )
            spent = time.perf_counter() - started
            _say(name, method, spent, forward)
            yield [name, method, f"{forward:.0f}", f"{spent:.0f}", f"{spent / forward:.2f}"]


def families(names: list[str], flops: float) -> Iterator[list[str]]:
    """Relative errors of the output, and how many layers became better."""
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, scriptable=False).eval()
        images = torch.randn(4, *example_input(model).shape[1:])
        options: dict[str, Any] = {"flops": flops, "criterion": "magnitude", "selector": "uniform"}
        dag = torchorbit.convert(model, images[:1])
        whole = _outputs(dag, [images])
        spread = (whole - whole.mean()).square().sum()
        started = time.perf_counter()
        plain = torchorbit.prune(dag, **options)
        smaller = torchorbit.prune(dag, **options, loader=[images], reconstruct=True)
        spent = time.perf_counter() - started
        before, after = [((whole - _outputs(m, [images])).square().sum() / spread).item() for m in (plain, smaller)]
        found = smaller.history.prunings[0].reconstruction.layers
        better = sum(layer.after < layer.before for layer in found)
        row = [name, str(len(found)), str(better), f"{before:.3g}", f"{after:.3g}", f"{spent:.0f}"]
        _say(*row)
        yield row


def samples(flops: float) -> Iterator[list[str]]:
    """Top-1 by the number of images."""
    from trained import RECIPES, images, trained
    from training import top1

    for name in TRAINED:
        model = trained(name, "digits")
        data = images("digits", RECIPES[name, "digits"].size, max(NUMBERS))
        dag = torchorbit.convert(model, data.calibration[0][:1])
        for criterion, selector in (("fisher_noise", "knapsack"), ("magnitude", "uniform"), ("lamp", "global")):
            row = [name, f"{top1(dag, *data.test):.1%}", f"{criterion}, {selector}"]
            for number in NUMBERS:
                given = {"loader": list(data.calibration[0][:number].split(64)), "reconstruct": True} if number else {}
                smaller = torchorbit.prune(dag, flops=flops, criterion=criterion, selector=selector, **given)  # type: ignore[arg-type]
                row.append(f"{top1(smaller, *data.test):.1%}")
            _say(*row)
            yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["time", "families", "samples"], help="of what is measured")
    parser.add_argument("--flops", type=float, default=0.5, help="share that is to be left")
    parser.add_argument("--images", type=int, default=256, help="that times are measured on")
    parser.add_argument("--only", action="append", metavar="NAME", help="only these models of the families")
    parser.add_argument("--out", type=Path, help="write the page to this file as well, say results/reconstruction.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    parts = [
        "# Reconstruction",
        f"Models pruned to {options.flops:.0%} of their FLOPs. Made by `nox -s bench -- reconstruction` on "
        f"{platform.machine()}, {torch.get_num_threads()} threads, with {versions}.",
    ]
    tables = {
        "time": (
            f"Time, {options.images} images of 224 x 224",
            ["model", "method", "forward passes, s", "pruning and reconstruction, s", "ratio"],
            lambda: times(options.images, options.flops),
        ),
        "families": (
            "One model of each family, random weights, four images of noise",
            ["model", "layers", "better", "error before", "error after", "seconds"],
            lambda: families(options.only or FAMILIES.split(), options.flops),
        ),
        "samples": (
            "Top-1 on digits by the number of images without labels",
            ["model", "whole", "chosen by", *[f"{number} images" for number in NUMBERS]],
            lambda: samples(options.flops),
        ),
    }
    for part in options.parts:
        title, headers, rows = tables[part]
        parts += [f"## {title}", tabulate(list(rows()), headers, tablefmt="github", disable_numparse=True)]
    text = "\n\n".join(parts)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
