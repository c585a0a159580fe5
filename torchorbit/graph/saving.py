"""Save a graph as data.

A saved graph is a folder: ``graph.json`` (modules, vertices, arguments, provenance), ``model.safetensors`` (weights
and buffers) and ``README.md``. It carries no code: operators and modules are names in closed tables.
`torchorbit.graph.loading` reads it.

In ``graph.json`` an argument that JSON has no word for is an object with one key that starts with ``$``; a plain
JSON list is a tuple.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchorbit.arguments import Attr, ByMode, Expr, Ref, SameDevice, SameDtype, Size, Visitor
from torchorbit.errors import CheckpointError
from torchorbit.files import replace_text, replacing
from torchorbit.graph.dag import Container, DagModule, Provenance
from torchorbit.graph.files import CARD_FILE, FORMAT, GRAPH_FILE, VERSION, WEIGHTS_FILE, write_weights
from torchorbit.graph.vertices import InputVertex, ModuleVertex, Vertex
from torchorbit.operators.modules import leaf_config, leaf_name, make_leaf
from torchorbit.records import Record

# -- to data


def pack(dag: DagModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a graph as plain data.

    Args:
        dag: an outermost `DagModule`.

    Returns:
        A document that ``json.dumps`` takes, and the tensors that it names; they are shared, not copied.

    Raises:
        CheckpointError: the graph holds a module or a constant that the format has no name for, or the shapes of
            its inputs are not known.
    """
    if dag.provenance is None:
        raise CheckpointError(
            "this is a block of a graph; save the outermost DagModule, or convert the block by itself"
        )
    packer = _Packer()
    root = packer.module(dag, "")
    shapes = _input_shapes(dag)
    for data in root["vertices"]:
        if data.get("input") in shapes:
            data["shape"] = shapes[data["input"]]
    provenance = {name: getattr(dag.provenance, name) for name in Provenance.__slots__}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": json.loads(json.dumps(provenance)),
        "root": root,
    }
    return document, packer.tensors


def _input_shapes(dag: DagModule) -> dict[str, Any]:
    """Shapes of the inputs that are not fixed, in their own containers: those that the provenance lists."""
    assert dag.provenance is not None
    recorded = iter(dag.provenance.input_shapes)
    names = [vertex.name for vertex in dag.graph.inputs if not vertex.fixed]
    try:
        shapes = {name: _pack_shape(dag.graph.shapes.get(name, torch.Size()), recorded) for name in names}
    except StopIteration:
        shapes = None
    if shapes is None or next(recorded, None) is not None:
        raise CheckpointError("it is not known with which shapes the inputs of the graph were recorded")
    return shapes


def _pack_shape(shape: Any, recorded: Iterator[tuple[int, ...]]) -> Any:
    if isinstance(shape, torch.Size):
        return list(next(recorded))
    if isinstance(shape, dict):
        return {"$dict": [[key, _pack_shape(item, recorded)] for key, item in shape.items()]}
    return None if shape is None else {"$items": [_pack_shape(item, recorded) for item in shape]}


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
        elif isinstance(module, Container) or (id(module) not in self.leaves and _only_holds_tensors(module)):
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
            node["config"] = {key: _pack_arg(value) for key, value in leaf_config(module, name).items()}
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


def _only_holds_tensors(module: nn.Module) -> bool:
    """Whether a leaf that no vertex calls has tensors that its class would have in other shapes: they were pruned."""
    name = leaf_name(module)
    if name is None:
        return False
    made = make_leaf(name, leaf_config(module, name))
    expected = {key: tensor.shape for key, tensor in (*made.named_parameters(), *made.named_buffers())}
    given = {key: tensor.shape for key, tensor in (*module.named_parameters(), *module.named_buffers())}
    return any(given.get(key) != shape for key, shape in expected.items())


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
    else:
        data = {
            "name": vertex.name,
            "operator": vertex.operator,
            "args": {key: _pack_arg(a) for key, a in vertex.args.items()},
        }
    if vertex.mode:
        data["mode"] = vertex.mode
        data["owner"] = vertex.owner
    return data


