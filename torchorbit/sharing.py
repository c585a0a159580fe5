"""Published models: `zoo` does it, and is imported when it is called for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import DagModule
from torchorbit.siblings import require_own


def from_pretrained(
    repo: str | Path,
    *,
    hub: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
) -> DagModule:
    """Load a published model. It needs neither timm nor the code that made it.

    Args:
        repo: ``"organization/name"``, or the folder of a checkpoint.
        hub: a folder that models were published to, or the address of a hub; by default the Hugging Face Hub.
        revision: a branch, a tag or a commit; ``main`` by default.
        token: by default the one that ``hf auth login`` keeps.
        local_files_only: take it from the cache, and ask no server.
        cache_dir: where files of a hub are kept; by default where everything from the Hugging Face Hub is.
        device: where the weights go.

    Returns:
        The model, in the mode in which it was saved. ``model.manifest`` says where it comes from and what it costs.

    Raises:
        HubError: there is no such model or revision, it needs a token, or the hub cannot be reached.
        CheckpointError: what is there is no valid checkpoint, or a file is not the one that was published.
        ShadowedPackageError: somebody else's `zoo` would be imported in the place of ours.
    """
    require_own("zoo")
    from zoo.pulling import pull

    return pull(
        repo,
        hub=hub,
        revision=revision,
        token=token,
        local_files_only=local_files_only,
        cache_dir=cache_dir,
        device=device,
    )


def transforms(dag: DagModule) -> Callable[[Any], Tensor]:
    """What makes an input of an image, as the model's source was evaluated.

    Args:
        dag: a model that `from_pretrained` loaded, or what was pruned of one.

    Returns:
        A callable that takes a PIL image and returns a tensor of shape (channels, height, width).

    Raises:
        ArgumentError: nothing is known of the model's preprocessing.
        MissingExtraError: torchvision is not installed.
        ShadowedPackageError: somebody else's `zoo` would be imported in the place of ours.
    """
    if dag.manifest is None or dag.manifest.preprocessing is None:
        raise ArgumentError(
            "nothing is known of this model's preprocessing: only checkpoints made of timm's models, or saved with "
            "preprocessing=, say it; load one with torchorbit.from_pretrained"
        )
    require_own("zoo")
    from zoo.preprocessing import transforms_of

    return transforms_of(dag.manifest.preprocessing)


def save_pretrained(dag: DagModule, folder: str | Path, **details: Any) -> Any:
    """See `DagModule.save_pretrained`."""
    require_own("zoo")
    from zoo.checkpoint import save_checkpoint

    return save_checkpoint(dag, folder, **details)


def push_to_hub(dag: DagModule, repo: str, **options: Any) -> Any:
    """See `DagModule.push_to_hub`."""
    require_own("zoo")
    from zoo.publishing import push

    return push(dag, repo, **options)
