"""Writing files so that nobody ever finds half of one, and telling files apart by their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK = 2**20  # bytes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file to write to, which takes the place of another one in one step when all of it is there.

    Readers see the old file or the new one. Where writing fails, the old one stays and nothing is left beside it.

    Args:
        path: The file; its folder is made where it is missing.

    Yields:
        An empty file in the same folder, with the permissions of any new file there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        aside.open("xb").close()
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step, as `replacing` does.

    Args:
        path: The file; its folder is made where it is missing.
        text: All of its new content.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step, as `replacing` does.

    Args:
        path: The file; its folder is made where it is missing.
        content: All of its new content.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


def digest(content: Path | bytes | BinaryIO, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """A hash, to tell contents apart.

    Args:
        content: A file, bytes, or an open file, which is read from where it stands to its end.
        algorithm: As `hashlib.new` takes it.
        prefix: Hashed before the content.

    Returns:
        Hexadecimal digits.
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            return digest(file, algorithm, prefix)
    found = hashlib.new(algorithm, prefix, usedforsecurity=False)
    if isinstance(content, bytes):
        found.update(content)
    else:
        while chunk := content.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
