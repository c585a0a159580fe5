"""How long the dimensions of a graph are, as polynomials of the widths of its orbits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchorbit.labels import Dim, arrays_of

if TYPE_CHECKING:
    from torchorbit.orbits.orbit import Orbit, Orbits

#: Gives the length of a dimension, from its labels in every reading and its length in the whole graph.
LengthOf = Callable[[list[Dim], int], int]


@dataclass(frozen=True, slots=True)
class Product:
    """A number of positions that is a product of widths.

    Attributes:
        coefficient: what it is multiplied by.
        orbits: indices of the orbits whose widths are multiplied; none of them for positions that always stay.
    """

    coefficient: int
    orbits: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Positions of which so many stay as stay of the units that they belong to, which widths alone do not say.

    Attributes:
        orbits: indices of the orbits, one for each row of ``ranks``.
        ranks: which unit of each orbit, counted from the score that goes first, is at each position; of shape
            (orbits, positions).
    """

    orbits: tuple[int, ...]
    ranks: NDArray[np.int64]

    def left(self, widths: NDArray[np.int64], most: NDArray[np.int64]) -> int:
        """How many stay where orbits are as wide as this, and ``most`` is how wide they were."""
        rows = list(self.orbits)
        return int((self.ranks >= (most - widths)[rows, None]).all(axis=0).sum())


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a dimension: a sum of products of widths, and of positions that have to be counted one by one."""

    products: tuple[Product, ...]
    counted: tuple[Positions, ...] = ()

    @property
    def orbits(self) -> frozenset[int]:
        """Indices of the orbits that it depends on."""
        parts: tuple[Product | Positions, ...] = (*self.products, *self.counted)
        return frozenset(index for part in parts for index in part.orbits)


class Lengths:
    """The lengths of dimensions.

    Args:
        orbits: those of a graph.
        order: orbit -> its units in the order in which they go.
    """

    def __init__(self, orbits: Orbits, order: Mapping[Orbit, NDArray[np.int64]]):
        self.orbits = orbits
        self._orbit_of = [np.full(count, -1) for count in orbits.counts]
        self._rank_of = [np.zeros(count, np.int64) for count in orbits.counts]
        for orbit in orbits:
            self._orbit_of[orbit.reading][orbit.components] = orbit.index
            self._rank_of[orbit.reading][orbit.components[order[orbit]]] = np.arange(orbit.width)
        self._known: dict[tuple[int, ...], tuple[list[Dim], Length]] = {}

    def of(self, dims: list[Dim], length: int) -> Length:
        """The length of a dimension.

        Args:
            dims: its labels in every reading.
            length: how long it is in the whole graph.
        """
        key = (length, *map(id, dims))
        if key not in self._known:
            self._known[key] = (
                dims,
                self._length(dims, length),
            )  # the arrays stay alive, so that their ids stay theirs
        return self._known[key][1]

    def _length(self, dims: list[Dim], length: int) -> Length:
        orbits, ranks = [], []
        for number, dim in enumerate(dims):
            for array in arrays_of(dim):
                units = self.orbits.components[number][array]
                orbits.append(self._orbit_of[number][units])
                ranks.append(self._rank_of[number][units])
        if not orbits:
            return Length((Product(length, ()),))
        products: list[Product] = []
        counted: list[Positions] = []
        families, family_of = np.unique(np.stack(orbits), axis=1, return_inverse=True)
        for number, family in enumerate(families.T):
            here = np.flatnonzero(family_of.reshape(-1) == number)
            rows = [row for row, orbit in enumerate(family) if orbit >= 0]
            part = self._part([int(family[row]) for row in rows], [ranks[row][here] for row in rows], len(here))
            if isinstance(part, Product):
                products.append(part)
            else:
                counted.append(part)
        return Length(tuple(sorted(products, key=lambda product: product.orbits)), tuple(counted))

    def _part(self, orbits: list[int], ranks: list[NDArray[np.int64]], positions: int) -> Product | Positions:
        """Positions of units of the same orbits: a product where all combinations of units are as frequent."""
        widths = [self.orbits[index].width for index in orbits]
        combination = reduce(
            lambda so_far, new: so_far * new[0] + new[1], zip(widths, ranks, strict=True), np.zeros(1, int)
        )
        _, counts = np.unique(combination, return_counts=True)
        whole = int(np.prod(widths)) if orbits else 1
        if len(set(orbits)) == len(orbits) and len(counts) == whole and counts.min() == counts.max():
            return Product(positions // whole, tuple(sorted(orbits)))
        return Positions(tuple(orbits), np.stack(ranks))
