"""Sparse rows: what the decomposition does with its columns, a thousand times for a fleet of a few servers.

SciPy's matrices do the same and check what they are given each time. On some hundred entries the checks take
longer than the work: with 27 servers, a sixth of the whole search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Rows:
    """A sparse matrix, row by row.

    Attributes
    ----------
    start : (n + 1,) int
        Entries of row i are ``start[i]:start[i + 1]``.
    column : (E,) int
        Different ones within a row, in no order.
    value : (E,) float or int
    width : int
        Number of columns, m.
    """

    start: IntArray
    column: IntArray
    value: FloatArray | IntArray
    width: int

    @classmethod
    def of(
        cls, row: IntArray, column: IntArray, value: FloatArray | IntArray, shape: tuple[int, int]
    ) -> Self:
        """From entries in the order of their rows."""
        return cls(starts(np.bincount(row, minlength=shape[0])), column, value, shape[1])

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.start) - 1

    @cached_property
    def sizes(self) -> IntArray:
        """Entries of each row, shape (n,)."""
        return np.diff(self.start)

    @cached_property
    def row(self) -> IntArray:
        """Row of each entry, shape (E,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def take(self, which: IntArray | BoolArray) -> Self:
        """Return these rows only."""
        which = np.flatnonzero(which) if which.dtype == np.bool_ else which
        start = starts(self.sizes[which])
        entry = np.repeat(self.start[which] - start[:-1], np.diff(start))
        entry += np.arange(len(entry))
        return type(self)(start, self.column[entry], self.value[entry], self.width)

    def joined(self, other: Self) -> Self:
        """Return both, one below the other."""
        start = np.concatenate([self.start, other.start[1:] + self.start[-1]])
        column = np.concatenate([self.column, other.column])
        return type(self)(start, column, np.concatenate([self.value, other.value]), self.width)

    def times(self, vector: FloatArray) -> FloatArray:
        """Multiply with a column, shape (m,): the product's shape is (n,)."""
        return _sums(self.row, self.value * vector[self.column], len(self))

    def weighted_sum(self, weight: FloatArray | None = None) -> FloatArray:
        """Sum of the rows, each times its weight if given, shape (m,)."""
        value = self.value if weight is None else self.value * weight[self.row]
        return _sums(self.column, value, self.width)

    def times_rows(self, other: Rows) -> FloatArray:
        """Multiply with sparse rows, shape (m, k): the product, with all its zeros, has the shape (n, k)."""
        sizes = other.sizes[self.column]
        mine = np.repeat(np.arange(len(sizes)), sizes)
        its = np.arange(len(mine)) + np.repeat(other.start[self.column] - starts(sizes)[:-1], sizes)
        place = self.row[mine] * other.width + other.column[its]
        product = _sums(place, self.value[mine] * other.value[its], len(self) * other.width)
        return product.reshape(len(self), other.width)

    def hashed(self, factor: IntArray) -> IntArray:
        """Multiply with whole numbers, shape (m,), modulo 2**64; shape (n,)."""
        with np.errstate(over="ignore"):
            total = starts(self.value.astype(np.int64, copy=False) * factor[self.column])
            result: IntArray = np.diff(total[self.start])
        return result

    def toarray(self) -> FloatArray:
        """Return it with all its zeros, shape (n, m)."""
        result = np.zeros((len(self), self.width))
        result[self.row, self.column] = self.value
        return result


def starts(sizes: IntArray) -> IntArray:
    """Return the sum of all before each, and of all: where the entries of each row start."""
    result = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=result[1:])
    return result


def _sums(place: IntArray, value: FloatArray | IntArray, count: int) -> FloatArray:
    """Sum of the values at each of so many places."""
    # Without any values they would be whole numbers.
    return np.bincount(place, value, minlength=count).astype(np.float64, copy=False)
