"""Sizes: what a forward computes from the shapes of its inputs holds for other batches and other resolutions, or raises."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import torchorbit
from tests.models import Computes, assert_converts, assert_same, by_source, outcome, reloaded, stir

pytestmark = pytest.mark.numeric

X = torch.randn(1, 4, 6)
IMAGE = torch.randn(1, 3, 16, 16)
BATCHES = [torch.randn(batch, 4, 6) for batch in (1, 2, 3, 5, 8)]
RESOLUTIONS = [torch.randn(2, 3, h, w) for h, w in ((16, 16), (15, 18), (24, 16), (31, 9))]


def pad_to(x, multiple):
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def pad_if_needed(x, multiple):
    height, width = x.shape[-2:]
    below, right = (multiple - height % multiple) % multiple, (multiple - width % multiple) % multiple
    if below > 0 or right > 0:
        x = F.pad(x, (0, right, 0, below))
    return x


def windows(x, size):
    x = pad_to(x, size)
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, channels)


def unrolled(x):
    out = []
    for position in range(x.shape[1]):
        out.append(x[:, position] * (position + 1))
    return torch.stack(out, 1)


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.view(len(x), 24),
        lambda x: x.view(x.size(0) * 2, 12),
        lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]) @ torch.ones(6, 2),
        lambda x: x * x.numel(),
        lambda x: x * torch.numel(x),
        lambda x: x * x.nelement(),
        lambda x: x * x.shape.numel(),
        lambda x: x * math.prod(x.shape),
        lambda x: x * sum(x.shape),
        lambda x: x * len(x),
        lambda x: x * -x.shape[0],
        lambda x: x * abs(x.shape[0] - 4),
        lambda x: x / x.shape[0],
        lambda x: x * x.shape[0] ** -0.5,
        lambda x: x * (x.shape[0] // 4),
        lambda x: x * math.ceil(x.shape[0] / 4),
        lambda x: x * math.floor(x.shape[0] / 2),
        lambda x: x * round(x.shape[0] / 2),
        lambda x: x * (x.shape[0] % 3),
        lambda x: x.expand(x.shape[0], -1, -1),
        lambda x: x[:1].expand(x.shape[0], 4, 6),
        lambda x: torch.zeros(x.shape[0], 2) + torch.arange(x.shape[0])[:, None],
        lambda x: x.sum(0) * (1.0 / x.shape[0]),
        lambda x: x[torch.arange(x.shape[0]), 1],
        lambda x: x.unflatten(0, (x.shape[0], 1)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, x.shape[0])),
        lambda x: x.squeeze(),
        unrolled,
    ),
)
def test_any_batch_works(function):
    dag = assert_converts(function, X, *BATCHES)
    assert dag.provenance.free_batch


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x * math.sqrt(x.shape[0]),
        lambda x: x * math.log(x.shape[0]),
        lambda x: x * int(x.shape[0] / 2),
        lambda x: x * float(x.shape[0]),
        lambda x: x * (0.5 * x.shape[0]),
        lambda x: x / torch.tensor(x.shape[0]),
        lambda x: x / torch.tensor(float(x.shape[0])),
        lambda x: x * torch.tensor([x.shape[0], 1.0]).sum(),
        lambda x: x * [0, 3, 1, 4, 1, 5, 9, 2, 6][x.shape[0]],
        lambda x: x * len(str(10 ** x.shape[0])),
        lambda x: torch.stack([row * 2 for row in x]),
        lambda x: torch.stack([x[n] * n for n in range(x.shape[0])]),
        lambda x: x * min(x.shape[0], 4),
        lambda x: x * max(x.shape[0], 4),
        lambda x: x if x.shape[0] < 4 else x * 2,
        lambda x: x * bool(x.shape[0] > 3),
        lambda x: x if x.shape[0] == 1 else x * 2,
        lambda x: x if x.shape == torch.Size([1, 4, 6]) else x * 2,
    ),
)
def test_another_batch_is_right_or_raises_and_never_differs(function):
    model = Computes(function)
    dag = torchorbit.convert(model, X)
    assert_same(outcome(dag, X), outcome(model, X))
    for x in BATCHES:
        try:
            out = outcome(dag, x)
        except torchorbit.errors.GraphRunError:
            continue
        assert_same(out, outcome(model, x))


def test_a_fixed_batch_is_the_one_of_the_example_and_said_so():
    model = Computes(lambda x: x * math.sqrt(x.shape[0]))
    for batch in (1, 2, 4):
        x = torch.randn(batch, 4, 6)
        dag = torchorbit.convert(model, x)
        assert not dag.provenance.free_batch
        assert_same(dag(x), model(x))
        with pytest.raises(torchorbit.errors.GraphRunError, match=r"test_sizes.py:\d+\)"):
            dag(torch.randn(7, 4, 6))


def test_what_fixes_the_batch_size_is_said_with_its_line_in_a_file_too():
    def numbered(x):
        rows = [x[0] * 1]
        rows += [x[n] * n for n in range(1, x.shape[0])]
        return torch.stack(rows)

    dag = torchorbit.convert(Computes(lambda m, x: m.inner(x), inner=Computes(numbered)), X)
    line = numbered.__code__.co_firstlineno
    for graph in (dag, reloaded(dag)):
        with pytest.raises(torchorbit.errors.GraphRunError, match=rf"test_sizes.py:{line + 3}\)") as raised:
            graph(torch.randn(3, 4, 6))
        assert "/" not in str(raised.value)


def test_a_free_batch_is_said_so():
    provenance = torchorbit.convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), X).provenance
    assert provenance.free_batch
    assert provenance.input_shapes == ((1, 4, 6),)


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x.flatten(2).transpose(1, 2),
        lambda x: x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[-2:]),
        lambda x: F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] * 2)),
        lambda x: F.interpolate(x, size=(round(x.shape[2] * 0.5), math.ceil(x.shape[3] / 3))),
        lambda x: F.interpolate(x, size=(abs(-x.shape[2]), 4)),
        lambda x: pad_to(x, 8),
        lambda x: pad_to(x, 7),
        lambda x: windows(x, 4),
        lambda x: windows(x, 5),
        lambda x: x[:, :, : x.shape[2] // 2],
        lambda x: x[..., x.shape[-1] // 2 :],
        lambda x: x[:, :, : -(x.shape[2] // 4)],
        lambda x: x + torch.arange(x.shape[-1]),
        lambda x: x * torch.linspace(0, 1, x.shape[2])[:, None],
        lambda x: x + torch.zeros(x.shape),
        lambda x: x * (x.shape[2] * x.shape[3]) ** -0.5,
        lambda x: x.split(x.shape[2] // 3, 2)[0],
        lambda x: x.split([x.shape[2] - 4, 4], 2)[0],
        lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4),
        lambda x: F.unfold(x, 4, stride=4),
        lambda x: x.roll((x.shape[2] // 2, 1), (2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 7).flatten(1),
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: x.view(x.size(0), -1).sum(1),
        lambda x: x + torch.eye(x.shape[2], x.shape[3]),
        lambda x: x.new_ones(x.shape[-2:]) + x,
        lambda x: (x, x.shape[2], tuple(x.shape)),
    ),
)
def test_another_resolution_works(function):
    dag = assert_converts(function, IMAGE, *RESOLUTIONS)
    assert dag.provenance.free_lengths


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: pad_if_needed(x, 8),
        lambda x: pad_if_needed(x, 5),
        lambda x: x if x.shape[2] >= x.shape[3] else x.mT,
        lambda x: F.avg_pool2d(x, 2) if x.shape[-1] > 20 else x,
        lambda x: F.pad(x, (0, x.shape[-1] & 1)),
        lambda x: F.pad(x, (0, x.shape[-1] >> 3)),
        lambda x: F.pad(x, (0, divmod(x.shape[-1], 4)[1])),
        lambda x: x * math.sqrt(x.shape[-1]),
        lambda x: x[..., : int(x.shape[-1] * 0.5)],
        lambda x: x[..., : min(x.shape[-1], 16)],
        lambda x: x[:, :, : max(4, x.shape[2] - 8)],
        lambda x: x * torch.tensor(x.shape[-1]),
        lambda x: x[..., :16] * 2,
        lambda x: torch.stack(list(x.unbind(2)), 2),
        lambda x: torch.cat([x[:, :, i :: x.shape[2] // 4] for i in range(2)], 1),
        lambda x: x.flatten(1) @ torch.ones(768, 2),
        lambda x: x + torch.zeros(16, 16),
    ),
)
def test_another_resolution_is_right_or_raises_and_never_differs(function):
    model = Computes(function)
    dag = torchorbit.convert(model, IMAGE)
    assert_same(outcome(dag, IMAGE), outcome(model, IMAGE))
    for x in RESOLUTIONS:
        try:
            out = outcome(dag, x)
        except torchorbit.errors.GraphRunError:
            continue
        assert_same(out, outcome(model, x))


def test_a_path_that_depends_on_the_size_is_refused_by_name():
    model = nn.Sequential(Computes(lambda x: F.avg_pool2d(x, 2) if x.shape[-1] > 20 else x * 2), nn.Conv2d(3, 4, 3))
    dag = torchorbit.convert(model, IMAGE)
    with pytest.raises(torchorbit.errors.GraphRunError) as raised:
        dag(torch.randn(1, 3, 32, 32))
    assert raised.value.vertex


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x.flatten(1) @ torch.ones(768, 2),
        lambda x: x.reshape(-1, 3, 256),
        lambda x: x + torch.zeros(16, 16),
        lambda x: x.view(-1, 3, 4, 4, 4, 4),
    ),
)
def test_a_vertex_that_fixes_the_resolution_is_named(function):
    model = nn.Sequential(nn.Identity(), Computes(function))
    dag = torchorbit.convert(model, IMAGE)
    with pytest.raises(torchorbit.errors.GraphRunError) as raised:
        dag(torch.randn(1, 3, 20, 24))
    assert raised.value.vertex
    assert raised.value.vertex in str(raised.value)
    assert "20, 24" in str(raised.value)


def test_an_index_beyond_a_smaller_input_is_an_error_that_names_the_vertex():
    dag = torchorbit.convert(nn.Sequential(Computes(lambda x: x[:, :, 9])), IMAGE)
    with pytest.raises(torchorbit.errors.GraphRunError, match="getitem"):
        dag(torch.randn(1, 3, 8, 8))


def test_another_number_of_tokens_works():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            batch, tokens, width = x.shape
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (q @ k.transpose(-2, -1) * (width // 2) ** -0.5).softmax(-1)
            return (weights @ v).transpose(1, 2).reshape(batch, tokens, width)

    dag = assert_converts(Attention(), torch.randn(1, 6, 8), torch.randn(3, 6, 8), torch.randn(2, 11, 8))
    assert dag.provenance.free_lengths


def test_tokens_with_a_table_that_limits_them():
    model = Computes(lambda m, x: x + m.table[: x.shape[1]], table=nn.Parameter(torch.randn(8, 4)))
    dag = assert_converts(model, torch.randn(1, 8, 4), torch.randn(3, 8, 4))
    for tokens in (5, 7, 9):
        x = torch.randn(2, tokens, 4)
        try:
            out = dag(x)
        except torchorbit.errors.GraphRunError:
            continue
        assert_same(out, model(x))


def test_ids_of_tokens_as_input():
    model = Computes(lambda m, ids: m.embed(ids) + m.place(torch.arange(ids.shape[1], device=ids.device)),
                     embed=nn.Embedding(10, 4), place=nn.Embedding(16, 4))  # fmt: skip
    ids = torch.randint(0, 10, (1, 5))
    assert_converts(model, ids, torch.randint(0, 10, (3, 5)), torch.randint(0, 10, (2, 4)))


# Real models: name -> another size than their own, with arguments that make them smaller.
SCALABLE = {
    "resnet10t": ((2, 3, 150, 90), {}),
    "resnetv2_18d": ((1, 3, 130, 97), {}),
    "densenet121": ((1, 3, 130, 96), {}),
    "test_efficientnet": ((2, 3, 97, 130), {}),
    "tf_efficientnet_b0": ((1, 3, 97, 130), {}),
    "mobilenetv3_small_050": ((2, 3, 97, 150), {}),
    "regnety_002": ((2, 3, 100, 133), {}),
    "dla46x_c": ((1, 3, 96, 160), {}),
    "hrnet_w18_small": ((1, 3, 96, 160), {}),
    "test_convnext2": ((2, 3, 100, 133), {}),
    "convnextv2_atto": ((1, 3, 100, 133), {}),
    "inception_next_atto": ((1, 3, 160, 97), {}),
    "test_mambaout": ((1, 3, 100, 70), {}),
    "poolformerv2_s12": ((1, 3, 160, 96), {}),
    "fastvit_t8": ((1, 3, 160, 96), {}),
    "swiftformer_xs": ((1, 3, 160, 96), {}),
    "efficientvit_b0": ((1, 3, 160, 96), {}),
    "cpubone_nano": ((1, 3, 160, 96), {}),
    "pvt_v2_b0": ((1, 3, 160, 96), {}),
    "edgenext_xx_small": ((1, 3, 160, 96), {}),
    "mobilevit_xxs": ((1, 3, 192, 128), {}),
    "davit_tiny": ((1, 3, 140, 100), {"depths": (1, 1, 1, 1)}),
    "focalnet_tiny_srf": ((1, 3, 130, 97), {}),
    "twins_svt_small": ((1, 3, 224, 448), {}),
    "xcit_nano_12_p16_224": ((1, 3, 170, 96), {"depth": 2}),
    "sequencer2d_s": ((1, 3, 112, 70), {"layers": (1, 1, 1, 1)}),
    "lambda_resnet26t": ((1, 3, 192, 192), {}),
    "swin_tiny_patch4_window7_224": ((1, 3, 256, 256), {"embed_dim": 48, "strict_img_size": False}),
}
# Other sizes for which the source takes another path: it pads, or resamples what it need not at its own size.
OTHER_PATH = {
    "mobilevit_xxs": ((1, 3, 160, 96), {}),
    "twins_svt_small": ((1, 3, 128, 96), {}),
    "test_vit": ((1, 3, 128, 96), {"dynamic_img_size": True}),
    "eva02_tiny_patch14_224": ((1, 3, 224, 280), {"dynamic_img_size": True, "depth": 2}),
}
FIXED = {
    "test_vit": (1, 3, 192, 160),
    "mixer_s32_224": (1, 3, 192, 192),
    "swin_s3_tiny_224": (1, 3, 256, 256),
    "levit_128s": (1, 3, 192, 192),
    "tiny_vit_5m_224": (1, 3, 256, 256),
    "botnet26t_256": (1, 3, 192, 192),
    "test_vit_relpos": (1, 3, 192, 192),
    "crossvit_tiny_240": (1, 3, 192, 192),
    "pit_ti_224": (1, 3, 192, 192),
    "gmlp_ti16_224": (1, 3, 192, 192),
    "convit_tiny": (1, 3, 192, 192),
    "maxvit_pico_rw_256": (1, 3, 192, 192),
    "swinv2_cr_tiny_224": (1, 3, 256, 256),
    "coat_tiny": (1, 3, 192, 192),
    "nest_tiny": (1, 3, 192, 192),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCALABLE)
def test_a_timm_model_that_takes_another_resolution_does_so_as_a_graph(name):
    shape, options = SCALABLE[name]
    model = stir(timm.create_model(name, **options)).eval()
    dag = torchorbit.convert(model, torch.randn(1, *model.pretrained_cfg["input_size"]))
    x = torch.randn(shape)
    with torch.no_grad():
        assert_same(dag(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_PATH)
def test_a_timm_model_that_takes_another_path_at_another_resolution_is_refused_by_name(name):
    shape, options = OTHER_PATH[name]
    model = stir(timm.create_model(name, **options)).eval()
    dag = torchorbit.convert(model, torch.randn(1, *model.pretrained_cfg["input_size"]))
    x = torch.randn(shape)
    assert outcome(model, x).isfinite().all()
    with pytest.raises(torchorbit.errors.GraphRunError) as raised:
        outcome(dag, x)
    assert raised.value.vertex


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_a_timm_model_of_a_fixed_resolution_raises_and_names_the_vertex(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    dag = torchorbit.convert(model, torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    with pytest.raises(torchorbit.errors.GraphRunError) as raised:
        dag(torch.empty(FIXED[name], device="meta"))
    assert raised.value.vertex
    assert str(tuple(FIXED[name])) in str(raised.value)


@pytest.mark.parametrize("limit", ["min", "max", "eps", "tiny"])
def test_limits_of_the_dtype_follow_it(limit):
    def masked(x):
        number = getattr(torch.finfo(x.dtype), limit)
        hidden = torch.full((x.shape[1], x.shape[1]), number, dtype=x.dtype, device=x.device).triu(1)
        return (x @ x.mT).clamp(min=number) * 0.5 + hidden + torch.tensor(number, dtype=x.dtype)

    x = torch.randn(2, 5, 4)
    dag = assert_converts(masked, x)
    assert dag.provenance.free_dtype
    for dtype in (torch.float64, torch.bfloat16):
        assert_same(dag(x.to(dtype)), masked(x.to(dtype)))


def test_a_graph_of_any_number_of_nodes_and_edges_converts():
    def forward(self, nodes, edges):
        source, target = edges
        messages = self.message(torch.cat([nodes[source], nodes[target]], -1)).relu()
        return self.head(torch.zeros_like(nodes).index_add(0, target, messages))

    model = Computes(forward, message=nn.Linear(12, 6), head=nn.Linear(6, 3))

    def graph(nodes, edges):
        return torch.randn(nodes, 6), torch.randint(0, nodes, (2, edges))

    dag = assert_converts(model, graph(5, 11), graph(5, 11), graph(9, 4), graph(2, 30))
    assert dag.provenance.free_batch
    assert dag.provenance.free_lengths


@pytest.mark.parametrize(
    "function",
    by_source(
        lambda x: x * max(x.shape[1], 7),
        lambda x: x * 2 if x.shape[1] in torch.tensor([2, 4]) else x,
        lambda x: x * [0, 1, 2, 3, 4, 7, 8, 8][x.shape[1]],
    ),
)
def test_a_length_that_was_tried_and_is_not_free_is_refused_though_another_is(function):
    model = Computes(function)
    dag = torchorbit.convert(model, X)
    for graph in (dag, reloaded(dag)):
        assert_same(graph(torch.ones(3, 4, 9)), model(torch.ones(3, 4, 9)))
        for length in (2, 5, 7):
            x = torch.ones(2, length, 6)
            with pytest.raises(torchorbit.errors.GraphRunError, match=r"the size is fixed|another path"):
                graph(x)
