"""The state of an optimizer is cut along with the parameters, and training goes on as if nothing had happened."""

import contextlib
import copy
import math

import pytest
import timm.optim
import torch
from torch import Tensor, nn

import torchorbit
from tests.models import stir

pytestmark = pytest.mark.numeric

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(3)).double()
Y = torch.randn(8, 5, generator=torch.Generator().manual_seed(4)).double()

#: Every number of a parameter is updated by itself.
ELEMENTWISE = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD without momentum": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=1e-2, amsgrad=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "AdamW one by one": lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=False),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.9, centered=True),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=1e-3),
    "Adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
    "Adamax": lambda groups: torch.optim.Adamax(groups, lr=1e-3),
    "timm's RMSprop": lambda groups: timm.optim.RMSpropTF(groups, lr=1e-3, momentum=0.9),
    "timm's Lion": lambda groups: timm.optim.Lion(groups, lr=1e-3),
}
#: A parameter's update depends on all of its numbers.
OTHER = {
    "LAMB": lambda groups: timm.optim.Lamb(groups, lr=1e-2),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "timm's Adafactor": lambda groups: timm.optim.Adafactor(groups, lr=1e-2, betas=(0.9, 0.999)),
}


def trained(optimizer_for, steps=3):
    torch.manual_seed(0)
    model = stir(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 5),
        )
    )  # fmt: skip
    dag = torchorbit.convert(model.double(), X[:2]).train()
    matrices = [p for p in dag.parameters() if p.dim() > 1]
    vectors = [p for p in dag.parameters() if p.dim() == 1]
    optimizer = optimizer_for([{"params": matrices}, {"params": vectors, "lr": 1e-3}])
    for _ in range(steps):
        step(dag, optimizer)
    return dag, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(X), Y)
    loss.backward()
    optimizer.step()
    return loss.item()


def kept_positions(dag, removed):
    """Name -> the kept positions along every dimension."""
    kept = {name: [torch.arange(length) for length in p.shape] for name, p in dag.named_parameters()}
    for cut in torchorbit.plan(dag, removed).cuts:
        if cut.tensor in kept:
            length = dag.state_dict()[cut.tensor].shape[cut.dim]
            kept[cut.tensor][cut.dim] = torch.tensor([n for n in range(length) if n not in cut.indices])
    return kept


def cut(tensor, positions):
    for axis, index in enumerate(positions):
        if tensor.shape[axis] > 1:
            tensor = tensor.index_select(axis, index)
    return tensor


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHER])
def test_state_is_cut_and_training_goes_on(name, inplace):
    dag, optimizer = trained({**ELEMENTWISE, **OTHER}[name])
    orbits = torchorbit.find_orbits(dag)
    removed = {orbits[0]: [1, 4], orbits[1]: [0, 5, 6]}
    kept = kept_positions(dag, removed)
    # A copy of everything: what would have happened without pruning.
    whole, reference = copy.deepcopy((dag, optimizer))
    groups = [
        [n for n, p in dag.named_parameters() if any(p is q for q in g["params"])] for g in optimizer.param_groups
    ]
    options = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    states = {n: dict(reference.state[p]) for n, p in whole.named_parameters() if p in reference.state}
    assert states or "without" in name

    pruned = torchorbit.remove_channels(dag, removed, inplace=inplace, optimizer=optimizer)

    parameters = dict(pruned.named_parameters())
    assert [[n for p in g["params"] for n, q in parameters.items() if p is q] for g in optimizer.param_groups] == groups
    assert [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups] == options
    assert set(optimizer.state) <= set(parameters.values())
    for parameter_name, state in states.items():
        ours = optimizer.state[parameters[parameter_name]]
        assert ours.keys() == state.keys()
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                assert ours[key] == value
                continue
            positions = kept[parameter_name]
            if value.dim() < len(positions):  # timm's statistics of rows and columns leave a dimension out
                positions = positions[:-2] + positions[-1:] if "col" in key else positions[:-1]
            assert torch.equal(ours[key], cut(value, positions)), (parameter_name, key)

    # The next step: what is kept of the whole model gets the same gradients, what is removed gets any.
    loss = nn.functional.mse_loss(pruned(X), Y)
    optimizer.zero_grad()
    loss.backward()
    if name in ELEMENTWISE:
        for parameter_name, parameter in whole.named_parameters():
            grad = torch.randn_like(parameter)
            where = torch.meshgrid(*kept[parameter_name], indexing="ij")
            grad[where] = parameters[parameter_name].grad
            parameter.grad = grad
        reference.step()
    before = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer.step()
    for parameter_name, parameter in parameters.items():
        if parameter.dim() > 1:  # a bias before a normalization gets no gradient
            assert not torch.equal(parameter, before[parameter_name])
        if name in ELEMENTWISE:
            expected = cut(whole.get_parameter(parameter_name), kept[parameter_name])
            torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-14)
    losses = [step(pruned, optimizer) for _ in range(5)]
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("inplace", [False, True])
def test_before_the_first_step_there_is_no_state(inplace):
    dag, optimizer = trained(ELEMENTWISE["Adam"], steps=0)
    (orbit, *_) = torchorbit.find_orbits(dag)
    pruned = torchorbit.remove_channels(dag, {orbit: [3]}, inplace=inplace, optimizer=optimizer)
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in pruned.parameters()}
    assert math.isfinite(step(pruned, optimizer))


