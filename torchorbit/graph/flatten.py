"""A graph without nested blocks that is a model of its own, with the parameters of the nested one."""

from __future__ import annotations

from torchorbit.graph.dag import DagModule, Graph, Provenance, blank
from torchorbit.graph.inlining import flat_graph
from torchorbit.graph.one_level import input_shapes_of, keep_shapes, recorded_shapes_hold
from torchorbit.graph.shared_modules import share_modules


def flatten(dag: DagModule) -> DagModule:
    """See `DagModule.flatten`."""
    provenance = dag.provenance or Provenance()
    graph = flat_graph(dag)
    if not recorded_shapes_hold(dag):
        graph = Graph(graph.vertices, graph.output, input_shapes_of(graph))
    flat = blank(graph, provenance)
    flat.manifest, flat.history = dag.manifest, dag.history
    share_modules(flat, dag, {id(dag): flat})
    keep_shapes(flat)
    return flat
