"""Removing units: what is left, what is not touched, and what is refused."""

import copy
import dataclasses
from typing import NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import torchorbit
from harness.models import build_with_random_weights, input_size
from tests.models import Computes, assert_equal, assert_same, stir

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 12, 12)


def chain():
    return stir(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.GELU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
        )
    ).eval()  # fmt: skip


def graph(model=None, x=X):
    dag = torchorbit.convert(chain() if model is None else model, x)
    return dag, torchorbit.find_orbits(dag)


def run(model, x=X):
    model.eval()
    with torch.no_grad():
        return model(x)


def snapshot(dag):
    return (
        {name: (id(t), t.clone(), t.grad) for name, t in dag.named_parameters()},
        {name: t.clone() for name, t in dag.named_buffers()},
        dag.graph,
    )


def assert_untouched(dag, before):
    parameters, buffers, source = before
    now = dict(dag.named_parameters())
    assert list(now) == list(parameters)
    for name, (identity, value, grad) in parameters.items():
        assert id(now[name]) == identity
        assert torch.equal(now[name], value)
        assert now[name].grad is grad
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in dag.named_buffers())
    assert dag.graph is source


class Two(NamedTuple):
    """Two tensors."""

    flags: torch.Tensor
    numbers: torch.Tensor


# -- what is left


def test_is_the_model_that_one_would_have_written():
    """The smaller model put together by hand, without labels."""
    model = chain()
    dag, orbits = graph(copy.deepcopy(model))
    first, second = orbits
    pruned = torchorbit.remove_channels(dag, {first: [1, 4], second: [0, 3, 5]})
    a, b = [0, 2, 3, 5, 6, 7], [1, 2, 4]
    wanted = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.BatchNorm2d(3), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    state = model.state_dict()
    for norm, kept in ((1, a), (4, b)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = state[f"{norm}.{name}"][kept]
    state["0.weight"], state["0.bias"] = state["0.weight"][a], state["0.bias"][a]
    state["3.weight"], state["3.bias"] = state["3.weight"][b][:, a], state["3.bias"][b]
    state["8.weight"] = state["8.weight"].reshape(5, 6, 4)[:, b].reshape(5, 12)
    wanted.load_state_dict(state)
    assert_same(run(pruned), run(wanted))
    assert list(pruned.state_dict()) == list(state)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_heads_and_widths_together_are_what_one_would_have_written():
    torch.manual_seed(1)

    class Attention(nn.Module):
        def __init__(self, heads, inside, values):
            super().__init__()
            self.heads, self.inside = heads, inside
            self.q, self.k = nn.Linear(7, heads * inside), nn.Linear(7, heads * inside)
            self.v, self.proj = nn.Linear(7, heads * values), nn.Linear(heads * values, 4)
            self.scale = 6**-0.5

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))

    model, x = Attention(4, 6, 5).eval(), torch.randn(2, 9, 7)
    dag, orbits = graph(copy.deepcopy(model), x)
    widths = {orbit.width: orbit for orbit in orbits}
    assert sorted(widths) == [4, 5, 6]
    pruned = torchorbit.remove_channels(dag, {widths[4]: [1], widths[6]: [0, 5], widths[5]: [2]})

    wanted = Attention(3, 4, 4).eval()
    state = model.state_dict()
    for name, inside, kept in (("q", 6, [1, 2, 3, 4]), ("k", 6, [1, 2, 3, 4]), ("v", 5, [0, 1, 3, 4])):
        rows = [head * inside + place for head in (0, 2, 3) for place in kept]
        state[f"{name}.weight"], state[f"{name}.bias"] = state[f"{name}.weight"][rows], state[f"{name}.bias"][rows]
    state["proj.weight"] = state["proj.weight"][:, rows]
    wanted.load_state_dict(state)
    assert_same(run(pruned, x), run(wanted, x))


