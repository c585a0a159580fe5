"""How a label rule is written.

A rule says what an operator does to the labels of its operands: which labels its result has, and which must be equal.
It never looks at the rest of the graph::

    def _bmm(operands: Operands) -> list[Dim]:
        a, b = operands.tensor("input"), operands.tensor("mat2")
        operands.labels.meet(a.dims[2], b.dims[1])
        return [operands.labels.meet(a.dims[0], b.dims[0]), a.dims[1], b.dims[2]]

An operator without a rule freezes what it touches and is reported by name: a gap shows up as a word, never as a wrong
result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from torchorbit.arguments import Size
from torchorbit.containers import leaves_of, map_leaves
from torchorbit.labels import FROZEN, FROZEN_HERE, OTHER, Array, Dim, Labels, Piece
from torchorbit.operators.table import OPERATORS, REQUIRED


@dataclass(slots=True)
class Labelled:
    """What is known of a tensor.

    Attributes:
        shape: its shape.
        dims: the labels of each of its dimensions (`torchorbit.labels`).
        numbers: gives the values of a constant that holds whole numbers or flags, or None where they are not known.
        flags: whether it is known to hold what is true or false.
    """

    shape: tuple[int, ...]
    dims: list[Dim]
    numbers: Callable[[], NDArray[Any] | None] | None = None
    flags: bool = False


@dataclass(frozen=True, slots=True)
class Mixing:
    """An operator that looks at neighbours along a labelled dimension, where removing one would give others.

    To remove channels there, the operand is put back to its full length, with zeros where channels are gone, and the
    kept ones are picked from the result. Without an argument they are picked only: the vertex makes a constant.
    """

    argument: str
    axis: int
    result_axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One of several dimensions that are folded into one.

    Attributes:
        vertex: the vertex that folded it, whose input had the dimension; empty where that is not known.
        axis: the dimension of that input.
        divisor: by how much that dimension is longer; the rest of it went elsewhere.
        lengths: how long it is, at each of the sizes that are known.
        dim: its labels; `OTHER` where this reading has labels for another part.
    """

    vertex: str
    axis: int
    divisor: int
    lengths: tuple[int, ...]
    dim: Dim

    @property
    def free(self) -> bool:
        """Whether inputs decide how long it is."""
        return len(set(self.lengths)) > 1


@dataclass(slots=True)
class Reading:
    """One reading of a graph: what rules write into.

    Attributes:
        labels: the labels and ties.
        values: vertex name -> what is known of its result (`Labelled`, or containers of them).
        attributes: path of a parameter or buffer -> what is known of it.
        sources: vertices that produce channels, with the labels of those.
        sinks: vertices that consume channels, with the labels of those.
        pieces: runs of labels that must each keep something: what is left of a split must not be empty. By the vertex
            that makes them, and which of its pieces each is.
        mixing: vertex name -> where it mixes channels.
        unruled: operators without a rule.
        reads: gives which of several results of a vertex anything reads; None is among them where all are at once.
        parts: (vertex, dimension of its result) -> the dimensions that it folds into this one, where inputs decide how
            long some of them are.
        folds: id of the labels of such a dimension -> these labels, and where it was folded.
        open_lengths: whether dimensions with labels may have lengths that inputs decide, as those have in which learned
            tokens stand beside others.
    """

    labels: Labels
    values: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Labelled] = field(default_factory=dict)
    sources: list[tuple[str, Array]] = field(default_factory=list)
    sinks: list[tuple[str, Array]] = field(default_factory=list)
    pieces: dict[tuple[str, int], Array] = field(default_factory=dict)
    mixing: dict[str, list[Mixing]] = field(default_factory=dict)
    unruled: dict[str, None] = field(default_factory=dict)
    reads: Callable[[str], frozenset[Any]] = field(default=lambda name: frozenset({None}), compare=False)
    parts: dict[tuple[str, int], tuple[Part, ...]] = field(default_factory=dict)
    folds: dict[int, tuple[Array, tuple[str, int]]] = field(default_factory=dict)
    open_lengths: bool = False

    def folded_at(self, dim: Dim) -> tuple[str, int] | None:
        """Where dimensions, of which inputs decide how long some are, were folded into this one; None if nowhere."""
        return self.folds[id(dim)][1] if id(dim) in self.folds else None


