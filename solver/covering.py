# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""All mixes near the best one of every server: a covering knapsack each, compiled.

The search that `solver.mixtures` does with array operations for all servers at once, for one server after the
other: breadth first over its options in order of price per share, with the fractional bound and that of a
table of what covering a part of the demand costs. A step is a few instructions on a few numbers, for which
array operations take many times as long to begin as to do. Types for callers are in `covering.pyi`.
"""

import cython
import numpy as np
from cython.cimports.libc.math import ceil, floor, isfinite
from cython.cimports.libc.stdlib import free, realloc

# What is not compiled is too slow to be of use.
IS_COMPILED = cython.compiled

_INF = cython.declare(cython.double, float("inf"))

# More than any number of replicas.
_MANY = cython.declare(cython.double, 4e18)
_NO_LIMIT = cython.declare(cython.longlong, np.iinfo(np.int64).max)

# Odd numbers without a pattern, to mix the bits of a key.
_MIX = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_MIX_AGAIN = cython.declare(cython.ulonglong, 0xBF58476D1CE4E5B9)

# Instead of a number of types: another partial plan is better.
_BETTERED = cython.declare(cython.longlong, -1)

# Steps of the demand in the table of what covering it costs, and what of a step is rounding.
_STEPS = cython.declare(cython.Py_ssize_t, 128)
_STEP_ERROR = cython.declare(cython.double, 1e-6)

# A plan in the making. `node` is the last step that took replicas, -1 for none.
_State = cython.struct(
    value=cython.double,
    residual=cython.double,
    count=cython.longlong,
    types=cython.longlong,
    tally=cython.longlong,
    node=cython.Py_ssize_t,
)

# A step that took replicas, and the one before it.
_Node = cython.struct(before=cython.Py_ssize_t, option=cython.longlong, number=cython.longlong)

# A complete plan.
_Leaf = cython.struct(
    worth=cython.double,
    unserved=cython.double,
    tally=cython.longlong,
    node=cython.Py_ssize_t,
    server=cython.Py_ssize_t,
    end=cython.Py_ssize_t,
)


@cython.final
@cython.cclass
class Covering:
    """One search after the other for the mixes of servers; the next one uses the memory of the last."""

    n: cython.Py_ssize_t
    options: cython.Py_ssize_t
    option: cython.longlong[:, ::1]
    all_price: cython.double[::1]
    all_share: cython.double[::1]
    all_bonus: cython.double[::1]
    all_most: cython.longlong[::1]
    all_tally: cython.longlong[::1]
    constant: cython.double[::1]
    unserved_price: cython.double[::1]
    unmet_price: cython.double[::1]
    largest_unserved: cython.double[::1]
    slack: cython.double[::1]
    fractional: cython.double[::1]
    best: cython.double[::1]
    minimum: cython.longlong[::1]
    maximum: cython.longlong[::1]
    most_types: cython.longlong[::1]
    loaded: cython.longlong[::1]
    may_stop_short: cython.longlong[::1]
    demand_tolerance: cython.double
    share_error: cython.double
    tie: cython.double
    bound_error: cython.double
    is_partial: cython.bint
    merges: cython.bint
    most_states: cython.Py_ssize_t
    most_plans: cython.Py_ssize_t
    dropped: cython.double[::1]
    # Options of one server that can be taken, in the order of the search; of all the options after each one:
    # the least price per share, the least price, and the sum of what they take back.
    there: cython.Py_ssize_t
    index: cython.longlong[::1]
    price: cython.double[::1]
    share: cython.double[::1]
    bonus: cython.double[::1]
    most: cython.longlong[::1]
    option_tally: cython.longlong[::1]
    ratio_after: cython.double[::1]
    each_after: cython.double[::1]
    bonus_after: cython.double[::1]
    # Least price of covering so many steps of the demand by the options after each one, or of leaving them.
    cover: cython.double[:, ::1]
    # Of one server, with the rooms there are: partial plans of this step and the next, steps, complete plans.
    states: cython.pointer(_State)
    state_count: cython.Py_ssize_t
    state_room: cython.Py_ssize_t
    following: cython.pointer(_State)
    following_count: cython.Py_ssize_t
    following_room: cython.Py_ssize_t
    nodes: cython.pointer(_Node)
    node_count: cython.Py_ssize_t
    node_room: cython.Py_ssize_t
    leaves: cython.pointer(_Leaf)
    leaf_count: cython.Py_ssize_t
    leaf_room: cython.Py_ssize_t
    # Worths of the best plans as a heap, the greatest first.
    wanted: cython.double[::1]
    wanted_count: cython.Py_ssize_t
    # The last partial plan at each place of a hash table, and the one before each.
    table: cython.pointer(cython.Py_ssize_t)
    table_size: cython.Py_ssize_t
    table_room: cython.Py_ssize_t
    chain: cython.pointer(cython.Py_ssize_t)
    chain_room: cython.Py_ssize_t
    # Of all servers: complete plans, and the steps of these one after the other.
    found: cython.pointer(_Leaf)
    found_count: cython.Py_ssize_t
    found_room: cython.Py_ssize_t
    steps: cython.pointer(_Node)
    step_count: cython.Py_ssize_t
    step_room: cython.Py_ssize_t

    def __dealloc__(self):
        free(self.states)
        free(self.following)
        free(self.nodes)
        free(self.leaves)
        free(self.table)
        free(self.chain)
        free(self.found)
        free(self.steps)

    def size(self):
        """Memory held, about; bytes."""
        states: cython.Py_ssize_t = self.state_room + self.following_room
        leaves: cython.Py_ssize_t = self.leaf_room + self.found_room
        nodes: cython.Py_ssize_t = self.node_room + self.step_room
        numbers: cython.Py_ssize_t = self.table_room + self.chain_room + self.n * (self.options + 14)
        return (
            states * cython.sizeof(_State)
            + leaves * cython.sizeof(_Leaf)
            + nodes * cython.sizeof(_Node)
            + numbers * cython.sizeof(cython.longlong)
        )

    def search(
        self,
        option,
        by_option,
        numbers,
        by_server,
        limits,
        rounding,
        is_partial,
        merges,
        most_states,
        most_plans,
        left_s,
    ):
        """Find every plan worth at most its server's slack more than the best one.

        Parameters
        ----------
        option : (n, K) int64
            Options of each server, below 0 for none.
        by_option : sequence of (J,) float
            Of each option: price and share of a replica, and what its first one takes back of a fixed charge.
        numbers : sequence of (J,) int64
            Of each option: most replicas, and its tally.
        by_server : sequence of (n,) float
            Fixed charge; price of the demand unserved, and of any share unserved; largest unserved share;
            slack.
        limits : sequence of (n,) int64
            Least and most replicas, most types; 1 where there is load; 1 where service may be partial.
        rounding : tuple of float
            Share of the demand that may be missing; rounding errors of shares, of values, and of a bound.
        is_partial, merges : bool
            Whether a plan may leave demand unserved; whether of partial plans with the same tally only those
            are wanted that no other one betters.
        most_states : int
            Partial plans of a server that one step keeps, about.
        most_plans : int
            Plans of a server that are wanted: the best ones.
        left_s : callable
            Seconds that are left; asked at every server. Those it does not come to have only their bound.

        Returns
        -------
        best, dropped : (n,) float
            Worth of the best plan, and of the least that was left out for want of room or time; inf for none.
        found : tuple
            Of each plan, by server: server, worth, unserved share, tally. Where the steps of each plan start,
            and where the last ones end. Of each step: the option it took, and how many replicas, as float.

        Raises
        ------
        MemoryError
        """
        s: cython.Py_ssize_t
        k: cython.Py_ssize_t
        failed: cython.bint
        self.found_count = self.step_count = 0
        self.option = np.ascontiguousarray(option, dtype=np.int64)
        self.all_price, self.all_share, self.all_bonus = (
            np.ascontiguousarray(column, dtype=np.float64) for column in by_option
        )
        self.all_most, self.all_tally = (np.ascontiguousarray(column, dtype=np.int64) for column in numbers)
        self.constant, self.unserved_price, self.unmet_price, self.largest_unserved, self.slack = (
            np.ascontiguousarray(column, dtype=np.float64) for column in by_server
        )
        self.minimum, self.maximum, self.most_types, self.loaded, self.may_stop_short = (
            np.ascontiguousarray(column, dtype=np.int64) for column in limits
        )
        self.demand_tolerance, self.share_error, self.tie, self.bound_error = rounding
        self.is_partial, self.merges, self.most_states = is_partial, merges, most_states
        self.most_plans = most_plans
        self.wanted = np.empty(most_plans)
        self.n, self.options = option.shape
        self.best, self.dropped = np.full(self.n, np.inf), np.full(self.n, np.inf)
        self.fractional = np.full(self.n, np.inf)
        width = self.options
        self.index, self.price, self.share = np.zeros(width, dtype=np.int64), np.zeros(width), np.zeros(width)
        self.bonus, self.most = np.zeros(width), np.zeros(width, dtype=np.int64)
        self.option_tally, self.ratio_after = np.zeros(width, dtype=np.int64), np.zeros(width)
        self.each_after, self.bonus_after = np.zeros(width), np.zeros(width)
        self.cover = np.zeros((width, _STEPS + 1))
        for s in range(self.n):
            with cython.nogil:
                self._begin(s)
            if left_s() <= 0:
                self.dropped[s] = self.fractional[s]
                continue
            with cython.nogil:
                failed = not self._server(s)
            if failed:
                raise MemoryError
        server: cython.longlong[::1] = np.empty(self.found_count, dtype=np.int64)
        worth: cython.double[::1] = np.empty(self.found_count)
        unserved: cython.double[::1] = np.empty(self.found_count)
        tally: cython.longlong[::1] = np.empty(self.found_count, dtype=np.int64)
        start: cython.longlong[::1] = np.zeros(self.found_count + 1, dtype=np.int64)
        taken: cython.longlong[::1] = np.empty(self.step_count, dtype=np.int64)
        number: cython.double[::1] = np.empty(self.step_count)
        for k in range(self.found_count):
            server[k], worth[k], unserved[k] = (
                self.found[k].server,
                self.found[k].worth,
                self.found[k].unserved,
            )
            tally[k], start[k + 1] = self.found[k].tally, self.found[k].end
        for k in range(self.step_count):
            taken[k], number[k] = self.steps[k].option, self.steps[k].number
        found = tuple(map(np.asarray, (server, worth, unserved, tally, start, taken, number)))
        return np.asarray(self.best), np.asarray(self.dropped), found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _threshold(self, s: cython.Py_ssize_t) -> cython.double:
        """Worth above which a plan of the server is of no interest."""
        best: cython.double = self.best[s]
        size: cython.double = abs(best) if isfinite(best) else 0.0
        if self.slack[s] > 0:
            best += max(self.slack[s], self.tie * size)
            return best if self.wanted_count < self.most_plans else min(best, self.wanted[0])
        return best - self.bound_error * size

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin(self, s: cython.Py_ssize_t) -> cython.void:
        """Sort the options of a server, and find its fractional bound and some plan."""
        j: cython.longlong
        k: cython.Py_ssize_t
        at: cython.Py_ssize_t
        ratio: cython.double
        total: cython.double = 0.0
        least: cython.double = _INF
        self.there = 0
        for k in range(self.options):
            j = self.option[s, k]
            if j < 0 or self.all_most[j] <= 0:
                continue
            # Options that take back a fixed charge first: after them the bound has no discount left in it.
            ratio = self.all_price[j] / self.all_share[j]
            at = self.there
            while at > 0 and (
                ratio < self.price[at - 1] / self.share[at - 1]
                if (self.all_bonus[j] > 0) == (self.bonus[at - 1] > 0)
                else self.all_bonus[j] > 0
            ):
                self.index[at] = self.index[at - 1]
                self.price[at], self.share[at] = self.price[at - 1], self.share[at - 1]
                self.bonus[at] = self.bonus[at - 1]
                at -= 1
            self.index[at] = j
            self.price[at], self.share[at] = self.all_price[j], self.all_share[j]
            self.bonus[at] = self.all_bonus[j]
            self.there += 1
            total += self.all_bonus[j]
            least = min(least, ratio)
        if self.largest_unserved[s] > 0:
            least = min(least, self.unserved_price[s])
        self.fractional[s] = self.constant[s] - total
        if self.loaded[s]:
            self.fractional[s] += least * (1.0 - self.demand_tolerance)
        ratio, least, total = _INF, _INF, 0.0
        for at in range(self.there - 1, -1, -1):
            j = self.index[at]
            self.most[at], self.option_tally[at] = self.all_most[j], self.all_tally[j]
            self.ratio_after[at], self.each_after[at], self.bonus_after[at] = ratio, least, total
            ratio = min(ratio, self.price[at] / self.share[at])
            least = min(least, self.price[at])
            total += self.bonus[at]
        self.best[s] = self._simple_plan(s)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _simple_plan(self, s: cython.Py_ssize_t) -> cython.double:
        """Worth of the best of some plans of two options; inf where none is allowed.

        Almost as many of one of the first three as serve the demand, and the rest on one other option.
        """
        demand: cython.double = 1.0 - self.demand_tolerance if self.loaded[s] else 0.0
        full: cython.longlong
        main: cython.longlong
        number: cython.longlong
        fewer: cython.longlong
        first: cython.Py_ssize_t
        other: cython.Py_ssize_t
        rest: cython.double
        needed: cython.double
        worth: cython.double
        base: cython.double
        best: cython.double = _INF
        for first in range(min(3, self.there)):
            full = cython.cast(cython.longlong, min(floor(demand / self.share[first]), _MANY))
            for fewer in range(3):
                main = min(max(full - fewer, 0), self.most[first])
                rest = max(demand - main * self.share[first] - self.share_error, 0.0)
                base = self.constant[s] + main * self.price[first]
                if main > 0:
                    base -= self.bonus[first]
                for other in range(self.there):
                    needed = max(ceil(rest / self.share[other]), 1.0 * (self.minimum[s] - main))
                    if other == first or needed > self.most[other] or needed + main > self.maximum[s]:
                        continue
                    number = cython.cast(cython.longlong, needed)
                    if (main > 0) + (number > 0) > self.most_types[s]:
                        continue
                    worth = base + number * self.price[other]
                    if number > 0:
                        worth -= self.bonus[other]
                    best = min(best, worth)
        for other in range(self.there):
            needed = ceil(demand / self.share[other] - self.share_error)
            needed = max(needed, 1.0 * self.minimum[s])
            if 0 < needed <= min(self.most[other], self.maximum[s]):
                worth = self.constant[s] + needed * self.price[other] - self.bonus[other]
                best = min(best, worth)
        return best

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _server(self, s: cython.Py_ssize_t) -> cython.bint:
        """Search one server; False without memory."""
        position: cython.Py_ssize_t
        k: cython.Py_ssize_t
        node: cython.Py_ssize_t
        threshold: cython.double
        demand: cython.double = 1.0 if self.loaded[s] else 0.0
        root: _State = _State(self.constant[s], demand, 0, 0, 0, -1)
        self.node_count = self.leaf_count = self.following_count = self.wanted_count = 0
        if not self._has_room(1):
            return False
        if self.largest_unserved[s] >= 1.0:
            self.leaves[0].worth = self.constant[s] + self.unserved_price[s] + self.unmet_price[s]
            self.leaves[0].unserved, self.leaves[0].tally, self.leaves[0].node = 1.0, 0, -1
            self.leaf_count = 1
            self.best[s] = min(self.best[s], self.leaves[0].worth)
            self._want(self.leaves[0].worth)
        if self.slack[s] > 0 or self.best[s] > self.fractional[s] * (1.0 + self.tie):
            # Otherwise only the bound is wanted, and that is reached.
            self.following[0] = root
            self.following_count = 1
            if self.loaded[s] and self.there > 0:
                self._tabulate(s)
        for position in range(self.there):
            if self.following_count == 0:
                break
            self.states, self.following = self.following, self.states
            self.state_room, self.following_room = self.following_room, self.state_room
            self.state_count, self.following_count = self.following_count, 0
            if not self._expand(s, position):
                return False
        threshold = self._threshold(s)
        for k in range(self.leaf_count):
            if self.leaves[k].worth > threshold:
                continue
            if not self._has_room_for_found():
                return False
            node = self.leaves[k].node
            while node >= 0:
                self.steps[self.step_count] = self.nodes[node]
                self.step_count += 1
                node = self.nodes[node].before
            self.found[self.found_count] = self.leaves[k]
            self.found[self.found_count].server = s
            self.found[self.found_count].end = self.step_count
            self.found_count += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tabulate(self, s: cython.Py_ssize_t) -> cython.void:
        """Fill `cover`: a covering knapsack in which a replica covers whole steps, rounded up.

        Entry k is the price of covering all that is more than k - 1 steps, and at most k.
        """
        position: cython.Py_ssize_t
        k: cython.Py_ssize_t
        steps: cython.Py_ssize_t
        price: cython.double
        last: cython.Py_ssize_t = self.there - 1
        for k in range(1, _STEPS + 1):
            self.cover[last, k] = (
                self.unserved_price[s] * (k - 1) / _STEPS if self.may_stop_short[s] else _INF
            )
        for position in range(last, 0, -1):
            price = self.price[position]
            steps = cython.cast(cython.Py_ssize_t, min(ceil(self.share[position] * _STEPS), 1.0 * _STEPS))
            for k in range(1, _STEPS + 1):
                self.cover[position - 1, k] = min(
                    self.cover[position, k],
                    price + (self.cover[position - 1, k - steps] if k > steps else 0.0),
                )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _expand(self, s: cython.Py_ssize_t, position: cython.Py_ssize_t) -> cython.bint:
        """Give every partial plan every sensible number of replicas of an option; False without memory."""
        price: cython.double = self.price[position]
        share: cython.double = self.share[position]
        bonus: cython.double = self.bonus[position]
        bonus_after: cython.double = self.bonus_after[position]
        each_after: cython.double = self.each_after[position]
        least: cython.longlong = self.minimum[s]
        most: cython.longlong = self.most[position]
        maximum: cython.longlong = self.maximum[s]
        most_types: cython.longlong = self.most_types[s]
        short: cython.bint = self.may_stop_short[s] != 0
        stop_price: cython.double = self.unserved_price[s] if short else _INF
        # Least price of the whole demand served by the options after this one, or left unserved.
        after: cython.double = min(self.ratio_after[position], stop_price)
        is_open: cython.bint = isfinite(after)
        width: cython.longlong = max(self.most_states // self.state_count, 1)
        i: cython.Py_ssize_t
        number: cython.longlong
        low: cython.longlong
        high: cython.longlong
        cover: cython.longlong
        missing: cython.longlong
        left: cython.double
        slope: cython.double
        ground: cython.double
        spare: cython.double
        step: cython.double
        threshold: cython.double
        unserved: cython.double
        worth: cython.double
        bound: cython.double
        for_count: cython.double
        steps: cython.Py_ssize_t
        tally: cython.longlong = self.option_tally[position]
        state: _State
        child: _State
        value: cython.double
        residual: cython.double
        count: cython.longlong
        node: cython.Py_ssize_t
        may_follow: cython.bint
        if self.merges and not self._has_table(2 * self.state_count):
            return False
        threshold = self._threshold(s)
        for i in range(self.state_count):
            state = self.states[i]
            # The least and the most replicas worth trying: until the demand is met a child is worth at least
            # ground - slope x replicas.
            left = max(state.residual - self.demand_tolerance, 0.0)
            cover = cython.cast(cython.longlong, min(ceil(left / share - self.share_error), _MANY))
            cover = max(cover, least - state.count)
            high = 0 if state.types >= most_types else min(min(cover, most), maximum - state.count)
            low = 0
            slope, ground = -price, state.value - (bonus + bonus_after)
            if is_open:
                slope += after * share
                ground += after * left
            spare = threshold - ground
            if slope > 0 and spare < 0:
                step = floor(-spare / slope)
                if isfinite(step):
                    low = cython.cast(cython.longlong, min(step, high + 1.0))
            if not is_open and not short and high == cover:
                # Nothing comes after this option that could serve the rest.
                low = max(high, 0)
            if slope < 0 and isfinite(spare):
                high = cython.cast(cython.longlong, min(max(floor(spare / -slope) + 1.0, -1.0), 1.0 * high))
            if high - low + 1 > width:
                # The bound falls, or rises, all the way: what is cut off is worth at least its nearest end.
                if slope > 0:
                    self.dropped[s] = min(self.dropped[s], ground - slope * (high - width))
                    low = high - width + 1
                else:
                    self.dropped[s] = min(self.dropped[s], ground - slope * (low + width))
                    high = low + width - 1
            if high < low:
                continue
            if not self._has_room(high - low + 1):
                return False
            for number in range(low, high + 1):
                residual = state.residual - number * share
                if residual <= self.demand_tolerance + self.share_error:
                    residual = 0.0
                value = state.value + number * price
                count = state.count + number
                may_follow = state.types < most_types
                if number > 0:
                    value -= bonus
                    may_follow = state.types + 1 < most_types
                unserved = residual
                if count < least:
                    unserved = max(unserved, 1.0 - cython.cast(cython.double, count) / least)
                node = state.node
                if number > 0 and (
                    unserved <= self.largest_unserved[s] + self.demand_tolerance
                    if self.is_partial
                    else unserved == 0
                ):
                    worth = value + self.unserved_price[s] * unserved
                    if unserved > 0:
                        worth += self.unmet_price[s]
                    if worth < self.best[s]:
                        self.best[s] = worth
                        threshold = self._threshold(s)
                    if worth < _INF and worth <= threshold:
                        node = self._step(state.node, self.index[position], number)
                        self.leaves[self.leaf_count].worth = worth
                        self.leaves[self.leaf_count].unserved = unserved
                        self.leaves[self.leaf_count].tally = state.tally + number * tally
                        self.leaves[self.leaf_count].node = node
                        self.leaf_count += 1
                        if not self.merges:
                            self._want(worth)
                            threshold = self._threshold(s)
                if unserved == 0 or not may_follow or count >= maximum:
                    continue
                bound = 0.0
                left = residual - self.demand_tolerance
                if left > 0:
                    step = left * _STEPS - _STEP_ERROR
                    steps = cython.cast(cython.Py_ssize_t, step)
                    steps += steps < step
                    bound = max(after * left, self.cover[position, steps])
                if count < least:
                    missing = least - count
                    for_count = min(each_after * missing, stop_price * missing / max(least, 1))
                    bound = max(bound, for_count)
                bound += value - bonus_after
                if not (bound < _INF and bound <= threshold):
                    continue
                if number > 0 and node == state.node:
                    node = self._step(state.node, self.index[position], number)
                child = _State(value, residual, count, state.types, state.tally + number * tally, node)
                if number > 0:
                    child.types += 1
                if not self.merges:
                    self.following[self.following_count] = child
                    self.following_count += 1
                elif not self._merge(s, cython.address(child)):
                    return False
        if self.merges:
            self._drop_bettered()
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _step(
        self, before: cython.Py_ssize_t, option: cython.longlong, number: cython.longlong
    ) -> cython.Py_ssize_t:
        """Note that a plan takes replicas of an option; there is room."""
        self.nodes[self.node_count].before = before
        self.nodes[self.node_count].option = option
        self.nodes[self.node_count].number = number
        self.node_count += 1
        return self.node_count - 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _want(self, worth: cython.double) -> cython.void:
        """Note the worth of a plan among the best ones."""
        k: cython.Py_ssize_t = self.wanted_count
        above: cython.Py_ssize_t
        below: cython.Py_ssize_t
        if k < self.most_plans:
            self.wanted_count += 1
            while k > 0:
                above = (k - 1) // 2
                if self.wanted[above] >= worth:
                    break
                self.wanted[k] = self.wanted[above]
                k = above
            self.wanted[k] = worth
            return
        if worth >= self.wanted[0]:
            return
        k = 0
        below = 1
        while below < self.most_plans:
            if below + 1 < self.most_plans and self.wanted[below + 1] > self.wanted[below]:
                below += 1
            if self.wanted[below] <= worth:
                break
            self.wanted[k] = self.wanted[below]
            k = below
            below = 2 * k + 1
        self.wanted[k] = worth

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _place(self, s: cython.Py_ssize_t, state: cython.pointer(_State)) -> cython.Py_ssize_t:
        """Where the table has partial plans of as many types and replicas as this one, and of its tally."""
        key: cython.ulonglong = cython.cast(cython.ulonglong, state.tally)
        key = key * _MIX + cython.cast(cython.ulonglong, self._counted(s, state))
        key = key * _MIX + cython.cast(cython.ulonglong, self._typed(s, state))
        key ^= key >> 29
        key *= _MIX_AGAIN
        return cython.cast(cython.Py_ssize_t, (key ^ (key >> 32)) & (self.table_size - 1))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _counted(self, s: cython.Py_ssize_t, state: cython.pointer(_State)) -> cython.longlong:
        """Replicas as far as they count: beyond the minimum, and where there is no maximum, they do not."""
        return state.count if self.maximum[s] < _NO_LIMIT else min(state.count, self.minimum[s])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _typed(self, s: cython.Py_ssize_t, state: cython.pointer(_State)) -> cython.longlong:
        """Types as far as they count: where there is a limit of them."""
        return state.types if self.most_types[s] < self.options else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _merge(self, s: cython.Py_ssize_t, state: cython.pointer(_State)) -> cython.bint:
        """Follow a partial plan if none like it is worth no more and serves as much; False without memory."""
        place: cython.Py_ssize_t = self._place(s, state)
        k: cython.Py_ssize_t = self.table[place]
        before: cython.Py_ssize_t = -1
        other: cython.pointer(_State)
        while k >= 0:
            other = cython.address(self.following[k])
            if (
                other.tally == state.tally
                and self._counted(s, other) == self._counted(s, state)
                and self._typed(s, other) == self._typed(s, state)
            ):
                if other.value <= state.value and other.residual <= state.residual:
                    return True
                if state.value <= other.value and state.residual <= other.residual:
                    other.types = _BETTERED
                    if before < 0:
                        self.table[place] = self.chain[k]
                    else:
                        self.chain[before] = self.chain[k]
                    k = self.chain[k]
                    continue
            before = k
            k = self.chain[k]
        k = self.following_count
        self.following[k] = state[0]
        self.chain[k] = self.table[place]
        self.table[place] = k
        self.following_count += 1
        if self.following_count > 2 * self.table_size:
            if not self._has_table(4 * self.following_count):
                return False
            self._drop_bettered()
            for k in range(self.following_count):
                place = self._place(s, cython.address(self.following[k]))
                self.chain[k] = self.table[place]
                self.table[place] = k
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _drop_bettered(self) -> cython.void:
        k: cython.Py_ssize_t
        kept: cython.Py_ssize_t = 0
        for k in range(self.following_count):
            if self.following[k].types != _BETTERED:
                self.following[kept] = self.following[k]
                kept += 1
        self.following_count = kept

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_table(self, size: cython.Py_ssize_t) -> cython.bint:
        """Empty the table, of at least this size; False without memory."""
        moved: cython.p_void
        k: cython.Py_ssize_t
        self.table_size = 64
        while self.table_size < size:
            self.table_size *= 2
        if self.table_size > self.table_room:
            moved = realloc(self.table, self.table_size * cython.sizeof(cython.Py_ssize_t))
            if moved == cython.NULL:
                return False
            self.table = cython.cast(cython.pointer(cython.Py_ssize_t), moved)
            self.table_room = self.table_size
        for k in range(self.table_size):
            self.table[k] = -1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_room(self, more: cython.Py_ssize_t) -> cython.bint:
        """Make room for so many more partial plans, steps and complete plans; False without memory."""
        room: cython.Py_ssize_t
        moved: cython.p_void
        if self.following_count + more > self.following_room:
            room = 2 * (self.following_count + more)
            moved = realloc(self.following, room * cython.sizeof(_State))
            if moved == cython.NULL:
                return False
            self.following = cython.cast(cython.pointer(_State), moved)
            self.following_room = room
        if self.merges and self.following_room > self.chain_room:
            moved = realloc(self.chain, self.following_room * cython.sizeof(cython.Py_ssize_t))
            if moved == cython.NULL:
                return False
            self.chain = cython.cast(cython.pointer(cython.Py_ssize_t), moved)
            self.chain_room = self.following_room
        if self.node_count + more > self.node_room:
            room = 2 * (self.node_count + more)
            moved = realloc(self.nodes, room * cython.sizeof(_Node))
            if moved == cython.NULL:
                return False
            self.nodes = cython.cast(cython.pointer(_Node), moved)
            self.node_room = room
        if self.leaf_count + more > self.leaf_room:
            room = 2 * (self.leaf_count + more)
            moved = realloc(self.leaves, room * cython.sizeof(_Leaf))
            if moved == cython.NULL:
                return False
            self.leaves = cython.cast(cython.pointer(_Leaf), moved)
            self.leaf_room = room
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_room_for_found(self) -> cython.bint:
        """Make room for one more complete plan and its steps; False without memory."""
        room: cython.Py_ssize_t
        moved: cython.p_void
        if self.found_count == self.found_room:
            room = 2 * self.found_count + 64
            moved = realloc(self.found, room * cython.sizeof(_Leaf))
            if moved == cython.NULL:
                return False
            self.found = cython.cast(cython.pointer(_Leaf), moved)
            self.found_room = room
        if self.step_count + self.options > self.step_room:
            room = 2 * self.step_count + self.options + 64
            moved = realloc(self.steps, room * cython.sizeof(_Node))
            if moved == cython.NULL:
                return False
            self.steps = cython.cast(cython.pointer(_Node), moved)
            self.step_room = room
        return True