def test_removing_nothing_changes_nothing():
    dag, orbits = graph()
    for removed in ({}, dict.fromkeys(orbits, ()), {orbits[0]: []}):
        pruned = torchorbit.remove_channels(dag, removed)
        assert pruned is not dag
        assert_equal(run(pruned), run(dag))
        assert_equal(list(pruned.state_dict().values()), list(dag.state_dict().values()))


@pytest.mark.parametrize("name", ["test_vit", "test_maxvit", "test_nfnet", "test_efficientnet_evos"])
def test_removing_nothing_from_a_timm_model_changes_nothing(name):
    model = build_with_random_weights(name)
    x = torch.randn(1, *input_size(model))
    dag = torchorbit.convert(model, torch.empty(2, *input_size(model)))
    assert_equal(run(torchorbit.remove_channels(dag, {}), x), run(dag, x))


def test_order_of_units_and_kinds_of_integers_do_not_matter():
    dag, orbits = graph()
    outputs = [
        run(torchorbit.remove_channels(dag, {orbits[0]: units}))
        for units in ([1, 4, 6], [6, 1, 4], (1, 4, 6), torch.tensor([4, 6, 1]), {1, 4, 6}, iter([1, 4, 6]))
    ]
    for output in outputs[1:]:
        assert_equal(output, outputs[0])


def test_modules_say_what_they_are():
    dag, (first, second) = graph()
    pruned = torchorbit.remove_channels(dag, {first: [0], second: [0, 1]})
    conv, norm, last = (pruned.get_submodule(name) for name in ("3", "1", "8"))
    assert (conv.in_channels, conv.out_channels) == (7, 4)
    assert norm.num_features == 7
    assert (last.in_features, last.out_features) == (16, 5)
    assert "Conv2d(7, 4" in str(conv)


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (nn.GroupNorm(4, 8), {"num_channels": 4, "num_groups": 4}),
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), {"in_channels": 4, "out_channels": 8, "groups": 4}),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), {"in_channels": 6, "out_channels": 6, "groups": 6}),
        (nn.ConvTranspose2d(8, 8, 1), {"in_channels": 6, "out_channels": 8}),
        (nn.PReLU(8), {"num_parameters": 6}),
        (nn.InstanceNorm2d(8, affine=True), {"num_features": 6}),
        (nn.InstanceNorm2d(8), {"num_features": 6}),
        (nn.BatchNorm2d(8, affine=False, track_running_stats=False), {"num_features": 6}),
        (nn.GroupNorm(1, 8, affine=False), {"num_channels": 6, "num_groups": 1}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_beside_tensors(layer, shown):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 2, 1)).eval()
    dag, orbits = graph(model)
    orbit = orbits.of_tensor("0.weight")[0]  # channels; where there are groups as well, those are another orbit
    removed = {orbit: [0] if orbit.width < 4 else [0, 3]}
    pruned = torchorbit.remove_channels(dag, removed)
    assert {name: getattr(pruned.get_submodule("1"), name) for name in shown} == shown
    assert torchorbit.verify_removal(dag.double(), pruned.double(), removed, X.double()) < 1e-12


# -- what is not touched


def test_the_whole_graph_is_left_alone_and_shares_nothing():
    dag, orbits = graph()
    dag.train()
    run_output = dag(X).square().mean()
    run_output.backward()
    dag.eval()
    before = snapshot(dag)
    expected = run(dag)
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert_untouched(dag, before)
    grads = {name: p.grad.clone() for name, p in dag.named_parameters()}
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            tensor.zero_()
        for parameter in pruned.parameters():
            parameter.grad.zero_()
    assert_equal(run(dag), expected)
    assert all(torch.equal(p.grad, grads[name]) for name, p in dag.named_parameters())