@dataclass(slots=True)
class Operands:
    """A call as a rule sees it.

    Attributes:
        reading: the reading of the graph.
        vertex: name of the vertex.
        operator: what it calls.
        args: arguments by name; tensors are `Labelled`.
        shape: shape of the result, or containers of shapes.
        module: the module that is called, where it is one.
        elsewhere: gives the shape of an argument, by its name, or of the result, for None, at another size of the
            inputs; None where that is not known. The first time it is asked it takes as long as all the rest.
        fixed: gives the dimensions of an argument, by its name, that have the same length at every size of the inputs,
            as far as that is plain to see where they are made.
    """

    reading: Reading
    vertex: str
    operator: str
    args: dict[str, Any]
    shape: Any
    module: nn.Module | None = None
    elsewhere: Callable[[str | None], Any] = field(default=lambda name: None, compare=False)
    fixed: Callable[[str], frozenset[int]] = field(default=lambda name: frozenset(), compare=False)
    _pieces: int = 0

    @property
    def labels(self) -> Labels:
        """The labels of the reading."""
        return self.reading.labels

    def arg(self, name: str) -> Any:
        """An argument, or its default."""
        if name in self.args:
            return self.args[name]
        default = OPERATORS[self.operator].parameters.get(name)
        return None if default is REQUIRED else default

    def tensor(self, name: str = "input") -> Labelled:
        """An argument that is a tensor."""
        value = self.args[name]
        assert isinstance(value, Labelled), f"{self.operator}: argument '{name}' is no tensor"
        return value

    def maybe(self, name: str) -> Labelled | None:
        """An argument that may be a tensor."""
        value = self.args.get(name)
        return value if isinstance(value, Labelled) else None

    def tensors(self) -> list[Labelled]:
        """All arguments that are tensors, those in containers included."""
        return leaves_of(Labelled, self.args)

    def freeze(self, value: Labelled | Dim) -> None:
        """Let nothing of a tensor, or of one dimension, be removed."""
        for dim in value.dims if isinstance(value, Labelled) else [value]:
            self.labels.freeze(dim)

    def regrouped(self) -> list[Dim]:
        """Labels of a result that has the elements of the input in the same order, in other dimensions.

        What is folded by it, and inputs decide how long some of that is, is noted. Where it is unfolded again it is the
        dimensions that it was.
        """
        x, reading = self.tensor(), self.reading
        old: Any = None
        new: Any = None
        if not self._is_plain(x):
            old, new = self.elsewhere("input"), self.elsewhere(None)
        # A batch of one sample may be left out by a squeeze, which does nothing with others.
        known = old is not None and new is not None and (len(old), len(new)) == (len(x.shape), len(self.shape))
        count = 2 if known else 1
        shapes = [tuple(x.shape), *([tuple(old)] if count == 2 else [])]
        before: list[Part] = []
        for axis, dim in enumerate(x.dims):
            at = reading.folded_at(dim)
            if at is not None and len(reading.parts[at][0].lengths) == count:
                before += reading.parts[at]
            else:
                before.append(Part(self.vertex, axis, 1, tuple([shape[axis] for shape in shapes]), dim))
        after = (tuple(self.shape), *((tuple(new),) if count == 2 else ()))
        old_shapes = tuple(zip(*[part.lengths for part in before], strict=True)) or ((),) * count
        result, pieces = self.labels.regroup([part.dim for part in before], old_shapes, after)
        for axis, found in enumerate(pieces):
            if len(found) > 1 and any(piece.free for piece in found):
                dim = result[axis]
                parts = [_part(piece, before[piece.source], dim) for piece in found]
                reading.parts[self.vertex, axis] = tuple(parts)
                if isinstance(dim, np.ndarray):
                    reading.folds[id(dim)] = dim, (self.vertex, axis)
        return result

    def _is_plain(self, x: Labelled) -> bool:
        """Whether the recorded sizes alone show which labels the result has.

        They do where what has labels is folded with nothing that inputs decide: other sizes need not be looked at then.
        """
        labelled = [dim is not None for dim in x.dims]
        if not any(labelled):
            return True
        if any(self.reading.folded_at(dim) is not None for dim in x.dims):
            return False
        if self.operator == "unsqueeze" or (self.operator == "squeeze" and self.args.get("dim") is not None):
            return True
        if self.operator == "flatten":
            start, end = (self.arg(name) % max(len(labelled), 1) for name in ("start_dim", "end_dim"))
            return self._is_plain_fold(labelled, range(start, end + 1))
        if self.operator == "unflatten":
            return not labelled[self.arg("dim") % len(labelled)] or all(map(_is_length, self.arg("sizes")))
        if self.operator == "reshape":
            sizes = self.args["shape"]
        elif self.operator == "reshape_as":
            like = self.tensor("other")
            closed = not self.reading.open_lengths
            sizes = tuple(
                [
                    length if dim is not None and closed else Size(None, n)
                    for n, (length, dim) in enumerate(zip(like.shape, like.dims, strict=True))
                ]
            )
        else:
            return False
        (first, last), (begin, end) = _unmatched(
            labelled, x.shape, sizes, self.shape, open_lengths=self.reading.open_lengths
        )
        return (last - first == end - begin == 1) or self._is_plain_fold(labelled, range(first, last))

    def _is_plain_fold(self, labelled: list[bool], axes: range) -> bool:
        """Whether no input decides how long any of these dimensions is, or else none of them has labels."""
        if not any(labelled[axis] for axis in axes):
            return True
        if self.reading.open_lengths and sum(labelled[axis] for axis in axes) > 1:
            return False
        fixed = self.fixed("input")
        return all(labelled[axis] or axis in fixed for axis in axes)

    def at_fixed_places(self, dim: Dim) -> Dim:
        """A dimension of which positions are taken by their numbers.

        Into some dimensions others are folded whose lengths inputs decide: other channels are there at other sizes, and
        none of them can be removed.
        """
        if self.reading.folded_at(dim) is None:
            return dim
        self.freeze(dim)
        return None

    def holds_unlabelled(self, dim: Dim) -> bool:
        """Whether channels stand beside what has no labels; inputs may decide how many of those there are."""
        return isinstance(dim, np.ndarray) and bool(np.isin(dim, (FROZEN, FROZEN_HERE)).any())

    def moves(self, dim: Dim, axis: int, bound: int, elsewhere: int | None = None) -> bool:
        """Whether at another size of the inputs a bound in a dimension of the input is beside other channels.

        Where channels stand behind what inputs decide the number of, as registers behind the patches of an image, they
        are found by their distance from the end alone.

        Args:
            dim: the dimension.
            axis: which of the input it is.
            bound: how many positions are before the bound; negative, how many are behind it.
            elsewhere: the same at the other size, where it is not the same number.
        """
        if not isinstance(dim, np.ndarray) or not self.holds_unlabelled(dim):
            return False
        loose = np.isin(dim, (FROZEN, FROZEN_HERE))
        shape = self.elsewhere("input")
        if shape is None or len(shape) != len(self.tensor().shape) or shape[axis] == len(dim):
            return False
        before = bound if bound >= 0 else len(dim) + bound
        then = bound if elsewhere is None else elsewhere
        then = then if then >= 0 else shape[axis] + then
        if before > len(dim) or then > shape[axis] or before < 0 or then < 0:
            return True
        if before == then and not loose[:before].any():
            return False
        places = np.flatnonzero(loose)
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        end = shape[axis] - (len(dim) - last)
        if last - first == len(places) and first < before < last and first < then < end:
            return False  # among those that inputs decide the number of, at both sizes
        return len(dim) - before != shape[axis] - then or bool(loose[before:].any())

    def no_proportion(self, dim: Dim) -> Dim:
        """A dimension of which a share is removed where it is part of a longer one.

        Where tokens that are learned and those of an image are folded together with other dimensions, no share of it is
        the same at all sizes, and none of them can be removed.
        """
        at = self.reading.folded_at(dim)
        if at is None or not any(part.free and isinstance(part.dim, np.ndarray) for part in self.reading.parts[at]):
            return dim
        self.freeze(dim)
        return None

    def piece(self, dim: Dim, start: int, stop: int, step: int = 1) -> Dim:
        """A part of a dimension, as slicing gives it. One channel alone cannot be removed."""
        self._pieces += 1
        dim = self.at_fixed_places(dim)
        if not isinstance(dim, np.ndarray):
            return dim if len(range(start, stop, step)) > 1 else None
        part = dim[start:stop:step]
        if len(part) == len(dim):
            return part
        if len(part) <= 1:
            self.labels.freeze(part)
            return None
        self.reading.pieces[self.vertex, self._pieces] = part
        return part

    def picked(self, dim: Dim, positions: NDArray[np.int64]) -> Dim:
        """Channels at some positions, in any order. One channel alone cannot be removed."""
        self._pieces += 1
        dim = self.at_fixed_places(dim)
        if not isinstance(dim, np.ndarray):
            self.freeze(dim)
            return dim if dim is OTHER and len(positions) > 1 else None
        part = dim[positions]
        if len(part) <= 1:
            self.labels.freeze(part)
            return None
        self.reading.pieces[self.vertex, self._pieces] = part
        return part

    def reads(self, position: int, name: str) -> bool:
        """Whether anything reads one of the several results, by its position and its name."""
        return not self.reading.reads(self.vertex).isdisjoint({None, position, name})

    def source(self, dim: Dim) -> None:
        """The vertex produces these channels."""
        if isinstance(dim, np.ndarray):
            self.reading.sources.append((self.vertex, dim))

    def sink(self, dim: Dim) -> None:
        """The vertex consumes these channels."""
        if isinstance(dim, np.ndarray):
            self.reading.sinks.append((self.vertex, dim))

    def mixes(self, argument: str, axis: int, result_axis: int) -> None:
        """Along this axis of an argument the vertex looks at neighbours."""
        self.reading.mixing.setdefault(self.vertex, []).append(Mixing(argument, axis, result_axis))

    def broadcast(self, tensors: list[Labelled], shape: tuple[int, ...]) -> list[Dim]:
        """Labels of an elementwise result: dimensions are aligned from the right, and what meets is tied."""
        if len(tensors) == 1 and tensors[0].shape == shape:
            return tensors[0].dims
        rank = len(shape)
        result: list[Dim] = []
        for axis, length in enumerate(shape):
            meeting = []
            for tensor in tensors:
                position = axis - rank + len(tensor.shape)
                if position >= 0 and tensor.shape[position] == length:
                    meeting.append(tensor.dims[position])
            result.append(None if length == 1 else self.labels.meet(*meeting))
        return result


