"""Somebody else's `zoo.py` or `harness/` in the folder where a program runs is never run in the place of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchorbit

ROOT = Path(torchorbit.__file__).parents[1]

#: What a stranger's module does: it leaves a file behind, and would do for ours as far as an import goes.
STRANGER = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"

#: Ways to use our packages, which are installed: they come after the folder of the program.
PULL = "import torchorbit; torchorbit.from_pretrained('a/b', hub='hub')"
SAVE = "import torch, torchorbit; torchorbit.convert(torch.nn.Linear(2, 2), torch.ones(1, 2)).save_pretrained('saved')"
MAKE = "import harness.making"
COMMAND = (
    "import sys; from torchorbit.__main__ import main; sys.argv[1:] = ['zoo', 'list', '--hub', '.']; sys.exit(main())"
)
IMPORTED_BEFORE = f"import types, sys; sys.modules['zoo'] = types.ModuleType('zoo'); {PULL}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the programs run. Our packages are found as those are that are installed, after everything else."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import sys; sys.path.append({str(ROOT)!r})")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Its own folder, which is empty but for the line above, comes after that of the program.
    env = os.environ | {"PYTHONPATH": str(folder.parent / "site")}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def strange(folder: Path, name: str) -> Path:
    """Put a stranger's module or package there."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(STRANGER)
    return path


def untouched(folder: Path) -> bool:
    return not list(folder.rglob("*.ran"))


@pytest.mark.parametrize("name", ["zoo.py", "zoo/__init__.py"])
@pytest.mark.parametrize("code", [PULL, SAVE, MAKE], ids=["pull", "save", "harness"])
def test_a_strangers_zoo_is_not_run_and_the_error_says_which_file_it_is(folder: Path, code: str, name: str) -> None:
    path = strange(folder, name)

    done = run(folder, "-c", code)

    assert done.returncode == 1
    assert untouched(folder)
    assert done.stderr.splitlines()[-1] == (
        f"torchorbit.errors.ShadowedPackageError: {str(path)!r} hides the package 'zoo' of torchorbit, which is "
        f"{str(ROOT / 'zoo')!r}: Python would import that file in its place; rename it, or run from another folder"
    )


def test_a_script_beside_a_strangers_zoo_does_not_run_it_either(folder: Path) -> None:
    strange(folder, "zoo.py")
    (folder / "script.py").write_text(PULL)

    done = run(folder, "script.py")

    assert done.returncode == 1
    assert untouched(folder)
    assert "ShadowedPackageError" in done.stderr.splitlines()[-1]


def test_a_module_that_has_the_name_already_is_not_taken_for_ours(folder: Path) -> None:
    done = run(folder, "-c", IMPORTED_BEFORE)

    assert done.returncode == 1
    assert "ShadowedPackageError: \"<module 'zoo'>\" hides the package 'zoo'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("zoo.py", ["-m", "torchorbit", "--help"]),
        ("zoo.py", ["-m", "harness.cli", "--help"]),
        ("zoo.py", ["-c", COMMAND]),
        ("harness/__init__.py", ["-m", "torchorbit", "--help"]),
        ("harness.py", ["-c", COMMAND]),
    ],
)
def test_the_command_line_refuses_in_one_line(folder: Path, package: str, arguments: list[str]) -> None:
    path = strange(folder, package)

    done = run(folder, *arguments)

    assert done.returncode == 1
    assert untouched(folder)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"torchorbit: {str(path)!r} hides the package '{path.relative_to(folder).parts[0].removesuffix('.py')}'"
    )


def test_a_strangers_harness_is_no_concern_of_who_needs_none(folder: Path) -> None:
    strange(folder, "harness/__init__.py")

    done = run(folder, "-c", SAVE)

    assert done.returncode == 0, done.stderr
    assert untouched(folder)


def test_folders_of_these_names_that_are_no_packages_do_no_harm(folder: Path) -> None:
    (folder / "zoo").mkdir()
    (folder / "harness").mkdir()

    for arguments in (["-c", SAVE], ["-m", "torchorbit", "--version"]):
        done = run(folder, *arguments)
        assert done.returncode == 0, done.stderr
