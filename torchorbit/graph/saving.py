"""Save a graph as data and load it again.

A saved graph is a folder: ``graph.json`` (modules, vertices, arguments, provenance), ``model.safetensors`` (weights
and buffers) and ``README.md``. It carries no code: operators and modules are names in closed tables, and a name
that is not in them is an error, never an import.

In ``graph.json`` an argument that JSON has no word for is an object with one key that starts with ``$``; a plain
JSON list is a tuple.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
import tempfile
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torchorbit.errors import CheckpointError
from torchorbit.graph import codegen
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.modules import leaf_config, leaf_name, make_leaf
from torchorbit.graph.operators import OPERATORS, REQUIRED
from torchorbit.graph.vertices import (
    EXPRESSIONS,
    Attr,
    ByMode,
    Expr,
    InputVertex,
    ModuleVertex,
    OperatorVertex,
    Ref,
    SameDevice,
    SameDtype,
    Size,
    Vertex,
    map_args,
    vertex_args,
    walk_args,
)

FORMAT = "torchorbit-graph"
VERSION = 1
GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


# -- to data


def pack(dag: DagModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a graph as plain data.

    Args:
        dag: an outermost `DagModule`.

    Returns:
        A document that ``json.dumps`` takes, and the tensors that it names; they are shared, not copied.

    Raises:
        CheckpointError: the graph holds a module or a constant that the format has no name for.
    """
    if dag.provenance is None:
        raise CheckpointError(
            "this is a block of a graph; save the outermost DagModule, or convert the block by itself"
        )
    packer = _Packer()
    root = packer.module(dag, "")
    provenance = {name: getattr(dag.provenance, name) for name in Provenance.__slots__}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": json.loads(json.dumps(provenance)),
        "root": root,
    }
    return document, packer.tensors


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}  # id of a tensor -> its key
        self.modules: dict[int, str] = {}  # id of a module -> its path
        self.leaves: dict[int, str] = {}  # id of a module -> the leaf that vertices say it is

    def module(self, module: nn.Module, path: str) -> dict[str, Any]:
        if id(module) in self.modules:
            return {"kind": "same", "path": self.modules[id(module)]}
        self.modules[id(module)] = path
        node: dict[str, Any] = {}
        if isinstance(module, DagModule):
            node["kind"] = "graph"
            for vertex in module.graph.vertices:
                if isinstance(vertex, ModuleVertex) and vertex.leaf:
                    self.leaves[id(module.get_submodule(vertex.target))] = vertex.leaf
            node["vertices"] = [_pack_vertex(vertex) for vertex in module.graph.vertices]
            node["output"] = _pack_arg(module.graph.output)
        elif isinstance(module, Container):
            node["kind"] = "container"
        else:
            name = self.leaves.get(id(module)) or leaf_name(module)
            if name is None:
                raise CheckpointError(
                    f"module '{path}' is a {type(module).__module__}.{type(module).__qualname__}, which is not in the "
                    "table of leaf modules; a graph that keeps it whole cannot be saved without its code"
                )
            node["kind"] = "leaf"
            node["class"] = name
            config = leaf_config(module, name)
            node["config"] = {key: _pack_arg(value) for key, value in config.items() if value is not None}
        prefix = f"{path}." if path else ""
        parameters = {
            name: None if tensor is None else [self.tensor(prefix + name, tensor), tensor.requires_grad]
            for name, tensor in module._parameters.items()
        }
        buffers = {
            name: None
            if tensor is None
            else [self.tensor(prefix + name, tensor), name not in module._non_persistent_buffers_set]
            for name, tensor in module._buffers.items()
        }
        children = {
            name: self.module(child, prefix + name) for name, child in module._modules.items() if child is not None
        }
        for key, value in (("parameters", parameters), ("buffers", buffers), ("children", children)):
            if value:
                node[key] = value
        if module.training:
            node["training"] = True
        return node

    def tensor(self, name: str, tensor: Tensor) -> str:
        key = self.names.setdefault(id(tensor), name)
        self.tensors.setdefault(key, tensor)
        return key