@pytest.mark.parametrize("rnn", [nn.LSTM(6, 8, bidirectional=True), nn.GRU(6, 8, num_layers=2), nn.RNN(6, 8)])
def test_a_recurrent_layer_is_left_alone(rnn):
    """It keeps a list of its weights beside them, which its copy must not write to."""
    width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
    model = Computes(lambda m, x: m.head(m.rnn(m.stem(x))[0]), stem=nn.Linear(3, 6), rnn=rnn, head=nn.Linear(width, 4))
    dag, orbits = graph(stir(model).eval(), torch.randn(2, 5, 3))
    x = torch.randn(2, 5, 3)
    expected = run(dag, x)
    pruned = torchorbit.remove_channels(dag, {orbit: [0] for orbit in orbits})
    assert orbits
    assert_equal(run(dag, x), expected)
    assert [id(w) for w in dag.get_submodule("rnn")._flat_weights] == [
        id(w) for w in dag.get_submodule("rnn").parameters()
    ]
    twin = pruned.get_submodule("rnn")
    assert [id(w) for w in twin._flat_weights] == [id(w) for w in twin.parameters()]


def test_hooks_are_of_one_model_only():
    dag, orbits = graph()
    calls = []
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    pruned.get_submodule("0").register_forward_hook(lambda *args: calls.append(args))
    run(dag)
    assert not calls
    run(pruned)
    assert len(calls) == 1


def test_in_place_keeps_the_parameters():
    dag, orbits = graph()
    copied = torchorbit.remove_channels(dag, {orbits[0]: [1], orbits[1]: [0]})
    parameters = dict(dag.named_parameters())
    assert torchorbit.remove_channels(dag, {orbits[0]: [1], orbits[1]: [0]}, inplace=True) is dag
    assert {name: id(p) for name, p in dag.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert parameters["0.weight"].shape == (7, 3, 3, 3)
    assert_equal(run(dag), run(copied))
    assert isinstance(dag, torchorbit.DagModule)


def test_modes_and_frozen_parameters_are_kept():
    dag, orbits = graph()
    dag.train()
    dag.get_submodule("1").eval()
    dag.get_parameter("0.weight").requires_grad_(False)
    for inplace in (False, True):
        pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]}, inplace=inplace)
        assert pruned.training
        assert not pruned.get_submodule("1").training
        assert not pruned.get_parameter("0.weight").requires_grad
        assert pruned.get_parameter("3.weight").requires_grad


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_are_cut(inplace):
    dag, orbits = graph()
    dag(X).square().mean().backward()
    grads = {name: p.grad.clone() for name, p in dag.named_parameters()}
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1, 2]}, inplace=inplace)
    kept = [0, 3, 4, 5, 6, 7]
    assert torch.equal(pruned.get_parameter("0.weight").grad, grads["0.weight"][kept])
    assert torch.equal(pruned.get_parameter("3.weight").grad, grads["3.weight"][:, kept])
    assert torch.equal(pruned.get_parameter("8.weight").grad, grads["8.weight"])


def test_dtypes_and_memory_formats():
    model = chain().double()
    dag, orbits = graph(model, X.double())
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert run(pruned, X.double()).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in pruned.parameters())


def test_what_was_cast_after_its_orbits_were_found():
    dag, orbits = graph()
    dag.double()
    dag.get_submodule("1").running_mean.fill_(7)
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert {tensor.dtype for tensor in pruned.state_dict().values()} == {torch.float64, torch.int64}
    assert pruned.get_submodule("1").running_mean.tolist() == [7] * 7
    assert run(pruned, X.double()).dtype == torch.float64


def test_on_meta():
    with torch.device("meta"):
        model = chain_without_weights()
    dag, orbits = graph(model, X.to("meta"))
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert all(p.is_meta for p in pruned.parameters())
    assert pruned(X.to("meta")).shape == (2, 4, 12, 12)


