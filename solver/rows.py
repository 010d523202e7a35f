"""Sparse rows: what the decomposition does with its columns, a thousand times for a fleet of a few servers.

SciPy's matrices do the same and check what they are given each time. On some hundred entries the checks take
longer than the work: with 27 servers, a sixth of the whole search. The operations are compiled
(`solver.entries`); where that is not there, array operations do the same (`solver.entries_numpy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Self

import numpy as np

try:
    from solver.entries import IS_COMPILED
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING or IS_COMPILED:
    from solver import entries
else:
    from solver import entries_numpy as entries

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
    value : (E,) float
    width : int
        Number of columns, m.
    """

    start: IntArray
    column: IntArray
    value: FloatArray
    width: int

    @classmethod
    def of(
        cls, row: IntArray, column: IntArray, value: FloatArray | IntArray, shape: tuple[int, int]
    ) -> Self:
        """From entries in the order of their rows."""
        column, value = np.ascontiguousarray(column), np.ascontiguousarray(value, dtype=np.float64)
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
        rows = np.flatnonzero(which) if which.dtype == np.bool_ else np.asarray(which, dtype=np.int64)
        return type(self)(*entries.taken(self.start, self.column, self.value, rows), self.width)

    def joined(self, other: Self) -> Self:
        """Return both, one below the other."""
        start = np.concatenate([self.start, other.start[1:] + self.start[-1]])
        column = np.concatenate([self.column, other.column])
        return type(self)(start, column, np.concatenate([self.value, other.value]), self.width)

    def times(self, vector: FloatArray) -> FloatArray:
        """Multiply with a column, shape (m,): the product's shape is (n,)."""
        return entries.products(self.start, self.column, self.value, vector)

    def weighted_sum(self, weight: FloatArray | None = None) -> FloatArray:
        """Sum of the rows, each times its weight if given, shape (m,)."""
        value = self.value if weight is None else self.value * weight[self.row]
        # Without any values they would be whole numbers.
        return np.bincount(self.column, value, minlength=self.width).astype(np.float64, copy=False)

    def times_rows(self, other: Rows) -> FloatArray:
        """Multiply with sparse rows, shape (m, k): the product, with all its zeros, has the shape (n, k)."""
        return entries.products_of_rows(
            self.start, self.column, self.value, other.start, other.column, other.value, other.width
        )

    def hashed(self, factor: IntArray) -> IntArray:
        """Multiply with whole numbers, shape (m,), modulo 2**64; shape (n,).

        Of the rows' own values the whole part counts.
        """
        return entries.hashes(self.start, self.column, self.value, factor)

    def toarray(self) -> FloatArray:
        """Return it with all its zeros, shape (n, m)."""
        result = np.zeros((len(self), self.width))
        result[self.row, self.column] = self.value
        return result


@lru_cache(maxsize=16)
def factors(count: int) -> IntArray:
    """So many numbers without a pattern: only equal multiples of them have equal sums."""
    return np.random.default_rng(0).integers(1, 2**62, count)


def starts(sizes: IntArray) -> IntArray:
    """Return the sum of all before each, and of all: where the entries of each row start."""
    result = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=result[1:])
    return result


def firsts(key: IntArray, group: IntArray, groups: int) -> IntArray:
    """Where each key stands first: by group, and within one in the order of the keys.

    Parameters
    ----------
    key : (n,) int
    group : (n,) int
        0..groups - 1, the same for equal keys.
    groups : int
    """
    return entries.firsts(key, group, groups)


def places(key: IntArray, wanted: IntArray) -> IntArray:
    """Where each wanted key stands first in `key`, shape of `wanted`; -1 where it does not."""
    return entries.places(key, wanted)
