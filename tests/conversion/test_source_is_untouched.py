"""Conversion computes nothing, allocates no weights, and leaves the model and the process exactly as they were."""

import contextlib
import copy
import gc
import inspect
import os
import random
import sys
import threading
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchorbit
from tests.models import Computes, assert_equal, assert_same, outcome

pytestmark = pytest.mark.numeric

X = torch.randn(2, 4, 8)


class OnlyMeta(TorchDispatchMode):
    """Counts kernels that compute something that is not on meta."""

    def __init__(self):
        super().__init__()
        self.computed = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(t.device.type != "meta" for t in tensors):
            self.computed.append(func)
        return out


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "levit_128s", "swin_tiny_patch4_window7_224", "test_nfnet"]
)
def test_a_model_with_weights_is_converted_without_computing(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with OnlyMeta() as mode:
        torchorbit.convert(model, x)
    # What a forward builds from Python numbers is all that may be left.
    assert [func for func in mode.computed if "arange" not in str(func) and "lift_fresh" not in str(func)] == []


def test_a_model_too_large_to_run_converts():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(200_000, 200_000), nn.ReLU(), nn.Linear(200_000, 10))
    dag = torchorbit.convert(model, torch.empty(4096, 200_000, device="meta"))
    assert dag(torch.empty(7, 200_000, device="meta")).shape == (7, 10)
    # With weights, but with a result that would need 4 TB.
    wide = Computes(lambda x: (x[:, :, None, None] * x[None, None, :, :]).sum())
    torchorbit.convert(wide, torch.zeros(1000, 1000))


