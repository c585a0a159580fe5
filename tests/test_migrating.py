"""docs/migrating.md does what it says: one test, or more, for each of its rows, named there."""

import gc
import itertools
import json
import math
import operator
import os
import re
import signal
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

import torchorbit
from tests.models import Computes, assert_same, stir
from torchorbit.graph.modules import LEAF_MODULES
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex
from torchorbit.latency import LatencyMeasurementError, MeasuredLatency
from torchorbit.latency import flops as flops_latency
from torchorbit.pruning.calibration import default_sample_to_model_inputs, default_sample_to_n_samples
from torchorbit.pruning.constraints import Bounds, Constraint, EnotBounds, Overrides
from torchorbit.pruning.criteria import CRITERIA, L1, APoZ, Magnitude, Random, Shapley, Taylor
from torchorbit.pruning.selectors import Global, Knapsack, Optimal, Ratios, Selector, Task, WidthSelector
from torchorbit.pruning.selectors.trust_region import ScboOptions

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "migrating.md"

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def batches(count=3, size=4):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, size, 3, 8, 8, generator=generator)
    return list(zip(images, torch.randint(5, (count, size), generator=generator), strict=True))


LOADER = batches()


def loss(output, sample):
    return F.cross_entropy(output, sample[1])


def small(*widths, norm=False):
    """A network of convolutions, each an orbit of its own."""
    torch.manual_seed(0)
    layers, before = [], 3
    for width in widths or (8, 6):
        layers += [nn.Conv2d(before, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
        before = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 5)]
    return stir(nn.Sequential(*layers)).eval()


def graph(*widths, norm=False):
    return torchorbit.convert(small(*widths, norm=norm), X)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def task_of(dag, **options):
    return Task(Magnitude().scores(torchorbit.find_orbits(dag)), **options)


