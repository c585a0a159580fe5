"""Criteria that look at weights only, against loops over the slices that each unit owns."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import torchorbit
from tests.models import Computes, stir
from torchorbit.criteria import CRITERIA, L1, L2, BatchNormScale, GeometricMedian, Lamp, Magnitude, Random, WeightNorm
from torchorbit.pruning.criteria.magnitude import magnitude

pytestmark = pytest.mark.numeric


def residual():
    """Two producers of one orbit, a depthwise and a grouped convolution, norms with and without scales, a gate."""
    return Computes(
        lambda self, x: self.head(
            (self.inner(self.stem(x)) + self.skip(x)).mean((2, 3))
        ),
        stem=nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        skip=nn.Sequential(nn.Conv2d(3, 12, 7, bias=False), nn.BatchNorm2d(12)),
        inner=nn.Sequential(
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 12, 3, groups=2),
            nn.GroupNorm(3, 12),
        ),
        head=nn.Sequential(nn.Linear(12, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4)),
    )  # fmt: skip


def of(model, *size):
    return torchorbit.find_orbits(torchorbit.convert(stir(model).eval(), torch.randn(2, *size)))


@pytest.fixture(scope="module")
def small():
    return of(residual(), 3, 11, 11)


@pytest.fixture(scope="module")
def vit():
    model = timm.create_model(
        "vit_tiny_patch16_224", scriptable=False, img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5
    )
    return of(model, 3, 32, 32)


@pytest.fixture(params=["small", "vit"])
def orbits(request):
    return request.getfixturevalue(request.param)


def slices(orbit, unit, sources=None):
    """The values of what a unit owns of parameters, by (tensor, dimension)."""
    parameters = dict(orbit.orbits.model.dag.named_parameters())
    return {
        (piece.tensor, piece.dim): parameters[piece.tensor].detach().double().index_select(
            piece.dim, torch.tensor(piece.indices)
        ).numpy()
        for piece in torchorbit.inspect.unit_slices(orbit, unit)
        if piece.tensor in parameters and (sources is None or (piece.tensor, piece.dim) in sources)
    }  # fmt: skip


def kernels(orbit):
    """The kernels of the layers that produce an orbit's channels, along their outputs."""
    modules = {vertex.name: getattr(vertex, "target", "") for vertex in orbit.orbits.model.graph.vertices}
    return {(f"{modules[name]}.weight", 0) for name in orbit.sources} or None


def assert_scores(scores, orbits, expected):
    assert list(scores) == list(orbits)
    for orbit in orbits:
        np.testing.assert_allclose(
            scores[orbit], [expected(orbit, u) for u in range(orbit.width)], rtol=1e-9, err_msg=str(orbit)
        )


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, math.inf])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_a_weight_norm_is_reduced_over_the_slices_of_a_unit(orbits, p, reduce):
    def expected(orbit, unit):
        norms = [np.linalg.norm(values.reshape(-1), p) for values in slices(orbit, unit).values()]
        return {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce](norms)

    assert_scores(WeightNorm(p=p, reduce=reduce).scores(orbits), orbits, expected)


def test_norms_of_sources_are_those_of_the_filters_of_the_producing_layers(orbits):
    def expected(orbit, unit):
        return np.mean([np.abs(values).sum() for values in slices(orbit, unit, kernels(orbit)).values()])

    assert_scores(L1(over="sources").scores(orbits), orbits, expected)


def test_the_filters_of_a_plain_convolution_are_ranked_as_by_li_et_al():
    model = stir(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))).eval()
    (orbit,) = of(model, 3, 8, 8)
    expected = model[0].weight.detach().double().abs().sum((1, 2, 3))
    np.testing.assert_allclose(L1(over="sources").scores(orbit.orbits)[orbit], expected, rtol=1e-12)


