"""How accurate a classifier is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from harness.data import Images, checked, dtype_of
from harness.errors import UsageError
from harness.making import graph_of
from torchorbit.comparing import evaluating
from zoo.checkpoint import save_checkpoint
from zoo.manifest import MANIFEST_FILE, Accuracy


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of images that are told right.

    Attributes:
        top1: where the class of the highest score is the right one.
        top5: where the right one is among the five highest.
        images: of how many.
    """

    top1: float
    top5: float
    images: int


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: Iterable[Any], *, device: torch.device | str | None = None, progress: bool = False
) -> Accuracies:
    """Measure the accuracy of a classifier, in evaluation mode; it is left in the mode in which it was.

    Args:
        model: gives scores of shape (batch, classes).
        loader: batches of images and labels; the images get the dtype of the model's weights.
        device: where the images go; by default where the model is.
        progress: show a progress bar.

    Raises:
        UsageError: a label is none that the model has, or there is no image.
    """
    place = device or next((parameter.device for parameter in model.parameters()), None)
    dtype = dtype_of(model)
    first = fifth = images = 0
    with evaluating(model):
        for inputs, labels in tqdm(loader, desc="evaluate", disable=None if progress else True, leave=False):
            scores = model(inputs.to(place, dtype))
            right = checked(scores, labels).to(scores.device)
            ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == right[:, None]
            first += int(ranked[:, 0].sum())
            fifth += int(ranked.any(1).sum())
            images += len(labels)
    if not images:
        raise UsageError("there is no image to measure accuracy on")
    return Accuracies(first / images, fifth / images, images)


def evaluate_images(
    model: str,
    images: Images,
    *,
    record: str | None = None,
    before: float | None = None,
    weights: Path | None = None,
    pretrained: bool = False,
    seed: int = 0,
) -> Accuracies:
    """Measure the accuracy of a checkpoint, or of a model of timm.

    Args:
        model: the folder of a checkpoint, or a name in timm.
        images: what to measure it on.
        record: write it into the manifest and the card of the checkpoint, under this name of a data set.
        before: top-1 accuracy of the model that was pruned, for the record.
        weights: file with the state dict of a model of timm.
        pretrained: load timm's weights from its hub.
        seed: of whatever is drawn.

    Raises:
        UsageError: there is no such model or data set, or nothing is known of the model's preprocessing.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if record is not None and not (Path(model) / MANIFEST_FILE).exists():
        raise UsageError(f"--record: {model} is no checkpoint that could be written to")
    dag = graph_of(model, weights=weights, pretrained=pretrained, seed=seed)
    manifest = dag.manifest
    if manifest is None or manifest.preprocessing is None:
        raise UsageError(f"nothing is known of the preprocessing of {model}; save it with preprocessing=")
    found = evaluate(dag, images.loader(manifest.preprocessing, seed=seed), progress=sys.stderr.isatty())
    if record is not None:
        measured = Accuracy(
            dataset=record,
            split=images.split,
            input_size=manifest.preprocessing.input_size,
            before=before,
            after=round(found.top1, 4),
        )
        kept = [
            accuracy for accuracy in manifest.accuracy if (accuracy.dataset, accuracy.split) != (record, images.split)
        ]
        dag.manifest = manifest.model_copy(update={"accuracy": tuple(kept)})
        save_checkpoint(dag, model, accuracy=[measured])
    return found
