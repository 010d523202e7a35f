"""What `solver.rows` does with the entries of sparse rows, where `solver.entries` is not compiled.

Rows are given by `start`, `column` and `value`, as the attributes of `solver.rows.Rows`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from solver.milp import FloatArray, IntArray


def taken(
    start: IntArray, column: IntArray, value: FloatArray, which: IntArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Rows of these numbers, shape (k,): their start, column and value."""
    sizes = np.diff(start)[which]
    new_start = np.concatenate([[0], np.cumsum(sizes)])
    entry = np.repeat(start[which] - new_start[:-1], sizes)
    entry += np.arange(len(entry))
    return new_start, column[entry], value[entry]


def products(start: IntArray, column: IntArray, value: FloatArray, vector: FloatArray) -> FloatArray:
    """Product of each row and a vector, shape (n,)."""
    return _sums(_row(start), value * vector[column], len(start) - 1)


def products_of_rows(
    start: IntArray,
    column: IntArray,
    value: FloatArray,
    other_start: IntArray,
    other_column: IntArray,
    other_value: FloatArray,
    width: int,
) -> FloatArray:
    """Product of the rows and other sparse rows, these of so many columns: shape (n, width)."""
    sizes = np.diff(other_start)[column]
    mine = np.repeat(np.arange(len(sizes)), sizes)
    its = np.arange(len(mine)) + np.repeat(other_start[column] - (np.cumsum(sizes) - sizes), sizes)
    place = _row(start)[mine] * width + other_column[its]
    product = _sums(place, value[mine] * other_value[its], (len(start) - 1) * width)
    return product.reshape(len(start) - 1, width)


def hashes(start: IntArray, column: IntArray, value: FloatArray, factor: IntArray) -> IntArray:
    """Product of each row, its values cut to whole numbers, and whole numbers, modulo 2**64; shape (n,)."""
    with np.errstate(over="ignore"):
        total = np.concatenate([[0], np.cumsum(value.astype(np.int64) * factor[column])])
        result: IntArray = np.diff(total[start])
    return result


def firsts(key: IntArray, group: IntArray, groups: int) -> IntArray:
    """See `solver.rows.firsts`."""
    first = np.sort(np.unique(key, return_index=True)[1])
    return first[np.argsort(group[first], kind="stable")]


def places(key: IntArray, wanted: IntArray) -> IntArray:
    """See `solver.rows.places`."""
    if not len(key):
        return np.full(len(wanted), -1)
    order = np.argsort(key, kind="stable")
    spot = order[np.minimum(np.searchsorted(key[order], wanted), len(order) - 1)]
    return np.where(key[spot] == wanted, spot, -1)


def _row(start: IntArray) -> IntArray:
    return np.repeat(np.arange(len(start) - 1), np.diff(start))


def _sums(place: IntArray, value: FloatArray, count: int) -> FloatArray:
    """Sum of the values at each of so many places."""
    # Without any values they would be whole numbers.
    return np.bincount(place, value, minlength=count).astype(np.float64, copy=False)
