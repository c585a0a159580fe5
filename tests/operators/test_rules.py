"""Rules of one's own, and the check that they are right."""

import pytest
import torch
from torch import nn

import torchorbit
from tests.models import Computes
from tests.orbits.helpers import kinds, owned
from torchorbit.operators import RESIZES, RULES

pytestmark = pytest.mark.numeric

X = torch.randn(2, 3, 9, 9)


class Scale(nn.Module):
    """Insists on its width."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x, factor=1.0):
        assert x.shape[1] == self.width
        return factor * x * self.weight[:, None, None] + self.shift[:, None, None]


class Backwards(Scale):
    """Gives its channels in reverse order."""

    def forward(self, x):
        return super().forward(x.flip(1))


class Mixed(nn.Module):
    """A dense layer from the second half of its channels to as many."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width // 2))

    def forward(self, x):
        first, second = x.chunk(2, 1)
        return torch.einsum("oi,bihw->bohw", self.weight, second), first


@pytest.fixture(autouse=True)
def _own_rules():
    before = dict(RULES), dict(RESIZES)
    yield
    for table, old in zip((RULES, RESIZES), before, strict=True):
        table.clear()
        table.update(old)


def scale(operands):
    x, weight, shift = operands.tensor("0"), operands.tensor("weight"), operands.tensor("shift")
    return [x.dims[0], operands.labels.meet(x.dims[1], weight.dims[0], shift.dims[0]), *x.dims[2:]]


def resize(module):
    module.width = module.weight.shape[0]


def model_with(layer, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), layer, nn.Conv2d(width, 4, 1))


def test_a_module_that_is_kept_whole_is_frozen_without_a_rule():
    dag = torchorbit.convert(model_with(Scale(8)).eval(), X, atomic=[Scale])
    orbits = torchorbit.find_orbits(dag)
    assert kinds(orbits) == []
    assert orbits.unruled == (f"{__name__}.Scale",)
    assert torchorbit.rules.check_rule(model_with(Scale(8)), X, atomic=[Scale]) == 0


def test_a_rule_makes_it_prunable():
    torchorbit.rules.register_rule(Scale, scale, resize=resize)
    x = X.double()
    dag = torchorbit.convert(model_with(Scale(8)).double().eval(), x, atomic=[Scale])
    orbits = torchorbit.find_orbits(dag)
    (orbit,) = orbits
    assert orbits.unruled == ()
    assert owned(orbit, 2) == {
        ("0.weight", 0): (2,), ("0.bias", 0): (2,), ("1.weight", 0): (2,), ("1.shift", 0): (2,), ("2.weight", 1): (2,),
    }  # fmt: skip
    for inplace in (False, True):
        parameter = dag.get_parameter("1.weight")
        pruned = torchorbit.remove_channels(dag, {orbit: [0, 5]}, inplace=inplace)
        layer = pruned.get_submodule("1")
        assert isinstance(layer, Scale)
        assert (layer.width, layer.weight.shape, layer.shift.shape) == (6, (6,), (6,))
        assert (layer.weight is parameter) == inplace
        if not inplace:
            assert torchorbit.verify_removal(dag, pruned, {orbit: [0, 5]}, x) < 1e-12
            assert dag.get_submodule("1").width == 8
        assert pruned(x).shape == (2, 4, 7, 7)


def test_check_counts_what_it_checked():
    torchorbit.rules.register_rule(Scale, scale, resize=resize)
    # One at a time from every orbit, then half of all.
    assert torchorbit.rules.check_rule(model_with(Scale(8)), X, atomic=[Scale]) == 8 + 1
    assert torchorbit.rules.check_rule(model_with(Scale(5), 5), X, atomic=[Scale]) == 5 + 1
    assert torchorbit.rules.check_rule(model_with(Scale(40), 40), X, atomic=[Scale], seed=3) == 8 + 1


