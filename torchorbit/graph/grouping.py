"""Put vertices of a graph into a block of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from torchorbit.arguments import Attr, Ref, map_args, owners_in, walk_args
from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import Container, DagModule, Graph, blank, rewrite
from torchorbit.graph.editing import all_or_nothing, find_vertex, place, require_graph, with_args
from torchorbit.graph.shapes import pick
from torchorbit.graph.vertices import InputVertex, ModuleVertex, OperatorVertex, Vertex, refs_in, vertex_args
from torchorbit.graph.writing import Writer


def group(dag: DagModule, vertices: Iterable[str], name: str) -> str:
    """Put vertices into a block of their own, in the graph itself.

    The block is a `DagModule` in the place where the vertices stood. It takes what they take from others, and gives
    what others take from them; it can be looked at, run, replaced and counted as a whole. Its layers and parameters
    move into it, so that ``name`` comes before their keys in ``state_dict()``; what others use as well stays where it
    is, too.

    Args:
        dag: an outermost graph.
        vertices: paths of the vertices, blocks joined by ``/``, as `DagModule.all_vertices` gives them; all of one
            block.
        name: of the new block beside the layers and blocks there.

    Returns:
        Path of the vertex that calls the new block.

    Raises:
        ArgumentTypeError: ``dag`` is no graph.
        ArgumentError: ``dag`` is a block of a graph; there are no such vertices, or they are of several blocks; a
            vertex
            between them is left out; a buffer would be written at another time; nothing takes what they give; or the
            name is taken. The graph is then as it was before.
    """
    require_graph(dag)
    paths = list(vertices)
    found = [find_vertex(dag, path) for path in paths]
    if not found:
        raise ArgumentError("no vertices are given")
    level = found[0][0]
    if any(other is not level for other, _ in found):
        raise ArgumentError("the vertices are of several blocks; give those of one, or take dag.flatten()")
    names = {vertex.name for _, vertex in found}
    before, inside, after = _parted(level, names)
    writer = Writer(vertex.name for vertex in level.graph.vertices)
    called = writer.free_name(name.replace(".", "_") if name else "block")
    inner, outputs, inputs = _inner(level, inside, [*after])
    results = {output: Ref(called, (n,) if len(outputs) > 1 else ()) for n, output in enumerate(outputs)}

    def change(value: Any) -> Any:
        if type(value) is Ref and value.vertex in results:
            result = results[value.vertex]
            return Ref(result.vertex, (*result.index, *value.index))
        return value

    with all_or_nothing(dag):
        block = blank(inner, None)
        block.training = level.training
        target = place(level, name, block, exactly=True)
        rest = [*before, ModuleVertex(called, target, tuple(inputs)), *[with_args(vertex, change) for vertex in after]]
        _move(level, block, inside, [*before, *after])
        shapes = {key: shape for key, shape in level.graph.shapes.items() if key not in names}
        rewrite(level, Graph(tuple(rest), map_args(level.graph.output, change), shapes))
    _hold_modes(dag, level, target)
    return f"{paths[0].rpartition('/')[0]}/{called}".removeprefix("/")


def _hold_modes(dag: DagModule, level: DagModule, target: str) -> None:
    """Let what stays in one mode whatever `train` is told do so at its new path, too."""
    assert dag.provenance is not None
    start = next(f"{path}." if path else "" for path, module in dag.named_modules() if module is level)
    there = dict(dag.named_modules(remove_duplicate=False))

    def moved(paths: tuple[str, ...]) -> tuple[str, ...]:
        inside = [f"{start}{target}.{path.removeprefix(start)}" for path in paths if path.startswith(start) and path]
        return (*paths, *[path for path in inside if path in there])

    evaluation, training = moved(dag.provenance.always_evaluation), moved(dag.provenance.always_training)
    dag.__dict__["provenance"] = replace(dag.provenance, always_evaluation=evaluation, always_training=training)


def _parted(level: DagModule, names: set[str]) -> tuple[list[Vertex], list[Vertex], list[Vertex]]:
    """What runs before the block, in it and after it."""
    before: list[Vertex] = []
    inside: list[Vertex] = []
    after: list[Vertex] = []
    later: set[str] = set()
    for vertex in level.graph.vertices:
        needed = _needed(vertex)
        if vertex.name in names:
            if isinstance(vertex, InputVertex):
                raise ArgumentError(f"'{vertex.name}' is an input of the block that it stands in, and stays there")
            if needed & later:
                between = ", ".join(sorted(needed & later))
                raise ArgumentError(f"'{vertex.name}' takes what '{between}' gives, which takes what the others give")
            inside.append(vertex)
        elif needed & (names | later):
            later.add(vertex.name)
            after.append(vertex)
        else:
            before.append(vertex)
    _check_writes(level, [*before, *inside, *after])
    return before, inside, after


def _check_writes(level: DagModule, ordered: list[Vertex]) -> None:
    """Refuse an order in which what is written into a buffer is read earlier or later than it was."""
    now = {vertex.name: place for place, vertex in enumerate(level.graph.vertices)}
    then = {vertex.name: place for place, vertex in enumerate(ordered)}
    users: dict[str, list[str]] = {}
    for vertex in ordered:
        for arg in walk_args(vertex_args(vertex)):
            if type(arg) is Attr:
                users.setdefault(arg.path, []).append(vertex.name)
    for vertex in ordered:
        if isinstance(vertex, OperatorVertex) and vertex.operator == "assign":
            (path,) = [arg.path for arg in walk_args(vertex.args["target"])]
            for other in users[path]:
                if (now[other] < now[vertex.name]) != (then[other] < then[vertex.name]):
                    raise ArgumentError(
                        f"'{vertex.name}' would write '{path}' before or after other vertices than it does"
                    )


def _needed(vertex: Vertex) -> set[str]:
    return set(refs_in(vertex_args(vertex)))


def _inner(level: DagModule, inside: list[Vertex], after: list[Vertex]) -> tuple[Graph, list[str], list[Ref]]:
    """The graph of the block, the vertices in it whose results others take, and what it takes from others."""
    names = {vertex.name for vertex in inside}
    writer = Writer(names)
    inputs: dict[Ref, str] = {}

    def change(value: Any) -> Any:
        if type(value) is not Ref or value.vertex in names:
            return value
        if value not in inputs:
            inputs[value] = writer.free_name(value.vertex)
        return Ref(inputs[value])

    vertices = [with_args(vertex, change) for vertex in inside]
    wanted = set().union(*[_needed(vertex) for vertex in after])
    wanted.update(refs_in(level.graph.output))
    outputs = [vertex.name for vertex in inside if vertex.name in wanted]
    if not outputs:
        raise ArgumentError("nothing takes what these vertices give")
    known = level.graph.shapes
    shapes = {name: known[name] for name in names if name in known}
    shapes |= {given: pick(known[ref.vertex], ref.index) for ref, given in inputs.items() if ref.vertex in known}
    output: Any = tuple([Ref(name) for name in outputs]) if len(outputs) > 1 else Ref(outputs[0])
    heads = [InputVertex(given) for given in inputs.values()]
    return Graph((*heads, *vertices), output, shapes), outputs, list(inputs)


def _move(level: DagModule, block: DagModule, inside: list[Vertex], others: list[Vertex]) -> None:
    """Give the block the modules and tensors that its vertices name, and take them from the level where it can be."""
    kept = _paths(others)
    for path in _paths(inside):
        if not _has(block, path):
            _carry(level, block, path, kept)


def _carry(level: DagModule, block: DagModule, path: str, kept: list[str]) -> None:
    holder, owner, name = level.get_submodule(path.rpartition(".")[0]), *path.rpartition(".")[::2]
    if not isinstance(holder, (DagModule, Container)):  # a tensor of a layer, which goes as a whole
        _carry(level, block, owner, kept)
        return
    ours = _holder(block, level, owner)
    for members in ("_modules", "_parameters", "_buffers"):
        theirs = getattr(holder, members)
        if name not in theirs:
            continue
        if isinstance(theirs[name], Container):
            _holder(block, level, path)
            return
        getattr(ours, members)[name] = theirs[name]
        if name in holder._non_persistent_buffers_set:
            ours._non_persistent_buffers_set = {*ours._non_persistent_buffers_set, name}
        if not any(f"{other}.".startswith(f"{path}.") or path.startswith(f"{other}.") for other in kept):
            del theirs[name]
            _drop_empty(level, owner, kept)


def _paths(vertices: list[Vertex]) -> list[str]:
    """Paths of modules that vertices call, of tensors that they read, and of what decides for them by its mode."""
    found: dict[str, None] = {}

    def note(path: str) -> None:
        found[path] = None

    for vertex in vertices:
        if isinstance(vertex, ModuleVertex):
            note(vertex.target)
        if not isinstance(vertex, InputVertex) and vertex.mode:
            note(vertex.owner)
        args = vertex_args(vertex)
        for path in [*[arg.path for arg in walk_args(args) if type(arg) is Attr], *owners_in(args)]:
            note(path)
    return [path for path in found if path]


def _has(block: DagModule, path: str) -> bool:
    """Whether the block has what is at a path, maybe in a layer or block that it has as a whole."""
    module: nn.Module = block
    for part in path.split("."):
        if part in module._parameters or part in module._buffers:
            return True
        child = module._modules.get(part)
        if child is None:
            return False
        if not isinstance(child, Container):
            return True
        module = child
    return True


def _holder(block: DagModule, level: DagModule, path: str) -> nn.Module:
    """The module of the block at a path, with containers on the way like those of the level."""
    module: nn.Module = block
    walked = ""
    for part in path.split(".") if path else ():
        walked = f"{walked}.{part}".removeprefix(".")
        child = module._modules.get(part)
        if child is None:
            child = module._modules[part] = Container()
            child.training = level.get_submodule(walked).training
        module = child
    return module


def _drop_empty(level: DagModule, path: str, kept: list[str]) -> None:
    """Take containers from the level that hold nothing any more, and decide nothing by their mode."""
    while path and path not in kept:
        owner, _, name = path.rpartition(".")
        module = level.get_submodule(path)
        if not isinstance(module, Container) or module._modules or module._parameters or module._buffers:
            return
        del level.get_submodule(owner)._modules[name]
        path = owner