def chain_without_weights():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def test_tied_parameters_stay_tied():
    model = Computes(
        lambda self, x: F.linear(F.relu(self.up(x)), self.up.weight.t()) + self.again(x),
        up=nn.Linear(6, 9),
        again=nn.Linear(6, 6),
    )
    model.again.bias = nn.Parameter(torch.randn(6))
    model.eval()
    x = torch.randn(2, 6)
    dag, orbits = graph(model, x)
    (orbit,) = orbits.of_tensor("up.weight")
    pruned = torchorbit.remove_channels(dag, {orbit: [2, 5]})
    assert pruned.get_parameter("up.weight").shape == (7, 6)
    assert torchorbit.verify_removal(dag.double(), pruned.double(), {orbit: [2, 5]}, x.double()) < 1e-12


def test_a_shared_module_stays_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
            self.same = self.conv

        def forward(self, x):
            return self.head(self.same(F.relu(self.conv(self.stem(x)))))

    dag, (orbit,) = graph(Twice().eval())
    for inplace in (False, True):
        pruned = torchorbit.remove_channels(dag, {orbit: [2, 5]}, inplace=inplace)
        assert pruned.get_parameter("same.weight") is pruned.get_parameter("conv.weight")
        assert pruned.get_parameter("conv.weight").shape[:2] == (6, 6)


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (nn.LayerNorm(12, elementwise_affine=False), ((12,), (10,))),
        (nn.RMSNorm(12, elementwise_affine=False), ((12,), (10,))),
        (nn.GroupNorm(4, 12, affine=False), (4, 3)),
        (nn.Unflatten(2, (4, 3)), ((4, 3), (3, 3))),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_calls_of_a_layer_without_weights_are_cut_apart(layer, widths, inplace):
    def forward(self, x):
        if isinstance(self.norm, nn.GroupNorm):
            a, b = self.norm(self.a(x).mT).mT, self.norm(self.b(x).mT).mT
        else:
            a, b = self.norm(self.a(x)), self.norm(self.b(x))
        return self.c(a.flatten(2)), self.d(b.flatten(2))

    model = Computes(
        forward, a=nn.Linear(12, 12), b=nn.Linear(12, 12), c=nn.Linear(12, 3), d=nn.Linear(12, 3), norm=layer
    ).eval()  # fmt: skip
    x = torch.randn(2, 5, 12)
    dag, orbits = graph(model, x)
    orbit = max(orbits.of_tensor("b.weight"), key=lambda orbit: orbit.reading)
    removed = {orbit: [0] if orbit.reading else [0, 7]}
    whole = copy.deepcopy(dag)
    pruned = torchorbit.remove_channels(dag, removed, inplace=inplace)
    assert [tensor.shape for tensor in run(pruned, x)] == [(2, 5, 3)] * 2
    assert list(pruned.state_dict()) == list(whole.state_dict())
    found = [m for m in pruned.modules() if type(m) is type(layer)]
    attribute = {nn.GroupNorm: "num_groups", nn.Unflatten: "unflattened_size"}.get(type(layer), "normalized_shape")
    assert [tuple(n) if isinstance(n := getattr(m, attribute), tuple) else n for m in found] == list(widths)
    if not inplace:
        assert torchorbit.verify_removal(dag.double(), pruned.double(), removed, x.double()) < 1e-12
    again = torchorbit.find_orbits(pruned.double())
    smaller = torchorbit.remove_channels(pruned, {orbit: [0] for orbit in again})
    assert torchorbit.verify_removal(pruned, smaller, {orbit: [0] for orbit in again}, x.double()) < 1e-12


def test_hooks_of_a_graph_stay_when_it_is_cut_in_place():
    dag, orbits = graph()
    calls = []
    dag.register_forward_hook(lambda *args: calls.append("after"))
    dag.register_forward_pre_hook(lambda *args: calls.append("before"))
    dag.register_load_state_dict_post_hook(lambda *args: calls.append("loaded"))
    dag.note = "mine"
    torchorbit.remove_channels(dag, {orbits[0]: [1]}, inplace=True)
    run(dag)
    dag.load_state_dict(dag.state_dict())
    assert calls == ["before", "after", "loaded"]
    assert dag.note == "mine"


# -- what is refused


