"""Folders of labelled images: criteria that look at them, and accuracy measured on them."""

import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import torchorbit
from harness import cli
from harness.data import Images
from harness.errors import UsageError
from harness.evaluating import evaluate
from harness.making import graph_of
from zoo.checkpoint import load_checkpoint
from zoo.manifest import Preprocessing, read_manifest

PREPROCESSING = Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits as a folder of images: ten classes, sixty images to look at and thirty to measure on."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for label in range(10):
        for number, image in enumerate(data.images[data.target == label][:9]):
            split = "validation" if number < 6 else "test"
            path = folder / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(image * 255 / 16)).save(path)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def test_a_folder_gives_images_and_labels(digits):
    batches = list(Images(str(digits), batch_size=16).loader(PREPROCESSING))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 12]
    assert batches[0][0].shape == (16, 3, 32, 32)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted([*range(10)] * 6)
    (batch,) = Images(str(digits), split="test", batch_size=100).loader(PREPROCESSING)
    assert len(batch[1]) == 30


def test_images_that_are_drawn_are_the_same_in_every_pass_and_for_every_seed_others(digits):
    images = Images(str(digits), samples=12, batch_size=12)
    loader = images.loader(PREPROCESSING, seed=1)
    (first,), (again,), (other,) = list(loader), list(loader), list(images.loader(PREPROCESSING, seed=2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert len(first[0]) == 12


def test_a_tar_file_is_data_too(digits, tmp_path):
    with tarfile.open(tmp_path / "digits.tar", "w") as file:
        file.add(digits / "test", arcname=".")
    (batch,) = Images(str(tmp_path / "digits.tar"), batch_size=64).loader(PREPROCESSING)
    assert len(batch[1]) == 30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no such folder or file, and it is no name of a data set"),
        ("torch/nothing", "cannot be read: Unknown torchvision dataset nothing"),
        ("hfds/some/data", "cannot be read"),
    ],
)
def test_data_that_is_not_there(name, message):
    with pytest.raises(UsageError, match=message):
        Images(name).loader(PREPROCESSING)


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        Images(str(tmp_path)).loader(PREPROCESSING)


def test_accuracy_is_the_share_that_is_told_right(digits):
    dag = graph_of("test_resnet", seed=3)
    dag.train()
    loader = Images(str(digits), batch_size=7).loader(dag.manifest.preprocessing)
    found = evaluate(dag, loader)
    assert dag.training
    dag.eval()
    right = fifth = 0
    with torch.no_grad():
        for images, labels in loader:
            for scores, label in zip(dag(images), labels, strict=True):
                order = scores.argsort(descending=True)[:5].tolist()
                right, fifth = right + (order[0] == label), fifth + (label in order)
    assert (found.top1, found.top5, found.images) == (right / 60, fifth / 60, 60)


def test_pruned_by_data_and_measured_on_the_command_line(run, digits, tmp_path):
    code, out, err = run(
        "prune", "test_resnet", "--flops", "0.5", "--criterion", "taylor", "--selector", "global", "--data", digits,
        "--samples", "20", "--finetune-bn", "--out", "pruned",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert re.search(r"0\.208 -> 0\.10\d GFLOPs", out)
    (step,) = read_manifest(tmp_path / "pruned").steps
    assert (str(step.criterion), str(step.selector), step.target) == ("taylor", "global", "flops=0.5")
    assert step.data == f"20 images of {digits.name} (validation)"
    assert str(digits) not in (tmp_path / "pruned" / "README.md").read_text()
    # Other images, other units; the same ones, the same.
    for name, seed in (("again", 0), ("other", 1)):
        assert run(
            "prune", "pruned", "--parameters", "0.8", "--criterion", "taylor", "--data", digits, "--samples", "20",
            "--seed", seed, "--out", name,
        )[0] == 0  # fmt: skip

    code, out, err = run("evaluate", "pruned", "--data", digits, "--split", "test")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"pruned: top-1 \d+\.\d\d%, top-5 \d+\.\d\d% of 30 images\n", out)
    assert read_manifest(tmp_path / "pruned").accuracy == ()
    for before in ("0.5", "0.6"):
        code, out, err = run(
            "evaluate", "pruned", "--data", digits, "--split", "test", "--record", "digits", "--before", before
        )
        assert (code, err) == (0, "")
    (accuracy,) = read_manifest(tmp_path / "pruned").accuracy
    assert (accuracy.dataset, accuracy.split, accuracy.before) == ("digits", "test", 0.6)
    found = evaluate(
        load_checkpoint(tmp_path / "pruned"),
        Images(str(digits), split="test").loader(read_manifest(tmp_path / "pruned").preprocessing),
    )
    assert accuracy.after == round(found.top1, 4)
    assert re.search(r"digits.*0\.6|digits.*60", (tmp_path / "pruned" / "README.md").read_text())


