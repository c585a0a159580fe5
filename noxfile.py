"""Every chore of the project: ``nox -s tests``, ``nox -s lint``, ``nox -s sweep -- 'resnet*'``; ``nox -l`` lists them.

All chores share one environment, and install into it only what is missing: torch is large, and an environment per chore
would download and unpack it as many times.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

_ENVIRONMENT = Path(".nox", "environment").resolve()
_PROGRAMS = _ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")

# Not `results/`: what is committed there took hours to make, and is replaced only by whoever asks for it by name.
_RUNS = Path("runs")

_BENCHMARKS = ("conversion", "orbits", "latency")


def _install(session: nox.Session, *extras: str) -> None:
    """Bring the shared environment up to the pinned versions, with the project itself installed editable."""
    if not (_PROGRAMS / "python").exists() and not (_PROGRAMS / "python.exe").exists():
        session.run(sys.executable, "-m", "venv", str(_ENVIRONMENT), external=True)
    project = f".[{','.join(extras)}]" if extras else "."
    _run(session, "python", "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "--editable", project)


def _run(session: nox.Session, program: str, *arguments: str, success_codes: tuple[int, ...] = (0,)) -> None:
    """Run a program of the shared environment."""
    session.run(str(_PROGRAMS / program), *arguments, external=True, success_codes=success_codes)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; what follows `--` goes to pytest (`-- -m 'not slow'`, `-- tests/harness`)."""
    _install(session, "tests")
    _run(session, "python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    _install(session, "lint")
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")
    _run(session, "mypy")


@nox.session
def sweep(session: nox.Session) -> None:
    """Sweep all of timm into `runs/coverage.jsonl`; what follows `--` goes to `torchorbit sweep`."""
    _install(session)
    _run(session, "torchorbit", "sweep", *session.posargs)


@nox.session
def tables(session: nox.Session) -> None:
    """Make the tables in `results/` again from the committed records; what follows `--` goes to `torchorbit tables`."""
    _install(session)
    _run(session, "torchorbit", "tables", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Sweep from scratch, make the tables in `runs/` and print the coverage; what follows `--` goes to the sweep."""
    _install(session)
    records = _RUNS / "nightly.jsonl"
    # Last night's may be of another version, which a sweep would refuse to add to.
    records.unlink(missing_ok=True)
    # 1 says that some models failed: exactly what the tables are to show.
    _run(session, "torchorbit", "sweep", "--out", str(records), *session.posargs, success_codes=(0, 1))
    _run(session, "torchorbit", "tables", "--records", str(records), "--out", str(_RUNS))
    print((_RUNS / "coverage.md").read_text())


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side with the alternatives; after `--`, the name of one benchmark, arguments for it, or both."""
    _install(session, "bench")
    # Without its dependencies, which would replace torch and timm by those of 2023.
    requirements = "benchmarks/requirements-torch-dag.txt"
    _run(session, "python", "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", requirements)
    chosen = [name for name in session.posargs[:1] if name in _BENCHMARKS]
    for name in chosen or _BENCHMARKS:
        _run(session, "python", f"benchmarks/{name}.py", *session.posargs[len(chosen) :])
