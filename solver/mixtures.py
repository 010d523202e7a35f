"""The mixes of every server that are near its best one at given prices: an integer covering knapsack each.

The search goes over the options of a server in order of price per share served, breadth first, with the
fractional bound. It is compiled (`solver.covering`), server by server; where that is not there, array
operations do the same for all servers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from solver.pricing import Columns
from solver.problem import DEMAND_TOLERANCE, NO_LIMIT
from solver.rows import Rows, firsts

try:
    from solver.covering import IS_COMPILED, Covering
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.pricing import Prices, Servers

# An odd number without a pattern: keys of different kinds of plans do not meet.
_ODD = np.int64(0x1E3779B97F4A7C15)

# Searches that are done, with their memory, to use again: a search of a few servers would take as long to ask
# for it as to use it. What holds more, in bytes, is let go.
_SPARE: list[Covering] = []
_MOST_SPARE = 8_000_000

# A residual share below this is rounding: the demand is met.
_ROUNDING = 1e-12

# Values that differ by less, relatively, are ties: the search neither prunes nor prefers by it.
_TIE = 1e-9

# How far below its best column the bound of a server may stay, relatively, where only the bound is wanted.
_BOUND_ERROR = 1e-7

# Partial plans that one step of the search keeps of each server: this many over the number of servers, within
# these ends. Bounds memory (some 100 MB). What is dropped beyond it still counts in the lower bounds.
_MOST_STATES, _MOST_STATES_EACH = 1_000_000, (100, 3_000)


@dataclass(frozen=True)
class Priced:
    """What `mixtures` found.

    Attributes
    ----------
    columns : Columns
        All that are worth at most `reach` of their server, in no order.
    lower : (S,) float
        No column of the server is worth less; inf where a server was not searched.
    reach : (S,) float
        Every column of the server worth less than this is in `columns`; inf as for `lower`.
    """

    columns: Columns
    lower: FloatArray
    reach: FloatArray


@dataclass
class _States:
    """Partial plans of the search, one a row."""

    server: IntArray
    value: FloatArray
    residual: FloatArray
    count: IntArray
    types: IntArray
    tally: IntArray
    replicas: IntArray  # (n, K) by position of the option in its server's search order

    def take(self, which: IntArray | BoolArray) -> _States:
        return self.with_replicas(which, self.replicas[which])

    def with_replicas(self, which: IntArray | BoolArray, replicas: IntArray) -> _States:
        """Return these, with other replicas."""
        return _States(
            self.server[which],
            self.value[which],
            self.residual[which],
            self.count[which],
            self.types[which],
            self.tally[which],
            replicas,
        )


def mixtures(
    servers: Servers,
    which: IntArray,
    prices: Prices,
    largest_unserved: FloatArray,
    slack: FloatArray,
    left_s: Callable[[], float],
    *,
    most_columns: int = 1_000,
    tally: IntArray | None = None,
    most_states: int | None = None,
) -> Priced:
    """Find, for each server in `which`, all mixes worth at most `slack` more than its best one.

    Parameters
    ----------
    servers : Servers
    which : (n,) int
        Servers to search, each with an option.
    prices : Prices
    largest_unserved : (S,) float
        Largest unserved share a column may have; 0 = full service only.
    slack : (S,) float
        >= 0. All 0 asks for the bounds only.
    left_s : callable
        Seconds that are left; at 0 the search ends with what it has, and weaker bounds.
    most_columns : int
        Most columns of one server; the best ones.
    tally : (J,) int or None
        Of the mixes of a server whose replicas have the same sum of these, only the best of those that serve
        everything is wanted. Not where service may be partial.
    most_states : int or None
        Partial plans of a server that one step keeps, about; None for as many as memory has room for.
    """
    kind = _Compiled if IS_COMPILED else _Stepwise
    search = kind(servers, which, prices, largest_unserved, slack, tally)
    if most_states is not None:
        search.most_states = most_states
    found = search.run(left_s, most_columns)
    # Ties can be more than the search keeps. The bounds of these servers are worth a search of their own,
    # without slack and with more room for each.
    cut = np.flatnonzero(search.dropped < search.best)
    if not cut.size or len(cut) == len(which):
        return found
    again = kind(servers, which[cut], prices, largest_unserved, np.zeros(servers.count)).run(left_s, 1)
    found.lower[which[cut]] = np.maximum(found.lower[which[cut]], again.lower[which[cut]])
    return found


class _Search:
    """One call of `mixtures`: arrays over the searched servers."""

    def __init__(
        self,
        servers: Servers,
        which: IntArray,
        prices: Prices,
        largest_unserved: FloatArray,
        slack: FloatArray,
        tally: IntArray | None = None,
    ) -> None:
        problem = servers.problem
        self.merges = tally is not None
        self.tally = np.zeros(len(servers.share), dtype=np.int64) if tally is None else tally
        self.servers, self.which, self.prices = servers, which, prices
        self.partial = problem.policy.partial
        self.most_types = problem.max_types[which]
        self.minimum = problem.min_replicas[which]
        self.maximum = problem.max_replicas[which]
        self.unserved_price = prices.unserved[which]
        self.unmet_price = prices.unmet[which]
        self.largest_unserved = largest_unserved[which]
        self.constant = prices.fixed * servers.leaving_per_h[which]
        self.slack = slack[which]
        self.loaded = problem.arrival_rps[which] > 0
        self.may_stop_short = self.partial & (self.largest_unserved > 0)
        self.most_states = int(np.clip(_MOST_STATES // max(len(which), 1), *_MOST_STATES_EACH))
        self.best, self.dropped = np.full(len(which), np.inf), np.full(len(which), np.inf)

    def _threshold(self) -> FloatArray:
        """Worth above which a partial plan of each server is of no interest."""
        size = np.where(np.isfinite(self.best), np.abs(self.best), 0.0)
        threshold: FloatArray = self.best + np.where(
            self.slack > 0, np.maximum(self.slack, _TIE * size), -_BOUND_ERROR * size
        )
        return threshold

    def _wanted(
        self, server: IntArray, worth: FloatArray, unserved: FloatArray, tally: IntArray, most_columns: int
    ) -> tuple[IntArray, FloatArray]:
        """Find the best plans of each server, in order, and the worth below which they are all there are."""
        order = np.lexsort((worth, server))
        if self.merges:
            kind = 2 * server + (unserved > 0)
            with np.errstate(over="ignore"):
                alike = tally + _ODD * kind
            order = order[firsts(alike[order], server[order], len(self.which))]
        rank = np.arange(len(order)) - np.searchsorted(server[order], server[order])
        last = order[rank == most_columns - 1]
        threshold = self._threshold()
        np.minimum.at(threshold, server[last], worth[last])
        return order[rank < most_columns], threshold

    def _priced(
        self, server: IntArray, unserved: FloatArray, replicas: Rows, threshold: FloatArray
    ) -> Priced:
        """Return plans of these servers."""
        servers = self.servers
        kept = np.bincount(replicas.row, servers.keeping_per_h[replicas.column], minlength=len(server))
        fixed = servers.leaving_per_h[self.which[server]] - kept
        lower, reach = np.full(servers.count, np.inf), np.full(servers.count, np.inf)
        lower[self.which] = np.minimum(np.minimum(self.best, self._threshold()), self.dropped)
        reach[self.which] = np.minimum(threshold, self.dropped)
        return Priced(Columns(self.which[server], replicas, fixed, unserved), lower, reach)


class _Compiled(_Search):
    """One server after the other."""

    def run(self, left_s: Callable[[], float], most_columns: int) -> Priced:
        servers, prices = self.servers, self.prices
        try:
            covering = _SPARE.pop()
        except IndexError:
            covering = Covering()
        self.best, self.dropped, found = covering.search(
            servers.option[self.which],
            (prices.replica, servers.share, prices.fixed * servers.keeping_per_h),
            (servers.most, self.tally),
            (self.constant, self.unserved_price, self.unmet_price, self.largest_unserved, self.slack),
            (self.minimum, self.maximum, self.most_types, self.loaded, self.may_stop_short),
            (DEMAND_TOLERANCE, _ROUNDING, _TIE, _BOUND_ERROR),
            self.partial,
            self.merges,
            self.most_states,
            most_columns,
            left_s,
        )
        if covering.size() <= _MOST_SPARE:
            _SPARE.append(covering)
        server, worth, unserved, tally, start, option, number = found
        order, threshold = self._wanted(server, worth, unserved, tally, most_columns)
        rows = Rows(start, option, number, len(servers.problem.option_server))
        return self._priced(server[order], unserved[order], rows.take(order), threshold)


class _Stepwise(_Search):
    """All servers at once, by array operations over the options in their order of the search."""

    def _prepare(self) -> None:
        """Sort the options of each server, and find some plan."""
        servers, which, prices = self.servers, self.which, self.prices
        option = servers.option[which]
        there = option >= 0
        price = np.where(there, prices.replica[option], np.inf)
        share = np.where(there, servers.share[option], 1.0)
        bonus = np.where(there, prices.fixed * servers.keeping_per_h[option], 0.0)
        # Options that take back a fixed penalty first: after them the bound has no discount left in it.
        order = np.lexsort((price / share, bonus <= 0), axis=1)

        def sorted_by_order(table: np.ndarray) -> np.ndarray:
            return np.take_along_axis(table, order, axis=1)

        self.option = sorted_by_order(option)
        self.price = np.where(sorted_by_order(there), sorted_by_order(price), 0.0)
        self.share = sorted_by_order(share)
        self.bonus = sorted_by_order(bonus)
        self.option_tally = sorted_by_order(np.where(there, self.tally[option], 0))
        self.most = np.where(self.option >= 0, servers.most[self.option], 0)

        usable = self.most > 0
        ratio = np.where(usable, self.price / self.share, np.inf)
        each = np.where(usable, self.price, np.inf)
        none_left = np.full((len(which), 1), np.inf)
        # Cheapest price per share, and per replica, of the options after each position.
        self.ratio_after = np.c_[np.minimum.accumulate(ratio[:, ::-1], axis=1)[:, ::-1], none_left][:, 1:]
        self.each_after = np.c_[np.minimum.accumulate(each[:, ::-1], axis=1)[:, ::-1], none_left][:, 1:]
        self.bonus_after = np.c_[np.cumsum(self.bonus[:, ::-1], axis=1)[:, ::-1], np.zeros(len(which))][:, 1:]
        self.best = self._simple_plans()
        self.leaves: list[_States] = []

    def run(self, left_s: Callable[[], float], most_columns: int) -> Priced:
        self._prepare()
        count, width = self.option.shape
        states = _States(
            server=np.arange(count),
            value=self.constant.copy(),
            residual=np.where(self.loaded, 1.0, 0.0),
            count=np.zeros(count, dtype=np.int64),
            types=np.zeros(count, dtype=np.int64),
            tally=np.zeros(count, dtype=np.int64),
            replicas=np.zeros((count, width), dtype=np.int32),
        )
        empty = self.constant + self.unserved_price + self.unmet_price
        self.best = np.minimum(self.best, np.where(self.largest_unserved >= 1.0, empty, np.inf))
        self.leaves.append(states.take(self.largest_unserved >= 1.0))
        if not self.slack.any():
            # Only the bounds are wanted: where the fractional one is reached there is nothing to search.
            states = states.take(self.best > self._fractional() * (1.0 + _TIE))
        bound = self._fractional()[states.server]
        for position in range(width):
            if left_s() <= 0:
                np.minimum.at(self.dropped, states.server, bound)
                break
            states, bound = self._expand(states, position)
            if not len(states.server):
                break
        return self._result(most_columns)

    def _fractional(self) -> FloatArray:
        """Worth of each server's demand served by fractional replicas, shape (n,)."""
        ratio = np.where(self.most > 0, self.price / self.share, np.inf).min(axis=1, initial=np.inf)
        ratio = np.where(self.largest_unserved > 0, np.minimum(ratio, self.unserved_price), ratio)
        served = np.where(self.loaded, ratio, 0.0) * (1.0 - DEMAND_TOLERANCE)
        worth: FloatArray = served + self.constant - self.bonus.sum(axis=1)
        return worth

    def _simple_plans(self) -> FloatArray:
        """Worth of the best of some plans of two options, shape (n,); inf where none is allowed.

        Almost as many of the first option as serve the demand, the rest on one other option.
        """
        found = np.full(len(self.which), np.inf)
        demand = np.where(self.loaded, 1.0 - DEMAND_TOLERANCE, 0.0)
        for first in range(min(3, self.option.shape[1])):
            full = np.floor(demand / self.share[:, first]).astype(np.int64)
            for fewer in range(3):
                main = np.minimum(np.maximum(full - fewer, 0), self.most[:, first])
                rest = np.maximum(demand - main * self.share[:, first], 0.0)
                other = np.ceil(np.maximum(rest - _ROUNDING, 0.0)[:, None] / self.share)
                other = np.maximum(other, (self.minimum - main)[:, None])
                total = main[:, None] + other
                allowed = (other <= self.most) & (total <= self.maximum[:, None])
                types = (main > 0)[:, None].astype(np.int64) + (other > 0)
                allowed[:, first] = False
                allowed &= types <= self.most_types[:, None]
                worth = (main * self.price[:, first])[:, None] + other * self.price
                worth -= np.where(other > 0, self.bonus, 0.0)
                worth += (self.constant - np.where(main > 0, self.bonus[:, first], 0.0))[:, None]
                found = np.minimum(found, np.where(allowed, worth, np.inf).min(axis=1))
        alone = np.ceil(demand[:, None] / self.share - _ROUNDING)
        alone = np.maximum(alone, self.minimum[:, None])
        worth = self.constant[:, None] + alone * self.price - np.where(alone > 0, self.bonus, 0.0)
        allowed = (alone <= self.most) & (alone <= self.maximum[:, None]) & (alone > 0)
        best: FloatArray = np.minimum(found, np.where(allowed, worth, np.inf).min(axis=1, initial=np.inf))
        return best

    def _expand(self, states: _States, position: int) -> tuple[_States, FloatArray]:
        """Give every partial plan every sensible number of replicas of the option at `position`."""
        s = states.server
        price, share = self.price[s, position], self.share[s, position]
        low, high, slope, ground = self._range(states, position)
        width = np.maximum(self.most_states // np.bincount(s, minlength=len(self.which))[s], 1)
        cut = high - low + 1 > width
        if cut.any():
            # The bound falls, or rises, all the way: what is cut off is worth at least its nearest end.
            falls = slope > 0
            nearest = np.where(falls, high - width, low + width)[cut]
            worth = ground[cut] - slope[cut] * nearest
            np.minimum.at(self.dropped, s[cut], worth)
            low = np.where(cut & falls, high - width + 1, low)
            high = np.where(cut & ~falls, low + width - 1, high)
        sizes = np.maximum(high - low + 1, 0)
        parent = np.repeat(np.arange(len(s)), sizes)
        number = np.arange(len(parent)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + low[parent]

        taken = number > 0
        # What a child is worth decides whether it stays; only then are the replicas of its parent copied.
        s = s[parent]
        residual = states.residual[parent] - number * share[parent]
        residual[residual <= DEMAND_TOLERANCE + _ROUNDING] = 0.0
        child = _States(
            server=s,
            value=states.value[parent]
            + number * price[parent]
            - np.where(taken, self.bonus[s, position], 0.0),
            residual=residual,
            count=states.count[parent] + number,
            types=states.types[parent] + taken,
            tally=states.tally[parent] + number * self.option_tally[s, position],
            replicas=states.replicas,
        )

        def grown(kept: IntArray) -> _States:
            replicas = states.replicas[parent[kept]]
            replicas[:, position] = number[kept]
            return child.with_replicas(kept, replicas)

        self.leaves.append(grown(self._leaves_among(child, taken)))
        kept, bound = self._still_open(child, position)
        return grown(kept), bound

    def _range(self, states: _States, position: int) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """Least and most replicas worth trying; bound = ground - slope x replicas until the demand is met."""
        s = states.server
        price, share = self.price[s, position], self.share[s, position]
        needed = np.ceil(np.maximum(states.residual - DEMAND_TOLERANCE, 0.0) / share - _ROUNDING)
        cover = np.maximum(needed.astype(np.int64), self.minimum[s] - states.count)
        high = np.minimum(np.minimum(cover, self.most[s, position]), self.maximum[s] - states.count)
        high = np.where(states.types >= self.most_types[s], 0, high)
        after = self._ratio_after(s, position)
        discount = self.bonus[s, position] + self.bonus_after[s, position]
        # Without an option after this one the rest must be served here; the filter of children sees to it.
        open_end = np.isfinite(after)
        after = np.where(open_end, after, 0.0)
        slope = np.where(open_end, after * share - price, -price)
        ground = states.value + after * np.maximum(states.residual - DEMAND_TOLERANCE, 0.0) - discount
        spare = self._threshold()[s] - ground
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = np.floor(-spare / slope)
        step = np.where(np.isfinite(step), step, 0.0)
        few = (slope > 0) & (spare < 0)
        low = np.where(few, np.minimum(step, high + 1.0), 0.0).astype(np.int64)
        closed = ~open_end & ~self.may_stop_short[s] & (high == cover)
        low = np.where(closed, np.maximum(high, 0), low)
        many = (slope < 0) & np.isfinite(spare)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            most = np.floor(spare / np.where(many, -slope, 1.0)) + 1.0
        high = np.where(many, np.clip(most, -1.0, high), high).astype(np.int64)
        return low, high, slope, ground

    def _ratio_after(self, s: IntArray, position: int) -> FloatArray:
        """Least price of the whole demand served by options after `position`, or left unserved."""
        after = self.ratio_after[s, position]
        short = np.minimum(after, self.unserved_price[s])
        price: FloatArray = np.where(self.may_stop_short[s], short, after)
        return price

    def _unserved(self, states: _States) -> FloatArray:
        minimum = self.minimum[states.server]
        short = np.where(minimum > 0, 1.0 - states.count / np.maximum(minimum, 1), 0.0)
        return np.maximum(np.maximum(states.residual, short), 0.0)

    def _leaves_among(self, child: _States, taken: BoolArray) -> IntArray:
        """Find the complete plans among new ones that are good enough."""
        s = child.server
        unserved = self._unserved(child)
        allowed = np.where(
            self.partial, unserved <= self.largest_unserved[s] + DEMAND_TOLERANCE, unserved == 0
        )
        complete = taken & allowed
        worth = child.value + self.unserved_price[s] * unserved + self.unmet_price[s] * (unserved > 0)
        np.minimum.at(self.best, s[complete], worth[complete])
        return np.flatnonzero(complete & (worth <= self._threshold()[s]))

    def _still_open(self, child: _States, position: int) -> tuple[IntArray, FloatArray]:
        """Find the plans that can still become good enough, and their bounds."""
        s = child.server
        unserved = self._unserved(child)
        left = np.maximum(child.residual - DEMAND_TOLERANCE, 0.0)
        missing = np.maximum(self.minimum[s] - child.count, 0)
        with np.errstate(invalid="ignore"):
            for_load = np.where(left > 0, self._ratio_after(s, position) * left, 0.0)
            for_count = np.where(missing > 0, self.each_after[s, position] * missing, 0.0)
        alternative = np.where(self.may_stop_short[s], self.unserved_price[s], np.inf)
        with np.errstate(invalid="ignore"):
            stop = np.where(missing > 0, alternative * missing / np.maximum(self.minimum[s], 1), 0.0)
        for_count = np.minimum(for_count, stop)
        bound = child.value + np.maximum(for_load, for_count) - self.bonus_after[s, position]
        more = (unserved > 0) & (child.types < self.most_types[s]) & (child.count < self.maximum[s])
        kept = np.flatnonzero(more & (bound <= self._threshold()[s]))
        if self.merges:
            kept = kept[self._best_of_equals(child, kept)]
        return kept, bound[kept]

    def _best_of_equals(self, states: _States, which: IntArray) -> BoolArray:
        """Whether no other partial plan of the same tally is worth less and serves more."""
        s = states.server[which]
        # Beyond the minimum, and where there is no maximum, one replica more or less changes nothing.
        count = np.where(
            self.maximum[s] == NO_LIMIT, np.minimum(states.count[which], self.minimum[s]), states.count[which]
        )
        types = np.where(self.most_types[s] < self.option.shape[1], states.types[which], 0)
        value, residual = states.value[which], states.residual[which]
        same = (types, count, states.tally[which], s)
        order = np.lexsort((residual, value, *same))
        new = np.r_[True, np.any([np.diff(key[order]) != 0 for key in same], axis=0)][: len(order)]
        # Residuals are in [0, 1]: each group lies below all of the one before.
        lowered = residual[order] - 2.0 * np.cumsum(new)
        before = np.r_[np.inf, np.minimum.accumulate(lowered)[:-1]][: len(order)]
        result = np.zeros(len(which), dtype=bool)
        result[order[lowered < before]] = True
        return result

    def _result(self, most_columns: int) -> Priced:
        threshold = self._threshold()
        worths = [self._worth(leaf) for leaf in self.leaves]
        inside = [w <= threshold[leaf.server] for w, leaf in zip(worths, self.leaves, strict=True)]
        parts = [leaf.take(which) for leaf, which in zip(self.leaves, inside, strict=True)]
        server = np.concatenate([part.server for part in parts])
        worth = np.concatenate([w[which] for w, which in zip(worths, inside, strict=True)])
        tally = np.concatenate([part.tally for part in parts])
        unserved = np.concatenate([self._unserved(part) for part in parts])
        order, threshold = self._wanted(server, worth, unserved, tally, most_columns)
        replicas = np.concatenate([part.replicas for part in parts])[order]
        row, position = np.nonzero(replicas)
        option, number = self.option[server[order][row], position], replicas[row, position]
        rows = Rows.of(row, option, number, (len(order), len(self.servers.problem.option_server)))
        return self._priced(server[order], unserved[order], rows, threshold)

    def _worth(self, leaf: _States) -> FloatArray:
        unserved = self._unserved(leaf)
        s = leaf.server
        worth: FloatArray = (
            leaf.value + self.unserved_price[s] * unserved + self.unmet_price[s] * (unserved > 0)
        )
        return worth
