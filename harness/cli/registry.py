"""Which modules have commands."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

#: Modules of this package with commands, in the order of the help. Each has a `HEADING`, under which the help lists its
#: `COMMANDS`. Whoever adds one adds it here.
MODULES = (
    "one_model",
    "all_of_timm",
    "pruned_models",
    "hubs",
)


def sections() -> dict[str, list[click.Command]]:
    """Heading in the help -> the commands below it, both in order."""
    found: dict[str, list[click.Command]] = {}
    for name in MODULES:
        module = importlib.import_module(f"harness.cli.{name}")
        commands: Sequence[click.Command] = module.COMMANDS
        found.setdefault(module.HEADING, []).extend(commands)
    return found
