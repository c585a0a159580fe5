"""How close pruned models come to the FLOPs that are asked for, and how long it takes to choose what goes.

Models of different families, with random weights, are pruned to a share of their FLOPs, with any widths and with
multiples of 8, by several selectors; every removal is proved by `torchorbit.verify_removal`. Differences are never
above zero: a target is a limit. A target below what the least widths cost is listed with what they cost.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import dataclass

import torch
from tabulate import tabulate

import torchorbit
from families import FAMILIES
from harness.models import VERSIONS, build_with_random_weights, input_size
from torchorbit import Bounds, Target
from torchorbit.criteria import Magnitude
from torchorbit.errors import TargetError
from torchorbit.selectors import SELECTORS, Task

MODELS = """
    resnet50 resnext50_32x4d vit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_tiny efficientnet_b0
    mobilenetv3_small_100 levit_128s regnety_004 densenet121 cait_xxs24_224 coat_lite_tiny convit_tiny cspresnet50
    davit_tiny edgenext_small efficientformer_l1 eva02_tiny_patch14_224 fastvit_t8 gcvit_xxtiny ghostnet_100
    inception_v3 mixer_s16_224 mobilevit_s mvitv2_tiny pit_ti_224 pvt_v2_b0 repvgg_a0 rexnet_100 xcit_nano_12_p16_224
"""
NAMES = ("uniform", "global", "knapsack")
TARGETS = (0.7, 0.5, 0.3)
TOLERANCE = 1e-4


@dataclass
class Reached:
    """What one selector made of one model for one target; without FLOPs where it cannot be reached."""

    model: str
    target: float
    round_to: int
    selector: str
    whole: float
    flops: float | None
    seconds: float = 0.0
    proof: float = 0.0
    least: float = 0.0

    @property
    def difference(self) -> float:
        """Of what was reached from the target, over the target."""
        assert self.flops is not None
        return self.flops / (self.target * self.whole) - 1


def measure(name: str) -> list[Reached]:
    """Prune a model to every target by every selector."""
    torch.manual_seed(0)
    model = build_with_random_weights(name)
    x = torch.randn(1, *input_size(model))
    dag = torchorbit.convert(model, x)
    orbits = torchorbit.find_orbits(dag)
    scores = Magnitude().scores(orbits)
    total = torchorbit.flops(dag).total
    found = []
    for round_to in (1, 8):
        for target in TARGETS:
            for selector in NAMES:
                started = time.perf_counter()
                task = Task(scores, target=Target.flops(target), constraint=Bounds(round_to=round_to))
                try:
                    removed = SELECTORS[selector]().select(task)
                except TargetError as error:
                    found.append(Reached(name, target, round_to, selector, total, None, least=error.min_cost))
                    continue
                smaller = torchorbit.remove_channels(dag, removed)
                seconds = time.perf_counter() - started
                proof = torchorbit.verify_removal(dag, smaller, removed, x)
                flops = torchorbit.flops(smaller).total
                found.append(Reached(name, target, round_to, selector, total, flops, seconds, proof))
    return found


def table_of_models(found: list[Reached]) -> str:
    """A row for every model, rounding and target: differences by selector, the worst proof, the seconds of each."""
    rows = []
    for name, round_to, target in dict.fromkeys([(entry.model, entry.round_to, entry.target) for entry in found]):
        here = [e for e in found if (e.model, e.round_to, e.target) == (name, round_to, target)]
        row = [name, round_to, f"{target:.0%}"]
        if here[0].flops is None:
            rows.append([*row, f"cannot be reached: the least is {here[0].least / here[0].whole:.1%}"])
            continue
        row += [f"{entry.flops / entry.whole:.2%} ({entry.difference:.2%})" for entry in here]
        rows.append([*row, f"{max(entry.proof for entry in here):.1e}", *[f"{entry.seconds:.1f}" for entry in here]])
    headers = ("model", "round_to", "target", *NAMES, "proof", *[f"{selector}, s" for selector in NAMES])
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def table_of_selectors(found: list[Reached]) -> str:
    """For every selector and rounding how far it is from the target, and how long it takes."""
    rows = []
    for selector in NAMES:
        for round_to in (1, 8):
            here = [e for e in found if (e.selector, e.round_to) == (selector, round_to)]
            there = [entry for entry in here if entry.flops is not None]
            below, seconds = [-entry.difference for entry in there], [entry.seconds for entry in there]
            rows.append(
                (selector, round_to, f"{len(there)} of {len(here)}", f"{statistics.median(below):.3%}",
                 f"{max(below):.3%}", f"{min(below):.3%}", f"{max(e.proof for e in there):.1e}",
                 f"{statistics.median(seconds):.2f}", f"{max(seconds):.1f}")
            )  # fmt: skip
    headers = (
        "selector", "round_to", "reachable", "below the target: median", "most", "least", "proof: worst", "s: median",
        "most",
    )  # fmt: skip
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Measure and print."""
    assert set(MODELS.split()) <= set(FAMILIES.split())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=len(MODELS.split()), help="only the first so many models")
    parser.add_argument("--only", action="append", help="only this model; may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{key} {value}" for key, value in VERSIONS.items())
    print(f"{platform.machine()}, one thread, {versions}\n")
    found: list[Reached] = []
    for name in options.only or MODELS.split()[: options.models]:
        found += measure(name)
    print(table_of_models(found), table_of_selectors(found), sep="\n\n")
    wrong = [entry for entry in found if entry.flops is not None and (entry.proof > TOLERANCE or entry.difference > 0)]
    if wrong:
        raise SystemExit(f"above the target, or not proved: {wrong}")


if __name__ == "__main__":
    main()
