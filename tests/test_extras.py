"""What is installed is what is used, and what misses an extra says which one."""

import ast
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchorbit.errors import MissingExtraError, TorchorbitError
from torchorbit.extras import EXTRAS, is_installed, require

ROOT = Path(__file__).parent.parent

#: How packages are imported whose distribution has another name.
IMPORTED_AS = {"dask": "distributed", "lazy-loader": "lazy_loader"}

#: Makes packages absent: nothing finds them.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *more: None if name.partition(".")[0] in {packages} else find(name, *more)
)
"""


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages(requirements):
    """The packages that requirements bring, as they are imported."""
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def imports(*folders):
    """Every package that is imported in folders, at the top of a module or within a function."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"torchorbit", "zoo", "harness"}


def test_extras_are_those_of_the_project(project):
    for extra, names in EXTRAS.items():
        assert packages(project["optional-dependencies"][extra]) == set(names), extra


def test_all_has_every_extra(project):
    (everything,) = project["optional-dependencies"]["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == set(EXTRAS)


def test_every_dependency_is_imported_and_what_is_imported_is_a_dependency(project):
    core = packages(project["dependencies"])
    assert core <= imports("torchorbit", "zoo", "harness/cli")
    # Optional parts of the engine and the zoo, each asked for by name.
    optional = {"botorch", "gpytorch", "onnxruntime", "matplotlib", "torchvision"}
    assert imports("torchorbit", "zoo") - core == optional
    # pyarrow is what pandas writes its files with.
    assert imports("harness") - core - set(EXTRAS["distributed"]) == set(EXTRAS["harness"]) - {
        "pyarrow",
        "torchvision",
        "matplotlib",
    }


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert not is_installed("timm")
    require("harness", "something", "pandas")
    with pytest.raises(MissingExtraError) as caught:
        require("harness", "something")
    error = caught.value
    assert str(error) == "something needs timm, which is not installed: pip install 'torchorbit[harness]'"
    assert isinstance(error, ImportError)
    assert isinstance(error, TorchorbitError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def in_core(code, cwd):
    """Run a program where nothing of any extra can be imported."""
    without = WITHOUT.format(packages={package for names in EXTRAS.values() for package in names})
    return subprocess.run(
        [sys.executable, "-c", without + code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "resnet18", "--out", "folder"],
        ["explain", "resnet18"],
        ["show", "resnet18"],
        ["sweep", "resnet18"],
        ["prune", "resnet18", "--ratio", "0.5", "--out", "folder"],
        ["prune", "checkpoint", "--ratio", "0.5", "--data", "images", "--criterion", "taylor", "--out", "folder"],
        ["evaluate", "checkpoint", "--data", "images"],
        ["publish-tables", "lab/net", "--records", str(ROOT / "results" / "coverage.jsonl"), "--hub", "hub"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_misses_an_extra_says_which_one(arguments, checkpoint):
    done = in_core(f"from harness.cli import main; sys.exit(main({arguments!r}))", checkpoint.parent)
    assert done.returncode == 1
    assert re.fullmatch(
        r"torchorbit: [^\n]+ needs \w+, which is not installed: pip install 'torchorbit\[harness\]'\n", done.stderr
    )
    assert not (checkpoint.parent / "folder").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint that knows its preprocessing, as if somebody else had made it."""
    from harness.making import Recipe, make_checkpoint

    folder = tmp_path_factory.mktemp("core") / "checkpoint"
    (folder.parent / "images" / "validation" / "a").mkdir(parents=True)
    make_checkpoint("test_resnet", folder, Recipe(ratio=0.5))
    return folder


def test_what_pulls_prunes_and_saves_needs_no_extra(checkpoint, tmp_path):
    done = in_core(
        f"""
from harness.cli import main

assert main(["publish", {str(checkpoint)!r}, "lab/net", "--hub", "hub"]) == 0
assert main(["pull", "lab/net", "--hub", "hub", "--out", "copy"]) == 0
assert main(["prune", "copy", "--ratio", "0.3", "--out", "smaller"]) == 0
assert main(["zoo", "list", "--hub", "hub"]) == 0
assert main(["zoo", "index", "lab/zoo", "--hub", "hub"]) == 0
assert main(["tables", "--records", {str(ROOT / "results" / "coverage.jsonl")!r}, "--out", "tables"]) == 0
assert main(["show", "resnet18", "--records", {str(ROOT / "results" / "coverage.jsonl")!r}, "--no-orbits"]) == 0

import torch, torchorbit

model = torchorbit.from_pretrained("lab/net", hub="hub").train()
x, labels = torch.randn(4, 3, 160, 160), torch.tensor([0, 1, 2, 3])
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
losses = []
for _ in range(5):
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
model.save_pretrained("trained")
pruned = torchorbit.prune(torchorbit.from_pretrained("trained"), flops=0.8)
pruned.push_to_hub("lab/tuned", hub="hub")
for missing, act in {{
    "torchvision": lambda: torchorbit.transforms(model),
    "onnx": lambda: torchorbit.latency.export_onnx(model, (x,), {{}}, "model.onnx"),
    "botorch": lambda: torchorbit.prune(model, flops=0.5, selector="optimal", progress=False),
}}.items():
    try:
        act()
    except torchorbit.errors.MissingExtraError as error:
        assert error.missing == missing, error
    else:
        raise AssertionError(missing)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "smaller" / "widths.png").exists()
    assert "widths.png" not in (tmp_path / "smaller" / "README.md").read_text()
    assert not (tmp_path / "model.onnx").exists()