def test_a_manifest_says_what_was_done(run, digits, tmp_path):
    arguments = ("prune", "test_resnet", "--flops", "0.6", "--round-to", "8", "--data", digits, "--samples", "10")
    assert run(*arguments, "--out", "a")[0] == 0
    assert run(*arguments, "--criterion", "apoz", "--steps", "2", "--out", "b")[0] == 0
    (first,), (second,) = (read_manifest(tmp_path / name).steps for name in ("a", "b"))
    assert (str(first.constraint), first.data, first.target) == ("bounds(round_to=8)", None, "flops=0.6")
    assert second.data == f"10 images of {digits.name} (validation)"
    assert (second.constraint, second.target, second.steps) == (first.constraint, "flops=0.6", 2)
    assert (first.criterion.name, second.criterion.name) == ("fisher_noise", "apoz")  # noise is no data
    assert "constraint bounds(round_to=8)" in (tmp_path / "a" / "README.md").read_text()


def test_images_without_labels_are_enough_to_reconstruct(run, digits, tmp_path):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted((digits / "validation").rglob("*.png"))[:12]):
        shutil.copy(path, tmp_path / "flat" / f"{number}.png")
    arguments = ("prune", "test_resnet", "--flops", "0.6", "--data", tmp_path / "flat")
    code, _, err = run(*arguments, "--reconstruct", "--reconstruct-batches", "1", "--batch-size", "8", "--out", "a")
    assert (code, err) == (0, "")
    (step,) = read_manifest(tmp_path / "a").steps
    made = step.reconstruction
    assert (made.method, made.samples, step.data) == ("layerwise", 8, "flat (validation)")
    assert made.proof < 1e-5
    assert any(layer.after < layer.before for layer in made.layers)
    assert "reconstructed (layerwise) from 8 samples" in (tmp_path / "a" / "README.md").read_text()
    assert run(*arguments, "--reconstruct-affine", "--out", "b")[0] == 0
    assert read_manifest(tmp_path / "b").steps[0].reconstruction.method == "affine"
    code, _, err = run(*arguments, "--criterion", "taylor", "--out", "c")
    assert code != 0
    assert "it may have no labels" in err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_of_half_precision_is_measured_and_pruned_on_data(run, digits, dtype):
    assert run("prune", "test_resnet", "--flops", "0.8", "--dtype", dtype, "--out", "half")[0] == 0
    code, out, err = run("evaluate", "half", "--data", digits, "--split", "test")
    assert (code, err) == (0, "")
    assert "of 30 images" in out
    code, _, err = run(
        "prune", "half", "--flops", "0.8", "--criterion", "taylor", "--finetune-bn", "--data", digits,
        "--samples", "8", "--out", "quarter",
    )  # fmt: skip
    assert (code, err) == (0, "")


@pytest.mark.parametrize("split", ["train", "tset"])
def test_a_split_that_is_not_there_is_not_all_of_them(digits, split):
    message = f"has no '{split}'; say with --split which of validation, test is meant"
    with pytest.raises(UsageError, match=message):
        Images(str(digits), split=split).loader(PREPROCESSING)
    assert len(Images(str(digits), split="val", batch_size=90).loader(PREPROCESSING).dataset) == 60
    assert len(Images(str(digits / "test"), split=split).loader(PREPROCESSING).dataset) == 30


def test_images_without_labels():
    images = [(torch.zeros(2, 3, 4, 4), torch.tensor([-1, -1]))]
    with pytest.raises(UsageError, match="the data has class -1, expected classes from 0 on"):
        evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--flops", "0.5", "--criterion", "taylor"), "--criterion taylor looks at data: give --data"),
        (("--flops", "0.5", "--criterion", "tailor"), "there is no criterion 'tailor'; close to it: taylor"),
        (("--flops", "0.5", "--selector", "none"), "there is no selector 'none'"),
        (("--flops", "0.5", "--reconstruct"), "--reconstruct needs data: give --data"),
        (("--flops", "0.5", "--samples", "3"), "--data, which is missing"),
        (("--flops", "0.5", "--criterion", "taylor", "--data", "nowhere"), "there is no such folder"),
        (("--flops", "0.0001"), "cannot be reached"),
        (("--flops", "0.5", "--frozen", "nothing.*"), "names no module"),
    ],
)
def test_wrong_recipes_are_one_line(run, tmp_path, arguments, message):
    code, out, err = run("prune", "test_resnet", *arguments, "--out", "a")
    assert (code > 0, out) == (True, "")
    assert re.fullmatch(r"torchorbit: [^\n]*\n", err)
    assert message in err
    assert not (tmp_path / "a").exists()


def test_a_label_that_the_model_has_no_class_for(digits):
    class Few(torch.nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None].expand(-1, 4)

    with pytest.raises(UsageError, match="the data has class 9, and the model tells 4 apart"):
        evaluate(Few(), Images(str(digits), batch_size=60).loader(PREPROCESSING))


def test_measuring_a_graph_without_preprocessing(run, digits, tmp_path):
    dag = torchorbit.convert(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)), torch.randn(2, 3, 32, 32)
    )
    dag.save_pretrained(tmp_path / "plain")
    code, _, err = run("evaluate", "plain", "--data", digits)
    assert code == 2
    assert "nothing is known of the preprocessing of plain" in err
