"""Commands that prune a model and measure what is left of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.options import data_options, model_options
from harness.errors import UsageError
from harness.redaction import redacted

_DTYPES = ("float32", "float16", "bfloat16")


@click.command(short_help="Prune a model and save it as a checkpoint.")
@click.argument("model")
@click.option(
    "--flops",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TARGET",
    help="FLOPs that the result may have: a fraction of the model's where it is below 1, else their number.",
)
@click.option(
    "--parameters",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TARGET",
    help="Parameters that it may have, likewise, instead of --flops.",
)
@click.option(
    "--ratio",
    type=click.FloatRange(min=0, max=1, max_open=True),
    metavar="SHARE",
    help="Share of the units to remove, instead of --flops: of every orbit, or of all with --selector global.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help="What units are scored by: fisher_noise, magnitude, lamp, taylor, ...; a wrong name lists them all.  "
    "[default: fisher_noise; magnitude for models that do not run on noise]",
)
@click.option(
    "--selector",
    metavar="NAME",
    help="How many go where: uniform, global, knapsack or optimal.  [default: knapsack for criteria whose scores add "
    "up, else uniform]",
)
@click.option(
    "--round-to",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Numbers of channels are multiples of this.",
)
@click.option(
    "--min-width",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Units that an orbit keeps.",
)
@click.option(
    "--min-share",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of its units that it keeps.",
)
@click.option(
    "--frozen",
    multiple=True,
    metavar="PATTERN",
    help="Modules that stay as they are, as 'blocks.0.*'; may be given repeatedly.",
)
@click.option("--tokens", is_flag=True, help="Remove learned tokens as well, registers say.")
@click.option(
    "--streams/--no-streams",
    default=True,
    show_default=True,
    help="Remove channels of residual streams as well, or inner channels of blocks alone.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Reach the target in so many steps, and score anew in each.",
)
@click.option(
    "--reconstruct",
    flag_value="layerwise",
    help="Give the consumers of removed channels new weights that make up for them on the data, which needs no labels.",
)
@click.option(
    "--reconstruct-affine",
    "reconstruct",
    flag_value="affine",
    help="The same in one pass, channel by channel; quicker, and less close.",
)
@click.option(
    "--reconstruct-batches",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many batches that looks at.  [default: all]",
)
@click.option(
    "--finetune-bn",
    is_flag=True,
    help="Re-estimate the statistics of batch norms on the data, or correct them by noise where there is none.",
)
@data_options(required=False)
@click.option(
    "--dtype", type=click.Choice(_DTYPES), help="Type of the weights in the checkpoint.  [default: as they are]"
)
@model_options
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="CHECKPOINT",
    help="Folder of the checkpoint.",
)
def prune(
    model: str,
    pretrained: bool,
    weights: Path | None,
    data: str | None,
    split: str,
    data_dir: Path | None,
    samples: int | None,
    batch_size: int,
    workers: int,
    dtype: str | None,
    seed: int,
    out: Path,
    **recipe: Any,
) -> None:
    """Prune a model and save it as a checkpoint, which loads without timm.

    MODEL is a name in timm, with a tag where the --pretrained weights of that tag are wanted, or the folder of a
    checkpoint to prune further. Without --weights and --pretrained the weights are those that timm initializes the
    model with. Criteria that look at data need --data, and take the cross entropy of its labels as the loss;
    --reconstruct needs images alone.
    """
    given = [f"--{name}" for name in ("flops", "parameters", "ratio") if recipe[name] is not None]
    if len(given) != 1:
        raise UsageError(f"give one of --flops, --parameters and --ratio, which say how much is to go; given {given}")
    for name in ("flops", "parameters"):
        if recipe[name] == 1:
            raise UsageError(f"--{name} 1 is one in number; give a fraction below 1, or a number")
    if data is None and (samples is not None or data_dir is not None):
        raise UsageError("--samples and --data-dir are of --data, which is missing")
    import torch
    from tqdm import tqdm

    from harness.data import Images
    from harness.making import Recipe, make_checkpoint

    images = None
    if data is not None:
        images = Images(data, split, data_dir, samples, batch_size, workers)
    with tqdm(total=3, bar_format="{desc} {bar} {elapsed}", disable=None, leave=False) as progress:

        def begins(stage: str) -> None:
            progress.set_description(stage)
            progress.update()

        manifest = make_checkpoint(
            model,
            out,
            Recipe(**recipe, data=images),
            weights=weights,
            pretrained=pretrained,
            seed=seed,
            dtype=None if dtype is None else getattr(torch, dtype),
            command=_command(),
            stage=begins,
        )
    before, after = manifest.before, manifest.after
    click.echo(
        f"{manifest.name}: {before.gflops:.3f} -> {after.gflops:.3f} GFLOPs, "
        f"{before.parameters / 1e6:.3f} -> {after.parameters / 1e6:.3f} M parameters, in {out}; "
        f"torchorbit.from_pretrained({str(out)!r}) loads it"
    )


@click.command(short_help="Measure the accuracy of a model.")
@click.argument("model")
@data_options(required=True)
@model_options
@click.option(
    "--record",
    metavar="NAME",
    help="Write it into the checkpoint and its card, as measured on the data set of this name.",
)
@click.option(
    "--before",
    type=click.FloatRange(min=0, max=1),
    metavar="SHARE",
    help="With --record: top-1 accuracy of the model that was pruned.",
)
def evaluate(
    model: str,
    data: str,
    split: str,
    data_dir: Path | None,
    samples: int | None,
    batch_size: int,
    workers: int,
    record: str | None,
    before: float | None,
    **weights: Any,
) -> None:
    """Measure top-1 and top-5 accuracy.

    MODEL is the folder of a checkpoint, or a name in timm.
    """
    if before is not None and record is None:
        raise UsageError("--before is of --record, which is missing")
    from harness.data import Images
    from harness.evaluating import evaluate_images

    found = evaluate_images(
        model, Images(data, split, data_dir, samples, batch_size, workers), record=record, before=before, **weights
    )
    click.echo(
        f"{model}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} of {found.images} images"
        + (f", written into {model}" if record is not None else "")
    )


def _command() -> str:
    """What was typed, with file names for paths: where they are on this machine concerns nobody else."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = redacted(word).partition("=") if word.startswith("--") else ("", "", redacted(word))
        words.append(option + equals + (Path(value).name if "/" in value or "\\" in value else value))
    return shlex.join(["torchorbit", *words])


HEADING = "Pruned models"
COMMANDS = (prune, evaluate)
