"""An operator is added as CONTRIBUTING.md says: to one file of a copy of the package, which then knows all of it."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torchorbit

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
from pathlib import Path

import torch
from torch import nn

import torchorbit
from torchorbit.operators import OPERATORS

folder = Path(sys.argv[1])
assert folder in Path(torchorbit.__file__).parents, torchorbit.__file__
assert OPERATORS["inner"].family == "contractions"


class Model(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.product = product
        self.first, self.last = nn.Linear(12, 8), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.randn(6, 8))

    def forward(self, x):
        return self.last(self.product(self.first(x), self.weight).relu())


torch.manual_seed(0)
x = torch.randn(2, 12)
model = Model(torch.inner).eval()
dag = torchorbit.convert(model, x)
assert "inner" in [getattr(vertex, "operator", "") for vertex in dag.graph.vertices]

orbits = torchorbit.find_orbits(dag)
assert orbits.unruled == ()
assert sorted(orbit.width for orbit in orbits) == [6, 8]
assert torchorbit.flops(dag).total == torchorbit.flops(torchorbit.convert(Model(nn.functional.linear).eval(), x)).total

removed = {orbit: [1, 4] for orbit in orbits}
smaller = torchorbit.remove_channels(dag, removed)
assert smaller.weight.shape == (4, 6)
assert torchorbit.verify_removal(dag.double(), smaller.double(), removed, x.double()) < 1e-12
dag.float()

pruned = torchorbit.prune(dag, x, [x], lambda output, batch: output.square().mean(), flops=0.6, criterion="taylor")
assert torchorbit.flops(pruned).total < torchorbit.flops(dag).total

pruned.save(folder / "pruned")
loaded = torchorbit.load(folder / "pruned")
with torch.no_grad():
    assert torch.equal(loaded(x), pruned(x))
print("inner:", torchorbit.flops(loaded).total)
"""


def block_of_contributing() -> str:
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Adding an operator")[2]
    found = re.search(r"to the end of\n`(?P<file>[^`]+)`:\n\n```python\n(?P<code>.*?)```", section, re.DOTALL)
    assert found is not None
    assert found["file"] == "torchorbit/operators/contractions.py"
    return found["code"]


def files_that_differ(ours: Path, theirs: Path) -> list[str]:
    names = [str(path.relative_to(ours)) for path in ours.rglob("*.py")]
    assert sorted(names) == sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*.py"))
    _, different, missing = filecmp.cmpfiles(ours, theirs, names, shallow=False)
    return different + missing


def test_an_operator_takes_one_file(tmp_path):
    package = Path(torchorbit.__file__).parent
    copied = tmp_path / "torchorbit"
    shutil.copytree(package, copied, ignore=shutil.ignore_patterns("__pycache__"))
    family = copied / "operators" / "contractions.py"
    family.write_text(family.read_text(encoding="utf-8") + "\n\n" + block_of_contributing(), encoding="utf-8")
    assert files_that_differ(package, copied) == ["operators/contractions.py"]

    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.startswith("inner: ")
