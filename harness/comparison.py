"""What changed from one sweep to another: what models can no longer do, and what they can do now."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from harness.errors import HarnessError
from harness.records import Record, Versions, natural_order, read_records
from harness.tables import in_a_cell
from torchorbit.extras import is_installed

REMOVABLE_TOLERANCE = 0.01
"""By how much `removable_flops` may differ without anybody being told."""


@dataclass(frozen=True)
class Loss:
    """A model that can no longer do what it could.

    Attributes:
        model: Its name in timm.
        no_longer: What it was and is not any more, in words that stand in a table.
        stage: The stage that failed, if one did.
        error: Why, as far as the new record says.
    """

    model: str
    no_longer: tuple[str, ...]
    stage: str | None
    error: str | None


@dataclass(frozen=True)
class Comparison:
    """What changed from old records to new ones. Every list is in the order of the models' names.

    Attributes:
        old_versions: What the old records were made with; of several versions all.
        new_versions: What the new records were made with.
        compared: How many models are in both.
        lost: Models that can no longer do what they could.
        newly_convertible: New records of models that convert now.
        newly_verified: New records of models that converted before and are verified now.
        newly_prunable: New records of models that can be pruned now.
        removable_changed: Old and new records between which `removable_flops` changed.
        new_models: New records of models that are not among the old ones.
        removed_models: Old records of models that are not among the new ones.
        old_without_pruning: How many of the compared models the old records have no figures on pruning for.
        new_without_pruning: The same of the new records.
        by_shape_now: How many models were verified by numbers, and are by shape.
        not_swept: Old records of models that never converted and are not among the new ones, though timm has them.
    """

    old_versions: Versions
    new_versions: Versions
    compared: int
    lost: list[Loss]
    newly_convertible: list[Record]
    newly_verified: list[Record]
    newly_prunable: list[Record]
    removable_changed: list[tuple[Record, Record]]
    new_models: list[Record]
    removed_models: list[Record]
    old_without_pruning: int
    new_without_pruning: int
    by_shape_now: int
    not_swept: list[Record]


def compare_files(old_path: Path, new_path: Path, *, only_swept: bool = False) -> Comparison:
    """Compare two files of records.

    A model that is missing in the new file counts as removed, unless the new records were made with the installed timm
    and that has the model: then a sweep was not finished, and the model is lost if it was converted.

    Args:
        old_path: The file to compare with.
        new_path: The file whose changes are wanted.
        only_swept: Leave models out that are missing in the new file.

    Returns:
        The comparison.

    Raises:
        HarnessError: A file cannot be read, or has no records in it.
    """
    old, new = _read(old_path), _read(new_path)
    swept = {record.model for record in new}
    complete = only_swept or all(record.model in swept for record in old)
    return compare(old, new, only_swept=only_swept, in_timm=() if complete else _names_in_timm(new))


def compare(
    old: Iterable[Record], new: Iterable[Record], *, only_swept: bool = False, in_timm: Collection[str] = ()
) -> Comparison:
    """Compare records of two sweeps.

    Args:
        old: One record per model.
        new: One record per model.
        only_swept: Leave models out that have no new record.
        in_timm: Models that are known not to have been removed from timm; one of these that was converted, and has no
            new record, is lost.

    Returns:
        The comparison.
    """
    before = {record.model: record for record in sorted(old, key=_by_name)}
    after = {record.model: record for record in sorted(new, key=_by_name)}
    both = [(record, after[name]) for name, record in before.items() if name in after]
    missing = [] if only_swept else [record for name, record in before.items() if name not in after]
    unswept = [record for record in missing if record.model in in_timm]
    lost = [
        Loss(record.model, ("swept",), None, "it has no new record, but timm still has it")
        for record in unswept
        if record.converted
    ]
    lost += [loss for was, now in both if (loss := _loss(was, now)) is not None]
    return Comparison(
        old_versions=_versions(before.values()),
        new_versions=_versions(after.values()),
        compared=len(both),
        lost=sorted(lost, key=lambda loss: natural_order(loss.model)),
        newly_convertible=[now for was, now in both if now.converted and not was.converted],
        newly_verified=[now for was, now in both if was.converted and now.verified and not was.verified],
        newly_prunable=[
            now for was, now in both if now.prunable and not was.prunable and not was.says_nothing_of_pruning
        ],
        removable_changed=[(was, now) for was, now in both if _removable_changed(was, now)],
        new_models=[record for name, record in after.items() if name not in before],
        removed_models=[record for record in missing if record.model not in in_timm],
        old_without_pruning=sum(was.says_nothing_of_pruning for was, _ in both),
        new_without_pruning=sum(now.says_nothing_of_pruning for _, now in both),
        by_shape_now=sum(was.verified == "numeric" and now.verified == "shape" for was, now in both),
        not_swept=[record for record in unswept if not record.converted],
    )


def changes_page(comparison: Comparison) -> str:
    """A page that says what changed.

    Args:
        comparison: What `compare` found.

    Returns:
        The page in Markdown: a heading with the versions, the verdict in one line, and a table per kind of change.
    """
    sections = [section for section in _sections(comparison) if section.rows]
    kinds = ", ".join(f"{len(section.rows)} {section.kind}" for section in sections)
    verdict = kinds if comparison.lost else f"Nothing lost, {kinds}" if kinds else "Nothing changed"
    parts = [
        f"# Changes: {_headline(comparison.old_versions, comparison.new_versions)}",
        f"{verdict} ({_models(comparison.compared)} compared).",
        *_remarks(comparison),
    ]
    for section in sections:
        parts += [f"## {section.heading}", _markdown(section.columns, section.rows)]
    return "\n\n".join(parts) + "\n"


class _Section(NamedTuple):
    """One kind of change: what the verdict calls it, and its part of the page."""

    kind: str
    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]


def _sections(comparison: Comparison) -> list[_Section]:
    """Every kind of change in the order of the page, those of which there is none included."""
    return [
        _Section(
            "lost",
            "Lost",
            ("model", "no longer", "stage", "error"),
            [(loss.model, ", ".join(loss.no_longer), loss.stage, loss.error) for loss in comparison.lost],
        ),
        _Section("newly convertible", "Newly convertible", *_table_of_models(comparison.newly_convertible)),
        _Section("newly verified", "Newly verified", *_table_of_models(comparison.newly_verified)),
        _Section("newly prunable", "Newly prunable", *_table_of_models(comparison.newly_prunable)),
        _Section(
            "with other removable FLOPs",
            f"Removable FLOPs changed by more than {REMOVABLE_TOLERANCE:.0%} of all FLOPs",
            ("model", "old", "new"),
            [
                (now.model, _percentage(was.removable_flops), _percentage(now.removable_flops))
                for was, now in comparison.removable_changed
            ],
        ),
        _Section("new", "New models", *_table_of_models(comparison.new_models)),
        _Section("removed", "Removed models", ("model",), [(record.model,) for record in comparison.removed_models]),
    ]


def _loss(was: Record, now: Record) -> Loss | None:
    """What a model can no longer do, or None where there is nothing."""
    no_longer = []
    if was.converted and not now.converted:
        no_longer.append("converted")
    if was.verified and not now.verified:
        no_longer.append("verified")
    if was.prunable and not now.prunable and not now.says_nothing_of_pruning:
        no_longer.append("prunable")
    if not no_longer and was.verified and now.failed and not was.failed:
        no_longer.append("without a failure")
    # What is frozen altogether is not prunable either, and no error: a note says so.
    return Loss(now.model, tuple(no_longer), now.stage, now.error or now.note) if no_longer else None


def _removable_changed(was: Record, now: Record) -> bool:
    if was.removable_flops is None or now.removable_flops is None:
        return False
    # Records have six digits of it; further ones come from the subtraction.
    return round(abs(now.removable_flops - was.removable_flops), 6) > REMOVABLE_TOLERANCE


def _names_in_timm(records: Sequence[Record]) -> Collection[str]:
    """The models of the installed timm if the records were made with it, and none if with another one."""
    if not is_installed("timm") or {record.timm for record in records} != {importlib.metadata.version("timm")}:
        return ()
    # Here, because it takes seconds and is hardly ever needed.
    from harness.models import model_names

    return frozenset(model_names())


def _read(path: Path) -> list[Record]:
    records = read_records(path)
    if not records:
        raise HarnessError(f"{path} has no records in it; `torchorbit sweep --out {path}` makes them")
    return records


def _by_name(record: Record) -> tuple[tuple[bool, int, str], ...]:
    return natural_order(record.model)


def _versions(records: Collection[Record]) -> Versions:
    """The versions of records, several of one thing joined."""

    def joined(values: Iterable[str]) -> str:
        return " and ".join(sorted(set(values), key=natural_order))

    return Versions(
        timm=joined(record.timm for record in records),
        torch=joined(record.torch for record in records),
        torchorbit=joined(record.torchorbit for record in records),
    )


def _headline(old: Versions, new: Versions) -> str:
    pairs = zip(old.items(), new.values(), strict=True)
    changed = [f"{name} {was} -> {now}" for (name, was), now in pairs if was != now]
    same = "the same " + ", ".join(f"{name} {version}" for name, version in new.items())
    return ", ".join(changed) or same


def _remarks(comparison: Comparison) -> list[str]:
    """What a reader has to know to read the tables right."""
    remarks = []
    for which, count in (("old", comparison.old_without_pruning), ("new", comparison.new_without_pruning)):
        if count:
            of_these = "" if count == comparison.compared else f" of {_models(count)}"
            remarks.append(f"The {which} records have no figures on pruning{of_these}: nothing is compared there.")
    if comparison.by_shape_now:
        remarks.append(
            f"{_models(comparison.by_shape_now)}, verified by numbers in the old records, "
            f"{'is' if comparison.by_shape_now == 1 else 'are'} verified by shape in the new ones."
        )
    if comparison.not_swept:
        names = ", ".join(record.model for record in comparison.not_swept)
        remarks.append(f"Without a new record, though timm still has them, are models that never converted: {names}.")
    return remarks


def _table_of_models(records: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """Columns and rows that say how far models have come."""
    columns = ("model", "converted", "verified", "prunable", "removable", "stage", "error")
    rows: list[tuple[str | None, ...]] = [
        (
            record.model,
            "yes" if record.converted else "no",
            record.verified or "no",
            "" if record.says_nothing_of_pruning else "yes" if record.prunable else "no",
            _percentage(record.removable_flops),
            record.stage,
            record.error,
        )
        for record in records
    ]
    if any(record.failed for record in records):
        return columns, rows
    return columns[:-2], [row[:-2] for row in rows]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    alignment = ["right" if name in ("old", "new", "removable") else "left" for name in columns]
    cells = [[in_a_cell(value) for value in row] for row in rows]
    return str(tabulate(cells, columns, tablefmt="pipe", disable_numparse=True, colalign=alignment))


def _percentage(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _models(count: int) -> str:
    return f"{count} model" if count == 1 else f"{count} models"