@pytest.mark.parametrize("name", ["vit_giant_patch14_224", "convnext_xlarge", "test_vit"])
def test_conversion_on_meta_allocates_no_weights(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    with OnlyMeta() as mode:
        dag = torchorbit.convert(model, torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    assert all(p.device.type == "meta" for p in dag.parameters())
    assert len(mode.computed) < 20
    assert list(dag.state_dict()) == list(model.state_dict())


def snapshot(model):
    """Everything that hangs on a model's modules, by identity where it is mutable."""
    found = {}
    for path, module in model.named_modules():
        for key, value in module.__dict__.items():
            inner = None
            if isinstance(value, dict):
                inner = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, (list, set)):
                inner = [id(v) for v in value]
            found[path, key] = (id(value) if not isinstance(value, (bool, int, float)) else value, inner)
    tensors = {
        name: (id(t), t._version, t.requires_grad, t.device)
        for name, t in [*model.named_parameters(), *model.named_buffers()]
    }
    return found, tensors


@pytest.mark.parametrize(
    "name", ["test_vit", "levit_128s", "efficientformer_l1", "tiny_vit_5m_224", "convit_tiny", "efficientvit_m0", "mobileone_s0", "sequencer2d_s"]
)  # fmt: skip
def test_a_timm_model_is_exactly_as_it_was(name):
    model = timm.create_model(name).eval()
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    next(model.parameters()).requires_grad_(False)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    before = snapshot(model)
    torchorbit.convert(model, x)
    assert snapshot(model) == before
    with torch.no_grad():
        model.eval()(x)


class Caches(nn.Module):
    """Fills caches of several kinds when it runs for the first time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.cached = None
        self.by_size = {}
        self.nested = {"inner": {}, "list": [[]]}
        self.seen = []
        self.sizes = set()

    def forward(self, x):
        if self.cached is None:
            self.cached = torch.ones(8)
        self.by_size.setdefault(x.shape[1], torch.ones(8) * 2)
        self.nested["inner"].setdefault("k", torch.ones(8) * 3)
        self.nested["list"][0].append(x.shape[0])
        self.seen.append(x)
        self.sizes.add(x.shape[-1])
        self.last = x
        self.size = x.shape
        return self.linear(x) * self.cached * self.by_size[x.shape[1]] * self.nested["inner"]["k"]


def test_caches_are_as_they_were_and_the_model_runs_as_before():
    model = nn.Sequential(Caches())
    expected = outcome(copy.deepcopy(model), X)
    dag = torchorbit.convert(model, X)
    caches = model[0]
    assert caches.cached is None
    assert caches.by_size == {}
    assert caches.nested == {"inner": {}, "list": [[]]}
    assert caches.seen == []
    assert caches.sizes == set()
    assert not hasattr(caches, "last")
    assert_equal(outcome(model, X), expected)
    assert_same(dag(X), expected)


def test_a_model_with_full_caches_converts():
    model = nn.Sequential(Caches())
    model(X)
    kept = model[0].cached
    dag = torchorbit.convert(model, X)
    assert model[0].cached is kept
    assert_same(dag(X), model(X))


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.caches = Caches()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.norm(self.caches(x))
        return x * x.max().item()


def test_a_model_is_as_it_was_when_conversion_fails():
    model = Fails()
    model.norm.eval()
    model.norm.register_forward_hook(lambda module, args, output: None)
    before = snapshot(model)
    with pytest.raises(torchorbit.ConversionError):
        torchorbit.convert(model, X)
    assert snapshot(model) == before
    assert_equal(outcome(copy.deepcopy(model), X), outcome(model, X))


def patched_state():
    return (
        nn.Module.__call__,
        nn.Module.__dict__.get("training"),
        nn.functional.has_torch_function,
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        gc.isenabled(),
        torch.overrides._get_current_function_mode_stack(),
    )


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(Caches()), Fails(), nn.TransformerEncoderLayer(8, 2, 16)],
    ids=["converts", "fails", "attention"],
)
def test_torch_itself_is_as_it_was(model):
    state = patched_state()
    try:
        torchorbit.convert(model, X)
    except torchorbit.ConversionError:
        assert isinstance(model, Fails)
    assert patched_state() == state
    assert isinstance(torch.autograd.Function.__dict__["apply"], classmethod)


def test_random_numbers_are_not_used_up():
    model = nn.Sequential(nn.Dropout(0.5), Computes(lambda x: x * torch.rand(8) + torch.bernoulli(x.sigmoid()))).train()
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    torchorbit.convert(model, X)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_conversion_works_in_every_gradient_mode(context):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with context():
        dag = torchorbit.convert(model, X)
    dag(X).sum().backward()
    assert model[0].weight.grad is not None


def test_gradients_that_are_there_stay():
    model = nn.Sequential(nn.Linear(8, 8))
    model(X).sum().backward()
    kept = model[0].weight.grad
    torchorbit.convert(model, X)
    assert model[0].weight.grad is kept


def test_an_optimizer_made_before_trains_the_graph():
    model = nn.Sequential(nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dag = torchorbit.convert(model, X)
    before = model[0].weight.clone()
    dag(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert_same(dag(X), model(X))


def test_other_threads_run_models_meanwhile():
    busy = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    attention, tokens = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval(), X.double()
    expected, attended = outcome(busy, X), outcome(attention, tokens)
    stop, wrong, rounds = threading.Event(), [], []

    class Triple(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3

    def run():
        try:
            while not stop.is_set():
                rounds.append(None)
                with torch.no_grad():
                    close = torch.allclose(attention(tokens), attended, rtol=1e-12, atol=1e-12)
                    if not torch.equal(busy(X), expected) or not close:
                        wrong.append("output")
                    if not torch.equal(Triple.apply(X), X * 3):
                        wrong.append("function")
                    if nn.Linear(2, 2).training is not True or busy.training:
                        wrong.append("flag")
        except Exception as error:
            wrong.append(repr(error))

    thread = threading.Thread(target=run)
    thread.start()
    model = timm.create_model("test_vit")
    for _ in range(5):
        torchorbit.convert(model, torch.randn(1, 3, 160, 160))
    stop.set()
    thread.join()
    assert wrong == []
    assert rounds


def test_two_threads_convert_at_once():
    models = [
        timm.create_model(name).eval() for name in ("test_vit", "test_resnet", "test_convnext", "test_efficientnet")
    ]
    x = torch.randn(1, 3, 160, 160)
    graphs, threads = {}, []
    for number, model in enumerate(models):
        thread = threading.Thread(target=lambda n=number, m=model: graphs.__setitem__(n, torchorbit.convert(m, x)))
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()
    for number, model in enumerate(models):
        assert_same(outcome(graphs[number], x), outcome(model, x))
    assert gc.isenabled()


# -- whatever is raised, wherever


class Refuses(OrderedDict):
    """A configuration that cannot be changed once it is made, as some libraries have them."""

    def __init__(self, **values):
        super().__init__(**values)
        self._frozen = True

    def __setitem__(self, key, value):
        if getattr(self, "_frozen", False):
            raise TypeError("it cannot be changed")
        super().__setitem__(key, value)

    def update(self, *args, **kwargs):
        raise TypeError("it cannot be changed")

    def clear(self):
        raise TypeError("it cannot be changed")


class Settings:
    def __init__(self):
        self.table = None
        self.scale = torch.full((8,), 0.5)
        self.calls = []


class Configured(nn.Module):
    """Its attributes are objects that hold tensors, refuse to be changed, or are changed by the forward."""

    def __init__(self):
        super().__init__()
        self.settings = Settings()
        self.config = Refuses(width=8, inner={"depth": [1]})
        self.linear = nn.Linear(8, 8)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        if self.settings.table is None:
            self.settings.table = torch.arange(8) * 1.0
        self.settings.calls.append(x)
        self.config["inner"]["depth"].append(2)
        self.steps.add_(1)
        self.extra = x
        return self.linear(x) * self.settings.table + self.settings.scale


class LeftAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Configured(), Caches(), nn.BatchNorm1d(4)])
        self.parts[2].eval()

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x.softmax(-1)


class Interrupted(BaseException):
    """What no code of the package catches."""


STEPS = frozenset({"__torch_function__", "leaf"})  # of the recorder: a step of the model each


def interrupted_at(place, action, names=None):
    """Run an action and raise when the package calls its own function for the ``place``-th time.

    Returns how many times it did; what puts things back is left alone. Only functions of these names count, if given.
    """
    calls = 0

    def on_call(frame, event, arg):
        nonlocal calls
        code = frame.f_code
        ours = f"torchorbit{os.sep}conversion" in code.co_filename and not code.co_filename.endswith("preserving.py")
        counts = (
            code.co_name in names if names else not code.co_flags & inspect.CO_GENERATOR
        )  # called to be closed, too
        if event == "call" and ours and counts:
            calls += 1
            if calls == place:
                raise Interrupted

    sys.setprofile(on_call)
    try:
        action()
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
    return calls


def everything(model):
    parts = {path: settings_of(module) for path, module in model.named_modules()}
    return snapshot(model), parts, patched_state()[:3], patched_state()[3:6], torch.get_rng_state().tolist()


def settings_of(module):
    settings, config = getattr(module, "settings", None), getattr(module, "config", None)
    held = (
        None if settings is None else (settings.table, id(settings.scale), settings.scale.device, len(settings.calls))
    )
    return held, None if config is None else (list(OrderedDict.items(config)), len(config["inner"]["depth"]))


SMALL = {
    "left alone": lambda: (LeftAlone(), X),
    "caches": lambda: (nn.Sequential(Caches()), X),
    "configured": lambda: (nn.Sequential(Configured()), X),
    "normalized": lambda: (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.Dropout(0.5)), X),
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), X),
    "recurrent": lambda: (Computes(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(8, 4, batch_first=True)), X),
    "parametrized": lambda: (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), X),
    "fails": lambda: (Fails(), X),
    "branch": lambda: (Computes(lambda x: x.relu() if x.shape[0] > 1 else x), X),
    "embedding": lambda: (nn.Sequential(nn.Embedding(9, 8), nn.LayerNorm(8)), torch.zeros(2, 4, dtype=torch.long)),
}
TIMM = """
    test_byobnet test_convnext test_convnext2 test_efficientnet test_efficientnet_evos test_mambaout test_nfnet
    test_resnet test_vit test_vit4
"""


def model_named(name):
    if name in SMALL:
        return SMALL[name]()
    model = timm.create_model(name)
    return model, torch.randn(1, *model.pretrained_cfg["input_size"])


def assert_untouched(name, names, most):
    """Convert a model again and again, and raise each time at another place; the model and torch are as they were."""
    model, x = model_named(name)
    before = everything(model)

    def convert():
        with contextlib.suppress(torchorbit.ConversionError):
            torchorbit.convert(model, x)

    calls = interrupted_at(None, convert, names)
    assert everything(model) == before
    number = min(calls, most)
    for place in range(number):
        interrupted_at(1 + place * calls // number, convert, names)
        assert everything(model) == before


@pytest.mark.parametrize("name", [*SMALL, *TIMM.split()])
def test_whatever_is_raised_while_a_model_is_converted_leaves_it_as_it_was(name):
    assert_untouched(name, None, most=40 if name in SMALL else 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *TIMM.split()])
def test_whatever_is_raised_at_any_step_of_a_model_leaves_it_as_it_was(name):
    assert_untouched(name, STEPS, most=10_000 if name in SMALL else 30)


@pytest.mark.parametrize("name", SMALL)
def test_explaining_leaves_a_model_as_it_was(name):
    model, x = SMALL[name]()
    broken = nn.Sequential(model, Computes(lambda x: (x[0] if isinstance(x, tuple) else x) * x[0].sum().item()))
    before = everything(broken)
    with contextlib.suppress(torchorbit.ConversionError):
        torchorbit.explain(broken, x)
    assert everything(broken) == before
