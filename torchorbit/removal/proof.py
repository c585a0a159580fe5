"""The proof of a removal: what is left computes what the whole graph computes with the removed channels at zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from torchorbit.comparing import evaluating, paired, relative_difference
from torchorbit.errors import ArgumentError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.one_level import one_level
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import masked_run, random_inputs


def verify_removal(
    dag: DagModule,
    pruned: DagModule,
    removed: Mapping[Orbit, Iterable[int]],
    inputs: Any = None,
    *,
    seed: int = 0,
) -> float:
    """Compare a pruned graph with the whole one in which the removed channels are zero.

    Both run in evaluation mode on the same inputs.

    Args:
        dag: the whole graph, as `torchorbit.find_orbits` saw it.
        pruned: what `torchorbit.remove_channels` made of it.
        removed: what was removed.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; by default random numbers of
            the recorded sizes and kinds (zeros and ones where they are whole), one sample where the batch size is free.
        seed: of the default inputs.

    Returns:
        The largest difference between the outputs, over the largest output; infinite where an output of ``pruned`` is
        not finite.

    Raises:
        ArgumentError: the orbits are not those of ``dag``; its output is not finite, or has another structure, shape or
            type than that of ``pruned``; or the weights are on the meta device.
    """
    selection = Selection(removed, dag, allow_empty=True)
    if selection.orbits is None:
        selection.adopt(find_orbits(dag))
    if any(parameter.is_meta for parameter in dag.parameters()):
        raise ArgumentError("the graph is on the meta device, where there are no numbers to compare: give it weights")
    args, kwargs = _inputs(dag, inputs, seed)
    with evaluating(dag, pruned), torch.no_grad():
        whole = _rewriting_difference(dag, selection, args, kwargs)
        expected = masked_run(dag, selection, args, kwargs)
        actual = pruned(*args, **kwargs)
    return max(whole, _difference(expected, actual))


def _rewriting_difference(dag: DagModule, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """How far the graph that is cut is from the one that was given, where packed projections were taken apart in it."""
    assert selection.orbits is not None
    if selection.orbits.model.graph == one_level(dag, separate=False):
        return 0.0
    nothing = Selection({}, dag)
    nothing.adopt(selection.orbits)
    return _difference(dag(*args, **kwargs), masked_run(dag, nothing, args, kwargs))


def _inputs(dag: DagModule, inputs: Any, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if inputs is None:
        return random_inputs(dag, seed)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _difference(expected: Any, actual: Any) -> float:
    pairs = paired(expected, actual, names=("the whole graph", "the pruned graph"))
    if not all(torch.isfinite(wanted).all() for _, wanted, _ in pairs):
        raise ArgumentError("the whole graph's output is not finite, so comparing with it proves nothing")
    return relative_difference(pairs)
