"""What torch-dag does."""

import gc
import json
import operator
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.proxy import TraceError

import torchorbit
from tests.migrating.helpers import LOADER, ROOT, Doubled, X, graph, loss, parameters, small
from tests.models import Computes, assert_same
from torchorbit.graph.vertices import ModuleVertex, OperatorVertex
from torchorbit.operators.modules import LEAF_MODULES

pytestmark = pytest.mark.numeric


def test_torch_dag_conversion():
    assert torchorbit.convert is torchorbit.convert
    model = small(8, 6)
    dag = torchorbit.convert(model, X)
    assert isinstance(dag, torchorbit.DagModule)
    assert isinstance(dag, nn.Module)
    assert_same(dag(X), model(X))
    assert list(dag.state_dict()) == list(model.state_dict())


def test_torch_dag_switches_activations():
    model = timm.create_model("resnet10t", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    dag = torchorbit.convert(model, images)
    changed = torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: nn.SiLU())
    assert changed
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    assert_same(dag(images), model(images))


def test_torch_dag_inserts_vertices():
    """The document's pattern: a batch norm after every convolution that has none."""
    dag = torchorbit.convert(small(8, 6).eval(), X)
    for path, vertex in list(dag.all_vertices()):
        if getattr(vertex, "leaf", "") == "Conv2d" and not torchorbit.edit.users(dag, path, "BatchNorm2d"):
            convolution = dag.get_submodule(torchorbit.inspect.module_of_vertex(dag, path))
            torchorbit.edit.insert_after(dag, path, nn.BatchNorm2d(convolution.out_channels))
    kinds = [vertex.leaf for vertex in dag.vertices if isinstance(vertex, ModuleVertex)]
    assert kinds[:6] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    first = dag.train()(X)
    plain = small(8, 6)
    expected = nn.Sequential(plain[0], nn.BatchNorm2d(8), plain[1], plain[2], nn.BatchNorm2d(6), *plain[3:])
    assert_same(first, expected(X))


def test_torch_dag_hierarchy():
    model = timm.create_model("resnet10t").eval()
    images = torch.randn(1, 3, 64, 64)
    dag = torchorbit.convert(model, images)
    assert isinstance(dag.get_submodule("layer1.0"), torchorbit.DagModule)
    block = dag.get_submodule("layer1.0")
    x = torch.randn(1, 64, 8, 8)
    assert_same(block(x), model.layer1[0](x))
    flat = dag.flatten()
    assert not any(isinstance(module, torchorbit.DagModule) for module in flat.children())
    assert_same(flat(images), dag(images))


def test_torch_dag_wraps_parts():
    model = small(8, 6)
    dag = torchorbit.convert(model, X)
    torchorbit.edit.group(dag, [vertex.name for vertex in dag.vertices[1:5]], "features")
    assert_same(dag(X), model(X))
    assert_same(dag.features(X), model[:4](X))
    assert isinstance(dag.features, torchorbit.DagModule)
    assert "features.0.weight" in dag.state_dict()


def test_torch_dag_saves_without_source(tmp_path):
    def make():
        class Secret(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = small(8, 6)

            def forward(self, x):
                return self.body(x) + 1

        return Secret().eval()

    dag = torchorbit.convert(make(), X)
    expected = dag(X)
    dag.save(tmp_path / "secret")
    del dag
    gc.collect()
    loaded = torchorbit.load(tmp_path / "secret")
    assert_same(loaded(X), expected)
    known = {*LEAF_MODULES.values()}
    assert all(
        type(module) in known or type(module).__module__.startswith("torchorbit.") for module in loaded.modules()
    )
    document = json.loads((tmp_path / "secret" / "graph.json").read_text())
    assert isinstance(document, dict)
    assert not list((tmp_path / "secret").glob("*.p*"))


def test_torch_dag_one_way_to_write_an_operation():
    forms = [
        lambda x, y: x + y,
        lambda x, y: torch.add(x, y),
        lambda x, y: x.clone().add_(y),
        lambda x, y: operator.add(x, y),
    ]
    operators = []
    for form in forms:
        dag = torchorbit.convert(Computes(form), (X, X))
        operators.append([v.operator for v in dag.vertices if isinstance(v, OperatorVertex)][-1])
    assert operators == ["add"] * 4


def test_torch_dag_no_python_operations():
    def forward(x):
        batch, channels, height, width = x.shape
        return x.reshape(batch, channels * height // 2, 2 * width)

    dag = torchorbit.convert(Computes(forward), X)
    assert [type(vertex).__name__ for vertex in dag.vertices] == ["InputVertex", "OperatorVertex"]
    assert dag.vertices[1].operator == "reshape"
    taller = torch.randn(2, 3, 16, 8)
    assert_same(dag(taller), forward(taller))


def test_torch_dag_what_cannot_be_traced():
    """Control flow on sizes just runs; what a graph cannot hold is said, block by block."""

    class Pads(nn.Module):
        def forward(self, x):
            if x.shape[-1] % 4:
                x = F.pad(x, (0, 4 - x.shape[-1] % 4))
            return torch.stack([x.relu() for _ in range(x.shape[1])]).mean(0)

    with pytest.raises(TraceError):
        symbolic_trace(Pads())
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Pads(), nn.Conv2d(8, 2, 1)).eval()
    dag = torchorbit.convert(model, X)
    assert_same(dag(X), model(X))
    explained = torchorbit.explain(nn.Sequential(nn.Conv2d(3, 8, 1), Doubled()).eval(), X)
    assert "Double" in str(explained)


def test_torch_dag_vision_transformers():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    images = torch.randn(1, 3, 32, 32)
    dag = torchorbit.convert(model, images)
    half = torchorbit.prune(dag, flops=0.5)
    assert torchorbit.flops(half).total <= 0.5 * torchorbit.flops(dag).total
    assert half(images).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "gflops", "million"),
    [("fbnetv3_g", 2.14, 16.6), ("fbnetv3_d", 1.04, 10.3), ("fbnetv3_b", 0.845, 8.6), ("convnextv2_nano", 4.91, 15.6)],
)
def test_torch_dag_flops_and_kmapp(name, gflops, million):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    count = torchorbit.flops(model, (1, 3, 224, 224))
    assert count.total / 1e9 == pytest.approx(gflops, abs=0.006)
    assert count.kmapp == pytest.approx(count.total / (224 * 224 * 1000))
    assert parameters(model) / 1e6 == pytest.approx(million, abs=0.06)


