"""Whatever is raised on purpose is a `TorchorbitError`, and docstrings name what their functions raise."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import pickle
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness.errors
import torchorbit
from torchorbit import errors

ROOT = Path(torchorbit.__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for package in ("torchorbit", "zoo", "harness") for path in (ROOT / package).rglob("*.py"))  # fmt: skip

#: What else may be raised: (exception, file or folder) -> why.
ALLOWED = {
    ("AttributeError", "torchorbit/graph/dag.py"): "the protocol of attributes, as nn.Module.get_submodule has it",
    ("AttributeError", "torchorbit/orbits/flat.py"): "the same",
    ("AttributeError", "torchorbit/records.py"): "the same",
    ("AssertionError", "torchorbit/comparing.py"): "what a test expects of compare_module_outputs",
    ("AssertionError", "torchorbit/removal/checking.py"): "what a test expects of check_rule",
    ("KeyboardInterrupt", "torchorbit/pruning/selectors/optimal.py"): "Ctrl-C, pressed again",
    ("RuntimeError", "torchorbit/graph/codegen.py"): "within generated code: the graph makes a GraphRunError of it",
    ("OverflowError", "torchorbit/expressions.py"): "the same",
    ("RuntimeError", "torchorbit/operators"): "an operator of generated code, likewise",
    ("TypeError", "torchorbit/graph/trial.py"): "within a trial run, which makes a CheckpointError of it",
    ("ValueError", "torchorbit/graph/trial.py"): "the same",
    ("DisagreementError", "torchorbit/conversion"): "convert catches it and records anew, or makes a ConversionError",
    ("UnknownError", "torchorbit/conversion/values.py"): "caught within the file, to say where the model asks",
    ("UnknownOperatorError", "torchorbit/operators"): "the recorder catches it and makes a ConversionError",
    ("_AgainError", "zoo/hugging_face.py"): "caught within the file, to ask the hub again",
    ("RuntimeError", "harness/meta.py"): "an operator on the meta device, which fails as the real one does",
    ("ValueError", "harness/cache.py"): "caught within the function, where an entry is no entry",
    ("_UnknownError", "harness/cache.py"): "caught within the file, where a model has no digest",
    ("EOFError", "harness/process.py"): "the protocol of streams; the supervisor catches it",
    ("VerificationError", "harness"): "the worker catches it, and it becomes part of a record",
    ("WorkersLostError", "harness"): "the sweep catches it and goes on with other workers",
    ("_NotStartedError", "harness"): "caught within the file",
    ("Exit", "harness"): "click's way to end a command with a code",
    ("TerminatedError", "harness/cli"): "SIGTERM, which ends a command as Ctrl-C does",
    ("KeyboardInterrupt", "harness"): "Ctrl-C, after a line that says how to go on",
}
#: Variables that hold an error: (name, file) -> why.
VARIABLES = {
    ("ours.error", "torchorbit/conversion/patching.py"): "a ConversionError that says where it happened",
    ("recorder.error", "torchorbit/conversion/memory.py"): "the same",
    ("recorder.error", "torchorbit/conversion/values.py"): "the same",
    ("refusal", "torchorbit/conversion/memory.py"): "the same",
    ("refusal", "torchorbit/conversion/recorder.py"): "the same",
    ("refused", "torchorbit/conversion/converting.py"): "the same, that was caught before",
    ("self._recorder.error", "torchorbit/conversion/memory.py"): "the same",
    ("self._recorder.error", "torchorbit/conversion/questions.py"): "the same",
    ("kind", "zoo/hugging_face.py"): "HubError or the subclass of it for hubs that do not answer",
    ("silence", "zoo/hugging_face.py"): "an error that was caught before",
}
#: What docstrings may say is raised and is no `TorchorbitError`: by others, or as said above.
OF_OTHERS = {
    "OSError", "OverflowError", "AttributeError", "AssertionError", "KeyboardInterrupt", "EOFError", "torch.onnx.OnnxExporterError",
    "DisagreementError", "UnknownOperatorError", "VerificationError", "WorkersLostError", "_NotStartedError",
}  # fmt: skip


def module_of(path: Path) -> Any:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return importlib.import_module(name)


def resolved(name: str, path: Path, tree: ast.AST) -> Any:
    """What a name, maybe with dots, means in a file; None where that cannot be told."""
    first, *rest = name.split(".")
    found = getattr(
        module_of(path), first, getattr(builtins, first, getattr(errors, first, getattr(harness.errors, first, None)))
    )
    for node in ast.walk(tree):
        if (
            found is None
            and isinstance(node, ast.ImportFrom)
            and any((a.asname or a.name) == first for a in node.names)
        ):
            found = getattr(importlib.import_module(str(node.module)), first, None)
    for part in rest:
        found = getattr(found, part, None)
    return found


def returned_by(name: str, path: Path, tree: ast.AST) -> Any:
    """The class that functions of this name give by their annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name and node.returns is not None:
            return resolved(ast.unparse(node.returns).strip("\"'"), path, tree)
    return None


