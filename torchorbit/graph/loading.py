"""Load a saved graph, whoever made it.

A file from a stranger is data. Nothing in it is imported, unpickled or evaluated, no string of it reaches generated
code except as an identifier or as a literal, and no path in it is opened. What it may say is a closed language: every
entry of every object is known and has a type, every operator and module is in a table, every argument is of the kind
that it is in the operator's signature, every name refers to something that comes before it. What is left is run once
on meta tensors (`torchorbit.graph.trial`). Whatever fails is a `CheckpointError`.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, ByMode, Expr, Ref, SameDevice, SameDtype, Size, owners_in, walk_args
from torchorbit.errors import ArgumentError, CheckpointError
from torchorbit.expressions import EXPRESSIONS, OF_DTYPES
from torchorbit.graph import codegen
from torchorbit.graph.budget import MAX_SECONDS, Budget
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.files import FORMAT, MAX_RANK, VERSION, OpenFiles, open_files
from torchorbit.graph.trial import MAX_CALLS, try_out
from torchorbit.graph.vertices import InputVertex, Mode, ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.operators.modules import forward_arguments, leaf_name, make_leaf
from torchorbit.operators.table import OPERATORS, REQUIRED
from torchorbit.records import Record, RecordClass

#: How deep modules may be nested in each other, and arguments.
MAX_DEPTH = 64
_MAX_INT = 2**63
_MAX_NAME = 1024
_MAX_TEXT = 65_536
_MAX_MODULES = 100_000
_MAX_TYPES = 64  # of named tuples
_MAX_FIELDS = 255  # of one
_MAX_ARGUMENTS = 250_000  # values in all arguments together

_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_MEMORY_FORMATS = {str(m).removeprefix("torch."): m for m in (torch.contiguous_format, torch.preserve_format)} | {
    str(m).removeprefix("torch."): m for m in (torch.channels_last, torch.channels_last_3d)
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta)(:[0-9]{1,3})?\Z")

_ENTRIES = {
    "graph": {"kind", "vertices", "output", "parameters", "buffers", "children", "training"},
    "container": {"kind", "parameters", "buffers", "children", "training"},
    "leaf": {"kind", "class", "config", "parameters", "buffers", "training"},
    "same": {"kind", "path"},
}
_INPUT_ENTRIES = {"input", "keyword", "fixed", "shape"}
_MODULE_ENTRIES = {"name", "module", "leaf", "args", "kwargs", "mode", "owner"}
_OPERATOR_ENTRIES = {"name", "operator", "args", "mode", "owner", "training_only"}
#: Operators by the names that they had in files of version 0.1.0; these also had ``training_only`` for a mode.
_FORMER_NAMES = {"keep": "select_positions", "spread": "scatter_positions"}


def load(folder: str | Path, *, seconds: float = MAX_SECONDS) -> DagModule:
    """Load a graph that `DagModule.save` wrote. Needs neither the source's code nor its library.

    The folder may come from anybody. What is loaded runs nothing but the operators and modules of two closed tables;
    its tensors have the shapes and kinds that these need; it has run on meta tensors with the inputs that it says it
    was recorded with, in evaluation, and no result there was larger than 2**31 elements; its calls were made for real,
    on few elements, and positions that it holds are within what they pick from; it can be saved again. That says
    nothing of what it computes, and other inputs may take as much time and memory as any model may.

    The weights are mapped into memory: they are read when they are used, and not copied before they are written to.
    Replacing the file, as saving does, is safe; whoever writes into it while it is mapped changes the weights, and a
    process that reads what was cut off is ended by the system. The file stays open as long as the weights are used.

    Args:
        folder: the folder it was saved to. A file in it may be a link to a file next to it, or to one in the cache of
            a hub that the folder is a snapshot in; other links are not followed.
        seconds: of processor time that building and trying the graph may take. The time is looked at between
            vertices.

    Returns:
        The graph, on the CPU, with every module in the mode in which it was saved, and parameters that can be trained
        wherever this is called, in inference mode, too.

    Raises:
        CheckpointError: a file is missing or damaged, or the graph is not valid.
    """
    with open_files(Path(folder)) as files:
        return load_opened(files, seconds=seconds)


def load_opened(files: OpenFiles, *, seconds: float = MAX_SECONDS) -> DagModule:
    """Load a graph from files that are open, as `load` does.

    Raises:
        CheckpointError: a file is damaged, or the graph is not valid.
    """
    with torch.inference_mode(False):
        return unpack(files.graph(), files.tensors(), seconds=seconds)


def unpack(document: Any, tensors: dict[str, Tensor], *, seconds: float = MAX_SECONDS) -> DagModule:
    """Build a graph from what `torchorbit.graph.saving.pack` made.

    Args:
        document: the graph as data.
        tensors: the tensors that it names; they become the graph's own, without a copy.
        seconds: of processor time that this may take.

    Raises:
        CheckpointError: the document is of another format or version, names an operator or module that is not in
            the tables, refers to something that is not there, does not fit the tensors, does not run, or takes too
            long.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"this is no graph of torchorbit: its format is not '{FORMAT}'")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise CheckpointError(
            f"the graph has format version {document.get('version')!r:.100}; this torchorbit reads {VERSION}"
        )
    _check_entries(document, {"format", "version", "provenance", "root"}, "the graph")
    provenance = _unpack_provenance(document.get("provenance", {}))
    budget = Budget(seconds)
    unpacker = _Unpacker(tensors, budget)
    try:
        dag = unpacker.module(document.get("root"), "", provenance)
        if not isinstance(dag, DagModule):
            raise CheckpointError("the outermost module of the file is no graph")
        unused = sorted(set(tensors) - unpacker.used)
        if unused:
            raise CheckpointError(f"the weights hold tensors that the graph does not name: {unused[:5]}")
        for path, module in dag.named_modules():
            if isinstance(module, DagModule):
                budget.check_time(f"module '{path}'")
                _check_targets(module, path)
        shapes = _input_shapes(document["root"]["vertices"], provenance)
        try_out(dag, shapes, provenance.input_dtypes, unpacker.readers, budget)
    except CheckpointError:
        raise
    except Exception as error:
        # What the tables let through, and Python or torch refuses: nesting without end, numbers without end.
        raise CheckpointError(f"the graph is not valid: {type(error).__name__}: {error}") from error
    return dag


