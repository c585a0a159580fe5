"""The zoo's part of the command line. Importing this imports neither torch nor timm nor the hub's client."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.errors import UsageError

_DTYPES = ("float32", "float16", "bfloat16")

_hub_option = click.option(
    "--hub",
    metavar="hf|URL|FOLDER",
    default="hf",
    show_default=True,
    help="The Hugging Face Hub, another server that speaks its language, or a folder.",
)
_token_option = click.option("--token", help="For the hub.  [default: $HF_TOKEN, or that of `hf auth login`]")
_private_option = click.option("--private", is_flag=True, help="A new repository is one that only its owner sees.")
_tag_option = click.option("--tag", metavar="NAME", help="Name to give the publication.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be published.")
_owner_option = click.option("--owner", metavar="NAME", help="Whose models; by default everybody's.")


def _branch_option(command: Any) -> Any:
    return click.option("--revision", metavar="BRANCH", help="Branch to publish to.  [default: main]")(command)


def _model_options(command: Any) -> Any:
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


def _data_options(*, required: bool) -> Callable[[Any], Any]:
    """Which images are looked at."""
    options = (
        click.option(
            "--data",
            required=required,
            metavar="FOLDER|NAME",
            help="Labelled images: a folder (or tar file) with a subfolder for every class, or timm's name of a data "
            "set, as torch/cifar10 or hfds/...",
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
    default="magnitude",
    show_default=True,
    metavar="NAME",
    help="What units are scored by: magnitude, l1, lamp, taylor, fisher, ...; a wrong name lists them all.",
)
@click.option(
    "--selector",
    default="uniform",
    show_default=True,
    metavar="NAME",
    help="How many go where: uniform, global, knapsack or optimal.",
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
    "--least", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Units that an orbit keeps."
)
@click.option(
    "--least-share",
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
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Reach the target in so many steps, and score anew in each.",
)
@click.option("--finetune-bn", is_flag=True, help="Re-estimate the statistics of batch norms on the data.")
@_data_options(required=False)
@click.option(
    "--dtype", type=click.Choice(_DTYPES), help="Type of the weights in the checkpoint.  [default: as they are]"
)
@_model_options
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
    model with. Criteria that look at data need --data, and take the cross entropy of its labels as the loss.
    """
    given = [f"--{name}" for name in ("flops", "parameters", "ratio") if recipe[name] is not None]
    if len(given) != 1:
        raise UsageError(f"give one of --flops, --parameters and --ratio, which say how much is to go; given {given}")
    for name in ("flops", "parameters"):
        if recipe[name] == 1:
            raise UsageError(f"--{name} 1 is one in number; give a fraction below 1, or a number")
    if data is None and (samples is not None or data_dir is not None):
        raise UsageError("--samples and --data-dir are of --data, which is missing")
    from tqdm import tqdm

    import torchorbit  # before timm
    from harness.data import Images
    from harness.making import Recipe, make_checkpoint

    import torch  # isort: skip

    del torchorbit
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
@_data_options(required=True)
@_model_options
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
    import torchorbit  # before timm
    from harness.data import Images
    from harness.evaluating import evaluate_images

    del torchorbit
    found = evaluate_images(
        model, Images(data, split, data_dir, samples, batch_size, workers), record=record, before=before, **weights
    )
    click.echo(
        f"{model}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} of {found.images} images"
        + (f", written into {model}" if record is not None else "")
    )


@click.command(short_help="Publish a checkpoint.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo")
@_hub_option
@_private_option
@_branch_option
@_tag_option
@_dry_run_option
@_token_option
def publish(checkpoint: Path, repo: str, hub: str, **options: Any) -> None:
    """Publish the checkpoint in the folder CHECKPOINT as REPO, which is `organization/name`, in one commit.

    What is there already is not sent again.
    """
    from zoo.publishing import publish

    click.echo(publish(checkpoint, repo, hub=hub, **options))


