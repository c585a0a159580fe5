"""What ENOT's labels and selectors do."""

import itertools
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.migrating.helpers import LOADER, X, graph, kernels, loss, parameters, small, task_of
from tests.models import Computes, assert_same
from torchorbit import Bounds
from torchorbit.cost import FlopsCost
from torchorbit.criteria import Magnitude, Random
from torchorbit.latency import LatencyMeasurementError
from torchorbit.selectors import (
    Global,
    Knapsack,
    Optimal,
    Overrides,
    Ratios,
    ScboOptions,
    Selector,
    Task,
    WidthSelector,
)

pytestmark = pytest.mark.numeric


def test_enot_calibrator():
    dag = graph()
    before = {name: value.clone() for name, value in dag.state_dict().items()}
    with torchorbit.criteria.Calibrator(dag, "taylor") as calibrator:
        with pytest.raises(torchorbit.errors.CalibrationError, match="there are no scores"):
            _ = calibrator.scores
        for inputs, labels in LOADER:
            model_output = dag(inputs)
            F.cross_entropy(model_output, labels).backward()
    expected = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    for ours, theirs in zip(calibrator.scores["taylor"].values(), expected.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert list(dag.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in dag.state_dict().items())
    assert "forward" not in vars(dag)


def test_enot_pruning_info(tmp_path, mobilenet):
    model, dag, orbits = mobilenet
    scores = Random().scores(orbits)
    # What it holds, item by item: the graph, groups, labels by nodes, users.
    assert [vertex.name for vertex in orbits.model.graph.vertices] == [v.name for v in dag.flatten().vertices]
    assert list(scores) == list(orbits)
    assert [group.width for group in torchorbit.inspect.frozen_groups(orbits)] == [3, 10]
    assert torchorbit.inspect.module_dependencies(orbits, "features.0.0").labels[0][1] == f"orbit 0: {orbits[0].width}"
    flat = dag.flatten()
    assert torchorbit.edit.users(flat, "features__0__0") == ("features__0__1",)
    # Scores outlive the process.
    scores.save(tmp_path / "scores.npz")
    again = torchorbit.Scores.load(
        tmp_path / "scores.npz", torchorbit.find_orbits(torchorbit.convert(model, torch.randn(1, 3, 32, 32)))
    )
    for ours, theirs in zip(again.values(), scores.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_enot_no_gates_and_no_sizes_to_mend():
    def forward(m, x):
        y = m.first(x)
        return m.last(y.reshape(y.shape[0], 8 * 64))

    model = Computes(forward, first=nn.Conv2d(3, 8, 3, padding=1), last=nn.Linear(8 * 64, 5)).eval()
    dag = torchorbit.convert(model, X)
    kinds = {type(module) for module in dag.modules()}
    torchorbit.calibrate(dag, LOADER, loss, "taylor")
    assert {type(module) for module in dag.modules()} == kinds
    # A channel before flattening is 64 columns behind it, and the number in reshape follows.
    (orbit,) = torchorbit.find_orbits(dag)
    (columns,) = [piece for piece in torchorbit.inspect.unit_slices(orbit, 2) if piece.tensor == "last.weight"]
    assert columns.indices == tuple(range(128, 192))
    smaller = torchorbit.remove_channels(dag, {orbit: [0, 5]})
    expected = F.linear(
        model.first(X)[:, [1, 2, 3, 4, 6, 7]].flatten(1),
        model.last.weight.reshape(5, 8, 64)[:, [1, 2, 3, 4, 6, 7]].flatten(1),
        model.last.bias,
    )
    assert_same(smaller(X), expected)


def test_enot_no_greatest_group():
    torch.manual_seed(0)
    dag = torchorbit.convert(nn.Sequential(nn.Linear(3, 5000), nn.ReLU(), nn.Linear(5000, 2)).eval(), torch.randn(2, 3))
    (orbit,) = torchorbit.find_orbits(dag)
    assert orbit.width == 5000
    assert torchorbit.find_orbits(torchorbit.prune(dag, ratio=0.5))[0].width == 2500
    kept = torchorbit.prune(dag, ratio=0.5, constraint=Overrides({"0": Bounds(min_width=5000)}))
    assert torchorbit.find_orbits(kept)[0].width == 5000
    assert len(torchorbit.find_orbits(dag, frozen=["0"])) == 0


@pytest.mark.parametrize("inplace", [False, True])
def test_enot_prune_labels(inplace):
    model = small(8, 6)
    dag = torchorbit.convert(model, X)
    first, second = torchorbit.find_orbits(dag)
    removed = {first: [1, 2], second: [0]}
    result = torchorbit.remove_channels(dag, removed, inplace=inplace)
    assert (result is dag) == inplace
    assert [len(weight) for weight in kernels(result)] == [6, 5]
    assert torchorbit.find_orbits(dag)[0].width == (6 if inplace else 8)
    if not inplace:
        assert torchorbit.verify_removal(dag, result, removed) < 1e-12


def test_enot_pruning_config():
    dag = graph(8, 10, 6)
    widths = {"0": 6, "2": 5, "4": 4}
    for key in ("2", dag.get_submodule("2"), torchorbit.find_orbits(dag)[1]):
        orbits = key.orbits if isinstance(key, torchorbit.Orbit) else torchorbit.find_orbits(dag)
        selector = Ratios({key: 0.5, "4*": 0.3}, default=0.25)
        found = selector.select(Task(Magnitude().scores(orbits)))
        assert [orbit.width - len(found[orbit]) for orbit in orbits] == list(widths.values())
    pruned = torchorbit.prune(dag, selector=Ratios({"2": 0.5, "4*": 0.3}, default=0.25))
    assert {path: len(pruned.get_parameter(f"{path}.weight")) for path in widths} == widths


class EvenSelector(Selector):
    name = "even"
    needs_target = False

    def select(self, task):
        return {orbit: range(0, orbit.width, 2) for orbit in task.orbits}


def test_enot_even_labels_selector():
    model = small(8, 6)
    pruned = torchorbit.prune(model, X, LOADER, loss, criterion="taylor", selector=EvenSelector())
    first, second = kernels(pruned)
    assert torch.equal(first, model[0].weight[1::2])
    assert torch.equal(second, model[2].weight[1::2, 1::2])


def test_enot_own_selector_by_scores():
    class Above(WidthSelector):
        name = "above"
        needs_target = False

        def widths(self, task):
            return [max(1, int((scores > np.median(scores)).sum())) for scores in task.scores.values()]

    model = small(9, 6)
    scores = Magnitude().scores(torchorbit.find_orbits(torchorbit.convert(model, X)))
    pruned = torchorbit.prune(model, X, criterion="magnitude", selector=Above())
    kept = [np.flatnonzero(values > np.median(values)) for values in scores.values()]
    assert torch.equal(kernels(pruned)[1], model[2].weight[kept[1]][:, kept[0]])


def test_enot_labels_info():
    dag = graph()
    task = task_of(dag)
    for orbit, order in task.order.items():
        assert sorted(order) == list(range(orbit.width))
        assert (np.diff(task.scores[orbit][order]) >= 0).all()
    total = sum(values.sum() for values in task.scores.values())
    for orbit, values in task.scores.normalized("sum", globally=True).items():
        np.testing.assert_allclose(values, task.scores[orbit] / total, rtol=1e-12)
    for values in task.scores.normalized("sum").values():
        assert values.sum() == pytest.approx(1, rel=1e-12)
    nothing = torchorbit.Scores(task.orbits, {orbit: np.zeros(orbit.width) for orbit in task.orbits}, criterion="none")
    assert all((values == 0).all() for values in nothing.normalized("sum").values())


def test_enot_shared_groups_are_there_once(resnet):
    _, dag = resnet
    orbits = torchorbit.find_orbits(dag)
    streams = [orbits.of_tensor(f"{path}.weight")[0] for path in ("conv1", "layer1.0.conv2", "layer1.1.conv2")]
    assert streams[0] is streams[1] is streams[2]
    assert len(set(orbits)) == len(orbits)


def test_enot_most_important_labels():
    task = task_of(graph())
    for orbit, order in task.order.items():
        assert task.scores[orbit][order[-1]] == task.scores[orbit].max()


@pytest.mark.parametrize(
    ("criterion", "selector", "normalization"),
    [
        ("magnitude", Global, "mean"),
        ("taylor", Global, None),
        ("taylor", partial(Global, normalization="mean"), "mean"),
        ("magnitude", partial(Global, normalization=None), None),
    ],
)
@pytest.mark.parametrize(("given", "number"), [(7, 7), (0.25, 6)])
def test_enot_global_by_channels(given, number, criterion, selector, normalization):
    found = torchorbit.calibrate(graph(10, 8, 6), LOADER, loss, criterion)[criterion]
    scores = found.normalized(normalization)
    removed = selector(given).select(Task(found))
    units = sorted((float(value), orbit.index, unit) for orbit in scores for unit, value in enumerate(scores[orbit]))
    expected = {(index, unit) for _, index, unit in units[:number]}
    assert {(orbit.index, int(unit)) for orbit, gone in removed.items() for unit in gone} == expected


def test_enot_global_by_latency():
    dag = graph(12, 10, 8)
    tried = []
    selector = Global(selector_cb=lambda latency, target: tried.append((latency, target)))
    whole = FlopsCost()(dag)
    pruned = torchorbit.prune(dag, selector=selector, target=torchorbit.Target(FlopsCost(), 0.4 * whole))
    assert 0.35 * whole < FlopsCost()(pruned) <= 0.4 * whole
    assert {target for _, target in tried} == {0.4 * whole}
    assert min(latency for latency, _ in tried) <= 0.4 * whole < max(latency for latency, _ in tried)
    calls = []
    once = Global(selector_cb=lambda latency, target: calls.append(latency) or True)
    early = torchorbit.prune(dag, selector=once, target=torchorbit.Target(FlopsCost(), 0.4 * whole))
    assert len(calls) == 1
    assert FlopsCost()(early) == calls[0]


def test_enot_knapsack():
    dag = graph(5, 4, 4)
    target = torchorbit.Target.flops(0.5)
    task = task_of(dag, target=target)
    selector = Knapsack(
        strict_order=True,
        max_iterations=15,
        solver_time_limit=60.0,
        normalization=None,
        tolerance=1.0,
        verbose=False,
    )
    found = selector.widths(task)

    def total(widths):
        return sum(task.scores[o][task.order[o][o.width - w :]].sum() for o, w in zip(task.orbits, widths, strict=True))

    possible = [
        widths
        for widths in itertools.product(*[range(1, orbit.width + 1) for orbit in task.orbits])
        if task.cost(widths) <= task.limit
    ]
    assert task.cost(found) <= task.limit
    assert total(found) == pytest.approx(max(map(total, possible)), rel=1e-12)
    default = Knapsack()
    assert (default.strict_order, default.max_iterations, default.solver_time_limit) == (True, 15, 60)
    assert not default.verbose
    # The widths that orbits may have are for `prune` (and the task) to say.
    even = torchorbit.prune(dag, selector="knapsack", target=target, constraint=Bounds(round_to=2))
    assert all(len(kernel) % 2 == 0 or len(kernel) == 5 for kernel in kernels(even))
    pruned = torchorbit.prune(dag, selector="knapsack", target=target)
    assert FlopsCost()(pruned) <= 0.5 * FlopsCost()(dag)


def test_enot_measurements_that_fail():
    failed = []

    def unreliable(model):
        width = len(kernels(model)[0])
        if width == 5:
            failed.append(width)
            raise LatencyMeasurementError("the board is busy")
        return parameters(model)

    dag = graph(8, 6)
    task = task_of(dag, target=torchorbit.Target(unreliable, 0.6 * parameters(dag)))
    found = Optimal(
        n_search_steps=10,
        n_starting_points=8,
        seed=0,
        verbose=False,
        additional_starting_points=lambda task: [[5, 2], [4, 3]],
    ).search(task)
    assert failed
    assert found.failed > 0
    assert found.best.cost <= 0.6 * parameters(dag)


def test_enot_starting_points():
    dag = graph(8, 6)
    task = task_of(dag, target=torchorbit.Target.flops(0.5))
    found = Optimal(n_search_steps=8, verbose=False, additional_starting_points=lambda task: [[3, 2], [2, 3]]).search(
        task
    )
    assert {(3, 2), (2, 3)} <= {sample.widths for sample in found.samples}


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, even where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_enot_ctrl_c():
    dag = graph(8, 6)
    calls = []

    def interrupting(removed):
        calls.append(removed)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return float(len(calls))

    task = task_of(dag, target=torchorbit.Target.flops(0.5), loss=interrupting)
    found = Optimal(n_search_steps=50, verbose=False, handle_ctrl_c=True).search(task)
    assert found.interrupted
    assert len(found.samples) < 50
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        Optimal(n_search_steps=50, verbose=False).search(task)


def test_enot_search_options():
    default = Optimal()
    assert (default.n_starting_points, default.batch_size, default.device, default.seed) == (None, 4, None, None)
    assert (default.n_search_steps, default.dtype, default.verbose) == (200, torch.float64, True)
    assert default.handle_ctrl_c is False
    task = task_of(graph(8, 6, 6), target=torchorbit.Target.flops(0.5))

    def samples(seed, **options):
        given = {"n_search_steps": 6, "n_starting_points": 3, "batch_size": 3, "verbose": False, **options}
        return Optimal(seed=seed, **given).search(task).samples

    first = samples(0)
    assert samples(0) == first
    assert [sample.widths for sample in samples(1)] != [sample.widths for sample in first]
    assert samples(0, device="cpu", dtype=torch.float32)[:3] == first[:3]
    options = ScboOptions(length=0.016, length_min=0.0156, failures=1, candidates=50)
    ended = Optimal(n_search_steps=None, seed=0, verbose=False, options=options).search(task)
    assert ended.converged
