"""Edit a graph: put other layers in place of some, and further ones behind vertices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchorbit.arguments import Attr, Ref, map_args, walk_args
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.dag import Container, DagModule, Graph, rewrite
from torchorbit.graph.one_level import one_level
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, vertex_args
from torchorbit.graph.writing import Writer
from torchorbit.operators.modules import leaf_name

#: What is replaced: a class of layers, or the name of an operator (``"relu"``); or several of these.
Which = type[nn.Module] | str | Iterable[type[nn.Module] | str]


def replace_layers(
    dag: DagModule, which: Which, make: Callable[[nn.Module | OperatorVertex], nn.Module | None]
) -> tuple[str, ...]:
    """Put other layers in place of some, all activation functions say, in the graph itself::

        torchorbit.edit.replace_layers(dag, (nn.ReLU, "relu"), lambda relu: nn.GELU())

    A layer that is used in several places is replaced in all of them by one. New layers get the mode (training or
    evaluation) of the old ones; devices and dtypes are up to the caller. The model that the graph was converted
    from keeps its own layers. Orbits that were found before have to be found again.

    Args:
        dag: an outermost graph.
        which: a class of layers (with its subclasses), or the name of an operator with which the model computes
            without a layer (``"relu"``, ``"silu"``, as in `DagModule.table`); or several of these. Such an operator
            has to take one tensor.
        make: gives the new layer for an old one, or for the vertex of an operator; None leaves it as it is. A layer of
            a class that a saved graph has no name for is kept whole, as by ``atomic=`` of `torchorbit.convert`.

    Returns:
        Paths of the vertices that call other layers now, blocks joined by ``/``.

    Raises:
        ArgumentTypeError: ``dag`` is no graph, ``which`` is neither, or ``make`` gives something else than a module.
        ArgumentError: ``dag`` is a block of a graph, there is no operator of that name in it that takes one tensor, or
            the graph does not run any more. It is then as it was before.
    """
    require_graph(dag)
    classes, operators = _kinds(which)
    made: dict[int, nn.Module | None] = {}
    changed: list[str] = []
    with all_or_nothing(dag):
        for prefix, level in _levels(dag):
            vertices: list[Vertex] = []
            for vertex in level.graph.vertices:
                new = vertex
                if isinstance(vertex, ModuleVertex):
                    old = level.get_submodule(vertex.target)
                    if isinstance(old, classes) and not isinstance(old, (DagModule, Container)):
                        if id(old) not in made:
                            made[id(old)] = _checked(make(old), old.training)
                        layer = made[id(old)]
                        new = vertex if layer is None else dataclasses.replace(vertex, leaf=leaf_name(layer) or "")
                        changed += [] if layer is None else [prefix + vertex.name]
                elif isinstance(vertex, OperatorVertex) and vertex.operator in operators:
                    source = _only_tensor(vertex)
                    layer = _checked(make(vertex), level.training)
                    if layer is not None:
                        target = place(level, vertex.name, layer)
                        new = ModuleVertex(vertex.name, target, (source,), {}, leaf_name(layer) or "")
                        changed.append(prefix + vertex.name)
                vertices.append(new)
            if any(new is not old for new, old in zip(vertices, level.graph.vertices, strict=True)):
                rewrite(level, Graph(tuple(vertices), level.graph.output, level.graph.shapes))
        for module in list(dag.modules()):
            if isinstance(module, (DagModule, Container)):
                for name, child in module._modules.items():
                    replacement = made.get(id(child))
                    if replacement is not None:
                        module._modules[name] = replacement
    return tuple(changed)


def insert_after(dag: DagModule, vertex: str, module: nn.Module, *, name: str = "") -> str:
    """Put a layer behind a vertex: whatever took the vertex's result takes the layer's, in the graph itself.

    A batch norm behind every convolution that has none::

        for path, vertex in list(dag.all_vertices()):
            if getattr(vertex, "leaf", "") == "Conv2d" and not torchorbit.edit.users(dag, path, "BatchNorm2d"):
                convolution = dag.get_submodule(torchorbit.inspect.module_of_vertex(dag, path))
                torchorbit.edit.insert_after(dag, path, nn.BatchNorm2d(convolution.out_channels))

    A vertex in a block that is called several times stands for all of these calls.

    Args:
        dag: an outermost graph.
        vertex: path of the vertex, blocks joined by ``/``, as `DagModule.all_vertices` gives it. Its result is one
            tensor.
        module: the layer, which takes that tensor alone. One of a class that a saved graph has no name for is kept
            whole, as by ``atomic=`` of `torchorbit.convert`.
        name: of the layer beside the others in its block, and so in ``state_dict()``; by default that of the vertex and
            of the layer's class.

    Returns:
        Path of the new vertex.

    Raises:
        ArgumentTypeError: ``dag`` is no graph, or ``module`` no module.
        ArgumentError: ``dag`` is a block of a graph, there is no such vertex, the name is taken, or the graph does not
            run any more. It is then as it was before.
    """
    require_graph(dag)
    level, found = find_vertex(dag, vertex)
    layer = _checked(module, level.training)
    if layer is None:
        raise ArgumentTypeError("module is None, expected an nn.Module")
    if not isinstance(level.graph.shapes.get(found.name, torch.Size()), torch.Size):
        raise ArgumentError(
            f"vertex '{vertex}' gives several tensors; put an operator or a layer behind that takes one"
        )
    writer = Writer(known.name for known in level.graph.vertices)
    added = writer.free_name(f"{found.name}_{type(layer).__name__.lower()}")

    def change(value: Any) -> Any:
        return Ref(added) if type(value) is Ref and value.vertex == found.name else value

    with all_or_nothing(dag):
        target = place(level, name or added, layer, exactly=bool(name))
        new = ModuleVertex(added, target, (Ref(found.name),), {}, leaf_name(layer) or "")
        vertices: list[Vertex] = []
        for known in level.graph.vertices:
            vertices.append(with_args(known, change))
            if known is found:
                vertices.append(new)
        rewrite(level, Graph(tuple(vertices), map_args(level.graph.output, change), level.graph.shapes))
    return f"{vertex.rpartition('/')[0]}/{added}".removeprefix("/")


def users(dag: DagModule, vertex: str, kind: str = "") -> tuple[str, ...]:
    """The vertices that take the result of a vertex.

    Args:
        dag: a graph.
        vertex: path of the vertex, blocks joined by ``/``.
        kind: only layers of this name in the table of leaf modules (``"BatchNorm2d"``), or calls of this operator.

    Returns:
        Their paths. What takes the result of the last vertex of a block stands outside of it and is not among them;
        ``dag.flatten()`` has no blocks.

    Raises:
        ArgumentError: there is no such vertex.
    """
    level, found = find_vertex(dag, vertex)
    prefix = vertex.rpartition("/")[0]
    return tuple(
        [
            f"{prefix}/{other.name}".removeprefix("/")
            for other in level.graph.vertices
            if any(type(arg) is Ref and arg.vertex == found.name for arg in walk_args(vertex_args(other)))
            and kind in ("", getattr(other, "leaf", None), getattr(other, "operator", None))
        ]
    )


def require_graph(dag: DagModule) -> None:
    """Refuse what is no outermost graph.

    Raises:
        ArgumentTypeError: it is no graph.
        ArgumentError: it is a block of one.
    """
    if not isinstance(dag, DagModule):
        raise ArgumentTypeError(f"this is a {type(dag).__name__}, expected a DagModule; torchorbit.convert makes one")
    if dag.provenance is None:
        raise ArgumentError(
            "this is a block of a graph; give the outermost DagModule, and the path of the vertex in it"
        )


def _kinds(which: Which) -> tuple[tuple[type[nn.Module], ...], frozenset[str]]:
    listed = [which] if isinstance(which, (type, str)) else list(which)
    for kind in listed:
        if not (isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, nn.Module))):
            raise ArgumentTypeError(f"{kind!r}, expected a class of layers or the name of an operator")
    return tuple([k for k in listed if isinstance(k, type)]), frozenset([k for k in listed if isinstance(k, str)])


def _checked(layer: Any, training: bool) -> nn.Module | None:
    """A new layer in the mode of what is there."""
    if layer is None:
        return None
    if not isinstance(layer, nn.Module):
        raise ArgumentTypeError(f"{layer!r} is a {type(layer).__name__}, expected an nn.Module")
    return layer.train(training)


def _only_tensor(vertex: OperatorVertex) -> Ref | Attr:
    tensors = [arg for arg in walk_args(vertex_args(vertex)) if type(arg) in (Ref, Attr)]
    source = vertex.args.get("input")
    if len(tensors) != 1 or source is not tensors[0]:
        raise ArgumentError(f"operator '{vertex.operator}' of vertex '{vertex.name}' takes more than one tensor")
    return source


def place(level: DagModule, wanted: str, layer: nn.Module, *, exactly: bool = False) -> str:
    """Give a level another submodule, under a name that nothing there has; returns the name.

    Raises:
        ArgumentError: the name that was wanted ``exactly`` is taken, or none.
    """
    taken = {*level._modules, *level._parameters, *level._buffers, *dir(nn.Module())}
    name, count = wanted, 0
    if exactly and (name in taken or "." in name or not name):
        raise ArgumentError(f"name={name!r} is taken there, empty or holds a dot; give another one")
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    level._modules[name] = layer
    return name


def _levels(dag: DagModule, prefix: str = "") -> Iterator[tuple[str, DagModule]]:
    """Every block that vertices call, each once, and the path to the vertices in it."""
    waiting, seen = [(prefix, dag)], set()
    while waiting:
        path, level = waiting.pop(0)
        if id(level) in seen:
            continue
        seen.add(id(level))
        yield path, level
        for vertex in level.graph.vertices:
            if isinstance(vertex, ModuleVertex):
                inner = level.get_submodule(vertex.target)
                if isinstance(inner, DagModule):
                    waiting.append((f"{path}{vertex.name}/", inner))


def find_vertex(dag: DagModule, path: str) -> tuple[DagModule, Vertex]:
    """The level that a vertex stands in, and the vertex.

    Raises:
        ArgumentError: there is no such vertex.
    """
    level = dag
    *blocks, last = path.split("/")
    for block in blocks:
        inner = next((v for v in level.graph.vertices if v.name == block and isinstance(v, ModuleVertex)), None)
        module = None if inner is None else level.get_submodule(inner.target)
        if not isinstance(module, DagModule):
            raise ArgumentError(f"there is no block '{block}' on the way to vertex '{path}'; see dag.all_vertices()")
        level = module
    found = next((vertex for vertex in level.graph.vertices if vertex.name == last), None)
    if found is None:
        from torchorbit.suggesting import close_to

        names = [vertex.name for vertex in level.graph.vertices]
        raise ArgumentError(f"there is no vertex '{path}'{close_to(last, names)}; see dag.all_vertices()")
    return level, found


def with_args(vertex: Vertex, change: Callable[[Any], Any]) -> Vertex:
    """A vertex with every `Ref` and `Attr` in its arguments changed."""
    if isinstance(vertex, InputVertex):
        return vertex
    if isinstance(vertex, OperatorVertex):
        return dataclasses.replace(vertex, args={key: map_args(arg, change) for key, arg in vertex.args.items()})
    return dataclasses.replace(
        vertex, args=map_args(vertex.args, change), kwargs={k: map_args(a, change) for k, a in vertex.kwargs.items()}
    )


@contextmanager
def all_or_nothing(dag: DagModule) -> Iterator[None]:
    """Undo an edit that fails, or after which the graph does not run."""
    one_level(dag, separate=False)  # from here on it is known that shapes have to be found anew
    graphs = [(level, level.graph) for _, level in _levels(dag)]
    holders = [module for module in dag.modules() if isinstance(module, (DagModule, Container))]
    members: list[Any] = [part for m in holders for part in (m._modules, m._parameters, m._buffers)]
    before = [dict(part) for part in members]
    try:
        yield
        one_level(dag, separate=False)
    except Exception as error:
        for level, graph in graphs:
            rewrite(level, graph)
        for part, earlier in zip(members, before, strict=True):
            part.clear()
            part.update(earlier)
        if isinstance(error, (TypeError, ValueError)):
            raise
        raise ArgumentError(f"the edited graph does not run: {error}") from error
