"""The tables, made from records and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from harness.columns import COLUMNS, Table
from harness.errors import HarnessError
from harness.records import Record, natural_order, read_records
from torchorbit.files import replace_text


def write_tables(records_path: Path, folder: Path) -> list[Path]:
    """Make every table from a file of records.

    The same records give the same bytes.

    Args:
        records_path: The file of records.
        folder: Where the tables go; it is made where it is missing.

    Returns:
        The files that were written.

    Raises:
        HarnessError: The file cannot be read, or has no records in it.
    """
    records = sorted(read_records(records_path), key=lambda record: natural_order(record.model))
    if not records:
        raise HarnessError(f"{records_path} has no records in it; `torchorbit sweep --out {records_path}` makes them")
    texts = {
        folder / "coverage.md": coverage_table(records) + "\n",
        folder / "supported_models.md": supported_models(records),
    }
    if _tell_of_pruning(records):
        texts[folder / "channel_pruning_supported_models.md"] = channel_pruning_supported_models(records)
    for path, text in texts.items():
        replace_text(path, text)
    return list(texts)


def coverage_table(records: Sequence[Record]) -> str:
    """How many models there are, and what could be done with how many of them.

    Args:
        records: One per model.

    Returns:
        A table in Markdown.
    """
    rows = {
        "all models": len(records),
        "converted": sum(record.converted for record in records),
        "verified by numbers": sum(record.verified == "numeric" for record in records),
        "verified by shape": sum(record.verified == "shape" for record in records),
    }
    if _tell_of_pruning(records):
        rows["channel prunable"] = sum(record.prunable for record in records)
        rows["removal proved by numbers"] = sum(record.removal_max_diff is not None for record in records)
    shares = [(name, count, f"{count / max(len(records), 1):.2%}") for name, count in rows.items()]
    return _markdown(("", "num models", "percentage"), shares, ("left", "right", "left"))


def supported_models(records: Sequence[Record]) -> str:
    """A page that lists every model: what could not be done and why first, then what could.

    Args:
        records: One per model, in the order of the page.

    Returns:
        The page in Markdown.
    """
    parts = ["# Supported models", _origin(records), coverage_table(records)]
    failures = [(record.model, record.stage, in_a_cell(record.error)) for record in records if record.failed]
    if failures:
        parts += ["## Failures", _markdown(("model", "stage", "error"), failures)]
    notes = [(record.model, in_a_cell(record.note)) for record in records if record.note]
    if notes:
        parts += ["## Notes", _markdown(("model", "note"), notes)]
    parts += ["## Models", *_models("supported_models", records)]
    return "\n\n".join(parts) + "\n"


def channel_pruning_supported_models(records: Sequence[Record]) -> str:
    """A page that lists every model with how far its channels can be pruned.

    Args:
        records: One per model.

    Returns:
        The page in Markdown.
    """
    found = [record for record in records if record.removable_flops is not None]
    parts = ["# Models whose channels can be pruned", _origin(records)]
    if found:
        removable = [record.removable_flops or 0.0 for record in found]
        parts.append(
            f"Of the {len(records)} models {sum(record.prunable for record in records)} can be pruned. On average "
            f"{sum(removable) / len(removable):.2%} of the FLOPs can be removed, at least {min(removable):.2%}."
        )
    unruled = sorted({name for record in records for name in record.unruled_operators or ()})
    if unruled:
        parts.append(f"Operators without a rule, which freeze what they touch: {', '.join(unruled)}.")
    parts += _models("channel_pruning_supported_models", records)
    return "\n\n".join(parts) + "\n"


def _origin(records: Sequence[Record]) -> str:
    versions = {", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in records}
    made_with = "; ".join(sorted(versions))
    return f"Made by `torchorbit tables` from the records of a sweep with {made_with}; not to be edited."


def _models(page: Table, records: Sequence[Record]) -> tuple[str, str]:
    """What the headers of a page's columns mean, and the table of models."""
    about_pruning = _tell_of_pruning(records)
    shown = [
        (column.name, cell)
        for column in COLUMNS
        for cell in column.cells
        if cell.table == page and (about_pruning or not column.about_pruning)
    ]
    rows = [(record.model, *[cell.text(getattr(record, name)) for name, cell in shown]) for record in records]
    headers = ("model", *[cell.header for _, cell in shown])
    legend = "; ".join([cell.legend for _, cell in shown if cell.legend])
    return f"{legend}.", _markdown(headers, rows, ("left", *[cell.alignment for _, cell in shown]))


def _tell_of_pruning(records: Sequence[Record]) -> bool:
    """Whether the records are of sweeps that looked for orbits; earlier ones say nothing about them."""
    return any(record.orbits is not None for record in records)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[object]], alignment: Sequence[str] | None = None) -> str:
    """A table; columns stand to the left where nothing else is said."""
    alignment = alignment or ["left"] * len(headers)
    return str(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment))


def in_a_cell(text: str | None) -> str:
    """Text that may stand in a cell of a table in Markdown."""
    return (text or "").replace("|", "\\|")
