"""What a caller wants frozen, by names that hold for every graph that a model is pruned to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from torch import nn

from torchorbit.graph.dag import DagModule


def frozen_paths(dag: DagModule, frozen: Iterable[nn.Module | str] | nn.Module | str) -> tuple[nn.Module | str, ...]:
    """What a caller wants frozen, with paths for modules.

    Args:
        dag: a graph.
        frozen: as `torchorbit.find_orbits` takes it; modules may also be those of the model that the graph was
            converted from, of which it has the layers and parameters.

    Returns:
        Paths and patterns; and what is no module of the graph, for `torchorbit.find_orbits` to refuse.
    """
    wanted = [frozen] if isinstance(frozen, (nn.Module, str)) else list(frozen)
    if not any(isinstance(item, nn.Module) for item in wanted):
        return tuple(wanted)
    known = [
        (path, id(part))
        for path, part in itertools.chain(
            dag.named_modules(remove_duplicate=False),
            dag.named_parameters(remove_duplicate=False),
            dag.named_buffers(remove_duplicate=False),
        )
        if path
    ]
    found: list[nn.Module | str] = []
    for item in wanted:
        paths: list[str] = []
        if isinstance(item, nn.Module):
            inside = {id(part) for part in itertools.chain(item.modules(), item.parameters(), item.buffers())}
            paths = [path for path, identity in known if identity in inside]
        found += paths or [item]
    return tuple(found)
