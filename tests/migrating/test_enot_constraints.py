"""What ENOT's constraints do."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import torchorbit
from torchorbit import Bounds
from torchorbit.selectors import Constraint, EnotBounds

WIDTHS = (4, 10, 16, 17, 20, 64, 65, 96, 128, 400)


@pytest.fixture(scope="module")
def chain():
    """Orbits of all these widths."""
    sizes = [3, *WIDTHS, 2]
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return torchorbit.find_orbits(torchorbit.convert(nn.Sequential(*layers).eval(), torch.randn(2, 3)))


@pytest.mark.parametrize(
    ("absolute", "relative", "fixed"), [(16, 0.25, None), (16, 0.25, 8), (1, 0.5, None), (32, 0.1, 3)]
)
def test_enot_default_constraint(chain, absolute, relative, fixed):
    """By the code that the document gives."""
    constraint = EnotBounds(absolute_min_channels=absolute, relative_min_channels=relative, fixed_step=fixed)
    for orbit, width in zip(chain, WIDTHS, strict=True):
        high = max(0, width - max(absolute, int(relative * width)))
        step = (4 if width > 64 else 1) if fixed is None else fixed
        assert list(orbit.width - constraint.widths(orbit)[::-1]) == list(range(0, high + 1, step))
    assert EnotBounds() == EnotBounds(absolute_min_channels=16, relative_min_channels=0.25, fixed_step=None)


def test_enot_dummy_constraint(chain):
    for orbit in chain:
        assert list(Bounds().widths(orbit)) == list(range(1, orbit.width + 1))


def test_enot_own_constraint(chain):
    class Sevens(Constraint):
        """low 7, high 63, step 7, by the number of channels that go."""

        def widths(self, orbit):
            most = min(63, orbit.width - 1)
            return np.unique([orbit.width, *(orbit.width - np.arange(7, most + 1, 7))])

    pruned = torchorbit.prune(chain.model.dag, ratio=0.4, constraint=Sevens())
    gone = [before - after.width for before, after in zip(WIDTHS, torchorbit.find_orbits(pruned), strict=True)]
    assert all(number % 7 == 0 and number <= 63 for number in gone)
    assert gone[WIDTHS.index(96)] == 35  # the closest to 38.4
    assert gone[WIDTHS.index(400)] == 63


def test_enot_constraints_are_applied_by_selectors(chain):
    """The widths that come out are allowed, and the closest to what was asked for."""
    constraint = EnotBounds(absolute_min_channels=16, relative_min_channels=0.25)
    pruned = torchorbit.prune(chain.model.dag, ratio=0.55, constraint=constraint)
    for before, after in zip(chain, torchorbit.find_orbits(pruned), strict=True):
        allowed = constraint.widths(before)
        assert after.width in allowed
        assert abs(after.width - 0.45 * before.width) == np.abs(allowed - 0.45 * before.width).min()
    for selector in ("uniform", "global", "knapsack"):
        pruned = torchorbit.prune(chain.model.dag, flops=0.5, selector=selector, constraint=constraint)
        for before, after in zip(chain, torchorbit.find_orbits(pruned), strict=True):
            assert after.width in constraint.widths(before)
