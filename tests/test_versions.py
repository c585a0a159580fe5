"""Bounds of versions: what is used by private names has an upper one, and comments that say which names these are."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
OURS = {"torchorbit", "zoo", "harness"}

#: Where a package keeps copies of other packages, which are no more its public part than what begins with an underscore.
INNER = {"externals", "_vendor", "vendored"}


def names_of(tree: ast.Module) -> dict[str, str]:
    """What the names of a module stand for that it imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def written(node: ast.AST, names: dict[str, str]) -> str | None:
    """In full what an expression like ``torch._C.name`` stands for; None where it is none of what was imported."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])


def used(tree: ast.Module) -> Iterator[str]:
    names = names_of(tree)
    yield from names.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found = written(node, names)
            if found is not None:
                yield found


def is_private(name: str) -> bool:
    return any(part in INNER or re.match(r"_[^_]", part) for part in name.split("."))


def private_names() -> dict[str, set[str]]:
    """Package -> the private names of it that our packages use."""
    found: dict[str, set[str]] = {}
    for path in [path for package in OURS for path in (ROOT / package).rglob("*.py")]:
        for name in used(ast.parse(path.read_text())):
            top = name.partition(".")[0]
            if is_private(name) and top not in OURS | set(sys.stdlib_module_names):
                found.setdefault(top, set()).add(name)
    return found


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, Requirement]:
    """Those of the core and of the harness, by name."""
    found = project()
    lines = [*found["dependencies"], *found["optional-dependencies"]["harness"]]
    return {each.name: each for each in map(Requirement, lines)}


def bound(requirement: Requirement, operator: str) -> str | None:
    return next((each.version for each in requirement.specifier if each.operator == operator), None)


def test_private_names_are_seen() -> None:
    tree = ast.parse(
        "import a.b\nimport c as d\nfrom e.externals import f\nfrom g._h import i\nfrom j import k\n"
        "a._x.y\nd.z._w()\nk.public\nk.__name__\nself._own"
    )

    assert {name for name in used(tree) if is_private(name)} == {"a._x", "a._x.y", "c.z._w", "e.externals.f", "g._h.i"}


def test_what_is_used_by_private_names_has_an_upper_bound_and_nothing_else_has() -> None:
    bounded = {name for name, requirement in requirements().items() if bound(requirement, "<") is not None}

    assert set(private_names()) == bounded


@pytest.mark.parametrize("package", sorted(private_names()))
def test_the_comments_say_which_private_names_these_are(package: str) -> None:
    comments = " ".join(re.findall(r"^# ?(.*)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for name in private_names()[package]:
        parts = name.split(".")
        first = next(place for place, part in enumerate(parts) if is_private(part))
        places = {".".join(parts[: first + 1]), ".".join(parts[: first + 2]), ".".join([*parts[:first], "_*"])}
        assert any(f"`{place}`" in comments for place in places), name


@pytest.mark.parametrize("package", sorted(private_names()))
def test_the_pinned_version_is_the_last_one_below_the_bound(package: str) -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    upper = bound(requirements()[package], "<")
    major, minor = Version(pins[package]).release[:2]

    assert upper == f"{major}.{minor + 1}"


def test_whatever_the_core_and_the_harness_need_has_a_lower_bound() -> None:
    # torchvision goes with torch, a version for each.
    without = {name for name, requirement in requirements().items() if bound(requirement, ">=") is None}

    assert without == {"torchvision"}


def test_the_oldest_are_tested_every_night_and_the_newest_without_failing_it() -> None:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text())["jobs"]

    assert {job: [step["run"] for step in jobs[job]["steps"] if "run" in step][-1].split()[:3] for job in jobs} == {
        "oldest": ["nox", "-s", "oldest"],
        "newest": ["nox", "-s", "newest"],
    }
    assert jobs["newest"]["continue-on-error"] is True
    assert "continue-on-error" not in jobs["oldest"]