# -- provenance and inputs


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _is_shape(value: Any) -> bool:
    short = isinstance(value, list) and len(value) <= MAX_RANK
    return short and all(type(length) is int and 0 <= length < _MAX_INT for length in value)


_PROVENANCE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "source": (_is_text, "a string"),
    "mode": (lambda value: value in ("both", "evaluation"), "'both' or 'evaluation'"),
    "training_differs": (_texts, "a list of strings"),
    "always_evaluation": (_texts, "a list of strings"),
    "always_training": (_texts, "a list of strings"),
    "free_batch": (lambda value: isinstance(value, bool), "true or false"),
    "free_lengths": (lambda value: isinstance(value, bool), "true or false"),
    "fixed_dims": (lambda value: _is_shape(value), "a list of dimensions"),
    "fixed_lengths": (lambda value: isinstance(value, list) and all(map(_is_shape, value)), "lists of dimensions"),
    "fixed_by": (lambda value: _texts(value) and len(value) == 2, "two strings"),
    "batch_fixed_by": (lambda value: _texts(value) and len(value) == 2, "two strings"),
    "free_dtype": (lambda value: isinstance(value, bool), "true or false"),
    "input_shapes": (lambda value: isinstance(value, list) and all(map(_is_shape, value)), "a list of shapes"),
    "input_dtypes": (lambda value: _texts(value) and all(name in _DTYPES for name in value), "a list of dtypes"),
    "torch": (_is_text, "a string"),
}


def _unpack_provenance(given: Any) -> Provenance:
    if not isinstance(given, dict) or set(given) - set(_PROVENANCE):
        raise CheckpointError("the graph's provenance has unknown entries")
    for name, value in given.items():
        test, expected = _PROVENANCE[name]
        if not test(value):
            raise CheckpointError(f"the graph's provenance: '{name}' is {value!r:.200}, expected {expected}")
    return Provenance(**{name: _frozen(value) for name, value in given.items()})


