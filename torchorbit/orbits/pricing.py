"""What a graph costs as a function of the widths of its orbits, for many widths at once.

A vertex or a tensor costs something that follows from the lengths of its dimensions, and these are sums of products of
widths (`torchorbit.orbits.lengths`). FLOPs and numbers of parameters are polynomials of the lengths: their coefficients
are found once, by asking for the cost of the lengths 1 and 2 (and 3), and checked at other lengths. What is no
polynomial is asked for anew each time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchorbit.labels import Dim
from torchorbit.orbits.lengths import Length, LengthOf, Lengths

if TYPE_CHECKING:
    from torchorbit.orbits.orbit import Orbit, Orbits

#: A share of a model's cost, as a function of lengths of dimensions.
Term = Callable[[LengthOf], float]

_MOST_POINTS = 81  # at which a term is asked for its cost to find its polynomial
_BATCH = 1 << 22  # numbers that are multiplied at once


@dataclass(slots=True)
class _Polynomial:
    """A sum of ``coefficients[k]`` times the product over ``factors[k]``, which are columns; the last holds ones."""

    coefficients: NDArray[np.float64]
    factors: NDArray[np.int64]


class Pricing:
    """What a graph costs as a function of the widths of its orbits; where units differ, the first in order are gone.

    Args:
        orbits: those of a graph.
        terms: the cost is their sum.
        order: orbit -> its units in the order in which they go.
    """

    def __init__(self, orbits: Orbits, terms: Iterable[Term], order: Mapping[Orbit, NDArray[np.int64]]):
        self._most = np.array([orbit.width for orbit in orbits], np.int64)
        self._lengths: list[Length] = []
        self._fixed = 0.0
        self._opaque: list[tuple[Term, list[int]]] = []
        number_of: dict[Length, int] = {}
        lengths = Lengths(orbits, order)
        monomials: dict[tuple[int, ...], float] = {}

        def place(dims: list[Dim], length: int) -> int:
            return number_of.setdefault(lengths.of(dims, length), len(number_of))

        self._place = place
        for term in terms:
            used: dict[int, int] = {}

            def record(dims: list[Dim], length: int, used: dict[int, int] = used) -> int:
                used.setdefault(place(dims, length), length)
                return length

            whole = term(record)
            self._lengths = list(number_of)
            varying = [n for n in used if self._lengths[n].orbits]
            if not varying:
                self._fixed += whole
                continue
            found = _polynomial(term, varying, used, place)
            if found is None:
                self._opaque.append((term, varying))
                continue
            for powers, coefficient in found.items():
                key = tuple([n for n, power in zip(varying, powers, strict=True) for _ in range(power)])
                monomials[key] = monomials.get(key, 0.0) + coefficient
        products = [
            (n, product.coefficient, product.orbits)
            for n, length in enumerate(self._lengths)
            for product in length.products
        ]
        self._products = _rows([(coefficient, factors) for _, coefficient, factors in products], len(self._most))
        from scipy.sparse import coo_array  # takes long to import

        self._summed = coo_array(
            (np.ones(len(products)), ([n for n, _, _ in products], np.arange(len(products)))),
            shape=(len(self._lengths) + 1, len(products)),
        ).tocsr()
        self._monomials = _rows([(value, key) for key, value in monomials.items()], len(self._lengths))
        self._parts: dict[int, Pricing] = {}

    @property
    def uneven(self) -> frozenset[int]:
        """Indices of orbits whose units do not all cost the same."""
        return frozenset(n for length in self._lengths for part in length.counted for n in part.orbits)

    def totals(self, widths: ArrayLike) -> NDArray[np.float64]:
        """What the graph costs.

        Args:
            widths: of shape (..., orbits).

        Returns:
            An array of shape (...).
        """
        given = np.asarray(widths, np.int64)
        many = given.reshape(math.prod(given.shape[:-1]), len(self._most))  # of no orbit, too
        step = max(1, _BATCH // max(1, self._monomials.factors.size + self._products.factors.size))
        totals = [self._batch(many[start : start + step]) for start in range(0, len(many), step)]
        return np.concatenate([*totals, np.empty(0)]).reshape(given.shape[:-1])

    def along(self, widths: ArrayLike, index: int, others: ArrayLike) -> NDArray[np.float64]:
        """What the cost changes by when one orbit gets another width.

        Args:
            widths: of all orbits.
            index: which orbit changes.
            others: the widths that it gets instead, of shape (n,).

        Returns:
            An array of shape (n,).
        """
        part = self._parts.get(index)
        if part is None:
            part = self._parts[index] = self._part(index)
        rows = np.repeat(np.asarray(widths, np.int64)[None], len(np.asarray(others)) + 1, axis=0)
        rows[1:, index] = others
        totals = part.totals(rows)
        return totals[1:] - totals[0]

    def _part(self, index: int) -> Pricing:
        """What of the cost depends on an orbit."""
        touched = {n for n, length in enumerate(self._lengths) if index in length.orbits}
        part = object.__new__(Pricing)
        part._most, part._fixed, part._parts, part._place = self._most, 0.0, {}, self._place
        part._opaque = [entry for entry in self._opaque if touched.intersection(entry[1])]
        chosen = np.isin(self._monomials.factors, list(touched)).any(axis=1)
        used = np.unique(self._monomials.factors[chosen])
        needed = {*used[used < len(self._lengths)].tolist(), *[n for _, varying in part._opaque for n in varying]}
        part._lengths = [length if n in needed else Length(()) for n, length in enumerate(self._lengths)]
        part._monomials = _Polynomial(self._monomials.coefficients[chosen], self._monomials.factors[chosen])
        kept = np.unique(self._summed[sorted(needed)].indices) if needed else np.empty(0, np.int64)
        part._products = _Polynomial(self._products.coefficients[kept], self._products.factors[kept])
        part._summed = self._summed[:, kept]
        return part

    def _batch(self, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        lengths = np.asarray(self._summed @ _values(self._products, _with_ones(widths.T)))
        for n, length in enumerate(self._lengths):
            for part in length.counted:
                lengths[n] += [part.left(row, self._most) for row in widths]
        lengths[-1] = 1
        totals = self._fixed + _values(self._monomials, lengths).sum(axis=0)
        for term, varying in self._opaque:
            for column in range(len(widths)):
                here = {n: int(lengths[n, column]) for n in varying}
                totals[column] += term(_answers(here, self._place))
        return totals


def _answers(known: Mapping[int, int], place: Callable[[list[Dim], int], int]) -> LengthOf:
    """Lengths that a term is told, by their numbers; others are as they are in the whole graph."""
    return lambda dims, length: known.get(place(dims, length), length)


def _polynomial(
    term: Term, varying: list[int], whole: Mapping[int, int], place: Callable[[list[Dim], int], int]
) -> dict[tuple[int, ...], float] | None:
    """A term as a polynomial of lengths: powers of each -> coefficient; None where it is none of low degree."""

    def cost(values: Iterable[int]) -> float:
        return term(_answers(dict(zip(varying, values, strict=True)), place))

    checks = [
        [whole[n] for n in varying],
        [whole[n] // 2 + 3 for n in varying],
        [5 + 2 * k for k in range(len(varying))],
    ]
    for degree in (1, 2):
        if (degree + 1) ** len(varying) > _MOST_POINTS:
            break
        sides = range(1, degree + 2)
        values = np.array([cost(point) for point in itertools.product(sides, repeat=len(varying))])
        grid: Any = values.reshape([degree + 1] * len(varying))
        inverse = np.linalg.inv(np.vander(sides, increasing=True))
        for axis in range(len(varying)):
            grid = np.moveaxis(np.tensordot(inverse, grid, axes=(1, axis)), 0, axis)
        found = {
            tuple(powers): _exact(value)
            for powers, value in np.ndenumerate(grid)
            if abs(value) > 1e-9 * np.abs(grid).max()
        }
        if all(np.isclose(_at(found, point), cost(point), rtol=1e-9, atol=0) for point in checks):
            return found
    return None


def _exact(value: float) -> float:
    """Counts are whole numbers or simple fractions; what inverting a matrix does to their last digits is undone."""
    nearest = round(value * 64) / 64
    return nearest if abs(value - nearest) <= 1e-9 * abs(value) else float(value)


def _at(polynomial: Mapping[tuple[int, ...], float], point: list[int]) -> float:
    return sum(value * float(np.prod(np.power(point, powers, dtype=float))) for powers, value in polynomial.items())


def _rows(terms: list[tuple[float, tuple[int, ...]]], ones: int) -> _Polynomial:
    """Terms of a polynomial, their factors padded with the column of ones."""
    longest = max([len(factors) for _, factors in terms], default=0)
    padded = [[*factors, *[ones] * (longest - len(factors))] for _, factors in terms]
    coefficients = np.array([coefficient for coefficient, _ in terms], np.float64)
    return _Polynomial(coefficients, np.array(padded, np.int64).reshape(len(terms), longest))


def _with_ones(columns: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.concatenate([columns, np.ones((1, columns.shape[1]), np.int64)]).astype(np.float64)


def _values(polynomial: _Polynomial, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of every term, of shape (terms, points), from columns of shape (variables + 1, points)."""
    result = np.repeat(polynomial.coefficients[:, None], columns.shape[1], axis=1)
    for factor in polynomial.factors.T:
        result *= columns[factor]
    return result