@pytest.mark.parametrize("gflops", [2.64, 1.68, 0.93])
def test_torch_dag_published_sizes(gflops):
    """The FLOPs of the pruned checkpoints of convnextv2_nano: any of them is a target."""
    with torch.device("meta"):
        model = timm.create_model("convnextv2_nano").eval()
    dag = torchorbit.convert(model, torch.empty(1, 3, 224, 224, device="meta"))
    pruned = torchorbit.prune(dag, flops=gflops / 4.91, criterion="random")
    assert torchorbit.flops(pruned).total / 1e9 == pytest.approx(gflops, rel=0.01)


def test_torch_dag_tables():
    """Every line was swept, and what is in one is what comes out."""
    lines = (ROOT / "results" / "channel_pruning_supported_models.md").read_text().splitlines()
    rows = {cells[0]: cells for line in lines if len(cells := [c.strip() for c in line.strip("|").split("|")]) == 8}
    header = rows.pop("model")
    assert len([name for name in rows if not name.startswith(":")]) >= 1371
    with torch.device("meta"):
        model = timm.create_model("mobilenetv3_small_050").eval()
    dag = torchorbit.convert(model, torch.empty(1, 3, 224, 224, device="meta"))
    row = dict(zip(header, rows["mobilenetv3_small_050"], strict=True))
    orbits = torchorbit.find_orbits(dag)
    assert float(row["proportion"].rstrip("%")) == pytest.approx(100 * orbits.prunable_proportion, abs=0.01)
    assert (int(row["orbits"]), int(row["units"])) == (len(orbits), orbits.units)
    listed = (ROOT / "results" / "supported_models.md").read_text()
    assert all(f"| {name} " in listed for name in ("resnet18", "densenet121", "inception_v3"))
    coverage = (ROOT / "results" / "coverage.md").read_text()
    assert re.search(r"converted\s+\|\s+1371 \|", coverage)
    assert re.search(r"channel prunable\s+\|\s+1371 \|", coverage)


def test_torch_dag_fine_tuning():
    dag = torchorbit.prune(graph(8, 6, norm=True), ratio=0.5).train()
    optimizer = torch.optim.SGD(dag.parameters(), 0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        value = loss(dag(LOADER[0][0]), LOADER[0])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]


def test_torch_dag_checkpoints(tmp_path):
    """A pruned model is published with its figures, to a folder here, and pulled without its code."""
    dag = torchorbit.prune(graph(8, 6), flops=0.5)
    dag.push_to_hub("lab/half", hub=tmp_path, name="half")
    again = torchorbit.from_pretrained("lab/half", hub=tmp_path)
    assert_same(again(X), dag(X))
    assert again.manifest.after.gflops < 0.55 * again.manifest.before.gflops
    (tmp_path / "other").mkdir()
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other" / "model.pt")
    with pytest.raises(torchorbit.CheckpointError):
        torchorbit.load(tmp_path / "other")


def test_torch_dag_branches_go():
    """A residual branch without channels is gone; what it added stays as a constant."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.last = (nn.Conv2d(n, m, 1) for n, m in ((3, 8), (8, 6), (6, 8), (8, 2)))

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.b(self.a(x).relu()))

    model = Residual().eval()
    dag = torchorbit.convert(model, X)
    (orbit,) = torchorbit.find_orbits(dag).of_tensor("a.weight")
    smaller = torchorbit.remove_channels(dag, {orbit: range(orbit.width)}, allow_empty=True)
    assert not {vertex.target for vertex in smaller.vertices if isinstance(vertex, ModuleVertex)} & {"a", "b"}
    assert_same(smaller(X), model.last(model.first(X) + model.b.bias[:, None, None]))
