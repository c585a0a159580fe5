"""Latencies: measured, looked up, and in ONNX Runtime."""

import collections
import dataclasses
import json
import sys
import types
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torchorbit
from tests.models import stir
from tests.numerics import allowed
from torchorbit import Target, find_orbits
from torchorbit.cost import PredictedCost
from torchorbit.criteria import Magnitude
from torchorbit.latency import (
    LatencyMeasurementError,
    LookupCheck,
    LookupTable,
    LookupTableError,
    MeasuredLatency,
    OnnxRuntimeLatency,
    timed,
)
from torchorbit.selectors import Task, Uniform

RESNET = ("resnet18", {})
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8})


class Counted(nn.Module):
    """Counts its forwards and notes how they were run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.forwards = []

    def forward(self, x):
        self.forwards.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x * self.weight


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of memory, say")


def graph(*widths, size=8):
    layers, before = [], 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    model = stir(nn.Sequential(*layers, nn.Conv2d(before, 4, 1))).eval()
    return torchorbit.convert(model, torch.randn(2, 3, size, size))


def of_timm(name, options):
    model = stir(timm.create_model(name, num_classes=10, scriptable=False, **options)).eval()
    return torchorbit.convert(model, torch.randn(2, 3, 32, 32))


def counted_flops(run):
    """What torch's own counter says a call costs: as exact as a time is not."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def keep_of(orbits, removed):
    return Task(Magnitude().scores(orbits)).keep(removed)


def at_levels(orbits, levels, seed=0):
    rng = np.random.default_rng(seed)
    return {
        orbit: np.sort(rng.permutation(orbit.width)[max(1, round(rng.choice(levels) * orbit.width)) :])
        for orbit in orbits
    }


# -- measured


@pytest.mark.parametrize(("warm_up", "repeats"), [(0, 1), (3, 4)])
def test_so_many_forwards_are_run_in_evaluation_without_gradients(warm_up, repeats):
    model = Counted().train()
    threads = torch.get_num_threads()
    assert MeasuredLatency(torch.ones(2), warm_up=warm_up, repeats=repeats, threads=2)(model) > 0
    assert model.forwards == [(False, True, 2)] * (warm_up + repeats)
    assert model.training
    assert torch.get_num_threads() == threads


def test_models_are_measured_in_turns():
    order = []
    first, second = Counted(), Counted()
    first.register_forward_hook(lambda *_: order.append(1))
    second.register_forward_hook(lambda *_: order.append(2))
    times = MeasuredLatency(torch.ones(2), warm_up=1, repeats=2, threads=None).in_turns(first, second)
    assert order == [1, 2] * 3
    assert len(times) == 2
    assert first.forwards[0][2] == torch.get_num_threads()


@pytest.mark.parametrize(("statistic", "expected"), [("median", 2.0), ("mean", 4.0), ("min", 1.0)])
def test_statistics_of_times(monkeypatch, statistic, expected):
    clock = iter([0, 10, 11, 20, 22, 30, 39])
    fake = types.SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("torchorbit.cost.measured.time", fake)
    # A warm-up, of which only the start is read, then 1, 2 and 9 s.
    measured = MeasuredLatency(torch.ones(1), warm_up=1, repeats=3, statistic=statistic)(Counted())
    assert measured == expected


def test_calls_that_warm_up_are_not_counted():
    calls = []
    (times,) = timed([lambda: calls.append(0)], warm_up=2, repeats=3)
    assert (len(calls), len(times)) == (5, 3)


def test_inputs_may_be_positional_or_by_name():
    class Two(nn.Module):
        def forward(self, x, *, y):
            return x + y

    assert MeasuredLatency({"x": torch.ones(1), "y": torch.ones(1)}, repeats=1)(Two()) > 0
    assert MeasuredLatency((torch.ones(1),), repeats=1)(Counted()) > 0


def test_a_model_that_fails_is_said_to_and_left_as_it_was():
    model, threads = Failing().train(), torch.get_num_threads()
    with pytest.raises(LatencyMeasurementError, match="out of memory, say"):
        MeasuredLatency(torch.ones(1), threads=2)(model)
    assert model.training
    assert torch.get_num_threads() == threads


def test_nothing_is_measured_on_the_meta_device():
    with pytest.raises(LatencyMeasurementError, match="meta device"):
        MeasuredLatency(torch.ones(2, 3))(nn.Linear(3, 3, device="meta"))


