"""The command line. Importing this imports neither torch nor timm, so that help comes at once."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from harness.errors import HarnessError, UsageError, one_line
from zoo.cli import COMMANDS

if TYPE_CHECKING:
    from harness.backends import BackendName
    from harness.jobs import Depth

_SIGNALLED = 128
"""Shells report this much more than the number of the signal that ended a program."""


class _Stop:
    """The signal that asked a command to stop."""

    signal: ClassVar[int] = signal.SIGINT


class _Contents(click.Group):
    """A group whose help lists its commands under headings, in the order of their definition."""

    sections: ClassVar = {
        "One model": ("convert", "explain", "show"),
        "All of timm": ("sweep", "tables", "diff"),
        "Pruned models": ("prune", "evaluate", "publish", "publish-tables", "pull", "zoo"),
    }

    def list_commands(self, context: click.Context) -> list[str]:
        return [name for names in self.sections.values() for name in names]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, names in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str()) for name in names])


class _Positive(click.FloatRange):
    """A number above zero that is neither infinite nor no number, which ranges let pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        number = super().convert(value, parameter, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", parameter, context)
        return number


@click.group(
    cls=_Contents,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="torchorbit")
def commands() -> None:
    """Turn PyTorch models into graphs that can be edited, pruned, and saved without their code.

    Every command tells more with --help.
    """


_records_option = click.option(
    "--records",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("results/coverage.jsonl"),
    show_default=True,
    metavar="FILE",
    help="File of records that a sweep made.",
)


_import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="MODULE",
    help="Import this first, here and in every worker: it registers models of yours. It may be in the current folder; "
    "may be given repeatedly.",
)


@commands.command(short_help="Convert a model and save it as a folder.")
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Where the graph and its weights go.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Checkpoint to load first (.safetensors, .pth).",
)
@click.option("--pretrained", is_flag=True, help="Load timm's pretrained weights first, from its hub.")
def convert(model: str, out: Path, weights: Path | None, pretrained: bool) -> None:
    """Convert a timm model and save it as a folder that loads without timm.

    MODEL is a name in timm, with a tag where --pretrained weights of that tag are wanted. Without --weights and
    --pretrained the weights are those that timm initializes the model with.
    """
    if weights is not None and pretrained:
        raise UsageError("--weights and --pretrained exclude each other: both say which weights to load")
    from tqdm import tqdm

    import torchorbit
    from harness.models import build, example_input

    with tqdm(total=3, desc="build", bar_format="{desc} {bar} {elapsed}", disable=None, leave=False) as progress:
        source = build(model, weights=weights, pretrained=pretrained)
        progress.update()
        progress.set_description("convert")
        graph = torchorbit.convert(source, example_input(source))
        progress.update()
        progress.set_description("save")
        graph.save(out)
        progress.update()
    millions = sum(parameter.numel() for parameter in source.parameters()) / 1e6
    click.echo(f"{model} ({millions:.2f} M parameters) is in {out}; torchorbit.load({str(out)!r}) loads it")


@commands.command(short_help="Show which blocks of a model convert.")
@click.argument("model")
def explain(model: str) -> None:
    """Show which blocks of a timm model convert, and what stands in the way of the others.

    MODEL is a name in timm. No weights are needed or loaded.
    """
    import torchorbit
    from harness.models import build_on_meta, example_input

    source = build_on_meta(model)
    click.echo(torchorbit.explain(source, example_input(source)))


@commands.command(short_help="Show everything known of one model.")
@click.argument("model")
@_records_option
@click.option("--orbits/--no-orbits", default=True, show_default=True, help="Build the model and find its orbits.")
@_import_option
def show(model: str, records: Path, orbits: bool, imports: Sequence[str]) -> None:
    """Show what the records say of a timm model, and its orbits.

    MODEL is a name in timm, or of a model of which there is a record. The orbits are found anew, without weights; with
    --no-orbits the model is not built.
    """
    from harness.overview import find_record, orbits_page, record_page

    record = find_record(records, model)
    unknown = None
    if orbits or record is None:
        from harness.models import check_name
        from harness.plugins import import_modules

        import_modules(imports, str(Path.cwd()))
        try:
            check_name(model)
        except UsageError as error:
            if record is None:
                raise
            unknown = str(error)
    if record is not None:
        click.echo(record_page(record))
    elif records.exists():
        click.echo(f"{records} has no record of {model}")
    else:
        click.echo(f"no record of {model}: {records} does not exist")
    if orbits:
        click.echo()
        if unknown is None:
            click.echo(orbits_page(model))
        else:
            click.echo(f"no orbits: {unknown}; with --import a module registers models of yours")


@commands.command(short_help="Convert and verify every model, and keep records.")
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
    type=_Positive(),
    metavar="GIB",
    help="What the workers may use together, on a cluster each.  [default: most of what is free]",
)
@click.option(
    "--timeout",
    type=_Positive(),
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
@_import_option
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
        with _stopped_by_sigterm():
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


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let what stops services and containers stop a command as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        _Stop.signal = number
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@commands.command(short_help="Make the tables from the records.")
@_records_option
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


@commands.command(short_help="Say what changed between two sweeps.")
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
    from torchorbit.files import replace_text

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


for command in COMMANDS:
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default what it was called with.

    Returns:
        The exit code: 0, 1 if something failed, 2 if the usage was wrong, 130 after Ctrl-C, 143 after SIGTERM. Errors
        are one line on stderr.
    """
    try:
        result = commands.main(arguments, prog_name="torchorbit", standalone_mode=False)
    except click.exceptions.Abort:
        return _SIGNALLED + _Stop.signal
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "torchorbit"
        return _fail(f"{error.format_message()} (see {command} --help)", 2)
    except UsageError as error:
        return _fail(str(error), 2)
    except HarnessError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        # Whoever read the output has seen enough; without this Python complains once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _fail(str(error) if _is_ours(error) else one_line(error), 1)
    # Without standalone mode click returns the code of an Exit, and None where nothing was said.
    return result if isinstance(result, int) else 0


def _is_ours(error: Exception) -> bool:
    """Whether the message of an error says all, without the name of its type."""
    from torchorbit.errors import TorchorbitError

    return isinstance(error, TorchorbitError)


def _fail(message: str, code: int) -> int:
    click.echo(f"torchorbit: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