def kernels(model):
    return [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.fixture(scope="module")
def mobilenet():
    """The graph of ENOT's examples, and its orbits."""
    model = torchvision.models.mobilenet_v2(num_classes=10).eval()
    dag = torchorbit.convert(model, torch.randn(1, 3, 32, 32))
    return model, dag, torchorbit.find_orbits(dag)


@pytest.fixture(scope="module")
def resnet():
    """The graph of Torch-Pruning's example."""
    model = torchvision.models.resnet18().eval()
    return model, torchorbit.convert(model, torch.randn(1, 3, 64, 64))


# -- ENOT: high-level interface


def test_enot_equal_strategy():
    model = small(32, 64, 64)
    pruned = torchorbit.prune(model, loader=LOADER, loss=loss, ratio=0.5, criterion="taylor")
    assert [orbit.width for orbit in torchorbit.find_orbits(pruned)] == [16, 32, 32]
    dag = torchorbit.convert(model, X)
    assert torchorbit.flops(pruned).total / torchorbit.flops(dag).total < 0.3
    assert parameters(pruned) / parameters(model) < 0.3
    scores = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    kept = np.sort(np.argsort(scores.of_channels("0"))[16:])
    assert torch.equal(pruned.get_parameter("0.weight"), model[0].weight[kept])
    with pytest.raises(ValueError, match="nothing says how much is to go"):
        torchorbit.prune(model, loader=LOADER, loss=loss, criterion="taylor")


def test_enot_finetune_bn():
    model = small(8, 6, norm=True)
    plain = torchorbit.prune(model, X, ratio=0.5)
    tuned = torchorbit.prune(model, X, LOADER, ratio=0.5, finetune_bn=True)
    images = torch.cat([images for images, _ in LOADER])
    convolved = tuned.get_submodule("0")(images)
    torch.testing.assert_close(tuned.get_buffer("1.running_mean"), convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.get_buffer("1.running_mean"), tuned.get_buffer("1.running_mean"))
    assert torch.equal(plain.get_parameter("1.weight"), tuned.get_parameter("1.weight"))


def test_enot_calibration_steps_and_epochs():
    seen = []

    def counting():
        for batch in LOADER:
            seen.append(batch)
            yield batch

    class Loader:
        def __iter__(self):
            return counting()

    dag = graph()
    for options, number in (({}, 3), ({"steps": 2}, 2), ({"epochs": 2}, 6), ({"steps": 5, "epochs": 2}, 5)):
        seen.clear()
        scores = torchorbit.calibrate(dag, Loader(), loss, "taylor", **options)["taylor"]
        assert len(seen) == number
        assert scores.samples == 4 * number
    few = torchorbit.prune(dag, None, LOADER, loss, ratio=0.5, criterion="taylor", calibration_steps=1)
    first = torchorbit.prune(dag, None, LOADER[:1], loss, ratio=0.5, criterion="taylor")
    assert_same(few(X), first(X))


def test_enot_samples_become_inputs():
    class Profiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small(8, 6)

        def forward(self, images, should_profile=True):
            return self.body(images) if not should_profile else self.body(images).sum()

    model = Profiled().eval()
    dictionaries = [{"image": images, "target": labels} for images, labels in LOADER]
    pruned = torchorbit.prune(
        model,
        None,
        dictionaries,
        lambda output, sample: F.cross_entropy(output, sample["target"]),
        ratio=0.5,
        criterion="taylor",
        sample_to_model_inputs=lambda sample: ((sample["image"],), {"should_profile": False}),
    )
    expected = torchorbit.prune(model.body, None, LOADER, loss, ratio=0.5, criterion="taylor")
    assert_same(pruned(X, should_profile=False), expected(X))
    images, labels = LOADER[0]
    args, kwargs = default_sample_to_model_inputs((images, labels))
    assert args[0] is images
    assert (len(args), kwargs) == (1, {})


def test_enot_number_of_samples():
    assert default_sample_to_n_samples(LOADER[0]) == 4
    dag = graph()
    images, labels = (torch.cat(parts) for parts in zip(*LOADER, strict=True))
    uneven = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    whole = torchorbit.calibrate(dag, [(images, labels)], loss, "taylor")["taylor"]
    for function in (default_sample_to_n_samples, lambda sample: len(sample[1])):
        found = torchorbit.calibrate(dag, uneven, loss, "taylor", sample_to_n_samples=function)["taylor"]
        assert found.samples == 12
        for orbit in whole:
            np.testing.assert_allclose(found[found.orbits[orbit.index]], whole[orbit], rtol=1e-4)


def test_enot_progress(capsys):
    dag = graph()
    torchorbit.calibrate(dag, LOADER, loss, "taylor")
    assert "calibration" not in capsys.readouterr().err
    torchorbit.calibrate(dag, LOADER, loss, "taylor", progress=True)
    assert "calibration" in capsys.readouterr().err
    torchorbit.prune(dag, None, LOADER, loss, ratio=0.5, criterion="taylor", progress=True)
    assert "calibration" in capsys.readouterr().err


def test_enot_entry_point():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small(8, 6)

        def forward(self, x):
            raise NotImplementedError

        def execute_model(self, x):
            return self.body(x) * 2

    model = Model().eval()
    pruned = torchorbit.prune(model, X, ratio=0.5, entry_point="execute_model")
    assert pruned(X).shape == (4, 5)
    assert_same(torchorbit.convert(model, X, entry_point="execute_model")(X), model.execute_model(X))
    inner = torchorbit.prune(model, X, ratio=0.5, entry_point="body.forward")
    assert_same(inner(X) * 2, pruned(X))
    with pytest.raises(ValueError, match="has no such method"):
        torchorbit.prune(model, X, ratio=0.5, entry_point="body.predict")


def test_enot_mode_of_the_model():
    dag = torchorbit.convert(nn.Sequential(*small(8, 6)[:-1], nn.Dropout(0.9), small(8, 6)[-1]).eval(), X)

    def scores():
        return np.concatenate(list(torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"].values()))

    np.testing.assert_array_equal(scores(), scores())
    dag.train()
    assert not np.array_equal(scores(), scores())
    assert torchorbit.prune(dag, ratio=0.5).training


def test_enot_anomalies_in_backward():
    def bad(output, sample):
        return (output.sum() * 0).sqrt()

    with torch.autograd.set_detect_anomaly(True), pytest.raises(RuntimeError, match="returned nan values"):
        torchorbit.prune(graph(), None, LOADER, bad, ratio=0.5, criterion="taylor")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_enot_optimal_strategy():
    dag = graph(8, 8)
    target = torchorbit.Target.flops(0.5)
    selector = Optimal(n_search_steps=8, seed=0, verbose=False)
    pruned = torchorbit.prune(
        dag, None, LOADER, loss, criterion="taylor", selector=selector, target=target, constraint=Bounds(least=2)
    )
    assert flops_latency(pruned) <= 0.5 * flops_latency(dag)
    assert min(orbit.width for orbit in torchorbit.find_orbits(pruned)) >= 2
    scores = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    found = selector.search(
        Task(scores, target=target, loss=torchorbit.MaskedLoss(scores.orbits, LOADER, loss), constraint=Bounds(least=2))
    )
    assert list(found.best.widths) == [orbit.width for orbit in torchorbit.find_orbits(pruned)]
    assert found.best.loss == min(sample.loss for sample in found.samples if sample.feasible)
    assert len(found.samples) <= 8


def test_enot_latency_is_any_function_of_a_model():
    dag = graph(8, 8, 8)
    whole = parameters(dag)
    pruned = torchorbit.prune(dag, target=torchorbit.Target(parameters, 0.5 * whole), selector="global")
    assert 0.4 * whole < parameters(pruned) <= 0.5 * whole
    assert parameters(torchorbit.prune(dag, parameters=0.5, selector="global")) == parameters(pruned)

    def macs(model):
        return torchorbit.flops(model).total / 2

    half = torchorbit.prune(dag, target=torchorbit.Target(macs, macs(dag) / 2))
    assert torchorbit.flops(half).total <= torchorbit.flops(dag).total / 2
    assert MeasuredLatency(X, warm_up=1, repeats=3)(dag) > 0


# -- ENOT: low-level interface


def test_enot_calibrator():
    dag = graph()
    before = {name: value.clone() for name, value in dag.state_dict().items()}
    with torchorbit.Calibrator(dag, "taylor") as calibrator:
        with pytest.raises(torchorbit.CalibrationError, match="no data"):
            _ = calibrator.scores
        for inputs, labels in LOADER:
            model_output = dag(inputs)
            F.cross_entropy(model_output, labels).backward()
    expected = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    for ours, theirs in zip(calibrator.scores["taylor"].values(), expected.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert list(dag.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in dag.state_dict().items())
    assert "forward" not in vars(dag)


def test_enot_pruning_info(tmp_path, mobilenet):
    model, dag, orbits = mobilenet
    scores = Random().scores(orbits)
    # What it holds, item by item: the graph, groups, labels by nodes, users.
    assert [vertex.name for vertex in orbits.model.graph.vertices] == [v.name for v in dag.flatten().vertices]
    assert list(scores) == list(orbits)
    assert [group.width for group in torchorbit.frozen_groups(orbits)] == [3, 10]
    assert torchorbit.module_dependencies(orbits, "features.0.0").labels[0][1] == f"orbit 0: {orbits[0].width}"
    flat = dag.flatten()
    assert torchorbit.users(flat, "features__0__0") == ("features__0__1",)
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
    (columns,) = [piece for piece in orbit.unit(2) if piece.tensor == "last.weight"]
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
    kept = torchorbit.prune(dag, ratio=0.5, constraint=Overrides({"0": Bounds(least=5000)}))
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
        assert torchorbit.verify_removal(dag, result, removed) < 1e-5


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
    pruned = torchorbit.prune(model, X, selector=Above())
    kept = [np.flatnonzero(values > np.median(values)) for values in scores.values()]
    assert torch.equal(kernels(pruned)[1], model[2].weight[kept[1]][:, kept[0]])


def test_enot_labels_info():
    dag = graph()
    task = task_of(dag)
    for orbit, order in task.order.items():
        assert sorted(order) == list(range(orbit.width))
        assert (np.diff(task.scores[orbit][order]) >= 0).all()
    total = sum(values.sum() for values in task.scores.values())
    for orbit, values in task.scores.normalised("sum", globally=True).items():
        np.testing.assert_allclose(values, task.scores[orbit] / total)
    for values in task.scores.normalised("sum").values():
        assert values.sum() == pytest.approx(1)
    nothing = torchorbit.Scores(task.orbits, {orbit: np.zeros(orbit.width) for orbit in task.orbits}, criterion="none")
    assert all((values == 0).all() for values in nothing.normalised("sum").values())


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


@pytest.mark.parametrize(("given", "number"), [(7, 7), (0.25, 6)])
def test_enot_global_by_channels(given, number):
    task = task_of(graph(10, 8, 6))
    scores = task.scores.normalised("mean")
    removed = Global(given).select(task)
    units = sorted((float(value), orbit.index, unit) for orbit in scores for unit, value in enumerate(scores[orbit]))
    expected = {(index, unit) for _, index, unit in units[:number]}
    assert {(orbit.index, int(unit)) for orbit, gone in removed.items() for unit in gone} == expected


def test_enot_global_by_latency():
    dag = graph(12, 10, 8)
    tried = []
    selector = Global(selector_cb=lambda latency, target: tried.append((latency, target)))
    whole = flops_latency(dag)
    pruned = torchorbit.prune(dag, selector=selector, target=torchorbit.Target(flops_latency, 0.4 * whole))
    assert 0.35 * whole < flops_latency(pruned) <= 0.4 * whole
    assert {target for _, target in tried} == {0.4 * whole}
    assert min(latency for latency, _ in tried) <= 0.4 * whole < max(latency for latency, _ in tried)
    calls = []
    once = Global(selector_cb=lambda latency, target: calls.append(latency) or True)
    early = torchorbit.prune(dag, selector=once, target=torchorbit.Target(flops_latency, 0.4 * whole))
    assert len(calls) == 1
    assert flops_latency(early) == calls[0]


def test_enot_knapsack():
    dag = graph(5, 4, 4)
    target = torchorbit.Target.flops(0.5)
    task = task_of(dag, target=target)
    selector = Knapsack(
        strict_order=True,
        constraint=Bounds(),
        max_iterations=15,
        solver_time_limit=60.0,
        normalisation=None,
        tolerance=1.0,
        exhaustive=0,
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
    assert total(found) == pytest.approx(max(map(total, possible)))
    pruned = torchorbit.prune(dag, selector="knapsack", target=target)
    assert flops_latency(pruned) <= 0.5 * flops_latency(dag)


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
    found = Optimal(n_search_steps=8, verbose=False, additional_starting_points=lambda task: [[3, 2], [2, 3]]).search(task)
    assert {(3, 2), (2, 3)} <= {sample.widths for sample in found.samples}


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
    task = task_of(graph(8, 6, 6), target=torchorbit.Target.flops(0.5))

    def samples(seed, **options):
        given = {"n_search_steps": 12, "n_starting_points": 4, "batch_size": 3, "verbose": False, **options}
        return Optimal(seed=seed, **given).search(task).samples

    first = samples(0)
    assert samples(0) == first
    assert [sample.widths for sample in samples(1)] != [sample.widths for sample in first]
    assert len(samples(0, device="cpu", dtype=torch.float32)) == len(first)
    options = ScboOptions(length=0.02, length_min=0.0156, failures=1, candidates=50)
    ended = Optimal(n_search_steps=None, seed=0, verbose=False, options=options).search(task)
    assert ended.converged


# -- ENOT: constraints


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


# -- ENOT: tools


def test_enot_module_dependencies(mobilenet):
    _, _, orbits = mobilenet
    found = torchorbit.module_dependencies(orbits, "features.17.conv.1.0")
    assert found.module == "features.17.conv.1.0"
    assert found.operators == ("conv2d",)
    assert len(found.vertices) == 1
    assert (len(found.orbits), len(found.frozen)) == (1, 0)
    (entry,) = found.orbits
    assert found.labels == ([None, f"orbit {entry.orbit.index}: 960", None, None],)
    assert {member.name for member in entry.members} == {"features.17.conv.1.0", "features.17.conv.0.0"}
    assert [user.name for user in entry.users] == ["features.17.conv.2"]
    shown = str(found)
    for text in (
        "features.17.conv.1.0",
        "Conv2d(960, 960, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=960, bias=False)",
        "Conv2d(160, 960, kernel_size=(1, 1), stride=(1, 1), bias=False)",
        "Conv2d(960, 320, kernel_size=(1, 1), stride=(1, 1), bias=False)",
    ):
        assert text in shown


def test_enot_what_tables_show(mobilenet):
    _, _, orbits = mobilenet
    names = {}
    for show in ("layers", "parameters", "all"):
        found = torchorbit.module_dependencies(orbits, "features.18.0", show=show)
        names[show] = {member.name for entry in found.orbits for member in entry.members}
    assert "features.18.0" in names["layers"]
    assert "features.18.0.weight" in names["parameters"] - names["layers"]
    assert "features.18.2" in names["all"] - names["parameters"]
    with pytest.raises(ValueError, match="show"):
        torchorbit.module_dependencies(orbits, "features.18.0", show="nodes")


def test_enot_unprunable_groups(mobilenet):
    _, _, orbits = mobilenet
    groups = torchorbit.frozen_groups(orbits)
    image, classes = groups
    assert (image.width, image.slices[0].tensor, image.slices[0].dim) == (3, "features.0.0.weight", 1)
    assert [name.replace("__", ".") for name in image.sinks] == ["features.0.0"]
    assert classes.width == 10
    assert "channels of the model's input" in str(groups)
    places = [group for group in torchorbit.frozen_groups(orbits, space=True) if group.space]
    assert any(
        piece.tensor == "features.0.0.weight" and piece.dim in (2, 3) for group in places for piece in group.slices
    )


def test_enot_label_dependencies(mobilenet):
    _, _, orbits = mobilenet
    (orbit,) = orbits.of_tensor("features.18.0.weight")
    found = torchorbit.unit_dependencies(orbit, 1202, show="all")
    names = [member.name for member in found.members]
    expected = [
        "features.18.0.weight", "features.18.0", "features.18.1.running_mean", "features.18.1.running_var",
        "features.18.1.weight", "features.18.1.bias", "features.18.1", "features.18.2", "adaptive_avg_pool2d",
        "flatten", "classifier.0", "classifier.1.weight",
    ]  # fmt: skip
    assert [name for name in names if name in expected] == expected
    assert "adaptive_avg_pool2d" in str(found)


def test_enot_label_filters(mobilenet):
    model, _, orbits = mobilenet
    (orbit,) = orbits.of_tensor("features.18.0.weight")
    found = torchorbit.unit_slices(orbit, 1202)
    assert [(piece.tensor, piece.shape, piece.mapping) for piece in found] == [
        ("features.18.0.weight", (1, 320, 1, 1), [[(1202, 0)], None, None, None]),
        ("features.18.1.running_mean", (1,), [[(1202, 0)]]),
        ("features.18.1.running_var", (1,), [[(1202, 0)]]),
        ("features.18.1.weight", (1,), [[(1202, 0)]]),
        ("features.18.1.bias", (1,), [[(1202, 0)]]),
        ("classifier.1.weight", (10, 1), [None, [(1202, 0)]]),
    ]
    assert all(piece.values is None for piece in found)
    values = torchorbit.unit_slices(orbit, 1202, values=True)
    assert torch.equal(values[0].values, model.features[18][0].weight[1202:1203])
    assert torch.equal(values[-1].values, model.classifier[1].weight[:, 1202:1203])
    assert "[[(1202, 0)], None, None, None]" in str(found)


def test_enot_nodes_and_modules(mobilenet):
    _, dag, orbits = mobilenet
    (vertex,) = torchorbit.vertices_of_module(orbits, "features.5.conv.1.0")
    assert torchorbit.module_of_vertex(orbits, vertex) == "features.5.conv.1.0"
    assert dag.get_submodule("features.5.conv.1.0").groups > 1
    # Modules without weights have one, too.
    (relu,) = torchorbit.vertices_of_module(dag, "features.18.2")
    assert torchorbit.module_of_vertex(dag, relu) == "features.18.2"
    with pytest.raises(ValueError, match="there is no module 'features.99'"):
        torchorbit.vertices_of_module(dag, "features.99")
    with pytest.raises(ValueError, match="belongs to no module"):
        torchorbit.module_of_vertex(dag, "flatten")


def test_enot_labels_are_units(mobilenet):
    """A label is an orbit and a position in it; what ENOT prints of a group stands in the table."""
    _, _, orbits = mobilenet
    assert orbits.units == sum(orbit.width for orbit in orbits)
    assert reduce(operator.add, [len(orbit) for orbit in orbits]) == orbits.units
    lines = str(orbits).splitlines()
    assert len([line for line in lines if " channels " in line]) == len(orbits)
    assert re.search(r"\b960\s+channels", str(orbits))


@pytest.mark.parametrize("name", ["densenet121", "resnet18.a1_in1k"])
def test_enot_libraries(name):
    if "." in name:
        model = timm.create_model(name, num_classes=5).eval()
    else:
        model = torchvision.models.get_model(name, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    dag = torchorbit.convert(model, images)
    pruned = torchorbit.prune(dag, ratio=0.5)
    assert pruned(images).shape == (1, 5)
    assert parameters(pruned) < 0.4 * parameters(model)
