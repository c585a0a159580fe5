"""Models registered with timm that go wrong, each in its own way, and a job runner that knows them.

Worker processes import this module when they are given `run`, and thereby learn the names.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn

from harness import worker
from harness.worker import Job, Outcome

import timm  # isort: skip - importable once harness.worker is
from timm.models import register_model  # isort: skip


class _Odd(nn.Module):
    """A small model with the configuration that timm's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16)}
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class _Constant(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(-self.fc(x.flatten(1)).square())


class _NotFinite(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)).abs().neg().log()


class _Unrunnable(_Odd):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this forward\nnever runs")


class _Structured(_Odd):
    def forward(self, x: Tensor) -> dict[str, Any]:
        logits = self.fc(x.flatten(1))
        return {"logits": logits, "parts": (logits[:, :5], [logits[:, 5:]])}


@register_model
def odd_unbuildable(**kwargs: Any) -> nn.Module:
    raise ValueError("this constructor\nalways fails")


@register_model
def odd_unrunnable(**kwargs: Any) -> nn.Module:
    return _Unrunnable()


@register_model
def odd_constant(**kwargs: Any) -> nn.Module:
    return _Constant()


@register_model
def odd_not_finite(**kwargs: Any) -> nn.Module:
    return _NotFinite()


@register_model
def odd_structured(**kwargs: Any) -> nn.Module:
    return _Structured()


@register_model
def odd_registers(**kwargs: Any) -> nn.Module:
    """Images of any size, and tokens of its own among theirs, which can be removed."""
    return timm.create_model("naflexvit_base_patch16_radio_v3", embed_dim=32, depth=1, num_heads=2, **kwargs)


@register_model
def odd_deadly(**kwargs: Any) -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def run(job: Job) -> Outcome:
    """`harness.worker.run`, in a process that knows the models above."""
    return worker.run(job)
