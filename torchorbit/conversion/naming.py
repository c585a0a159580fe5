"""Names of the vertices of a block."""

from __future__ import annotations

import re

from torchorbit.graph import codegen


class Names:
    """Names of the vertices of one block."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.counts: dict[str, int] = {}

    def parameter(self, wanted: str) -> str:
        """A name for an input: the wanted one, with underscores behind it where it is taken."""
        name = _identifier(wanted)
        while name in self.taken or not codegen.is_valid_name(name):
            name += "_"
        self.taken.add(name)
        return name

    def value(self, wanted: str) -> str:
        """A name for a vertex: the wanted one, with a number behind it where it is taken."""
        wanted = _identifier(wanted)
        count = self.counts.get(wanted, 0)
        name = wanted if not count else f"{wanted}_{count}"
        while name in self.taken or not codegen.is_valid_name(name):
            count += 1
            name = f"{wanted}_{count}"
        self.counts[wanted] = count + 1
        self.taken.add(name)
        return name


def _identifier(wanted: str) -> str:
    """A plain identifier like ``wanted``."""
    name = re.sub("[^A-Za-z0-9_]", "_", wanted)
    if name.startswith("__") or not name.strip("_"):
        name = name.strip("_") or "x"
    return f"_{name}" if name[0].isdigit() else name
