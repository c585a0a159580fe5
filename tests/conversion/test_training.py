"""Training: gradients, running statistics, what is dropped at random, and paths that only training takes."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchorbit
from tests.models import Computes, assert_equal, assert_same, copies, outcome, reloaded, stir, train_together

pytestmark = pytest.mark.numeric

X = torch.randn(3, 4, 8)
# One per family in which training differs: norms, gates, stochastic depth, attention, reparametrized branches.
TRAINED = {
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext2": {},
    "test_vit": {},
    "test_vit_relpos": {},
    "test_byobnet": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "test_efficientnet_evos": {},
    "mobileone_s0": {},
    "repvit_m0_9": {},
    "fastvit_t8": {},
    "levit_128s": {},
    "efficientvit_m0": {},
    "efficientformer_l1": {"drop_path_rate": 0.0},
    "tiny_vit_5m_224": {"drop_path_rate": 0.0},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "drop_path_rate": 0.0},
    "pvt_v2_b0": {"drop_path_rate": 0.0},
    "coat_lite_tiny": {"drop_path_rate": 0.0},
    "ghostnetv3_050": {},
    "resnest14d": {},
    "skresnet18": {},
    "crossvit_9_240": {},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "mobilevit_xxs": {},
    "xcit_nano_12_p16_224": {"depth": 2},
    "sequencer2d_s": {"layers": (1, 1, 1, 1)},
    "nf_regnet_b0": {},
    "botnet26t_256": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_gradients_and_statistics_of_a_timm_model_in_training(name):
    model = stir(timm.create_model(name, **TRAINED[name])).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(2, *model.pretrained_cfg["input_size"], dtype=torch.float64)
    model, dag = copies(model, x)
    assert dag.provenance.mode == "both"
    train_together(model, dag, (x,))
    ours = {key: p.grad for key, p in dag.named_parameters() if p.grad is not None}
    theirs = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    assert theirs
    for key, gradient in theirs.items():
        # Gradients sum over many terms, in an order that is up to the kernels.
        assert_same(ours[key], gradient, tolerance=1e-9)
    for buffer, expected in zip(dag.buffers(), model.buffers(), strict=True):
        assert_same(buffer, expected, tolerance=1e-9)
    assert_same(outcome(dag.eval(), x), outcome(model.eval(), x), tolerance=1e-9)


DROPPING = {
    "test_vit": {"drop_rate": 0.3, "pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3},
    "test_efficientnet": {"drop_rate": 0.3, "drop_path_rate": 0.3},
    "test_convnext": {"drop_rate": 0.3, "drop_path_rate": 0.3},
    "test_resnet": {"drop_rate": 0.3, "drop_path_rate": 0.3},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "attn_drop_rate": 0.2, "drop_path_rate": 0.3, "proj_drop_rate": 0.1},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "patch_drop_rate": 0.0, "drop_path_rate": 0.5},
    "pvt_v2_b0": {"drop_path_rate": 0.3},
    "densenet121": {"drop_rate": 0.2},
    "resnet10t": {"drop_block_rate": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPING)
def test_a_timm_model_drops_in_training_as_its_source_does(name):
    model = stir(timm.create_model(name, **DROPPING[name]))
    x = torch.randn(3, *model.pretrained_cfg["input_size"])
    model, dag = copies(model, x)
    dag.eval()
    assert_equal(outcome(dag, x, seed=1), outcome(dag, x, seed=2))
    model.train()
    dag.train()
    before = copy.deepcopy(dict(dag.named_buffers()))
    first, second = outcome(dag, x, seed=1), outcome(dag, x, seed=2)
    assert (first - second).abs().max() > 1e-3 * first.abs().max()
    running = [key for key in before if key.endswith("running_mean")]
    assert all(not torch.equal(before[key], dag.get_buffer(key)) for key in running)
    # From the same random state the same is dropped.
    outcome(model, x, seed=1)
    outcome(model, x, seed=2)
    assert_same(outcome(dag, x, seed=3), outcome(model, x, seed=3))


# -- small models


class FunctionalDropout(nn.Module):
    """Nothing of its own but the training flag."""

    def __init__(self, p=0.4):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, self.training)


class ScaledDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.4, self.training) * 2 + 1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4 if self.training else 0.0)


class BareAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.4 if self.training else 0.0)


class FewerTokens(nn.Module):
    def forward(self, x):
        return x[:, : 2 if self.training else 3]


class FewerTokensAtRandom(nn.Module):
    def forward(self, x):
        if self.training:
            x = x[:, torch.randperm(x.shape[1], device=x.device)[:2]]
        return x.mean(1)


class Noise(nn.Module):
    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x) * 0.1
        return x.tanh()


class OwnStochasticDepth(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        mask = x.new_empty(x.shape[0], 1, 1).bernoulli_(0.6)
        return x * mask.div_(0.6)


class OwnStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
            self.count += 1
        return x - self.mean


class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training, 0.1)


class TwoOutputs(nn.Module):
    def forward(self, x):
        a, b = x.tanh(), x.mean(1)
        return (a, b * 2) if self.training else (a, b)


class ByKeyword(nn.Module):
    def forward(self, x):
        return F.pad(x, pad=(0, 1), mode="constant", value=1.0 if self.training else 2.0)


class InsideADict(nn.Module):
    def forward(self, x):
        return {"x": x, "p": 0.1 if self.training else 0.0}


class OtherPath(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x.relu() * 3 + 1


class OtherPathWithTheSameSteps(nn.Module):
    def forward(self, x):
        return (x * 2).relu() if self.training else x.relu().tanh() * 2


class Scores(nn.Module):
    """Probabilities in evaluation, logits in training."""

    def forward(self, x):
        return x * 2 if self.training else (x * 2).softmax(-1)


class Decoded(nn.Module):
    """Boxes from distances to the cells of a grid, in evaluation only; its sizes follow from the input."""

    def forward(self, x):
        y = x.tanh()
        if self.training:
            return y
        cells = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).view(1, -1, 1)
        return torch.cat((cells - y[..., :4], cells + y[..., 4:]), -1).view(x.shape[0], x.shape[1] * 2, -1)


class LayersOfOneMode(nn.Module):
    """A head that only training runs, and a refinement that only evaluation runs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 3), Noise())
        self.refine = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        if self.training:
            return x.sin(), self.head(self.norm(x * 2))
        return self.refine(x.sin() * 3)