@pytest.mark.parametrize("options", [{"warm_up": -1}, {"repeats": 0}, {"threads": 0}, {"statistic": "mode"}])
@pytest.mark.parametrize("kind", [MeasuredLatency, OnnxRuntimeLatency])
def test_options_that_make_no_sense_are_refused(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* expected"):
        kind(torch.ones(1), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_model_is_measured_on_cuda_and_brought_back():
    model = Counted()
    assert MeasuredLatency(torch.ones(2), device="cuda")(model) > 0
    assert model.weight.device.type == "cpu"


# -- looked up


@pytest.mark.parametrize(
    ("name", "options"),
    [
        RESNET,
        pytest.param("regnety_002", {}, marks=pytest.mark.slow),
        pytest.param("densenet121", {}, marks=pytest.mark.slow),
    ],
)
def test_a_table_is_exact_where_operators_were_measured(name, options):
    """Torch's counter in the place of a clock: costs are products of widths, so that what is between is exact, too."""
    dag = of_timm(name, options)
    orbits = find_orbits(dag)
    table = LookupTable(measure=counted_flops)
    assert isinstance(table, PredictedCost)
    assert table.predicted(orbits, keep_of(orbits, {})) == pytest.approx(table(dag))
    for levels in (table.levels, np.linspace(0.1, 0.9, 7)):
        removed = at_levels(orbits, levels)
        smaller = torchorbit.remove_channels(dag, removed)
        expected = counted_flops(lambda smaller=smaller: smaller(torch.randn(1, 3, 32, 32)))
        assert table.predicted(orbits, keep_of(orbits, removed)) == pytest.approx(expected, rel=1e-9)
        assert table(smaller) == expected


def test_a_table_knows_attention_with_heads_of_any_width():
    dag = of_timm(*VIT)
    orbits = find_orbits(dag)
    table = LookupTable((0.0, 0.5, 1.0), measure=counted_flops)
    removed = at_levels(orbits, table.levels)
    smaller = torchorbit.remove_channels(dag, removed)
    assert table(smaller) == counted_flops(lambda: smaller(torch.randn(1, 3, 32, 32)))
    assert table.predicted(orbits, keep_of(orbits, removed)) == pytest.approx(table(smaller), rel=1e-9)


def test_between_its_points_a_table_is_linear():
    orbits = find_orbits(graph(16))
    (orbit,) = orbits

    def stairs(run):
        """Operators take a second for each eight channels, or part of it."""
        shape = run().shape
        return float(-(-shape[1] // 8)) if shape[1] != 4 else 0.0

    table = LookupTable((0.0, 0.5, 1.0), measure=stairs)

    def predicted(width):
        return table.predicted(orbits, keep_of(orbits, {orbit: range(orbit.width - width)}))

    # A convolution, a normalization and an activation at 1, 8 and 16 channels: 3, 3 and 6 seconds.
    assert [predicted(width) for width in (1, 4, 8, 16)] == [3, 3, 3, 6]
    assert predicted(12) == 4.5


def test_equal_operators_are_measured_once_and_over_several_graphs():
    calls = []

    def measure(run):
        calls.append(run)
        return 1.0

    table = LookupTable((0.5, 1.0), measure=measure)
    table.measure(find_orbits(graph(8, 8, 8)), verbose=False)
    once = len(calls)
    # conv, norm and relu of the first block, of the others (equal ones), and the head, at two levels of each width
    assert once == len(table.seconds) == (2 + 2 + 2) + 4 + 2
    table.measure(find_orbits(graph(8, 8, 8, 8)), verbose=False)
    assert len(calls) == once


def test_a_saved_table_predicts_the_same_without_measuring(tmp_path):
    dag = graph(8, 16)
    orbits = find_orbits(dag)
    table = LookupTable(measure=counted_flops)
    removed = at_levels(orbits, [0.3, 0.6])
    expected = table.predicted(orbits, keep_of(orbits, removed))
    table.save(tmp_path / "table.json")
    again = LookupTable.load(tmp_path / "table.json")
    assert again.predicted(find_orbits(dag), keep_of(orbits, removed)) == expected
    with pytest.raises(LatencyMeasurementError, match="the table has no time of conv2d"):
        again(torchorbit.remove_channels(dag, removed))
    assert LookupTable.load(tmp_path / "table.json", measure=counted_flops)(dag) == table(dag)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": "other", "version": 1}', json.dumps({"format": "torchorbit-latency-table"})]
)
def test_files_that_hold_no_table_are_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(LookupTableError, match=r"table\.json"):
        LookupTable.load(path)


@pytest.mark.parametrize("levels", [(1.0,), (0.5, 0.9), (0.5, 0.5, 1.0), (-0.1, 1.0)])
def test_levels_that_make_no_sense_are_refused(levels):
    with pytest.raises(ValueError, match="levels="):
        LookupTable(levels)


def test_an_operator_that_fails_is_named():
    def measure(run):
        raise RuntimeError("no clock")

    with pytest.raises(LatencyMeasurementError, match=r"vertex '.*' fails when it runs alone, conv2d.*no clock"):
        LookupTable(measure=measure).measure(find_orbits(graph(8)), verbose=False)


def test_a_selector_meets_a_target_by_prediction_alone(monkeypatch):
    dag = graph(16, 24, 16)
    orbits = find_orbits(dag)
    table = LookupTable(measure=counted_flops)
    table.measure(orbits, verbose=False)
    monkeypatch.setattr("torchorbit.pruning.selectors.base.remove_channels", None)
    task = Task(Magnitude().scores(orbits), target=Target(table, 0.5, relative=True))
    removed = Uniform().select(task)
    monkeypatch.undo()
    smaller = torchorbit.remove_channels(dag, removed)
    assert 0.4 * table(dag) < table(smaller) <= 0.5 * table(dag)


def test_a_check_says_how_far_off_a_table_was():
    orbits = find_orbits(graph(16, 24, 16))
    table = LookupTable(measure=counted_flops)
    check = table.check(orbits, lambda model: 2 * table(model), models=5)
    assert check.ratio == pytest.approx(0.5)
    assert check.error == pytest.approx(0, abs=1e-9)
    assert check.rank_correlation == pytest.approx(1)
    assert "predicted / measured" in str(check)
    assert LookupCheck(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])).error == pytest.approx(0.5 / 3)
    with pytest.raises(ValueError, match="models=1"):
        table.check(orbits, table, models=1)


def test_real_times_of_a_graph_and_of_its_operators():
    dag = graph(16, 16)
    orbits = find_orbits(dag)
    table = LookupTable((0.5, 1.0))
    check = table.check(orbits, MeasuredLatency(torch.randn(1, 3, 8, 8), repeats=5), models=3)
    assert np.isfinite(check.predicted).all()
    assert (check.predicted > 0).all()
    assert (check.measured > 0).all()


# -- ONNX Runtime


@pytest.mark.numeric
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [RESNET, VIT])
def test_graphs_compute_the_same_in_onnx_runtime(name, options):
    dag = of_timm(name, options)
    x = torch.randn(2, 3, 32, 32)
    latency = OnnxRuntimeLatency(x, warm_up=1, repeats=2)
    for model in (dag, torchorbit.prune(dag, flops=0.5)):
        with torch.no_grad():
            expected = model(x)
        (output,) = latency.outputs(model)
        assert (output - expected).abs().max() <= allowed(model, x) * expected.abs().max()
    assert latency(dag) > 0


