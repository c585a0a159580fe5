"""The tables, made from records and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

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
    table = pd.DataFrame(
        {
            "num models": rows.values(),
            "percentage": [f"{count / max(len(records), 1):.2%}" for count in rows.values()],
        },
        index=list(rows),
    )
    return str(table.to_markdown(disable_numparse=True, colalign=("left", "right", "left")))


def supported_models(records: Sequence[Record]) -> str:
    """A page that lists every model: what could not be done and why first, then what could.

    Args:
        records: One per model, in the order of the page.

    Returns:
        The page in Markdown.
    """
    parts = ["# Supported models", _origin(records), coverage_table(records)]
    failures = [record for record in records if record.failed]
    if failures:
        table = pd.DataFrame(
            {
                "model": [record.model for record in failures],
                "stage": [record.stage for record in failures],
                "error": [cell(record.error) for record in failures],
            }
        )
        parts += ["## Failures", _markdown(table)]
    noted = [record for record in records if record.note]
    if noted:
        table = pd.DataFrame(
            {"model": [record.model for record in noted], "note": [cell(record.note) for record in noted]}
        )
        parts += ["## Notes", _markdown(table)]
    parts += [
        "## Models",
        "`params` in millions; `max diff` is the largest difference between the outputs of the model and its graph, "
        "over the largest output.",
        _markdown(_models(records)),
    ]
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
    parts += [
        "`removable` is the share of the FLOPs that go when every orbit is shrunk to one unit, of a model that was "
        "built and run; `proportion` the share of the FLOPs in vertices that an orbit touches (torch-dag's figure); "
        "`max diff` the largest difference, over the largest output, between the model with a random half of every "
        "orbit removed and the whole one with zeros there.",
        _markdown(
            pd.DataFrame(
                {
                    "model": [record.model for record in records],
                    "GFLOPs": _known([record.gflops for record in records], ".3f"),
                    "prunable": ["yes" if record.prunable else "no" for record in records],
                    "removable": _known([record.removable_flops for record in records], ".2%"),
                    "proportion": _known([record.prunable_proportion for record in records], ".2%"),
                    "orbits": _known([record.orbits for record in records], "d"),
                    "units": _known([record.units for record in records], "d"),
                    "max diff": _known([record.removal_max_diff for record in records], ".1e"),
                }
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _known(values: Sequence[float | None], form: str) -> list[str]:
    """Numbers as text, with nothing for those that are not known."""
    return ["" if value is None else f"{value:{form}}" for value in values]


def _origin(records: Sequence[Record]) -> str:
    versions = {", ".join(f"{name} {version}" for name, version in record.versions.items()) for record in records}
    made_with = "; ".join(sorted(versions))
    return f"Made by `torchorbit tables` from the records of a sweep with {made_with}; not to be edited."


def _models(records: Sequence[Record]) -> pd.DataFrame:
    """The columns of the list of models: one line here for each."""
    table = pd.DataFrame(
        {
            "model": [record.model for record in records],
            "params": ["" if record.params_m is None else f"{record.params_m:.2f}" for record in records],
            "input size": ["x".join(map(str, record.input_size or ())) for record in records],
            "converted": ["yes" if record.converted else "no" for record in records],
            "verified": [record.verified or "no" for record in records],
            "max diff": ["" if record.max_diff is None else f"{record.max_diff:.1e}" for record in records],
            "prunable": ["yes" if record.prunable else "no" for record in records],
        }
    )
    return table if _tell_of_pruning(records) else table.drop(columns="prunable")


def _tell_of_pruning(records: Sequence[Record]) -> bool:
    """Whether the records are of sweeps that looked for orbits; earlier ones say nothing about them."""
    return any(record.orbits is not None for record in records)


def _markdown(table: pd.DataFrame) -> str:
    numbers = ("params", "max diff", "GFLOPs", "removable", "proportion", "orbits", "units")
    alignment = ["right" if name in numbers else "left" for name in table.columns]
    return str(table.to_markdown(index=False, disable_numparse=True, colalign=alignment))


def cell(text: str | None) -> str:
    """Text that may stand in a cell of a table in Markdown."""
    return (text or "").replace("|", "\\|")