class MoreEntriesInTraining(nn.Module):
    def forward(self, x):
        found = {"out": x.sin()}
        if self.training:
            found["aux"] = [x.mean(1), (x * 2,)]
        return found


class OwnNormOfTheBatch(nn.Module):
    """Its first step in training has the function of the first in evaluation."""

    def forward(self, x):
        if self.training:
            x = x - x.mean((0, 1))
        return x - x.mean(-1, keepdim=True)


class CountsEvaluations(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(0.0))

    def forward(self, x):
        if not self.training:
            self.count += 1
        return x * 2 + self.count


class TwoWrites(nn.Module):
    """A hand-written norm: all of its writes count, whether augmented, chained or of a part."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean((0, 1)))
                self.var.mul_(0.9)
                self.var.add_(x.var((0, 1)), alpha=0.1)
                self.seen[0] += 1
                self.seen[1:].add_(x.shape[0])
        return (x - self.mean) / (self.var + 1e-5).sqrt()


class TwiceTheSameState(nn.Module):
    """A module with state that is called twice, and reads the state in between."""

    def __init__(self):
        super().__init__()
        self.inner = TwoWrites()

    def forward(self, x):
        x = self.inner(x)
        between = self.inner.mean + 0
        return self.inner(x * 2) + between + self.inner.seen.sum()


class ReboundAfterAWrite(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x):
        old = self.center
        part = old[:3]
        if self.training:
            self.center.add_(x.detach().mean((0, 1)))
            self.center = self.center * 0.9 + 0.1
        return x - self.center, old * 1, part


class Codebook(nn.Module):
    """Moves its entries towards what they stand for, by moving averages, in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("entries", torch.linspace(-1, 1, 48).view(6, 8))
        self.register_buffer("sizes", torch.ones(6))
        self.register_buffer("sums", torch.linspace(-1, 1, 48).view(6, 8))

    def forward(self, x):
        flat = x.reshape(-1, 8)
        index = torch.cdist(flat, self.entries).argmin(1)
        chosen = F.one_hot(index, 6).to(x.dtype)
        if self.training:
            with torch.no_grad():
                self.sizes.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
                self.sums.mul_(0.9).add_(chosen.t() @ flat, alpha=0.1)
                total = self.sizes.sum()
                sizes = (self.sizes + 1e-5) / (total + 6e-5) * total
                self.entries.copy_(self.sums / sizes.unsqueeze(1))
        found = F.embedding(index, self.entries).view_as(x)
        return x + (found - x).detach()


