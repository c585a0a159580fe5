"""Which vertices belong to a module, and which module to a vertex."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from torchorbit.arguments import Attr, walk_args
from torchorbit.errors import ArgumentError, ArgumentTypeError
from torchorbit.graph.dag import Container, DagModule, Graph
from torchorbit.graph.names import names_at
from torchorbit.graph.one_level import one_level
from torchorbit.graph.vertices import InputVertex, ModuleVertex, Vertex, vertex_args
from torchorbit.orbits.orbit import Orbits
from torchorbit.suggesting import close_to


def vertices_of_module(graph: DagModule | Orbits, module: nn.Module | str) -> tuple[Vertex, ...]:
    """The vertices that compute a module (ENOT's ``get_tracing_node_by_module_name``).

    Args:
        graph: a graph, or its orbits.
        module: a module of the graph, or its path. A block has the vertices of all that is in it. Where a layer was
            written as operators, they are those that read its parameters and buffers.

    Returns:
        Vertices of the graph written out in one level, by whose names orbits speak of them; in the order in which they
        run.

    Raises:
        ArgumentError: there is no such module, or no vertex belongs to it.
        ArgumentTypeError: ``graph`` is neither, or ``module`` is neither.
    """
    path = module_path(graph, module)
    inside = f"{path}."
    found = [
        vertex
        for vertex in _graph(graph).vertices
        if any(owner == path or f"{owner}.".startswith(inside) for owner in _owners(vertex))
    ]
    if not found:
        raise ArgumentError(f"no vertex calls module '{path}' or reads its parameters: the model does not use it")
    return tuple(found)


def module_of_vertex(graph: DagModule | Orbits, vertex: Vertex | str) -> str:
    """The path of the module that a vertex computes (ENOT's ``get_module_name_by_tracing_node``).

    Args:
        graph: a graph, or its orbits.
        vertex: a vertex or its name: of one level, as orbits name it, or with blocks joined by ``/``, as
            `DagModule.all_vertices` does.

    Returns:
        The path of the module that it calls; of an operator, of the module that holds the parameter or buffer that it
        reads first.

    Raises:
        ArgumentError: there is no such vertex, or it belongs to no module (an input, an operator without parameters).
    """
    dag = _dag(graph)
    name = vertex if isinstance(vertex, str) else vertex.name
    vertices = {v.name: v for v in _graph(graph).vertices}
    if name not in vertices:
        path = _nested(dag, name)
        if path is not None:
            return path
        places = names_at(dag)
        if len(places.get(name, ())) != 1:
            raise ArgumentError(f"there is no vertex '{name}'{close_to(name, [*vertices, *places])}")
        name = places[name][0]
    owners = list(_owners(vertices[name]))
    if not owners:
        kind = "an input" if isinstance(vertices[name], InputVertex) else "an operator without parameters"
        raise ArgumentError(f"vertex '{name}' belongs to no module: it is {kind}")
    return owners[0]


def module_path(graph: DagModule | Orbits, module: nn.Module | str) -> str:
    """The path of a module in a graph.

    Raises:
        ArgumentError: it is none of the graph's.
        ArgumentTypeError: it is no module and no path.
    """
    modules = {path: found for path, found in _dag(graph).named_modules(remove_duplicate=False) if path}
    if isinstance(module, str):
        if module not in modules:
            raise ArgumentError(f"there is no module '{module}' in the graph{close_to(module, modules)}")
        return module
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"module is {module!r}, expected a module of the graph or its path")
    path = next((path for path, found in modules.items() if found is module), None)
    if path is None:
        kind = str(module).partition("\n")[0]
        raise ArgumentError(
            f"{kind} is no module of the graph; give one of dag.named_modules(), or its path. Blocks of the source "
            "model are others in the graph, and so are all of its modules once it was pruned"
        )
    return path


def described(dag: DagModule, path: str) -> str:
    """The layer at a path as PyTorch prints it, in one line; empty for a block."""
    module = dag.get_submodule(path)
    return "" if isinstance(module, (DagModule, Container)) else str(module).partition("\n")[0]


def current(orbits: Orbits) -> None:
    """Refuse orbits of a graph that was changed since.

    Raises:
        ArgumentError: it was pruned in place, or a layer was replaced.
        ArgumentTypeError: ``orbits`` are none.
    """
    if not isinstance(orbits, Orbits):
        raise ArgumentTypeError(f"orbits is a {type(orbits).__name__}, expected what find_orbits gives")
    model = orbits.model
    model.look_again()
    changed = model.source is not model.dag.graph
    for path, known in [] if changed else orbits.readings[0].attributes.items():
        try:
            changed = changed or tuple(model.tensor_at(path).shape) != known.shape
        except AttributeError:
            changed = True
    if changed:
        raise ArgumentError("the graph was changed since these orbits were found; call find_orbits again")


def _nested(dag: DagModule, name: str) -> str | None:
    """The path of the module that a vertex of a nested block calls; None where it calls none."""
    targets: list[str] = []
    level: nn.Module = dag
    for part in name.split("/"):
        vertices = level.vertices if isinstance(level, DagModule) else ()
        vertex = next((vertex for vertex in vertices if vertex.name == part), None)
        if not isinstance(level, DagModule) or not isinstance(vertex, ModuleVertex):
            return None
        targets.append(vertex.target)
        level = level.get_submodule(vertex.target)
    return ".".join(targets)


def _owners(vertex: Vertex) -> Iterable[str]:
    """Paths of the modules that a vertex calls, or whose tensors it reads."""
    if isinstance(vertex, ModuleVertex):
        yield vertex.target
    for arg in walk_args(vertex_args(vertex)):
        if isinstance(arg, Attr):
            yield arg.path.rpartition(".")[0]


def _dag(graph: DagModule | Orbits) -> DagModule:
    if isinstance(graph, Orbits):
        return graph.model.dag
    if not isinstance(graph, DagModule):
        raise ArgumentTypeError(f"graph is a {type(graph).__name__}, expected a DagModule or its orbits")
    return graph


def _graph(graph: DagModule | Orbits) -> Graph:
    return graph.model.graph if isinstance(graph, Orbits) else one_level(_dag(graph), separate=True)
