"""Thousands of saved graphs with something changed: each loads to a valid graph, or is refused with one kind of error."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, stir

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it"
)

Answer = collections.namedtuple("Answer", ["features", "others"])


class Everything(nn.Module):
    """Members of all kinds, tied and frozen ones, a block called twice, choices by mode, inputs in containers."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.PReLU())
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.words = nn.Embedding(5, 8)
        self.recurrent = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.scale = nn.Parameter(torch.rand(8))
        self.frozen = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("table", torch.randn(8))
        self.register_buffer("hidden", torch.randn(8), persistent=False)
        self.register_buffer("index", torch.tensor([1, 0, 3, 2]))
        self.register_buffer("mask", torch.tensor([True, False] * 4))

    def forward(self, x, pair, *, power=2):
        x = self.block(self.block(x)) * self.scale + self.frozen + self.words(pair["words"])
        x, _ = self.recurrent(x)
        x = self.second(self.first(x))[:, self.index] * self.table + self.hidden
        x = torch.where(self.mask, x, x**power) * (2.0 if self.training else 3.0) * torch.tensor([1.0, 2.0] * 4)
        return Answer(x.reshape(x.shape[0], -1), {"mean": (x.mean(), None), "pair": pair["more"][0] + 1})


def sizes(m, x):
    """Operators whose arguments are sizes: what allocates, and what returns several."""
    n, _, h, w = x.shape
    rows = torch.arange(h, device=x.device).to(x.dtype)[:, None] + torch.zeros(h, w, device=x.device)
    x = x + rows + torch.ones_like(x) + torch.full((w,), 0.5, device=x.device)
    x = F.pad(x, (1, 2, 1, 2)).repeat(1, 2, 1, 1).roll((1, -1), (2, 3))
    x = torch.cat([*x.chunk(2, 1), *x.split([3, 5], 1)], 1)
    x = F.interpolate(x, size=(h, w), mode="bilinear") + F.adaptive_avg_pool2d(x, 1).expand(n, 16, h, w)
    x = m.up(F.unfold(x, 3, padding=1).unflatten(1, (16, 9)).mean(2).reshape(n, 16, h, w))
    x = torch.fft.irfft2(torch.fft.rfft2(x)) + x.repeat_interleave(2, 1)[:, ::2]
    a, b = x.flatten(2).transpose(1, 2).unbind(0)[0].tensor_split(2, 1)
    scores = F.scaled_dot_product_attention(a[None], b[None], b[None])
    return torch.einsum("bij,kj->bik", scores, m.weight).cumsum(1).topk(2, -1)[0] @ m.weight[:2]


def small_models():
    swin = {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "window_size": (7, 7)}
    image = torch.randn(1, 3, 64, 64)
    resnet = torchorbit.convert(stir(timm.create_model("resnet18", num_classes=10)).eval(), image)
    words = {"words": torch.randint(5, (2, 4)), "more": [torch.randn(2, 3)]}
    with_sizes = Computes(sizes, up=nn.Upsample(scale_factor=2), weight=nn.Parameter(torch.randn(6, 8)))
    return {
        "pruned": torchorbit.prune(resnet, flops=0.05),
        "vit": torchorbit.convert(stir(timm.create_model("test_vit")).eval(), torch.randn(1, 3, 160, 160)),
        "swin": torchorbit.convert(timm.create_model("swin_s3_tiny_224", **swin).eval(), torch.randn(1, 3, 224, 224)),
        "everything": torchorbit.convert(stir(Everything()).eval(), (torch.randn(2, 4, 8), words)),
        "sizes": torchorbit.convert(with_sizes.eval(), torch.randn(2, 4, 8, 8)),
        "half": torchorbit.convert(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5)).eval(),
            torch.randn(1, 3, 8, 8),
        ).bfloat16(),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    torch.manual_seed(0)
    for name, dag in small_models().items():
        dag.save(folder / name)
    return folder


def load_mutants(corpus, scratch, count, seed):
    """Load mutants in two processes, which a mutant may end; returns how many there were of each outcome."""
    processes = []
    for half in range(2):
        folder = scratch / str(half)
        folder.mkdir()
        command = [
            sys.executable,
            "-m",
            "tests.graph.mutants",
            str(corpus),
            str(folder),
            str(count // 2),
            str(seed + half),
        ]
        processes.append((folder, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)))
    outcomes = collections.Counter()
    for folder, process in processes:
        out, err = process.communicate(timeout=3000)
        if process.returncode:
            last = (folder / "seed").read_text().strip()
            pytest.fail(f"mutant {last} ends the process with code {process.returncode}:\n{err[-5000:]}")
        outcomes.update(json.loads(out.splitlines()[-1]))
    return outcomes


def assert_all_judged(outcomes, count):
    judged = {name: number for name, number in outcomes.items() if name != "megabytes"}
    assert set(judged) <= {"refused", "runs", "raises", "large"}
    assert sum(judged.values()) >= count, outcomes
    # Most are damaged, some are not: with either part missing, nothing would have been tried.
    assert judged["refused"] > count / 2
    assert judged["runs"] > count / 100


def test_a_few_mutants_load_or_are_refused(corpus, tmp_path):
    assert_all_judged(load_mutants(corpus, tmp_path, 400, 1), 400)


def test_eight_thousand_graphs_of_any_operators_load_or_are_refused():
    """With the mutants there are twenty thousand graphs, of which nothing but our errors comes."""
    command = [sys.executable, "-m", "tests.graph.generated", "8000", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1]
    assert not done.returncode, f"graph {last} ends the process with code {done.returncode}:\n{done.stderr[-5000:]}"
    outcomes = json.loads(last)
    assert outcomes["runs"] > 1000
    assert outcomes["refused"] > 4000
    # Matrices that have no inverse, say, are found out by their values.
    assert outcomes.get("raises", 0) < outcomes["runs"] / 50


@pytest.mark.slow
def test_ten_thousand_mutants_load_or_are_refused(corpus, tmp_path):
    assert_all_judged(load_mutants(corpus, tmp_path, 12_000, 7), 10_000)
