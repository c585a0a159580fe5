"""Operators that are declared by torch's schema of them."""

import pytest

from tests.models import assert_converts, operators
from tests.operators.schema_cases import CASES
from torchorbit.operators import OPERATORS


def test_every_operator_that_a_schema_declares_has_a_case():
    assert {name for name, row in OPERATORS.items() if row.of_schema} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_call_becomes_the_operator_and_computes_the_same(name):
    example, function = CASES[name]
    assert name in operators(assert_converts(function, example))