def test_kernels_that_are_standardized_in_forward_are_those_of_the_producing_layers():
    model = Computes(
        lambda self, x: self.last(torch.nn.functional.conv2d(
            x, torch.nn.functional.batch_norm(self.weight.reshape(1, 8, -1), None, None, training=True).reshape(8, 3, 3, 3)
        )),
        weight=nn.Parameter(torch.randn(8, 3, 3, 3)), last=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    (orbit,) = of(model, 3, 6, 6)
    expected = model.weight.detach().double().abs().sum((1, 2, 3))
    np.testing.assert_allclose(L1(over="sources").scores(orbit.orbits)[orbit], expected, rtol=1e-12)


def test_an_orbit_that_no_layer_produces_counts_all_of_its_slices():
    model = Computes(lambda self, x: x.mean() + self.last(self.free), free=nn.Parameter(torch.randn(1, 6)),
                     last=nn.Linear(6, 2))  # fmt: skip
    (orbit,) = of(model, 4)
    assert orbit.sources == ()
    np.testing.assert_allclose(
        L2(over="sources").scores(orbit.orbits)[orbit], L2().scores(orbit.orbits)[orbit], rtol=1e-12
    )


@pytest.mark.parametrize("how", ["sum", "mean", "max", "l2", "standard"])
def test_norms_of_tensors_are_normalized_before_they_are_reduced(small, how):
    divisor = {"sum": np.sum, "mean": np.mean, "max": np.max, "l2": np.linalg.norm}
    scores = L2(normalize=how, per="tensor", reduce="sum").scores(small)
    for orbit in small:
        units = [slices(orbit, unit) for unit in range(orbit.width)]
        expected = np.zeros(orbit.width)
        for key in units[0]:
            norms = np.array([np.linalg.norm(unit[key]) for unit in units])
            expected += (norms - norms.mean()) / norms.std() if how == "standard" else norms / divisor[how](norms)
        np.testing.assert_allclose(scores[orbit], expected, rtol=1e-9)


def test_norms_of_orbits_have_equal_means(small):
    for scores in L1(normalize="mean").scores(small).values():
        assert scores.mean() == pytest.approx(1, rel=1e-12)


def test_norms_over_all_orbits_keep_their_proportions(small):
    plain, scaled = L1().scores(small), L1(normalize="max", per="all").scores(small)
    largest = max(scores.max() for scores in plain.values())
    for orbit in small:
        np.testing.assert_allclose(scaled[orbit], plain[orbit] / largest, rtol=1e-12)


def test_a_magnitude_is_relative_to_the_tensors(orbits):
    parameters = {name: p.detach().double() for name, p in orbits.model.dag.named_parameters()}

    def expected(orbit, unit):
        owned = slices(orbit, unit)
        squares = sum((v**2).sum() / parameters[name].square().mean().item() for (name, _), v in owned.items())
        return math.sqrt(squares / sum(v.size for v in owned.values()))

    assert_scores(Magnitude().scores(orbits), orbits, expected)
    assert_scores({orbit: magnitude(orbit) for orbit in orbits}, orbits, expected)


@pytest.mark.parametrize("over", ["all", "sources"])
def test_lamp_is_the_share_in_what_is_left(orbits, over):
    def square(orbit, unit):
        owned = slices(orbit, unit, kernels(orbit) if over == "sources" else None)
        return sum((values**2).sum() for values in owned.values())

    def expected(orbit, unit):
        squares = [square(orbit, other) for other in range(orbit.width)]
        return squares[unit] / sum(other for other in squares if other >= squares[unit])

    scores = Lamp(over=over).scores(orbits)
    assert_scores(scores, orbits, expected)
    assert all(values.max() == 1 for values in scores.values())


def test_lamp_of_equal_units_and_of_zeros():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    dag = torchorbit.convert(model.eval(), torch.randn(2, 3))
    with torch.no_grad():
        for name, parameter in dag.named_parameters():
            parameter.fill_(0.0 if name == "0.weight" else 1.0)
    first, second = orbits = torchorbit.find_orbits(dag)
    scores = Lamp(over="sources").scores(orbits)
    assert scores[first].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(scores[second], [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-12)


def test_batch_norm_scales_and_magnitudes_of_the_same_mean_where_there_are_none(small):
    model = small.model.dag
    scores = BatchNormScale().scores(small)
    (stem,), (skip,) = small.of_tensor("stem.0.weight"), small.of_tensor("skip.0.weight")
    gammas = {
        orbit: model.get_parameter(path).detach().double().abs().numpy()
        for orbit, path in ((stem, "stem.1.weight"), (skip, "skip.1.weight"))
    }
    passing = [orbit for orbit in small if any(".1.weight" in s.tensor and s.tensor[0] == "s" for s in orbit.slices)]
    for orbit in passing:
        positions = [
            [
                i
                for s in torchorbit.inspect.unit_slices(orbit, u)
                if s.tensor in ("stem.1.weight", "skip.1.weight")
                for i in s.indices
            ]
            for u in range(orbit.width)
        ]
        gamma = gammas[stem if any(s.tensor == "stem.1.weight" for s in orbit.slices) else skip]
        np.testing.assert_allclose(scores[orbit], [gamma[p].mean() for p in positions], rtol=1e-12)
    usual = np.concatenate([scores[orbit] for orbit in passing]).mean()
    others = [orbit for orbit in small if orbit not in passing]
    assert others
    for orbit in others:
        expected = usual * magnitude(orbit) / magnitude(orbit).mean()
        np.testing.assert_allclose(scores[orbit], expected, rtol=1e-12)


def test_scales_of_other_norms_count_on_request(small):
    (hidden,) = small.of_tensor("head.0.weight")
    gamma = small.model.dag.get_parameter("head.1.weight").detach().abs()
    np.testing.assert_allclose(BatchNormScale(norms="all").scores(small)[hidden], gamma, rtol=1e-12)
    assert not np.allclose(BatchNormScale().scores(small)[hidden], gamma)


def test_without_batch_norms_scales_are_magnitudes(vit):
    scores = BatchNormScale().scores(vit)
    for orbit in vit:
        np.testing.assert_allclose(scores[orbit], magnitude(orbit), rtol=1e-12)


@pytest.mark.parametrize("over", ["all", "sources"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_fpgm_sums_distances_to_all_other_filters(orbits, over, reduce):
    def expected(orbit, unit):
        wanted = kernels(orbit) if over == "sources" else None
        ours = slices(orbit, unit, wanted)
        others = [slices(orbit, other, wanted) for other in range(orbit.width)]
        sums = [sum(np.linalg.norm(ours[key] - other[key]) for other in others) for key in ours]
        return {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce](sums)

    scores = GeometricMedian(over=over, reduce=reduce).scores(orbits)
    for orbit in orbits:
        np.testing.assert_allclose(scores[orbit], [expected(orbit, u) for u in range(orbit.width)], rtol=1e-12)


def test_the_filter_at_the_geometric_median_goes_first_whatever_its_norm():
    model = stir(nn.Sequential(nn.Linear(2, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0, 9.0], [10.0, 10.0], [11.0, 11.0], [0.1, 0.1], [20.0, 20.0]]))
    dag = torchorbit.convert(model, torch.randn(2, 2))
    (orbit,) = orbits = torchorbit.find_orbits(dag)
    assert GeometricMedian().scores(orbits)[orbit].argmin() == 1
    assert L2(over="sources").scores(orbits)[orbit].argmin() == 3


def test_random_scores_are_those_of_their_seed(small):
    first, again, other = (Random(seed).scores(small) for seed in (1, 1, 2))
    for orbit in small:
        assert np.array_equal(first[orbit], again[orbit])
        assert not np.array_equal(first[orbit], other[orbit])
        assert len(set(first[orbit])) == orbit.width


WEIGHTED = [criterion for name, criterion in CRITERIA.items() if name in (
    "magnitude", "l1", "l2", "weight_norm", "lamp", "bn_scale", "geometric_median",
)]  # fmt: skip


def test_all_of_them_are_known_by_name():
    assert len(WEIGHTED) == 7
    assert CRITERIA["random"] is Random


@pytest.mark.parametrize("criterion", WEIGHTED)
def test_half_precision_gives_what_its_numbers_give_in_single_precision(criterion):
    half = stir(residual()).half()
    single = copy.deepcopy(half).float()
    with torch.device("meta"):
        shape = torch.empty(2, 3, 11, 11)
    ours, theirs = (
        criterion().scores(torchorbit.find_orbits(torchorbit.convert(model.eval(), shape.to(dtype))))
        for model, dtype in ((half, torch.float16), (single, torch.float32))
    )
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("criterion", WEIGHTED)
def test_what_is_read_under_two_names_counts_once(criterion):
    class Tied(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.first, self.second = nn.Linear(3, 6, bias=False), nn.Linear(3, 6, bias=False)
            self.last = nn.Linear(6, 2)
            if tied:
                self.second.weight = self.first.weight

        def forward(self, x):
            second = self.second(x) if self.second.weight is self.first.weight else self.first(2 * x)
            return self.last(self.first(x) + second)

    torch.manual_seed(0)
    tied = Tied(True).eval()
    once = Tied(False).eval()
    once.load_state_dict(tied.state_dict())
    scores = []
    for model in (tied, once):
        (orbit,) = orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.randn(2, 3)))
        scores.append(criterion().scores(orbits)[orbit])
    np.testing.assert_allclose(*scores, rtol=1e-12)


@pytest.mark.parametrize("criterion", [*WEIGHTED, Random])
def test_tables_of_weights_and_positions_of_several_units_are_scored(criterion):
    class Conditional(nn.Module):
        """Weights of a convolution from a table of experts (``efficientnet_cc``): cut along outputs and inputs."""

        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 2, 1)
            self.routing, self.experts = nn.Linear(6, 4), nn.Parameter(torch.randn(4, 8 * 6 * 9))

        def forward(self, x):
            x = self.stem(x)
            weight = torch.sigmoid(self.routing(x.mean((2, 3)))) @ self.experts
            batch, _, height, width = x.shape
            weight = weight.reshape(batch * 8, 6, 3, 3)
            y = nn.functional.conv2d(x.reshape(1, batch * 6, height, width), weight, groups=batch)
            return self.head(y.reshape(batch, 8, height - 2, width - 2))

    orbits = of(Conditional(), 3, 7, 7)
    ((outputs,),) = ([orbit for orbit in orbits.of_tensor("experts", 1) if orbit.width == 8],)
    scores = criterion().scores(orbits)
    assert all(np.isfinite(values).all() and (values > 0).all() for values in scores.values())
    if criterion is L2:
        table = orbits.model.dag.get_parameter("experts").detach().double().reshape(4, 8, 54)
        head = orbits.model.dag.get_parameter("head.weight").detach().double()
        expected = (table.square().sum((0, 2)).sqrt() + head.square().sum((0, 2, 3)).sqrt()) / 2
        np.testing.assert_allclose(scores[outputs], expected, rtol=1e-12)


@pytest.mark.parametrize("criterion", [*WEIGHTED, Random])
def test_where_nothing_can_be_removed_there_are_no_scores(criterion):
    orbits = of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), 3)
    assert dict(criterion().scores(orbits)) == {}


