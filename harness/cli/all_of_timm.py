"""Commands for all of timm: sweeps, and what is made of their records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import Positive, import_option, records_option
from harness.cli.stopping import stopped_by_sigterm
from harness.errors import HarnessError, UsageError
from torchorbit.extras import require
from torchorbit.files import replace_text

if TYPE_CHECKING:
    from harness.backends import BackendName
    from harness.jobs import Depth


@click.command(short_help="Convert and verify every model, and keep records.")
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these models out; may be given repeatedly.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time.  [default: one per core]")
@click.option(
    "--verify",
    type=click.Choice(["shape", "numeric"]),
    default="shape",
    show_default=True,
    help="shape: compare the shapes of the outputs, without weights. numeric: run model and graph with real weights "
    "and compare the outputs, where the memory suffices.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("runs/coverage.jsonl"),
    show_default=True,
    metavar="FILE",
    help="File of records, one JSON object per line.",
)
@click.option(
    "--resume/--fresh",
    default=True,
    show_default=True,
    help="Skip models that have a record in the file, or sweep them again.",
)
@click.option(
    "--memory",
    type=Positive(),
    metavar="GIB",
    help="What the workers may use together, on a cluster each.  [default: most of what is free]",
)
@click.option(
    "--timeout",
    type=Positive(),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Give a model up after this.",
)
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask", "ray"]),
    default="loky",
    show_default=True,
    help="Where workers run: processes of this machine, or a cluster.",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="The cluster's, as tcp://host:8786 for dask.  [default: one is started here]",
)
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Take records of models that did not change from $TORCHORBIT_CACHE or your cache folder, and keep them there.",
)
@import_option
@click.option("-v", "--verbose", is_flag=True, help="Log a line per model.")
@click.option("--log-json", is_flag=True, help="Log in JSON, a line per model. What models print is left out.")
def sweep(
    patterns: Sequence[str],
    exclude: Sequence[str],
    jobs: int | None,
    verify: Depth,
    out: Path,
    resume: bool,
    memory: float | None,
    timeout: float,
    backend: BackendName,
    address: str | None,
    cache: bool,
    imports: Sequence[str],
    verbose: bool,
    log_json: bool,
) -> None:
    """Convert models of timm, verify the graphs, and keep a record of each.

    PATTERNs are wildcards over timm's names, as in timm.list_models; none means every model. A record is written the
    moment it exists, so a sweep that was stopped goes on where it was. Exit code 1 says that a model failed.
    """
    require("harness", "torchorbit sweep")
    from harness.backends import Backend
    from harness.logs import write_to
    from harness.models import model_names
    from harness.plugins import import_modules
    from harness.sweep import sweep as sweep_models

    write_to(sys.stderr, verbose=verbose, as_json=log_json)
    import_modules(imports, str(Path.cwd()))
    names = model_names(patterns, exclude)
    records = None
    if cache:
        from harness.cache import Cache, default_folder

        records = Cache(default_folder())
    try:
        with stopped_by_sigterm():
            summary = sweep_models(
                names,
                out,
                verify=verify,
                fresh=not resume,
                memory_bytes=None if memory is None else int(memory * 2**30),
                timeout=timeout,
                backend=Backend(backend, address=address, jobs=jobs),
                cache=records,
                imports=imports,
                progress=not (verbose or log_json),
            )
    except KeyboardInterrupt:
        click.echo(f"stopped; what was finished is in {out}, and the same command with --resume goes on", err=True)
        raise
    click.echo(str(summary))
    if summary.failures:
        raise click.exceptions.Exit(1)


@click.command(short_help="Make the tables from the records.")
@records_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results"),
    show_default=True,
    metavar="FOLDER",
    help="Where the tables go.",
)
def tables(records: Path, out: Path) -> None:
    """Make the tables of supported models from the records of a sweep."""
    from harness.tables import write_tables

    for path in write_tables(records, out):
        click.echo(path)


@click.command(short_help="Say what changed between two sweeps.")
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--only-swept",
    is_flag=True,
    help="Compare only models that are in NEW, which is of a sweep of some: the others do not count as removed.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the page to a file as well.",
)
def diff(old: Path, new: Path, only_swept: bool, out: Path | None) -> None:
    """Say what changed from the records in OLD to those in NEW, as a page in Markdown.

    Exit code 1 says that something was lost: a model that was converted, verified or prunable is so no longer. What
    timm no longer has is removed, and not lost.
    """
    from harness.comparison import changes_page, compare_files

    try:
        comparison = compare_files(old, new, only_swept=only_swept)
    except HarnessError as error:
        # Not 1, which says that the records could be compared and something was lost.
        raise UsageError(str(error)) from None
    page = changes_page(comparison)
    if out is not None:
        try:
            replace_text(out, page)
        except OSError as error:
            message = f"cannot write {out}: {error.strerror or error}; choose another file with --out"
            raise UsageError(message) from None
    click.echo(page, nl=False)
    if comparison.lost:
        raise click.exceptions.Exit(1)


HEADING = "All of timm"
COMMANDS = (sweep, tables, diff)
