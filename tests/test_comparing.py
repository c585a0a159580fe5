import copy
import math

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes
from torchorbit.comparing import paired, relative_difference

pytestmark = pytest.mark.numeric


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))


def test_a_graph_compares_equal_to_its_source():
    source = model()
    torchorbit.inspect.compare_module_outputs(source, torchorbit.convert(source, torch.randn(1, 3, 8, 8)), (2, 3, 8, 8))


def test_another_model_is_an_assertion_error_that_says_by_how_much():
    with pytest.raises(AssertionError, match="differs by"):
        torchorbit.inspect.compare_module_outputs(model(), model(), (2, 3, 8, 8))
    torchorbit.inspect.compare_module_outputs(model(), model(), input_shape=(2, 3, 8, 8), atol=1e6)


def test_the_largest_difference_counts():
    source = nn.Linear(1000, 1000)
    other = copy.deepcopy(source)
    with torch.no_grad():
        other.bias[3] += 0.01
    with pytest.raises(AssertionError):
        torchorbit.inspect.compare_module_outputs(source, other, (1, 1000), atol=1e-3)


def test_modes_are_restored_also_on_failure():
    first, second = model(), model()
    first.eval()
    first[1].train()
    second[2].eval()
    modes = [[m.training for m in each.modules()] for each in (first, second)]
    with pytest.raises(AssertionError):
        torchorbit.inspect.compare_module_outputs(first, second, (2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        torchorbit.inspect.compare_module_outputs(first, second, (2, 5, 8, 8))
    assert [[m.training for m in each.modules()] for each in (first, second)] == modes
    torchorbit.inspect.compare_module_outputs(first, first, (2, 3, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, {"a": x * 2}),
        lambda x: [x, None, 3, "text"],
        lambda x: x > 0,
        lambda x: x.long(),
        lambda x: x[:0],
        lambda x: torch.complex(x, x),
    ],
    ids=["nested", "no tensors", "flags", "integers", "empty", "complex"],
)
def test_outputs_of_every_kind_are_compared(function):
    torchorbit.inspect.compare_module_outputs(Computes(function), Computes(function), (2, 3))


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        (lambda x: (x, x), lambda x: x, r"the second model returns \* where the first model returns \(\*, \*\)"),
        (lambda x: x, lambda x: x[:, :2], r"float32 \(20, 2\) where the first model's is float32 \(20, 3\)"),
        (lambda x: x, lambda x: x.double(), "of the second model is float64"),
        (lambda x: (x, 3), lambda x: (x, 4), "output #1 of the second model is 4"),
        (lambda x: x, lambda x: x * float("nan"), "differs"),
        (lambda x: x > 0, lambda x: x > 10, "differs"),
    ],
    ids=["structure", "shape", "type", "no tensor", "nan", "flags"],
)
def test_outputs_that_are_not_alike_are_an_assertion_error(first, second, what):
    with pytest.raises(AssertionError, match=what):
        torchorbit.inspect.compare_module_outputs(Computes(first), Computes(second), (20, 3))


def test_models_in_another_dtype_are_compared():
    source = nn.Linear(4, 4).double()
    torchorbit.inspect.compare_module_outputs(source, copy.deepcopy(source), (2, 4))


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        (torch.tensor([1.0, -4.0]), torch.tensor([1.4, -4.0]), 0.1),
        (torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1e-9]), math.inf),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.ones(2), torch.tensor([1.0, math.nan]), math.inf),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.inf]), math.inf),
        (torch.tensor([True, False]), torch.tensor([True, False]), 0.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), math.inf),
        (torch.tensor([100, 200]), torch.tensor([100, 201]), math.inf),
        (torch.tensor([3j, 4.0]), torch.tensor([3j, 4.4]), 0.1),
        (torch.empty(0, 3), torch.empty(0, 3), 0.0),
    ],
)
def test_differences_are_relative_to_the_largest_number(expected, actual, difference):
    pairs = paired({"a": torch.ones(1), "b": [expected]}, {"a": torch.ones(1), "b": [actual]})
    assert relative_difference(pairs) == pytest.approx(difference)