@pytest.mark.parametrize("criterion", WEIGHTED)
def test_without_weights_there_is_an_error_that_says_so(criterion):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    orbits = torchorbit.find_orbits(torchorbit.convert(model, torch.empty(2, 3, device="meta")))
    with pytest.raises(ValueError, match="meta device, where weights have no magnitude"):
        criterion().scores(orbits)
    assert len(Random().scores(orbits)) == 1


def test_names_say_which_options_are_not_as_by_default():
    assert str(L1()) == "l1"
    assert str(L1(over="sources", reduce="max")) == "l1(over='sources', reduce='max')"
    assert str(WeightNorm(p=3.0)) == "weight_norm(p=3.0)"
    assert str(Random(7)) == "random(seed=7)"
    assert str(Magnitude()) == "magnitude"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightNorm(p=0), "p=0, expected a number above 0"),
        (lambda: WeightNorm(p=math.nan), "p=nan, expected a number above 0"),
        (lambda: L1(over="sinks"), "over='sinks', expected one of 'all', 'sources'"),
        (lambda: L2(reduce="prod"), "reduce='prod', expected one of 'mean', 'sum', 'max'"),
        (lambda: L2(normalize="median"), "normalize='median', expected one of 'sum'"),
        (lambda: L2(per="layer"), "per='layer', expected one of 'tensor', 'orbit', 'all'"),
        (lambda: Lamp(over=""), "over='', expected one of"),
        (lambda: BatchNormScale(norms="layer"), "norms='layer', expected one of 'batch', 'all'"),
        (lambda: GeometricMedian(reduce="min"), "reduce='min', expected one of"),
        (lambda: Random(-1), "seed=-1, expected a whole number from 0 on"),
    ],
)
def test_options_that_there_are_not(make, message):
    with pytest.raises(ValueError, match=message):
        make()
