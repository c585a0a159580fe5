"""Everything that works on a module works on a graph: other dtypes and devices, copies, pickles, compilers, exporters."""

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import nn

import torchorbit
from tests.models import Computes, assert_equal, assert_same, outcome, stir
from torchorbit.graph.dag import DagModule

pytestmark = pytest.mark.numeric

X = torch.randn(3, 4, 8)


def small():
    """Blocks, constants, a choice by mode, an operator on sizes."""
    block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.GELU(), nn.Dropout(0.3))
    return stir(
        Computes(
            lambda m, x: (
                m.head(m.block(x).reshape(x.shape[0], -1)) * torch.tensor([1.0, 2, 3])
                + torch.arange(3, device=x.device, dtype=x.dtype)
            ),
            block=block,
            head=nn.Linear(32, 3),
        )
    ).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext2", "test_resnet", "levit_128s", "swin_s3_tiny_224", "pvt_v2_b0"]
)
def test_another_dtype_is_that_of_the_source(name, dtype):
    options = {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "window_size": (7, 7)} if "swin" in name else {}
    model = stir(timm.create_model(name, **options)).eval()
    size = model.pretrained_cfg["input_size"]
    dag = copy.deepcopy(torchorbit.convert(model, torch.randn(1, *size))).to(dtype)
    x = torch.randn(1, *size, dtype=dtype)
    assert_same(outcome(dag, x), outcome(copy.deepcopy(model).to(dtype), x))


def test_a_graph_of_a_model_in_another_dtype():
    model = nn.Sequential(nn.Linear(8, 8), Computes(lambda x: x + torch.zeros(8, dtype=x.dtype))).bfloat16()
    dag = torchorbit.convert(model, X.bfloat16())
    assert_same(dag(X.bfloat16()), model(X.bfloat16()))
    assert_same(dag.float()(X), model.float()(X))


def test_a_graph_moves_to_another_device():
    # Meta stands for any device that is not the one of the example.
    dag = torchorbit.convert(small(), X)
    moved = copy.deepcopy(dag).to("meta")
    assert moved(X.to("meta")).shape == (3, 3)
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert dag(X).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["test_vit", "test_convnext2", "test_resnet", "levit_128s", "swinv2_cr_tiny_224"])
def test_a_graph_runs_on_a_gpu(name):
    model = stir(timm.create_model(name)).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    dag = torchorbit.convert(model, x).cuda()
    assert_same(outcome(dag, x.cuda()), outcome(model.cuda(), x.cuda()), tolerance=1e-4)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda dag: pickle.loads(pickle.dumps(dag)),
        lambda dag: torch.load(_saved(dag), weights_only=False),
        lambda dag: copy.deepcopy(copy.deepcopy(dag)),
    ],
    ids=["deepcopy", "pickle", "torch.save", "deepcopy twice"],
)
def test_a_copy_is_equal_and_independent(duplicate):
    dag = torchorbit.convert(small(), X)
    dag.get_submodule("block.0").requires_grad_(False)
    expected = outcome(dag, X)
    again = duplicate(dag)
    assert_equal(outcome(again, X), expected)
    assert again.graph == dag.graph
    assert again.provenance == dag.provenance
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in dag.parameters()]
    with torch.no_grad():
        for tensor in (*again.parameters(), *again.buffers()):
            tensor.zero_()
    assert_equal(outcome(dag, X), expected)
    assert isinstance(again.get_submodule("block"), DagModule)
    assert_equal(outcome(again.flatten(), X), outcome(again, X))


def _saved(dag):
    file = io.BytesIO()
    torch.save(dag, file)
    file.seek(0)
    return file


def test_a_shallow_copy_shares_its_weights():
    dag = torchorbit.convert(small(), X)
    again = copy.copy(dag)
    assert_equal(outcome(again, X), outcome(dag, X))


def test_hooks_on_a_graph_run():
    dag = torchorbit.convert(small(), X)
    seen = []
    handle = dag.get_submodule("block").register_forward_hook(lambda module, args, output: seen.append(output.shape))
    dag.register_forward_hook(lambda module, args, output: output * 0)
    assert dag(X).abs().sum() == 0
    assert seen == [torch.Size([3, 4, 8])]
    handle.remove()


COMPILED = ["test_vit", "test_resnet", "test_convnext2", "small"]


def source(name):
    if name == "small":
        return small(), X
    model = stir(timm.create_model(name)).eval()
    return model, torch.randn(2, *model.pretrained_cfg["input_size"])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_graph_compiles_in_one_piece(name):
    torch.compiler.reset()
    model, x = source(name)
    dag = torchorbit.convert(model, x)
    compiled = torch.compile(dag, fullgraph=True, backend="aot_eager")
    assert_same(outcome(compiled, x), outcome(model, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_graph_exports_with_a_free_batch_size(name):
    model, x = source(name)
    dag = torchorbit.convert(model, x)
    exported = torch.export.export(dag, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    wide = torch.randn(5, *x.shape[1:])
    assert_same(outcome(exported.module(), wide), outcome(model, wide))


WITNESSED = [
    "coat_lite_tiny", "crossvit_9_240", "edgenext_xx_small", "gcvit_xxtiny", "levit_128s", "mobilevit_xxs", "pit_ti_224", "pvt_v2_b0",
    "test_mambaout", "test_vit_relpos", "volo_d1_224", "xcit_nano_12_p16_224",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WITNESSED)
def test_the_exporter_of_torch_sees_the_same_model(name):
    options = {"volo_d1_224": {"layers": (1, 1, 1, 1)}, "xcit_nano_12_p16_224": {"depth": 2}}.get(name, {})
    try:
        model = timm.create_model(name, **options)
    except TypeError:
        model = timm.create_model(name)
    stir(model).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    dag = torchorbit.convert(model, x)
    exported = torch.export.export(model, (x,)).module()
    assert_same(outcome(dag, x), outcome(exported, x))


def test_other_ways_in_which_modules_are_used():
    dag, x = torchorbit.convert(small(), X).double(), X.double()
    expected = outcome(dag, x)
    assert_same(torch.func.functional_call(dag, dict(dag.named_parameters()), (x,)), expected)
    assert_same(torch.jit.trace(dag, x)(x), expected)
    assert_same(torch.vmap(dag)(x[:, None])[:, 0], expected)
    assert_same(nn.Sequential(dag, nn.Identity())(x), expected)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    dag = torchorbit.convert(model, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(dag(X), model(X))


def test_custom_gradients_elsewhere_still_work_after_a_conversion():
    torchorbit.convert(small(), X)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    x = torch.ones(2, requires_grad=True)
    Twice.apply(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 2.0))


def test_weights_can_be_given_to_a_graph_made_without_any():
    model = small()
    dag = torchorbit.convert(copy.deepcopy(model).to("meta"), X.to("meta"))
    dag.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert_same(outcome(dag, X), outcome(model, X))
