"""timm and torchvision can be imported, in whichever order they come and whatever has failed before.

Where torchvision fits torch, all of this is true without our doing anything.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FAILING = """
import contextlib
with contextlib.suppress(RuntimeError):  # where its compiled part does not fit torch
    import {package}
"""
WORKS = """
import timm, torchvision
from torchvision import transforms
assert timm.create_model("test_vit") is not None
transforms.Resize(8)
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import torch",
        "import torchorbit",
        FAILING.format(package="torchvision"),
        FAILING.format(package="timm"),
        "import torchorbit\nmodel = torchorbit.DagModule" + FAILING.format(package="timm"),
    ],
    ids=[
        "first",
        "after torch",
        "after torchorbit",
        "torchvision failed",
        "timm failed",
        "timm failed after the engine",
    ],
)
@pytest.mark.parametrize("door", ["import harness.timm_import", "import zoo.preprocessing"])
def test_after_the_harness_or_the_zoo_timm_can_be_imported(before, door):
    run(f"{before}\n{door}\n{WORKS}")


def test_declaring_twice_changes_nothing():
    run(
        "from torchorbit.torchvision_parts import declare_missing_operators\n"
        "declare_missing_operators()\n"
        "assert not declare_missing_operators()\n"
        "import torchvision\n"
        "assert not declare_missing_operators()\n" + WORKS
    )


def test_what_somebody_else_has_declared_is_left_alone():
    run(
        "import importlib.util, torch\n"
        "library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n"
        "    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "import harness.timm_import\n" + WORKS
    )


def test_without_torchvision_nothing_is_declared():
    run(
        "import sys; sys.modules['torchvision'] = None\n"
        "from torchorbit.torchvision_parts import declare_missing_operators\n"
        "assert not declare_missing_operators()\n"
        "import torch; assert not hasattr(torch.ops.torchvision, 'nms')"
    )


def test_the_engine_alone_leaves_torchvision_alone():
    run(
        "import sys\nfrom torchorbit import *\nimport torch\n"
        "assert not {'torchvision', 'timm'} & set(sys.modules)\n"
        "assert not hasattr(torch.ops.torchvision, 'nms')"
    )
