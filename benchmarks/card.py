"""A model that is trained, pruned, trained on, measured and published here, and its card as a page.

timm's resnet18 on the handwritten digits that scikit-learn ships (1,797 images of 8x8, a fifth of them for the test),
half of its FLOPs removed. It is published to a directory, and what is read back from there is drawn, where there is a
Chromium.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import torchorbit
from harness.timm_import import timm
from training import sgd, top1, train
from zoo.checkpoint import step_of
from zoo.manifest import Accuracy, Preprocessing, Source
from zoo.preprocessing import transforms_of
from zoo.publishing import publish
from zoo.pulling import fetch

REPO = "example/resnet18-digits"
SIZE = 32
SEED = 0

STYLE = """
body { font: 16px/1.5 -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1f2430; margin: 32px auto;
       width: 860px; }
h1 { font-size: 28px; border-bottom: 1px solid #e3e6ec; padding-bottom: 10px; }
h2 { font-size: 21px; margin-top: 28px; }
img { width: 100%; } table { border-collapse: collapse; margin: 16px 0; } code { font-size: 14px; }
th, td { border: 1px solid #dfe3ea; padding: 6px 14px; text-align: right; } th:first-child, td:first-child {
text-align: left; } pre { background: #f5f7fa; padding: 14px 18px; border-radius: 8px; overflow-wrap: anywhere;
white-space: pre-wrap; } .tag { background: #eef2fb; color: #2f5fb8; border-radius: 12px; padding: 3px 12px;
margin-right: 8px; font-size: 14px; }
"""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def digits(transform: Callable[[Image.Image], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and labels to train on, and to test on."""
    data = load_digits()
    images = [Image.fromarray(np.uint8(image * 255 / 16)) for image in data.images]
    x = torch.stack([transform(image) for image in images])
    y = torch.from_numpy(data.target).long()
    train, test = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=SEED)
    return x[train], y[train], x[test], y[test]


def page(text: str) -> str:
    """A card as a page."""
    card = ModelCard(text)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    spans = "".join(f'<span class="tag">{tag}</span>' for tag in (card.data.pipeline_tag, *card.data.tags))
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{spans}{markdown.render(card.text)}'


def picture(html: Path, png: Path) -> bool:
    """Draw a page, if there is a browser."""
    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        return False
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *flags,
                f"--user-data-dir={profile}",
                "--window-size=940,1210",
                f"--screenshot={png}",
                html.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    return True


def main() -> None:
    """Make the model, publish it, and draw its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of training; half as many after pruning")
    parser.add_argument("--out", type=Path, default=Path("results/card"), help="folder of the card")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    preprocessing = Preprocessing(
        input_size=(1, SIZE, SIZE), interpolation="bilinear", mean=(0.5,), std=(0.5,), crop_pct=1.0
    )
    x, y, x_test, y_test = digits(transforms_of(preprocessing))
    model = timm.create_model("resnet18", in_chans=1, num_classes=10, scriptable=False)
    train(model, x, y, sgd(model, 0.05), options.epochs)
    before = top1(model, x_test, y_test)

    dag = torchorbit.convert(model, torch.zeros(2, 1, SIZE, SIZE))
    smaller = torchorbit.prune(dag, flops=0.5, round_to=8)
    cut = top1(smaller, x_test, y_test)
    train(smaller, x, y, sgd(smaller, 0.02), options.epochs // 2)
    after = top1(smaller, x_test, y_test)
    print(f"top-1: {before:.2%}, cut to half the FLOPs {cut:.2%}, trained on {after:.2%}")

    with tempfile.TemporaryDirectory() as scratch:
        made, hub = Path(scratch) / "resnet18-digits", Path(scratch) / "hub"
        smaller.save_pretrained(
            made,
            name="resnet18.digits.pruned-0.49",
            source=Source(model="resnet18", weights=f"trained on the digits for {options.epochs} epochs"),
            step=step_of(
                dataclasses.replace(smaller.history.prunings[-1], seed=SEED),
                data=f"none; then {options.epochs // 2} epochs of SGD on the digits",
                timm=timm.__version__,
            ),
            accuracy=[
                Accuracy(
                    dataset="scikit-learn digits",
                    split="test",
                    input_size=(1, SIZE, SIZE),
                    before=round(before, 4),
                    after=round(after, 4),
                )
            ],
            preprocessing=preprocessing,
        )
        print(publish(made, REPO, hub=hub))
        folder, _ = fetch(REPO, hub=hub)
        options.out.mkdir(parents=True, exist_ok=True)
        # Where the hub is on this machine is of no use to others.
        text = (folder / "README.md").read_text(encoding="utf-8").replace(f", hub={str(hub)!r}", "")
        (options.out / "README.md").write_text(text, encoding="utf-8")
        shutil.copyfile(folder / "widths.png", options.out / "widths.png")
        html = Path(scratch) / "card.html"
        shutil.copyfile(folder / "widths.png", html.with_name("widths.png"))
        html.write_text(page(text), encoding="utf-8")
        drawn = picture(html, (options.out / "card.png").absolute())
    print(f"the card is in {options.out}" + ("" if drawn else "; there is no Chromium here to draw it"))


if __name__ == "__main__":
    main()
