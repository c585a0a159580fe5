"""Models of timm as graphs that know where they come from."""

from __future__ import annotations

from pathlib import Path

import torch

import torchorbit
from harness.errors import UsageError
from harness.models import build, check_name, example_input
from harness.timm_import import timm
from torchorbit.graph.dag import DagModule
from zoo.checkpoint import manifest_of, sha256
from zoo.manifest import Preprocessing, Source


def converted(name: str, *, weights: Path | None, pretrained: bool, seed: int) -> DagModule:
    """Build a model of timm and convert it.

    Args:
        name: of the model, with a tag where certain weights are wanted.
        weights: file with the model's state dict.
        pretrained: load timm's weights from its hub.
        seed: of the weights that timm initializes the model with, where none are loaded.

    Returns:
        The graph, with what is known of the model as its manifest.

    Raises:
        UsageError: there is no such model, or the arguments exclude each other.
    """
    if weights is not None and pretrained:
        raise UsageError("--weights and --pretrained exclude each other: both say which weights to load")
    check_name(name)
    torch.manual_seed(seed)
    model = build(name, weights=weights, pretrained=pretrained)
    dag = torchorbit.convert(model, example_input(model))
    configuration = getattr(model, "pretrained_cfg", None) or {}
    tag = configuration.get("tag")
    architecture = configuration.get("architecture") or name
    repository = configuration.get("hf_hub_id")
    full_name = f"{architecture}.{tag}" if pretrained and tag else name
    if weights is not None:
        origin, base = f"{weights.name} (SHA-256 {sha256(weights)})", None
    elif pretrained:
        origin = str(repository or configuration.get("url") or "timm")
        base = repository
    else:
        origin, base = f"as timm initializes them, seed {seed}", None
    source = Source(
        model=full_name, weights=origin, base_model=base, license=configuration.get("license") if pretrained else None
    )
    found = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
    preprocessing = Preprocessing(
        input_size=tuple(found["input_size"]),
        interpolation=found["interpolation"],
        mean=tuple(map(float, found["mean"])),
        std=tuple(map(float, found["std"])),
        crop_pct=float(found["crop_pct"]),
        crop_mode=found["crop_mode"],
    )
    dag.manifest = manifest_of(dag).model_copy(
        update={"name": full_name, "source": source, "preprocessing": preprocessing}
    )
    return dag