def test_what_is_no_optimizer_is_a_type_error_before_anything_changes():
    dag, orbits = graph()
    before = snapshot(dag)
    with pytest.raises(TypeError, match="optimizer is a str"):
        torchorbit.remove_channels(dag, {orbits[0]: [1]}, inplace=True, optimizer="x")
    with pytest.raises(TypeError, match="optimizer is a str"):
        torchorbit.prune(dag, ratio=0.5, inplace=True, optimizer="x")
    assert_untouched(dag, before)


def wrong_removals():
    return {
        "too large": (lambda orbits: {orbits[0]: [0], orbits[1]: [6]}, ValueError, "units 0 to 5"),
        "negative": (lambda orbits: {orbits[0]: [-1]}, ValueError, "units 0 to 7"),
        "twice": (lambda orbits: {orbits[0]: [2, 3, 2]}, ValueError, "twice"),
        "all": (lambda orbits: {orbits[0]: range(8)}, ValueError, "all of its 8 units"),
        "all of the last": (lambda orbits: {orbits[0]: [1], orbits[1]: range(6)}, ValueError, "all of its 6 units"),
        "another graph": (lambda orbits: {graph()[1][0]: [0]}, ValueError, "another graph"),
        "both": (lambda orbits: {orbits[0]: [0], graph()[1][0]: [0]}, ValueError, "another graph"),
        "no orbit": (lambda orbits: {"0.weight": [0]}, TypeError, "no Orbit"),
        "a number": (lambda orbits: {0: [0]}, TypeError, "no Orbit"),
        "no integers": (lambda orbits: {orbits[0]: [0.5]}, TypeError, "integers"),
        "a mask": (lambda orbits: {orbits[0]: [True] * 8}, TypeError, "integers"),
        "two calls": (
            lambda orbits: {orbits[0]: [0], torchorbit.find_orbits(orbits[0].orbits.model.dag)[1]: [0]},
            ValueError,
            "two calls",
        ),
    }


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("case", wrong_removals())
def test_a_wrong_removal_changes_nothing(case, inplace):
    removal, error, message = wrong_removals()[case]
    dag, orbits = graph()
    optimizer = torch.optim.SGD(dag.parameters(), lr=0.1)
    before = snapshot(dag)
    with pytest.raises(error, match=message):
        torchorbit.remove_channels(dag, removal(orbits), inplace=inplace, optimizer=optimizer)
    assert_untouched(dag, before)
    assert optimizer.param_groups[0]["params"] == list(dag.parameters())


def test_orbits_found_before_pruning_are_refused_after_it():
    dag, orbits = graph()
    torchorbit.remove_channels(dag, {orbits[0]: [1]}, inplace=True)
    before = snapshot(dag)
    with pytest.raises(ValueError, match="before this graph was pruned"):
        torchorbit.remove_channels(dag, {orbits[0]: [1]}, inplace=True)
    assert_untouched(dag, before)
    again = torchorbit.find_orbits(dag)
    assert again[0].width == 7
    torchorbit.remove_channels(dag, {again[0]: [1]}, inplace=True)
    assert dag.get_parameter("0.weight").shape[0] == 6


def test_layers_that_were_replaced_after_orbits_were_found():
    dag, orbits = graph()
    dag._modules["0"] = nn.Conv2d(3, 8, 3, padding=1)
    removed = {orbits[0]: [1, 4]}
    pruned = torchorbit.remove_channels(dag, removed)
    assert pruned.get_parameter("0.weight").shape[0] == 6
    assert torchorbit.verify_removal(dag.double(), pruned.double(), removed) < 1e-12
    dag._modules["8"] = nn.Linear(24, 50)
    with pytest.raises(ValueError, match=r"'8.weight' is of shape \(50, 24\), and was of \(5, 24\)"):
        torchorbit.remove_channels(dag, removed)


def test_a_block_is_refused():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 2, 1)).eval()
    dag = torchorbit.convert(model, X)
    block = next(child for child in dag.children() if isinstance(child, torchorbit.DagModule))
    with pytest.raises(ValueError, match="block of a graph"):
        torchorbit.find_orbits(block)
    with pytest.raises(ValueError, match="block of a graph"):
        torchorbit.flops(block)


