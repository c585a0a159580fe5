"""Layers of a graph are replaced and inserted, and it stays a graph like any other."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_equal, assert_same, reloaded
from torchorbit.graph.vertices import OperatorVertex

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def with_other_layers(model, kind, make):
    """The same edit of a copy of the source, by hand."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, make(child))
    return model


@pytest.mark.parametrize(
    ("name", "kind", "which"),
    [
        ("resnet18", nn.ReLU, nn.ReLU),
        ("efficientnet_lite0", nn.ReLU6, nn.ReLU6),
        ("convnext_atto", timm.layers.GELU, "gelu"),  # a module around a function, which is an operator
    ],
)
def test_all_activations_of_a_timm_model_are_switched(name, kind, which):
    model = timm.create_model(name, scriptable=False).eval()
    dag = torchorbit.convert(model, X)
    changed = torchorbit.edit.replace_layers(dag, which, lambda old: nn.Hardswish())
    expected = with_other_layers(model, kind, lambda old: nn.Hardswish())
    assert not any(isinstance(module, kind) for module in dag.modules())
    assert len(changed) >= sum(isinstance(module, kind) for module in model.modules()) > 0
    assert_same(dag(X), expected(X))
    assert_equal(reloaded(dag)(X), dag(X))
    assert any(isinstance(module, kind) for module in model.modules())
    half = torchorbit.prune(dag, flops=0.5)
    assert torchorbit.verify_removal(dag.double(), dag, {}) < 1e-9
    assert torchorbit.flops(half).total < 0.51 * torchorbit.flops(dag).total


def test_activations_without_a_layer_are_switched_by_the_name_of_the_operator():
    def forward(m, x):
        return m.last(F.relu(m.first(x)).clamp(max=1).relu())

    model = Computes(forward, first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1)).eval()
    dag = torchorbit.convert(model, X)
    seen = []
    changed = torchorbit.edit.replace_layers(dag, "relu", lambda vertex: seen.append(vertex) or nn.SiLU())
    assert all(isinstance(vertex, OperatorVertex) for vertex in seen)
    assert [vertex.name for vertex in seen] == list(changed)
    assert_same(dag(X), model.last(F.silu(F.silu(model.first(X)).clamp(max=1))))
    assert_equal(reloaded(dag)(X), dag(X))


def test_a_layer_that_is_used_twice_is_replaced_by_one():
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), act, nn.Sequential(nn.Conv2d(4, 4, 1), act)).eval()
    dag = torchorbit.convert(model, X)
    changed = torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: nn.PReLU(init=0.3))
    assert len(changed) == 2
    assert dag.get_submodule("1") is dag.get_submodule("2.1")
    assert_same(dag(X), F.leaky_relu(model[2][0](F.leaky_relu(model[0](X), 0.3)), 0.3))


def test_what_is_left_as_it_is_leaves_orbits_as_they_are():
    dag = torchorbit.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), X)
    orbits = torchorbit.find_orbits(dag)
    assert torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: None) == ()
    torchorbit.remove_channels(dag, {orbits[0]: [0]})
    torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: nn.GELU())
    with pytest.raises(ValueError, match="call find_orbits again"):
        torchorbit.remove_channels(dag, {orbits[0]: [0]})


def test_other_widths_are_pruned_as_they_are():
    dag = torchorbit.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), X)
    wider = {"0": nn.Conv2d(3, 9, 1), "2": nn.Conv2d(9, 2, 1)}
    paths = {id(dag.get_submodule(path)): path for path in wider}
    torchorbit.edit.replace_layers(dag, nn.Conv2d, lambda old: wider[paths[id(old)]])
    assert [orbit.width for orbit in torchorbit.find_orbits(dag)] == [9]
    assert_same(dag(X), wider["2"](wider["0"](X).relu()))


def normalized_everywhere(dag):
    for path, vertex in list(dag.all_vertices()):
        if getattr(vertex, "leaf", "") == "Conv2d" and not torchorbit.edit.users(dag, path, "BatchNorm2d"):
            convolution = dag.get_submodule(torchorbit.inspect.module_of_vertex(dag, path))
            torchorbit.edit.insert_after(dag, path, nn.BatchNorm2d(convolution.out_channels))


