# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Newton's method on the smoothed bound of listed columns: what the arrays in `solver.prices` do, compiled.

Written in Cython's pure Python mode, and compiled when the package is built: of a small fleet an array
operation costs more to call than to carry out, and of any fleet most columns take of one or two limits, and
few of a server's columns have weight. Types for callers are in `smoothed.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.math import exp, fabs, log

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

_INF = cython.declare(cython.double, float("inf"))

# A column this many times the smoothing above the best of its server has no weight in a sum.
_NOTHING = cython.declare(cython.double, 37.0)

# Part of the increase that the slope promises that a step has to bring, what it is shortened by where it does
# not, and the shortest.
_ENOUGH = cython.declare(cython.double, 1e-4)
_SHORTER = cython.declare(cython.double, 0.3)
_SHORTEST = cython.declare(cython.double, 1e-5)


@cython.final
@cython.cclass
class Smoothed:
    """The bound over listed columns, as it is and with a soft minimum.

    Parameters
    ----------
    start : (n + 1,) int
        Columns of server i are ``start[i]:start[i + 1]``, one at least.
    worth : (C,) float
    usage : (C, R) float
        What each takes of the limits, >= 0.
    limits : (R,) float
    scale : float
        Size of a usual value, > 0.
    steps : int
        Newton steps of `maximise`.
    balanced, room : float
        Relative excess or lack of a limit that is good enough, and the excess with which a mixture of columns
        nearly keeps the limits.
    tiny : float
        Relative differences below this are rounding.

    Raises
    ------
    ValueError
        A server has no column.
    """

    n: cython.Py_ssize_t
    rows: cython.Py_ssize_t
    start: cython.longlong[::1]
    worth: cython.double[::1]
    limits: cython.double[::1]
    scale: cython.double
    steps: cython.Py_ssize_t
    balanced: cython.double
    room: cython.double
    tiny: cython.double
    # What each column takes: entries `entry[c]:entry[c + 1]`, in `row` and `amount`.
    entry: cython.longlong[::1]
    row: cython.longlong[::1]
    amount: cython.double[::1]
    # At the prices looked at last: value of each column above the best of its server.
    prices: cython.double[::1]
    reduced: cython.double[::1]
    best: cython.longlong[::1]
    # Columns that take part, those of server i at `part_start[i]:part_start[i + 1]`, and their weights.
    is_part: cython.uchar[::1]
    is_always: cython.uchar[::1]
    is_first: cython.bint
    part: cython.longlong[::1]
    part_start: cython.longlong[::1]
    share: cython.double[::1]
    # Newton's method.
    duals: cython.double[::1]
    trial: cython.double[::1]
    slope: cython.double[::1]
    mean: cython.double[::1]
    usual: cython.double[::1]
    curve: cython.double[:, ::1]
    matrix: cython.double[:, ::1]
    step: cython.double[::1]
    free: cython.longlong[::1]
    best_taken: cython.double[::1]
    # Prices that are to be moved, and how many.
    count: cython.Py_ssize_t
    fits: cython.bint

    def __init__(self, start, worth, usage, limits, scale, steps, balanced, room, tiny):
        self.start = np.ascontiguousarray(start, dtype=np.int64)
        self.worth = np.ascontiguousarray(worth, dtype=np.float64)
        self.limits = np.ascontiguousarray(limits, dtype=np.float64)
        self.scale, self.steps, self.balanced, self.room, self.tiny = scale, steps, balanced, room, tiny
        columns, rows = usage.shape
        if len(start) < 2 or not np.all(np.diff(start) > 0):
            raise ValueError("a server without columns has no bound")
        self.n, self.rows = len(start) - 1, rows
        taken = usage != 0
        self.entry = np.r_[0, np.cumsum(taken.sum(axis=1))].astype(np.int64)
        self.row = np.nonzero(taken)[1].astype(np.int64)
        self.amount = np.ascontiguousarray(usage[taken], dtype=np.float64)
        self.prices, self.reduced = np.zeros(rows), np.zeros(columns)
        self.best = np.zeros(self.n, dtype=np.int64)
        self.is_part, self.is_always = np.zeros(columns, dtype=np.uint8), np.zeros(columns, dtype=np.uint8)
        self.is_first = True
        self.part, self.part_start = np.zeros(columns, dtype=np.int64), np.zeros(self.n + 1, dtype=np.int64)
        self.share = np.zeros(columns)
        self.duals, self.trial, self.slope = np.zeros(rows), np.zeros(rows), np.zeros(rows)
        self.mean, self.usual, self.step = np.zeros(rows), np.zeros(rows), np.zeros(rows)
        self.best_taken = np.zeros(rows)
        self.curve, self.matrix = np.zeros((rows, rows)), np.zeros((rows, rows + 1))
        self.free = np.zeros(rows, dtype=np.int64)

    def bound(self, duals):
        """Lagrangian bound at these prices, shape (R,)."""
        np.asarray(self.prices)[:] = duals
        return self._bound()

    def look(self, reach: cython.double, change: cython.double):
        """Let the columns take part that matter at the prices last looked at, and those of the first call.

        Parameters
        ----------
        reach : float
            Those no farther above the best of their server,
        change : float
            those that so small a relative change of prices makes best, and those that take nothing.
        """
        self._look(reach, change)
        if self.is_first:
            self.is_always[:] = self.is_part
            self.is_first = False
        self._list()

    def widen(self, reach: cython.double, value: cython.double):
        """Let those take part, too, that are no farther than `reach` at the prices last looked at.

        Whether any were missed: none where those that take part give the bound, `value`, nearly.
        """
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        least: cython.double
        # By how much the bound over the columns that take part is too high.
        excess: cython.double = 0.0
        missed: cython.bint = False
        with cython.nogil:
            for i in range(self.n):
                least = _INF
                for c in range(self.start[i], self.start[i + 1]):
                    if self.is_part[c]:
                        least = min(least, self.reduced[c])
                    elif self.reduced[c] <= reach:
                        missed = True
                excess += least
        if not missed or excess <= self.balanced * abs(value):
            return False
        for c in range(len(self.reduced)):
            if self.reduced[c] <= reach:
                self.is_part[c] = 1
        self._list()
        return True

    def maximise(self, duals, most, t: cython.double, left_s):
        """Return the best prices within 0..`most` that a few Newton steps from `duals` reach.

        Parameters
        ----------
        duals, most : (R,) float
        t : float
            The smoothing.
        left_s : callable
            Seconds that are left.

        Returns
        -------
        duals : (R,) float
        fits : bool
            Whether a mixture of columns on the way nearly keeps the limits.
        """
        high: cython.double[::1] = np.ascontiguousarray(most, dtype=np.float64)
        value: cython.double
        is_off: cython.bint
        np.asarray(self.duals)[:] = duals
        self.trial[:] = self.duals
        self.fits = False
        with cython.nogil:
            value = self._soft(t)
            self._usual()
        for _ in range(self.steps):
            with cython.nogil:
                is_off = self._slope(high)
            if not is_off or left_s() <= 0:
                break
            with cython.nogil:
                value = self._newton(high, t, value)
            if value == -_INF:
                break
        return np.array(self.duals), self.fits

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bound(self) -> cython.double:
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        e: cython.Py_ssize_t
        r: cython.Py_ssize_t
        best: cython.Py_ssize_t
        x: cython.double
        result: cython.double = 0.0
        for i in range(self.n):
            best = self.start[i]
            for c in range(self.start[i], self.start[i + 1]):
                x = self.worth[c]
                for e in range(self.entry[c], self.entry[c + 1]):
                    x += self.amount[e] * self.prices[self.row[e]]
                self.reduced[c] = x
                if x < self.reduced[best]:
                    best = c
            x = self.reduced[best]
            self.best[i] = best
            result += x
            for c in range(self.start[i], self.start[i + 1]):
                self.reduced[c] -= x
        for r in range(self.rows):
            result -= self.prices[r] * self.limits[r]
        return result

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look(self, reach: cython.double, change: cython.double) -> cython.void:
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        e: cython.Py_ssize_t
        r: cython.Py_ssize_t
        moved: cython.double
        total: cython.double
        for i in range(self.n):
            total = 0.0
            for e in range(self.entry[self.best[i]], self.entry[self.best[i] + 1]):
                r = self.row[e]
                self.best_taken[r] = self.amount[e]
                total += self.amount[e] * self.prices[r]
            for c in range(self.start[i], self.start[i + 1]):
                if self.is_always[c] or self.reduced[c] < reach or self.entry[c] == self.entry[c + 1]:
                    self.is_part[c] = 1
                    continue
                moved = total
                for e in range(self.entry[c], self.entry[c + 1]):
                    r = self.row[e]
                    moved += self.prices[r] * (fabs(self.amount[e] - self.best_taken[r]) - self.best_taken[r])
                self.is_part[c] = self.reduced[c] < change * (moved + self.tiny)
            for e in range(self.entry[self.best[i]], self.entry[self.best[i] + 1]):
                self.best_taken[self.row[e]] = 0.0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _list(self) -> cython.void:
        """List the columns that take part."""
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        at: cython.Py_ssize_t = 0
        for i in range(self.n):
            self.part_start[i] = at
            for c in range(self.start[i], self.start[i + 1]):
                if self.is_part[c]:
                    self.part[at] = c
                    at += 1
        self.part_start[self.n] = at

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _usual(self) -> cython.void:
        """Worth of a column for each unit that one takes of a limit: the scale of its price."""
        a: cython.Py_ssize_t
        e: cython.Py_ssize_t
        r: cython.Py_ssize_t
        count: cython.Py_ssize_t = self.part_start[self.n]
        for r in range(self.rows):
            self.usual[r] = 0.0
        for a in range(count):
            for e in range(self.entry[self.part[a]], self.entry[self.part[a] + 1]):
                self.usual[self.row[e]] += self.amount[e] / count
        for r in range(self.rows):
            self.usual[r] = self.scale / max(self.usual[r], self.tiny)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _soft(self, t: cython.double) -> cython.double:
        """Smoothed bound at the prices on trial, and the share of each column in its server."""
        i: cython.Py_ssize_t
        a: cython.Py_ssize_t
        c: cython.Py_ssize_t
        e: cython.Py_ssize_t
        r: cython.Py_ssize_t
        x: cython.double
        least: cython.double
        total: cython.double
        result: cython.double = 0.0
        for i in range(self.n):
            least = _INF
            for a in range(self.part_start[i], self.part_start[i + 1]):
                c = self.part[a]
                x = self.worth[c]
                for e in range(self.entry[c], self.entry[c + 1]):
                    x += self.amount[e] * self.trial[self.row[e]]
                self.share[a] = x
                least = min(least, x)
            total = 0.0
            for a in range(self.part_start[i], self.part_start[i + 1]):
                x = (self.share[a] - least) / t
                x = exp(-x) if x < _NOTHING else 0.0
                self.share[a] = x
                total += x
            for a in range(self.part_start[i], self.part_start[i + 1]):
                self.share[a] /= total
            result += least - t * log(total)
        for r in range(self.rows):
            result -= self.trial[r] * self.limits[r]
        return result

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _slope(self, most: cython.double[::1]) -> cython.bint:
        """Slope of the smoothed bound, and its curvature; whether prices are to be moved."""
        rows: cython.Py_ssize_t = self.rows
        i: cython.Py_ssize_t
        a: cython.Py_ssize_t
        c: cython.Py_ssize_t
        e: cython.Py_ssize_t
        f: cython.Py_ssize_t
        r: cython.Py_ssize_t
        q: cython.Py_ssize_t
        x: cython.double
        single: cython.bint
        is_off: cython.bint = False
        self.count = 0
        for r in range(rows):
            self.slope[r] = -self.limits[r]
            for q in range(rows):
                self.curve[r, q] = 0.0
        for i in range(self.n):
            single = False
            for r in range(rows):
                self.mean[r] = 0.0
            for a in range(self.part_start[i], self.part_start[i + 1]):
                x = self.share[a]
                if x == 0.0:
                    continue
                c = self.part[a]
                single |= x == 1.0
                for e in range(self.entry[c], self.entry[c + 1]):
                    self.mean[self.row[e]] += x * self.amount[e]
                    if not single:
                        for f in range(self.entry[c], e + 1):
                            self.curve[self.row[e], self.row[f]] += x * self.amount[e] * self.amount[f]
            for r in range(rows):
                if self.mean[r] != 0.0:
                    self.slope[r] += self.mean[r]
                    if not single:
                        for q in range(r + 1):
                            self.curve[r, q] -= self.mean[r] * self.mean[q]
        if not self.fits:
            self.fits = True
            for r in range(rows):
                if self.slope[r] > self.room * self.limits[r]:
                    self.fits = False
        for r in range(rows):
            if (self.duals[r] <= 0 and self.slope[r] < 0) or (self.duals[r] >= most[r] and self.slope[r] > 0):
                continue
            self.free[self.count] = r
            self.count += 1
            if fabs(self.slope[r]) > self.balanced * max(self.limits[r], 1.0):
                is_off = True
        return is_off

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _newton(self, most: cython.double[::1], t: cython.double, value: cython.double) -> cython.double:
        """Move the prices a step; the smoothed bound there, or -inf where no step raises it."""
        rows: cython.Py_ssize_t = self.rows
        count: cython.Py_ssize_t = self.count
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        r: cython.Py_ssize_t
        q: cython.Py_ssize_t
        largest: cython.double = 0.0
        length: cython.double = 1.0
        there: cython.double
        promised: cython.double
        for a in range(count):
            r = self.free[a]
            largest = max(largest, self.curve[r, r] / t)
        for a in range(count):
            r = self.free[a]
            for b in range(count):
                q = self.free[b]
                self.matrix[a, b] = (self.curve[r, q] if q <= r else self.curve[q, r]) / t
            # A row that no server hesitates about has no curvature: its price moves by `usual`.
            self.matrix[a, a] += fabs(self.slope[r]) / self.usual[r] + self.tiny * largest + self.tiny**9
            self.matrix[a, count] = self.slope[r]
        self._solve(count)
        for r in range(rows):
            self.step[r] = 0.0
        for a in range(count):
            self.step[self.free[a]] = self.matrix[a, count]
        while True:
            promised = 0.0
            for r in range(rows):
                self.trial[r] = min(max(self.duals[r] + length * self.step[r], 0.0), most[r])
                promised += self.slope[r] * (self.trial[r] - self.duals[r])
            there = self._soft(t)
            if there >= value + _ENOUGH * promised:
                break
            length *= _SHORTER
            if length < _SHORTEST:
                return -_INF
        for r in range(rows):
            self.duals[r] = self.trial[r]
        return there

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _solve(self, count: cython.Py_ssize_t) -> cython.void:
        """Solve the linear equations in `matrix`, with the right hand side beside it, in place.

        Gaussian elimination with partial pivoting.
        """
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        c: cython.Py_ssize_t
        pivot: cython.Py_ssize_t
        x: cython.double
        for a in range(count):
            pivot = a
            for b in range(a + 1, count):
                if fabs(self.matrix[b, a]) > fabs(self.matrix[pivot, a]):
                    pivot = b
            if pivot != a:
                for c in range(a, count + 1):
                    self.matrix[a, c], self.matrix[pivot, c] = self.matrix[pivot, c], self.matrix[a, c]
            for b in range(a + 1, count):
                x = self.matrix[b, a] / self.matrix[a, a]
                if x != 0.0:
                    for c in range(a + 1, count + 1):
                        self.matrix[b, c] -= x * self.matrix[a, c]
        for a in range(count - 1, -1, -1):
            x = self.matrix[a, count]
            for b in range(a + 1, count):
                x -= self.matrix[a, b] * self.matrix[b, count]
            self.matrix[a, count] = x / self.matrix[a, a]