class OwnSpectralNorm(nn.Module):
    """Power iteration in training: the same functions as what follows, with other operands."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8) + torch.eye(8))
        self.register_buffer("u", F.normalize(torch.linspace(1, 2, 8), dim=0))
        self.register_buffer("v", F.normalize(torch.linspace(2, 1, 8), dim=0))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for _ in range(2):
                    self.u = F.normalize(torch.mv(self.weight, self.v), dim=0, out=self.u)
                    self.v = F.normalize(torch.mv(self.weight.t(), self.u), dim=0, out=self.v)
        sigma = torch.dot(self.u.clone(), torch.mv(self.weight, self.v.clone()))
        return F.linear(x, self.weight / sigma)


class SameFunctionOfAnotherRank(nn.Module):
    def forward(self, x):
        if self.training:
            x = x + x.flatten(1).mean(1).view(-1, 1, 1)
        return x.transpose(1, 2).flatten(2).mean(2)


class SameFunctionInManyPlaces(nn.Module):
    def forward(self, x):
        for scale in (1, 2, 3):
            if self.training:
                x = (x * 0.5).relu() - x.mean(0)
            x = (x * scale).relu() - x.mean(1, keepdim=True)
        return x


class UnusedHead(nn.Module):
    """An auxiliary head that runs in both modes, and whose result only a loss would use."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(8, 3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        self.head(x * 2)
        return self.norm(x)


MODES = [
    UnusedHead,
    TwoWrites,
    TwiceTheSameState,
    ReboundAfterAWrite,
    Codebook,
    OwnSpectralNorm,
    SameFunctionOfAnotherRank,
    SameFunctionInManyPlaces,
    FunctionalDropout,
    ScaledDropout,
    Attention,
    BareAttention,
    FewerTokens,
    FewerTokensAtRandom,
    Noise,
    OwnStochasticDepth,
    OwnStatistics,
    FunctionalNorm,
    TwoOutputs,
    ByKeyword,
    InsideADict,
    OtherPath,
    OtherPathWithTheSameSteps,
    Scores,
    Decoded,
    LayersOfOneMode,
    MoreEntriesInTraining,
    OwnNormOfTheBatch,
    CountsEvaluations,
]


def assert_same_in_every_mode(model, example=X):
    """A model and the graph of its copy, in evaluation, in training, and with the flag set on parts alone."""
    source, dag = copies(model, example)
    flat = copy.deepcopy(dag).flatten()
    again = reloaded(copy.deepcopy(dag))
    assert dag.provenance.mode == "both"
    assert dag.provenance.training_differs == ()
    for training in (False, True):
        for m in (source, dag, flat, again):
            m.train(training)
        x = torch.randn(5, 4, 8)
        expected = outcome(source, x, seed=3)
        assert_same(outcome(dag, x, seed=3), expected)
        assert_same(outcome(flat, x, seed=3), expected)
        assert_same(outcome(again, x, seed=3), expected)
        for m in (dag, flat, again):
            assert_same(m.state_dict(), source.state_dict())
    return source, dag