def _pack_vertex(vertex: Vertex) -> dict[str, Any]:
    if isinstance(vertex, InputVertex):
        data: dict[str, Any] = {"input": vertex.name}
        if vertex.keyword:
            data["keyword"] = True
        if vertex.fixed:
            data["fixed"] = _pack_arg(vertex.fixed[0])
        return data
    if isinstance(vertex, ModuleVertex):
        data = {
            "name": vertex.name,
            "module": vertex.target,
            "leaf": vertex.leaf,
            "args": [_pack_arg(a) for a in vertex.args],
        }
        if vertex.kwargs:
            data["kwargs"] = {key: _pack_arg(a) for key, a in vertex.kwargs.items()}
        return data
    data = {
        "name": vertex.name,
        "operator": vertex.operator,
        "args": {key: _pack_arg(a) for key, a in vertex.args.items()},
    }
    if vertex.training_only:
        data["training_only"] = True
        data["owner"] = vertex.owner
    return data


def _pack_arg(arg: Any) -> Any:
    kind = type(arg)
    if arg is None or kind in (bool, int, str):
        return arg
    if kind is float:
        return arg if math.isfinite(arg) else {"$float": repr(arg)}
    if kind is Ref:
        return {"$ref": [arg.vertex, *arg.index]}
    if kind is Attr:
        return {"$attr": arg.path}
    if kind is tuple or kind is torch.Size:
        return [_pack_arg(a) for a in arg]
    if kind is list:
        return {"$list": [_pack_arg(a) for a in arg]}
    if kind is dict:
        return {"$dict": [[_pack_arg(key), _pack_arg(a)] for key, a in arg.items()]}
    if kind is slice:
        return {"$slice": [_pack_arg(a) for a in (arg.start, arg.stop, arg.step)]}
    if kind is Size:
        return {"$size": [_pack_arg(arg.value), arg.dim]}
    if kind is Expr:
        return {"$expr": [arg.operator, *[_pack_arg(a) for a in arg.operands]]}
    if kind is ByMode:
        return {"$mode": [_pack_arg(arg.training), _pack_arg(arg.evaluation), arg.owner]}
    if kind is SameDevice:
        return {"$device_of": _pack_arg(arg.value)}
    if kind is SameDtype:
        return {"$dtype_of": _pack_arg(arg.value)}
    if kind is torch.dtype:
        return {"$dtype": str(arg).removeprefix("torch.")}
    if kind is torch.device:
        return {"$device": str(arg)}
    if kind is torch.memory_format:
        return {"$memory_format": str(arg).removeprefix("torch.")}
    if kind is complex:
        return {"$complex": [arg.real, arg.imag]}
    if arg is Ellipsis:
        return {"$ellipsis": True}
    if isinstance(arg, tuple) and hasattr(arg, "_fields"):
        return {"$namedtuple": [kind.__name__, list(arg._fields), [_pack_arg(a) for a in arg]]}
    raise CheckpointError(f"a constant of type {kind.__module__}.{kind.__qualname__} cannot be saved")


# -- from data


