"""The settings of torch, and the modes of a model, are as they were after a conversion, whatever a model does to them."""

import copy

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import by_source
from torchorbit.conversion.settings import _SETTINGS

X = torch.randn(2, 8)


class Sets(nn.Module):
    def __init__(self, change, fails):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.change, self.fails = change, fails

    def forward(self, x):
        self.change()
        if self.fails:
            raise ValueError("it has failed")
        return self.layer(x)


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "fails"])
@pytest.mark.parametrize(
    "change",
    by_source(
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("cpu"),
        lambda: torch.device("cpu").__enter__(),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: torch.autocast("cpu").__enter__(),
        lambda: torch.set_autocast_cache_enabled(False),
        lambda: torch.set_num_threads(3),
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.backends.mha.set_fastpath_enabled(False),
        lambda: torch.no_grad().__enter__(),
    ),
)
def test_settings_that_a_forward_leaves_changed_are_as_they_were(change, fails):
    def now():
        return [get() for get, _ in _SETTINGS]

    before = now()
    try:
        for action in (torchorbit.convert, torchorbit.explain):
            try:
                action(Sets(change, fails), X)
            except torchorbit.ConversionError as error:
                # What is left on under autocast is refused.
                assert fails or "autocast" in str(error)  # noqa: PT017
            assert now() == before
    finally:
        for (_, put), value in zip(_SETTINGS, before, strict=True):
            put(value)


class Own(nn.Module):
    """A part with a `train` of its own, which fails in one mode."""

    def __init__(self, fails_in):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.fails_in = fails_in

    def train(self, mode=True):
        super().train(mode)
        if mode is self.fails_in:
            raise RuntimeError("no such mode")
        return self

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize("fails_in", [False, True])
def test_a_mode_that_the_model_fails_to_set_is_said_with_where(fails_in):
    part = Own(fails_in)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(part))
    before = [(path, copy.copy(vars(module)), module.training) for path, module in model.named_modules()]
    with pytest.raises(torchorbit.ConversionError, match="RuntimeError: no such mode") as raised:
        torchorbit.convert(model, X)
    assert raised.value.module == "1.0"
    assert raised.value.operator == "Own"
    assert "test_settings.py:" in raised.value.line
    assert [(path, vars(module), module.training) for path, module in model.named_modules()] == before
    assert model[0].weight.device.type == "cpu"
