"""The proof of a removal: what is left computes what the whole graph computes with the removed channels at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchorbit.comparing import evaluating, paired, relative_difference
from torchorbit.containers import leaves_of
from torchorbit.errors import ArgumentError, GraphRunError
from torchorbit.graph.dag import DagModule
from torchorbit.graph.one_level import one_level
from torchorbit.orbits.discovery import find_orbits
from torchorbit.orbits.orbit import Orbit
from torchorbit.orbits.selection import Selection
from torchorbit.removal.masked import masked_run, random_inputs
from torchorbit.removal.masked_operators import RecordedSizeError


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
            the recorded sizes and kinds (zeros and ones where they are whole), one sample where the batch size is free,
            and then three, of other lengths where those are free.
        seed: of the default inputs.

    Returns:
        The largest difference between the outputs, over the largest output; infinite where an output of ``pruned`` is
        not finite.

    Raises:
        ArgumentError: the orbits are not those of ``dag``; its output is not finite, or has another structure, shape or
            type than that of ``pruned``; the weights are on the meta device; or it is not known which channels stand
            where at the sizes of ``inputs``, which are not those that ``dag`` was recorded with.
    """
    selection = Selection(removed, dag, allow_empty=True)
    if selection.orbits is None:
        selection.adopt(find_orbits(dag))
    if any(parameter.is_meta for parameter in dag.parameters()):
        raise ArgumentError("the graph is on the meta device, where there are no numbers to compare: give it weights")
    with evaluating(dag, pruned), torch.no_grad():
        if inputs is not None:
            return _proved(dag, pruned, selection, *_given(inputs))
        recorded = _proved(dag, pruned, selection, *random_inputs(dag, seed))
        return max(recorded, _proved_at_other_sizes(dag, pruned, selection, seed))


def _proved(
    dag: DagModule, pruned: DagModule, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float:
    whole = _rewriting_difference(dag, selection, args, kwargs)
    expected = masked_run(dag, selection, args, kwargs)
    return max(whole, _difference(expected, pruned(*args, **kwargs)))


def _proved_at_other_sizes(dag: DagModule, pruned: DagModule, selection: Selection, seed: int) -> float:
    """The same with another batch size and other lengths, as far as these are free: no recorded size may be left."""
    assert dag.provenance is not None
    if not (dag.provenance.free_batch or dag.provenance.free_lengths):
        return 0.0
    for lengths in [*(_OTHER_LENGTHS if dag.provenance.free_lengths else ()), list]:
        args, kwargs = random_inputs(dag, seed, batch=_OTHER_BATCH, lengths=lengths)
        try:
            # Lengths are free within limits that nobody knows.
            if not all(map(_is_finite, leaves_of(Tensor, dag(*args, **kwargs)))):
                continue
        except GraphRunError:
            continue
        try:
            return _proved(dag, pruned, selection, args, kwargs)
        except RecordedSizeError:  # labels may not be known where shapes depend on values
            continue
    return 0.0


_OTHER_BATCH = 3


def _stretched(factor: int, divisor: int, token_dim: int) -> Callable[[list[int]], list[int]]:
    """Makes the dimensions of images in space, or else that of tokens, longer or shorter.

    Args:
        factor: how much longer.
        divisor: how much shorter.
        token_dim: the dimension of tokens, counted without that of the batch.
    """

    def lengths(before: list[int]) -> list[int]:
        touched = range(1, len(before)) if len(before) > 2 else (token_dim,)
        return [max(n * factor // divisor, 1) if axis in touched else n for axis, n in enumerate(before)]

    return lengths


# Tokens come second, or last where the model is a convolution along them.
_OTHER_LENGTHS = [_stretched(*by, token_dim) for token_dim in (0, 1) for by in ((1, 2), (3, 2), (3, 1))]


def _rewriting_difference(dag: DagModule, selection: Selection, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """How far the graph that is cut is from the one that was given, where packed projections were taken apart in it."""
    assert selection.orbits is not None
    if selection.orbits.model.graph == one_level(dag, separate=False):
        return 0.0
    nothing = Selection({}, dag)
    nothing.adopt(selection.orbits)
    return _difference(dag(*args, **kwargs), masked_run(dag, nothing, args, kwargs))


def _given(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _difference(expected: Any, actual: Any) -> float:
    pairs = paired(expected, actual, names=("the whole graph", "the pruned graph"))
    if not all(_is_finite(wanted) for _, wanted, _ in pairs):
        raise ArgumentError("the whole graph's output is not finite, so comparing with it proves nothing")
    return relative_difference(pairs)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
