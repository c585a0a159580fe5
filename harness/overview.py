"""One model: what its record says, and its orbits, found anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

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
    rows = [_row(record, field.name) for field in fields(record) if field.name not in _BELOW]
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


def _row(record: Record, column: str) -> tuple[str, str]:
    """A column's name in words, and its value with the unit."""
    words, written = _COLUMNS.get(column, (column.replace("_", " "), str))
    value = getattr(record, column)
    if column == "verified":
        # Here null says that it was not, elsewhere that nobody knows.
        value = value or "no"
    known = value is not None and not (column == "prunable" and record.says_nothing_of_pruning)
    return words, written(value) if known else "not known"


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _of_all_flops(share: float) -> str:
    return f"{share:.2%} of all FLOPs"


def _of_the_largest_output(difference: float) -> str:
    return f"{difference:.1e} of the largest output"


_BELOW = ("stage", "error", "note")
"""Columns whose text is too long for a table."""

_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "input_size": ("input size", lambda size: "x".join(map(str, size)) + " (channels, height, width)"),
    "params_m": ("parameters", lambda millions: f"{millions:.3f} M"),
    "gflops": ("FLOPs of one sample", lambda billions: f"{billions:.3f} G, two per multiply-accumulate"),
    "converted": ("converted", _yes_or_no),
    "verified": ("verified", lambda how: {"numeric": "by numbers", "shape": "by shape"}.get(how, how)),
    "max_diff": ("difference of the graph", _of_the_largest_output),
    "prunable": ("prunable", _yes_or_no),
    "prunable_proportion": ("touched by orbits", _of_all_flops),
    "removable_flops": ("removable", _of_all_flops),
    "removal_max_diff": ("difference after removal", _of_the_largest_output),
    "unruled_operators": ("operators without a rule", lambda names: ", ".join(names) or "none"),
    "seconds": ("time of the job", lambda seconds: f"{seconds:.1f} s"),
    "peak_rss_mb": ("peak memory of the job", lambda mebibytes: f"{mebibytes:.0f} MiB"),
}
"""What a column is called and how its values are written, where that is not its name and `str`."""