def _frozen(value: Any) -> Any:
    return tuple([_frozen(item) for item in value]) if isinstance(value, list) else value


def _input_shapes(vertices: list[dict[str, Any]], provenance: Provenance) -> list[Any]:
    """The shape of every input, None where it is fixed; together they are those that the provenance lists."""
    found: list[tuple[int, ...]] = []

    def read(data: Any, depth: int = 0) -> Any:
        if _is_shape(data):
            found.append(tuple(data))
            return torch.Size(data)
        if data is None and depth:
            return None
        if not isinstance(data, dict) or len(data) != 1 or depth > MAX_DEPTH:
            raise CheckpointError(f"{data!r:.200} is not the shape of an input")
        ((tag, content),) = data.items()
        if tag == "$items" and isinstance(content, list):
            return tuple([read(item, depth + 1) for item in content])
        if tag != "$dict" or not isinstance(content, list):
            raise CheckpointError(f"{data!r:.200} is not the shape of an input")
        return _read_dict(content, lambda item: read(item, depth + 1))

    shapes: list[Any] = []
    for vertex in vertices:
        if "input" in vertex:
            shapes.append(None if "fixed" in vertex else read(vertex.get("shape")))
    recorded = provenance.input_shapes
    if tuple(found) != recorded:
        raise CheckpointError(f"the inputs have the shapes {found}, and the provenance says {recorded}")
    if provenance.input_dtypes and len(provenance.input_dtypes) != len(recorded):
        raise CheckpointError(f"the provenance has {len(recorded)} shapes and {len(provenance.input_dtypes)} dtypes")
    return shapes


# -- modules


@functools.cache
def _taken() -> frozenset[str]:
    """Names that every module has: a parameter, buffer or submodule of such a name could not be read."""
    return frozenset(dir(nn.Module()))


def _check_entries(data: dict[str, Any], known: set[str], where: str) -> None:
    unknown = set(data) - known
    if unknown:
        raise CheckpointError(f"{where} has the unknown entries {sorted(unknown)[:5]!r:.200}")


