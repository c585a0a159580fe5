"""The search for the widths at which the loss is least, against exhaustive search and other selectors."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

import torchorbit
from tests.models import stir
from torchorbit import Bounds, Target, find_orbits
from torchorbit.cost import FlopsCost
from torchorbit.criteria import Magnitude
from torchorbit.errors import LatencyMeasurementError, TargetError
from torchorbit.pruning.selectors.width_space import Boundary, WidthSpace
from torchorbit.selectors import SELECTORS, Optimal, ScboOptions, Task, Uniform

pytestmark = pytest.mark.numeric


def orbits_of(*widths):
    layers, before = [], 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    model = stir(nn.Sequential(*layers, nn.Conv2d(before, 4, 1))).eval()
    return find_orbits(torchorbit.convert(model, torch.randn(2, 3, 8, 8)))


def task_of(orbits, target=None, **options):
    return Task(Magnitude().scores(orbits), target=target or Target.flops(0.5), **options)


def sensitivities(orbits, weights):
    """A loss with a least that is far from equal shares: some orbits matter more than others."""

    def loss(removed):
        return sum(
            weights[orbit.index] * (len(removed.get(orbit, ())) / orbit.width) ** 2 + 0.01 * weights[orbit.index]
            for orbit in orbits
        )

    return loss


def search(task, **options):
    return Optimal(**{"n_search_steps": 60, "verbose": False, **options}).search(task)


class Unpredicted:
    """FLOPs that can only be measured, on models that were built."""

    name = "unpredicted"

    def __init__(self):
        self.calls = 0

    def __call__(self, model):
        self.calls += 1
        return FlopsCost()(model)


def best_of_all(task, loss):
    """The least loss within the limit, over all widths."""
    found = np.inf
    for widths in itertools.product(*[task.allowed[orbit].tolist() for orbit in task.orbits]):
        if task.cost(widths) <= task.limit:
            found = min(found, loss(task.removed(widths)))
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_comes_within_a_twentieth_of_exhaustive_search(seed):
    orbits = orbits_of(8, 8, 8, 8)
    loss = sensitivities(orbits, [8.0, 0.2, 3.0, 0.5])
    task = task_of(orbits, loss=loss, seed=seed)
    least, uniform = best_of_all(task, loss), loss(Uniform().select(task))
    found = search(task, n_search_steps=80)
    assert len(found.samples) <= 80 < 8**4 / 40
    assert least <= found.best.loss <= least + 0.05 * (uniform - least)


def test_without_data_it_keeps_the_most_of_the_score():
    orbits = orbits_of(6, 6, 6)
    task = task_of(orbits)
    shares = task.scores.normalized("sum")

    def gone(removed):
        return sum(shares[orbit][positions].sum() for orbit, positions in removed.items())

    least = best_of_all(task, gone)
    assert least - 1e-12 <= gone(Optimal(60, verbose=False).select(task)) <= 1.02 * least


@pytest.mark.parametrize("predicted", [True, False])
def test_a_constraint_that_has_to_be_measured_is_learnt(predicted):
    orbits = orbits_of(8, 8, 8)
    loss = sensitivities(orbits, [8.0, 0.2, 3.0])
    target = Target.flops(0.5) if predicted else Target(Unpredicted(), 0.5, relative=True)
    task = task_of(orbits, target, loss=loss)
    found = search(task)
    assert found.best.cost <= task.limit
    assert FlopsCost()(torchorbit.remove_channels(orbits.model.dag, task.removed(found.best.widths))) == found.best.cost
    assert all(sample.feasible for sample in found.samples) or not predicted
    least = best_of_all(task_of(orbits, loss=loss), loss)
    assert found.best.loss <= least + 0.1 * (loss(Uniform().select(task)) - least)


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_never_worse_than_uniform(steps, seed):
    orbits = orbits_of(12, 10, 8)
    loss = sensitivities(orbits, [1.0, 1.0, 1.0])
    task = task_of(orbits, Target.parameters(0.4), loss=loss, seed=seed, constraint=Bounds(round_to=2))
    found = search(task, n_search_steps=steps)
    assert found.best.loss <= loss(Uniform().select(task))
    assert len(found.samples) <= steps
    for orbit, width in zip(orbits, found.best.widths, strict=True):
        assert width in task.allowed[orbit]


def test_other_selectors_are_where_it_starts(monkeypatch):
    orbits = orbits_of(8, 8)
    task = task_of(orbits)
    wanted = (2, 7)
    assert task.cost(wanted) <= task.limit

    class Global(Uniform):
        name = "global"

        def widths(self, task):
            return wanted

    class Knapsack(Uniform):
        name = "knapsack"

        def widths(self, task):
            raise RuntimeError("no solver")

    monkeypatch.setitem(SELECTORS, "global", Global)
    monkeypatch.setitem(SELECTORS, "knapsack", Knapsack)
    tried = [sample.widths for sample in search(task, n_search_steps=2).samples]
    assert tried == [tuple(Uniform().widths(task)), wanted]


def test_the_same_seed_gives_the_same_search_and_leaves_the_random_state():
    orbits = orbits_of(8, 8, 8)
    loss = sensitivities(orbits, [8.0, 0.2, 3.0])
    torch.manual_seed(5)
    expected = torch.rand(3)
    searches = []
    for seed in (3, 3, 4):
        torch.manual_seed(5)
        searches.append(search(task_of(orbits, loss=loss), n_search_steps=24, seed=seed).samples)
        assert torch.equal(torch.rand(3), expected)
    assert searches[0] == searches[1] != searches[2]
    assert searches[0] == search(task_of(orbits, loss=loss, seed=3), n_search_steps=24).samples


def test_additional_starting_points_are_tried():
    orbits = orbits_of(8, 8, 8)
    points = [(1, 2, 3), (8, 1, 1)]
    found = search(task_of(orbits), n_search_steps=6, additional_starting_points=lambda task: points)
    tried = [sample.widths for sample in found.samples]
    assert set(points) <= set(tried[:5]), "after the warm starts: uniform, global and knapsack"


@pytest.mark.parametrize("point", [(1, 2), (9, 1, 1), (0, 1, 1), (1.5, 2, 2)])
def test_starting_points_that_are_no_widths_are_refused(point):
    with pytest.raises(ValueError, match="a starting point"):
        search(task_of(orbits_of(8, 8, 8)), additional_starting_points=lambda task: [point])


def test_models_that_cannot_be_measured_are_passed_over():
    class Flaky(Unpredicted):
        def __call__(self, model):
            cost = super().__call__(model)
            if self.calls % 3 == 0:
                raise LatencyMeasurementError("the board does not answer")
            return cost

    orbits = orbits_of(8, 8, 8)
    limit = 0.6 * orbits.costs.total()
    found = search(task_of(orbits, Target(Flaky(), limit)), n_search_steps=20)
    assert found.failed > 0
    assert len(found.samples) + found.failed == 20
    assert found.best.cost <= limit


def test_losses_that_are_no_number_are_never_the_best():
    orbits = orbits_of(16, 16, 16)
    least = sensitivities(orbits, [1.0, 5.0, 2.0])
    calls = itertools.count()
    task = task_of(orbits, loss=lambda removed: float("nan") if next(calls) % 2 == 0 else least(removed))
    found = search(task, n_search_steps=20)
    assert np.isfinite(found.best.loss)
    assert sum(not np.isfinite(sample.loss) for sample in found.samples) == 10


def test_it_ends_when_the_trust_region_converges():
    orbits = orbits_of(8, 8)
    found = search(task_of(orbits), n_search_steps=None, n_starting_points=4)
    assert found.converged
    assert 4 <= len(found.samples) < 64


def test_nothing_is_removed_where_nothing_is_asked_for():
    orbits = orbits_of(8, 8)
    assert Optimal(verbose=False).select(task_of(orbits, Target.flops(1e12))) == {}


def test_what_cannot_be_reached_says_what_can():
    orbits = orbits_of(8, 8)
    task = task_of(orbits, Target.flops(0.3), constraint=Bounds(min_width=6))
    with pytest.raises(TargetError, match="cannot be reached") as error:
        Optimal(verbose=False).select(task)
    assert error.value.min_cost == task.cost([6, 6])


def test_nothing_within_the_limit_says_the_least_that_was():
    orbits = orbits_of(8, 8)

    class Drifting(Unpredicted):
        """The smallest model fits once; then everything costs more."""

        def __call__(self, model):
            return super().__call__(model) * (1.0 if self.calls <= 2 else 1000.0)

    task = task_of(orbits, Target(Drifting(), 0.1, relative=True))
    assert task.limit
    task._known.clear()
    with pytest.raises(TargetError, match=r"none of the \d models") as error:
        search(task, n_search_steps=4)
    assert error.value.min_cost > task.limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_search_steps": 0}, "n_search_steps=0"),
        ({"n_starting_points": -1}, "n_starting_points=-1"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"dtype": torch.int64}, "dtype=torch.int64"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Optimal(**options)


@pytest.mark.parametrize("options", [{"length": 0.0}, {"length_min": 1.0}, {"candidates": 0}, {"failures": 1.5}])
def test_options_of_the_trust_region_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        ScboOptions(**options)


def test_without_botorch_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "botorch", None)
    with pytest.raises(ImportError, match=r"pip install 'torchorbit\[optimal\]'"):
        Optimal(verbose=False).select(task_of(orbits_of(8, 8)))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_projection_ends_just_below_the_limit(share):
    orbits = orbits_of(32, 24, 16, 24)
    task = task_of(orbits, Target.flops(share))
    rng = np.random.default_rng(0)
    boundary = Boundary(task, WidthSpace(task), rng)
    for _ in range(10):
        widths = np.array([rng.integers(1, orbit.width + 1) for orbit in orbits])
        projected = boundary.project(widths)
        cost = task.cost(projected.tolist())
        assert cost <= task.limit
        # Every orbit is at its own width, or too wide by a step of the dearest orbit.
        if (projected < task.full_widths).all():
            steps = [task.cost((projected + np.eye(4, dtype=int)[n]).tolist()) - cost for n in range(4)]
            assert cost + max(steps) > task.limit


INTERRUPTED = """
    import sys, time
    import torchorbit, torch
    from torch import nn
    from tests.pruning.test_optimal import orbits_of, task_of
    from torchorbit.pruning.selectors import Optimal

    def loss(removed):
        print("evaluated", flush=True)
        time.sleep(0.05)
        return float(sum(len(positions) for positions in removed.values()))

    task = task_of(orbits_of(16, 16, 16), loss=loss)
    found = Optimal(None, n_starting_points=100000, verbose=False, handle_ctrl_c={handled}).search(task)
    assert task.cost(found.best.widths) <= task.limit
    print("interrupted" if found.interrupted else "ended", len(found.samples), flush=True)
"""


@pytest.mark.parametrize("handled", [True, False])
def test_ctrl_c_ends_the_search_with_the_best_so_far(handled):
    code = textwrap.dedent(INTERRUPTED.format(handled=handled))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # Where this runs in the background interrupts are ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for _ in range(3):
            assert process.stdout.readline() == "evaluated\n"
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if handled:
        assert process.returncode == 0, errors
        assert out.splitlines()[-1].startswith("interrupted")
    else:
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors


def test_ctrl_c_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT)
    search(task_of(orbits_of(8, 8)), n_search_steps=3, handle_ctrl_c=True)
    assert signal.getsignal(signal.SIGINT) is before