@pytest.mark.parametrize("kind", MODES)
def test_what_depends_on_the_mode_does_so_in_the_graph(kind):
    assert_same_in_every_mode(kind())


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in MODES
        if kind not in (TwoOutputs, InsideADict, LayersOfOneMode, MoreEntriesInTraining, ReboundAfterAWrite)
    ],
)
def test_what_depends_on_the_mode_does_so_inside_blocks(kind):
    inner = nn.Sequential(nn.Identity(), kind())
    assert_same_in_every_mode(nn.Sequential(Computes(lambda m, x: m.inner(x * 1) + 1, inner=inner), nn.Tanh()))


@pytest.mark.parametrize(
    "kind", [FunctionalDropout, ScaledDropout, Attention, Noise, Scores, OtherPath, OwnStochasticDepth]
)
def test_the_flag_of_the_module_itself_decides(kind):
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(kind()), kind())
    source, dag = copies(model, X)
    source.eval()[1][0].train()
    dag.eval().get_submodule("1.0").train()
    assert_same(outcome(dag, X, seed=3), outcome(source, X, seed=3))
    assert (outcome(dag, X, seed=3) - outcome(dag.eval(), X, seed=3)).abs().max() > 1e-3


class NeedsTargets(nn.Module):
    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("in training there have to be targets")
        return x.relu() * 3 + 1


def test_a_path_of_training_that_cannot_be_recorded_is_said_and_evaluation_recorded():
    model = nn.Sequential(nn.Linear(8, 8), NeedsTargets(), nn.Dropout(0.1))
    dag = torchorbit.convert(model, X)
    assert dag.provenance.mode == "evaluation"
    assert dag.provenance.training_differs == ("1",)
    assert_same(outcome(dag.eval(), X), outcome(model.eval(), X))
    assert reloaded(dag).provenance == dag.provenance


def test_a_model_on_the_same_path_in_both_modes_says_so():
    provenance = torchorbit.convert(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)), X).provenance
    assert provenance.mode == "both"
    assert provenance.training_differs == ()


def test_conversion_in_training_mode_records_evaluation_too():
    model = nn.Sequential(nn.Linear(8, 8), ScaledDropout(), nn.BatchNorm1d(4)).train()
    dag = torchorbit.convert(model, X)
    assert dag.training
    assert all(m.training for m in dag.modules())
    assert_same(outcome(copy.deepcopy(dag), X, seed=1), outcome(copy.deepcopy(model), X, seed=1))
    assert_same(outcome(dag.eval(), X), outcome(model.eval(), X))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_converts(reentrant):
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model = Computes(lambda m, x: checkpoint(m.inner, x * 1, use_reentrant=reentrant) * 2, inner=inner)
    source, dag = copies(model, X)
    train_together(source, dag, (X.clone().requires_grad_(),))
    for a, b in zip(dag.parameters(), source.parameters(), strict=True):
        assert_same(a.grad, b.grad)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_timm_model_with_gradient_checkpointing_converts(name):
    model = timm.create_model(name).double()
    model.set_grad_checkpointing()
    side = 96 if name == "test_resnet" else 160
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    source, dag = copies(model, x)
    train_together(source, dag, (x,))
    for a, b in zip(dag.parameters(), source.parameters(), strict=True):
        assert_same(a.grad, b.grad, tolerance=1e-9)


def test_frozen_parameters_stay_frozen():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    dag = torchorbit.convert(model, X)
    assert [p.requires_grad for p in dag.parameters()] == [False, False, True, True]
    assert [p.requires_grad for p in reloaded(dag).parameters()] == [False, False, True, True]


