"""Small models in which gates are written by hand, wherever units are consumed; and what follows from these."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchorbit
from tests.models import stir
from tests.orbits.helpers import the
from torchorbit import Orbit, Orbits


class Gated(nn.Module):
    """A model whose forward calls `gate` wherever units are consumed; without gates set that does nothing."""

    #: Name of a gate -> a tensor of which its units own slices along the first dimension, and whether they are groups.
    orbits: dict[str, tuple[str, bool]]

    def __init__(self):
        super().__init__()
        self.gates: dict[str, Tensor] = {}

    def gate(self, name: str, x: Tensor, axis: int) -> Tensor:
        if name not in self.gates:
            return x
        return x * self.gates[name].reshape([-1 if n == axis % x.dim() else 1 for n in range(x.dim())])


class Chain(Gated):
    orbits = {"first": ("a.weight", False), "second": ("c.weight", False)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, bias=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.gate("first", F.relu(self.b(self.a(x))), 1)
        x = F.adaptive_avg_pool2d(F.gelu(self.c(x)), 2)
        return self.head(self.gate("second", x, 1).flatten(1))


class Residual(Gated):
    orbits = {"stream": ("stem.weight", False), "inside": ("up.weight", False)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.up, self.down = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu(self.up(self.gate("stream", F.relu(self.norm(x)), 1)))
        x = x + self.down(self.gate("inside", y, 1))
        return self.head(self.gate("stream", x.mean((2, 3)), 1))


class Concat(Gated):
    orbits = {"left": ("a.weight", False), "right": ("b.weight", False)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)
        self.side, self.c, self.head = nn.Conv2d(4, 2, 1), nn.Conv2d(7, 5, 3), nn.Linear(5, 3)

    def forward(self, x):
        left, right = F.relu(self.a(x)), F.silu(self.b(x))
        y = self.c(torch.cat([self.gate("left", left, 1), self.gate("right", right, 1)], 1))
        side = self.side(self.gate("right", right, 1)).mean((2, 3)).sum(1)
        return self.head(F.relu(y).mean((2, 3))) + F.pad(side[:, None], (0, 2))


class Attention(Gated):
    orbits = {"stream": ("embed.weight", False), "heads": ("proj.weight", True)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Conv2d(2, 5, 2, stride=2), nn.Linear(5, 24), nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.gate("stream", x, -1)).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (self.gate("query", q, -1) @ k.transpose(-2, -1) / 2).softmax(-1)
        out = (weights @ v).transpose(1, 2)
        out = self.gate("heads", self.gate("value", out, -1), 2).reshape(batch, tokens, 8)
        x = x + self.proj(out)
        return self.head(self.gate("stream", x, -1).mean(1))


class Fused(Attention):
    """The same with one vertex for the attention."""

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.gate("stream", x, -1)).reshape(batch, tokens, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(self.gate("query", q, -1), k, v).transpose(1, 2)
        out = self.gate("heads", self.gate("value", out, -1), 2).reshape(batch, tokens, 8)
        x = x + self.proj(out)
        return self.head(self.gate("stream", x, -1).mean(1))


class Groups(Gated):
    orbits = {"inner": ("a.weight", False), "depthwise": ("e.weight", False)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2, padding=1)
        self.e, self.d, self.head = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 3, groups=3), nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.gate("inner", x.unflatten(1, (2, 3)), 2).flatten(1, 2)
        x = F.relu(self.d(self.e(F.relu(self.b(x)))))
        return self.head(self.gate("depthwise", x.mean((2, 3)), 1))


MODELS: tuple[Callable[[], Gated], ...] = (Chain, Residual, Concat, Attention, Fused, Groups)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])


def data(samples: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 2, 6, 6, dtype=torch.float64), LABELS[:samples]


def loss_of(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A loss for each sample."""
    return F.cross_entropy(output, batch[1], reduction="none")


def mean_loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])


def made(kind: Callable[[], Gated]) -> tuple[Gated, torchorbit.DagModule, Orbits]:
    """A model, and a graph of its own weights."""
    model = stir(kind()).double().eval()
    dag = torchorbit.convert(model, data(2)[0])
    return model, dag, torchorbit.find_orbits(dag)


def gates_of(model: Gated, orbits: Orbits) -> Iterator[tuple[str, Orbit]]:
    """The gates that are written in a model, with the orbits whose units they are."""
    for name, (path, groups) in model.orbits.items():
        dim = 1 if path == "proj.weight" else 0
        yield name, the(orbits, path, dim, groups=groups)
    if isinstance(model, Attention):
        # Query and key have the first rows of the projection, value the last.
        within = [orbit for orbit in orbits.of_tensor("qkv.weight") if orbit.reading == 0]
        by_row = {
            min(i for s in o.slices if s.tensor == "qkv.weight" and s.dim == 0 for i in s.indices): o for o in within
        }
        yield "query", by_row[0]
        yield "value", by_row[16]


def losses_with(model: Gated, name: str, gate: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of every sample with a gate set."""
    model.gates = {name: gate}
    try:
        return loss_of(model(batch[0]), batch)
    finally:
        model.gates = {}


def by_finite_differences(model: Gated, name: str, width: int, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The derivative of every sample's loss by every entry of a gate, of shape (samples, units)."""
    step = 1e-6
    columns = []
    with torch.no_grad():
        for unit in range(width):
            shift = torch.zeros(width, dtype=torch.float64)
            shift[unit] = step
            after = losses_with(model, name, 1 + shift, batch)
            columns.append((after - losses_with(model, name, 1 - shift, batch)) / (2 * step))
    return torch.stack(columns, 1)