@click.command(name="publish-tables", short_help="Publish the records of a sweep and their tables.")
@click.argument("repo")
@click.option(
    "--records",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("results/coverage.jsonl"),
    show_default=True,
    metavar="FILE",
    help="File of records that a sweep made.",
)
@_hub_option
@_private_option
@_branch_option
@_tag_option
@_dry_run_option
@_token_option
def publish_tables(repo: str, records: Path, hub: str, **options: Any) -> None:
    """Publish the records of a sweep, and the tables made of them, as the data set REPO: `organization/name`."""
    from zoo.publishing import publish_tables

    click.echo(publish_tables(records, repo, hub=hub, **options))


@click.command(short_help="Download a published checkpoint and verify it.")
@click.argument("repo")
@_hub_option
@click.option("--revision", metavar="REVISION", help="A branch, a tag or a commit.  [default: main]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Copy it here.  [default: it stays in the hub's cache]",
)
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Where files of the hub are kept.")
@click.option("--local-files-only", is_flag=True, help="Take it from the cache, and ask no server.")
@_token_option
def pull(repo: str, **options: Any) -> None:
    """Download the checkpoint REPO, which is `organization/name`, and verify that it is what was published."""
    from zoo.cards import figures_table
    from zoo.pulling import fetch

    folder, manifest = fetch(repo, **options)
    click.echo(
        f"{figures_table(manifest)}\n\n{repo} is in {folder}; torchorbit.from_pretrained({str(folder)!r}) loads it"
    )


@click.group(no_args_is_help=False, short_help="Find published checkpoints and list them.")
def zoo() -> None:
    """Find published checkpoints, and list them on a page."""


@zoo.command(name="list", short_help="List checkpoints.")
@_hub_option
@_owner_option
@_token_option
def list_(hub: str, owner: str | None, token: str | None) -> None:
    """List the checkpoints on a hub, those with the fewest FLOPs first."""
    _show(hub, token, owner=owner)


@zoo.command(short_help="Find checkpoints by source, cost and accuracy.")
@click.argument("source", required=False)
@click.option("--max-gflops", type=float, metavar="N", help="At most so many GFLOPs (two per multiply-accumulate).")
@click.option("--max-params", type=float, metavar="N", help="At most so many million parameters.")
@click.option("--min-accuracy", type=click.FloatRange(0, 1), metavar="SHARE", help="At least this top-1 accuracy.")
@click.option("--dataset", metavar="PATTERN", help="Data set of the accuracy.")
@_hub_option
@_owner_option
@_token_option
def search(hub: str, token: str | None, max_params: float | None, **wanted: Any) -> None:
    """Find checkpoints on a hub. SOURCE is a wildcard over the names of the models that were pruned, as 'resnet*'."""
    _show(hub, token, max_parameters=None if max_params is None else max_params * 1e6, **wanted)


@zoo.command(short_help="Publish the page that lists the checkpoints.")
@click.argument("repo")
@_hub_option
@click.option("--owner", metavar="NAME", help="Whose models.  [default: those of the organization in REPO]")
@_private_option
@_dry_run_option
@_token_option
def index(repo: str, **options: Any) -> None:
    """Publish a page in REPO, which is `organization/name`, that lists the checkpoints with their figures."""
    from zoo.publishing import publish_index

    click.echo(publish_index(repo, **options))


def _show(hub: str, token: str | None, **wanted: Any) -> None:
    from tabulate import tabulate

    from zoo.hubs import choose
    from zoo.pulling import search

    rows = [
        (
            entry.repo,
            entry.manifest.source.model,
            f"{entry.manifest.after.gflops:.3f}",
            f"{entry.manifest.after.parameters / 1e6:.3f}",
            ", ".join(f"{accuracy.after:.2%} {accuracy.dataset}" for accuracy in entry.manifest.accuracy),
        )
        for entry in search(choose(hub, token), **wanted)
    ]
    headers = ("checkpoint", "source", "GFLOPs", "parameters, M", "top-1")
    click.echo(tabulate(rows, headers, disable_numparse=True) if rows else "there is none")


def _command() -> str:
    """What was typed, with file names for paths: where they are on this machine concerns nobody else."""
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(option + equals + (Path(value).name if "/" in value or "\\" in value else value))
    return shlex.join(["torchorbit", *words])


COMMANDS = (prune, evaluate, publish, publish_tables, pull, zoo)
