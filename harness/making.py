"""From the name of a model in timm, or from a checkpoint, to a pruned checkpoint. The latter needs no timm."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

import torchorbit
from harness.data import Images, cross_entropy, dtype_of
from harness.errors import UsageError
from torchorbit.criteria import CRITERIA, Random, WeightCriterion
from torchorbit.graph.dag import DagModule
from torchorbit.graph.files import GRAPH_FILE
from torchorbit.selectors import Bounds, Optimal
from zoo.checkpoint import load_checkpoint, manifest_of, save_checkpoint, step_of
from zoo.manifest import MANIFEST_FILE, Manifest


@dataclass(frozen=True)
class Recipe:
    """How to prune; `torchorbit.prune` says what the fields mean."""

    flops: float | None = None
    parameters: float | None = None
    ratio: float | None = None
    round_to: int = 1
    min_width: int = 1
    min_share: float = 0.0
    criterion: str | None = None
    selector: str | None = None
    steps: int = 1
    reconstruct: str | None = None
    reconstruct_batches: int | None = None
    finetune_bn: bool = False
    frozen: tuple[str, ...] = ()
    tokens: bool = False
    streams: bool = True
    data: Images | None = None

    def prune(self, dag: DagModule, *, seed: int = 0) -> DagModule:
        """Prune a graph that carries a manifest.

        Returns:
            The smaller graph.

        Raises:
            UsageError: data is wanted, and there is none, or nothing is known of the model's preprocessing.
            ArgumentError: as `torchorbit.prune`.
        """
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        images = options.pop("data")
        constraint = Bounds(options.pop("min_width"), options.pop("min_share"), options.pop("round_to"))
        options["reconstruct"] = self.reconstruct or False
        loader = None
        if images is None and self.criterion in CRITERIA and not issubclass(CRITERIA[self.criterion], WeightCriterion):
            raise UsageError(f"--criterion {self.criterion} looks at data: give --data")
        if images is None and self.reconstruct:
            raise UsageError("--reconstruct needs data: give --data")
        if images is not None:
            if dag.manifest is None or dag.manifest.preprocessing is None:
                raise UsageError("--data: nothing is known of this model's preprocessing; save it with preprocessing=")
            loader = images.loader(dag.manifest.preprocessing, seed=seed)
        dtype = dtype_of(dag)
        return torchorbit.prune(
            dag,
            loader=loader,
            loss=None if loader is None else cross_entropy,
            constraint=constraint,
            sample_to_model_inputs=lambda sample: ((sample[0].to(dtype),), {}),
            seed=seed,
            progress=sys.stderr.isatty(),
            **options,
        )


def make_checkpoint(
    model: str,
    out: Path,
    recipe: Recipe,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    command: str | None = None,
    stage: Callable[[str], object] = lambda name: None,
) -> Manifest:
    """Prune a model, and save it as a checkpoint.

    Args:
        model: a name in timm, with a tag where certain weights are wanted; or the folder of a checkpoint.
        out: where the checkpoint goes.
        recipe: how to prune it.
        weights: file with the model's state dict.
        pretrained: load timm's weights from its hub.
        seed: of whatever is drawn: images, numbers, and the weights that timm initializes the model with where none
            are loaded.
        dtype: of the weights in the checkpoint.
        command: what was typed, for the checkpoint to tell.
        stage: told of every stage that begins.

    Returns:
        What was written about the checkpoint.

    Raises:
        UsageError: there is no such model, or the arguments exclude each other.
        ArgumentError: what the recipe says is out of range or cannot be reached.
        CheckpointError: the checkpoint cannot be loaded, or ``out`` holds something else.
    """
    stage("load")
    dag = graph_of(model, weights=weights, pretrained=pretrained, seed=seed)
    from_timm = not is_checkpoint(model)
    drawn = weights is None and not pretrained and from_timm
    manifest = dag.manifest = manifest_of(dag)
    stage("prune")
    pruned = recipe.prune(dag, seed=seed)
    (pruning,) = pruned.history.prunings if pruned.history is not None else (None,)
    step = None
    if pruning is not None:
        random = drawn or pruning.data or recipe.criterion == Random.name or recipe.selector == Optimal.name
        step = step_of(
            dataclasses.replace(pruning, seed=seed if random else None),
            data=str(recipe.data) if pruning.data else None,
            command=command,
            timm=importlib.metadata.version("timm") if from_timm or pruning.data else None,
        )
    stage("save")
    stem = manifest.name if not manifest.steps else manifest.source.model
    kept = torchorbit.flops(pruned).total / 1e9 / manifest.before.gflops if manifest.before.gflops else 1.0
    return save_checkpoint(pruned, out, name=f"{stem}.pruned-{kept:.2f}", step=step, dtype=dtype)


def is_checkpoint(model: str) -> bool:
    """Whether this is the folder of a checkpoint rather than a name in timm."""
    folder = Path(model)
    return (folder / MANIFEST_FILE).exists() or (folder / GRAPH_FILE).exists()


def graph_of(model: str, *, weights: Path | None = None, pretrained: bool = False, seed: int = 0) -> DagModule:
    """The graph of a model.

    Args:
        model: a name in timm, with a tag where certain weights are wanted; or the folder of a checkpoint.
        weights: file with the model's state dict.
        pretrained: load timm's weights from its hub.
        seed: of the weights that timm initializes the model with, where none are loaded.

    Returns:
        The graph, with what is known of the model as its manifest.

    Raises:
        UsageError: there is no such model, or the arguments exclude each other.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if not is_checkpoint(model):
        from harness.sources import converted  # which needs timm

        return converted(model, weights=weights, pretrained=pretrained, seed=seed)
    if weights is not None or pretrained:
        raise UsageError(f"{model} is a checkpoint, which has its weights: leave --weights and --pretrained out")
    folder = Path(model)
    return load_checkpoint(folder) if (folder / MANIFEST_FILE).exists() else torchorbit.load(folder)