def test_parameters_of_something_else_are_left_alone():
    dag, _ = trained(ELEMENTWISE["SGD"])
    head = nn.Linear(5, 2).double()
    optimizer = torch.optim.Adam([*dag.parameters(), *head.parameters()])
    head(dag(X)).sum().backward()
    optimizer.step()
    state = optimizer.state[head.weight]["exp_avg"].clone()
    (orbit, *_) = torchorbit.find_orbits(dag)
    torchorbit.remove_channels(dag, {orbit: [3]}, inplace=True, optimizer=optimizer)
    assert any(p is head.weight for p in optimizer.param_groups[0]["params"])
    assert torch.equal(optimizer.state[head.weight]["exp_avg"], state)


def test_state_of_another_shape_is_made_anew():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter].setdefault("history", torch.zeros(parameter.numel() + 3))

    dag, optimizer = trained(lambda groups: Odd(groups, lr=0.05, momentum=0.9))
    first = dag.get_parameter("0.weight")
    last = dag.get_parameter("7.bias")
    (orbit, *_) = torchorbit.find_orbits(dag)
    with pytest.warns(UserWarning, match="history"):
        torchorbit.remove_channels(dag, {orbit: [3]}, inplace=True, optimizer=optimizer)
    assert "history" not in optimizer.state[first]
    assert "history" in optimizer.state[last], "it was not cut"
    assert math.isfinite(step(dag, optimizer))


def test_pruning_again_and_again_while_training():
    dag, optimizer = trained(ELEMENTWISE["AdamW"])
    for left in (7, 6, 5):
        (orbit, *_) = torchorbit.find_orbits(dag)
        torchorbit.remove_channels(dag, {orbit: [0]}, inplace=True, optimizer=optimizer)
        assert dag.get_parameter("0.weight").shape[0] == left
        assert optimizer.state[dag.get_parameter("0.weight")]["exp_avg"].shape[0] == left
        assert math.isfinite(step(dag, optimizer))


@pytest.mark.parametrize("inplace", [False, True])
def test_prune_takes_an_optimizer(inplace):
    dag, optimizer = trained(ELEMENTWISE["Adam"])
    pruned = torchorbit.prune(dag, ratio=0.5, inplace=inplace, optimizer=optimizer)
    assert pruned.get_parameter("0.weight").shape[0] == 4
    assert math.isfinite(step(pruned, optimizer))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("nothing", [False, True])
def test_lbfgs_goes_on_with_what_is_left(inplace, nothing):
    dag = torchorbit.convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(2, 6)).train()
    optimizer = torch.optim.LBFGS(dag.parameters(), lr=0.1, max_iter=5)
    x = torch.randn(8, 6)

    def loss():
        optimizer.zero_grad()
        value = nn.functional.mse_loss(pruned(x), Y)
        value.backward()
        return value

    pruned = dag
    optimizer.step(loss)
    (orbit,) = torchorbit.find_orbits(dag)
    removed = {} if nothing else {orbit: [1, 4]}
    with contextlib.nullcontext() if nothing else pytest.warns(UserWarning, match="LBFGS"):
        pruned = torchorbit.remove_channels(dag, removed, inplace=inplace, optimizer=optimizer)
    before = {name: parameter.clone() for name, parameter in pruned.named_parameters()}
    first = loss().item()
    for _ in range(3):
        optimizer.step(loss)
    assert loss().item() < first
    assert all(not torch.equal(parameter, before[name]) for name, parameter in pruned.named_parameters())
    assert set(optimizer.state) <= set(pruned.parameters())


@pytest.mark.parametrize("remove", ["remove_channels", "prune"])
@pytest.mark.parametrize("whose", ["another model's", "that of a pruning before"])
def test_an_optimizer_that_has_nothing_of_the_graph_is_refused(remove, whose):
    dag, optimizer = trained(ELEMENTWISE["Adam"])
    graph = dag

    def removed():
        if remove == "prune":
            return torchorbit.prune(graph, ratio=0.5, optimizer=optimizer)
        return torchorbit.remove_channels(graph, {torchorbit.find_orbits(graph)[0]: [0]}, optimizer=optimizer)

    if whose == "another model's":
        graph = copy.deepcopy(dag)
    else:
        removed()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in graph.state_dict(keep_vars=True).items()}
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    with pytest.raises(ValueError, match="the Adam has none of the graph's parameters"):
        removed()
    for name, tensor in graph.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert held == [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def test_what_is_loaded_or_pruned_in_inference_mode_can_be_trained(tmp_path):
    dag, _ = trained(ELEMENTWISE["Adam"])
    dag.save(tmp_path)
    with torch.inference_mode():
        loaded = torchorbit.load(tmp_path)
        pruned = torchorbit.prune(loaded, ratio=0.5)
        by_hand = torchorbit.remove_channels(loaded, {torchorbit.find_orbits(loaded)[0]: [0]})
    for model in (loaded, pruned, by_hand):
        assert not any(tensor.is_inference() for tensor in model.state_dict().values())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert math.isfinite(step(model, optimizer))
        assert all(parameter.grad is not None for parameter in model.parameters())
