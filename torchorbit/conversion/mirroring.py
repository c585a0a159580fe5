"""The modules of a graph: a tree like that of the source, with its layers and parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from torchorbit.arguments import owners_in
from torchorbit.graph.dag import Container, DagModule, Graph, Provenance, blank
from torchorbit.graph.vertices import InputVertex, ModuleVertex, vertex_args
from torchorbit.operators.modules import leaf_name


def mirror(
    model: nn.Module,
    graph: Graph,
    blocks: Mapping[str, Graph],
    paths: Mapping[int, list[str]],
    provenance: Provenance,
) -> DagModule:
    """A tree of modules with the paths of the source, blocks and leaves where vertices call them.

    Args:
        model: the source; its leaf modules and parameters become part of the tree.
        graph: that of the outermost level.
        blocks: path -> graph of the block there.
        paths: id of every submodule -> all its paths.
        provenance: kept on the result.
    """
    called: set[str] = set()
    for path, block in {"": graph, **blocks}.items():
        for vertex in block.vertices:
            if isinstance(vertex, ModuleVertex):
                called.add(f"{path}.{vertex.target}" if path else vertex.target)
    owners = {f"{path}.{owner}" if path else owner for path, block in blocks.items() for owner in _owners(block)}
    owners.update(_owners(graph))
    made: dict[int, nn.Module | None] = {}

    def copy(source: nn.Module, path: str) -> nn.Module | None:
        if id(source) in made:
            return made[id(source)]
        all_paths = paths[id(source)]
        if any(p in called and p not in blocks for p in all_paths):
            made[id(source)] = source
            return source
        block = next((blocks[p] for p in all_paths if p in blocks), graph if path == "" else None)
        if block is None and leaf_name(source) is not None and (source._parameters or source._buffers):
            made[id(source)] = source
            return source
        target: nn.Module = Container() if block is None else blank(block, provenance if path == "" else None)
        made[id(source)] = target
        children = {}
        for name, child in source._modules.items():
            if child is not None:
                inner = copy(child, f"{path}.{name}" if path else name)
                if inner is not None:
                    children[name] = inner
        target._modules.update(children)
        target._parameters.update(source._parameters)
        target._buffers.update(source._buffers)
        target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
        target.training = source.training
        stateless = not source._parameters and not source._buffers and not any(p in owners for p in all_paths)
        if block is None and not children and stateless:
            made[id(source)] = None
            return None
        return target

    dag = copy(model, "")
    assert isinstance(dag, DagModule)
    return dag


def _owners(graph: Graph) -> set[str]:
    """Paths of the modules whose training flag a graph reads."""
    found = {v.owner for v in graph.vertices if not isinstance(v, InputVertex) and v.mode}
    found.update(owners_in([vertex_args(vertex) for vertex in graph.vertices]), owners_in(graph.output))
    return found - {""}