def _text(data: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = data.get(key, default)
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise CheckpointError(f"{where}: '{key}' is {value!r:.100}, expected a name")
    return value


def _flag(data: Mapping[str, Any], key: str, where: str) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: '{key}' is {value!r:.100}, expected true or false")
    return value


def _mode(data: Mapping[str, Any], where: str) -> tuple[Mode, str]:
    """In which mode a vertex runs, and whose flag decides."""
    mode = data.get("mode", "training" if _flag(data, "training_only", where) else "")
    if mode not in ("", "training", "evaluation"):
        raise CheckpointError(f"{where}: 'mode' is {mode!r:.100}, expected 'training' or 'evaluation'")
    return mode, _text(data, "owner", where, "")


class _Unpacker:
    def __init__(self, tensors: dict[str, Tensor], budget: Budget):
        self.tensors = tensors
        self.budget = budget
        self.readers: dict[int, dict[str, list[str]]] = {}  # see `torchorbit.graph.trial.Readers`
        self.used: set[str] = set()
        self.parameters: dict[str, nn.Parameter] = {}
        self.modules: dict[str, nn.Module] = {}  # those that are complete, by their paths
        self.extents: dict[int, tuple[int, int]] = {}  # id of such a module -> what is in it, and how deep
        self.arguments = _Arguments()
        self.vertices = 0
        self.opened = 0

    def module(self, node: Any, path: str, provenance: Provenance | None = None, depth: int = 0) -> nn.Module:
        where = f"module '{path:.200}'"
        self.opened += 1
        self.budget.take_characters(len(path), where)
        self.budget.check_time(where)
        if depth > MAX_DEPTH or self.opened > _MAX_MODULES:
            raise CheckpointError(
                f"{where}: modules are nested {MAX_DEPTH} deep at most, and there are {_MAX_MODULES} at most"
            )
        if not isinstance(node, dict):
            raise CheckpointError(f"{where} is no JSON object")
        kind = node.get("kind")
        if not isinstance(kind, str) or kind not in _ENTRIES:
            raise CheckpointError(f"{where} is of kind {kind!r:.100}, expected graph, container, leaf or same")
        _check_entries(node, _ENTRIES[kind], where)
        if kind == "same":
            other = node.get("path")
            if not isinstance(other, str) or other not in self.modules:
                raise CheckpointError(f"{where} is said to be module {other!r:.200}, which is not complete before it")
            if depth + self.extents[id(self.modules[other])][1] > MAX_DEPTH:
                raise CheckpointError(f"{where} is a module in which others are nested; {MAX_DEPTH} deep at most")
            return self.modules[other]
        if kind == "graph":
            module: nn.Module = blank(self.graph(node, where, outermost=provenance is not None), provenance)
        elif kind == "container":
            module = Container()
        else:
            config = node.get("config", {})
            if not isinstance(config, dict):
                raise CheckpointError(f"{where}: its config is no JSON object")
            read = {key: self.arguments.read(value, where) for key, value in config.items()}
            module = make_leaf(_text(node, "class", where), read)
        self.fill(module, node, path, where, depth)
        module.training = _flag(node, "training", where)
        self.modules[path] = module
        self.measure(module, where)
        return module

    def measure(self, module: nn.Module, where: str) -> None:
        """Count what is in a complete module: with what is the same in several places as often as it is there."""
        inner = [self.extents[id(child)] for child in module._modules.values()]
        count = 1 + len(module._parameters) + len(module._buffers) + sum(found for found, _ in inner)
        if count > _MAX_MODULES:
            raise CheckpointError(
                f"{where} has more than {_MAX_MODULES} modules and tensors in it, counted in every place"
            )
        self.extents[id(module)] = count, 1 + max([depth for _, depth in inner], default=0)

    def fill(self, module: nn.Module, node: dict[str, Any], path: str, where: str, depth: int) -> None:
        leaf = node["kind"] == "leaf"
        named: set[str] = set()

        def check_name(name: str) -> None:
            if not name or "." in name or len(name) > _MAX_NAME or name in _taken() or name in named:
                raise CheckpointError(
                    f"{where}: '{name:.200}' is no name of a parameter, buffer or submodule, or taken"
                )
            named.add(name)

        for group, expected in (("parameters", module._parameters), ("buffers", module._buffers)):
            entries = node.get(group, {})
            if not isinstance(entries, dict):
                raise CheckpointError(f"{where}: its {group} are no JSON object")
            # A leaf may carry more than its class needs, if that hides nothing of it.
            more = set(entries) - set(expected)
            if leaf and (set(expected) - set(entries) or any(hasattr(module, name) for name in more)):
                raise CheckpointError(
                    f"{where} needs the {group} {sorted(expected)}, the file has {sorted(entries)!r:.500}"
                )
            for name, entry in entries.items():
                check_name(name)
                self.assign(module, group, name, entry, f"{where}, {group} '{name}'", leaf and name not in more)
        if leaf and len({p.dtype for p in module._parameters.values() if p is not None}) > 1:
            raise CheckpointError(f"{where}: its parameters are of several dtypes")
        children = node.get("children", {})
        if not isinstance(children, dict):
            raise CheckpointError(f"{where}: its children are no JSON object")
        for name, child in children.items():
            check_name(name)
            module._modules[name] = self.module(child, f"{path}.{name}" if path else name, depth=depth + 1)

    def assign(self, module: nn.Module, group: str, name: str, entry: Any, where: str, leaf: bool) -> None:
        members: dict[str, Any] = getattr(module, f"_{group}")
        if entry is None:
            if leaf and members.get(name) is not None:
                raise CheckpointError(f"{where} is missing")
            members[name] = None
            return
        if not isinstance(entry, list) or len(entry) != 2:
            raise CheckpointError(f"{where} is not of the form [tensor, flag]")
        key, flag = entry
        if not isinstance(key, str) or not isinstance(flag, bool):
            raise CheckpointError(f"{where} is not of the form [tensor, flag]")
        tensor = self.tensors.get(key)
        if tensor is None:
            raise CheckpointError(f"{where} is tensor '{key:.200}', which the weights do not hold")
        if leaf:
            _check_fits(tensor, members[name], where)
        self.used.add(key)
        if group == "buffers":
            members[name] = tensor
            if flag:
                module._non_persistent_buffers_set.discard(name)
            else:
                module._non_persistent_buffers_set.add(name)
            return
        if flag and not (tensor.is_floating_point() or tensor.is_complex()):
            raise CheckpointError(f"{where} has dtype {tensor.dtype}, which has no gradient")
        parameter = self.parameters.get(key)
        if parameter is None:
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=flag)
            self.parameters[key] = parameter
        if parameter.requires_grad != flag:
            raise CheckpointError(f"{where} is tensor '{key}', which is trained in one place and not in another")
        if leaf and isinstance(module, nn.RNNBase):
            setattr(module, name, parameter)  # it keeps a list of its weights, too
        else:
            members[name] = parameter

    def graph(self, node: dict[str, Any], where: str, *, outermost: bool) -> Graph:
        given = node.get("vertices")
        if not isinstance(given, list):
            raise CheckpointError(f"{where} has no list of vertices")
        self.vertices += len(given)
        if self.vertices > MAX_CALLS:
            raise CheckpointError(f"the graph has more than {MAX_CALLS} vertices")
        vertices: list[Vertex] = []
        last: dict[str, str] = {}  # a result -> the vertex that reads it last, so far
        taken: set[str] = set()
        results: set[str] = set()  # the vertices that have one
        for data in given:
            self.budget.check_time(where)
            vertex = self.vertex(data, where)
            at = f"{where}, vertex '{vertex.name}'"
            if not codegen.is_valid_name(vertex.name):
                raise CheckpointError(f"{at}: that is no name a vertex may have")
            if vertex.name in taken:
                raise CheckpointError(f"{at}: there are two of that name")
            if isinstance(vertex, InputVertex):
                _check_input(vertex, vertices, at, outermost)
            last.update(dict.fromkeys(_check_refs(vertex_args(vertex), results, at), vertex.name))
            taken.add(vertex.name)
            if not isinstance(vertex, OperatorVertex) or not OPERATORS[vertex.operator].effect:
                results.add(vertex.name)
            vertices.append(vertex)
        output = self.arguments.read(node.get("output"), where)
        for name in _check_refs(output, results, f"{where}, output"):
            last.pop(name, None)
        graph = Graph(tuple(vertices), output)
        readers = self.readers[id(graph)] = {}
        for name, reader in last.items():
            readers.setdefault(reader, []).append(name)
        return graph

    def vertex(self, data: Any, where: str) -> Vertex:
        if not isinstance(data, dict):
            raise CheckpointError(f"{where}: a vertex is no JSON object")
        read = self.arguments.read
        if "input" in data:
            _check_entries(data, _INPUT_ENTRIES, f"{where}, an input")
            name = _text(data, "input", where)
            fixed = (read(data["fixed"], where),) if "fixed" in data else ()
            return InputVertex(name, _flag(data, "keyword", where), fixed)
        name = _text(data, "name", f"{where}, a vertex")
        at = f"{where}, vertex '{name}'"
        if "module" in data:
            _check_entries(data, _MODULE_ENTRIES, at)
            args, kwargs = data.get("args", []), data.get("kwargs", {})
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise CheckpointError(f"{at}: its arguments are no list and object")
            if not all(_IDENTIFIER.match(key) and not key.startswith("__") and not iskeyword(key) for key in kwargs):
                raise CheckpointError(f"{at}: an argument has a name that is none")
            return ModuleVertex(
                name,
                _text(data, "module", at),
                tuple([read(a, at) for a in args]),
                {key: read(a, at) for key, a in kwargs.items()},
                _text(data, "leaf", at, ""),
                *_mode(data, at),
            )
        _check_entries(data, _OPERATOR_ENTRIES, at)
        operator = data.get("operator")
        if isinstance(operator, str):
            operator = _FORMER_NAMES.get(operator, operator)
        if not isinstance(operator, str) or operator not in OPERATORS:
            raise CheckpointError(
                f"{at}: operator {operator!r:.200} is not in the table of operators; nothing is imported by name"
            )
        args = data.get("args", {})
        row = OPERATORS[operator]
        if not isinstance(args, dict) or set(args) - set(row.parameters):
            raise CheckpointError(f"{at}: operator '{operator}' takes the arguments {list(row.parameters)}")
        missing = [key for key, default in row.parameters.items() if default is REQUIRED and key not in args]
        if missing:
            raise CheckpointError(f"{at}: operator '{operator}' lacks the arguments {missing}")
        ordered = {key: read(args[key], at) for key in row.parameters if key in args}
        if operator == "assign" and type(ordered["target"]) is not Attr:
            raise CheckpointError(f"{at}: only a parameter or buffer is assigned to")
        return OperatorVertex(name, operator, ordered, *_mode(data, at))


