"""Which units selectors remove, against searches that try everything."""

import ctypes
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp
from torch import nn

import torchorbit
from tests.models import stir
from tests.removal.test_property import KEPT, assert_proved, network, specifications
from torchorbit import Bounds, Scores, Target
from torchorbit.cost import FlopsCost, ParametersCost
from torchorbit.criteria import Magnitude
from torchorbit.errors import LatencyMeasurementError, TargetError
from torchorbit.selectors import SELECTORS, Global, Knapsack, Ratios, Selector, Task, Uniform


def chain(*widths):
    layers, before = [], 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    model = stir(nn.Sequential(*layers, nn.Conv2d(before, 5, 1))).eval()
    return torchorbit.convert(model, torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def small():
    """A network of four orbits, one of them a residual stream, and what every model of allowed widths really costs."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.one = nn.Conv2d(8, 12, 3, padding=1)
            self.two = nn.Conv2d(12, 6, 1)
            self.three = nn.Conv2d(6, 8, 3, padding=1)
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(x + self.three(self.two(self.one(x).relu()).relu()))

    dag = torchorbit.convert(stir(Residual()).eval(), torch.randn(2, 3, 8, 8))
    orbits = torchorbit.find_orbits(dag)
    allowed = [Bounds(round_to=2).widths(orbit).tolist() for orbit in orbits]
    costs = {}
    for widths in itertools.product(*allowed):
        removed = {
            orbit: range(orbit.width - width)
            for orbit, width in zip(orbits, widths, strict=True)
            if width < orbit.width
        }
        model = torchorbit.remove_channels(dag, removed)
        costs[widths] = (torchorbit.flops(model).total, sum(p.numel() for p in model.parameters()))
    return orbits, costs


def random_scores(orbits, seed):
    generator = np.random.default_rng(seed)
    values = {orbit: generator.gamma(2, 1, orbit.width) * generator.gamma(3, 1) for orbit in orbits}
    return Scores(orbits, values, criterion="random")


def kept(scores, widths):
    """The sum over orbits of the highest scores, each over the mean of its orbit."""
    return sum(
        np.sort(values)[::-1][:width].sum() / values.mean()
        for values, width in zip(scores.values(), widths, strict=True)
    )


def best(scores, costs, limit, tolerance=1.0):
    """By trying all: the highest score within the limit, near to it where something is."""
    within = {widths: kept(scores, widths) for widths, cost in costs.items() if cost <= limit}
    near = {widths: score for widths, score in within.items() if costs[widths] >= (1 - tolerance) * limit}
    return max((near or within).values())


def task_of(scores, target, **arguments):
    return Task(scores, target=target, **{"constraint": Bounds(round_to=2), **arguments})


# -- knapsack


@pytest.mark.parametrize("tolerance", [1.0, 0.02])
@pytest.mark.parametrize("measure", [0, 1], ids=["flops", "parameters"])
def test_a_knapsack_is_the_best_of_all_that_fit(small, measure, tolerance):
    orbits, costs = small
    costs = {widths: cost[measure] for widths, cost in costs.items()}
    for seed in range(6):
        scores = random_scores(orbits, seed)
        for share in (0.8, 0.55, 0.3):
            limit = share * max(costs.values())
            widths = Knapsack(tolerance=tolerance).widths(
                task_of(scores, Target((FlopsCost(), ParametersCost())[measure], limit))
            )
            assert costs[tuple(widths)] <= limit
            assert kept(scores, widths) == pytest.approx(best(scores, costs, limit, tolerance), rel=1e-9)


def test_the_search_for_large_problems_finds_the_best_of_small_ones_or_nearly(small):
    orbits, costs = small
    shares = []
    for measure, seed, share in itertools.product((0, 1), range(6), (0.8, 0.55, 0.3)):
        here = {widths: cost[measure] for widths, cost in costs.items()}
        scores = random_scores(orbits, seed)
        limit = share * max(here.values())
        task = task_of(scores, Target((FlopsCost(), ParametersCost())[measure], limit))
        widths = Knapsack(tolerance=1.0, exhaustive=0).widths(task)
        assert here[tuple(widths)] <= limit
        shares.append(kept(scores, widths) / best(scores, here, limit))
    assert min(shares) >= 0.95
    assert np.mean([share >= 1 - 1e-9 for share in shares]) >= 0.8
    assert np.mean(shares) >= 0.995


class WeightedWidths:
    """A latency of the user's own that is a sum over layers; it sees real models."""

    name = "weighted widths"
    weights = (5.0, 2.0, 7.0)

    def __init__(self):
        self.models = 0

    def __call__(self, model):
        self.models += 1
        x = torch.randn(1, 3, 8, 8)
        with torch.no_grad():
            assert torch.isfinite(model(x)).all()
        widths = [model.get_parameter(f"{n}.weight").shape[0] for n in (0, 2, 4)]
        return 3.0 + sum(weight * width for weight, width in zip(self.weights, widths, strict=True))


def test_with_an_additive_latency_that_is_measured_a_knapsack_is_exact():
    dag = chain(10, 14, 8)
    orbits = torchorbit.find_orbits(dag)
    latency = WeightedWidths()
    for seed in range(3):
        scores = random_scores(orbits, seed)
        costs = {
            widths: 3.0 + sum(w * n for w, n in zip(latency.weights, widths, strict=True))
            for widths in itertools.product(range(1, 11), range(1, 15), range(1, 9))
        }
        for share in (0.75, 0.4):
            limit = share * costs[10, 14, 8]
            widths = Knapsack(tolerance=1.0).widths(Task(scores, target=Target(latency, share, relative=True)))
            assert costs[tuple(widths)] <= limit
            assert kept(scores, widths) == pytest.approx(best(scores, costs, limit), rel=1e-9)
    assert latency.models < 6 * 100, "few of the 1120 models are built"


@pytest.mark.parametrize("selector", [Uniform(), Global(), Knapsack()], ids=str)
def test_a_latency_of_the_users_is_met_from_below(selector):
    orbits = torchorbit.find_orbits(chain(24, 32, 16))
    latency = WeightedWidths()
    removed = selector.select(Task(random_scores(orbits, 0), target=Target(latency, 0.5, relative=True)))
    reached = latency(torchorbit.remove_channels(orbits.model.dag, removed))
    whole = latency(orbits.model.dag)
    assert 0.47 * whole <= reached <= 0.5 * whole


def test_measurements_that_fail_are_passed_over():
    orbits = torchorbit.find_orbits(chain(24, 32, 16))
    calls = itertools.count()

    def flaky(model):
        if next(calls) % 5 == 4:
            raise LatencyMeasurementError("the device is busy")
        return sum(p.numel() for p in model.parameters())

    whole = flaky(orbits.model.dag)
    for selector in (Uniform(), Global(), Knapsack()):
        calls = itertools.count()
        removed = selector.select(Task(random_scores(orbits, 0), target=Target(flaky, 0.5 * whole)))
        left = sum(p.numel() for p in torchorbit.remove_channels(orbits.model.dag, removed).parameters())
        assert 0.3 * whole <= left <= 0.5 * whole


def test_a_predicted_latency_that_is_no_sum_is_met():
    class Slow:
        name = "root of the parameters"

        def __call__(self, model):
            return math.sqrt(ParametersCost()(model))

        def predicted(self, orbits, keep):
            return math.sqrt(ParametersCost().predicted(orbits, keep))

    orbits = torchorbit.find_orbits(chain(24, 32, 16))
    for selector in (Uniform(), Global(), Knapsack()):
        removed = selector.select(Task(random_scores(orbits, 0), target=Target(Slow(), 0.7, relative=True)))
        dag = orbits.model.dag
        share = Slow()(torchorbit.remove_channels(dag, removed)) / Slow()(dag)
        assert 0.67 <= share <= 0.7


def test_a_knapsack_keeps_to_the_constraint_of_the_task(small):
    orbits, _ = small
    scores = random_scores(orbits, 0)
    assert any(width % 4 for width in Knapsack().widths(task_of(scores, Target.flops(0.5))))
    removed = Knapsack().select(task_of(scores, Target.flops(0.5), constraint=Bounds(round_to=4)))
    assert all((orbit.width - len(units)) % 4 == 0 for orbit, units in removed.items())


@pytest.mark.parametrize("strict_order", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_within_an_orbit_the_lowest_scores_go(small, seed, strict_order):
    orbits, _ = small
    scores = random_scores(orbits, seed)
    for selector in (Uniform(), Global(), Knapsack(strict_order=strict_order)):
        for orbit, units in selector.select(task_of(scores, Target.flops(0.4))).items():
            rest = np.setdiff1d(np.arange(orbit.width), units)
            assert scores[orbit][units].max() <= scores[orbit][rest].min()


def test_what_the_solver_prints_is_not_on_stdout(capfd, monkeypatch):
    orbits = torchorbit.find_orbits(chain(8, 12, 8))

    def printing(*args, **kwargs):
        ctypes.CDLL(None).printf(b"debugging\n")
        return milp(*args, **kwargs)

    monkeypatch.setattr("scipy.optimize.milp", printing)
    Knapsack(exhaustive=0).widths(Task(random_scores(orbits, 0), target=Target.flops(0.5)))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "debugging" in captured.err


def test_verbose_shows_progress(small, capfd):
    orbits, _ = small
    task = task_of(random_scores(orbits, 0), Target.flops(0.5))
    Knapsack(exhaustive=0).widths(task)
    assert "knapsack" not in capfd.readouterr().err
    Knapsack(exhaustive=0, verbose=True).widths(task)
    assert "knapsack" in capfd.readouterr().err


# -- global


@pytest.mark.parametrize("normalization", ["mean", "max", None])
@pytest.mark.parametrize("number", [1, 5, 11, 0.25, 0.6])
def test_global_removes_the_lowest_scores_anywhere(number, normalization):
    orbits = torchorbit.find_orbits(chain(10, 14, 8))
    scores = random_scores(orbits, 3)
    removed = Global(number, normalization=normalization).select(Task(scores))
    divisors = {"mean": np.mean, "max": np.max, None: lambda values: 1.0}
    units = sorted(
        (score / divisors[normalization](scores[orbit]), orbit.index, unit)
        for orbit in orbits for unit, score in enumerate(scores[orbit])
    )  # fmt: skip
    highest = {orbit.index: int(scores[orbit].argmax()) for orbit in orbits}
    units = [(index, unit) for _, index, unit in units if unit != highest[index]]
    wanted = number if number >= 1 else round(number * 32)
    assert {(o.index, int(unit)) for o, gone in removed.items() for unit in gone} == set(units[:wanted])


def test_global_by_number_keeps_to_allowed_widths():
    orbits = torchorbit.find_orbits(chain(16, 24))
    removed = Global(21).select(Task(random_scores(orbits, 0), constraint=Bounds(round_to=8)))
    assert sum(map(len, removed.values())) == 16
    assert all(len(units) % 8 == 0 for units in removed.values())


def test_global_cannot_remove_more_than_there_is():
    orbits = torchorbit.find_orbits(chain(16, 24))
    with pytest.raises(TargetError, match="39 of 40 units to go, and 38 can") as error:
        Global(39).select(Task(random_scores(orbits, 0)))
    assert error.value.min_cost == 2


def test_global_to_a_target_removes_the_fewest_of_the_lowest_that_meet_it():
    orbits = torchorbit.find_orbits(chain(60, 80, 40))
    scores = random_scores(orbits, 1)
    task = Task(scores, target=Target.flops(0.5))
    widths = Global().widths(task)
    by_number = [Global(n).widths(Task(scores)) for n in range(1, 150)]
    first = next(found for found in by_number if task.cost(found) <= task.limit)
    assert all(width >= least for width, least in zip(widths, first, strict=True))
    assert sum(widths) - sum(first) <= 3
    assert task.cost(widths) <= task.limit


def test_units_that_cost_more_go_sooner_when_scores_are_divided_by_costs():
    orbits = torchorbit.find_orbits(chain(16, 32, 16))
    ones = Scores(orbits, {orbit: np.ones(orbit.width) for orbit in orbits}, criterion="ones")
    unit_cost = [orbit.flops / orbit.width for orbit in orbits]
    removed = Global(6, per_cost=True).select(Task(ones, target=Target.flops(0.5)))
    assert [orbit.index for orbit in removed] == [int(np.argmax(unit_cost))]


def test_a_callback_sees_costs_and_stops_the_search():
    orbits = torchorbit.find_orbits(chain(24, 32, 16))
    seen = []

    def callback(current, target):
        seen.append((current, target))
        return current <= target

    task = Task(random_scores(orbits, 0), target=Target.flops(0.5))
    widths = Global(selector_cb=callback).widths(task)
    assert {target for _, target in seen} == {task.limit}
    assert seen[-1][0] == task.cost(widths) <= task.limit
    assert all(current > task.limit for current, _ in seen[:-1])
    tried = len(seen)
    Global(selector_cb=lambda current, target: bool(seen.append((current, target)))).widths(task)
    assert len(seen) > 2 * tried


# -- ratios


def test_ratios_by_pattern_module_and_orbit():
    dag = chain(10, 20, 30, 40)
    orbits = torchorbit.find_orbits(dag)
    scores = random_scores(orbits, 0)
    selector = Ratios({"[24]": 0.5, dag.get_submodule("4"): 0.1, orbits[0]: 0.3}, default=0.25)
    assert selector.widths(Task(scores)) == [7, 10, 27, 30]
    assert Ratios({"2": 0.5}).widths(Task(scores, constraint=Bounds(round_to=8))) == [10, 8, 30, 40]


def test_the_least_of_the_ratios_of_a_stream_counts_and_its_own_most():
    model = timm.create_model("resnet18", scriptable=False).eval()
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.empty(2, 3, 64, 64)))
    (stream,) = orbits.of_tensor("layer1.0.conv2.weight")
    scores = Magnitude().scores(orbits)
    assert Ratios({"layer1.*": 0.5, "conv1": 0.25}).widths(Task(scores))[stream.index] == 48
    assert Ratios({stream: 0.5, "conv1": 0.25}).widths(Task(scores))[stream.index] == 32
    whole = Ratios({"layer1": 0.5}).select(Task(scores))
    assert {orbit for orbit in orbits if any(name.startswith("layer1") for name in orbit.sources)} == set(whole)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ratios({"0": 1.0}), ValueError, "the ratio of '0' is 1.0"),
        (lambda: Ratios({}, default=-0.1), ValueError, "the ratio of 'default' is -0.1"),
        (lambda: Ratios({"0": "half"}), TypeError, "expected a number"),
        (lambda: Ratios([0.5]), TypeError, "expected a dict"),
        (lambda: Ratios({"stem": 0.5}).widths(Task(random_scores(torchorbit.find_orbits(chain(4)), 0))), ValueError,
         "'stem' produces no channels"),
        (lambda: Global(-1), ValueError, "n_channels_or_ratio=-1"),
        (lambda: Global(2.5), ValueError, "n_channels_or_ratio=2.5"),
        (lambda: Global("many"), TypeError, "n_channels_or_ratio='many'"),
        (lambda: Knapsack(max_iterations=0), ValueError, "max_iterations=0"),
        (lambda: Knapsack(solver_time_limit=0), ValueError, "solver_time_limit=0"),
        (lambda: Knapsack(tolerance=2), ValueError, "tolerance=2"),
        (lambda: Uniform(1.0), ValueError, "ratio=1.0"),
    ],
)  # fmt: skip
def test_wrong_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


