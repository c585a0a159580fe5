"""Where the vertices of nested blocks are when the graph is in one level."""

from __future__ import annotations

from torchorbit.graph.dag import DagModule, Graph
from torchorbit.graph.inlining import flat_graph
from torchorbit.graph.one_level import one_level
from torchorbit.graph.packed import separated


def names_at(dag: DagModule) -> dict[str, list[str]]:
    """Where vertices are in one level, with packed projections apart.

    Returns:
        Path of a vertex or block, blocks joined by ``/`` -> the names of what takes its place. What was taken apart
        also has the name that it had in one level.
    """
    known = one_level(dag, separate=False)
    paths: dict[str, str] = {}
    graph = flat_graph(dag, paths)
    apart: dict[str, list[str]] = {}
    separated(Graph(graph.vertices, graph.output, known.shapes), apart)
    found = {name: list(names) for name, names in apart.items()}
    for path, name in paths.items():
        names = apart.get(name, [name])
        blocks = path.split("/")
        for depth in range(1, len(blocks) + 1):
            found.setdefault("/".join(blocks[:depth]), []).extend(names)
    return found
