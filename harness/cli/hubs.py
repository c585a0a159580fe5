"""Commands that publish pruned models, and find and fetch what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.options import hub_option, token_option

_private_option = click.option("--private", is_flag=True, help="A new repository is one that only its owner sees.")
_tag_option = click.option("--tag", metavar="NAME", help="Name to give the publication.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be published.")
_owner_option = click.option("--owner", metavar="NAME", help="Whose models; by default everybody's.")


def _branch_option(command: Any) -> Any:
    return click.option("--revision", metavar="BRANCH", help="Branch to publish to.  [default: main]")(command)


@click.command(short_help="Publish a checkpoint.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("repo")
@hub_option
@_private_option
@_branch_option
@_tag_option
@_dry_run_option
@token_option
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
@hub_option
@_private_option
@_branch_option
@_tag_option
@_dry_run_option
@token_option
def publish_tables(repo: str, records: Path, hub: str, **options: Any) -> None:
    """Publish the records of a sweep, and the tables made of them, as the data set REPO: `organization/name`."""
    from harness.publishing import publish_tables

    click.echo(publish_tables(records, repo, hub=hub, **options))


@click.command(short_help="Download a published checkpoint and verify it.")
@click.argument("repo")
@hub_option
@click.option("--revision", metavar="REVISION", help="A branch, a tag or a commit.  [default: main]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Copy it here.  [default: it stays in the hub's cache]",
)
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Where files of the hub are kept.")
@click.option("--local-files-only", is_flag=True, help="Take it from the cache, and ask no server.")
@token_option
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
@hub_option
@_owner_option
@token_option
def list_(hub: str, owner: str | None, token: str | None) -> None:
    """List the checkpoints on a hub, those with the fewest FLOPs first."""
    _show(hub, token, owner=owner)


@zoo.command(short_help="Find checkpoints by source, cost and accuracy.")
@click.argument("source", required=False)
@click.option("--max-gflops", type=float, metavar="N", help="At most so many GFLOPs (two per multiply-accumulate).")
@click.option("--max-params", type=float, metavar="N", help="At most so many million parameters.")
@click.option("--min-accuracy", type=click.FloatRange(0, 1), metavar="SHARE", help="At least this top-1 accuracy.")
@click.option("--dataset", metavar="PATTERN", help="Data set of the accuracy.")
@hub_option
@_owner_option
@token_option
def search(hub: str, token: str | None, max_params: float | None, **wanted: Any) -> None:
    """Find checkpoints on a hub. SOURCE is a wildcard over the names of the models that were pruned, as 'resnet*'."""
    _show(hub, token, max_parameters=None if max_params is None else max_params * 1e6, **wanted)


@zoo.command(short_help="Publish the page that lists the checkpoints.")
@click.argument("repo")
@hub_option
@click.option("--owner", metavar="NAME", help="Whose models.  [default: those of the organization in REPO]")
@_private_option
@_dry_run_option
@token_option
def index(repo: str, **options: Any) -> None:
    """Publish a page in REPO, which is `organization/name`, that lists the checkpoints with their figures."""
    from zoo.publishing import publish_index

    click.echo(publish_index(repo, **options))


def _show(hub: str, token: str | None, **wanted: Any) -> None:
    from tabulate import tabulate

    from zoo.choosing import choose
    from zoo.pulling import search
    from zoo.texts import one_line

    rows = [
        (
            entry.repo,
            one_line(entry.manifest.source.model),
            f"{entry.manifest.after.gflops:.3f}",
            f"{entry.manifest.after.parameters / 1e6:.3f}",
            ", ".join(f"{accuracy.after:.2%} {one_line(accuracy.dataset)}" for accuracy in entry.manifest.accuracy),
        )
        for entry in search(choose(hub, token), **wanted)
    ]
    headers = ("checkpoint", "source", "GFLOPs", "parameters, M", "top-1")
    click.echo(tabulate(rows, headers, disable_numparse=True) if rows else "there is none")


HEADING = "Pruned models"
COMMANDS = (publish, publish_tables, pull, zoo)
