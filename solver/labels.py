# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Dynamic programming with bounds over servers that choose one column each: a restricted decision diagram.

One layer a server. A label is a choice for the servers so far: what it takes of every limit, and what it is
worth. Of labels that take the same only the best is kept. At any prices of the limits a label is worth at
least what it is worth so far, plus what the servers to come are worth alone at these prices, less the worth
of what is left (Marsten and Morin 1978, doi:10.1007/BF01588971); many sets of prices make that bound good
wherever labels are. Each layer keeps the labels of the lowest bounds, so many as its width. What is left out
has a bound too: the least of these is one on all plans (Bergman et al. 2016, doi:10.1287/ijoc.2015.0648).

Written in Cython's pure Python mode, and compiled when the package is built: a label is a few hundred
additions and comparisons. Types for callers are in `labels.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.string import memset

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

_INF = cython.declare(cython.double, float("inf"))

# Relative rounding error of sums: of bounds, and of what is taken of a limit.
_ROUNDING = cython.declare(cython.double, 1e-11)

# Labels that a layer has room for at least, and times its width, before those of the highest bounds go.
_LEAST_ROOM, _ROOM = 1_000, 8

# Prices are added for the best label of every so many layers, about so often in all, sought this many steps
# long. Where they do not lift its bound by this part of what is left to the cutoff, they are left out.
_EVERY = cython.declare(cython.Py_ssize_t, 4)
_UPDATES = cython.declare(cython.Py_ssize_t, 64)
_STEPS = cython.declare(cython.Py_ssize_t, 30)
_LIFT = cython.declare(cython.double, 0.02)

# Steps aim at this part of the way to the cutoff, and at half of it after so many without progress.
_AIM = cython.declare(cython.double, 0.05)
_PATIENCE = cython.declare(cython.Py_ssize_t, 4)

# Sets of prices whose bounds are looked at together.
_BLOCK = cython.declare(cython.Py_ssize_t, 8)

# Odd numbers without a pattern, to mix the bits of a key.
_MIX = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_MIX_AGAIN = cython.declare(cython.ulonglong, 0xBF58476D1CE4E5B9)


def _wider(table, size, axis):
    """Return the table with zeros appended along an axis."""
    more = [(0, 0), (0, 0)]
    more[axis] = (0, size - table.shape[axis])
    return np.pad(np.asarray(table), more)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _blocks(sets: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """So many sets or more, in whole blocks."""
    return (sets + _BLOCK - 1) // _BLOCK * _BLOCK


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _most(mine: cython.p_double, its: cython.p_double) -> cython.double:
    """Greatest sum of two numbers of a block at the same place."""
    a: cython.double = mine[0] + its[0]
    b: cython.double = mine[1] + its[1]
    c: cython.double = mine[2] + its[2]
    d: cython.double = mine[3] + its[3]
    e: cython.double = mine[4] + its[4]
    f: cython.double = mine[5] + its[5]
    g: cython.double = mine[6] + its[6]
    h: cython.double = mine[7] + its[7]
    a = a if a > e else e
    b = b if b > f else f
    c = c if c > g else g
    d = d if d > h else h
    a = a if a > c else c
    b = b if b > d else d
    return a if a > b else b


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _sort(
    order: cython.longlong[::1], by: cython.double[::1], low: cython.Py_ssize_t, high: cython.Py_ssize_t
) -> cython.void:
    """Sort a part of `order` by numbers, equal ones by place: in one pass where it is so already.

    Shell (1959), doi:10.1145/368370.368387, with gaps a third of each other, from
    Knuth (1998), The Art of Computer Programming 3, 5.2.1.
    """
    gap: cython.Py_ssize_t = 1
    i: cython.Py_ssize_t
    k: cython.Py_ssize_t
    one: cython.longlong
    for i in range(low + 1, high):
        if by[order[i]] < by[order[i - 1]]:
            break
    else:
        return
    while gap < (high - low) // 9:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(low + gap, high):
            one, k = order[i], i
            while k >= low + gap and (
                by[one] < by[order[k - gap]] or (by[one] == by[order[k - gap]] and one < order[k - gap])
            ):
                order[k] = order[k - gap]
                k -= gap
            order[k] = one
        gap //= 3


@cython.final
@cython.cclass
class Labels:
    """Columns of servers, in the order in which these are decided.

    Parameters
    ----------
    start : (n + 1,) int64
        Columns of server i are ``start[i]:start[i + 1]``, at least one.
    worth : (C,) float
    usage : (C, R) float
        What a column takes of each limit, >= 0.
    limits : (R,) float
    duals : (K, R) float
        Sets of prices of the limits, >= 0; K >= 1.
    expected : (n, R) float
        What each server may be expected to take.
    charge : (2, R) float
        Price of a unit that is expected to be taken beyond each limit, and of one expected to be left.
    """

    n: cython.Py_ssize_t
    rows: cython.Py_ssize_t
    sets: cython.Py_ssize_t
    start: cython.longlong[::1]
    # Columns of each server are by worth at the first prices; which they are.
    by_worth: object
    worth: cython.double[::1]
    limits: cython.double[::1]
    slack: cython.double[::1]
    duals: cython.double[:, ::1]
    excess_price: cython.double[::1]
    lack_price: cython.double[::1]
    # What each column takes: entries `entry[c]:entry[c + 1]`, in `row` and `amount`.
    entry: cython.longlong[::1]
    row: cython.longlong[::1]
    amount: cython.double[::1]
    # Of each column and set: worth at these prices, above the least of its server; of each server and set:
    # sum of the least from it on; of each server and limit: least that it and those after it take, and what
    # they are expected to take beyond the limit.
    value: cython.double[:, ::1]
    rest: cython.double[:, ::1]
    least: cython.double[:, ::1]
    beyond: cython.double[:, ::1]
    step_size: cython.double[::1]
    error: cython.double
    # Labels of one layer and the next in turns: bound of each set, what is taken, worth.
    bound: cython.double[:, :, ::1]
    taken: cython.double[:, :, ::1]
    spent: cython.double[:, ::1]
    # Of each layer's labels: the label before, and the column that its server took.
    before: cython.int[:, ::1]
    chosen: cython.int[:, ::1]
    # Labels on trial, in the order found, and a table of these by what they take.
    rating: cython.double[::1]
    lowest: cython.double[::1]
    parent: cython.longlong[::1]
    column: cython.longlong[::1]
    new_taken: cython.double[:, ::1]
    new_spent: cython.double[::1]
    order: cython.longlong[::1]
    table: cython.longlong[::1]
    count: cython.Py_ssize_t
    # The lowest ratings of these as a heap, the highest first; the bound from which on a label is left out,
    # and the least bound of those left out.
    heap: cython.double[::1]
    heap_count: cython.Py_ssize_t
    threshold: cython.double
    dropped: cython.double
    least_bound: cython.double
    # Prices on trial.
    trial: cython.double[::1]
    better: cython.double[::1]
    slope: cython.double[::1]

    def __init__(self, start, worth, usage, limits, duals, expected, charge):
        self.excess_price, self.lack_price = (np.ascontiguousarray(row, dtype=np.float64) for row in charge)
        self.start = np.ascontiguousarray(start, dtype=np.int64)
        self.limits = np.ascontiguousarray(limits, dtype=np.float64)
        self.duals = np.array(duals, dtype=np.float64)
        self.n, self.rows, self.sets = len(start) - 1, len(limits), len(duals)
        n, rows = self.n, self.rows
        self.by_worth, self.worth = np.arange(len(worth)), np.empty(len(worth))
        self.entry, taken = np.empty(len(worth) + 1, dtype=np.int64), np.count_nonzero(usage)
        self.row, self.amount = np.empty(taken, dtype=np.int64), np.empty(taken)
        self.least, self.beyond = np.zeros((n + 1, rows)), np.zeros((n + 1, rows))
        spread = np.zeros(rows)
        self._enter(
            np.ascontiguousarray(worth, dtype=np.float64),
            np.ascontiguousarray(usage, dtype=np.float64),
            worth + usage @ np.asarray(self.duals)[0],
            spread,
        )
        # Sums of what is taken are in another order than those that decide whether a plan keeps the limits.
        self.slack = np.asarray(self.limits) + _ROUNDING * np.abs(limits)
        # With room for the sets that the first search adds.
        width = _blocks(self.sets + n // self._every() + 1)
        self.duals = _wider(self.duals, width, 0)
        self.rest, self.value = np.zeros((n + 1, width)), np.empty((len(worth), width))
        self._price(np.ascontiguousarray(np.asarray(self.duals).T))
        np.asarray(self.beyond)[:n] = np.cumsum(np.asarray(expected)[::-1], axis=0)[::-1]
        np.asarray(self.beyond)[:] -= limits
        self.step_size = np.where(spread > 0, 1.0 / np.maximum(spread, 1e-300), 0.0)
        prices = float((np.asarray(self.duals) @ np.abs(limits)).max(initial=0.0))
        self.error = _ROUNDING * (float(np.abs(worth).max(initial=0.0)) * n + prices)
        self.trial, self.better, self.slope = np.zeros(rows), np.zeros(rows), np.zeros(rows)

    def search(self, cutoff: cython.double, width, share, left_s):
        """Find a plan worth less than `cutoff`, the best one if no layer has more labels than its width.

        The prices that it adds are kept for the next search.

        Parameters
        ----------
        cutoff : float
        width : int
            >= 1.
        share : (n,) float
            Part of the charge that counts in the rating of a label, beside its bound, after each server.
        left_s : callable
            Seconds that are left; asked at every layer.

        Returns
        -------
        plan : (n,) int64 or None
            The column of each server. It may be worth more than `cutoff` where no plan is worth less.
        bound : float
            No plan is worth less than the lesser of this and `cutoff`.
        """
        i: cython.Py_ssize_t
        k: cython.Py_ssize_t
        r: cython.Py_ssize_t
        labels: cython.Py_ssize_t = 1
        most: cython.Py_ssize_t = width
        every: cython.Py_ssize_t = self._every()
        part: cython.double
        n, room = self.n, max(_LEAST_ROOM, _ROOM * width)
        sets = _blocks(self.sets + n // every + 1)
        if sets > len(self.duals):
            self.duals, self.rest = _wider(self.duals, sets, 0), _wider(self.rest, sets, 1)
            self.value = _wider(self.value, sets, 1)
        self.rating, self.lowest, self.new_spent = np.empty(room), np.empty(room), np.empty(room)
        self.parent, self.column = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
        self.new_taken, self.order = np.empty((room, self.rows)), np.empty(room, dtype=np.int64)
        self.table = np.empty(1 << (4 * room - 1).bit_length(), dtype=np.int64)
        self.heap = np.empty(2 * width)
        self.bound, self.taken = np.empty((2, width, len(self.duals))), np.zeros((2, width, self.rows))
        self.spent = np.zeros((2, width))
        before, chosen = np.empty((n, width), dtype=np.int32), np.empty((n, width), dtype=np.int32)
        self.before, self.chosen = before, chosen
        self.dropped, self.least_bound = _INF, -_INF
        self.bound[0, 0, :] = -_INF
        for k in range(self.sets):
            self.bound[0, 0, k] = self.rest[0, k]
            for r in range(self.rows):
                self.bound[0, 0, k] -= self.duals[k, r] * self.limits[r]
        for i in range(n):
            if left_s() <= 0:
                return None, min(self.dropped, self.least_bound) - self.error
            part = share[i]
            with cython.nogil:
                self._expand(i, labels, cutoff, part)
                labels = self._gather(i, most)
                if labels > 0 and i % every == 0 and i + 1 < self.n:
                    self._add_prices(i + 1, labels, cutoff)
            if labels == 0:
                return None, self.dropped - self.error
        spent = np.asarray(self.spent)[n % 2, :labels]
        best = int(np.argmin(spent))
        plan, worth = np.empty(n, dtype=np.int64), float(spent[best])
        for i in range(n - 1, -1, -1):
            plan[i], best = chosen[i, best], before[i, best]
        return self.by_worth[plan], min(self.dropped, worth) - self.error

    @cython.cfunc
    def _enter(
        self,
        worth: cython.double[::1],
        usage: cython.double[:, ::1],
        first_worth: cython.double[::1],
        spread: cython.double[::1],
    ) -> cython.void:
        """Order the columns by worth at the first prices, and note what they take, and most and least of it.

        Where one column cannot be good enough at the first prices, those that follow cannot be either.
        """
        n: cython.Py_ssize_t = self.n
        rows: cython.Py_ssize_t = self.rows
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        r: cython.Py_ssize_t
        entries: cython.Py_ssize_t = 0
        most: cython.double[::1] = np.empty(rows)
        least: cython.double[::1] = np.empty(rows)
        order: cython.longlong[::1] = self.by_worth
        with cython.nogil:
            for i in range(n - 1, -1, -1):
                _sort(order, first_worth, self.start[i], self.start[i + 1])
                for r in range(rows):
                    most[r], least[r] = -_INF, _INF
                    for c in range(self.start[i], self.start[i + 1]):
                        most[r], least[r] = max(most[r], usage[c, r]), min(least[r], usage[c, r])
                    spread[r] += (most[r] - least[r]) ** 2
                    self.least[i, r] = self.least[i + 1, r] + least[r]
            for c in range(worth.shape[0]):
                self.worth[c] = worth[order[c]]
                self.entry[c] = entries
                for r in range(rows):
                    if usage[order[c], r] != 0:
                        self.row[entries], self.amount[entries] = r, usage[order[c], r]
                        entries += 1
            self.entry[worth.shape[0]] = entries

    @cython.cfunc
    @cython.inline
    def _every(self) -> cython.Py_ssize_t:
        """How many layers lie between those for whose best label prices are added."""
        return max(_EVERY, self.n // _UPDATES)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _price(self, duals: cython.double[:, ::1]) -> cython.void:
        """Worth of each column at these prices, (R, K), above the least of its server; the sums of these."""
        i: cython.Py_ssize_t
        c: cython.Py_ssize_t
        e: cython.Py_ssize_t
        k: cython.Py_ssize_t
        amount: cython.double
        its: cython.p_double
        price: cython.p_double
        least: cython.p_double
        sets: cython.Py_ssize_t = self.sets
        for i in range(self.n - 1, -1, -1):
            least = cython.address(self.rest[i, 0])
            for k in range(sets):
                least[k] = _INF
            for c in range(self.start[i], self.start[i + 1]):
                its = cython.address(self.value[c, 0])
                for k in range(sets):
                    its[k] = self.worth[c]
                for k in range(sets, self.value.shape[1]):
                    its[k] = 0.0
                for e in range(self.entry[c], self.entry[c + 1]):
                    amount = self.amount[e]
                    price = cython.address(duals[self.row[e], 0])
                    for k in range(sets):
                        its[k] += amount * price[k]
                for k in range(sets):
                    least[k] = its[k] if its[k] < least[k] else least[k]
            for c in range(self.start[i], self.start[i + 1]):
                its = cython.address(self.value[c, 0])
                for k in range(sets):
                    its[k] -= least[k]
            for k in range(sets):
                least[k] += self.rest[i + 1, k]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _expand(
        self, i: cython.Py_ssize_t, labels: cython.Py_ssize_t, cutoff: cython.double, share: cython.double
    ) -> cython.void:
        """Let each label take each column of server i."""
        now: cython.Py_ssize_t = i % 2
        sets: cython.Py_ssize_t = self.sets
        rows: cython.Py_ssize_t = self.rows
        s: cython.Py_ssize_t
        c: cython.Py_ssize_t
        k: cython.Py_ssize_t
        r: cython.Py_ssize_t
        e: cython.Py_ssize_t
        last: cython.Py_ssize_t = 0
        mine: cython.p_double
        its: cython.p_double
        x: cython.double
        y: cython.double
        charge: cython.double
        base: cython.double
        fits: cython.bint
        self.count, self.heap_count, self.threshold = 0, 0, cutoff
        self._clear()
        for s in range(labels):
            mine = cython.address(self.bound[now, s, 0])
            fits, base = True, 0.0
            for r in range(rows):
                fits &= self.taken[now, s, r] + self.least[i + 1, r] <= self.slack[r]
                base += self._charge(r, self.taken[now, s, r] + self.beyond[i + 1, r])
            if not fits:
                continue
            for c in range(self.start[i], self.start[i + 1]):
                its = cython.address(self.value[c, 0])
                if mine[0] + its[0] >= self.threshold:
                    # Those that follow are worth no less at these prices.
                    self.dropped = min(self.dropped, mine[0] + its[0])
                    break
                # The sets that excluded the last one often exclude the next.
                x = _most(mine + last, its + last)
                k = 0
                while x < self.threshold and k < sets:
                    y = _most(mine + k, its + k)
                    if y > x:
                        x = y
                        last = k
                    k += _BLOCK
                if x >= self.threshold:
                    self.dropped = min(self.dropped, x)
                    continue
                fits = True
                charge = base
                for e in range(self.entry[c], self.entry[c + 1]):
                    r = self.row[e]
                    y = self.taken[now, s, r]
                    if y + self.amount[e] + self.least[i + 1, r] > self.slack[r]:
                        fits = False
                        break
                    if share > 0:
                        y += self.beyond[i + 1, r]
                        charge += self._charge(r, y + self.amount[e]) - self._charge(r, y)
                if fits:
                    self._keep(now, s, c, x, x + share * charge)

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _charge(self, r: cython.Py_ssize_t, beyond: cython.double) -> cython.double:
        return beyond * self.excess_price[r] if beyond > 0 else -beyond * self.lack_price[r]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _keep(
        self,
        now: cython.Py_ssize_t,
        s: cython.Py_ssize_t,
        c: cython.Py_ssize_t,
        lowest: cython.double,
        rating: cython.double,
    ) -> cython.void:
        """Note a label, in the place of one that takes the same and is worth more."""
        rows: cython.Py_ssize_t = self.rows
        size: cython.Py_ssize_t = self.table.shape[0]
        at: cython.Py_ssize_t = self.count
        spent: cython.double = self.spent[now, s] + self.worth[c]
        place: cython.Py_ssize_t
        other: cython.Py_ssize_t
        r: cython.Py_ssize_t
        e: cython.Py_ssize_t
        is_same: cython.bint
        if self.heap_count == self.heap.shape[0] and rating >= self.heap[0]:
            self.dropped = min(self.dropped, lowest)
            return
        for r in range(rows):
            self.new_taken[at, r] = self.taken[now, s, r]
        for e in range(self.entry[c], self.entry[c + 1]):
            self.new_taken[at, self.row[e]] += self.amount[e]
        place = self._place(at)
        while self.table[place] >= 0:
            other = self.table[place]
            is_same = True
            for r in range(rows):
                if self.new_taken[other, r] != self.new_taken[at, r]:
                    is_same = False
                    break
            if is_same:
                if spent < self.new_spent[other]:
                    self.new_spent[other], self.lowest[other], self.rating[other] = spent, lowest, rating
                    self.parent[other], self.column[other] = s, c
                return
            place = (place + 1) & (size - 1)
        self.table[place] = at
        self.new_spent[at], self.lowest[at], self.rating[at] = spent, lowest, rating
        self.parent[at], self.column[at] = s, c
        self.count += 1
        self._lower(rating)
        if self.count == self.rating.shape[0]:
            self._compact()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _clear(self) -> cython.void:
        memset(cython.address(self.table[0]), 0xFF, self.table.shape[0] * cython.sizeof(cython.longlong))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _place(self, at: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Where the table begins to look for a label by what it takes."""
        bits: cython.p_ulonglong = cython.cast(cython.p_ulonglong, cython.address(self.new_taken[at, 0]))
        key: cython.ulonglong = 0
        r: cython.Py_ssize_t
        for r in range(self.rows):
            key = (key ^ bits[r]) * _MIX
            key ^= key >> 29
        key *= _MIX_AGAIN
        return cython.cast(cython.Py_ssize_t, (key ^ (key >> 32)) & (self.table.shape[0] - 1))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _lower(self, rating: cython.double) -> cython.void:
        """Note a rating among the lowest, which may lower the threshold."""
        k: cython.Py_ssize_t = self.heap_count
        size: cython.Py_ssize_t = self.heap.shape[0]
        above: cython.Py_ssize_t
        below: cython.Py_ssize_t
        if k < size:
            self.heap_count += 1
            while k > 0:
                above = (k - 1) // 2
                if self.heap[above] >= rating:
                    break
                self.heap[k] = self.heap[above]
                k = above
            self.heap[k] = rating
        elif rating < self.heap[0]:
            k, below = 0, 1
            while below < size:
                if below + 1 < size and self.heap[below + 1] > self.heap[below]:
                    below += 1
                if self.heap[below] <= rating:
                    break
                self.heap[k] = self.heap[below]
                k = below
                below = 2 * k + 1
            self.heap[k] = rating
        if self.heap_count == size:
            self.threshold = min(self.threshold, self.heap[0])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _compact(self) -> cython.void:
        """Leave out the labels of the highest ratings, most of them: those that are not in the heap."""
        at: cython.Py_ssize_t
        to: cython.Py_ssize_t = 0
        r: cython.Py_ssize_t
        place: cython.Py_ssize_t
        size: cython.Py_ssize_t = self.table.shape[0]
        self._clear()
        for at in range(self.count):
            if self.rating[at] >= self.heap[0]:
                self.dropped = min(self.dropped, self.lowest[at])
                continue
            self.rating[to], self.lowest[to] = self.rating[at], self.lowest[at]
            self.new_spent[to] = self.new_spent[at]
            self.parent[to], self.column[to] = self.parent[at], self.column[at]
            for r in range(self.rows):
                self.new_taken[to, r] = self.new_taken[at, r]
            place = self._place(to)
            while self.table[place] >= 0:
                place = (place + 1) & (size - 1)
            self.table[place] = to
            to += 1
        self.count = to

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _gather(self, i: cython.Py_ssize_t, width: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Make the labels of the next layer, the one of the lowest rating first; how many."""
        now: cython.Py_ssize_t = i % 2
        labels: cython.Py_ssize_t = min(self.count, width)
        at: cython.Py_ssize_t
        s: cython.Py_ssize_t
        k: cython.Py_ssize_t
        r: cython.Py_ssize_t
        first: cython.Py_ssize_t = 0
        for at in range(self.count):
            self.order[at] = at
        if self.count > width:
            self._part(width)
            for s in range(width, self.count):
                self.dropped = min(self.dropped, self.lowest[self.order[s]])
        self.least_bound = _INF
        for s in range(labels):
            if self.rating[self.order[s]] < self.rating[self.order[first]]:
                first = s
            self.least_bound = min(self.least_bound, self.lowest[self.order[s]])
        if labels:
            self.order[0], self.order[first] = self.order[first], self.order[0]
        for s in range(labels):
            at = self.order[s]
            self.before[i, s] = cython.cast(cython.int, self.parent[at])
            self.chosen[i, s] = cython.cast(cython.int, self.column[at])
            self.spent[1 - now, s] = self.new_spent[at]
            for r in range(self.rows):
                self.taken[1 - now, s, r] = self.new_taken[at, r]
            for k in range(_blocks(self.sets)):
                self.bound[1 - now, s, k] = (
                    self.bound[now, self.parent[at], k] + self.value[self.column[at], k]
                )
        return labels

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _part(self, width: cython.Py_ssize_t) -> cython.void:
        """Move the labels of the lowest ratings to the front (Hoare 1961, doi:10.1145/366622.366647)."""
        low: cython.Py_ssize_t = 0
        high: cython.Py_ssize_t = self.count - 1
        a: cython.Py_ssize_t
        b: cython.Py_ssize_t
        pivot: cython.double
        while low < high:
            pivot = self.rating[self.order[(low + high) // 2]]
            a, b = low, high
            while a <= b:
                while self.rating[self.order[a]] < pivot:
                    a += 1
                while self.rating[self.order[b]] > pivot:
                    b -= 1
                if a <= b:
                    self.order[a], self.order[b] = self.order[b], self.order[a]
                    a += 1
                    b -= 1
            if width <= b:
                high = b
            elif width >= a:
                low = a
            else:
                break

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _add_prices(
        self, i: cython.Py_ssize_t, labels: cython.Py_ssize_t, cutoff: cython.double
    ) -> cython.void:
        """Add prices that are good for the best label, with the servers from i on to come."""
        rows: cython.Py_ssize_t = self.rows
        new: cython.Py_ssize_t = self.sets
        best: cython.Py_ssize_t = 0
        j: cython.Py_ssize_t
        s: cython.Py_ssize_t
        c: cython.Py_ssize_t
        k: cython.Py_ssize_t
        r: cython.Py_ssize_t
        e: cython.Py_ssize_t
        x: cython.double
        least: cython.double
        lifted: cython.double
        now: cython.Py_ssize_t = i % 2
        for k in range(self.sets):
            if self.bound[now, 0, k] > self.bound[now, 0, best]:
                best = k
        lifted = self._ascend(i, best, cutoff)
        if lifted <= self.bound[now, 0, best] + _LIFT * (cutoff - self.bound[now, 0, best]):
            return
        for r in range(rows):
            self.duals[new, r] = self.better[r]
        self.rest[self.n, new] = 0.0
        for j in range(self.n - 1, -1, -1):
            least = _INF
            for c in range(self.start[j], self.start[j + 1]):
                x = self.worth[c]
                for e in range(self.entry[c], self.entry[c + 1]):
                    x += self.better[self.row[e]] * self.amount[e]
                self.value[c, new] = x
                least = min(least, x)
            for c in range(self.start[j], self.start[j + 1]):
                self.value[c, new] -= least
            self.rest[j, new] = self.rest[j + 1, new] + least
        for s in range(labels):
            x = self.spent[now, s] + self.rest[i, new]
            for r in range(rows):
                x += self.better[r] * (self.taken[now, s, r] - self.limits[r])
            self.bound[now, s, new] = x
            if new % _BLOCK == 0:
                for k in range(new + 1, new + _BLOCK):
                    self.bound[now, s, k] = -_INF
        self.sets += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ascend(self, i: cython.Py_ssize_t, first: cython.Py_ssize_t, cutoff: cython.double) -> cython.double:
        """Raise the bound of the first label by subgradient steps from a set; to what, at `better`."""
        rows: cython.Py_ssize_t = self.rows
        now: cython.Py_ssize_t = i % 2
        best: cython.double = self.bound[now, 0, first]
        aim: cython.double = _AIM * (cutoff - best)
        bound: cython.double
        x: cython.double
        least: cython.double
        norm: cython.double
        cheapest: cython.Py_ssize_t
        since: cython.Py_ssize_t = 0
        j: cython.Py_ssize_t
        c: cython.Py_ssize_t
        r: cython.Py_ssize_t
        e: cython.Py_ssize_t
        _turn: cython.Py_ssize_t
        for r in range(rows):
            self.trial[r] = self.better[r] = self.duals[first, r]
        for _turn in range(_STEPS):
            bound = self.spent[now, 0]
            for r in range(rows):
                self.slope[r] = self.taken[now, 0, r] - self.limits[r]
                bound += self.trial[r] * self.slope[r]
            for j in range(i, self.n):
                least, cheapest = _INF, 0
                for c in range(self.start[j], self.start[j + 1]):
                    x = self.worth[c]
                    for e in range(self.entry[c], self.entry[c + 1]):
                        x += self.trial[self.row[e]] * self.amount[e]
                    if x < least:
                        least, cheapest = x, c
                bound += least
                for e in range(self.entry[cheapest], self.entry[cheapest + 1]):
                    self.slope[self.row[e]] += self.amount[e]
            if bound > best:
                best, since = bound, 0
                self.better[:] = self.trial
                if best >= cutoff:
                    break
            else:
                since += 1
                if since == _PATIENCE:
                    aim, since = 0.5 * aim, 0
                    self.trial[:] = self.better
            norm = 0.0
            for r in range(rows):
                if self.trial[r] <= 0 and self.slope[r] < 0:
                    self.slope[r] = 0.0
                norm += self.slope[r] * self.slope[r] * self.step_size[r]
            if norm == 0.0:
                break
            for r in range(rows):
                x = self.trial[r] + (best + aim - bound) / norm * self.step_size[r] * self.slope[r]
                self.trial[r] = max(x, 0.0)
        return best
