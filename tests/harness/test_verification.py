from __future__ import annotations

from typing import Any

import pytest
import torch

import torchorbit
from harness.models import build_with_random_weights, example_input
from harness.verification import (
    VerificationError,
    check_shapes,
    packed_and_unpacked,
    random_input,
    relative_difference,
)

NUMBERS = torch.tensor([[1.0, -4.0, 2.0]])


def test_the_difference_is_relative_to_the_largest_output() -> None:
    assert relative_difference(NUMBERS, NUMBERS) == 0.0
    assert relative_difference(NUMBERS, NUMBERS + torch.tensor([[0.0, 0.0, 0.4]])) == pytest.approx(0.1)


def test_of_several_outputs_the_one_that_differs_most_counts() -> None:
    expected = {"a": NUMBERS, "b": (NUMBERS, [1000 * NUMBERS])}
    actual = {"a": NUMBERS + 0.04, "b": (NUMBERS, [1000 * NUMBERS + 0.04])}

    assert relative_difference(expected, actual) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        (NUMBERS, (NUMBERS,), r"the graph returns \(\*,\) where the source returns \*"),
        ({"a": NUMBERS}, {"b": NUMBERS}, "the graph returns"),
        ([NUMBERS, NUMBERS], [NUMBERS], "the graph returns"),
        (
            NUMBERS,
            NUMBERS[:, :2],
            r"the output of the graph is float32 \(1, 2\) where the source's is float32 \(1, 3\)",
        ),
        ((NUMBERS, NUMBERS), (NUMBERS, NUMBERS.double()), r"output #1 of the graph is float64"),
        ((NUMBERS, 3), (NUMBERS, 4), "output #1 of the graph is 4 where the source's is 3"),
        ((NUMBERS, None), (NUMBERS, NUMBERS), "the graph returns|output #1"),
    ],
)
def test_outputs_of_another_structure_shape_or_type_are_told_apart(expected: Any, actual: Any, message: str) -> None:
    for compare in (check_shapes, relative_difference):
        with pytest.raises(VerificationError, match=message) as caught:
            compare(expected, actual)
        assert "\n" not in str(caught.value)


def test_shapes_are_compared_without_memory() -> None:
    check_shapes(NUMBERS.to("meta"), NUMBERS.to("meta"))


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        (NUMBERS * float("inf"), NUMBERS, "of the source is not finite"),
        (torch.ones(1, 3), torch.ones(1, 3), "of the source is constant"),
        (NUMBERS, NUMBERS * float("nan"), "of the graph is not finite"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "of type torch.int64 is not the source's"),
    ],
)
def test_comparisons_that_would_prove_nothing_fail(expected: Any, actual: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        relative_difference(expected, actual)


def test_a_random_input_is_the_same_in_every_process_and_another_for_another_model() -> None:
    assert torch.equal(random_input((3, 20, 30), "resnet18"), random_input((3, 20, 30), "resnet18"))
    assert not torch.equal(random_input((3, 20, 30), "resnet18"), random_input((3, 20, 30), "resnet34"))
    assert random_input((1, 20, 30), "resnet18").shape == (1, 1, 20, 30)


def test_packing_and_unpacking_shares_the_weights() -> None:
    model = build_with_random_weights("test_resnet")
    graph = torchorbit.convert(model, example_input(model))

    again = packed_and_unpacked(graph)

    assert again is not graph
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in again.parameters()} == shared
