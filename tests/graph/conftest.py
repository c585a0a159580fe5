"""Damaged documents that `torchorbit.load` still takes: known gaps, none of which runs code."""

import pytest

KNOWN_GAPS = """
    a fixed input that refers
    a fixed input that is a parameter
    named arguments for a block
    a slice of two
    a child that is its own parent
    a child that is the graph
    shapes that are a number
    a mode that is a list
    a source that is null
    a target of an assignment that is a number
    a reference to an assignment
"""


def pytest_collection_modifyitems(items):
    gaps = {f"[{line.strip()}]" for line in KNOWN_GAPS.splitlines() if line.strip()}
    for item in items:
        if any(item.name.endswith(gap) for gap in gaps) and "makes_no_sense" in item.name:
            item.add_marker(pytest.mark.xfail(reason="loaded instead of refused", strict=True))