# -- the proof


def test_the_proof_finds_a_wrong_channel():
    dag, orbits = graph()
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert torchorbit.verify_removal(dag.double(), pruned.double(), {orbits[0]: [1]}) < 1e-12
    assert torchorbit.verify_removal(dag, pruned, {orbits[0]: [2]}) > 1e-2


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_mean", "3.weight", "8.weight"])
def test_the_proof_finds_a_wrong_number(name):
    dag, orbits = graph()
    removed = {orbits[0]: [1], orbits[1]: [4]}
    pruned = torchorbit.remove_channels(dag, removed)
    with torch.no_grad():
        tensor = pruned.state_dict()[name]
        tensor.copy_(tensor.flip(0))
    assert torchorbit.verify_removal(dag, pruned, removed) > 1e-3


def test_the_proof_finds_what_is_not_finite():
    dag, orbits = graph()
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    pruned.state_dict()["8.bias"][2] = torch.nan
    assert torchorbit.verify_removal(dag, pruned, {orbits[0]: [1]}) == torch.inf


def test_the_proof_finds_a_fault_in_the_graph_that_is_cut(monkeypatch):
    """Taking query, key and value apart comes before both the cut and the masked run."""
    model = build_with_random_weights("test_vit").double()
    size = input_size(model)

    def proof():
        dag = torchorbit.convert(model, torch.empty(2, *size, dtype=torch.float64))
        orbits = torchorbit.find_orbits(dag)
        removed = {orbits[0]: [0]}
        return torchorbit.verify_removal(dag, torchorbit.remove_channels(dag, removed), removed)

    assert proof() < 1e-12
    separated = torchorbit.graph.one_level.separated

    def wrong(given):
        apart = separated(given)
        swapped = [
            dataclasses.replace(v, args={**v.args, "query": v.args["key"], "key": v.args["query"]})
            if getattr(v, "operator", "") == "scaled_dot_product_attention"
            else v
            for v in apart.vertices
        ]
        return dataclasses.replace(apart, vertices=tuple(swapped))

    monkeypatch.setattr("torchorbit.graph.one_level.separated", wrong)
    assert proof() > 1e-2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(5, 6)

    def forward(self, x, scale, y):
        return self.b(self.a(x) * scale + self.c(y))


def test_the_proof_binds_inputs_as_the_model_does():
    x, y = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    dag, orbits = graph(Scaled().double(), (x, 2.0, y))
    removed = {orbits[0]: [1, 2]}
    pruned = torchorbit.remove_channels(dag, removed)
    for inputs in ((x, 2.0, y), {"x": x, "scale": 2.0, "y": y}, None):
        assert torchorbit.verify_removal(dag, pruned, removed, inputs) < 1e-12
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        torchorbit.verify_removal(dag, pruned, removed, (x, 2.0))


def test_the_proof_leaves_the_mode_of_every_layer_alone():
    dag, orbits = graph()
    dag.train()
    dag.get_submodule("1").eval()
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    before = [[m.training for m in model.modules()] for model in (dag, pruned)]
    torchorbit.verify_removal(dag, pruned, {orbits[0]: [1]})
    assert [[m.training for m in model.modules()] for model in (dag, pruned)] == before