# -- all of them

TO_TARGETS = pytest.mark.parametrize("selector", [Uniform(), Global(), Knapsack(), Knapsack(exhaustive=0)], ids=repr)


@TO_TARGETS
@pytest.mark.parametrize(
    "score",
    [lambda n: np.zeros(n), lambda n: np.ones(n), lambda n: -1.0 - np.arange(n), lambda n: np.arange(n) - n / 2],
    ids=["zero", "equal", "negative", "signed"],
)
def test_scores_that_say_little_or_are_negative(selector, score):
    orbits = torchorbit.find_orbits(chain(24, 2, 16, 30))
    scores = Scores(orbits, {orbit: score(orbit.width) for orbit in orbits}, criterion="odd")
    removed = selector.select(Task(scores, target=Target.flops(0.5)))
    dag = orbits.model.dag
    share = torchorbit.flops(torchorbit.remove_channels(dag, removed)).total / torchorbit.flops(dag).total
    assert 0.45 <= share <= 0.5


@TO_TARGETS
def test_a_target_above_the_cost_removes_nothing(selector):
    orbits = torchorbit.find_orbits(chain(24, 16))
    assert selector.select(Task(random_scores(orbits, 0), target=Target.flops(1e15))) == {}


@TO_TARGETS
def test_the_least_that_there_can_be_is_reached_and_less_is_not(selector):
    dag = chain(24, 16)
    orbits = torchorbit.find_orbits(dag)
    constraint = Bounds(min_width=5)
    least = torchorbit.flops(torchorbit.remove_channels(dag, {o: range(o.width - 5) for o in orbits})).total
    scores = random_scores(orbits, 0)
    removed = selector.select(Task(scores, target=Target.flops(least), constraint=constraint))
    assert [len(units) for units in removed.values()] == [19, 11]
    with pytest.raises(TargetError, match="cannot be reached") as error:
        selector.select(Task(scores, target=Target.flops(least - 1), constraint=constraint))
    assert error.value.min_cost == least


