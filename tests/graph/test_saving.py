"""Saving and loading: a folder of data, whole or not at all, that a process without the source's library can run."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import torchorbit
from tests.models import Computes, assert_equal, assert_same, outcome, stir
from torchorbit.graph import saving
from torchorbit.graph.loading import unpack
from torchorbit.graph.saving import pack

pytestmark = pytest.mark.numeric

X = torch.randn(2, 4, 8)


class Everything(nn.Module):
    """Parameters, tied and frozen ones, buffers of both kinds, a constant, a branch by mode, sizes, a block used twice."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.GELU())
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.rand(8))
        self.frozen = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("table", torch.randn(8))
        self.register_buffer("hidden", torch.randn(8), persistent=False)
        self.register_buffer("index", torch.tensor([1, 0, 3, 2]))

    def forward(self, x):
        x = self.block(self.block(x)) * self.scale + self.frozen
        x = self.second(self.first(x))[:, self.index] * self.table + self.hidden
        x = x * (2.0 if self.training else 3.0) * torch.tensor([1.0, 2.0] * 4)
        return {"out": x.reshape(x.shape[0], -1), "mean": (x.mean(), None)}


@pytest.fixture
def dag():
    return torchorbit.convert(stir(Everything()).eval(), X)


def test_a_saved_graph_loads_and_gives_the_same_output(dag, tmp_path):
    dag.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "graph.json",
        "model.safetensors",
    ]
    again = torchorbit.load(tmp_path / "saved")
    assert_equal(outcome(again, X), outcome(dag, X))
    assert_equal(outcome(again.train(), X, seed=5), outcome(dag.train(), X, seed=5))
    assert again.provenance == dag.provenance
    assert again.graph == dag.graph
    assert again.code == dag.code
    assert list(again.state_dict()) == list(dag.state_dict())
    assert_equal(dict(again.state_dict()), dict(dag.state_dict()))
    assert_equal(outcome(again.eval().flatten(), X), outcome(dag.eval(), X))


def test_every_property_of_the_weights_survives(dag, tmp_path):
    dag.save(tmp_path)
    again = torchorbit.load(str(tmp_path))
    assert again.get_submodule("first").weight is again.get_submodule("second").weight
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in dag.named_parameters()
    }
    assert not again._parameters["frozen"].requires_grad
    assert {n for n, _ in again.named_buffers()} == {n for n, _ in dag.named_buffers()}
    assert "hidden" not in again.state_dict()
    assert_equal(dict(again.named_buffers()), dict(dag.named_buffers()))
    assert all(isinstance(p, nn.Parameter) for p in again.parameters())


def test_the_mode_of_every_module_survives(dag, tmp_path):
    dag.train()
    dag.get_submodule("block.1").eval()
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert {path: m.training for path, m in again.named_modules()} == {
        path: m.training for path, m in dag.named_modules()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_survives(dag, tmp_path, dtype):
    dag.to(dtype).save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert_equal(outcome(again, X.to(dtype)), outcome(dag, X.to(dtype)))


def test_an_argument_that_is_none_and_not_by_default_survives(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4)).train()
    dag = torchorbit.convert(model, X)
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert (again.get_submodule("0").momentum, again.get_submodule("1").momentum) == (None, 0.1)
    assert_equal(outcome(again, X), outcome(dag, X))
    assert_equal(dict(again.state_dict()), dict(dag.state_dict()))


def test_weights_in_any_memory_layout_survive(tmp_path):
    model = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
        .to(memory_format=torch.channels_last)
        .eval()
    )
    model[2].weight = nn.Parameter(torch.randn(12, 4, 3, 3)[::2])
    model.register_buffer("part", torch.randn(10)[2:5])
    x = torch.ones(1, 3, 16, 16, dtype=torch.float64)
    dag = torchorbit.convert(model.double(), x)
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert_equal(dict(again.state_dict()), dict(dag.state_dict()))
    assert_same(again(x), dag(x))


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    whole = torch.randn(4, 8)
    model = Computes(lambda m, x: x * m.a + m.b, a=whole[0], b=whole[1])
    dag = torchorbit.convert(model, X)
    dag.save(tmp_path)
    assert_equal(outcome(torchorbit.load(tmp_path), X), outcome(model, X))