INTEGERS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda self, i: self.b(self.e(i)), INTEGERS),
        (lambda self, i, *, x, flag=False: self.b(self.e(i) + self.a(x)), {"i": INTEGERS, "x": torch.randn(2, 3, 4)}),
        (
            lambda self, *, x, flag, k: self.b(self.a(x) if flag else self.a(x).where(k, 0.5)),
            {"x": torch.randn(2, 3, 4), "flag": False, "k": torch.ones(2, 3, 1, dtype=torch.bool)},
        ),
        (
            lambda self, given, scale=3: self.b(self.a(given["a"][0]) * scale + self.e(given["b"]["c"])),
            ({"a": [torch.randn(2, 3, 4)], "b": {"c": INTEGERS}},),
        ),
        (lambda self, x: self.b(self.a(x)) > 0, torch.randn(2, 3, 4)),
        (lambda self, x: Two(self.b(self.a(x)) > 0, self.b(self.a(x))), torch.randn(2, 3, 4)),
    ],
    ids=["integers", "keywords", "flags and masks", "containers", "flags returned", "a named tuple returned"],
)
def test_the_proof_makes_inputs_of_every_kind(forward, inputs):
    model = Computes(forward, e=nn.Embedding(10, 6), a=nn.Linear(4, 6), b=nn.Linear(6, 3)).double()
    inputs = pytree.tree_map(lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t, inputs)
    dag, orbits = graph(model, inputs)
    removed = {orbits[0]: [1, 2]}
    pruned = torchorbit.remove_channels(dag, removed)
    for given in (inputs, None):
        assert torchorbit.verify_removal(dag, pruned, removed, given) < 1e-12
    with torch.no_grad():
        pruned.get_parameter("b.bias").add_(100)
    assert torchorbit.verify_removal(dag, pruned, removed) > 0.1


@pytest.mark.parametrize("order", [float("-inf"), float("inf"), -1, 0, 1, 3])
def test_the_proof_knows_every_norm(order):
    def forward(self, x):
        y = self.a(x)
        return self.b(y), torch.linalg.vector_norm(y, order, dim=1), torch.norm(y, p=order, dim=-1, keepdim=True)

    dag, orbits = graph(Computes(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)), torch.randn(2, 4))
    removed = {orbits[0]: [1, 2]}
    assert torchorbit.verify_removal(dag.double(), torchorbit.remove_channels(dag, removed), removed) < 1e-12


def test_the_proof_takes_any_type_and_nothing_removed():
    dag, orbits = graph()
    assert torchorbit.verify_removal(dag, torchorbit.remove_channels(dag, {}), {}) < 1e-6
    dag.double()
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    assert torchorbit.verify_removal(dag, pruned, {orbits[0]: [1]}) < 1e-12
    with pytest.raises(ValueError, match=r"the pruned graph is float32 .* the whole graph.s is float64"):
        torchorbit.verify_removal(dag, _Rounded(pruned), {orbits[0]: [1]})
    with pytest.raises(ValueError, match="meta device"):
        torchorbit.verify_removal(dag.to("meta"), pruned, {orbits[0]: [1]})


class _Rounded(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).float()


@pytest.mark.parametrize("removed", [lambda o: [o], lambda o: {o: 3}, lambda o: o])
def test_what_is_no_removal_is_a_type_error(removed):
    dag, orbits = graph()
    with pytest.raises(TypeError, match=r"expected a dict|expected an iterable"):
        torchorbit.remove_channels(dag, removed(orbits[0]))


def test_what_is_no_graph_is_a_type_error():
    with pytest.raises(TypeError, match=r"Sequential, expected a DagModule; torchorbit\.convert makes one"):
        torchorbit.find_orbits(chain())


def test_the_proof_leaves_modes_alone_and_takes_inputs():
    dag, orbits = graph()
    pruned = torchorbit.remove_channels(dag, {orbits[0]: [1]})
    dag.train()
    pruned.eval()
    dag.double(), pruned.double()
    for inputs in (X.double(), (X.double(),), {"input": X.double()}, None):
        assert torchorbit.verify_removal(dag, pruned, {orbits[0]: [1]}, inputs) < 1e-12
    assert dag.training
    assert not pruned.training
    with pytest.raises(ValueError, match="not finite"):
        torchorbit.verify_removal(dag, pruned, {orbits[0]: [1]}, X.double() * torch.inf)


# -- what can be done with it


