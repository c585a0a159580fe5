"""One family of errors, and what is said of those that are of no family."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import harness
import zoo
from harness.errors import HarnessError, UsageError, one_line
from torchorbit.errors import ArgumentError, TorchorbitError


@pytest.mark.parametrize("package", [harness, zoo], ids=lambda package: package.__name__)
def test_every_error_that_can_reach_somebody_is_of_the_family(package: object) -> None:
    found = []
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):  # type: ignore[attr-defined]
        if module.name.endswith("__main__"):
            continue
        for name, value in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(value, Exception) and value.__module__ == module.name and not name.startswith("_"):
                found.append(value)
    assert found
    assert all(issubclass(error, TorchorbitError) for error in found), found


def test_wrong_usage_is_a_wrong_argument() -> None:
    assert issubclass(UsageError, HarnessError)
    assert issubclass(UsageError, ArgumentError)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize(
    ("error", "named", "expected"),
    [
        (ValueError("two\n  lines"), True, "ValueError: two lines"),
        (ValueError("two\n  lines"), False, "two lines"),
        (KeyError(), True, "KeyError"),
        (KeyError(), False, "KeyError"),
        (ValueError("x" * 600), False, "x" * 497 + "..."),
    ],
)
def test_an_error_becomes_one_line(error: Exception, named: bool, expected: str) -> None:
    assert one_line(error, named=named) == expected