def test_a_saved_graph_can_be_saved_converted_and_trained_again(dag, tmp_path):
    dag.save(tmp_path / "a")
    torchorbit.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("graph.json", "model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = torchorbit.load(tmp_path / "b")
    assert_equal(outcome(torchorbit.convert(again, X), X), outcome(dag, X))
    again.train()(X)["out"].sum().backward()
    assert again._parameters["scale"].grad is not None


def test_the_graph_file_is_plain_json_and_the_weights_are_plain_tensors(dag, tmp_path):
    dag.save(tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    assert (document["format"], document["version"]) == (saving.FORMAT, saving.VERSION)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {"scale", "table", "hidden", "first.weight", "block.1.running_mean"} <= set(tensors)
    assert "second.weight" not in tensors
    card = (tmp_path / "README.md").read_text()
    assert "Everything" in card
    assert "torchorbit.load" in card


def test_packing_shares_tensors_and_takes_only_a_whole_graph(dag):
    document, tensors = pack(dag)
    assert tensors["scale"] is dag._parameters["scale"]
    assert unpack(json.loads(json.dumps(document)), tensors)._parameters["scale"] is dag._parameters["scale"]
    with pytest.raises(torchorbit.CheckpointError, match="outermost"):
        pack(dag.get_submodule("block"))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "levit_128s", "swin_s3_tiny_224", "sequencer2d_s", "test_nfnet"]
)
def test_the_file_of_a_timm_model(name, tmp_path):
    options = {"swin_s3_tiny_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2), "window_size": (7, 7)}}
    model = stir(timm.create_model(name, **options.get(name, {}))).double().eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"], dtype=torch.float64)
    dag = torchorbit.convert(model, x)
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert_same(outcome(again, x), outcome(dag, x), tolerance=1e-9)
    assert list(again.state_dict()) == list(model.state_dict())
    again.load_state_dict(model.state_dict(), strict=True)


FRESH = """
    import sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("timm", "tests"):
                raise ImportError(f"{name} must not be needed")

    sys.meta_path.insert(0, Blocked())
    import torch
    import torchorbit

    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        saved = torch.load(folder + ".pt")
        dag = torchorbit.load(folder)
        with torch.no_grad():
            torch.testing.assert_close(dag(saved["x"]), saved["y"], rtol=1e-9, atol=1e-9)
            dag.train()
            torch.manual_seed(3)
            torch.testing.assert_close(dag(saved["x"]), saved["trained"], rtol=1e-9, atol=1e-9)
    assert "timm" not in sys.modules
    print("done")
"""


@pytest.mark.slow
def test_a_fresh_process_without_timm_gives_the_same_output(tmp_path):
    folders = []
    for name, options in {
        "test_vit": {"drop_path_rate": 0.3, "attn_drop_rate": 0.2},
        "test_convnext": {"drop_path_rate": 0.3},
        "test_efficientnet": {"drop_path_rate": 0.3},
        "test_resnet": {},
        "levit_128s": {},
        "pvt_v2_b0": {"drop_path_rate": 0.3},
        "sequencer2d_s": {"layers": (1, 1, 1, 1)},
        "swinv2_cr_tiny_224": {"embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)},
        "test_vit_relpos": {},
        "fastvit_t8": {},
    }.items():
        model = stir(timm.create_model(name, **options)).double().eval()
        x = torch.randn(2, *model.pretrained_cfg["input_size"], dtype=torch.float64)
        torchorbit.convert(model, x).save(tmp_path / name)
        y, trained = outcome(model, x), outcome(model.train(), x, seed=3)
        torch.save({"x": x, "y": y, "trained": trained}, tmp_path / f"{name}.pt")
        folders.append(str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRESH), *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


# -- whole or not at all


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def test_saving_replaces_an_earlier_save(dag, tmp_path):
    dag.save(tmp_path)
    with torch.no_grad():
        dag._parameters["scale"].add_(1)
    (tmp_path / "notes.txt").write_text("kept")
    dag.save(tmp_path)
    assert_equal(outcome(torchorbit.load(tmp_path), X), outcome(dag, X))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "graph.json",
        "model.safetensors",
        "notes.txt",
    ]


@pytest.mark.parametrize("step", ["write_weights", "_card", "json.dumps"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_save_that_fails_leaves_no_half_file(dag, tmp_path, monkeypatch, step, earlier):
    folder = tmp_path / "saved"
    if earlier:
        dag.save(folder)
    before = contents(folder) or {}

    def broken(*args, **kwargs):
        if step == "write_weights":
            args[0].write_bytes(b"half of it")
        raise OSError("no space left on device")

    owner, _, name = step.rpartition(".")
    monkeypatch.setattr(saving.json if owner else saving, name, broken)
    with pytest.raises(OSError, match="no space"):
        dag.save(folder)
    monkeypatch.undo()
    after = contents(folder) or {}
    for name, data in after.items():
        assert not name.startswith(".")
        assert b"half of it" not in data
    assert set(before) <= set(after)
    if earlier:
        assert_equal(outcome(torchorbit.load(folder), X), outcome(dag, X))


def test_weights_without_values_are_refused_before_anything_is_written(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(torchorbit.CheckpointError, match=r"meta"):
        torchorbit.convert(model, X.to("meta")).save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# -- damaged and foreign folders


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
def test_a_missing_file_is_named(dag, tmp_path, name):
    dag.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(torchorbit.CheckpointError, match=name.replace(".", r"\.")):
        torchorbit.load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(torchorbit.CheckpointError, match="nowhere"):
        torchorbit.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\x00" * len(data),
        lambda data: b"\xff\xfe" + data,
        lambda data: b"[]",
        lambda data: b'"text"',
        lambda data: b"null",
        lambda data: b"{}",
        lambda data: b"[" * 100_000,
        lambda data: b'{"format": ' + b"1" * 10_000 + b"}",
        lambda data: data.replace(b"torchorbit-graph", b"something-else"),
        lambda data: data.replace(b'"version": 2', b'"version": 3'),
        lambda data: data.replace(b'"version": 2', b'"version": "1"'),
        lambda data: data.replace(b'"version": 2', b'"version": null'),
    ],
)
def test_a_damaged_graph_file_is_an_error(dag, tmp_path, damage):
    dag.save(tmp_path)
    path = tmp_path / "graph.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(torchorbit.CheckpointError):
        torchorbit.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: data[:100],
        lambda data: b"\x00" * len(data),
        lambda data: b"\xff" * len(data),
        lambda data: data + b"more",
        lambda data: b"PK\x03\x04" + data,
    ],
)
def test_a_damaged_weights_file_is_an_error(dag, tmp_path, damage):
    dag.save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(torchorbit.CheckpointError):
        torchorbit.load(tmp_path)


