"""The ways to run each server, and what they are worth at given prices.

A *column* is one complete way to run one server: replicas of its options, its unserved share and its cost.
With one type per server the columns can be listed (`single_type`); the mixes are found by `solver.mixtures`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from solver.problem import DEMAND_TOLERANCE, NO_LIMIT
from solver.rows import Rows

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.problem import AllocationProblem

# Values that differ by less, relatively, are ties.
_TIE = 1e-9

# Columns of partial service that `single_type` lists one by one; with more, the ends of each range suffice
# for the bound.
_MOST_PARTIAL_COLUMNS = 2_000_000


@dataclass(frozen=True)
class Columns:
    """Ways to run servers.

    Attributes
    ----------
    server : (C,) int
    replicas : (C, J) sparse
        Replicas of each option.
    fixed_per_h : (C,) float
        The part of the switching penalty that does not grow with replicas: accelerators left.
    unserved : (C,) float
        Share of the demand not served, in [0, 1].
    """

    server: IntArray
    replicas: Rows
    fixed_per_h: FloatArray
    unserved: FloatArray

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.server)

    def take(self, which: IntArray | BoolArray) -> Columns:
        """Return these columns only."""
        return Columns(
            self.server[which], self.replicas.take(which), self.fixed_per_h[which], self.unserved[which]
        )

    def joined(self, other: Columns) -> Columns:
        """Return both."""
        return Columns(
            np.concatenate([self.server, other.server]),
            self.replicas.joined(other.replicas),
            np.concatenate([self.fixed_per_h, other.fixed_per_h]),
            np.concatenate([self.unserved, other.unserved]),
        )

    def value(self, prices: Prices) -> FloatArray:
        """Value of each column at `prices`, shape (C,)."""
        result: FloatArray = (
            self.replicas.times(prices.replica)
            + prices.fixed * self.fixed_per_h
            + prices.unserved[self.server] * self.unserved
            + prices.unmet[self.server] * (self.unserved > 0)
        )
        return result


@dataclass(frozen=True)
class Prices:
    """What a column is charged.

    Attributes
    ----------
    replica : (J,) float
        For one replica of each option, >= 0.
    fixed : float
        Factor of `Columns.fixed_per_h`, >= 0.
    unserved, unmet : (S,) float
        For the whole demand unserved, in proportion; for any share unserved, >= 0.
    """

    replica: FloatArray
    fixed: float
    unserved: FloatArray
    unmet: FloatArray


@dataclass(frozen=True)
class Servers:
    """A problem with the options of each server side by side."""

    problem: AllocationProblem

    @cached_property
    def count(self) -> int:
        """S."""
        return len(self.problem.servers)

    @cached_property
    def option(self) -> IntArray:
        """Option of each server and position, shape (S, K); -1 where a server has fewer."""
        problem = self.problem
        sizes = np.bincount(problem.option_server, minlength=self.count)
        first = np.r_[0, np.cumsum(sizes)[:-1]]
        position = np.arange(len(problem.option_server)) - first[problem.option_server]
        result = np.full((self.count, int(sizes.max(initial=0))), -1, dtype=np.int64)
        result[problem.option_server, position] = np.arange(len(problem.option_server))
        return result

    @cached_property
    def share(self) -> FloatArray:
        """Share of its server's demand that one replica serves, shape (J,), in (0, 1]; 1 without load."""
        problem = self.problem
        demand = problem.arrival_rps[problem.option_server]
        result = np.ones(len(demand))
        np.divide(problem.capacity_rps, demand, out=result, where=demand > 0)
        return np.minimum(result, 1.0)

    @cached_property
    def most(self) -> IntArray:
        """Most replicas of each option that any sensible plan has, shape (J,)."""
        problem = self.problem
        stock = problem.inventory.gpus[problem.gpu_type]
        fitting = np.where(stock == NO_LIMIT, NO_LIMIT, stock // problem.gpus)
        result: IntArray = np.minimum(np.minimum(problem.replicas_needed, problem.most), fitting)
        return result

    @cached_property
    def replica_cost_per_h(self) -> FloatArray:
        """Cost of one replica with the penalty for newly taking up its accelerator, shape (J,)."""
        problem = self.problem
        result: FloatArray = problem.cost_per_h * (
            1.0 + problem.policy.switching_factor * problem.option_is_new
        )
        return result

    @cached_property
    def leaving_per_h(self) -> FloatArray:
        """Penalty of each server for leaving everything it runs on, shape (S,)."""
        problem = self.problem
        left = np.bincount(problem.current_server, problem.current_cost_per_h, minlength=self.count)
        result: FloatArray = problem.policy.switching_factor * left.astype(np.float64)
        return result

    @cached_property
    def keeping_per_h(self) -> FloatArray:
        """Part of `leaving_per_h` that using the option takes back, shape (J,)."""
        problem = self.problem
        width = max(len(problem.accelerators), 1)
        mine = problem.option_server * width + problem.option_accelerator
        current = problem.current_server * width + problem.current_accelerator
        order = np.argsort(current)
        result = np.zeros(len(mine))
        if len(order):
            spot = np.minimum(np.searchsorted(current[order], mine), len(order) - 1)
            kept = current[order][spot] == mine
            result[kept] = problem.policy.switching_factor * problem.current_cost_per_h[order][spot][kept]
        return result

    @cached_property
    def least_unserved(self) -> FloatArray:
        """Least share of each server's demand that stays unserved however many GPUs there are, shape (S,).

        Above 0 where the maximum of replicas, or the stock of every type alone, is too small. NaN where a
        limit of several types makes this a search of its own.
        """
        problem = self.problem
        result = np.ones(self.count)
        whole = self.most >= problem.replicas_needed
        result[problem.option_server[whole]] = 0.0
        floor = np.maximum(problem.min_replicas, 1)
        if problem.policy.max_types == 1:
            if problem.policy.partial:
                np.minimum.at(result, problem.option_server, self._unserved_alone(self.most))
            return result
        # Largest shares first, as many as the maximum allows: best for the load and for the count at once.
        for s in np.flatnonzero((result > 0) & (self.option >= 0).any(axis=1)):
            mine = self.option[s][self.option[s] >= 0]
            order = mine[np.argsort(-self.share[mine], kind="stable")]
            before = np.r_[0, np.cumsum(self.most[order])[:-1]]
            taken = np.clip(problem.max_replicas[s] - before, 0, self.most[order])
            used = np.flatnonzero(taken)
            served = float(self.share[order] @ taken) if problem.arrival_rps[s] > 0 else 1.0
            if problem.min_replicas[s] > 0:
                served = min(served, float(taken.sum()) / floor[s])
            if len(used) > problem.max_types[s]:
                result[s] = np.nan
            elif served >= 1.0 - DEMAND_TOLERANCE:
                result[s] = 0.0
            elif problem.policy.partial:
                result[s] = 1.0 - served
        return result

    @property
    def is_listed(self) -> bool:
        """Whether `single_type` lists every column, not only those that suffice for the bound."""
        return not self.problem.policy.partial or int(self.most.sum()) <= _MOST_PARTIAL_COLUMNS

    def _unserved_alone(self, replicas: IntArray) -> FloatArray:
        """Unserved share of each option's server with so many replicas of that option only, shape (J,)."""
        return self.unserved_with(np.arange(len(replicas)), replicas)

    def unserved_with(self, option: IntArray, replicas: IntArray) -> FloatArray:
        """Unserved share of the option's server with so many of its replicas only, shapes (n,)."""
        problem = self.problem
        server = problem.option_server[option]
        served = np.where(problem.arrival_rps[server] > 0, self.share[option] * replicas, 1.0)
        minimum = problem.min_replicas[server]
        served = np.where(minimum > 0, np.minimum(served, replicas / np.maximum(minimum, 1)), served)
        return np.where(replicas >= problem.replicas_needed[option], 0.0, np.clip(1.0 - served, 0.0, 1.0))

    def most_below(self, prices: Prices, worth: FloatArray) -> FloatArray:
        """Most replicas of each option in a column that serves everything and is worth less than this.

        What they do not serve costs at least the cheapest price of a share.

        Parameters
        ----------
        prices : Prices
        worth : (S,) float

        Returns
        -------
        (J,) float
            Whole numbers >= 0, or inf.
        """
        problem = self.problem
        server, count = problem.option_server, self.count
        ratio = np.full(count, np.inf)
        np.minimum.at(ratio, server, prices.replica / self.share)
        ratio = np.where(problem.arrival_rps > 0, ratio, 0.0)
        kept = np.bincount(server, prices.fixed * self.keeping_per_h, minlength=count)
        least = prices.fixed * self.leaving_per_h - kept + ratio * (1.0 - DEMAND_TOLERANCE)
        more = prices.replica - ratio[server] * self.share
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.floor((worth - least)[server] / more + _TIE)
        result: FloatArray = np.where((more > 0) & np.isfinite(most), np.maximum(most, 0.0), np.inf)
        return result

    def columns(self, server: IntArray, option: IntArray, replicas: IntArray) -> Columns:
        """Columns of one option each; option -1 is the empty one. Shapes (n,)."""
        used = option >= 0
        shape = (len(server), len(self.problem.option_server))
        sparse = Rows.of(np.flatnonzero(used), option[used], replicas[used], shape)
        fixed = self.leaving_per_h[server].copy()
        fixed[used] -= self.keeping_per_h[option[used]]
        unserved = np.ones(len(server))
        unserved[used] = self.unserved_with(option[used], replicas[used])
        return Columns(server, sparse, fixed, unserved)


def single_type(servers: Servers) -> Columns:
    """List the columns of one option each, and the empty one of each server that has an option.

    All-or-nothing service has one column an option. Partial service has one for each number of replicas, or,
    where these are too many, for the ends of the range and of the part that is not fully served: the value of
    a column is linear between them, so no price makes another one better.
    """
    problem = servers.problem
    needed, most = problem.replicas_needed, servers.most
    with_option = np.unique(problem.option_server)
    if not problem.policy.partial:
        option = np.flatnonzero(most >= needed)
        replicas = needed[option]
    elif servers.is_listed:
        option = np.repeat(np.arange(len(most)), most)
        replicas = np.arange(len(option)) - np.repeat(np.cumsum(most) - most, most) + 1
    else:
        ends = np.stack([np.minimum(1, most), np.maximum(most - 1, np.minimum(1, most)), most])
        ends[1][ends[1] == ends[0]] = 0
        ends[2][(ends[2] == ends[1]) | (ends[2] == ends[0])] = 0
        row, option = np.nonzero(ends)
        replicas = ends[row, option]
    server = np.r_[with_option, problem.option_server[option]]
    order = np.argsort(server, kind="stable")
    option = np.r_[np.full(len(with_option), -1), option][order]
    replicas = np.r_[np.zeros(len(with_option), dtype=np.int64), replicas][order]
    return servers.columns(server[order], option, replicas)


def fractional(servers: Servers) -> Columns:
    """List the columns of one option each with so many replicas, a fraction, as just serve the demand.

    Without a switching penalty no mix is worth less than the best of them, at any prices.
    """
    problem = servers.problem
    option = np.flatnonzero(servers.most > 0)
    minimum = problem.min_replicas[problem.option_server[option]]
    loaded = problem.arrival_rps[problem.option_server[option]] > 0
    replicas = np.maximum(np.where(loaded, 1.0 / servers.share[option], 0.0), minimum)
    with_option = np.unique(problem.option_server)
    server = np.r_[with_option, problem.option_server[option]]
    order = np.argsort(server, kind="stable")
    option = np.r_[np.full(len(with_option), -1), option][order]
    replicas = np.r_[np.zeros(len(with_option)), replicas][order]
    columns = servers.columns(server[order], option, replicas)
    return replace(columns, unserved=np.where(option < 0, columns.unserved, 0.0))
