"""The models of the installed timm: their names by pattern, and building one of them with or without weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

import torchorbit
from harness.errors import HarnessError, UsageError, one_line
from harness.records import Versions
from harness.timm_import import timm
from harness.weights import SkippedInitialization, fill_with_random_weights
from torchorbit.suggesting import close_to

VERSIONS = Versions(timm=timm.__version__, torch=torch.__version__, torchorbit=torchorbit.__version__)
"""The versions that a record made by this process carries."""

CAPTURED_BATCH = 2
"""Batch size of the example that a model is converted with; verification uses another one."""

_SIZE_WORDS = {"large": 4, "huge": 10, "giant": 16, "gigantic": 30, "_3b_": 45, "enormous": 60, "_5b_": 75, "_7b_": 100}
"""What the sizes that timm names cost, in multiples of a vision transformer of the size "base"."""

_DEFAULT_INPUT_SIZE = (3, 224, 224)


def model_names(patterns: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """Names of timm's models, without pretrained tags, in timm's own order.

    Args:
        patterns: Wildcards as `timm.list_models` takes them; none means every model.
        exclude: Wildcards of the names to leave out.

    Returns:
        The names that match any of the patterns and none of the exclusions.

    Raises:
        UsageError: A pattern matches nothing, of names to leave out as well, or everything that matched is excluded.
    """
    for pattern in (*patterns, *exclude):
        if not timm.list_models(pattern):
            raise UsageError(
                f"no model of timm {timm.__version__} matches {pattern!r}; patterns are wildcards over names without "
                f"tags, such as 'resnet*' or 'vit_*_224'"
            )
    names = timm.list_models(list(patterns), exclude_filters=list(exclude))
    if not names:
        raise UsageError(f"every model that matches is excluded by {', '.join(map(repr, exclude))}")
    return names


def expected_cost(name: str) -> float:
    """A rough guess at what running a model costs, from what is known before it is built: its name and resolution."""
    configuration = timm.get_pretrained_cfg(name)
    _, height, width = configuration.input_size if configuration is not None else _DEFAULT_INPUT_SIZE
    return height * width * max((cost for word, cost in _SIZE_WORDS.items() if word in name), default=1)


def check_name(name: str) -> None:
    """Make sure that there is such a model.

    Args:
        name: A name, with or without a tag.

    Raises:
        UsageError: timm has no such model; the message names those whose names are like it.
    """
    if not timm.is_model(name):
        raise UsageError(f"timm {timm.__version__} has no model {name!r}{close_to(name, timm.list_models())}")


def build_on_meta(name: str) -> nn.Module:
    """Build a model in evaluation mode without memory for its weights.

    Args:
        name: A name in timm.

    Returns:
        The model, its parameters and buffers on the `meta` device.

    Raises:
        UsageError: timm has no such model.
    """
    with torch.device("meta"):
        return _create(name)


def build(name: str, *, weights: Path | None = None, pretrained: bool = False) -> nn.Module:
    """Build a model in evaluation mode on the CPU, with weights that somebody trained or that timm initializes it with.

    Args:
        name: A name in timm, with a tag if a certain set of pretrained weights is wanted.
        weights: Checkpoint with the model's state dict.
        pretrained: Load timm's weights from its hub.

    Returns:
        The model.

    Raises:
        UsageError: timm has no such model.
        HarnessError: The checkpoint holds something else.
    """
    if weights is None:
        return _create(name, pretrained=pretrained)
    from safetensors import SafetensorError  # comes with timm

    with SkippedInitialization():
        model = _create(name)
    try:
        # Strict, and tensors only: a checkpoint that would run code is refused.
        timm.models.load_checkpoint(model, str(weights))
    except (RuntimeError, OSError, ValueError, LookupError, EOFError, UnpicklingError, SafetensorError) as error:
        raise HarnessError(f"{weights} holds no weights of {name}: {one_line(error, named=False)}") from error
    return model


def build_with_random_weights(name: str, seed: str | None = None) -> nn.Module:
    """Build a model in evaluation mode on the CPU, with weights that are the same in every process.

    Buffers that the constructor computes are real; parameters are filled as `harness.weights` says.

    Args:
        name: A name that timm knows.
        seed: Of the weights; by default the name.

    Returns:
        The model. Building it takes little more memory than one copy of its weights.
    """
    with SkippedInitialization():
        model = _create(name)
    fill_with_random_weights(model, name if seed is None else seed)
    return model


def input_size(model: nn.Module) -> tuple[int, ...]:
    """The size of one input of a timm model, `(channels, height, width)`, as its configuration says."""
    configuration = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    return tuple(configuration.get("input_size") or _DEFAULT_INPUT_SIZE)


def example_input(model: nn.Module) -> Tensor:
    """A batch to convert a model with, on the model's device. Conversion looks at its shape only."""
    device = next(iter(model.parameters())).device
    return torch.zeros(CAPTURED_BATCH, *input_size(model), device=device)


def _create(name: str, pretrained: bool = False) -> nn.Module:
    check_name(name)
    # Scripted functions hide their operators from whoever records a run.
    return timm.create_model(name, pretrained=pretrained, scriptable=False).eval()
