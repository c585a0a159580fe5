"""The whole graph and the pruned one, run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchorbit.arguments import Ref
from torchorbit.graph.vertices import last_uses
from torchorbit.orbits.flat import FlatModel
from torchorbit.orbits.running import Running
from torchorbit.orbits.selection import Selection
from torchorbit.pruning.reconstruction.storing import Batches, Values

#: Places in both graphs: how many of their vertices come before.
Places = tuple[int, int]


class Lockstep:
    """Runs the whole graph and the pruned one side by side, all batches as far as they are asked to.

    Args:
        selection: what was removed.
        small: the pruned graph.
        batches: the inputs of both.

    Attributes:
        whole: the whole graph.
        small: the pruned one.
        batches: the values of both.
        places: for each of them, name of a vertex -> its place among those that run.
    """

    def __init__(self, selection: Selection, small: FlatModel, batches: Batches):
        assert selection.orbits is not None
        self.whole = selection.orbits.model
        self.small = small
        self.batches = batches
        self._selection = selection
        self._runs = (Running(self.whole), Running(small))
        self._order = [list(run.running()) for run in self._runs]
        self._last = [last_uses(run.model.graph.vertices, run.model.graph.output) for run in self._runs]
        self.places = [{vertex.name: n for n, (_, vertex) in enumerate(order)} for order in self._order]
        self._done: Places = (0, 0)

    def run(self, upto: Places) -> Iterator[tuple[int, Values]]:
        """Run every batch up to certain places, and give its number and its values, which may be changed."""
        for number in self.batches:
            with self.batches.values(number) as values:
                self._advance(values, self._done, upto)
                yield number, values
        self._done = upto

    def ahead(self, values: Values, start: Places, upto: Places) -> Values:
        """Run the values of a batch farther than all batches are, in copies of the dictionaries that hold them."""
        copies = dict(values[0]), dict(values[1])
        self._advance(copies, start, upto)
        return copies

    def _advance(self, values: Values, start: Places, upto: Places) -> None:
        for run, held, order, last, first, stop in zip(
            self._runs, values, self._order, self._last, start, upto, strict=True
        ):
            run.values = held
            for place in range(first, stop):
                # What a vertex takes is there until the next one runs: somebody may look at it.
                for name in last.get(order[place - 1][0], ()) if place else ():
                    held.pop(name, None)
                vertex = order[place][1]
                held[vertex.name] = run.vertex(vertex)

    def value(self, which: int, values: Values, arg: Any) -> Any:
        """What an argument stands for in the whole graph (0) or in the pruned one (1)."""
        self._runs[which].values = values[which]
        return self._runs[which].value(arg)

    def kept(self, arg: Ref, value: Tensor, but: int | None = None) -> Tensor | None:
        """What the pruned graph has of a value of the whole one.

        Args:
            arg: which value it is.
            value: the value.
            but: a dimension that is left as it is.

        Returns:
            The value; None where it is of another length than the recorded one along a dimension of which some is gone.
        """
        for axis, mask in enumerate(self._selection.masks_of(arg) or ()):
            if mask is None or axis == but:
                continue
            if len(mask) != value.shape[axis]:
                return None
            value = value.index_select(axis, torch.from_numpy(mask.nonzero()[0]).to(value.device))
        return value