def unpack(document: Any, tensors: dict[str, Tensor]) -> DagModule:
    """Build a graph from what `pack` made.

    Args:
        document: the graph as data.
        tensors: the tensors that it names; they become the graph's own, without a copy.

    Raises:
        CheckpointError: the document is of another format or version, names an operator or module that is not in
            the tables, refers to something that is not there, or does not fit the tensors.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"this is no graph of torchorbit: its format is not '{FORMAT}'")
    if document.get("version") != VERSION:
        raise CheckpointError(
            f"the graph has format version {document.get('version')!r}; this torchorbit reads {VERSION}"
        )
    given = document.get("provenance", {})
    if not isinstance(given, dict) or set(given) - set(Provenance.__slots__):
        raise CheckpointError("the graph's provenance has unknown entries")
    provenance = Provenance(**{name: _frozen(value) for name, value in given.items()})
    unpacker = _Unpacker(tensors)
    try:
        dag = unpacker.module(document.get("root"), "", provenance)
    except (RecursionError, SyntaxError, ValueError, TypeError, AssertionError, ArithmeticError) as error:
        # What the tables let through and Python refuses: nesting without end, numbers without end.
        raise CheckpointError(f"the graph is not valid: {type(error).__name__}: {error}") from error
    if not isinstance(dag, DagModule):
        raise CheckpointError("the outermost module of the file is no graph")
    unused = sorted(set(tensors) - unpacker.used)
    if unused:
        raise CheckpointError(f"the weights hold tensors that the graph does not name: {unused[:5]}")
    for path, module in dag.named_modules():
        if isinstance(module, DagModule):
            _check_targets(module, path)
    return dag


def _frozen(value: Any) -> Any:
    return tuple([_frozen(item) for item in value]) if isinstance(value, list) else value


class _Unpacker:
    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.used: set[str] = set()
        self.parameters: dict[str, nn.Parameter] = {}
        self.modules: dict[str, nn.Module] = {}

    def module(self, node: Any, path: str, provenance: Provenance | None = None) -> nn.Module:
        where = f"module '{path}'"
        if not isinstance(node, dict):
            raise CheckpointError(f"{where} is no JSON object")
        kind = node.get("kind")
        if kind == "same":
            if node.get("path") not in self.modules:
                raise CheckpointError(
                    f"{where} is said to be module '{node.get('path')}', which does not come before it"
                )
            return self.modules[node["path"]]
        if kind == "graph":
            module: nn.Module = blank(_unpack_graph(node, where), provenance)
        elif kind == "container":
            module = Container()
        elif kind == "leaf":
            config = node.get("config", {})
            if not isinstance(config, dict):
                raise CheckpointError(f"{where}: its config is no JSON object")
            module = make_leaf(str(node.get("class")), {key: _unpack_arg(a, where) for key, a in config.items()})
        else:
            raise CheckpointError(f"{where} is of kind {kind!r}, expected graph, container, leaf or same")
        self.modules[path] = module
        self.fill(module, node, path, where)
        module.training = bool(node.get("training", False))
        return module

    def fill(self, module: nn.Module, node: dict[str, Any], path: str, where: str) -> None:
        leaf = node["kind"] == "leaf"
        for group, expected in (("parameters", module._parameters), ("buffers", module._buffers)):
            entries = node.get(group, {})
            if not isinstance(entries, dict):
                raise CheckpointError(f"{where}: its {group} are no JSON object")
            # A leaf may carry more than its class needs, if that hides nothing of it.
            more = set(entries) - set(expected)
            if leaf and (set(expected) - set(entries) or any(hasattr(module, name) for name in more)):
                raise CheckpointError(f"{where} needs the {group} {sorted(expected)}, the file has {sorted(entries)}")
            for name, entry in entries.items():
                if not name or "." in name:
                    raise CheckpointError(f"{where}: '{name}' is no name of a parameter or buffer")
                self.assign(module, group, name, entry, f"{where}, {group} '{name}'", leaf and name not in more)
        children = node.get("children", {})
        if not isinstance(children, dict) or (leaf and children):
            raise CheckpointError(f"{where}: its children are no JSON object, or it is a leaf")
        for name, child in children.items():
            if not name or "." in name:
                raise CheckpointError(f"{where}: '{name}' is no name of a submodule")
            module._modules[name] = self.module(child, f"{path}.{name}" if path else name)

    def assign(self, module: nn.Module, group: str, name: str, entry: Any, where: str, leaf: bool) -> None:
        members: dict[str, Any] = getattr(module, f"_{group}")
        if entry is None:
            if leaf and members.get(name) is not None:
                raise CheckpointError(f"{where} is missing")
            members[name] = None
            return
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise CheckpointError(f"{where} is not of the form [tensor, flag]")
        key, flag = entry
        if key not in self.tensors:
            raise CheckpointError(f"{where} is tensor '{key}', which the weights do not hold")
        tensor = self.tensors[key]
        if leaf:
            like = members[name]
            if like is None or like.shape != tensor.shape:
                shape = None if like is None else tuple(like.shape)
                raise CheckpointError(f"{where} has shape {tuple(tensor.shape)}, expected {shape}")
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
            parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=bool(flag))
            self.parameters[key] = parameter
        if leaf and isinstance(module, nn.RNNBase):
            setattr(module, name, parameter)  # it keeps a list of its weights, too
        else:
            members[name] = parameter


def _unpack_graph(node: dict[str, Any], where: str) -> Graph:
    given = node.get("vertices")
    if not isinstance(given, list):
        raise CheckpointError(f"{where} has no list of vertices")
    vertices: list[Vertex] = []
    names: set[str] = set()
    for data in given:
        vertex = _unpack_vertex(data, where)
        at = f"{where}, vertex '{vertex.name}'"
        if not codegen.is_valid_name(vertex.name):
            raise CheckpointError(f"{at}: that is no name a vertex may have")
        if vertex.name in names:
            raise CheckpointError(f"{at}: there are two of that name")
        if isinstance(vertex, InputVertex) and any(not isinstance(v, InputVertex) for v in vertices):
            raise CheckpointError(f"{at}: inputs come before all other vertices")
        _check_refs(vertex_args(vertex), names, at)
        names.add(vertex.name)
        vertices.append(vertex)
    output = _unpack_arg(node.get("output"), where)
    _check_refs(output, names, f"{where}, output")
    return Graph(tuple(vertices), output)


def _check_refs(arg: Any, names: set[str], where: str) -> None:
    for value in walk_args(arg):
        if isinstance(value, Ref) and value.vertex not in names:
            raise CheckpointError(f"{where} refers to vertex '{value.vertex}', which does not come before it")


def _check_targets(dag: DagModule, path: str) -> None:
    """Modules, parameters and flags that vertices name must be there."""

    def owner(name: str, where: str) -> nn.Module:
        try:
            return dag.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(f"{where}: there is no module '{name}'") from error

    for vertex in dag.graph.vertices:
        where = f"module '{path}', vertex '{vertex.name}'"
        if isinstance(vertex, ModuleVertex):
            target = owner(vertex.target, where)
            if isinstance(target, Container) or not vertex.target:
                raise CheckpointError(f"{where}: module '{vertex.target}' cannot be called")
            if vertex.leaf != (leaf_name(target) or ""):
                raise CheckpointError(f"{where}: module '{vertex.target}' is no '{vertex.leaf}'")
            if isinstance(target, DagModule) and len(target.graph.inputs) != len(vertex.args):
                raise CheckpointError(f"{where}: block '{vertex.target}' takes {len(target.graph.inputs)} inputs")
        if isinstance(vertex, OperatorVertex) and vertex.training_only:
            owner(vertex.owner, where)
        for name in _owners((vertex_args(vertex), dag.graph.output)):
            owner(name, where)
        for value in walk_args((vertex_args(vertex), dag.graph.output)):
            if isinstance(value, Attr):
                holder, _, name = value.path.rpartition(".")
                module = owner(holder, where)
                if name not in module._parameters and name not in module._buffers:
                    raise CheckpointError(f"{where}: there is no parameter or buffer '{value.path}'")


def _owners(arg: Any) -> set[str]:
    """Paths of the modules whose training flag an argument depends on."""
    found: set[str] = set()

    def note(owner: str) -> str:
        found.add(owner)
        return owner

    map_args(arg, lambda value: value, note)
    return found


def _unpack_vertex(data: Any, where: str) -> Vertex:
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: a vertex is no JSON object")
    if "input" in data:
        fixed = (_unpack_arg(data["fixed"], where),) if "fixed" in data else ()
        return InputVertex(str(data["input"]), bool(data.get("keyword", False)), fixed)
    name = str(data.get("name"))
    at = f"{where}, vertex '{name}'"
    if "module" in data:
        args, kwargs = data.get("args", []), data.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise CheckpointError(f"{at}: its arguments are no list and object")
        if not all(_IDENTIFIER.match(key) and not key.startswith("__") and not iskeyword(key) for key in kwargs):
            raise CheckpointError(f"{at}: an argument has a name that is none")
        return ModuleVertex(
            name,
            str(data["module"]),
            tuple([_unpack_arg(a, at) for a in args]),
            {key: _unpack_arg(a, at) for key, a in kwargs.items()},
            str(data.get("leaf", "")),
        )
    operator = data.get("operator")
    if not isinstance(operator, str) or operator not in OPERATORS:
        raise CheckpointError(
            f"{at}: operator {operator!r} is not in the table of operators; nothing is imported by name"
        )
    args = data.get("args", {})
    row = OPERATORS[operator]
    if not isinstance(args, dict) or set(args) - set(row.parameters):
        raise CheckpointError(f"{at}: operator '{operator}' takes the arguments {list(row.parameters)}")
    missing = [key for key, default in row.parameters.items() if default is REQUIRED and key not in args]
    if missing:
        raise CheckpointError(f"{at}: operator '{operator}' lacks the arguments {missing}")
    ordered = {key: _unpack_arg(args[key], at) for key in row.parameters if key in args}
    return OperatorVertex(name, operator, ordered, bool(data.get("training_only", False)), str(data.get("owner", "")))


_DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_MEMORY_FORMATS = {str(m).removeprefix("torch."): m for m in (torch.contiguous_format, torch.preserve_format)} | {
    str(m).removeprefix("torch."): m for m in (torch.channels_last, torch.channels_last_3d)
}


def _unpack_arg(data: Any, where: str) -> Any:
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return tuple([_unpack_arg(a, where) for a in data])
    if not isinstance(data, dict) or len(data) != 1:
        raise CheckpointError(f"{where}: {data!r} is no argument")
    ((tag, content),) = data.items()
    reader = _READERS.get(tag)
    if reader is None:
        raise CheckpointError(f"{where}: '{tag}' is no kind of argument")
    try:
        return reader(content, lambda a: _unpack_arg(a, where))
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{where}: a '{tag}' argument is not valid: {error}") from error


Reader = Callable[[Any, Callable[[Any], Any]], Any]


def _value(content: Any, read: Callable[[Any], Any]) -> Ref | Attr:
    value = read(content)
    if not isinstance(value, (Ref, Attr)):
        raise ValueError("a reference to a tensor is expected")
    return value


def _read_ref(content: Any, read: Callable[[Any], Any]) -> Ref:
    name, *index = content
    if not isinstance(name, str) or any(not isinstance(i, (int, str)) for i in index):
        raise ValueError("a reference is a name and indices")
    return Ref(name, tuple(index))


def _read_size(content: Any, read: Callable[[Any], Any]) -> Size:
    value, dim = content
    if type(dim) is not int:
        raise ValueError("a dimension is an integer")
    return Size(_value(value, read), dim)


def _read_expr(content: Any, read: Callable[[Any], Any]) -> Expr:
    operator, *operands = content
    if operator not in EXPRESSIONS:
        raise ValueError(f"'{operator}' is no arithmetic")
    if EXPRESSIONS[operator].count("{") != len(operands):
        raise ValueError(f"'{operator}' does not take {len(operands)} operands")
    parts = tuple([read(operand) for operand in operands])
    if any(not isinstance(part, (int, float, Size, Expr)) for part in parts):
        raise ValueError("arithmetic is on sizes and numbers")
    return Expr(operator, parts)


def _read_mode(content: Any, read: Callable[[Any], Any]) -> ByMode:
    training, evaluation, owner = content
    if not isinstance(owner, str):
        raise ValueError("an owner is the path of a module")
    return ByMode(read(training), read(evaluation), owner)


def _read_attr(content: Any, read: Callable[[Any], Any]) -> Attr:
    if not isinstance(content, str) or not all(content.split(".")):
        raise ValueError("a dotted path is expected")
    return Attr(content)


def _read_dict(content: Any, read: Callable[[Any], Any]) -> dict[Any, Any]:
    result = {}
    for key, value in content:
        if key is not None and not isinstance(key, (bool, int, str)):
            raise ValueError("a key is a name or a number")
        result[key] = read(value)
    return result


def _read_namedtuple(content: Any, read: Callable[[Any], Any]) -> Any:
    name, fields, values = content
    if not all(isinstance(word, str) and _IDENTIFIER.match(word) for word in (name, *fields)):
        raise ValueError("a named tuple has a name and names of fields")
    return collections.namedtuple(name, fields)(*[read(value) for value in values])


def _read_float(content: Any, read: Callable[[Any], Any]) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise ValueError("inf, -inf or nan is expected")
    return float(content)


_READERS: dict[str, Reader] = {
    "$float": _read_float,
    "$ref": _read_ref,
    "$attr": _read_attr,
    "$list": lambda content, read: [read(a) for a in content],
    "$dict": _read_dict,
    "$slice": lambda content, read: slice(*[read(a) for a in content]),
    "$size": _read_size,
    "$expr": _read_expr,
    "$mode": _read_mode,
    "$device_of": lambda content, read: SameDevice(_value(content, read)),
    "$dtype_of": lambda content, read: SameDtype(_value(content, read)),
    "$dtype": lambda content, read: _DTYPES[content],
    "$device": lambda content, read: torch.device(content),
    "$memory_format": lambda content, read: _MEMORY_FORMATS[content],
    "$complex": lambda content, read: complex(*content),
    "$ellipsis": lambda content, read: Ellipsis,
    "$namedtuple": _read_namedtuple,
}


# -- files


def save(dag: DagModule, folder: str | Path) -> None:
    """See `DagModule.save`."""
    document, tensors = pack(dag)
    on_meta = next((name for name, tensor in tensors.items() if tensor.device.type == "meta"), None)
    if on_meta is not None:
        raise CheckpointError(
            f"tensor '{on_meta}' is on the meta device and has no values; build the model with weights"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, allow_nan=False)
    weights = _separate(tensors)
    _replace(folder / WEIGHTS_FILE, lambda path: save_file(weights, path, metadata={"format": "pt"}))
    _replace(folder / GRAPH_FILE, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    _replace(folder / CARD_FILE, lambda path: path.write_text(_card(dag, tensors), encoding="utf-8"))


def load(folder: str | Path) -> DagModule:
    """Load a graph that `DagModule.save` wrote. Needs neither the source's code nor its library.

    Args:
        folder: the folder it was saved to.

    Returns:
        The graph, on the CPU, with every module in the mode in which it was saved.

    Raises:
        CheckpointError: a file is missing or damaged, or the graph is not valid.
    """
    folder = Path(folder)
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"'{folder}' holds no {name}; expected a folder that DagModule.save wrote")
    try:
        document = json.loads((folder / GRAPH_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{folder / GRAPH_FILE}' is no JSON: {error}") from error
    try:
        # In memory of their own: in the file they begin anywhere, and kernels round differently where a tensor is not
        # aligned; and whoever shortens the file would end the process.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except SafetensorError as error:
        raise CheckpointError(f"'{folder / WEIGHTS_FILE}' is damaged: {error}") from error
    return unpack(document, tensors)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file format wants contiguous tensors that share no memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        if pointer in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside, then put it in place in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        write(aside)
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _card(dag: DagModule, tensors: dict[str, Tensor]) -> str:
    provenance = dag.provenance or Provenance()
    parameters = sum(p.numel() for p in dag.parameters())
    shapes = ", ".join(str(tuple(shape)) for shape in provenance.input_shapes)
    return (
        "---\nlibrary_name: torchorbit\n---\n\n"
        f"# {provenance.source.rpartition('.')[2]}\n\n"
        f"A graph of `{provenance.source}`: {parameters / 1e6:.2f} M parameters, recorded with inputs {shapes}.\n\n"
        '```python\nimport torchorbit\n\nmodel = torchorbit.load("this folder")\n```\n'
    )
