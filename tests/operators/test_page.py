"""The page of operators is what the declarations say, and what is missing there is missed."""

import dataclasses
from pathlib import Path

from harness import operators
from torchorbit.operators import FAMILIES, KNOWN, LEAVES, OPERATORS

PAGE = Path(__file__).parents[2] / operators.PAGE


def test_the_page_is_what_its_command_makes():
    assert PAGE.read_text(encoding="utf-8") == operators.page(), "run `nox -s operators`"


def test_nothing_is_missing():
    assert {row.name: operators.missing(row) for row in KNOWN.values() if operators.missing(row)} == {}


def test_a_gap_is_an_empty_cell_and_stands_at_the_top(monkeypatch):
    row = OPERATORS["relu"]
    monkeypatch.setitem(KNOWN, "relu", dataclasses.replace(row, rule=None, needless={"cost": "it is cheap"}))
    page = operators.page()
    assert "Gaps: `relu` has no rule, `relu` has no resize" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| `relu(input)` ")]
    assert [cell.strip() for cell in line.split("|")][5:10] == ["-", "", "", "", ""]
    assert "- no cost of relu: it is cheap" in page


def test_every_family_has_operators_and_says_what_its_operators_do():
    for name, module in FAMILIES.items():
        assert any(row.family == name for row in KNOWN.values())
        assert module.__doc__


def test_a_spelling_is_of_one_operator():
    names = [name for row in KNOWN.values() for name in (*row.names, *row.reflected)]
    assert len(names) == len(set(names))
    assert not set(names) & set(KNOWN)
    functions = [function for row in KNOWN.values() for function in row.calls]
    assert len(functions) == len(set(functions))


def test_every_leaf_is_of_an_operator():
    assert {leaf.operator for leaf in LEAVES.values()} - {""} <= set(OPERATORS)
    assert {name for name, leaf in LEAVES.items() if not leaf.operator} <= set(KNOWN) - set(OPERATORS)
