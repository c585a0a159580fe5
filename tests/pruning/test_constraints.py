"""Which widths orbits may have."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import torchorbit
from torchorbit import Bounds, Target
from torchorbit.criteria import Magnitude
from torchorbit.errors import TargetError
from torchorbit.selectors import Constraint, EnotBounds, Overrides, Task, Uniform


def chain(*widths):
    layers, before = [], 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    model = nn.Sequential(*layers, nn.Conv2d(before, 5, 1)).eval()
    return torchorbit.convert(model, torch.randn(2, 3, 8, 8))


def orbit_of(width):
    (orbit,) = torchorbit.find_orbits(chain(width))
    return orbit


@pytest.fixture(scope="module")
def vit():
    dag = torchorbit.convert(timm.create_model("vit_tiny_patch16_224", depth=2).eval(), torch.empty(2, 3, 224, 224))
    return torchorbit.find_orbits(dag)


@pytest.mark.parametrize(
    ("width", "arguments", "least", "step"),
    [
        (64, {}, 16, 1),  # up to 64 channels one by one
        (65, {}, 17, 4),  # 65 - 16 = 49 may go, of which 48 is a multiple of 4
        (128, {}, 32, 4),  # a quarter, from 64 channels on
        (63, {}, 16, 1),
        (20, {}, 16, 1),
        (16, {}, 16, 1),
        (9, {}, 9, 1),  # fewer than 16 stay as they are
        (100, {"fixed_step": 8}, 28, 8),  # 75 may go, 72 is a multiple of 8
        (100, {"absolute_min_channels": 50, "fixed_step": 1}, 50, 1),
        (100, {"absolute_min_channels": 1, "relative_min_channels": 0.333, "fixed_step": 1}, 33, 1),
        (10, {"absolute_min_channels": 0, "relative_min_channels": 0.0}, 1, 1),
    ],
)
def test_enots_bounds_are_as_it_publishes_them(width, arguments, least, step):
    widths = EnotBounds(**arguments).widths(orbit_of(width)).tolist()
    assert widths == list(range(least, width + 1, step))
    assert widths[-1] == width


def test_enots_numbers_follow_its_own_formula():
    def published(number_of_channels, least, share, fixed_step):
        high = max(least, int(share * number_of_channels))
        high = max(0, number_of_channels - high)
        step = (4 if number_of_channels > 64 else 1) if fixed_step is None else fixed_step
        return [number_of_channels - removed for removed in range(0, high + 1, step)][::-1]

    for width in (2, 15, 17, 64, 66, 97, 200):
        orbit = orbit_of(width)
        for least, share, step in ((16, 0.25, None), (8, 0.5, 3), (1, 0.1, None)):
            assert EnotBounds(least, share, step).widths(orbit).tolist() == published(width, least, share, step)


def test_a_least_number_of_channels_is_not_one_of_heads(vit):
    (heads, *_) = [orbit for orbit in vit if orbit.kind == "groups"]
    assert heads.width == 3
    assert Bounds(min_width=16, round_to=8).widths(heads).tolist() == [1, 2, 3]
    assert Bounds(min_share=0.5).widths(heads).tolist() == [2, 3]
    assert EnotBounds().widths(heads).tolist() == [1, 2, 3]
    assert EnotBounds(relative_min_channels=0.7, fixed_step=4).widths(heads).tolist() == [2, 3]


def test_bounds_keep_the_least_and_round():
    orbit = orbit_of(30)
    assert Bounds(min_width=9, round_to=4).widths(orbit).tolist() == [12, 16, 20, 24, 28, 30]
    assert Bounds(min_share=0.5, round_to=10).widths(orbit).tolist() == [20, 30]
    assert Bounds(min_width=40).widths(orbit).tolist() == [30]


def test_overrides_by_orbit_module_and_pattern():
    dag = chain(12, 20, 28)
    first, second, third = orbits = torchorbit.find_orbits(dag)
    constraint = Overrides(
        {"2": Bounds(min_width=15), dag.get_submodule("4"): Bounds(round_to=7), first: Bounds(round_to=6)},
        Bounds(min_width=1000),
    )
    assert [constraint.widths(orbit).tolist() for orbit in orbits] == [[6, 12], [*range(15, 21)], [7, 14, 21, 28]]
    only = Overrides({"[24]": Bounds(round_to=4)}, EnotBounds())
    assert only.widths(first).tolist() == [12]
    assert only.widths(second).tolist() == [4, 8, 12, 16, 20]
    assert only.widths(third).tolist() == [4, 8, 12, 16, 20, 24, 28]


def test_the_orbit_itself_counts_more_than_a_pattern_and_the_last_pattern_more_than_the_first():
    (orbit, *_) = torchorbit.find_orbits(chain(12, 20))
    assert Overrides({orbit: Bounds(min_width=3), "*": Bounds(min_width=5)}).widths(orbit)[0] == 3
    assert Overrides({"0": Bounds(min_width=3), "*": Bounds(min_width=5)}).widths(orbit)[0] == 5


@pytest.mark.parametrize("key", ["layer9.*", nn.Linear(2, 2), "6"])
def test_overrides_that_mean_nothing_are_an_error(key):
    (orbit, *_) = torchorbit.find_orbits(chain(12, 20))
    with pytest.raises(ValueError, match=r"no module of the graph|produces no channels that can be removed"):
        Overrides({key: Bounds()}).widths(orbit)


def test_the_orbit_of_another_graph_is_an_error():
    (orbit, *_), (other, *_) = (torchorbit.find_orbits(chain(12, 20)) for _ in range(2))
    with pytest.raises(ValueError, match="an orbit of another graph"):
        Overrides({other: Bounds()}).widths(orbit)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Bounds(min_width=0), ValueError, "min_width=0"),
        (lambda: Bounds(min_share=1.5), ValueError, "min_share=1.5"),
        (lambda: Bounds(min_share="half"), TypeError, "min_share='half'"),
        (lambda: EnotBounds(absolute_min_channels=2.5), TypeError, "absolute_min_channels=2.5"),
        (lambda: EnotBounds(relative_min_channels=-1), ValueError, "relative_min_channels=-1"),
        (lambda: EnotBounds(fixed_step=0), ValueError, "fixed_step=0"),
        (lambda: Overrides({"*": 8}), TypeError, "no Constraint"),
        (lambda: Overrides({3: Bounds()}).widths(orbit_of(4)), TypeError, "expected an Orbit"),
    ],
)
def test_wrong_constraints(make, error, message):
    with pytest.raises(error, match=message):
        make()


class PowersOfTwo(Constraint):
    def widths(self, orbit):
        return np.unique([*(2**n for n in range(int(np.log2(orbit.width)) + 1)), orbit.width])


def test_a_constraint_of_the_users():
    dag = chain(24, 48)
    orbits = torchorbit.find_orbits(dag)
    scores = Magnitude().scores(orbits)
    widths = Uniform().widths(Task(scores, target=Target.flops(0.4), constraint=PowersOfTwo()))
    assert all(width in (1, 2, 4, 8, 16, 24, 32, 48) for width in widths)
    assert widths != [24, 48]


@pytest.mark.parametrize("wrong", [[], [0, 24], [1, 2], [24, 1], [1, 1, 24], [1, 25]])
def test_a_constraint_that_gives_no_widths_is_named(wrong):
    class Wrong(Constraint):
        def widths(self, orbit):
            return np.array(wrong, int)

    scores = Magnitude().scores(torchorbit.find_orbits(chain(24)))
    with pytest.raises(ValueError, match="Wrong allows"):
        Task(scores, constraint=Wrong())


def test_what_cannot_be_reached_says_what_the_constraint_leaves():
    dag = chain(24, 48)
    orbits = torchorbit.find_orbits(dag)
    task = Task(Magnitude().scores(orbits), target=Target.flops(0.01), constraint=EnotBounds())
    with pytest.raises(TargetError, match="cannot be reached") as error:
        Uniform().select(task)
    first, second = orbits
    smallest = torchorbit.remove_channels(dag, {first: range(8), second: range(32)})
    assert error.value.min_cost == torchorbit.flops(smallest).total