def raised(node: ast.Raise, path: Path, tree: ast.AST) -> Any:
    """The class of what a statement raises; None where it passes on what was caught."""
    assert node.exc is not None
    called = isinstance(node.exc, ast.Call)
    name = ast.unparse(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
    if not called and any(isinstance(n, ast.ExceptHandler) and n.name == name for n in ast.walk(tree)):
        return None
    if any(name == variable and str(path) == file for variable, file in VARIABLES):
        return None
    found = resolved(name, path, tree)
    if inspect.isfunction(found):
        found = typing.get_type_hints(found).get("return")
    if not isinstance(found, type):
        found = returned_by(name.rpartition(".")[2], path, tree)
    assert isinstance(found, type), f"{path}:{node.lineno}: what is {name}?"
    return found


def is_allowed(kind: type, path: Path) -> bool:
    where = [str(path), *[str(parent) for parent in path.parents]]
    return issubclass(kind, errors.TorchorbitError) or any((kind.__name__, place) in ALLOWED for place in where)


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_that_is_raised_is_a_torchorbit_error(path: Path) -> None:
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            kind = raised(node, path, tree)
            assert kind is None or is_allowed(kind, path), f"{path}:{node.lineno} raises {kind.__name__}"


def documented(node: ast.AST) -> list[str] | None:
    """The names in the section of a docstring that says what is raised; None where it has no such section."""
    text = ast.get_docstring(node) or "" if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ""
    match = re.search(r"^Raises:\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    return None if match is None else re.findall(r"^ {4}([\w.]+):", match[1], re.MULTILINE)


def own_raises(node: ast.AST) -> Iterator[ast.Raise]:
    """The statements of a function itself, and not of those that are defined within it, that raise something."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            yield inner
        if not isinstance(inner, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            yield from own_raises(inner)


def documented_functions(tree: ast.AST) -> Iterator[tuple[ast.AST, list[str], list[ast.Raise]]]:
    """What has a section on errors, the names in it, and what it raises itself; of a class its constructor does."""
    for node in ast.walk(tree):
        names = documented(node)
        if names is None:
            continue
        bodies = [node]
        if isinstance(node, ast.ClassDef):
            bodies = [n for n in node.body if getattr(n, "name", "") in ("__init__", "__post_init__")]
        yield node, names, [found for body in bodies for found in own_raises(body)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_docstrings_name_what_is_raised(path: Path) -> None:
    tree = parsed(path)
    for node, names, statements in documented_functions(tree):
        where = f"{path}, {getattr(node, 'name', '')}"
        kinds = [resolved(name, path, tree) for name in names]
        for name, kind in zip(names, kinds, strict=True):
            known = isinstance(kind, type) and issubclass(kind, errors.TorchorbitError)
            assert known or name in OF_OTHERS, f"{where} says that {name} is raised"
        for statement in statements:
            kind = raised(statement, path, tree)
            said = kind is None or any(isinstance(k, type) and issubclass(kind, k) for k in kinds)
            assert said, f"{where} raises {kind and kind.__name__} and does not say so"


ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TorchorbitError)]


def test_errors_about_arguments_are_those_of_python_too() -> None:
    kinds = {
        ValueError: (errors.ArgumentError, errors.PlanError, errors.ScoresError, errors.TargetError,
                     errors.CalibrationError, errors.LookupTableError),
        TypeError: (errors.ArgumentTypeError,),
        IndexError: (errors.ArgumentIndexError,),
        KeyError: (errors.ArgumentKeyError,),
        RuntimeError: (errors.GraphRunError, errors.InternalError, errors.LatencyMeasurementError),
        ImportError: (errors.MissingExtraError, errors.ShadowedPackageError),
    }  # fmt: skip
    for builtin, ours in kinds.items():
        assert all(issubclass(kind, builtin) for kind in ours)
    of_python = {kind for ours in kinds.values() for kind in ours}
    others = {errors.ConversionError, errors.CheckpointError, errors.HubError, errors.TorchorbitError}
    assert of_python | others >= {kind for kind in ALL if kind.__module__ == "torchorbit.errors"}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_travel_between_processes(kind: type[errors.TorchorbitError]) -> None:
    arguments: dict[type, tuple[Any, ...]] = {
        errors.ConversionError: ("run", "layer1", "add", "no"),
        errors.GraphRunError: ("layer1/add", "no"),
        errors.TargetError: ("no", 0.5),
        errors.MissingExtraError: ("this", "onnx", "onnxruntime"),
        errors.ShadowedPackageError: ("zoo", "/here/zoo.py", "/there/zoo"),
    }
    error = kind(*arguments.get(kind, ("no",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
