"""Records: what one sweep found out about one model, kept one JSON object per line.

A line is written the moment its record exists, so a file of records is all that has to survive for a sweep to go on
where it was stopped, and all that the tables are made from.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from harness.columns import Columns
from harness.errors import HarnessError
from torchorbit.errors import ArgumentError
from torchorbit.files import replace_text

_BEGINNING = '{"model": "'
"""What every line starts with."""


class Versions(TypedDict):
    """The versions that a record was made with."""

    timm: str
    torch: str
    torchorbit: str


@dataclass(kw_only=True)
class Record(Columns):
    """What one sweep found out about one model: its columns, and what follows from them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    @property
    def versions(self) -> Versions:
        """The versions that it was made with."""
        return Versions(timm=self.timm, torch=self.torch, torchorbit=self.torchorbit)

    @property
    def failed(self) -> bool:
        """Whether any stage failed."""
        return self.stage is not None

    @property
    def says_nothing_of_pruning(self) -> bool:
        """Whether it is of a sweep that did not look for orbits, which earlier versions did not.

        A model that failed is one that cannot be pruned, however far it came.
        """
        return self.orbits is None and not self.failed

    def to_line(self) -> str:
        """The record as one line of JSON, line break included."""
        return json.dumps(asdict(self), allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read what `to_line` wrote.

        Columns that came later than the record are null in it.

        Raises:
            ArgumentError: The line is no JSON object, has keys that this version's records do not have, lacks the
                ones that say what it is a record of, or has a value of another type than its column or out of its
                range.
        """
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ArgumentError(f"not a line of JSON ({error.msg} at column {error.colno})") from None
        except (RecursionError, ValueError) as error:  # of nesting, or of a number, without end
            raise ArgumentError(f"not a line of JSON that can be read ({type(error).__name__})") from None
        if not isinstance(values, dict):
            raise ArgumentError(f"a JSON {type(values).__name__} where a record, a JSON object, was expected")
        names = [field.name for field in fields(cls)]
        missing = [field.name for field in fields(cls) if field.name not in values and field.default is MISSING]
        unknown = [name for name in values if name not in names]
        if missing or unknown:
            differences = [f"no {name!r}" for name in missing] + [f"an unknown {name!r}" for name in unknown]
            raise ArgumentError(f"a record of another version of torchorbit: it has {', '.join(differences)}")
        try:
            return _validator().validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ArgumentError(f"its {where!r} is {first['input']!r:.100}: {first['msg']}") from None


@functools.cache
def _validator() -> TypeAdapter[Any]:
    return TypeAdapter(Record)


def natural_order(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts names as timm does: numbers inside them by value (`resnet18`, `resnet34`, `resnet101`)."""
    parts = re.split(r"(\d+)", name.lower())
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def read_records(path: Path) -> list[Record]:
    """Read a file of records.

    A last line that was not written to its end is what a killed sweep leaves behind: it is passed over.

    Args:
        path: The file.

    Returns:
        One record per model, in the file's order; of several with the same model the last one.

    Raises:
        HarnessError: The file cannot be read, or one of its lines is no record.
    """
    return list(_read(path)[0].values())


def check_regular(path: Path) -> None:
    """Make sure that what is to be a file of records is no pipe, device or folder, if it is there.

    Raises:
        HarnessError: It is.
    """
    if path.exists() and not path.is_file():
        raise HarnessError(f"{path} is no regular file, which a file of records has to be; choose another one")


def mend_last_line(path: Path) -> None:
    """Complete a last line that lacks only its line break and cut off one that was not written to its end.

    The next record then starts on a line of its own.

    Raises:
        HarnessError: The file is no file of records of this version, and is as it was; or it cannot be written.
    """
    if not path.exists():
        return
    _, text, whole = _read(path)
    if text and not text.endswith("\n"):
        try:
            replace_text(path, text + "\n" if len(whole) == len(text) else whole)
        except OSError as error:
            raise _cannot_write(path, error) from None


def _read(path: Path) -> tuple[dict[str, Record], str, str]:
    """The records in a file by their models, all of its text, and the text without what was not written to its end."""
    check_regular(path)
    try:
        # Some editors put a byte order mark before the text, and end lines in two characters.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HarnessError(f"cannot read the records in {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path} is no file of records: {error.reason} at byte {error.start}") from None
    records: dict[str, Record] = {}
    # Not splitlines(), which takes more characters than the line break for one.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                record = Record.from_line(line)
                records[record.model] = record
        except ValueError as error:
            if number == len(lines) and _is_half_a_record(line, after_others=bool(records)):
                return records, text, text[: len(text) - len(line)]
            message = f"{path}:{number}: {error}; remove the line, or move the file away and sweep again"
            raise HarnessError(message) from None
    return records, text, text


def _is_half_a_record(line: str, *, after_others: bool) -> bool:
    """Whether a last line that is no record is the beginning of one, and not what somebody else wrote."""
    try:
        json.loads(line)
    except ValueError:
        return after_others or line.startswith(_BEGINNING) or _BEGINNING.startswith(line)
    return False


def append_record(path: Path, record: Record) -> None:
    """Add a record to a file, making the file and its folder where they are missing.

    Args:
        path: The file. It ends with a whole line, see `mend_last_line`.
        record: The record. It is on its way to the disk as one piece when this returns.

    Raises:
        HarnessError: It cannot be written, because the disk is full for instance. The file is as it was.
    """
    line = record.to_line().encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: one write of the whole line, which a killed process has either made or not.
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                if written < len(line):
                    # The rest does not fit; asking for it again says why.
                    file.write(line[written:])
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> HarnessError:
    return HarnessError(
        f"cannot write {path}: {error.strerror or error}; what was written before is kept, and the same command goes "
        f"on once that is settled"
    )


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replace a file of records at once, sorted by name so that two sweeps can be compared line by line.

    Raises:
        HarnessError: It cannot be written. The file is as it was.
    """
    ordered = sorted(records, key=lambda record: natural_order(record.model))
    try:
        replace_text(path, "".join(record.to_line() for record in ordered))
    except OSError as error:
        raise _cannot_write(path, error) from None
