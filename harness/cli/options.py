"""Options that several commands have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from typing_extensions import override


class Positive(click.FloatRange):
    """A number above zero that is neither infinite nor no number, which ranges let pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    @override
    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", parameter, context)
        return number


records_option = click.option(
    "--records",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("results/coverage.jsonl"),
    show_default=True,
    metavar="FILE",
    help="File of records that a sweep made.",
)
import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="MODULE",
    help="Import this first, here and in every worker: it registers models of yours. It may be in the current folder; "
    "may be given repeatedly.",
)
hub_option = click.option(
    "--hub",
    metavar="hf|URL|FOLDER",
    default="hf",
    show_default=True,
    help="The Hugging Face Hub, another server that speaks its language, or a folder.",
)
token_option = click.option("--token", help="For the hub.  [default: $HF_TOKEN, or that of `hf auth login`]")


def model_options(command: Any) -> Any:
    """Which weights a model of timm gets."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn."),
        click.option(
            "--weights",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Checkpoint to load first (.safetensors, .pth).",
        ),
        click.option("--pretrained", is_flag=True, help="Load timm's pretrained weights first, from its hub."),
    ):
        command = option(command)
    return command


def data_options(*, required: bool) -> Callable[[Any], Any]:
    """Which images are looked at."""
    options = (
        click.option(
            "--data",
            required=required,
            metavar="FOLDER|NAME",
            help="Images: a folder (or tar file) with a subfolder for every class, or of images without labels where "
            "these are not needed; or timm's name of a data set, as torch/cifar10 or hfds/...",
        ),
        click.option("--split", default="validation", show_default=True, help="Which part of the data."),
        click.option(
            "--data-dir",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="FOLDER",
            help="Where data that has a name is kept.",
        ),
        click.option(
            "--samples", type=click.IntRange(min=1), metavar="N", help="Take N images at random.  [default: all]"
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N"),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            metavar="N",
            help="Processes that read images.",
        ),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
