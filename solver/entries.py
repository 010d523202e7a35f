# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What `solver.rows` does with the entries of sparse rows, compiled: as `entries_numpy`, in one pass each.

Written in Cython's pure Python mode, and compiled when the package is built. Types for callers are in
`entries.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memset

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

# An odd number without a pattern, to mix the bits of a key.
_MIX = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)


def taken(
    start: cython.longlong[::1],
    column: cython.longlong[::1],
    value: cython.double[::1],
    which: cython.longlong[::1],
):
    """Rows of these numbers."""
    n: cython.Py_ssize_t = which.shape[0]
    i: cython.Py_ssize_t
    e: cython.Py_ssize_t
    to: cython.Py_ssize_t = 0
    new_start_array = np.empty(n + 1, dtype=np.int64)
    new_start: cython.longlong[::1] = new_start_array
    new_start[0] = 0
    for i in range(n):
        if not 0 <= which[i] < start.shape[0] - 1:
            raise IndexError(which[i])
        to += start[which[i] + 1] - start[which[i]]
        new_start[i + 1] = to
    new_column_array, new_value_array = np.empty(to, dtype=np.int64), np.empty(to)
    new_column: cython.longlong[::1] = new_column_array
    new_value: cython.double[::1] = new_value_array
    to = 0
    with cython.nogil:
        for i in range(n):
            for e in range(start[which[i]], start[which[i] + 1]):
                new_column[to] = column[e]
                new_value[to] = value[e]
                to += 1
    return new_start_array, new_column_array, new_value_array


def products(
    start: cython.longlong[::1],
    column: cython.longlong[::1],
    value: cython.double[::1],
    vector: cython.double[::1],
):
    """Product of each row and a vector."""
    n: cython.Py_ssize_t = start.shape[0] - 1
    i: cython.Py_ssize_t
    e: cython.Py_ssize_t
    x: cython.double
    result_array = np.empty(n)
    result: cython.double[::1] = result_array
    with cython.nogil:
        for i in range(n):
            x = 0.0
            for e in range(start[i], start[i + 1]):
                x += value[e] * vector[column[e]]
            result[i] = x
    return result_array


def products_of_rows(
    start: cython.longlong[::1],
    column: cython.longlong[::1],
    value: cython.double[::1],
    other_start: cython.longlong[::1],
    other_column: cython.longlong[::1],
    other_value: cython.double[::1],
    width: cython.Py_ssize_t,
):
    """Product of the rows and other sparse rows."""
    n: cython.Py_ssize_t = start.shape[0] - 1
    i: cython.Py_ssize_t
    e: cython.Py_ssize_t
    k: cython.Py_ssize_t
    result_array = np.zeros((n, width))
    result: cython.double[:, ::1] = result_array
    with cython.nogil:
        for i in range(n):
            for e in range(start[i], start[i + 1]):
                for k in range(other_start[column[e]], other_start[column[e] + 1]):
                    result[i, other_column[k]] += value[e] * other_value[k]
    return result_array


def hashes(
    start: cython.longlong[::1],
    column: cython.longlong[::1],
    value: cython.double[::1],
    factor: cython.longlong[::1],
):
    """Product of each row and whole numbers, modulo 2**64."""
    n: cython.Py_ssize_t = start.shape[0] - 1
    i: cython.Py_ssize_t
    e: cython.Py_ssize_t
    x: cython.ulonglong
    result_array = np.empty(n, dtype=np.int64)
    result: cython.longlong[::1] = result_array
    with cython.nogil:
        for i in range(n):
            x = 0
            for e in range(start[i], start[i + 1]):
                x += cython.cast(cython.ulonglong, cython.cast(cython.longlong, value[e])) * cython.cast(
                    cython.ulonglong, factor[column[e]]
                )
            result[i] = cython.cast(cython.longlong, x)
    return result_array


@cython.final
@cython.cclass
class _Table:
    """Where each of some keys stands first: a hash table."""

    key: cython.longlong[::1]
    place: cython.p_longlong
    size: cython.Py_ssize_t

    def __cinit__(self, key: cython.longlong[::1]):
        self.key, self.size = key, 64
        while self.size < 2 * key.shape[0]:
            self.size *= 2
        self.place = cython.cast(cython.p_longlong, malloc(self.size * cython.sizeof(cython.longlong)))
        if self.place == cython.NULL:
            raise MemoryError
        memset(self.place, 0xFF, self.size * cython.sizeof(cython.longlong))

    def __dealloc__(self):
        free(self.place)

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def find(self, key: cython.longlong) -> cython.Py_ssize_t:
        """Where the table has this key, or would have it: there it is below 0."""
        bits: cython.ulonglong = cython.cast(cython.ulonglong, key) * _MIX
        at: cython.Py_ssize_t = cython.cast(cython.Py_ssize_t, (bits ^ (bits >> 32)) & (self.size - 1))
        while self.place[at] >= 0 and self.key[self.place[at]] != key:
            at = (at + 1) & (self.size - 1)
        return at


def firsts(key: cython.longlong[::1], group: cython.longlong[::1], groups: cython.Py_ssize_t):
    """Where each key stands first, by group."""
    table: _Table = _Table(key)
    n: cython.Py_ssize_t = key.shape[0]
    count: cython.Py_ssize_t = 0
    at: cython.Py_ssize_t
    i: cython.Py_ssize_t
    g: cython.Py_ssize_t
    found: cython.longlong[::1] = np.empty(n, dtype=np.int64)
    place: cython.longlong[::1] = np.zeros(groups + 1, dtype=np.int64)
    with cython.nogil:
        for i in range(n):
            at = table.find(key[i])
            if table.place[at] < 0:
                table.place[at] = i
                found[count] = i
                count += 1
                place[group[i] + 1] += 1
        for g in range(groups):
            place[g + 1] += place[g]
    result_array = np.empty(count, dtype=np.int64)
    result: cython.longlong[::1] = result_array
    with cython.nogil:
        for i in range(count):
            g = group[found[i]]
            result[place[g]] = found[i]
            place[g] += 1
    return result_array


def places(key: cython.longlong[::1], wanted: cython.longlong[::1]):
    """Where each wanted key stands first."""
    table: _Table = _Table(key)
    at: cython.Py_ssize_t
    i: cython.Py_ssize_t
    result_array = np.empty(wanted.shape[0], dtype=np.int64)
    result: cython.longlong[::1] = result_array
    with cython.nogil:
        for i in range(key.shape[0]):
            at = table.find(key[i])
            if table.place[at] < 0:
                table.place[at] = i
        for i in range(wanted.shape[0]):
            result[i] = table.place[table.find(wanted[i])]
    return result_array