def test_a_graph_trains():
    source = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    dag = torchorbit.convert(source, X).train()
    x, y = torch.randn(64, 4, 8), torch.randn(64, 1)
    optimizer = torch.optim.Adam(dag.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(dag(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_statistics_move_in_a_branch_whose_result_nobody_uses():
    def forward(self, x):
        hidden = self.trunk(x)
        self.auxiliary(hidden)
        return self.head(hidden)

    model = Computes(
        forward,
        trunk=nn.Linear(8, 6),
        auxiliary=nn.Sequential(nn.Conv1d(4, 5, 1), nn.BatchNorm1d(5), nn.ReLU()),
        head=nn.Linear(6, 2),
    )
    source = copy.deepcopy(model).train()
    dag = torchorbit.convert(model.eval(), X).train()
    assert_same(outcome(dag, X), outcome(source, X))
    assert_same(dict(dag.named_buffers()), dict(source.named_buffers()))
    orbits = torchorbit.find_orbits(dag.eval())
    removed = {orbit: range(1, orbit.width) for orbit in orbits}
    assert torchorbit.verify_removal(dag, torchorbit.remove_channels(dag, removed), removed, X) < 1e-5


class FrozenNorms(nn.Module):
    """Its batch norms stay in evaluation, and one dropout in training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 1))
        self.norm = nn.BatchNorm1d(4)
        self.always = nn.Dropout(0.5)

    def forward(self, x):
        return self.norm(self.layers(x)) + self.always(x)

    def train(self, mode=True):
        super().train(mode)
        self.layers[1].eval()
        self.always.train()
        return self


class Untrained(nn.Module):
    """As a frozen encoder is often kept: `train` does nothing."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.eval()
        self.train = lambda mode=True: self

    def forward(self, x):
        return F.dropout(self.norm(x), 0.5, self.training)


def modes(model):
    return {path: module.training for path, module in model.named_modules() if not module._modules}


def test_parts_that_stay_in_evaluation_do_so_in_the_graph():
    source, dag = copies(nn.Sequential(FrozenNorms(), nn.BatchNorm1d(4)), X)
    removed = {orbit: [0] for orbit in torchorbit.find_orbits(dag)}
    pruned = torchorbit.remove_channels(dag, removed)
    grouped = copy.deepcopy(dag).flatten()
    torchorbit.edit.group(grouped, [v.name for v in grouped.vertices if not hasattr(v, "keyword")][:2], "part")
    for training in (True, False):
        expected = modes(source.train(training))
        for graph in (dag, dag.flatten(), copy.deepcopy(dag), reloaded(dag), pruned, reloaded(pruned)):
            given = modes(graph.train(training))
            assert {path: given[path] for path in given if path in expected} == {
                path: mode for path, mode in expected.items() if path in given
            }
            assert not given["0.layers.1"]
            assert given["1"] == training
        assert not modes(grouped.train(training))["part.0.layers.1"]
    source.train()
    dag.train()
    assert_same(outcome(dag, X), outcome(source, X))
    assert_same(dict(dag.named_buffers()), dict(source.named_buffers()))


def test_a_part_that_is_never_trained_is_not_in_the_graph():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), Untrained())
    dag = torchorbit.convert(model, X)
    assert [modes(m.train())["1.norm"] for m in (model, dag, reloaded(dag))] == [False] * 3
    assert_same(outcome(dag, X), outcome(model, X))


@pytest.mark.parametrize("inner", [nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Conv1d(4, 4, 1))])
def test_autocast_around_layers_is_refused(inner):
    def mixed(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.inner(x)

    with pytest.raises(torchorbit.ConversionError, match=r"autocast.* cast explicitly"):
        torchorbit.convert(Computes(mixed, inner=inner), X)


def test_a_model_converts_under_autocast_that_is_not_its_own():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dag = torchorbit.convert(model, X)
        assert_same(outcome(dag, X), outcome(model, X))


def test_a_path_of_training_that_a_graph_cannot_hold_is_warned_of():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            x = self.layer(x)
            return x[x > 0].sum() if self.training else x

    model = nn.Sequential(nn.Linear(8, 8), Chooses()).eval()
    with pytest.warns(UserWarning, match=r"recorded in evaluation mode: in training .* another path in '1'"):
        dag = torchorbit.convert(model, X)
    assert dag.provenance.mode == "evaluation"
    assert dag.provenance.training_differs == ("1",)
    assert_same(outcome(dag, X), outcome(model, X))