def test_check_leaves_the_model_alone():
    torchorbit.rules.register_rule(Scale, scale, resize=resize)
    model = model_with(Scale(8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torchorbit.rules.check_rule(model, X, atomic=[Scale])
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].width == 8


def test_check_takes_inputs_of_every_kind():
    torchorbit.rules.register_rule(Scale, scale, resize=resize)
    model = Computes(
        lambda self, x, index: self.o(self.s(self.c(x)) + self.e(index)[:, :, None, None]),
        c=nn.Conv2d(3, 6, 1), s=Scale(6), e=nn.Embedding(10, 6), o=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    index = torch.tensor([3, 7])
    for inputs in ((X, index), {"x": X, "index": index}):
        if isinstance(inputs, dict):
            model = nn.Sequential(nn.Conv2d(3, 6, 1), Scale(6), nn.Conv2d(6, 2, 1))
            inputs = {"input": X}
        assert torchorbit.rules.check_rule(model, inputs, atomic=[Scale]) == 7


def test_check_needs_no_rule_of_one_s_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1))
    assert torchorbit.rules.check_rule(model, X) == 9


UNBATCHED = {
    "Conv1d": (nn.Conv1d, [nn.Conv1d(8, 8, 3)]),
    "Conv1d in groups": (nn.Conv1d, [nn.Conv1d(8, 8, 3, groups=4)]),
    "Conv1d depthwise": (nn.Conv1d, [nn.Conv1d(8, 16, 3, groups=8), nn.Conv1d(16, 8, 1)]),
    "Conv2d": (nn.Conv2d, [nn.Conv2d(8, 8, 3, padding=1)]),
    "ConvTranspose1d": (nn.Conv1d, [nn.ConvTranspose1d(8, 8, 3)]),
    "ConvTranspose2d": (nn.Conv2d, [nn.ConvTranspose2d(8, 8, 3, stride=2)]),
    "ConvTranspose3d in groups": (nn.Conv3d, [nn.ConvTranspose3d(8, 8, 1, groups=4)]),
    "InstanceNorm1d": (nn.Conv1d, [nn.InstanceNorm1d(8, affine=True)]),
    "InstanceNorm2d": (nn.Conv2d, [nn.InstanceNorm2d(8, affine=True, track_running_stats=True)]),
    "InstanceNorm2d without weights": (nn.Conv2d, [nn.InstanceNorm2d(8)]),
    "InstanceNorm3d": (nn.Conv3d, [nn.InstanceNorm3d(8, affine=True)]),
    "MaxPool1d": (nn.Conv1d, [nn.MaxPool1d(2)]),
    "pools": (nn.Conv2d, [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.AdaptiveMaxPool2d(5), nn.AdaptiveAvgPool2d(4)]),
    "PixelShuffle": (nn.Conv2d, [nn.PixelShuffle(2), nn.Conv2d(2, 8, 1)]),
    "PixelUnshuffle": (nn.Conv2d, [nn.ZeroPad2d((0, 1, 0, 1)), nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1)]),
    "Softmax": (nn.Conv2d, [nn.ReflectionPad2d(1), nn.Softmax(0)]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", UNBATCHED)
def test_layers_take_a_sample_without_a_batch(case):
    convolution, layers = UNBATCHED[case]
    model = nn.Sequential(convolution(3, 8, 1), *layers, convolution(8, 4, 1))
    shape = (3, *[9] * (convolution(1, 1, 1).weight.dim() - 2))
    dag = torchorbit.convert(model.eval(), torch.randn(shape))
    first = torchorbit.find_orbits(dag).of_tensor("0.weight", 0)
    assert sum(orbit.width for orbit in first) >= 2
    assert all(piece.dim < 2 for orbit in torchorbit.find_orbits(dag) for piece in orbit.slices)
    assert torchorbit.rules.check_rule(model, torch.randn(shape)) > 2


def test_a_convolution_along_channels_takes_a_sample_without_a_batch():
    model = Computes(
        lambda self, x: self.b(self.eca(self.a(x)[None])[0]),
        a=nn.Linear(3, 8), eca=nn.Conv1d(1, 1, 3, padding=1), b=nn.Linear(8, 4),
    )  # fmt: skip
    assert torchorbit.rules.check_rule(model, torch.randn(3)) == 9


def test_check_finds_channels_that_are_passed_on_in_another_order():
    # The weights of a fresh layer are all alike, and zero inputs would hide anything: neither does.
    torchorbit.rules.register_rule(Backwards, scale, resize=resize)
    with pytest.raises(AssertionError, match=r"unit \d of orbit 0.*differs by") as error:
        torchorbit.rules.check_rule(model_with(Backwards(8)), torch.zeros_like(X), atomic=[Backwards])
    assert "8 channels" in str(error.value)


def test_check_finds_a_tie_that_is_missing():
    def loose(operands):
        x = operands.tensor("0")
        return x.dims

    torchorbit.rules.register_rule(Scale, loose, resize=resize)
    with pytest.raises(AssertionError, match="does not run") as error:
        torchorbit.rules.check_rule(model_with(Scale(8)), X, atomic=[Scale])
    assert "orbit" in str(error.value)


def test_check_finds_numbers_that_were_not_set():
    torchorbit.rules.register_rule(Scale, scale)
    with pytest.raises(AssertionError, match="does not run"):
        torchorbit.rules.check_rule(model_with(Scale(8)), X, atomic=[Scale])


def test_check_finds_a_wrong_rule_of_an_operator(monkeypatch):
    # As if flipping left channels where they are.
    monkeypatch.setitem(RULES, "flip", lambda operands: operands.tensor().dims)
    model = Computes(lambda self, x: self.b(self.a(x).flip(1)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    with pytest.raises(AssertionError, match="differs by"):
        torchorbit.rules.check_rule(model, X)


def test_several_results_and_arguments():
    from torchorbit.operators import Labelled

    def mixed(operands):
        x, weight = operands.tensor("0"), operands.tensor("weight")
        half = x.shape[1] // 2
        first, second = operands.piece(x.dims[1], 0, half), operands.piece(x.dims[1], half, 2 * half)
        operands.labels.meet(second, weight.dims[1])
        operands.labels.meet(first, second)  # it takes halves, and can only do so while they are equally long
        operands.source(weight.dims[0])
        operands.sink(weight.dims[1])
        results = ([x.dims[0], weight.dims[0], *x.dims[2:]], [x.dims[0], first, *x.dims[2:]])
        return tuple(Labelled(tuple(shape), dims) for shape, dims in zip(operands.shape, results, strict=True))

    torchorbit.rules.register_rule(Mixed, mixed)

    def forward(self, x):
        first, second = self.mixed(self.stem(x))
        return self.a(first) + self.b(second)

    model = Computes(forward, stem=nn.Conv2d(3, 8, 1), mixed=Mixed(8), a=nn.Conv2d(8, 2, 1), b=nn.Conv2d(4, 2, 1))
    assert torchorbit.rules.check_rule(model, X, atomic=[Mixed]) == 4 + 8 + 1
    orbits = torchorbit.find_orbits(torchorbit.convert(model.eval(), X, atomic=[Mixed]))
    assert kinds(orbits) == [(4, 0), (8, 0)]
    narrow = next(orbit for orbit in orbits if orbit.width == 4)
    assert owned(narrow, 1)["stem.weight", 0] == (1, 5)
    assert "mixed" in narrow.sinks


def test_the_example_in_the_documentation_works():
    from torchorbit.removal import checking

    source = checking.__doc__
    code = "\n".join(line[4:] for line in source.splitlines() if line.startswith("    ") or not line.strip())
    namespace = {"torch": torch, "nn": nn, "torchorbit": torchorbit, "__name__": "example"}
    exec(code, namespace)
    assert namespace["torchorbit"].rules.check_rule(namespace["model"], X, atomic=[namespace["Scale"]]) == 9


@pytest.mark.parametrize("wrong", [Scale(3), "Scale", int])
def test_a_rule_is_for_a_class_of_modules(wrong):
    with pytest.raises(TypeError, match="class of modules"):
        torchorbit.rules.register_rule(wrong, scale)
