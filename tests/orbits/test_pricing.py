"""The cost of many widths at once is that of the models that have these widths."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import torchorbit
from tests.models import Computes
from torchorbit.cost import FlopsCost, ParametersCost
from torchorbit.orbits.costs import kept_lengths
from torchorbit.orbits.lengths import Lengths
from torchorbit.orbits.pricing import Pricing

LATENCIES = pytest.mark.parametrize("latency", [FlopsCost(), ParametersCost()], ids=["flops", "parameters"])


def in_order(orbits):
    return {orbit: np.arange(orbit.width) for orbit in orbits}


def keeping(orbits, widths):
    return {
        orbit: range(orbit.width - width) for orbit, width in zip(orbits, widths, strict=True) if width < orbit.width
    }


def graph_of(name):
    with torch.device("meta"):
        model = timm.create_model(name, scriptable=False).eval()
    return torchorbit.convert(model, torch.empty(2, *model.pretrained_cfg["input_size"], device="meta"))


@LATENCIES
@pytest.mark.parametrize(
    "name",
    ["resnet18", "test_vit", "swin_s3_tiny_224", "levit_128s", "densenet121", "xcit_nano_12_p16_224", "sequencer2d_s",
     "mobilevit_xxs", "resnest14d"],
)  # fmt: skip
def test_predictions_are_what_models_of_these_widths_cost(name, latency):
    dag = graph_of(name)
    orbits = torchorbit.find_orbits(dag)
    pricing = Pricing(orbits, latency.terms(orbits), in_order(orbits))
    generator = np.random.default_rng(0)
    widths = np.array([[generator.integers(1, orbit.width + 1) for orbit in orbits] for _ in range(3)])
    built = [latency(torchorbit.remove_channels(dag, keeping(orbits, row))) for row in widths]
    np.testing.assert_allclose(pricing.totals(widths), built, rtol=1e-12)
    assert pricing.totals([orbit.width for orbit in orbits]) == pytest.approx(latency(dag), rel=1e-12)


@LATENCIES
def test_what_one_orbit_changes_is_the_difference_of_totals(latency):
    orbits = torchorbit.find_orbits(graph_of("levit_128s"))
    pricing = Pricing(orbits, latency.terms(orbits), in_order(orbits))
    here = np.array([max(1, orbit.width // 2) for orbit in orbits])
    for index, orbit in enumerate(orbits):
        others = np.unique([1, orbit.width // 3 + 1, orbit.width])
        rows = np.repeat(here[None], len(others), axis=0)
        rows[:, index] = others
        expected = pricing.totals(rows) - pricing.totals(here)
        np.testing.assert_allclose(pricing.along(here, index, others), expected, rtol=1e-9, atol=1e-6)


def two_layers():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    return torchorbit.convert(model, torch.randn(2, 3))


def test_a_dimension_that_holds_some_units_more_often_is_counted():
    orbits = torchorbit.find_orbits(two_layers())
    labels = orbits.readings[0].attributes["0.weight"].dims[0]
    uneven = [np.concatenate([labels, labels[:2], labels[:1]])]
    generator = np.random.default_rng(0)
    order = {orbit: generator.permutation(orbit.width) for orbit in orbits}
    pricing = Pricing(orbits, [lambda length: 3.0 * length(uneven, 9) ** 2], order)
    assert pricing.uneven == {0}
    for width in range(1, 7):
        keep = np.ones(orbits.counts[0], bool)
        keep[orbits[0].components[order[orbits[0]][: 6 - width]]] = False
        expected = 3.0 * kept_lengths(orbits, {0: keep})(uneven, 9) ** 2
        assert pricing.totals([width, 8]) == expected
        assert pricing.along([6, 8], 0, [width])[0] == expected - 3.0 * 81


def test_costs_that_are_no_polynomials_are_asked_for():
    orbits = torchorbit.find_orbits(two_layers())
    dims = [[orbits.readings[0].attributes[f"{n}.weight"].dims[0]] for n in (0, 2)]

    def tiles(length):
        return math.ceil(length(dims[0], 6) / 4) * 4.0 * math.ceil(length(dims[1], 8) / 4) * 4.0

    pricing = Pricing(orbits, [tiles, lambda length: 7.0], in_order(orbits))
    widths = [(a, b) for a in range(1, 7) for b in range(1, 9)]
    expected = [7.0 + math.ceil(a / 4) * 4 * math.ceil(b / 4) * 4 for a, b in widths]
    assert pricing.totals(widths).tolist() == expected
    np.testing.assert_array_equal(pricing.along([6, 8], 1, [1, 5, 8]), [-32, 0, 0])


def test_a_dimension_of_heads_and_channels_is_a_product():
    def attention(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(x.shape[0], -1, 24))

    model = Computes(attention, qkv=nn.Linear(10, 72), proj=nn.Linear(24, 10)).eval()
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 5, 10)))
    lengths = Lengths(orbits, in_order(orbits))
    (heads,) = [orbit.index for orbit in orbits if orbit.kind == "groups"]
    attributes = [reading.attributes["proj.weight"] for reading in orbits.readings]
    length = lengths.of([value.dims[1] for value in attributes], 24)
    (product,) = length.products
    assert product.coefficient == 1
    assert heads in product.orbits
    assert sorted(orbits[n].width for n in product.orbits) == [4, 6]