def _check_fits(tensor: Tensor, like: Tensor | None, where: str) -> None:
    """A leaf's tensor must match the shape and the kind of dtype of its class's own."""
    if like is None or like.shape != tensor.shape:
        shape = None if like is None else tuple(like.shape)
        raise CheckpointError(f"{where} has shape {tuple(tensor.shape)}, expected {shape}")
    fits = tensor.is_floating_point() or tensor.is_complex() if like.is_floating_point() else tensor.dtype == like.dtype
    if not fits:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}, expected one like {like.dtype}")


def _check_input(vertex: InputVertex, before: list[Vertex], where: str, outermost: bool) -> None:
    if any(not isinstance(v, InputVertex) for v in before[-1:]):
        raise CheckpointError(f"{where}: inputs come before all other vertices")
    if not outermost and (vertex.keyword or vertex.fixed):
        raise CheckpointError(f"{where}: the inputs of a block are not fixed, and not passed by name")
    last = before[-1] if before else None
    if isinstance(last, InputVertex) and last.keyword and not vertex.keyword:
        raise CheckpointError(f"{where}: inputs that are passed by name come last")
    if owners_in(vertex.fixed) or any(isinstance(value, (Ref, Attr)) for value in walk_args(vertex.fixed)):
        raise CheckpointError(f"{where}: what an input is fixed to is a constant")