class _PackedArguments(
    Visitor,
    kinds={
        complex: "complex_", float: "float_", torch.dtype: "dtype", torch.device: "device",
        torch.memory_format: "memory_format",
    },
):  # fmt: skip
    """Gives arguments as plain data; `torchorbit.graph.loading` reads every form that is written here."""

    def listed(self, items: Iterable[Any]) -> list[Any]:
        """Several arguments."""
        return [self.value(item) for item in items]

    def ref(self, arg: Ref) -> Any:
        return {"$ref": [arg.vertex, *arg.index]}

    def attr(self, arg: Attr) -> Any:
        return {"$attr": arg.path}

    def size(self, arg: Size) -> Any:
        return {"$size": [self.value(arg.value), arg.dim]}

    def expr(self, arg: Expr) -> Any:
        return {"$expr": [arg.operator, *self.listed(arg.operands)]}

    def by_mode(self, arg: ByMode) -> Any:
        return {"$mode": [self.value(arg.training), self.value(arg.evaluation), arg.owner]}

    def same_device(self, arg: SameDevice) -> Any:
        return {"$device_of": self.value(arg.value)}

    def same_dtype(self, arg: SameDtype) -> Any:
        return {"$dtype_of": self.value(arg.value)}

    def tuple_(self, arg: tuple[Any, ...]) -> Any:
        return self.listed(arg)

    def named_tuple(self, arg: Any) -> Any:
        if isinstance(arg, torch.Size):
            return self.tuple_(arg)
        kind = type(arg)
        fields: tuple[str, ...] = getattr(kind, "_fields", getattr(kind, "__match_args__", ()))  # torch's return types
        if len(fields) != len(arg):
            return self.constant(arg)
        return {"$namedtuple": [kind.__name__, list(fields), self.listed(arg)]}

    def record(self, arg: Record) -> Any:
        items = None if arg.items is None else self.pairs(arg.items)
        return {"$record": [arg.kind.name, self.pairs(arg.attributes), items, list(arg.both)]}

    def pairs(self, held: dict[Any, Any]) -> list[Any]:
        """Names or keys, each with what is under it."""
        return [[self.value(key), self.value(item)] for key, item in held.items()]

    def list_(self, arg: list[Any]) -> Any:
        return {"$list": self.listed(arg)}

    def dict_(self, arg: dict[Any, Any]) -> Any:
        return {"$dict": self.pairs(arg)}

    def slice_(self, arg: slice) -> Any:
        return {"$slice": self.listed((arg.start, arg.stop, arg.step))}

    def float_(self, arg: float) -> Any:
        return arg if math.isfinite(arg) else {"$float": repr(arg)}

    def complex_(self, arg: complex) -> Any:
        return {"$complex": [self.value(arg.real), self.value(arg.imag)]}

    def dtype(self, arg: torch.dtype) -> Any:
        return {"$dtype": str(arg).removeprefix("torch.")}

    def device(self, arg: torch.device) -> Any:
        return {"$device": str(arg)}

    def memory_format(self, arg: torch.memory_format) -> Any:
        return {"$memory_format": str(arg).removeprefix("torch.")}

    def constant(self, arg: Any) -> Any:
        if arg is None or type(arg) in (bool, int, str):
            return arg
        if arg is Ellipsis:
            return {"$ellipsis": True}
        kind = type(arg)
        raise CheckpointError(f"a constant of type {kind.__module__}.{kind.__qualname__} cannot be saved")


_pack_arg = _PackedArguments().value


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
    with replacing(folder / WEIGHTS_FILE) as aside:
        write_weights(aside, tensors)
    replace_text(folder / GRAPH_FILE, text + "\n")
    replace_text(folder / CARD_FILE, _card(dag, tensors))


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