@TO_TARGETS
def test_without_a_target_there_is_one_clear_error(selector):
    with pytest.raises(ValueError, match="needs a target"):
        selector.select(Task(random_scores(torchorbit.find_orbits(chain(24, 16)), 0)))


def test_every_selector_has_a_name():
    assert {"uniform", "global", "ratios", "knapsack"} <= set(SELECTORS)
    assert str(Global(0.5, per_cost=True)) == "global(n_channels_or_ratio=0.5, per_cost=True)"
    assert str(Ratios({"layer1.*": 0.5})) == "ratios(ratios={'layer1.*': 0.5})"


class Even(Selector):
    """ENOT's example of a selector of one's own."""

    name = "even"
    needs_target = False

    def select(self, task):
        return {orbit: range(0, orbit.width, 2) for orbit in task.orbits}


@pytest.mark.numeric
def test_a_selector_of_the_users():
    dag = chain(10, 7)
    orbits = torchorbit.find_orbits(dag)
    removed = Even().select(Task(random_scores(orbits, 0)))
    smaller = torchorbit.remove_channels(dag, removed)
    assert torch.equal(smaller.get_parameter("0.weight"), dag.get_parameter("0.weight")[1::2])
    assert torchorbit.verify_removal(dag.double(), smaller.double(), removed) < 1e-12


@pytest.mark.numeric
@settings(KEPT, max_examples=30)
@given(
    specifications,
    st.integers(0, 2**16),
    st.sampled_from([Uniform(), Global(), Global(per_cost=True), Knapsack(), Knapsack(exhaustive=0, max_iterations=4)]),
    st.sampled_from([Target.flops, Target.parameters]),
    st.sampled_from([0.9, 0.6, 0.3]),
    st.sampled_from([1, 4]),
)
def test_what_any_selector_chooses_can_be_removed_and_is_within_limits(
    specification, seed, selector, target, share, round_to
):
    dag, orbits = network(specification)
    scores = random_scores(orbits, seed)
    task = Task(scores, target=target(share), constraint=Bounds(min_width=2, round_to=round_to))
    if task.cost(task.min_widths) > share * task.cost(task.full_widths):
        with pytest.raises(TargetError, match="cannot be reached"):
            selector.select(task)
        return
    removed = selector.select(task)
    pruned = assert_proved(dag, removed)
    measure = FlopsCost() if target == Target.flops else ParametersCost()
    assert measure(pruned) <= share * measure(dag) * (1 + 1e-12)
    for orbit, units in removed.items():
        assert orbit.width - len(units) in task.allowed[orbit]
