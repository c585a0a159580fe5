"""One model: what its record says, and its orbits, found anew."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from harness.columns import COLUMNS, Column
from harness.errors import HarnessError, one_line
from harness.records import Record, read_records


def find_record(path: Path, model: str) -> Record | None:
    """Look for a model in a file of records.

    Args:
        path: The file; it need not exist.
        model: A name in timm; a tag makes no difference.

    Returns:
        The record, or None if there is none.

    Raises:
        HarnessError: The file cannot be read, or one of its lines is no record.
    """
    if not path.exists():
        return None
    name = model.partition(".")[0]
    return next((record for record in read_records(path) if record.model == name), None)


def record_page(record: Record) -> str:
    """A record to read: a line for each of its columns, with units, and why the model failed if it did.

    Args:
        record: Any record.

    Returns:
        The table, and below it the error and the note where there are any.
    """
    rows = [(column.words, _value(record, column)) for column in COLUMNS if not column.below]
    page = tabulate(rows, tablefmt="plain", disable_numparse=True)
    if record.failed:
        page += f"\n\nfailed ({record.stage}): {record.error}"
    if record.note:
        page += f"\n\nnote: {record.note}"
    return str(page)


def orbits_page(model: str) -> str:
    """Build a model on meta, convert it, and find its orbits.

    Args:
        model: A name in timm.

    Returns:
        The orbits as a table, below a line that says how many there are and what they were found with.

    Raises:
        HarnessError: A stage failed; the message says which and why.
    """
    # Here, because it takes seconds, and a record can be shown without it.
    import torchorbit
    from harness.models import VERSIONS, build_on_meta, example_input

    stage = "build"
    try:
        source = build_on_meta(model)
        stage = "convert"
        graph = torchorbit.convert(source, example_input(source))
        stage = "orbits"
        orbits = torchorbit.find_orbits(graph)
        table = str(orbits)
    except torchorbit.TorchorbitError as error:
        raise HarnessError(f"{model} ({stage}): {error}") from error
    except Exception as error:
        raise HarnessError(f"{model} ({stage}): {one_line(error)}") from error
    versions = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    if not len(orbits):
        return f"no orbits ({versions}): every channel is frozen"
    return f"{len(orbits)} orbits, {orbits.units} units ({versions})\n\n{table}"


def _value(record: Record, column: Column) -> str:
    """A value with its unit, or that it is not known."""
    value = getattr(record, column.name)
    if value is None or (column.about_pruning and record.says_nothing_of_pruning):
        return column.unknown
    return column.written(value)
