"""Commands for one model of timm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli.options import import_option, records_option
from harness.errors import UsageError


@click.command(short_help="Convert a model and save it as a folder.")
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


@click.command(short_help="Show which blocks of a model convert.")
@click.argument("model")
def explain(model: str) -> None:
    """Show which blocks of a timm model convert, and what stands in the way of the others.

    MODEL is a name in timm. No weights are needed or loaded.
    """
    import torchorbit
    from harness.models import build_on_meta, example_input

    source = build_on_meta(model)
    click.echo(torchorbit.explain(source, example_input(source)))


@click.command(short_help="Show everything known of one model.")
@click.argument("model")
@records_option
@click.option("--orbits/--no-orbits", default=True, show_default=True, help="Build the model and find its orbits.")
@import_option
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


HEADING = "One model"
COMMANDS = (convert, explain, show)
