"""Small networks put together at random, whose steps, outputs and containers depend on the mode."""

import copy
import dataclasses
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import torchorbit
from tests.models import assert_same, copies, reloaded
from torchorbit.records import opened

PHASES = (Phase.explicit, Phase.generate)
WIDTH = 6


@dataclasses.dataclass
class Out:
    first: Any
    more: Any = None


STEPS = {
    "tanh": lambda m, x: x.tanh(),
    "relu": lambda m, x: x.relu(),
    "double": lambda m, x: x * 2,
    "softmax": lambda m, x: x.softmax(-1),
    "add a norm": lambda m, x: x + x.abs().amax(-1, keepdim=True),
    "batch mean": lambda m, x: x - x.mean(0),
    "mean": lambda m, x: x - x.mean(-1, keepdim=True),
    "view": lambda m, x: x.view(x.shape[0], 2, -1).flip(1).reshape(x.shape[0], x.shape[1]),
    "grid": lambda m, x: x + torch.arange(x.shape[1], device=x.device, dtype=x.dtype),
    "linear": lambda m, x: m.linear(x),
    "norm": lambda m, x: m.norm(x),
}
OUTPUTS = {
    "tensor": lambda x, y: x,
    "tuple": lambda x, y: (x, y),
    "dict": lambda x, y: {"x": x, "deep": [y]},
    "record": lambda x, y: Out(x, more=(y,)),
    "short record": lambda x, y: Out(y),
}
SEVERAL = st.lists(st.sampled_from(sorted(STEPS)), max_size=3)


class Block(nn.Module):
    """Some steps in both modes, then others in each, then the same again; a residual on the way, maybe."""

    def __init__(self, before, training, evaluation, after, residual):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.plan = before, training, evaluation, after
        self.residual = residual

    def forward(self, x):
        before, training, evaluation, after = self.plan
        kept = x
        for step in before:
            x = STEPS[step](self, x)
        for step in training if self.training else evaluation:
            x = STEPS[step](self, x)
        for step in after:
            x = STEPS[step](self, x)
        return x + kept if self.residual else x


class Network(nn.Module):
    def __init__(self, blocks, outputs, nested):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.neck = nn.Linear(8, WIDTH)
        made = [Block(*plan) for plan in blocks]
        self.blocks = nn.Sequential(nn.Sequential(*made[:1]), *made[1:]) if nested else nn.Sequential(*made)
        self.outputs = outputs

    def forward(self, x):
        y = self.neck(self.stem(x).relu())
        x = self.blocks(y)
        return OUTPUTS[self.outputs[0 if self.training else 1]](x, y)


PLANS = st.tuples(SEVERAL, SEVERAL, SEVERAL, SEVERAL, st.booleans())


@given(
    blocks=st.lists(PLANS, min_size=1, max_size=3),
    outputs=st.tuples(st.sampled_from(sorted(OUTPUTS)), st.sampled_from(sorted(OUTPUTS))),
    nested=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, phases=PHASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_network_with_two_modes_computes_both(blocks, outputs, nested, data):
    torch.manual_seed(0)
    source, dag = copies(Network(blocks, outputs, nested).double(), torch.randn(3, 4).double())
    assert dag.provenance.mode == "both"
    again = reloaded(copy.deepcopy(dag))
    flags = data.draw(st.lists(st.booleans(), min_size=len(blocks), max_size=len(blocks)))
    for training in (False, True, flags):
        for model in (source, dag, again):
            model.train(training if isinstance(training, bool) else False)
            if not isinstance(training, bool):
                for number, flag in enumerate(training):
                    path = f"blocks.{number}" + (".0" if nested and not number else "")
                    if any(path == name for name, _ in model.named_modules()):
                        model.get_submodule(path).train(flag)
        x = torch.randn(5, 4).double()
        with torch.no_grad():
            expected = opened(source(x))
            assert_same(opened(dag(x)), expected)
            assert_same(opened(again(x)), expected)
    dag.eval()
    removed = {orbit: range(orbit.width // 2) for orbit in torchorbit.find_orbits(dag)}
    pruned = torchorbit.remove_channels(dag, removed)
    assert torchorbit.verify_removal(dag, pruned, removed) < 1e-6
    with torch.no_grad():
        dag.train()(x)
        pruned.train()(x)
