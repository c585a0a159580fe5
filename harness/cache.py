"""A cache of records, addressed by what determines them.

What determines a record is the model (its modules, their configuration, the sources of their classes and of what they
import, or its version where it is installed), the versions of timm and torch, and the sources of this project. A hash
of all that is the model's *fingerprint*. timm has many names for one architecture: they have one fingerprint and one
record. Building a model takes longer than reading a file, so what fingerprint a name has is remembered as well, by the
sources of its function.

Nothing in the cache is trusted: an entry that is not what was written is as good as none.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor, nn

import torchorbit
from harness.records import Record
from harness.timm_import import timm
from torchorbit.files import replace_text

_LOG = logging.getLogger(__name__)

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_NOT_IN_THE_GRAPH = frozenset({"pretrained_cfg", "default_cfg"})
"""Attributes of timm's models that say where weights are, not what is computed."""

_DEEPEST = 12


def default_folder() -> Path:
    """Where the cache is: `$TORCHORBIT_CACHE`, or the user's folder for such things."""
    return Path(os.environ.get("TORCHORBIT_CACHE") or platformdirs.user_cache_dir("torchorbit")) / "records"


class Cache:
    """A folder of records.

    Args:
        folder: It is made when something is put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, fingerprint: str, verify: str, name: str) -> Record | None:
        """The record of a model with this fingerprint, under a name.

        Args:
            fingerprint: What `fingerprint_of` gave.
            verify: How it has to be verified.
            name: The name that the record is to carry.
        """
        found = self._read(self._path(f"{fingerprint} {verify}"))
        try:
            return None if found is None else replace(Record(**found), model=name)
        except TypeError:
            return None

    def known(self, name: str, verify: str) -> Record | None:
        """The record of a name in timm, if neither it nor anything that it is made of has changed.

        Args:
            name: The name.
            verify: How it has to be verified.
        """
        found = self._read(self._path(_name_key(name)))
        fingerprint = None if found is None else found.get("fingerprint")
        return self.record(fingerprint, verify, name) if isinstance(fingerprint, str) else None

    def put(self, record: Record, fingerprint: str, verify: str) -> None:
        """Keep a record of a model with which nothing went wrong, verified as it was asked for.

        A cache that cannot be written is no reason to stop: it is logged and that is all.
        """
        if record.failed or record.verified != verify:
            return
        try:
            self._write(self._path(f"{fingerprint} {verify}"), asdict(record))
            self._write(self._path(_name_key(record.model)), {"fingerprint": fingerprint})
        except OSError as error:
            _LOG.warning("the cache in %s cannot be written: %s", self.folder, error.strerror or error)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            content = entry["content"]
            if entry["sha256"] != _digest(content) or not isinstance(content, dict):
                raise ValueError
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            _LOG.warning("a damaged entry of the cache is passed over: %s", path.name)
            return None
        return content

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        replace_text(path, json.dumps({"sha256": _digest(content), "content": content}) + "\n")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint_of(model: nn.Module) -> str | None:
    """What determines what is found out about a model, as a hash.

    Args:
        model: A model as timm builds it, on any device; values of parameters and buffers do not count.

    Returns:
        The hash; None where the model holds something whose meaning cannot be told.
    """
    description = _Description(model)
    try:
        lines = list(description.lines())
    except _UnknownError:
        return None
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    digest.update("\n".join([*sources_digest(description.modules), *_surroundings()]).encode())
    return digest.hexdigest()


class _UnknownError(Exception):
    """A value of which nothing is known."""


class _Description:
    """A model in lines of text: equal for models that compute the same because they are built the same."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: set[str] = set()  # Python modules whose code the model runs
        self.paths: dict[int, str] = {}
        for path, module in model.named_modules():
            self.paths[id(module)] = path

    def lines(self) -> Iterator[str]:
        size = (getattr(self.model, "pretrained_cfg", None) or {}).get("input_size")
        yield f"input size {size}"
        for path, module in self.model.named_modules(remove_duplicate=False):
            if self.paths[id(module)] != path:
                yield f"{path}: the same as {self.paths[id(module)]}"
                continue
            yield f"{path}: {self.kind(type(module))}"
            for name, value in module.__dict__.items():
                if name not in _OF_EVERY_MODULE and name not in _NOT_IN_THE_GRAPH:
                    yield f"{path}.{name} = {self.value(value)}"
            yield f"{path}: training {module.training}, {sorted(module._non_persistent_buffers_set)}"
            for members in (module._parameters, module._buffers):
                for name, tensor in members.items():
                    yield f"{path}.{name}: {self.value(tensor)}"

    def kind(self, of: type) -> str:
        for base in of.__mro__:
            self.modules.add(base.__module__)
        return f"{of.__module__}.{of.__qualname__}"

    def value(self, value: Any, depth: int = 0) -> str:
        if depth > _DEEPEST:
            raise _UnknownError
        inner: Callable[[Any], str] = functools.partial(self.value, depth=depth + 1)
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return repr(value) if not isinstance(value, enum.Enum) else f"{self.kind(type(value))} {value.name}"
        if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout, enum.Enum)):
            return str(value)
        if isinstance(value, Tensor):
            return f"{type(value).__name__} {tuple(value.shape)} {value.dtype} {value.requires_grad}"
        if isinstance(value, nn.Module) and id(value) in self.paths:
            return f"module {self.paths[id(value)]}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(map(inner, value))})"
        if isinstance(value, dict):
            return "{" + ", ".join([f"{inner(key)}: {inner(item)}" for key, item in value.items()]) + "}"
        if isinstance(value, (set, frozenset)):
            return f"set({', '.join(sorted(map(inner, value)))})"
        if isinstance(value, type):
            return f"class {self.kind(value)}"
        return self.callable_or_object(value, inner)

    def callable_or_object(self, value: Any, inner: Callable[[Any], str]) -> str:
        if isinstance(value, weakref.ref):
            return f"reference to {inner(value())}"
        if isinstance(value, functools.partial):
            return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
        if isinstance(value, types.MethodType):
            return f"method {value.__func__.__qualname__} of {inner(value.__self__)}"
        if isinstance(value, types.FunctionType):
            self.modules.add(value.__module__)
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            held = [cells, list(value.__defaults__ or ()), value.__code__.co_code, value.__code__.co_firstlineno]
            return f"function {value.__module__}.{value.__qualname__} {inner(held)}"
        if isinstance(value, (types.BuiltinFunctionType, type(torch.ops.aten.add))):
            return f"function {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        state = getattr(value, "__dict__", None)
        if state is None and not hasattr(type(value), "__slots__"):
            raise _UnknownError
        slots = {name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)}
        return f"{self.kind(type(value))} {inner({**slots, **(state or {})})}"


