"""What a worker finds out about a model while it looks at it; columns are worked out from it."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchorbit.graph.dag import DagModule
from torchorbit.orbits.orbit import Orbits


class Findings:
    """What is known of one model.

    An attribute is there from a certain moment on (`harness.columns.Moment`): a column that looks at it is to be filled
    after that.

    Attributes:
        model: The model on the `meta` device, without weights; from "build" on.
        input_size: `(channels, height, width)` of its input; from "build" on.
        numeric: Whether the graph has weights and is looked at by numbers; otherwise it is on the `meta` device. From
            "convert" on.
        seed: Of weights, images and removals: the same for the same model in every process. From "build" on.
        graph: The model as a graph; from "convert" on.
        output: What the model gives for one sample; from "verify" on.
        difference: Largest difference between the outputs of model and graph, over the largest output; None where that
            was not looked at by numbers.
        orbits: Of the graph; from "orbits" on.
        smallest_flops: FLOPs of the graph with one unit left in every orbit, in number; from "prune" on.
        removal_difference: Of the graph without half of every orbit, as `harness.pruning` compares it; None where that
            was not looked at by numbers.
        seconds: How long all of it took; when it is "done".
        peak_rss_mb: Peak resident memory of the process meanwhile, in MiB; when it is "done".
    """

    model: nn.Module
    input_size: tuple[int, ...]
    seed: str
    numeric: bool
    graph: DagModule
    output: Any
    difference: float | None = None
    orbits: Orbits
    smallest_flops: float
    removal_difference: float | None = None
    seconds: float
    peak_rss_mb: float
