"""Every chore of the project: ``nox -s tests``, ``nox -s lint``, ``nox -s sweep -- 'resnet*'``; ``nox -l`` lists them.

All chores share one environment, and install into it only what is missing: torch is large, and an environment per chore
would download and unpack it as many times.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.requirements import Requirement

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

_ENVIRONMENT = Path(".nox", "environment").resolve()
_PROGRAMS = _ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")

# Not `results/`: what is committed there took hours to make, and is replaced only by whoever asks for it by name.
_RUNS = Path("runs")

_NIGHTLY_PAGES = (
    "coverage.md",
    "supported_models.md",
    "channel_pruning_supported_models.md",
    "changes.md",
    "summary.md",
)

# What makes torch and oneDNN run the kernels that they have for other processors than this one.
_KERNELS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
)

# What the oldest and the newest versions are tested with: what stands between this project and its dependencies.
_TESTS_OF_VERSIONS = (
    "tests/test_containers.py",
    "tests/conversion/test_settings.py",
    "tests/harness/test_meta.py",
    "tests/harness/test_records.py",
    "tests/harness/test_tables.py",
    "tests/zoo/test_cards.py",
    "tests/zoo/test_hub_server.py",
    "tests/zoo/test_hugging_face.py",
)
_MODELS_OF_VERSIONS = (
    "test_*",
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "mobilenetv3_small_100",
    "swin_tiny_patch4_window7_224",
)
# The tests run with these, in the pinned versions: torch is large, and what runs tests is no dependency.
_TOOLS = ("torch", "torchvision", "hypothesis", "pytest", "pytest-xdist", "pyyaml", "starlette", "uvicorn")

_BENCHMARKS = ("imports", "conversion", "orbits", "latency", "loading", "targets", "criteria")
# Those that run when they are named: they want to be told what to compare with, or bring a dozen packages of their own.
_NAMED_BENCHMARKS = ("commits", "generality", "real_weights", "reconstruction", "yolo")
_OF_OTHER_LIBRARIES = ("generality", "yolo")


def _install(session: nox.Session, *extras: str) -> None:
    """Bring the shared environment up to the pinned versions, with the project itself installed editable."""
    if not (_PROGRAMS / "python").exists() and not (_PROGRAMS / "python.exe").exists():
        session.run(sys.executable, "-m", "venv", str(_ENVIRONMENT), external=True)
    project = f".[{','.join(extras)}]" if extras else "."
    _run(session, "python", "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "--editable", project)


def _run(
    session: nox.Session,
    program: str,
    *arguments: str,
    success_codes: tuple[int, ...] = (0,),
    env: dict[str, str] | None = None,
) -> None:
    """Run a program of the shared environment."""
    session.run(str(_PROGRAMS / program), *arguments, external=True, success_codes=success_codes, env=env)


def _run_tests(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run pytest: a file at a time for each core, on which torch's own threads would only be in each other's way."""
    parallel = ("-n", "auto", "--dist", "loadfile")
    _run(session, "python", "-m", "pytest", *parallel, *arguments, env={"OMP_NUM_THREADS": "1", **(env or {})})


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; what follows `--` goes to pytest (`-- -m 'not slow'`, `-- tests/harness`)."""
    _install(session, "tests", "distributed")
    _run_tests(session, *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Test with the oldest versions that pyproject.toml allows, beside the pinned torch; `--` as for `tests`.

    In an environment of its own, in `.nox/oldest`.
    """
    folder = _own_environment(session, "oldest")
    pinned = [line for line in Path("constraints.txt").read_text().splitlines() if line.partition("==")[0] in _TOOLS]
    (folder / "tools.txt").write_text("\n".join(pinned))
    _in(session, folder, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "uv")
    versions = ("--output-file", str(folder / "versions.txt"), "--python", str(_python(folder)))
    compiled = ("--resolution", "lowest-direct", "--extra", "harness", "--quiet", *versions)
    _in(session, folder, "-m", "uv", "pip", "compile", *compiled, "pyproject.toml", str(folder / "tools.txt"))
    # As constraints, so that of torch only what its build for this machine needs is installed.
    chosen = ("--constraint", str(folder / "versions.txt"), "--requirement", str(folder / "tools.txt"))
    _in(session, folder, "-m", "pip", "install", "--quiet", *chosen, "--editable", ".[harness]")
    _test_versions(session, folder)