@pytest.fixture(params=["test_vit", "test_efficientnet", "test_maxvit", "test_nfnet"])
def pruned(request):
    model = build_with_random_weights(request.param)
    size = input_size(model)
    dag = torchorbit.convert(model, torch.empty(2, *size))
    return torchorbit.prune(dag, ratio=0.5), size


def test_trains(pruned):
    model, size = pruned
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(3, *size)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 0.9 * len(before)


def test_is_saved_and_loaded(pruned, tmp_path):
    model, size = pruned
    model.double().save(tmp_path / "model")
    x = torch.randn(3, *size, dtype=torch.float64)
    loaded = torchorbit.load(tmp_path / "model").eval()
    # Tensors in a file are not aligned as those in memory, which can change the last bit of a product.
    assert_same(run(loaded, x), run(model, x), tolerance=1e-9)
    assert_equal(list(loaded.state_dict().values()), list(model.state_dict().values()))
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert torchorbit.flops(loaded).total == torchorbit.flops(model).total


def test_is_pruned_again(pruned):
    model, size = pruned
    orbits = torchorbit.find_orbits(model.double())
    removed = {orbit: range(orbit.width // 2) for orbit in orbits}
    smaller = torchorbit.remove_channels(model, removed)
    assert torchorbit.verify_removal(model, smaller, removed, torch.randn(1, *size, dtype=torch.float64)) < 1e-9
    assert torchorbit.flops(smaller).total < 0.8 * torchorbit.flops(model).total


def test_is_copied_and_flattened(pruned):
    model, size = pruned
    x = torch.randn(2, *size)
    assert_equal(run(copy.deepcopy(model), x), run(model, x))
    assert_same(run(model.flatten(), x), run(model, x))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_is_exported_and_compiled(name):
    model = build_with_random_weights(name)
    size = input_size(model)
    smaller = torchorbit.prune(torchorbit.convert(model, torch.empty(2, *size)), ratio=0.5).double().eval()
    x = torch.randn(2, *size, dtype=torch.float64)
    expected = run(smaller, x)
    program = torch.export.export(smaller, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=8)},))
    assert_same(run_program(program, x), expected)
    assert_same(run_program(program, x[:2].repeat(2, 1, 1, 1))[:2], expected, tolerance=1e-9)
    assert_same(run(torch.compile(smaller, backend="eager", fullgraph=True), x), expected)


def run_program(program, x):
    with torch.no_grad():
        return program.module()(x)


def test_a_copy_has_a_shape_of_its_own_for_every_batch():
    model = timm.create_model("test_vit", scriptable=False).eval()
    dag = torchorbit.convert(model, torch.empty(2, *input_size(model)))
    smaller = torchorbit.prune(dag, ratio=0.5).double()
    x = torch.randn(5, *input_size(model), dtype=torch.float64)
    whole = run(smaller, x)
    for count in (1, 3):
        assert_same(run(smaller, x[:count]), whole[:count], tolerance=1e-9)


@pytest.mark.parametrize("batch", [1, 3])
def test_samples_folded_into_channels(batch):
    """As dynamic convolutions do: as many groups as there are samples."""

    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 2, 1)
            self.route, self.table = nn.Linear(6, 3), nn.Parameter(torch.randn(3, 8 * 6))

        def forward(self, x):
            x = self.stem(x)
            count, width, height, columns = x.shape
            weight = (self.route(x.mean((2, 3))).sigmoid() @ self.table).view(count * 8, width, 1, 1)
            x = F.conv2d(x.reshape(1, count * width, height, columns), weight, groups=count)
            return self.head(x.view(count, 8, height, columns))

    dag, orbits = graph(Dynamic().eval())
    assert sorted(orbit.width for orbit in orbits) == [3, 6, 8]
    removed = {orbit: [0] for orbit in orbits}
    pruned = torchorbit.remove_channels(dag, removed)
    x = torch.randn(batch, 3, 12, 12, dtype=torch.float64)
    assert torchorbit.verify_removal(dag.double(), pruned.double(), removed, x) < 1e-12