def _check_refs(arg: Any, names: set[str], where: str) -> list[str]:
    """The vertices that an argument refers to, which have results."""
    found = [value.vertex for value in walk_args(arg) if isinstance(value, Ref)]
    for name in found:
        if name not in names:
            raise CheckpointError(f"{where} refers to vertex '{name:.200}', no result of which comes before it")
    return found


def _check_targets(dag: DagModule, path: str) -> None:
    """Modules, parameters and flags that vertices name must be there."""

    def owner(name: str, where: str) -> nn.Module:
        try:
            return dag.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(f"{where}: there is no module '{name:.200}'") from error

    for vertex in dag.graph.vertices:
        where = f"module '{path}', vertex '{vertex.name}'"
        if isinstance(vertex, ModuleVertex):
            _check_call(vertex, owner(vertex.target, where), where)
        if not isinstance(vertex, InputVertex) and vertex.mode:
            owner(vertex.owner, where)
        _check_attributes(vertex_args(vertex), owner, where)
    _check_attributes(dag.graph.output, owner, f"module '{path}', output")


def _check_attributes(arg: Any, owner: Callable[[str, str], nn.Module], where: str) -> None:
    for name in owners_in(arg):
        owner(name, where)
    for value in walk_args(arg):
        if isinstance(value, Attr):
            holder, _, name = value.path.rpartition(".")
            module = owner(holder, where)
            if name not in module._parameters and name not in module._buffers:
                raise CheckpointError(f"{where}: there is no parameter or buffer '{value.path:.200}'")


def _check_call(vertex: ModuleVertex, target: nn.Module, where: str) -> None:
    if isinstance(target, Container) or not vertex.target:
        raise CheckpointError(f"{where}: module '{vertex.target:.200}' cannot be called")
    if vertex.leaf != (leaf_name(target) or ""):
        raise CheckpointError(f"{where}: module '{vertex.target:.200}' is no '{vertex.leaf:.200}'")
    if isinstance(target, DagModule):
        if vertex.mode:
            raise CheckpointError(f"{where}: a block runs in both modes, and this in '{vertex.mode}' alone")
        if len(target.graph.inputs) != len(vertex.args) or vertex.kwargs:
            raise CheckpointError(
                f"{where}: block '{vertex.target:.200}' takes {len(target.graph.inputs)} inputs, none of them by name"
            )
        return
    try:
        forward_arguments(vertex.leaf).bind(*vertex.args, **vertex.kwargs)
    except TypeError as error:
        raise CheckpointError(f"{where}: a {vertex.leaf} is not called like this: {error}") from error


