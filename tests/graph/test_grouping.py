"""Vertices of a graph are put into a block of their own, and it stays a graph like any other."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_equal, assert_same, reloaded
from torchorbit.graph.dag import Container

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_is_the_same(dag, before, parameters):
    """It computes the same, with the same parameters, also saved and loaded, and in one level."""
    assert_equal(dag(X), before)
    assert sorted(map(id, dag.parameters())) == sorted(map(id, parameters))
    assert_equal(reloaded(dag)(X), before)
    assert_equal(dag.flatten()(X), before)
    orbits = torchorbit.find_orbits(dag)
    removed = {orbit: [0] for orbit in orbits}
    assert torchorbit.verify_removal(dag.double(), torchorbit.remove_channels(dag, removed), removed) < 1e-9


def test_the_stem_of_a_timm_model():
    model = timm.create_model("resnet10t", num_classes=4).eval()
    dag = torchorbit.convert(model, X)
    before, parameters = dag(X), list(dag.parameters())
    names = [vertex.name for vertex in dag.vertices]
    stem = names[1 : names.index(next(name for name in names if name.startswith("layer1")))]
    assert torchorbit.edit.group(dag, stem, "stem") == "stem"
    block = dag.get_submodule("stem")
    assert isinstance(block, torchorbit.DagModule)
    assert_same(block(X), model.maxpool(model.act1(model.bn1(model.conv1(X)))))
    assert {key.partition(".")[0] for key in dag.state_dict()} == {"stem", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert [name for name, _ in dag.named_children()].count("conv1") == 0
    assert_is_the_same(dag, before, parameters)


def test_a_part_of_a_block():
    model = timm.create_model("resnet10t", num_classes=4).eval()
    dag = torchorbit.convert(model, X)
    before, parameters = dag(X), list(dag.parameters())
    prefix = next(path for path, v in dag.all_vertices() if getattr(v, "target", "") == "conv2").rpartition("/")[0]
    inner = [
        path
        for path, v in dag.all_vertices()
        if getattr(v, "target", "") in ("conv2", "bn2") and path.startswith(prefix)
    ]
    assert torchorbit.edit.group(dag, inner, "second") == f"{prefix}/second"
    assert_is_the_same(dag, before, parameters)


def branches(m, x):
    y = m.a(x)
    z = F.relu(y) * m.scale
    w = m.b(z)
    return y + w, F.dropout(z.mean(1), 0.5, m.training), w.sum()


def model_of_branches():
    torch.manual_seed(0)
    scale = nn.Parameter(torch.rand(4, 1, 1) + 1)
    return Computes(branches, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), scale=scale).eval()


def test_several_results_and_a_parameter_of_its_own():
    dag = torchorbit.convert(model_of_branches(), X)
    before, parameters = dag(X), list(dag.parameters())
    inside = [
        v.name for v in dag.vertices if getattr(v, "operator", "") in ("relu", "mul") or getattr(v, "target", "") == "b"
    ]
    torchorbit.edit.group(dag, inside, "gate")
    block = dag.get_submodule("gate")
    assert len(block(torch.randn(2, 4, 5, 5))) == 2
    assert set(dag.state_dict()) == {"a.weight", "a.bias", "gate.b.weight", "gate.b.bias", "gate.scale"}
    assert_is_the_same(dag, before, parameters)


def test_what_depends_on_the_mode_still_does():
    dag = torchorbit.convert(model_of_branches(), X)
    drops = [v.name for v in dag.vertices if getattr(v, "operator", "") == "dropout"]
    torchorbit.edit.group(dag, drops, "drops")
    assert_equal(dag(X), dag(X))
    assert not torch.equal(dag.train()(X)[1], dag(X)[1])


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        before = self.calls * 1
        self.calls.add_(1)
        return self.conv(x).relu() * self.calls + before


def test_a_buffer_is_written_when_it_was():
    dag = torchorbit.convert(Counts().eval(), X)
    with pytest.raises(ValueError, match="'assign' would write 'calls'"):
        torchorbit.edit.group(dag, ["mul", "add_1"], "late")  # the first reading would come behind the writing
    torchorbit.edit.group(dag, ["mul", "add", "assign", "conv"], "start")
    again = torchorbit.convert(Counts().eval(), X)
    again.load_state_dict({key.removeprefix("start."): value for key, value in dag.state_dict().items()})
    for _ in range(3):
        assert_same(dag(X), again(X))


def test_what_others_use_as_well_stays_where_it_is_too():
    shared = nn.Conv2d(3, 3, 1)
    model = Computes(lambda m, x: m.shared(F.relu(m.shared(x)) + 1), shared=shared).eval()
    dag = torchorbit.convert(model, X)
    before = dag(X)
    first = [v.name for v in dag.vertices[1:3]]
    torchorbit.edit.group(dag, first, "head")
    assert dag.get_submodule("head.shared") is dag.get_submodule("shared") is shared
    assert_equal(dag(X), before)
    assert_equal(reloaded(dag)(X), before)


def test_no_empty_containers_are_left():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1)).eval()
    dag = torchorbit.convert(model, X).flatten()
    before, parameters = dag(X), list(dag.parameters())
    torchorbit.edit.group(dag, [v.name for v in dag.vertices[1:3]], "front")
    assert list(dag.state_dict()) == ["1.weight", "1.bias", "front.0.0.weight", "front.0.0.bias"]
    assert not any(isinstance(child, Container) for child in dag.children())
    assert_is_the_same(dag, before, parameters)


@pytest.mark.parametrize(
    ("vertices", "name", "message"),
    [
        ([], "front", "no vertices are given"),
        (["relu", "nothing"], "front", "there is no vertex 'nothing'"),
        (["a", "b"], "front", "takes what 'mul' gives, which takes what the others give"),
        (["input_0"], "front", "is an input"),
        (["relu", "mul"], "a", "name='a' is taken"),
        (["relu", "mul"], "", "name='' is taken there, empty"),
        (["relu", "mul"], "a.b", "holds a dot"),
    ],
)
def test_what_is_no_group_changes_nothing(vertices, name, message):
    dag = torchorbit.convert(model_of_branches(), X)
    code, keys, before = dag.code, list(dag.state_dict()), dag(X)
    with pytest.raises(ValueError, match=message):
        torchorbit.edit.group(dag, vertices, name)
    assert (dag.code, list(dag.state_dict())) == (code, keys)
    assert_equal(dag(X), before)


def test_vertices_of_several_blocks_are_refused():
    dag = torchorbit.convert(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1)).eval(), X)
    paths = [path for path, vertex in dag.all_vertices() if getattr(vertex, "leaf", "") == "Conv2d"]
    with pytest.raises(ValueError, match="of several blocks"):
        torchorbit.edit.group(dag, paths, "front")
