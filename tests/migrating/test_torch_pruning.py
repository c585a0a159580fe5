"""What Torch-Pruning 0.2 does."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

import torchorbit
from tests.migrating.helpers import LOADER, Doubled, X, graph, loss, parameters
from tests.models import assert_same, stir
from torchorbit.operators import RULES

pytestmark = pytest.mark.numeric


def test_torch_pruning_plan(resnet):
    """The table of the document, with the numbers that stand there."""
    model, dag = resnet
    plan = torchorbit.plan(dag, model.conv1, [2, 6, 9])
    assert plan.parameters == 11_211
    assert str(plan).endswith("11,211 parameters will be removed")
    weights = {cut.tensor: (cut.dim, cut.parameters) for cut in plan.cuts if cut.parameters > 3}
    assert weights == {
        "conv1.weight": (0, 441),
        "layer1.0.conv1.weight": (1, 1728),
        "layer1.0.conv2.weight": (0, 1728),
        "layer1.1.conv1.weight": (1, 1728),
        "layer1.1.conv2.weight": (0, 1728),
        "layer2.0.conv1.weight": (1, 3456),
        "layer2.0.downsample.0.weight": (1, 384),
    }
    norms = {cut.tensor.rpartition(".")[0] for cut in plan.cuts if cut.tensor.endswith("running_var")}
    assert norms == {"bn1", "layer1.0.bn2", "layer1.1.bn2"}
    assert {cut.indices for cut in plan.cuts} == {(2, 6, 9)}
    smaller = plan.execute(inplace=False)
    assert parameters(dag) - parameters(smaller) == 11_211
    assert torchorbit.verify_removal(dag, smaller, plan.removed) < 1e-9
    with pytest.raises(torchorbit.errors.PlanError, match="was executed already"):
        plan.execute()


def test_torch_pruning_exec_changes_the_graph():
    dag = graph(8, 6)
    torchorbit.plan(dag, "0", [2, 6]).execute()
    assert dag.get_parameter("0.weight").shape[0] == 6


def test_torch_pruning_of_inputs_and_norms(resnet):
    _, dag = resnet
    expected = torchorbit.plan(dag, "conv1", [2, 6, 9])
    for module, dim in (("bn1", 0), ("layer1.0.conv1", 1), ("layer2.0.conv1", 1), ("layer1.1.bn2", 0)):
        plan = torchorbit.plan(expected.orbits, module, [2, 6, 9], dim=dim)
        assert plan.removed == expected.removed


def test_torch_pruning_dependency_graph(resnet):
    model, dag = resnet
    again = torchorbit.convert(model, torch.randn(1, 3, 64, 64))
    assert str(torchorbit.find_orbits(again)) == str(torchorbit.find_orbits(dag))


def test_torch_pruning_saves_and_loads(tmp_path):
    dag = graph(8, 6)
    torchorbit.plan(dag, "0", [2, 6]).execute()
    dag.save(tmp_path / "model")
    assert_same(torchorbit.load(tmp_path / "model")(X), dag(X))
    torch.save(dag, tmp_path / "model.pth")
    assert_same(torch.load(tmp_path / "model.pth", weights_only=False)(X), dag(X))
    # The state dict alone fits a graph of the same widths.
    with pytest.raises(RuntimeError, match="size mismatch"):
        graph(8, 6).load_state_dict(dag.state_dict())


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.d = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        first, second = torch.chunk(self.a(x), 2, 1)
        return self.d(torch.cat([self.b(first), self.c(second)], 1))


def test_torch_pruning_split_and_cat():
    dag = torchorbit.convert(Split().eval(), X)
    cases = [
        ("a", [1], {("a.weight", 0, (1,)), ("a.bias", 0, (1,)), ("b.weight", 1, (1,))}),
        ("a", [6], {("a.weight", 0, (6,)), ("a.bias", 0, (6,)), ("c.weight", 1, (2,))}),
        ("c", [0], {("c.weight", 0, (0,)), ("c.bias", 0, (0,)), ("d.weight", 1, (5,))}),
    ]
    for module, indices, expected in cases:
        plan = torchorbit.plan(dag, module, indices)
        assert {(cut.tensor, cut.dim, cut.indices) for cut in plan.cuts} == expected
        smaller = plan.execute(inplace=False)
        assert torchorbit.verify_removal(dag, smaller, plan.removed) < 1e-12


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "features.0"),  # conv to conv, conv to linear by flattening
        ("vgg11_bn", "features.25"),  # conv to linear by flattening
        ("resnet18", "layer4.0.conv1"),  # in a residual block
        ("densenet121", "features.denseblock4.denselayer1.conv2"),  # concatenation
        ("googlenet", "inception4a.branch1.conv"),  # Inception
        ("shufflenet_v2_x0_5", "conv1.0"),  # chunk
    ],
)
def test_torch_pruning_dependencies(name, layer):
    """Conv-Conv, Conv-FC, skip connections, concatenation and splitting, in models whose weights are not needed."""
    with torch.device("meta"):
        options = {"aux_logits": False} if name == "googlenet" else {}
        model = (
            torchvision.models.get_model(name, weights=None, init_weights=False, **options)
            if name == "googlenet"
            else (torchvision.models.get_model(name, weights=None))
        )
    dag = torchorbit.convert(model.eval(), torch.empty(1, 3, 96, 96, device="meta"))
    plan = torchorbit.plan(dag, layer, [0, 3])
    assert len({cut.tensor.rpartition(".")[0] for cut in plan.cuts}) > 1
    smaller = plan.execute(inplace=False)
    assert smaller(torch.empty(1, 3, 96, 96, device="meta")).shape == (1, 1000)
    assert parameters(dag) - parameters(smaller) == plan.parameters > 0


def test_torch_pruning_aspp():
    model = torchvision.models.segmentation.deeplabv3.ASPP(8, [2, 4], 6).eval()
    images = torch.randn(2, 8, 16, 16)
    dag = torchorbit.convert(model, images)
    plan = torchorbit.plan(dag, "convs.1.0", [0, 5])
    (columns,) = [cut for cut in plan.cuts if cut.tensor == "project.0.weight"]
    assert (columns.dim, columns.indices) == (1, (6, 11))
    assert torchorbit.verify_removal(dag, plan.execute(inplace=False), plan.removed) < 1e-12


def test_torch_pruning_groups():
    """Convolutions in any number of groups."""
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 24, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, groups=24),
        nn.Conv2d(24, 2, 1),
    ).eval()
    dag = torchorbit.convert(stir(model), X)
    plan = torchorbit.plan(dag, "1", [0])
    assert len(plan.removed) > 0
    smaller = plan.execute(inplace=False)
    assert torchorbit.verify_removal(dag, smaller, plan.removed) < 1e-12
    assert parameters(smaller) < parameters(dag)


class UsesDoubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.twice, self.b = nn.Conv2d(3, 8, 1), Doubled(), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.b(self.twice(self.a(x)))


def test_torch_pruning_custom_functions():
    """They are not taken for elementwise: whoever knows it says so."""
    model = UsesDoubled().eval()
    with pytest.raises(torchorbit.ConversionError, match="custom autograd function"):
        torchorbit.convert(model, X)
    dag = torchorbit.convert(model, X, atomic=[Doubled])
    orbits = torchorbit.find_orbits(dag)
    assert len(orbits) == 0
    assert orbits.unruled == (f"{Doubled.__module__}.Doubled",)
    torchorbit.rules.register_rule(Doubled, lambda operands: operands.tensor("0").dims)
    try:
        plan = torchorbit.plan(dag, "a", [1, 2])
        smaller = plan.execute(inplace=False)
    finally:
        del RULES[orbits.unruled[0]]
    keep = [0, 3, 4, 5, 6, 7]
    expected = F.conv2d(
        F.conv2d(X, model.a.weight[keep], model.a.bias[keep]) * 2, model.b.weight[:, keep], model.b.bias
    )
    assert_same(smaller(X), expected)


def test_torch_pruning_rounds():
    """Prune, train, prune again: the example's rounds are steps."""
    dag = graph(16, 16, norm=True).train()
    optimizer = torch.optim.SGD(dag.parameters(), 0.01, momentum=0.9)
    sizes = []

    def train(model, step):
        for batch in LOADER:
            optimizer.zero_grad()
            loss(model(batch[0]), batch).backward()
            optimizer.step()
        sizes.append(parameters(model))

    whole = parameters(dag)
    pruned = torchorbit.prune(dag, parameters=0.4, steps=3, between_steps=train, optimizer=optimizer)
    assert whole > sizes[0] > sizes[1] > parameters(pruned)
    assert parameters(pruned) <= 0.4 * whole
    assert len(sizes) == 2
