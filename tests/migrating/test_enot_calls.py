"""What ENOT's functions and calibration do."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.migrating.helpers import LOADER, X, graph, loss, parameters, small
from tests.models import assert_same
from torchorbit import Bounds
from torchorbit.cost import FlopsCost
from torchorbit.criteria import default_sample_to_model_inputs, default_sample_to_n_samples
from torchorbit.latency import MeasuredLatency
from torchorbit.selectors import Optimal, Task

pytestmark = pytest.mark.numeric


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
    torch.testing.assert_close(tuned.get_buffer("1.running_mean"), convolved.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
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
    for options, number in (({}, 3), ({"max_batches": 2}, 2), ({"epochs": 2}, 6), ({"max_batches": 5, "epochs": 2}, 5)):
        seen.clear()
        scores = torchorbit.calibrate(dag, Loader(), loss, "taylor", **options)["taylor"]
        assert len(seen) == number
        assert scores.samples == 4 * number
    few = torchorbit.prune(dag, None, LOADER, loss, ratio=0.5, criterion="taylor", max_batches=1)
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
            np.testing.assert_allclose(found[found.orbits[orbit.index]], whole[orbit], rtol=1e-9)


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
            raise AssertionError("only execute_model is to run")

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


@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
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
        dag, None, LOADER, loss, criterion="taylor", selector=selector, target=target, constraint=Bounds(min_width=2)
    )
    assert FlopsCost()(pruned) <= 0.5 * FlopsCost()(dag)
    assert min(orbit.width for orbit in torchorbit.find_orbits(pruned)) >= 2
    scores = torchorbit.calibrate(dag, LOADER, loss, "taylor")["taylor"]
    found = selector.search(
        Task(
            scores,
            target=target,
            loss=torchorbit.criteria.MaskedLoss(scores.orbits, LOADER, loss),
            constraint=Bounds(min_width=2),
        )
    )
    assert list(found.best.widths) == [orbit.width for orbit in torchorbit.find_orbits(pruned)]
    assert found.best.loss == min(sample.loss for sample in found.samples if sample.feasible)
    assert len(found.samples) <= 8


def test_enot_latency_is_any_function_of_a_model():
    dag = graph(8, 8, 8)
    whole = parameters(dag)
    pruned = torchorbit.prune(dag, target=torchorbit.Target(parameters, 0.5 * whole), selector="global")
    assert 0.4 * whole < parameters(pruned) <= 0.5 * whole
    named = torchorbit.prune(dag, target=torchorbit.Target.parameters(0.5 * whole))
    assert parameters(named) == parameters(torchorbit.prune(dag, parameters=0.5)) <= 0.5 * whole

    def macs(model):
        return torchorbit.flops(model).total / 2

    half = torchorbit.prune(dag, target=torchorbit.Target(macs, macs(dag) / 2))
    assert torchorbit.flops(half).total <= torchorbit.flops(dag).total / 2
    assert MeasuredLatency(X, warm_up=1, repeats=3)(dag) > 0