@nox.session
def newest(session: nox.Session) -> None:
    """Test with the newest versions there are, past the bounds in pyproject.toml; `--` as for `tests`.

    In an environment of its own, in `.nox/newest`.
    """
    folder = _own_environment(session, "newest")
    project = nox.project.load_toml("pyproject.toml")["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["harness"]]
    names = {Requirement(requirement).name for requirement in requirements}
    upgrade = ("--upgrade", "--upgrade-strategy", "eager")
    _in(session, folder, "-m", "pip", "install", "--quiet", *upgrade, *sorted({*names, *_TOOLS}), "setuptools")
    _in(session, folder, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".")
    _test_versions(session, folder)


def _own_environment(session: nox.Session, name: str) -> Path:
    """An environment beside the shared one, made anew."""
    folder = Path(".nox", name).resolve()
    session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
    return folder


def _python(folder: Path) -> Path:
    return folder / _PROGRAMS.name / "python"


def _in(session: nox.Session, folder: Path, *arguments: str) -> None:
    """Run the Python of an environment."""
    session.run(str(_python(folder)), *arguments, external=True, env={"OMP_NUM_THREADS": "1"})


def _test_versions(session: nox.Session, folder: Path) -> None:
    """Say what an environment has, and run what depends on it: tests, and a sweep that fails if one model does."""
    _in(session, folder, "-m", "pip", "list", "--format", "freeze")
    tests = session.posargs or _TESTS_OF_VERSIONS
    _in(session, folder, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *tests)
    out = ("--no-cache", "--fresh", "--out", str(folder / "records.jsonl"))
    _in(session, folder, "-m", "torchorbit", "sweep", *_MODELS_OF_VERSIONS, *out)


@nox.session
def processors(session: nox.Session) -> None:
    """Run the tests that compare numbers with other processors' kernels; what follows `--` goes to pytest."""
    _install(session, "tests")
    failed = []
    for kernels in _KERNELS:
        try:
            _run_tests(session, "-m", "numeric", *session.posargs, env=kernels)
        except CommandFailed:
            failed.append(" ".join(f"{name}={value}" for name, value in kernels.items()))
    if failed:
        session.error(f"tests failed under {', '.join(failed)}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types."""
    _install(session, "lint", "harness")
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")
    _run(session, "mypy")
    _run(session, "lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `build/site`, and fail on warnings; `-- serve` shows it while it is written."""
    _install(session, "docs")
    # What Material for MkDocs would print is an advertisement for its successor; mkdocs.yml says what we think of it.
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    _run(session, "mkdocs", *(session.posargs or ("build",)), "--strict", env=quiet)


@nox.session
def operators(session: nox.Session) -> None:
    """Write `docs/operators.md`, what is known of every operator, again from the declarations."""
    _install(session)
    _run(session, "python", "-m", "harness.operators", *session.posargs)


@nox.session
def sweep(session: nox.Session) -> None:
    """Sweep all of timm into `runs/coverage.jsonl`; what follows `--` goes to `torchorbit sweep`."""
    _install(session, "harness")
    _run(session, "torchorbit", "sweep", *session.posargs)


@nox.session
def tables(session: nox.Session) -> None:
    """Make the tables in `results/` again from the committed records; what follows `--` goes to `torchorbit tables`."""
    _install(session, "harness")
    _run(session, "torchorbit", "tables", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Sweep into a new file and compare with `results/`; what follows `--` goes to the sweep, patterns included.

    What has not changed since an earlier sweep comes from the cache; after `--`, `--no-cache` finds out that anew, too.

    All of it stays in `runs/`: the records, the tables, and in `summary.md` the coverage and what changed. The session
    fails if something was lost. What NIGHTLY_UPGRADE names (`timm`, `timm torch torchvision`, `timm==1.0.20`) is
    upgraded first, past the pinned versions; the next chore brings those back.
    """
    _install(session, "harness")
    upgrades = shlex.split(os.environ.get("NIGHTLY_UPGRADE", ""))
    if upgrades:
        _run(session, "python", "-m", "pip", "install", "--quiet", "--upgrade", *upgrades)
    # Last night's records may be of another version, which a sweep would refuse to add to; and no page of that night
    # may be taken for one of this.
    for name in ("nightly.jsonl", *_NIGHTLY_PAGES):
        (_RUNS / name).unlink(missing_ok=True)
    records, changes = _RUNS / "nightly.jsonl", _RUNS / "changes.md"
    # 1 says that some models failed: exactly what the tables are to show.
    _run(session, "torchorbit", "sweep", *session.posargs, "--out", str(records), success_codes=(0, 1))
    _run(session, "torchorbit", "tables", "--records", str(records), "--out", str(_RUNS))
    selection = ["--only-swept"] if _chooses_models(session.posargs) else []
    try:
        _run(session, "torchorbit", "diff", "results/coverage.jsonl", str(records), *selection, "--out", str(changes))
    finally:
        # With what was lost in it, which is when it is wanted most.
        pages = [path.read_text(encoding="utf-8") for path in (_RUNS / "coverage.md", changes) if path.exists()]
        (_RUNS / "summary.md").write_text("# Coverage\n\n" + "\n".join(pages), encoding="utf-8")


def _chooses_models(arguments: list[str]) -> bool:
    """Whether a sweep with these arguments is of some of timm's models: of a pattern, or without those excluded."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--jobs", "--verify", "--memory", "--timeout", "--backend", "--address", "--import"):
        parser.add_argument(option)
    for flag in ("--fresh", "--resume", "--cache", "--no-cache", "-v", "--verbose", "--log-json"):
        parser.add_argument(flag, action="store_true")
    _, others = parser.parse_known_args(arguments)
    return bool(others)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side with the alternatives; after `--`, the name of one benchmark, arguments for it, or both."""
    chosen = [name for name in session.posargs[:1] if name in (*_BENCHMARKS, *_NAMED_BENCHMARKS)]
    _install(session, "bench", *(["onnx"] if chosen == ["yolo"] else []))
    # Without dependencies: these would replace torch and timm by those of 2023, or bring much that nothing here needs.
    packages = "generality" if any(name in _OF_OTHER_LIBRARIES for name in chosen) else "torch-dag"
    requirements = f"benchmarks/requirements-{packages}.txt"
    _run(session, "python", "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", requirements)
    for name in chosen or _BENCHMARKS:
        _run(session, "python", f"benchmarks/{name}.py", *session.posargs[len(chosen) :])


@nox.session
def card(session: nox.Session) -> None:
    """Train, prune, measure and publish a small model, and keep its card in `results/card`, drawn by Chromium."""
    _install(session, "bench")
    _run(session, "python", "benchmarks/card.py", *session.posargs)
