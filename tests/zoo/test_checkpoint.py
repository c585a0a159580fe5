"""A checkpoint: what is loaded is what was saved, to the last bit, or it is not loaded."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import torchorbit
from harness.making import Recipe, make_checkpoint
from tests.models import stir
from torchorbit import DagModule
from torchorbit.criteria import Criterion, WeightNorm
from torchorbit.selectors import Bounds, Constraint, Knapsack, Overrides, Selector, from_description
from zoo.checkpoint import CHECKPOINT_FILES, load_checkpoint, save_checkpoint, versions
from zoo.manifest import MANIFEST_FILE, Accuracy, Manifest, Method, Preprocessing, Source, Step, read_manifest

pytestmark = pytest.mark.numeric

ROOT = Path(torchorbit.__file__).parents[1]
FILES = {*CHECKPOINT_FILES, "README.md"}
X = torch.randn(2, 3, 32, 32)
MEASURED = Accuracy(dataset="digits", split="test", input_size=(3, 32, 32), before=0.9, after=0.8)
STEP = Step(
    criterion=Method(name="taylor"),
    selector=Method(name="greedy", known=False),
    target="latency=2",
    data="digits",
    versions=versions(),
)


class Net(nn.Module):
    """What timm never saw."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.norm = nn.BatchNorm2d(12)
        self.mixed = nn.Conv2d(12, 20, 3)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixed(torch.relu(self.norm(self.stem(x))))
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.fixture
def dag() -> DagModule:
    return torchorbit.convert(stir(Net()).eval(), X)


@pytest.fixture
def folder(dag: DagModule, tmp_path: Path) -> Path:
    """A checkpoint of the graph."""
    save_checkpoint(dag, tmp_path / "checkpoint", source=Source(model="net", weights="drawn"), accuracy=[MEASURED])
    return tmp_path / "checkpoint"