@functools.cache
def _surroundings() -> tuple[str, ...]:
    """What every record depends on."""
    own = hashlib.sha256()
    for package in (Path(torchorbit.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            own.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    switches = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("TIMM_")]
    return (f"timm {timm.__version__}", f"torch {torch.__version__}", own.hexdigest(), *switches)


def _name_key(name: str) -> str:
    """What the fingerprint of a name in timm depends on."""
    function = timm.model_entrypoint(name)
    configuration = timm.get_pretrained_cfg(name)
    parts = [name, repr(configuration), *sources_digest({function.__module__}), *_surroundings()]
    return "\n".join(parts)


def sources_digest(modules: Iterable[str]) -> list[str]:
    """Hashes of the sources of Python modules and of everything that they import.

    Of other packages that are installed, timm apart, it is the version. torch is left out, whose version is in every
    fingerprint, and so is Python itself.
    """
    sources: set[str] = set()
    installed: set[str] = set()
    for name in modules:
        reached = _reached(name)
        sources |= reached[0]
        installed |= reached[1]
    return [
        *(f"{name} {_file_digest(name)}" for name in sorted(sources)),
        *(f"{package} {_version(package)}" for package in sorted(installed)),
    ]


@functools.cache
def _reached(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """A module and those that it imports, directly or not; and the packages of which the version says enough."""
    own = _package(name)
    sources: set[str] = set()
    around: set[str] = set()
    installed: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        package = _package(module)
        if module in sources or package in _KNOWN or package in sys.stdlib_module_names:
            continue
        if package not in (own, "timm") and _version(package) is not None:
            installed.add(package)
            continue
        sources.add(module)
        if package == "timm":
            # timm is published for what it imports, and works with any version of that.
            waiting += [other for other in _imports(module) if _package(other) == package]
        else:
            # Whoever imports a module runs the packages around it first.
            around.update(_packages_around(module))
            waiting += _imports(module)
    return frozenset(sources | around), frozenset(installed)


_KNOWN = frozenset({"", "torch", "builtins", "torchorbit", "harness"})
"""Packages that are in every fingerprint anyway."""


def _package(module: str) -> str:
    return module.partition(".")[0]


def _packages_around(module: str) -> Iterator[str]:
    while module := module.rpartition(".")[0]:
        yield module


@functools.cache
def _version(package: str) -> str | None:
    """The version of a package; None if its sources are not where packages are installed, but where somebody works."""
    path = _path_of(package)
    names = _distributions().get(package)
    if not names or (path is not None and not {"site-packages", "dist-packages"} & set(path.parts)):
        return None
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """The modules from which a module takes names; packages that only pass names on are looked through."""
    found: set[str] = set()
    for node in _import_statements(module):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
            # `import a.b` is for whoever writes `a.b`, and with it comes all of `a`.
            found.update(_package(alias.name) for alias in node.names if alias.asname is None)
        else:
            source = _absolute(module, node)
            found.update(_origin(source, alias.name) for alias in node.names)
    return frozenset(found)


@functools.cache
def _origin(module: str, name: str) -> str:
    """Where a name comes from that is imported from a module."""
    if name == "*":
        return module
    if _path_of(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    path = _path_of(module)
    if path is not None and path.name == "__init__.py":
        for node in _import_statements(module):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _origin(_absolute(module, node), alias.name)
    return module


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import statement names."""
    if not node.level:
        return node.module or ""
    path = _path_of(module)
    parts = module.split(".")
    up = node.level - (1 if path is not None and path.name == "__init__.py" else 0)
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


@functools.cache
def _import_statements(module: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """They alone are kept: the trees of all of timm take a quarter of a gigabyte."""
    path = _path_of(module)
    try:
        tree = ast.parse("" if path is None else path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple([node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))])


@functools.cache
def _file_digest(module: str) -> str:
    path = _path_of(module)
    try:
        return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


@functools.cache
def _path_of(module: str) -> Path | None:
    """The file of a module written in Python, which is not imported for that."""
    loaded = sys.modules.get(module)
    package, _, name = module.rpartition(".")
    if loaded is not None:
        origin: str | None = getattr(loaded, "__file__", None)
    elif not package:
        spec = _spec(module)
        origin = spec.origin if spec is not None and spec.has_location else None
    else:
        paths = [
            path for folder in _folders(package) for path in (folder / f"{name}.py", folder / name / "__init__.py")
        ]
        origin = next((str(path) for path in paths if path.exists()), None)
    return Path(origin) if origin and origin.endswith(".py") else None


@functools.cache
def _folders(package: str) -> tuple[Path, ...]:
    """Where the modules of a package are, which need have no file of its own; none for what is no package."""
    loaded = sys.modules.get(package)
    if loaded is not None:
        return tuple(Path(folder) for folder in getattr(loaded, "__path__", ()))
    around, _, name = package.rpartition(".")
    if not around:
        spec = _spec(package)
        return tuple(Path(folder) for folder in (spec and spec.submodule_search_locations) or ())
    return tuple(folder / name for folder in _folders(around) if (folder / name).is_dir())


def _spec(package: str) -> importlib.machinery.ModuleSpec | None:
    """What Python would import under a name without dots."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