# -- arguments


Read = Callable[[Any], Any]
Reader = Callable[[Any, Read], Any]


class _Arguments:
    """Reads arguments, those of one document."""

    def __init__(self) -> None:
        self.types: dict[tuple[str, tuple[str, ...]], type] = {}
        self.count = 0

    def read(self, data: Any, where: str, depth: int = 0) -> Any:
        self.count += 1
        if self.count > _MAX_ARGUMENTS:
            raise CheckpointError(f"{where}: the arguments of the graph hold more than {_MAX_ARGUMENTS} values")
        kind = type(data)
        if data is None or kind is bool:
            return data
        if kind is str:
            if len(data) > _MAX_TEXT:
                raise CheckpointError(f"{where}: a text of {len(data)} characters; {_MAX_TEXT} at most")
            return data
        if kind is int:
            if not -_MAX_INT <= data < _MAX_INT:
                raise CheckpointError(f"{where}: an integer has more than 64 bits")
            return data
        if kind is float:
            if not math.isfinite(data):
                raise CheckpointError(f"{where}: a number is not finite")
            return data
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{where}: arguments are nested {MAX_DEPTH} deep at most")
        if kind is list:
            return tuple([self.read(item, where, depth + 1) for item in data])
        if kind is not dict or len(data) != 1:
            raise CheckpointError(f"{where}: {data!r:.200} is no argument")
        ((tag, content),) = data.items()
        reader = self.named_tuple if tag == "$namedtuple" else _READERS.get(tag)
        if reader is None:
            raise CheckpointError(f"{where}: '{tag:.200}' is no kind of argument")
        try:
            return reader(content, lambda item: self.read(item, where, depth + 1))
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"{where}: a '{tag}' argument is not valid: {error}") from error

    def named_tuple(self, content: Any, read: Read) -> Any:
        name, fields, values = _list(content, 3)
        words = [name, *_list(fields)]
        if len(words) > _MAX_FIELDS + 1:
            raise ArgumentError(f"a named tuple of {len(words) - 1} fields; {_MAX_FIELDS} at most")
        if not all(isinstance(word, str) and len(word) <= _MAX_NAME and _IDENTIFIER.match(word) for word in words):
            raise ArgumentError("a named tuple has a name and names of fields")
        key = (name, tuple(fields))
        if key not in self.types:
            if len(self.types) >= _MAX_TYPES:
                raise ArgumentError(f"there are {_MAX_TYPES} types of named tuples at most")
            self.types[key] = collections.namedtuple(name, fields)
        return self.types[key](*[read(value) for value in _list(values)])


def _list(content: Any, length: int | None = None) -> list[Any]:
    if not isinstance(content, list) or (length is not None and len(content) != length):
        raise ArgumentError("a list is expected" + ("" if length is None else f" of {length}"))
    return content


def _value(content: Any, read: Read) -> Ref | Attr:
    value = read(content)
    if not isinstance(value, (Ref, Attr)):
        raise ArgumentError("a reference to a tensor is expected")
    return value


def _read_ref(content: Any, read: Read) -> Ref:
    name, *index = _list(content)
    if not isinstance(name, str) or any(type(item) not in (int, str) for item in index):
        raise ArgumentError("a reference is a name and indices")
    if any(not _is_text(item) if isinstance(item, str) else abs(item) >= _MAX_INT for item in index):
        raise ArgumentError("an index is too long")
    return Ref(name, tuple(index))


def _read_size(content: Any, read: Read) -> Size:
    value, dim = _list(content, 2)
    if type(dim) is not int or not -MAX_RANK <= dim < MAX_RANK:
        raise ArgumentError("a dimension is an integer")
    return Size(_value(value, read), dim)