def _is_length(size: Any) -> bool:
    """Whether a size is a number of the model's, which no input changes."""
    return type(size) is int and size > 0


def _unmatched(
    labelled: list[bool], old: tuple[int, ...], sizes: tuple[Any, ...], new: tuple[int, ...], *, open_lengths: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is left of the dimensions of a reshape's operand and result when what is plain is taken away at both ends.

    Plain are dimensions without labels that stay as long as they are, and such with labels that become others of which
    the model says how long they are; so it does of what is left over for one, unless lengths with labels are open.
    """
    i, j, k, m = 0, 0, len(old), len(new)

    def step(source: int, target: int, way: int) -> tuple[int, int]:
        """How many dimensions of each are taken away at one end."""
        size = sizes[target]
        if not labelled[source]:
            stays = old[source] == new[target] and (_is_length(size) or (type(size) is Size and size.dim == source))
            return (1, 1) if stays else (0, 0)
        taken, given, product, wanted = 1, 0, old[source], 1
        while wanted != product or not given:
            if wanted < product or not given:
                at = target + way * given
                if not j <= at < m or not (_is_length(sizes[at]) or (sizes[at] == -1 and not open_lengths)):
                    return 0, 0
                wanted, given = wanted * new[at], given + 1
            else:
                at = source + way * taken
                if not i <= at < k or not labelled[at]:
                    return 0, 0
                product, taken = product * old[at], taken + 1
        return taken, given

    while i < k and j < m and (found := step(i, j, 1)) != (0, 0):
        i, j = i + found[0], j + found[1]
    while i < k and j < m and (found := step(k - 1, m - 1, -1)) != (0, 0):
        k, m = k - found[0], m - found[1]
    return (i, k), (j, m)


def _part(piece: Piece, before: Part, folded: Dim) -> Part:
    """A factor of a folded dimension, from the dimension of which it was one."""
    dim = piece.dim
    if isinstance(dim, np.ndarray) and not (isinstance(folded, np.ndarray) and (dim == folded.max()).any()):
        dim = OTHER  # this reading has labels for another factor
    if set(piece.beside) == {1}:
        return Part(before.vertex, before.axis, before.divisor, piece.lengths, dim)
    if not piece.free or len(set(piece.beside)) > 1 or before.dim is not None or not before.vertex:
        return Part("", -1, 1, piece.lengths, dim)
    return Part(before.vertex, before.axis, before.divisor * piece.beside[0], piece.lengths, dim)


#: What a rule returns: the labels of a single result; or a `Labelled`, or a tuple of them, for other results.
Result = list[Dim] | Labelled | tuple[Any, ...] | None
Rule = Callable[[Operands], Result]


def elementwise(operands: Operands) -> list[Dim]:
    """The result at a position depends on the operands at that position, which are broadcast: what meets is tied."""
    return operands.broadcast(operands.tensors(), operands.shape)


def like_the_first(operands: Operands) -> list[Dim]:
    """The result has the labels of the first operand."""
    return operands.tensor().dims


def needs_everything(operands: Operands) -> Any:
    """Every number of the result depends on all operands, and none of their channels can be removed."""
    for tensor in operands.tensors():
        operands.freeze(tensor)
    return unlabelled(operands.shape)


def unlabelled(shape: Any) -> Any:
    """A result, or containers of them, in which no dimension has labels."""
    return map_leaves(lambda size: None if size is None else Labelled(size, [None] * len(size)), shape)


#: Rules that give an operand its own labels back where it is the only argument.
SAME_LABELS = frozenset({elementwise, like_the_first})


def several(operands: Operands) -> bool:
    """Whether the result is several tensors."""
    return bool(operands.shape) and isinstance(operands.shape[0], tuple)
