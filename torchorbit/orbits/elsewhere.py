"""The shapes in a graph at another size of its inputs: what differs there, inputs decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from torchorbit.containers import map_leaves
from torchorbit.errors import GraphRunError
from torchorbit.graph.dag import DagModule, Graph, Provenance
from torchorbit.graph.shapes import complete

_FACTOR = 3


def shapes_elsewhere(dag: DagModule, graph: Graph) -> Mapping[str, Any]:
    """The shapes of all results of a graph at another size of its inputs.

    Args:
        dag: an outermost graph, which has the layers.
        graph: the same in one level.

    Returns:
        Vertex name -> the shape of its result; nothing where no other size is known at which it runs.
    """
    assert dag.provenance is not None
    for change in _changes(dag.provenance):
        known = {given.name: map_leaves(change, graph.shapes.get(given.name)) for given in graph.inputs}
        try:
            return complete(graph.vertices, known, dag)
        except GraphRunError:  # lengths are free within limits that nobody knows
            continue
    return {}


def _changes(provenance: Provenance) -> Iterator[Callable[[torch.Size | None], torch.Size | None]]:
    """Ways to change the shapes of inputs as far as they are free, in the order in which to try."""
    shapes = [shape for shape in provenance.input_shapes if shape]
    ranks = {len(shape) for shape in shapes}
    if provenance.free_lengths and max(ranks, default=0) > 1:
        yield lambda shape: _changed(shape, provenance.free_batch, None)
        if max(ranks) == 3:
            yield lambda shape: _changed(shape, provenance.free_batch, 2)
    if provenance.free_batch:
        yield lambda shape: _changed(shape, True, -1)


def _changed(shape: torch.Size | None, batch: bool, axis: int | None) -> torch.Size | None:
    """A shape of another batch size and other lengths: in space, or of tokens, or along one dimension."""
    if not shape:
        return shape
    lengths = list(shape)
    if batch:
        lengths[0] = 2 * _FACTOR * lengths[0] + 1
    for n in range(2, len(shape)) if axis is None and len(shape) > 3 else (1 if axis is None else axis,):
        if 0 < n < len(shape):
            lengths[n] *= _FACTOR
    return torch.Size(lengths)
