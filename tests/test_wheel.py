"""What is built is what is meant to be built, and the core alone does what is promised of it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.zoo.hub import running_hub

ROOT = Path(__file__).parent.parent
PACKAGES = {"torchorbit", "zoo", "harness"}

pytestmark = pytest.mark.slow


def run(*command, cwd, env=None, code=0):
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution, built from a copy, so that nothing is left in the clone."""
    source = tmp_path_factory.mktemp("source") / "torchorbit"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs", "results", "*.egg-info", "__pycache__")
    )
    made = source.parent / "dist"
    build = f"from setuptools import build_meta as b; b.build_wheel({str(made)!r}); b.build_sdist({str(made)!r})"
    made.mkdir()
    run(sys.executable, "-c", build, cwd=source)
    (wheel,) = made.glob("*.whl")
    (sdist,) = made.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_has_the_packages_with_their_types_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert {"torchorbit/__init__.pyi", *[f"{package}/py.typed" for package in PACKAGES]} <= set(names)
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_source_distribution_has_the_packages_with_their_types(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"torchorbit/__init__.pyi", *[f"{package}/py.typed" for package in PACKAGES]} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    packages = {name.partition("/")[0] for name in names if name.count("/") == 1 and name.endswith("/__init__.py")}
    assert packages == PACKAGES


@pytest.fixture(scope="module")
def core(built, tmp_path_factory):
    """An environment with the wheel and what it depends on, and nothing else: its folder of programs."""
    folder = tmp_path_factory.mktemp("core") / "environment"
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install = ("-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    run(programs / "python", *install, built[0], cwd=folder.parent)
    return programs


#: What somebody does with a model that they pulled.
USE = """
import importlib.util, json, sys
import torch, torchorbit

assert "site-packages" in torchorbit.__file__, torchorbit.__file__
for name in ("timm", "torchvision", "pandas", "matplotlib", "pyarrow", "joblib", "fvcore", "PIL"):
    assert importlib.util.find_spec(name) is None, name

model = torchorbit.from_pretrained("alice/net").train()
torch.manual_seed(0)
x, labels = torch.randn(8, 3, 96, 96), torch.arange(8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
losses = []
for _ in range(8):
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
model.save_pretrained("trained")
again = torchorbit.from_pretrained("trained")
with torch.no_grad():
    assert torch.equal(again.eval()(x), model.eval()(x))
smaller = torchorbit.prune(again, flops=0.8)
smaller.push_to_hub("alice/tuned")
try:
    torchorbit.transforms(model)
except torchorbit.errors.MissingExtraError as error:
    assert "torchorbit[harness]" in str(error)
else:
    raise AssertionError("no torchvision is needed")
print(json.dumps(losses))
"""


def test_with_the_core_alone_a_model_is_pulled_trained_pruned_and_saved(core, tmp_path):
    """In a folder outside of the clone, from a hub that speaks HTTP."""
    from harness.making import Recipe, make_checkpoint
    from zoo.publishing import publish

    make_checkpoint("test_resnet", tmp_path / "made", Recipe(ratio=0.25))
    here = tmp_path / "elsewhere"
    here.mkdir()
    with running_hub(tmp_path / "server") as hub:
        publish(tmp_path / "made", "alice/net", hub=hub.endpoint, token=hub.token)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env |= hub.environment(tmp_path / "home") | {"HF_TOKEN": hub.token}

        said = run(core / "torchorbit", "pull", "alice/net", "--out", "pulled", cwd=here, env=env).stdout
        assert "alice/net is in pulled" in said
        losses = json.loads(run(core / "python", "-c", USE, cwd=here, env=env).stdout)
        assert losses[-1] < 0.8 * losses[0]
        said = run(core / "torchorbit", "prune", "trained", "--flops", "0.5", "--out", "half", cwd=here, env=env).stdout
        assert re.search(r"-> 0\.\d+ GFLOPs", said)
        run(core / "python", "-c", "import torchorbit; torchorbit.load('half')", cwd=here, env=env)
        assert "alice/tuned" in run(core / "torchorbit", "zoo", "list", cwd=here, env=env).stdout

        for command in (
            ["convert", "resnet18", "--out", "folder"],
            ["sweep", "resnet18"],
            ["prune", "resnet18", "--ratio", "0.5", "--out", "folder"],
        ):
            done = run(core / "torchorbit", *command, cwd=here, env=env, code=1)
            assert re.fullmatch(
                r"torchorbit: .+ needs timm, which is not installed: pip install 'torchorbit\[harness\]'\n", done.stderr
            )
    assert not (here / "half" / "widths.png").exists()
    assert sorted(path.name for path in here.iterdir()) == ["half", "pulled", "trained"]