def _read_expr(content: Any, read: Read) -> Expr:
    operator, *operands = _list(content)
    if not isinstance(operator, str) or operator not in EXPRESSIONS:
        raise ArgumentError(f"{operator!r:.100} is no arithmetic")
    if EXPRESSIONS[operator].count("{") != len(operands):
        raise ArgumentError(f"'{operator}' does not take {len(operands)} operands")
    parts = tuple([read(operand) for operand in operands])
    allowed = SameDtype if operator in OF_DTYPES else (int, float, Size, Expr)
    if any(not isinstance(part, allowed) for part in parts):
        raise ArgumentError("arithmetic is on sizes and numbers, and limits are those of a tensor's dtype")
    return Expr(operator, parts)


def _read_mode(content: Any, read: Read) -> ByMode:
    training, evaluation, owner = _list(content, 3)
    if not isinstance(owner, str) or len(owner) > _MAX_NAME:
        raise ArgumentError("an owner is the path of a module")
    return ByMode(read(training), read(evaluation), owner)


def _read_attr(content: Any, read: Read) -> Attr:
    if not isinstance(content, str) or not all(content.split(".")) or len(content) > _MAX_TEXT:
        raise ArgumentError("a dotted path is expected")
    return Attr(content)


def _read_dict(content: Any, read: Read) -> dict[Any, Any]:
    result = {}
    for entry in _list(content):
        key, value = _list(entry, 2)
        if key is not None and type(key) not in (bool, int, str):
            raise ArgumentError("a key is a name or a number")
        if key in result:
            raise ArgumentError(f"there are two entries {key!r:.100}")
        result[key] = read(value)
    return result


def _read_record(content: Any, read: Read) -> Record:
    name, named, keyed, both = _list(content, 4)
    attributes = _read_dict(named, read)
    items = None if keyed is None else _read_dict(keyed, read)
    if not isinstance(name, str) or len(name) > _MAX_NAME or not all(map(_is_field, [*attributes, *_list(both)])):
        raise ArgumentError("a record has a name and names of what it holds")
    if not set(both) <= set(items or ()):
        raise ArgumentError("what a record holds by name and by key is under a key")
    keys = None if items is None else tuple(items)
    held = (*attributes.values(), *(items or {}).values())
    return Record(RecordClass(name), tuple(attributes), keys, tuple(both), held)


def _is_field(word: Any) -> bool:
    """Whether it may be the name of an attribute: none of those that mean something to Python."""
    known = isinstance(word, str) and len(word) <= _MAX_NAME and bool(_IDENTIFIER.match(word))
    return known and not iskeyword(word) and not word.startswith(("__", "_record"))


def _read_float(content: Any, read: Read) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise ArgumentError("inf, -inf or nan is expected")
    return float(content)


def _read_complex(content: Any, read: Read) -> complex:
    parts = [read(part) for part in _list(content, 2)]
    if not all(type(part) in (int, float) for part in parts):
        raise ArgumentError("two numbers are expected")
    return complex(*parts)


def _read_device(content: Any, read: Read) -> torch.device:
    if not isinstance(content, str) or not _DEVICE.match(content):
        raise ArgumentError("a device is expected")
    return torch.device(content)


def _read_ellipsis(content: Any, read: Read) -> Any:
    if content is not True:
        raise ArgumentError("true is expected")
    return Ellipsis


_READERS: dict[str, Reader] = {
    "$float": _read_float,
    "$ref": _read_ref,
    "$attr": _read_attr,
    "$list": lambda content, read: [read(a) for a in _list(content)],
    "$dict": _read_dict,
    "$record": _read_record,
    "$slice": lambda content, read: slice(*[read(a) for a in _list(content, 3)]),
    "$size": _read_size,
    "$expr": _read_expr,
    "$mode": _read_mode,
    "$device_of": lambda content, read: SameDevice(_value(content, read)),
    "$dtype_of": lambda content, read: SameDtype(_value(content, read)),
    "$dtype": lambda content, read: _DTYPES[content],
    "$device": _read_device,
    "$memory_format": lambda content, read: _MEMORY_FORMATS[content],
    "$complex": _read_complex,
    "$ellipsis": _read_ellipsis,
}
