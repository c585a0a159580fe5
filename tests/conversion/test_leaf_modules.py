"""Every class of the table of leaf modules: it is one vertex that holds the source's module, and it survives a file."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from torch import nn

import torchorbit
from tests.models import (
    Computes,
    assert_converts,
    assert_equal,
    assert_same,
    copies,
    module_vertices,
    operators,
    outcome,
    refusal,
    reloaded,
    stir,
)
from torchorbit.nn import StochasticDepth
from torchorbit.operators.modules import LEAF_MODULES

pytestmark = pytest.mark.numeric

torch.manual_seed(0)
LINE = torch.randn(2, 4, 12)
IMAGE = torch.randn(2, 4, 8, 8)
VOLUME = torch.randn(2, 4, 6, 6, 6)
TOKENS = torch.randint(0, 10, (2, 7))

# Name -> example, and several sets of constructor arguments: (args, kwargs).
CASES = {
    "Conv1d": (LINE, [((4, 6, 3), {}), ((4, 6, 3, 2, 1), {"dilation": 2, "groups": 2, "bias": False}), ((4, 4, 3), {"padding": "same"})]),
    "Conv2d": (IMAGE, [((4, 6, 3), {}), ((4, 6, (3, 2)), {"stride": (2, 1), "padding": 1, "padding_mode": "reflect"}), ((4, 4, 3), {"groups": 4, "padding": "valid"})]),
    "Conv3d": (VOLUME, [((4, 2, 3), {}), ((4, 2, 3), {"padding": 1, "padding_mode": "circular", "bias": False})]),
    "ConvTranspose1d": (LINE, [((4, 6, 3), {}), ((4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2})]),
    "ConvTranspose2d": (IMAGE, [((4, 6, 3), {}), ((4, 6, 3, 2, 1, 1), {"bias": False, "dilation": 2})]),
    "ConvTranspose3d": (VOLUME, [((4, 2, 2), {"stride": 2})]),
    "Linear": (LINE, [((12, 5), {}), ((12, 5), {"bias": False})]),
    "Bilinear": ((LINE, LINE), [((12, 12, 3), {}), ((12, 12, 3), {"bias": False})]),
    "Embedding": (TOKENS, [((10, 4), {}), ((10, 4), {"padding_idx": 2}), ((10, 4), {"scale_grad_by_freq": True})]),
    "BatchNorm1d": (LINE, [((4,), {}), ((4,), {"eps": 0.1, "momentum": None, "affine": False}), ((4,), {"track_running_stats": False})]),
    "BatchNorm2d": (IMAGE, [((4,), {}), ((4,), {"eps": 0.1, "track_running_stats": False})]),
    "BatchNorm3d": (VOLUME, [((4,), {})]),
    "InstanceNorm1d": (LINE, [((4,), {}), ((4,), {"affine": True, "track_running_stats": True})]),
    "InstanceNorm2d": (IMAGE, [((4,), {"affine": True})]),
    "InstanceNorm3d": (VOLUME, [((4,), {})]),
    "LayerNorm": (LINE, [((12,), {}), (((4, 12),), {"eps": 0.1}), ((12,), {"elementwise_affine": False}), ((12,), {"bias": False})]),
    "GroupNorm": (IMAGE, [((2, 4), {}), ((4, 4), {"eps": 0.1, "affine": False})]),
    "RMSNorm": (LINE, [((12,), {}), ((12,), {"eps": 0.1, "elementwise_affine": False})]),
    "LocalResponseNorm": (IMAGE, [((3,), {}), ((3,), {"alpha": 0.1, "beta": 0.3, "k": 2.0})]),
    "ReLU": (LINE, [((), {}), ((), {"inplace": True})]),
    "ReLU6": (LINE * 9, [((), {}), ((), {"inplace": True})]),
    "GELU": (LINE, [((), {}), ((), {"approximate": "tanh"})]),
    "SiLU": (LINE, [((), {"inplace": True})]),
    "Mish": (LINE, [((), {})]),
    "Sigmoid": (LINE, [((), {})]),
    "Tanh": (LINE, [((), {})]),
    "Hardswish": (LINE, [((), {"inplace": True})]),
    "Hardsigmoid": (LINE, [((), {})]),
    "Hardtanh": (LINE, [((), {}), ((-0.3, 0.4), {"inplace": True})]),
    "ELU": (LINE, [((0.5,), {"inplace": True})]),
    "CELU": (LINE, [((0.5,), {})]),
    "SELU": (LINE, [((), {})]),
    "LeakyReLU": (LINE, [((0.3,), {"inplace": True})]),
    "PReLU": (LINE, [((), {}), ((4,), {"init": 0.3})]),
    "RReLU": (LINE, [((0.1, 0.2), {})]),
    "Softplus": (LINE, [((), {}), ((2.0, 3.0), {})]),
    "Softsign": (LINE, [((), {})]),
    "Softshrink": (LINE, [((0.2,), {})]),
    "Hardshrink": (LINE, [((0.2,), {})]),
    "Tanhshrink": (LINE, [((), {})]),
    "Threshold": (LINE, [((0.1, 3.0), {}), ((0.1, 3.0, True), {})]),
    "LogSigmoid": (LINE, [((), {})]),
    "GLU": (LINE, [((), {}), ((1,), {})]),
    "Softmax": (LINE, [((-1,), {}), ((1,), {}), ((), {"dim": None})]),
    "Softmax2d": (IMAGE, [((), {})]),
    "LogSoftmax": (LINE, [((-1,), {})]),
    "Softmin": (LINE, [((1,), {})]),
    "MaxPool1d": (LINE, [((2,), {}), ((3, 2, 1, 1), {"ceil_mode": True})]),
    "MaxPool2d": (IMAGE, [((2,), {}), ((3,), {"stride": 2, "padding": 1, "dilation": 2}), ((2,), {"return_indices": True})]),
    "MaxPool3d": (VOLUME, [((2,), {})]),
    "AvgPool1d": (LINE, [((2,), {}), ((3, 2, 1), {"ceil_mode": True, "count_include_pad": False})]),
    "AvgPool2d": (IMAGE, [((2,), {}), ((3, 2, 1), {"ceil_mode": True, "count_include_pad": False, "divisor_override": 4})]),
    "AvgPool3d": (VOLUME, [((2,), {})]),
    "LPPool1d": (LINE, [((2, 3), {})]),
    "LPPool2d": (IMAGE, [((2, 3), {"stride": 2, "ceil_mode": True})]),
    "AdaptiveAvgPool1d": (LINE, [((3,), {})]),
    "AdaptiveAvgPool2d": (IMAGE, [((1,), {}), (((2, None),), {})]),
    "AdaptiveAvgPool3d": (VOLUME, [((2,), {})]),
    "AdaptiveMaxPool1d": (LINE, [((3,), {}), ((3,), {"return_indices": True})]),
    "AdaptiveMaxPool2d": (IMAGE, [((2,), {})]),
    "AdaptiveMaxPool3d": (VOLUME, [((2,), {})]),
    "Dropout": (LINE, [((0.4,), {}), ((0.4,), {"inplace": True})]),
    "Dropout1d": (LINE, [((0.4,), {})]),
    "Dropout2d": (IMAGE, [((0.4,), {})]),
    "Dropout3d": (VOLUME, [((0.4,), {})]),
    "AlphaDropout": (LINE, [((0.4,), {})]),
    "FeatureAlphaDropout": (IMAGE, [((0.4,), {})]),
    "Identity": (LINE, [((), {}), ((54,), {"unused": 0.1})]),
    "Flatten": (IMAGE, [((), {}), ((2, 3), {})]),
    "Unflatten": (LINE, [((2, (3, 4)), {}), ((1, (2, 2)), {})]),
    "Upsample": (IMAGE, [((), {"scale_factor": 2}), ((), {"size": (5, 7), "mode": "bilinear", "align_corners": True})]),
    "UpsamplingNearest2d": (IMAGE, [((), {"scale_factor": 2}), ((), {"size": (4, 5)})]),
    "UpsamplingBilinear2d": (IMAGE, [((), {"scale_factor": 2})]),
    "PixelShuffle": (IMAGE, [((2,), {})]),
    "PixelUnshuffle": (IMAGE, [((2,), {})]),
    "ChannelShuffle": (IMAGE, [((2,), {})]),
    "Fold": (torch.randn(2, 16, 16), [(((8, 8), 2), {"stride": 2})]),
    "Unfold": (IMAGE, [((2,), {}), (((3, 2),), {"dilation": 2, "padding": 1, "stride": 2})]),
    "CosineSimilarity": ((LINE, LINE.flip(1)), [((), {}), ((2,), {"eps": 0.1})]),
    "PairwiseDistance": ((LINE, LINE.flip(1)), [((), {}), ((1.0,), {"eps": 0.1, "keepdim": True})]),
    "ZeroPad1d": (LINE, [((1,), {})]),
    "ZeroPad2d": (IMAGE, [(((1, 2, 0, 1),), {})]),
    "ZeroPad3d": (VOLUME, [((1,), {})]),
    "ConstantPad1d": (LINE, [((1, 2.0), {})]),
    "ConstantPad2d": (IMAGE, [(((1, 0, 2, 0), 3.5), {})]),
    "ConstantPad3d": (VOLUME, [((1, 1.0), {})]),
    "ReflectionPad1d": (LINE, [((2,), {})]),
    "ReflectionPad2d": (IMAGE, [(((1, 2, 1, 0),), {})]),
    "ReflectionPad3d": (VOLUME, [((1,), {})]),
    "ReplicationPad1d": (LINE, [((2,), {})]),
    "ReplicationPad2d": (IMAGE, [((1,), {})]),
    "ReplicationPad3d": (VOLUME, [((1,), {})]),
    "CircularPad1d": (LINE, [((2,), {})]),
    "CircularPad2d": (IMAGE, [((1,), {})]),
    "CircularPad3d": (VOLUME, [((1,), {})]),
    "RNN": (LINE, [((12, 5), {}), ((12, 5), {"num_layers": 2, "nonlinearity": "relu", "batch_first": True, "bidirectional": True})]),
    "LSTM": (LINE, [((12, 5), {"batch_first": True}), ((12, 5), {"num_layers": 2, "dropout": 0.3, "batch_first": True}), ((12, 5), {"proj_size": 3, "bias": False})]),
    "GRU": (LINE, [((12, 5), {"batch_first": True}), ((12, 5), {"bidirectional": True, "bias": False})]),
    "StochasticDepth": (LINE, [((0.4,), {}), ((0.4, "batch"), {"scale_by_keep": False})]),
}  # fmt: skip


def test_every_leaf_class_has_a_case():
    assert set(CASES) == set(LEAF_MODULES)


@pytest.mark.parametrize(
    ("name", "config"),
    [pytest.param(name, n, id=f"{name}-{n}") for name, (_, every) in CASES.items() for n in range(len(every))],
)
def test_a_leaf_is_one_vertex_and_survives_a_file(name, config):
    example, configs = CASES[name]
    args, kwargs = configs[config]
    leaf = stir(LEAF_MODULES[name](*args, **kwargs))
    model = Computes(lambda m, *x: m.leaf(*x), leaf=leaf)
    batched = not isinstance(leaf, nn.RNNBase) or leaf.batch_first
    dag = assert_converts(model, example, *([] if batched else [example, torch.randn(4, 7, 12)]))
    assert [(v.target, v.leaf) for v in module_vertices(dag)] == [("leaf", name)]
    assert dag.get_submodule("leaf") is leaf
    # In training, too: with the same random numbers the same units are dropped.
    again = reloaded(dag).train()
    assert_equal(outcome(again, example, seed=3), outcome(dag.train(), example, seed=3))
    assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    "name", ["Linear", "Dropout", "StochasticDepth", "Identity", "BatchNorm2d", "LayerNorm", "Softmax"]
)
def test_a_model_that_is_a_leaf_itself_converts(name):
    example, configs = CASES[name]
    args, kwargs = configs[0]
    model = stir(LEAF_MODULES[name](*args, **kwargs))
    dag = assert_converts(copy.deepcopy(model), example)
    assert list(dag.state_dict()) == list(model.state_dict())
    assert_equal(outcome(dag.train(), example, seed=3), outcome(model.train(), example, seed=3))


def test_a_recurrent_model_by_itself_converts_or_says_why_not():
    model = nn.LSTM(12, 5, batch_first=True)
    reason = refusal(model, LINE)
    assert reason is None or "lstm" in reason.lower()
    if reason is None:
        assert_converts(model, LINE)


def test_stochastic_depth_of_timm_is_a_leaf_and_drops_the_same_samples_after_a_file():
    model = nn.Sequential(nn.Linear(12, 12), DropPath(0.5, scale_by_keep=False), DropPath(0.3))
    dag = torchorbit.convert(model, LINE)
    assert [v.leaf for v in module_vertices(dag)] == ["Linear", "StochasticDepth", "StochasticDepth"]
    assert dag.get_submodule("1") is model[1]
    again = reloaded(dag)
    assert isinstance(again.get_submodule("1"), StochasticDepth)
    x = torch.randn(16, 4, 12)
    expected = outcome(model.train(), x, seed=7)
    assert_equal(outcome(dag.train(), x, seed=7), expected)
    assert_equal(outcome(again.train(), x, seed=7), expected)
    assert_equal(outcome(again.eval(), x), outcome(model.eval(), x))


def test_stochastic_depth_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="row"):
        StochasticDepth(0.1, mode="column")
    with pytest.raises(ValueError, match="probability"):
        StochasticDepth(1.5)


def test_stochastic_depth_keeps_the_expectation():
    x = torch.ones(4000, 2)
    assert StochasticDepth(0.25)(x).mean().item() == pytest.approx(1.0, abs=0.05)
    assert StochasticDepth(0.25, scale_by_keep=False)(x).mean().item() == pytest.approx(0.75, abs=0.05)
    assert torch.equal(StochasticDepth(0.25).eval()(x), x)
    assert StochasticDepth(1.0)(x).sum() == 0


class Renamed(nn.Linear):
    """Nothing new but the name."""


class EquivalentNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class EquivalentConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OtherConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight * 2, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HiddenConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class OtherEps(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 0.5)


class PairNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps), None


class SecondNorm(nn.LayerNorm):
    def forward(self, condition, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Doubled(nn.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


class Constrained(nn.Linear):
    """Its weight is not the parameter that its base would use."""

    def __init__(self, *args):
        super().__init__(*args)
        self.free = nn.Parameter(self.weight.detach().clone())
        del self._parameters["weight"]

    @property
    def weight(self):
        return self.free.tanh()


class Unpadded(nn.Conv2d):
    """Ignores its padding mode."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize(
    ("leaf", "kind", "example"),
    [
        (Renamed(12, 5), "Linear", LINE),
        (EquivalentNorm(12), "LayerNorm", LINE),
        (EquivalentConv(4, 6, 3, padding=1), "Conv2d", IMAGE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_subclass_that_computes_what_its_base_does_is_a_leaf(leaf, kind, example):
    dag = assert_converts(nn.Sequential(leaf, nn.ReLU()), example)
    assert module_vertices(dag)[0].leaf == kind
    assert dag.get_submodule("0") is leaf
    assert type(reloaded(dag).get_submodule("0")) is LEAF_MODULES[kind]


@pytest.mark.parametrize(
    ("leaf", "example"),
    [
        (OtherConv(4, 6, 3), IMAGE),
        (HiddenConv(4, 6, 3), IMAGE),
        (OtherEps(12), LINE),
        (Unpadded(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE),
        (Doubled(12, 5), LINE),
        (Constrained(12, 5), LINE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_subclass_that_computes_something_else_is_looked_into(leaf, example):
    assert_converts(nn.Sequential(stir(leaf), nn.ReLU()), example)


@pytest.mark.parametrize(
    "model",
    [
        Computes(lambda m, x: m.norm(x)[0] + 1, norm=PairNorm(12)),
        Computes(lambda m, x: m.norm(x + 1, x) * 2, norm=SecondNorm(12)),
    ],
    ids=["returns more than its base", "takes more than its base"],
)
def test_a_subclass_with_another_interface_than_its_base_converts(model):
    assert_converts(model, LINE)


class ScaledNorm(nn.LayerNorm):
    def forward(self, x, scale=None):
        out = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return out if scale is None else out * scale


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.norm(x) + m.norm(x, 2.0) + m.norm(x, x),
        lambda m, x: m.norm(x, x) + m.norm(x),
        lambda m, x: m.norm(m.norm(x=x)),
    ],
    ids=["the plain call first", "the plain call last", "by name"],
)
def test_a_subclass_that_is_called_in_more_than_one_way_converts(function):
    assert_converts(Computes(function, norm=stir(ScaledNorm(12))), LINE)


class Kept(nn.LayerNorm):
    """Returns its argument, and leaves what it computes on itself."""

    def forward(self, x):
        self.kept = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x


def test_a_subclass_that_returns_something_else_than_it_computes_converts():
    assert_converts(Computes(lambda m, x: m.norm(x) + m.norm.kept, norm=stir(Kept(12))), LINE)


class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def test_a_frozen_norm_stays_frozen_after_a_file():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), stir(Frozen(4)))
    source, dag = copies(model, IMAGE)
    assert_same(outcome(reloaded(dag).train(), IMAGE), outcome(source.train(), IMAGE))


class Masked(nn.Linear):
    """A leaf by its forward that carries a buffer of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 2.0]))


def test_a_leaf_with_a_buffer_of_its_own_survives_a_file():
    model = Computes(lambda m, x: m.linear(x) * m.linear.mask, linear=Masked(12, 3))
    assert_converts(model, LINE)


def test_norms_of_timm_over_images_convert():
    dag = assert_converts(nn.Sequential(nn.Conv2d(4, 6, 3), stir(LayerNorm2d(6))), IMAGE)
    assert list(dag.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


class Activation(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return F.silu(x, inplace=self.inplace)


class Gate(nn.Module):
    def forward(self, x):
        return x.mul_(x.sigmoid())


@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_wrapper_is_an_operator(inplace):
    dag = assert_converts(nn.Sequential(nn.Linear(12, 12), Activation(inplace), nn.Linear(12, 3)), LINE)
    assert operators(dag) == ["silu"]
    assert [v.leaf for v in module_vertices(dag)] == ["Linear", "Linear"]


def test_an_activation_that_writes_in_place_converts():
    assert_converts(nn.Sequential(nn.Linear(12, 12), Gate(), nn.Linear(12, 3)), LINE)


def test_a_module_with_a_forward_hook_is_looked_into():
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    dag = assert_converts(model, LINE)
    assert list(dag.state_dict()) == list(model.state_dict())


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def test_a_parametrized_module_converts():
    model = nn.Sequential(nn.Linear(12, 12))
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", Symmetric())
    dag = assert_converts(model, LINE)
    assert list(dag.state_dict()) == list(model.state_dict())


def test_spectral_norm_converts_in_both_modes():
    model = nn.Sequential(nn.Linear(12, 12))
    torch.nn.utils.spectral_norm(model[0])
    source, dag = copies(model, LINE)
    for training in (False, True, True, False):
        assert_same(outcome(dag.train(training), LINE), outcome(source.train(training), LINE))
        assert_same(dag.state_dict(), source.state_dict())