@pytest.mark.numeric
def test_a_small_graph_computes_the_same_in_onnx_runtime():
    model = graph(8).train()
    x = torch.randn(1, 3, 8, 8)
    latency = OnnxRuntimeLatency(x, warm_up=0, repeats=1)
    assert latency(model) > 0
    (output,) = latency.outputs(model)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(x)
    assert (output - expected).abs().max() <= allowed(model, x) * expected.abs().max()


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    more: list[Any]


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        more = {"twice": y * 2, "deep": collections.OrderedDict(sum=y + 1)}
        return y if self.training else Answer(y.softmax(1), [more])


@pytest.mark.numeric
def test_a_graph_that_returns_a_data_class_is_exported_before_and_after_a_file(tmp_path):
    x = torch.randn(1, 4)
    dag = torchorbit.convert(Answering().eval(), x)
    dag.save(tmp_path)
    latency = OnnxRuntimeLatency(x, warm_up=0, repeats=1)
    with torch.no_grad():
        given = dag(x)
    for model in (dag, torchorbit.load(tmp_path)):
        first, second, third = latency.outputs(model)
        assert (first - given.logits).abs().max() < 1e-5
        assert (second - given.more[0]["twice"]).abs().max() < 1e-5
        assert (third - given.more[0]["deep"]["sum"]).abs().max() < 1e-5


def test_what_cannot_be_exported_is_said_to():
    with pytest.raises(LatencyMeasurementError, match="cannot be exported to ONNX"):
        OnnxRuntimeLatency(torch.ones(1))(Failing())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_onnx_it_says_how_to_get_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}, .*pip install 'torchorbit\[onnx\]'"):
        OnnxRuntimeLatency(torch.ones(1))
