"""How what the channels pass is printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from tabulate import tabulate

from torchorbit.errors import ArgumentError
from torchorbit.orbits.passing import Member, Show


def members_table(members: Iterable[Member]) -> str:
    """A table of them: name, role, and what it is."""
    rows = [(member.name, member.role, member.description) for member in members]
    return tabulate(rows, headers=("name", "role", "is"), disable_numparse=True)


def check_show(show: Any) -> None:
    """Refuse what cannot be shown.

    Raises:
        ArgumentError: ``show`` is none of the choices.
    """
    if show not in get_args(Show):
        raise ArgumentError(f"show={show!r}, expected one of {', '.join(map(repr, get_args(Show)))}")