def test_a_batch_norm_behind_every_convolution_that_has_none():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), block, nn.Conv2d(4, 5, 1)).train()
    dag = torchorbit.convert(model, X)
    normalized_everywhere(dag)
    kinds = [v.leaf for _, v in dag.all_vertices() if getattr(v, "leaf", "") in ("Conv2d", "BatchNorm2d")]
    assert kinds == ["Conv2d", "BatchNorm2d"] * 3
    norm = nn.BatchNorm2d(4), nn.BatchNorm2d(5)
    expected = nn.Sequential(*model[:2], model[2][0], norm[0], model[2][1], model[3], norm[1])
    assert_same(dag(X), expected(X))
    assert_equal(reloaded(dag)(X), dag(X))
    before = [path for path, _ in dag.all_vertices()]
    normalized_everywhere(dag)
    assert [path for path, _ in dag.all_vertices()] == before
    # The new channels live and die with those of the convolution.
    plan = torchorbit.plan(dag, "2.0", [1, 3])
    assert any("batchnorm2d.weight" in cut.tensor for cut in plan.cuts)
    dag.eval()
    orbits = torchorbit.find_orbits(dag)
    removed = {orbit: [0] for orbit in orbits}
    assert torchorbit.verify_removal(dag.double(), torchorbit.remove_channels(dag, removed), removed) < 1e-12


def test_a_layer_behind_the_last_vertex_is_in_the_output():
    dag = torchorbit.convert(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), X)
    before = dag(X)
    path = torchorbit.edit.insert_after(dag, dag.vertices[-1].name, nn.Dropout(0.5), name="drop")
    assert dag.get_submodule("drop").training is False
    assert_equal(dag(X), before)
    assert torchorbit.edit.users(dag, dag.vertices[1].name) == (path,)
    dag.train()
    assert (dag(X) == 0).float().mean() > 0.3


def test_a_block_that_is_called_twice_gets_it_in_both_calls():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    dag = torchorbit.convert(Computes(lambda m, x: m.block(m.block(x)), block=block).eval(), X)
    inner = next(path for path, vertex in dag.all_vertices() if getattr(vertex, "leaf", "") == "Conv2d")
    torchorbit.edit.insert_after(dag, inner, nn.Tanh())
    once = nn.Sequential(block[0], nn.Tanh(), block[1])
    assert_same(dag(X), once(once(X)))


def test_an_edit_that_does_not_fit_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    dag = torchorbit.convert(model, X)
    code, keys, before = dag.code, list(dag.state_dict()), dag(X)
    with pytest.raises(ValueError, match="the edited graph does not run: vertex '_0_linear'"):
        torchorbit.edit.insert_after(dag, "_0", nn.Linear(5, 5))
    with pytest.raises(ValueError, match="does not run"):
        torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: nn.Conv2d(7, 7, 1))
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        torchorbit.edit.replace_layers(dag, nn.ReLU, lambda old: F.gelu)
    assert (dag.code, list(dag.state_dict())) == (code, keys)
    assert_equal(dag(X), before)


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (
            lambda dag: torchorbit.edit.insert_after(dag, "pol", nn.ReLU()),
            ValueError,
            "no vertex 'pol'; close to it: pool",
        ),
        (lambda dag: torchorbit.edit.insert_after(dag, "a/b", nn.ReLU()), ValueError, "there is no block 'a'"),
        (lambda dag: torchorbit.edit.insert_after(dag, "_0", nn.ReLU(), name="0"), ValueError, "name='0' is taken"),
        (lambda dag: torchorbit.edit.insert_after(dag, "_0", F.relu), TypeError, "expected an nn.Module"),
        (lambda dag: torchorbit.edit.insert_after(dag, "_0", None), TypeError, "expected an nn.Module"),
        (lambda dag: torchorbit.edit.insert_after(dag, "pool", nn.ReLU()), ValueError, "gives several tensors"),
        (lambda dag: torchorbit.edit.insert_after(nn.ReLU(), "_0", nn.ReLU()), TypeError, "expected a DagModule"),
        (lambda dag: torchorbit.edit.replace_layers(dag, 3, lambda old: old), TypeError, "iterable"),
        (
            lambda dag: torchorbit.edit.replace_layers(dag, [nn.ReLU, F.relu], lambda old: old),
            TypeError,
            "name of an operator",
        ),
        (
            lambda dag: torchorbit.edit.replace_layers(dag, "add", lambda old: nn.ReLU()),
            ValueError,
            "more than one tensor",
        ),
    ],
)
def test_what_is_no_edit(edit, error, message):
    pool = nn.MaxPool2d(2, return_indices=True)
    model = Computes(lambda m, x: (y := m.pool(getattr(m, "0")(x)))[0] + y[1], pool=pool)
    model.add_module("0", nn.Conv2d(3, 4, 1))
    dag = torchorbit.convert(model.eval(), X)
    assert [vertex.name for vertex in dag.vertices[1:3]] == ["_0", "pool"]
    before = dag.code
    with pytest.raises(error, match=message):
        edit(dag)
    assert dag.code == before