def outputs(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def describes(manifest: Manifest, dag: DagModule) -> bool:
    """Whether the figures are those of the graph."""
    return manifest.after.gflops == round(torchorbit.flops(dag).total / 1e9, 6) and manifest.after.parameters == sum(
        parameter.numel() for parameter in dag.parameters()
    )


# -- the round trip


def test_what_is_loaded_is_what_was_saved_to_the_last_bit(dag: DagModule, tmp_path: Path) -> None:
    pruned = torchorbit.prune(dag, ratio=0.4)
    written = save_checkpoint(pruned, tmp_path / "a", name="net-40", step=STEP)
    again = load_checkpoint(tmp_path / "a")

    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    assert torch.equal(outputs(again), outputs(pruned))
    assert (again.manifest, read_manifest(tmp_path / "a")) == (written, written)
    assert list(again.state_dict()) == list(pruned.state_dict())
    assert torch.equal(outputs(torchorbit.from_pretrained(tmp_path / "a")), outputs(pruned))
    assert torch.equal(outputs(torchorbit.load(tmp_path / "a")), outputs(pruned))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_the_figures_of_a_model_of_timm_are_those_that_it_has(name: str, tmp_path: Path) -> None:
    manifest = make_checkpoint(name, tmp_path / "a", Recipe(flops=0.5))
    pruned = load_checkpoint(tmp_path / "a")

    assert describes(manifest, pruned)
    assert manifest.after.kmapp == round(torchorbit.flops(pruned).kmapp, 3)
    assert 0.4 * manifest.before.gflops < manifest.after.gflops <= 0.5 * manifest.before.gflops + 1e-6  # both rounded
    assert manifest.after.parameters < manifest.before.parameters
    for width in manifest.widths:
        module = pruned.get_submodule(width.layer)
        assert width.after in (getattr(module, "out_channels", None), getattr(module, "out_features", None))
        assert 0 < width.after <= width.before


def test_a_checkpoint_that_is_saved_again_is_the_same_in_every_byte(folder: Path, dag: DagModule) -> None:
    before = contents(folder)
    save_checkpoint(load_checkpoint(folder), folder.parent / "other" / "checkpoint")
    assert contents(folder.parent / "other" / "checkpoint") == before
    save_checkpoint(load_checkpoint(folder), folder)
    assert contents(folder) == before


def test_another_process_saves_the_same_bytes(tmp_path: Path) -> None:
    make_checkpoint("test_resnet", tmp_path / "here" / "a", Recipe(ratio=0.3), seed=7)
    code = (
        "import torch; torch.set_num_threads(1); from harness.making import Recipe, make_checkpoint; "
        "make_checkpoint('test_resnet', 'there/a', Recipe(ratio=0.3), seed=7)"
    )
    code = code.replace("'there/a'", "__import__('pathlib').Path('there/a')")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "3"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_saved_as_another_type_and_the_graph_keeps_its_own(
    dag: DagModule, tmp_path: Path, dtype: torch.dtype
) -> None:
    manifest = save_checkpoint(dag, tmp_path / "a", dtype=dtype)
    again = load_checkpoint(tmp_path / "a")

    assert f"torch.{manifest.dtype}" == str(dtype)
    assert {parameter.dtype for parameter in dag.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    assert torch.equal(outputs(again, X.to(dtype)), outputs(copy.deepcopy(dag).to(dtype), X.to(dtype)))
    assert again.state_dict()["norm.num_batches_tracked"].dtype == torch.int64
    assert save_checkpoint(again, tmp_path / "b").dtype == manifest.dtype


def test_a_type_that_no_manifest_has_a_word_for_is_refused(dag: DagModule, tmp_path: Path) -> None:
    with pytest.raises(torchorbit.CheckpointError, match="float16"):
        save_checkpoint(dag, tmp_path / "a", dtype=torch.float8_e4m3fn)
    assert list(tmp_path.iterdir()) == []


def test_weights_go_where_they_are_wanted(folder: Path) -> None:
    assert next(load_checkpoint(folder, device="meta").parameters()).device.type == "meta"
    assert torchorbit.from_pretrained(folder, device="cpu").manifest == read_manifest(folder)


def test_a_graph_without_channels_to_speak_of_is_saved(tmp_path: Path) -> None:
    dag = torchorbit.convert(nn.Flatten(), torch.zeros(1, 2, 3))
    manifest = save_checkpoint(dag, tmp_path / "a")
    assert (manifest.widths, manifest.after.parameters, manifest.after.kmapp) == ((), 0, None)
    assert torch.equal(outputs(load_checkpoint(tmp_path / "a"), X), X.flatten(1))


# -- what it says of itself


def test_a_graph_says_what_it_was_converted_from(dag: DagModule, tmp_path: Path) -> None:
    manifest = save_checkpoint(dag, tmp_path / "a")

    assert manifest.source.model.endswith("test_checkpoint.Net")
    assert (manifest.name, manifest.source.weights) == ("Net", "not recorded")
    assert (manifest.steps, manifest.accuracy, manifest.preprocessing) == ((), (), None)
    assert manifest.before == manifest.after
    assert {width.layer: width.after for width in manifest.widths} == {"stem": 12, "mixed": 20, "head": 5}


def test_what_is_said_when_saving_is_kept_by_the_checkpoint_and_by_what_is_made_of_it(
    dag: DagModule, tmp_path: Path
) -> None:
    preprocessing = Preprocessing(input_size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    source = Source(model="net", weights="mine", license="mit")
    dag.save_pretrained(tmp_path / "a", name="N", source=source, preprocessing=preprocessing, accuracy=[MEASURED])
    manifest = load_checkpoint(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (manifest.name, manifest.source, manifest.preprocessing) == ("N", source, preprocessing)
    assert manifest.accuracy == (MEASURED,)


def test_every_pruning_is_a_step(folder: Path, tmp_path: Path) -> None:
    first = torchorbit.prune(load_checkpoint(folder), ratio=0.2)
    save_checkpoint(first, tmp_path / "b", step=STEP)
    second = torchorbit.prune(load_checkpoint(tmp_path / "b"), ratio=0.2)
    other = STEP.model_copy(update={"target": "latency=1"})
    manifest = save_checkpoint(second, tmp_path / "c", step=other)

    assert manifest.steps == (STEP, other)
    assert manifest.before == read_manifest(folder).after
    assert describes(manifest, second)
    assert {w.layer: (w.before, w.after) for w in manifest.widths}["mixed"] == (
        20,
        second.get_submodule("mixed").out_channels,
    )


def test_what_was_removed_in_python_is_told_too(folder: Path, tmp_path: Path) -> None:
    first = torchorbit.prune(load_checkpoint(folder), ratio=0.2)
    orbit = torchorbit.find_orbits(first)[0]
    second = torchorbit.remove_channels(first, {orbit: [0]}, inplace=True)
    manifest = save_checkpoint(second.flatten(), tmp_path / "b")

    steps = [(str(step.criterion), str(step.selector), step.target) for step in manifest.steps]
    assert steps == [("fisher_noise", "uniform(ratio=0.2)", ""), ("chosen by hand", "chosen by hand", "1 unit")]
    assert describes(manifest, second)
    assert manifest.before == read_manifest(folder).before


def test_a_checkpoint_tells_all_that_it_takes_to_prune_to_the_same_widths(folder: Path, tmp_path: Path) -> None:
    dag = load_checkpoint(folder)
    options = {
        "criterion": WeightNorm(p=float("inf"), reduce="max"),
        "selector": Knapsack(normalization="mean", tolerance=0.2, exhaustive=0, solver_time_limit=None),
        "constraint": Overrides({"*": Bounds(min_width=2, round_to=2)}),
    }
    save_checkpoint(torchorbit.prune(dag, parameters=0.5, steps=2, seed=3, **options), tmp_path / "b")
    *_, step = read_manifest(tmp_path / "b").steps

    assert step.constraint is not None
    again = {
        "criterion": from_description(step.criterion.description(), Criterion),
        "selector": from_description(step.selector.description(), Selector),
        "constraint": from_description(step.constraint.description(), Constraint),
    }
    assert again == options
    assert (step.target, step.steps, step.seed, step.data) == ("parameters=0.5", 2, 3, None)
    smaller = torchorbit.prune(dag, parameters=0.5, steps=step.steps, seed=step.seed, **again)
    expected = load_checkpoint(tmp_path / "b").state_dict()
    assert {path: tensor.shape for path, tensor in smaller.state_dict().items()} == {
        path: tensor.shape for path, tensor in expected.items()
    }
    assert (
        "knapsack(solver_time_limit=None, normalization='mean', tolerance=0.2, exhaustive=0)"
        in (tmp_path / "b" / "README.md").read_text()
    )


def test_before_is_what_was_converted_and_not_what_is_saved_first(tmp_path: Path) -> None:
    dag = torchorbit.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 9, 9))
    manifest = save_checkpoint(torchorbit.prune(dag, ratio=0.5), tmp_path / "b")

    assert manifest.before.parameters == sum(parameter.numel() for parameter in dag.parameters())
    assert [(width.before, width.after) for width in manifest.widths] == [(8, 4), (4, 4)]


def test_a_change_that_is_no_removal_is_a_step_too(folder: Path, tmp_path: Path) -> None:
    changed = load_checkpoint(folder)
    changed.register_parameter("more", nn.Parameter(torch.zeros(3)))
    manifest = save_checkpoint(changed, tmp_path / "b")

    assert [(str(step.criterion), str(step.selector)) for step in manifest.steps] == [("not recorded", "not recorded")]
    assert manifest.accuracy == ()


def test_an_accuracy_is_that_of_certain_weights(folder: Path, tmp_path: Path) -> None:
    same = load_checkpoint(folder)
    assert save_checkpoint(same, tmp_path / "same").accuracy == (MEASURED,)
    assert save_checkpoint(same, tmp_path / "step", step=STEP).accuracy == ()
    pruned = torchorbit.prune(same, ratio=0.2)
    assert save_checkpoint(pruned, tmp_path / "pruned").accuracy == ()
    new = MEASURED.model_copy(update={"after": 0.7})
    assert save_checkpoint(pruned, tmp_path / "new", accuracy=[new]).accuracy == (new,)
    assert save_checkpoint(same, tmp_path / "more", accuracy=[new]).accuracy == (MEASURED, new)


def test_what_a_graph_says_of_itself_goes_where_the_graph_goes(folder: Path) -> None:
    dag = load_checkpoint(folder)
    orbit = next(iter(torchorbit.find_orbits(dag)))
    forms = {
        "pruned": torchorbit.prune(dag, ratio=0.2),
        "in place": torchorbit.prune(copy.deepcopy(dag), ratio=0.2, inplace=True),
        "with channels removed": torchorbit.remove_channels(dag, {orbit: [0]}),
        "flat": dag.flatten(),
        "copied": copy.deepcopy(dag),
        "pickled": pickle.loads(pickle.dumps(dag)),
        "moved": copy.deepcopy(dag).to(torch.float64).train(),
    }
    for form, changed in forms.items():
        assert changed.manifest == dag.manifest, form


def test_a_block_of_a_graph_is_no_checkpoint(tmp_path: Path) -> None:
    dag = torchorbit.convert(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1))).eval(), X)
    with pytest.raises(torchorbit.CheckpointError, match="save the outermost"):
        save_checkpoint(dag.get_submodule("0"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# -- pruning further


def test_a_checkpoint_is_pruned_further_and_remembers_where_it_comes_from(tmp_path: Path) -> None:
    first = make_checkpoint("test_resnet", tmp_path / "a", Recipe(flops=0.7), seed=5, command="the first")
    second = make_checkpoint(
        str(tmp_path / "a"), tmp_path / "b", Recipe(flops=0.5, round_to=4, selector="uniform"), command="the second"
    )

    assert [(step.target, step.seed, step.command) for step in second.steps] == [
        ("flops=0.7", 5, "the first"),
        ("flops=0.5", None, "the second"),
    ]
    assert (second.source, second.before, second.preprocessing) == (first.source, first.before, first.preprocessing)
    assert second.after.gflops <= 0.5 * first.after.gflops
    assert second.name == f"test_resnet.pruned-{second.after.gflops / second.before.gflops:.2f}"
    assert all(width.after % 4 == 0 or width.after < 4 or width.layer == "fc" for width in second.widths)


def test_a_checkpoint_is_pruned_further_in_its_own_folder(tmp_path: Path) -> None:
    make_checkpoint("test_resnet", tmp_path / "a", Recipe(ratio=0.2))
    manifest = make_checkpoint(str(tmp_path / "a"), tmp_path / "a", Recipe(ratio=0.2))
    assert len(manifest.steps) == 2
    assert describes(manifest, load_checkpoint(tmp_path / "a"))
    assert names(tmp_path) == {"a"}


def test_a_graph_that_says_nothing_of_itself_is_pruned_all_the_same(dag: DagModule, tmp_path: Path) -> None:
    dag.save(tmp_path / "graph")
    manifest = make_checkpoint(str(tmp_path / "graph"), tmp_path / "b", Recipe(ratio=0.25))
    assert (len(manifest.steps), manifest.steps[0].seed) == (1, None)
    assert manifest.before.gflops > manifest.after.gflops


# -- files that are not those that were saved


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a bit of the graph": lambda folder: flip(folder / "graph.json"),
    "a bit of the plot": lambda folder: flip(folder / "widths.png"),
    "weights cut off": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "weights that are empty": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "more after the weights": lambda folder: (folder / "model.safetensors").open("ab").write(b"more"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no graph": lambda folder: (folder / "graph.json").unlink(),
    "no manifest": lambda folder: (folder / MANIFEST_FILE).unlink(),
    "weights that are a folder": lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()),
    "weights that are a link to nothing": lambda folder: ((folder / "model.safetensors").unlink(), (folder / "model.safetensors").symlink_to("nothing")),
    "no folder": lambda folder: shutil.rmtree(folder),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_not_the_one_that_was_saved_is_not_loaded(folder: Path, damage: str) -> None:
    DAMAGE[damage](folder)
    for load in (load_checkpoint, torchorbit.from_pretrained):
        with pytest.raises(torchorbit.CheckpointError) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
def test_a_manifest_has_to_name_what_is_loaded(folder: Path, name: str) -> None:
    document = json.loads((folder / MANIFEST_FILE).read_text())
    del document["files"][name]
    (folder / MANIFEST_FILE).write_text(json.dumps(document))
    with pytest.raises(torchorbit.CheckpointError, match=f"names no {name}"):
        load_checkpoint(folder)


def test_a_plot_and_a_card_may_be_missing(folder: Path, dag: DagModule) -> None:
    (folder / "widths.png").unlink()
    (folder / "README.md").unlink()
    assert torch.equal(outputs(load_checkpoint(folder)), outputs(dag))


def test_without_matplotlib_there_is_no_plot_and_none_on_the_card(
    folder: Path, dag: DagModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "widths.png" in (folder / "README.md").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    save_checkpoint(torchorbit.prune(dag, ratio=0.4), folder)
    # The earlier one, which is of another model, is gone as well.
    assert sorted(path.name for path in folder.iterdir()) == sorted({*CHECKPOINT_FILES, "README.md"} - {"widths.png"})
    assert "widths.png" not in (folder / "README.md").read_text() + (folder / MANIFEST_FILE).read_text()
    load_checkpoint(folder)


# -- where it is saved


def test_an_earlier_checkpoint_is_replaced_as_a_whole(folder: Path, dag: DagModule, tmp_path: Path) -> None:
    pruned = torchorbit.prune(dag, ratio=0.4)
    save_checkpoint(pruned, folder, name="other")
    save_checkpoint(pruned, tmp_path / "fresh" / "checkpoint", name="other")
    assert contents(folder) == contents(tmp_path / "fresh" / "checkpoint")
    assert torch.equal(outputs(load_checkpoint(folder)), outputs(pruned))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "fresh"}


def test_a_saved_graph_becomes_a_checkpoint_in_its_folder(dag: DagModule, tmp_path: Path) -> None:
    dag.save(tmp_path / "a")
    save_checkpoint(dag, tmp_path / "a")
    assert torch.equal(outputs(load_checkpoint(tmp_path / "a")), outputs(dag))


def test_an_empty_folder_and_one_that_is_not_there_yet_are_filled(dag: DagModule, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "deep" / "deeper" / "folder"):
        save_checkpoint(dag, folder)
        assert {path.name for path in folder.iterdir()} == FILES


def test_the_folder_that_one_is_in_is_called_by_its_name(
    dag: DagModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    save_checkpoint(dag, ".")
    assert names(tmp_path) == {"a"}
    assert names(tmp_path / "a") == FILES
    assert "from_pretrained('a')" in Path("README.md").read_text()


def test_a_folder_with_something_else_in_it_is_left_as_it_is(dag: DagModule, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("all of it")
    before = contents(tmp_path)
    for name, reason in (("precious", "holds something that is no checkpoint"), ("file", "is a file")):
        with pytest.raises(torchorbit.CheckpointError, match=reason):
            save_checkpoint(dag, tmp_path / name)
    assert contents(tmp_path) == before


def test_other_files_beside_a_checkpoint_stay(folder: Path, dag: DagModule) -> None:
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(dag, folder)
    assert (folder / "notes.txt").read_text() == "mine"


class Unsaveable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(x)


def test_what_cannot_be_saved_leaves_the_earlier_checkpoint(folder: Path) -> None:
    before = contents(folder)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Unsaveable()).eval()
    dag = torchorbit.convert(model, X, atomic=[Unsaveable])
    with pytest.raises(torchorbit.CheckpointError, match="Unsaveable"):
        save_checkpoint(dag, folder)
    with pytest.raises(torchorbit.CheckpointError, match="meta"):
        save_checkpoint(load_checkpoint(folder).to("meta"), folder)
    assert contents(folder) == before
    assert names(folder.parent) == {"checkpoint"}


WITH_A_LIMIT = """
import resource, signal, sys
from pathlib import Path
import torchorbit
from torchorbit.criteria import Criterion, WeightNorm
from torchorbit.selectors import Bounds, Constraint, Knapsack, Overrides, Selector, from_description
from zoo.checkpoint import load_checkpoint, save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
dag = torchorbit.prune(load_checkpoint("checkpoint"), ratio=0.3)
save_checkpoint(dag, "warm")
for limit in map(int, sys.argv[1:]):
    for place in ("checkpoint", "new/folder"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save_checkpoint(dag, place)
        except Exception as error:
            print(limit, place, type(error).__name__)
        else:
            raise SystemExit(f"{limit} bytes sufficed for {place}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
def test_nothing_half_written_stays_where_the_disk_is_full(folder: Path, dag: DagModule) -> None:
    before = contents(folder)
    sizes = sorted(len(content) for content in before.values())
    # Not even a byte of the weights, part of them, all of them and part of the plot.
    limits = [str(limit) for limit in (0, 100, 2000, sizes[-1] - 1)]
    run = subprocess.run(
        [sys.executable, "-c", WITH_A_LIMIT, *limits],
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    assert run.stdout.count("\n") == 2 * len(limits)
    assert contents(folder) == before
    assert {path.name for path in folder.parent.iterdir()} <= {"checkpoint", "warm", "new"}
    assert not any((folder.parent / "new").iterdir())
