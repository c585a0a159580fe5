"""Labels of channels: who must live or die together.

Every dimension of every tensor in a graph is one of

- ``None``: no matter of channels (batch, space, tokens);
- an integer array as long as the dimension: the labels of its channels;
- `OTHER`: a matter of channels, but not in this reading (see below).

Rules note *ties* between labels, and *freezes*, which are ties to a label that may not be removed. After the last
vertex the connected components of all ties are the units: what has to be removed together.

**Readings.** A dimension that is split, ``(heads * width) -> (heads, width)``, can be pruned along either factor, and
what is left must stay rectangular. So the graph is read more than once. In each reading one factor carries the labels
and the others are tied together: the innermost in reading 0 (a unit is channel ``d`` of every head), the one outside it
in reading 1 (a unit is a head), and so on. Each reading by itself is a valid way to prune; what is kept after pruning
along several of them is what every one of them keeps, which is rectangular by construction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int32]
#: For every position of a dimension whether it is kept.
Mask = NDArray[np.bool_]


class JoinedMask(np.ndarray):
    """A mask of a dimension in which channels stand beside what has no labels, as registers beside tokens of an image.

    Inputs may decide how many of those there are. What is removed of the dimension is a number then, and no share.
    """


class _Other:
    def __repr__(self) -> str:
        return "OTHER"


#: The lengths of the dimensions of a tensor at one size of the inputs, or at several: one tuple for each.
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A factor of a dimension: a dimension that was there before, or a factor of one.

    Attributes:
        source: the dimension that was there before.
        lengths: how long the factor is, at each of the sizes that are known.
        beside: how long the other factors of the dimension before are together, at each of the sizes.
        dim: its labels; `OTHER` where this reading has labels for another factor of the dimension.
    """

    source: int
    lengths: tuple[int, ...]
    beside: tuple[int, ...]
    dim: Dim

    @property
    def free(self) -> bool:
        """Whether inputs decide how long it is."""
        return len(set(self.lengths)) > 1


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A dimension with several labels at every position: it goes when any of them goes.

    A table of weights that are made into a convolution's in forward, ``(experts, out * in * height * width)``, is cut
    along each of the factors at once.
    """

    arrays: tuple[Array, ...]


#: The dimension has channels that another reading labels.
OTHER: Final = _Other()
Dim = Array | Joint | _Other | None

#: The label that may not be removed.
FROZEN = 0
#: Likewise, in this reading only.
FROZEN_HERE = 1

_LARGEST = 1 << 24  # labels in one array; beyond that a dimension is frozen


class Labels:
    """The labels of one reading of a graph, and what ties them.

    Args:
        reading: which factor of a split dimension carries the labels, counted from the innermost.
        known: of another reading; its labels are known here, too, and nothing is tied to them yet.

    Attributes:
        at: what is being read: ``("vertex", name)``, ``("unruled", name)`` where it has no rule, ``("frozen", name)``
            of a vertex, parameter or buffer that the caller wants frozen, or ``("output", "")``. Whoever says why
            something is frozen needs it (`torchorbit.orbits.causes`).
    """

    at: tuple[str, str] = ("", "")

    def __init__(self, reading: int, known: Labels | None = None):
        self.reading = reading
        self.count: int = 2 if known is None else known.count
        self.deepest = 1
        self.contested: list[Array] = []  # dimensions that were merged with other labelled ones
        self._ties: list[tuple[Array, Array, bool]] = []
        # Most ties join whole arrays; these are kept in a union-find over arrays, not elements.
        self._blocks: list[Array] = [] if known is None else list(known._blocks)
        self._number: dict[int, int] = {} if known is None else dict(known._number)  # id of such an array -> its number
        self._parents: list[int] = list(range(len(self._blocks)))
        self._views: list[Array] = []  # of such arrays, which stay alive, so that their ids stay theirs
        self._frozen: list[int] = []
        self._frozen_here: list[int] = []

    def fresh(self, length: int) -> Array:
        """New labels."""
        self.count += length
        block = np.arange(self.count - length, self.count, dtype=np.int32)
        self._number[id(block)] = len(self._blocks)
        self._parents.append(len(self._blocks))
        self._blocks.append(block)
        return block

    def tie(self, first: Array, second: Array, *, here: bool = False) -> None:
        """What has equal positions must be removed together; with ``here``, because of this reading only."""
        if first is second:
            return
        ours, theirs = self._number.get(id(first)), self._number.get(id(second))
        if here or ours is None or theirs is None:
            self._ties.append((first, second, here))
            return
        ours, theirs = self._root(ours), self._root(theirs)
        if ours != theirs:
            self._parents[max(ours, theirs)] = min(ours, theirs)

    def whole(self, array: Array) -> Array:
        """An array that stands for all that were tied to this one as a whole."""
        number = self._number.get(id(array))
        return array if number is None else self._blocks[self._root(number)]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

    def freeze(self, dim: Dim, *, here: bool = False) -> None:
        """These labels may not be removed; with ``here``, in this reading only."""
        for array in arrays_of(dim):
            number = self._number.get(id(array))
            if number is None:
                self._ties.append((array, np.full_like(array, FROZEN_HERE if here else FROZEN), here))
            else:
                (self._frozen_here if here else self._frozen).append(number)

    def meet(self, *dims: Dim) -> Dim:
        """Dimensions of equal length whose positions correspond: tie them all."""
        result: Dim = None
        labelled: list[Array] = []
        other = bare = False
        for dim in dims:
            if dim is None:
                bare = True
            elif isinstance(dim, np.ndarray):
                labelled.append(dim)
            elif isinstance(dim, Joint):
                # Only splitting tells its factors apart.
                self.freeze(dim)
                bare = True
            else:
                other = True
        if not labelled:
            return OTHER if other and not bare else None
        for dim in labelled[1:]:
            self.tie(labelled[0], dim)
        result = labelled[0]
        if bare:
            self.freeze(result)
            return None
        if other:
            self.freeze(result, here=True)
            return OTHER
        return result

    def concatenate(self, dims: list[Dim], lengths: list[int]) -> Dim:
        """Dimensions one after the other; those without labels are frozen."""
        for dim in dims:
            if isinstance(dim, Joint):
                self.freeze(dim)
        if not any(isinstance(dim, np.ndarray) for dim in dims):
            return OTHER if all(dim is OTHER for dim in dims) else None
        parts: list[Array] = []
        for dim, length in zip(dims, lengths, strict=True):
            if isinstance(dim, np.ndarray):
                parts.append(dim)
            else:
                parts.append(np.full(length, FROZEN_HERE if dim is OTHER else FROZEN, np.int32))
        return np.concatenate(parts)

    def split(self, dim: Dim, factors: tuple[int, ...]) -> list[Dim]:
        """One dimension becomes several; in this reading one of them carries the labels."""
        if isinstance(dim, Joint):
            return self._split_joint(dim, factors)
        if not isinstance(dim, np.ndarray):
            return [dim if factor > 1 else None for factor in factors]
        grid = dim.reshape(factors)
        varying = [axis for axis, factor in enumerate(factors) if factor > 1 and _varies(grid, axis)]
        # A factor along which the labels are all the same may have labels of its own in another reading.
        result: list[Dim] = [OTHER if factor > 1 else None for factor in factors]
        if not varying:
            self.freeze(dim, here=True)
            return result
        carrier = varying[-1 - min(self.reading, len(varying) - 1)]
        if len(varying) > 1:
            self.deepest = max(self.deepest, len(varying))
            grid = grid[tuple([slice(None) if axis in varying else 0 for axis in range(len(factors))])]
            flat = np.moveaxis(grid, varying.index(carrier), -1).reshape(-1, factors[carrier])
            for row in flat[1:] if len(flat) <= 4 else (None,):
                if row is None:
                    self.tie(flat[1:], np.broadcast_to(flat[0], flat[1:].shape), here=True)
                else:
                    self.tie(row, flat[0], here=True)
            result[carrier] = flat[0]
        else:
            result[carrier] = grid[tuple([slice(None) if axis == carrier else 0 for axis in range(len(factors))])]
        return result

    def _split_joint(self, dim: Joint, factors: tuple[int, ...]) -> list[Dim]:
        result: list[Dim] = [None] * len(factors)
        for array in dim.arrays:
            grid = array.reshape(factors)
            varying = [axis for axis, factor in enumerate(factors) if factor > 1 and _varies(grid, axis)]
            if len(varying) == 1 and result[varying[0]] is None:
                result[varying[0]] = grid[tuple([slice(None) if a == varying[0] else 0 for a in range(len(factors))])]
            else:
                self.freeze(array)
        return result

    def merge(self, dims: list[Dim], factors: tuple[int, ...]) -> Dim:
        """Several dimensions become one; in this reading one of them gives it the labels."""
        for dim in dims:
            if isinstance(dim, Joint):
                self.freeze(dim)
        labelled = [axis for axis, dim in enumerate(dims) if isinstance(dim, np.ndarray)]
        if not labelled:
            return OTHER if any(dim is OTHER for dim in dims) else None
        carrier = labelled[-1 - min(self.reading, len(labelled) - 1)]
        if len(labelled) > 1:
            self.deepest = max(self.deepest, len(labelled))
            self.contested += [dims[axis] for axis in labelled]  # type: ignore[misc]
            for axis in labelled:
                if axis != carrier:
                    self.freeze(dims[axis], here=True)
        if math.prod(factors) > _LARGEST:
            self.freeze(dims[carrier])
            return None
        shape = [1] * len(factors)
        shape[carrier] = factors[carrier]
        array = dims[carrier]
        assert isinstance(array, np.ndarray)
        merged = np.broadcast_to(array.reshape(shape), factors).reshape(-1)
        number = self._number.get(id(array))
        if number is not None and len(merged) == len(array):
            self._number[id(merged)] = number
            self._views.append(merged)
        return merged

    def regroup(self, dims: list[Dim], old: Shapes, new: Shapes) -> tuple[list[Dim], list[list[Piece]]]:
        """The labels of a tensor of shape ``old`` after it is reshaped to ``new``.

        Args:
            dims: its labels.
            old: its shape, first at the size of which the labels are, then at another where one is known: there it
                shows which dimensions of length one are folded, and which lengths are equal by chance.
            new: the same of the result.

        Returns:
            The labels of the result, and for every dimension the factors that it is made of, where these are known.
        """
        plan = _plan(old, new)
        if len(old) > 1 and (plan is None or any(factors is None for _, _, factors, _, _ in plan)):
            plan, old, new = _plan(old[:1], new[:1]), old[:1], new[:1]
        result: list[Dim] = [None] * len(new[0])
        pieces: list[list[Piece]] = [[] for _ in result]
        if plan is None:
            for dim in dims:
                self.freeze(dim)
            return result, pieces
        for sources, targets, factors, source_runs, target_runs in plan:
            if len(sources) == 1 and len(targets) == 1:
                result[targets[0]] = dims[sources[0]]
                lengths = tuple([shape[sources[0]] for shape in old])
                pieces[targets[0]] = [Piece(sources[0], lengths, (1,) * len(old), dims[sources[0]])]
                continue
            parts: list[Dim] = []
            found: list[Piece] = []
            if factors is None:
                for source in sources:
                    self.freeze(dims[source])
                continue
            recorded = tuple([lengths[0] for lengths in factors])
            for source, (start, stop) in zip(sources, source_runs, strict=True):
                dim = dims[source]
                split = [dim] if stop - start == 1 else self.split(dim, recorded[start:stop])
                parts.extend(split)
                for part, lengths in zip(split, factors[start:stop], strict=True):
                    beside = tuple([shape[source] // n for shape, n in zip(old, lengths, strict=True)])
                    found.append(Piece(source, lengths, beside, part))
            for target, (start, stop) in zip(targets, target_runs, strict=True):
                pieces[target] = found[start:stop]
                result[target] = (
                    parts[start] if stop - start == 1 else self.merge(parts[start:stop], recorded[start:stop])
                )
        return result, pieces

    def components(self, *, all_readings: bool = False) -> Array:
        """The unit of every label; 0 for what is frozen.

        Args:
            all_readings: leave out what is tied or frozen because of this reading only.
        """
        roots = [self._root(number) for number in range(len(self._blocks))]
        frozen = {roots[number] for number in self._frozen}
        if not all_readings:
            frozen.update([roots[number] for number in self._frozen_here])
        # Only what is free, and was not tied to another block as a whole, is a node of the graph. Blocks hold all
        # labels, in order.
        starts: dict[int, int] = {}
        nodes = 2
        for number, root in enumerate(roots):
            if number == root and number not in frozen:
                starts[number] = nodes
                nodes += len(self._blocks[number])
        every = np.arange(nodes, dtype=np.int32)
        longest = max([len(self._blocks[number]) for number in frozen], default=0)
        gone = np.full(longest, FROZEN, np.int32)
        places = [every[:2]]
        for root in roots:
            length = len(self._blocks[root])
            start = starts.get(root)
            places.append(gone[:length] if start is None else every[start : start + length])
        node = np.concatenate(places)
        first, second = [], []
        for a, b, here in self._ties:
            if not (here and all_readings):
                first.append(a.reshape(-1))
                second.append(b.reshape(-1))
        if not all_readings:
            first.append(np.array([FROZEN], np.int32))
            second.append(np.array([FROZEN_HERE], np.int32))
        if not first:
            return node
        from scipy.sparse import coo_array  # takes long to import
        from scipy.sparse.csgraph import connected_components

        rows, columns = (node[np.concatenate(side)] for side in (first, second))
        graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
        units: Array = connected_components(graph, directed=False)[1]
        return units[node]


def arrays_of(dim: Dim) -> Iterator[Array]:
    """The label arrays of a dimension."""
    if isinstance(dim, np.ndarray):
        yield dim
    elif isinstance(dim, Joint):
        yield from dim.arrays


def joint(arrays: list[Array]) -> Joint:
    """A dimension that is the product of several, each with its labels."""
    factors = tuple([len(array) for array in arrays])
    spread = []
    for axis, array in enumerate(arrays):
        if len(array) > 1:
            shape = [1] * len(factors)
            shape[axis] = len(array)
            spread.append(np.broadcast_to(array.reshape(shape), factors).reshape(-1))
    return Joint(tuple(spread))


def _varies(grid: Array, axis: int) -> bool:
    first = grid[(slice(None),) * axis + (slice(0, 1),)]
    # Fresh labels differ at once; only labels that were repeated need the whole comparison.
    second = grid[(slice(None),) * axis + (slice(1, 2),)]
    return bool(first.flat[0] != second.flat[0]) or not np.array_equal(np.broadcast_to(first, grid.shape), grid)


_Runs = list[tuple[int, int]]
_Group = tuple[list[int], list[int], tuple[tuple[int, ...], ...] | None, _Runs, _Runs]


@lru_cache(maxsize=4096)
def _plan(old: Shapes, new: Shapes) -> list[_Group] | None:
    """How the dimensions of two shapes correspond: groups of dimensions with equal products, and their factors.

    Products are equal at every size that is known.
    """
    if any(math.prod(before) != math.prod(after) or 0 in before for before, after in zip(old, new, strict=True)):
        return None
    before, after = list(zip(*old, strict=True)), list(zip(*new, strict=True))
    sources = [axis for axis, lengths in enumerate(before) if set(lengths) != {1}]
    targets = [axis for axis, lengths in enumerate(after) if set(lengths) != {1}]
    groups: list[_Group] = []
    i = j = 0
    while i < len(sources) and j < len(targets):
        group_sources, group_targets = [sources[i]], [targets[j]]
        left, right = before[sources[i]], after[targets[j]]
        i, j = i + 1, j + 1
        while left != right:
            if i < len(sources) and (left < right or j == len(targets)):
                left = _times(left, before[sources[i]])
                group_sources.append(sources[i])
                i += 1
            elif j < len(targets):
                right = _times(right, after[targets[j]])
                group_targets.append(targets[j])
                j += 1
            else:
                return None
        groups.append(_group(before, after, group_sources, group_targets))
    return groups if i == len(sources) and j == len(targets) else None


def _times(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([a * b for a, b in zip(first, second, strict=True)])


def _group(
    before: list[tuple[int, ...]], after: list[tuple[int, ...]], sources: list[int], targets: list[int]
) -> _Group:
    ends = [
        list(itertools.accumulate([lengths[axis] for axis in axes], _times))
        for lengths, axes in ((before, sources), (after, targets))
    ]
    borders = sorted({(1,) * len(before[0]), *ends[0], *ends[1]})
    if any(any(b % a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(borders)):
        return sources, targets, None, [], []
    factors = tuple([tuple([b // a for a, b in zip(*pair, strict=True)]) for pair in itertools.pairwise(borders)])
    runs: list[_Runs] = []
    for side in ends:
        places = [0, *[borders.index(end) for end in side]]
        runs.append(list(itertools.pairwise(places)))
    return sources, targets, factors, runs[0], runs[1]