def test_weights_of_another_graph_are_an_error(dag, tmp_path):
    dag.save(tmp_path / "a")
    torchorbit.convert(nn.Sequential(nn.Linear(8, 3)), X).save(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(torchorbit.CheckpointError):
        torchorbit.load(tmp_path / "a")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_weights_that_do_not_fit_are_an_error(dag, change):
    document, tensors = pack(dag)
    tensors = dict(tensors)
    if change == "missing":
        del tensors["block.0.weight"]
    elif change == "extra":
        tensors["more"] = torch.ones(1)
    elif change == "shape":
        tensors["block.0.weight"] = torch.ones(8, 9)
    else:
        tensors["block.0.weight"] = torch.ones(8, 8, dtype=torch.int64)
    with pytest.raises(torchorbit.CheckpointError, match="more" if change == "extra" else r"block\.0"):
        unpack(document, tensors)


def test_loaded_weights_are_aligned_as_others_are(tmp_path):
    """Kernels choose their way by that, and some round differently on another."""
    dag = torchorbit.convert(nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 64), nn.Linear(64, 5)), torch.randn(2, 12))
    dag.save(tmp_path)
    again = torchorbit.load(tmp_path)
    assert {tensor.data_ptr() % 64 for tensor in again.parameters()} == {0}
    mapped = next(line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line)
    start, end = (int(place, 16) for place in mapped.split()[0].split("-"))
    there = {name for name, tensor in again.named_parameters() if start <= tensor.data_ptr() < end}
    # 7 and 5 numbers fill no line, and what comes after them begins somewhere.
    assert there >= {"1.weight", "1.bias", "2.weight"}
