"""What every part of the decomposition works on: the problem by server, the columns found, the best plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from solver import rows
from solver.check import score
from solver.milp import Milp, SolveOptions
from solver.mixtures import mixtures
from solver.prices import Listed
from solver.pricing import Columns, Servers, fractional, single_type
from solver.problem import HOLD_TOLERANCE, Plan
from solver.rows import Rows, starts
from solver.stage import Coupling, Stage
from solver.starts import precedes

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.check import Score
    from solver.milp import Backend, BoolArray, FloatArray, IntArray, RawSolution
    from solver.problem import AllocationProblem

# Most columns of one integer program.
MOST_COLUMNS = 60_000

# With one type, the linear program of so many columns is solved at once; of more, Newton's method is faster.
_MOST_SOLVED = 10_000

# Fleets of at most so many servers are small.
_CLOSABLE = 300

# Most mixes of a server that pricing returns, and of all servers where these are few.
_NEAR_COLUMNS, _NEAR_COLUMNS_OF_ALL = 20, 3_000

# How many times dearer what is beyond a held level is than what is beyond the other limits.
_HELD = 100.0

# Share of the least important server's weight that the cost of the whole fleet counts at a service level.
_MONEY_SHARE = 0.05

# Relative rounding error allowed for in a sum of column values.
_SUM_ERROR = 1e-12

# Relative differences below this are rounding.
_TINY = 1e-9


@dataclass(frozen=True)
class Priced:
    """Columns of the active servers at the best prices found, and what the master made of them.

    Attributes
    ----------
    columns : Columns
    lower : (S,) float
        Least value that any column of the server can have.
    reduced : (C,) float
        Value above `lower` of the server; >= 0 up to rounding.
    duals : (R + H,) float
        Prices of the coupling rows, then of the held levels, >= 0.
    bound : float
        Lagrangian bound of the stage's objective at `duals`.
    chosen : (S,) int
        Column that has most of each server in the master's solution; -1 for servers that are not active.
    split : (S,) bool
        Servers that the master's solution divides among columns.
    short : float
        Violation of rows that the master could not avoid.
    master : Mastered or None
        None where no prices were needed, or there was no time for it.
    """

    columns: Columns
    lower: FloatArray
    reduced: FloatArray
    duals: FloatArray
    bound: float
    chosen: IntArray
    split: BoolArray
    short: float
    master: Mastered | None = None


@dataclass(frozen=True)
class Mastered:
    """Solution of a restricted master: `x` and `columns` are those it had, of the program `milp`."""

    milp: Milp
    raw: RawSolution
    columns: Columns
    x: FloatArray
    duals: FloatArray
    value: float
    short: float


@dataclass
class Search:
    """One decomposition of one problem without dominated options.

    Attributes
    ----------
    problem : AllocationProblem
    backend : Backend
    options : SolveOptions
    left_s : callable
        Seconds that are left.
    start : Plan
        The first incumbent.
    solver, version : str
        What the backend said last.
    pool : Columns
        Columns to begin with: those of one type, and of the incumbents.
    plan : Plan
        The incumbent, the best plan so far.
    score : Score
        What it is worth.
    incumbent : Columns
        Its columns, one of each server with an option.
    basis : Columns
        What the last restricted master used.
    hint : (R + H - 1,) float
        Prices of the last stage that fell short, whose level is the last one held now: a direction for the
        next ones. Empty where there are none.
    """

    problem: AllocationProblem
    backend: Backend
    options: SolveOptions
    left_s: Callable[[], float]
    start: Plan
    solver: str = ""
    version: str = ""
    pool: Columns = field(init=False)
    plan: Plan = field(init=False)
    score: Score = field(init=False)
    incumbent: Columns = field(init=False)
    basis: Columns = field(init=False)
    hint: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.pool = self._of_one_type
        self.basis = self.pool.take(np.zeros(0, dtype=np.int64))
        self.hint = np.zeros(0)
        self._accept(self.start, score(self.problem, self.start))

    @cached_property
    def servers(self) -> Servers:
        """The problem with the options of each server side by side."""
        return Servers(self.problem)

    @cached_property
    def coupling(self) -> Coupling:
        """The rows that couple servers."""
        return Coupling.of(self.problem)

    @cached_property
    def has_option(self) -> BoolArray:
        """Servers that have an option, shape (S,)."""
        result = np.zeros(len(self.problem.servers), dtype=bool)
        result[self.problem.option_server] = True
        return result

    @property
    def mixes(self) -> bool:
        """Whether a server may run on several types."""
        return self.problem.policy.max_types != 1

    @cached_property
    def guide(self) -> Columns:
        """Columns with good prices: with a mix, fractional ones, as those of one type may not serve all."""
        return fractional(self.servers) if self.mixes else self._of_one_type

    @cached_property
    def _of_one_type(self) -> Columns:
        return single_type(self.servers)

    @cached_property
    def size(self) -> FloatArray:
        """Least share of the limits that serves each server, the rows added up, shape (S,)."""
        taken = self.guide.replicas.times_rows(self.coupling.usage)
        taken_share = taken @ (1.0 / np.maximum(self.coupling.limit, 1.0))
        size = np.full(self.servers.count, np.inf)
        served = self.guide.unserved == 0
        np.minimum.at(size, self.guide.server[served], taken_share[served])
        return np.where(np.isfinite(size), size, 0.0)

    def listed(self, stage: Stage, columns: Columns, limits: FloatArray | None = None) -> Listed:
        """Return these columns for the search for prices, with other limits if given."""
        limits = stage.limits if limits is None else limits
        usage, worth = stage.usage(columns), stage.worth(columns)
        scale = (
            float(worth.mean()) + _TINY if worth.any() else float((usage / np.maximum(limits, 1.0)).mean())
        )
        return Listed(columns.server, worth, usage, limits, scale)

    def penalty(self, stage: Stage, columns: Columns) -> FloatArray:
        """Price of a unit beyond each limit, shape (R + H,): more than many columns are worth, but finite.

        A large server of a held level takes the GPUs of thousands of small ones.
        """
        price = 100.0 * float(stage.worth(columns).max(initial=0.0)) + _TINY
        result = np.full(len(stage.limits), price)
        result[len(self.coupling.limit) :] *= _HELD
        return result

    def lower(
        self, stage: Stage, columns: Columns, active: BoolArray, duals: FloatArray, slack: FloatArray
    ) -> tuple[FloatArray, Columns]:
        """Least value of any column of each active server, shape (S,), and the columns with those found.

        Without mixes the columns are all there are. A slack of 0 asks for the bound only.
        """
        prices = stage.prices(duals)
        if not self.mixes:
            lower = np.full(self.servers.count, np.inf)
            np.minimum.at(lower, columns.server, columns.value(prices))
            return lower, columns
        priced = mixtures(
            self.servers,
            np.flatnonzero(active),
            prices,
            stage.largest_unserved,
            slack,
            self.left_s,
            most_columns=max(_NEAR_COLUMNS, _NEAR_COLUMNS_OF_ALL // max(int(active.sum()), 1)),
        )
        return priced.lower, distinct(columns.joined(priced.columns)) if slack.any() else columns

    def least(self, columns: Columns, reduced: FloatArray) -> IntArray:
        """Column of least reduced cost of each server, shape (S,); -1 where it has none."""
        result = np.full(self.servers.count, -1, dtype=np.int64)
        least = np.full(self.servers.count, np.inf)
        np.minimum.at(least, columns.server, reduced)
        best = np.flatnonzero(reduced == least[columns.server])[::-1]
        result[columns.server[best]] = best
        return result

    def program_of(
        self, stage: Stage, columns: Columns, *, price: FloatArray | None, integer: bool
    ) -> tuple[Milp, IntArray]:
        """One column of each server within the limits, or at a price of each beyond them (None: not at all).

        Servers with one column only are put into the limits and the offset. Returns the program, and the
        columns that its first variables stand for.
        """
        choices = np.bincount(columns.server, minlength=self.servers.count)[columns.server]
        free = np.flatnonzero(choices > 1)
        fixed = np.flatnonzero(choices == 1)
        worth, usage, limits = stage.worth(columns), stage.usage(columns), stage.limits
        left = limits - usage[fixed].sum(axis=0)
        count, rows = len(free), len(limits)
        _, position = np.unique(columns.server[free], return_inverse=True)
        groups = int(position.max(initial=-1)) + 1
        beyond = np.zeros(0) if price is None else price
        relaxed = len(beyond)
        taken = usage[free]
        take_column, take_row = np.nonzero(taken)
        row = np.concatenate([take_row, np.arange(relaxed), rows + position])
        column = np.concatenate([take_column, count + np.arange(relaxed), np.arange(count)])
        value = np.concatenate([taken[take_column, take_row], np.full(relaxed, -1.0), np.ones(count)])
        order = np.argsort(row, kind="stable")
        row_lower, row_upper = np.ones(rows + groups), np.ones(rows + groups)
        row_lower[:rows], row_upper[:rows] = -np.inf, left
        column_upper, is_integer = np.ones(count + relaxed), np.full(count + relaxed, integer)
        column_upper[count:], is_integer[count:] = np.inf, False
        milp = Milp(
            objective=np.concatenate([worth[free], beyond]),
            row_start=starts(np.bincount(row, minlength=rows + groups)),
            column=column[order],
            value=value[order],
            row_lower=row_lower,
            row_upper=row_upper,
            column_lower=np.zeros(count + relaxed),
            column_upper=column_upper,
            integer=is_integer,
            offset=float(worth[fixed].sum()),
        )
        return milp, free

    def solve(
        self,
        milp: Milp,
        *,
        relax: bool,
        seconds: float | None = None,
        gap: float | None = None,
        start: FloatArray | None = None,
        presolve: bool = True,
    ) -> RawSolution:
        """Solve a program, its relaxation with `relax`, in so many seconds (None: in those left)."""
        options = replace(
            self.options,
            time_limit_s=max(self.left_s() if seconds is None else seconds, 0.01),
            relax=relax,
            relative_gap=self.options.relative_gap if gap is None else gap,
            start=start,
            presolve=presolve,
        )
        raw = self.backend.solve(milp, options)
        self.solver, self.version = raw.solver, raw.version
        return raw

    def tally(self, stage: Stage) -> IntArray | None:
        """Number of each option for `mixtures`, where a server is served in full or not at all."""
        whole = not self.problem.policy.partial or not stage.largest_unserved.any()
        return self.coupling.tally if whole else None

    def plan_of(self, columns: Columns) -> Plan:
        """Return the plan that these columns make."""
        return Plan(np.rint(columns.replicas.weighted_sum()).astype(np.int64))

    def _accept(self, plan: Plan, score: Score) -> None:
        problem = self.problem
        used = np.flatnonzero(plan.replicas)
        server = np.flatnonzero(self.has_option)
        row = np.searchsorted(server, problem.option_server[used])
        order = np.argsort(row, kind="stable")
        shape = (len(server), len(problem.option_server))
        replicas = Rows.of(row[order], used[order], plan.replicas[used[order]], shape)
        keeping = np.bincount(row, self.servers.keeping_per_h[used], minlength=len(server))
        fixed_per_h = self.servers.leaving_per_h[server] - keeping
        self.plan, self.score = plan, score
        self.incumbent = Columns(server, replicas, fixed_per_h, 1.0 - score.served_share[server])

    def incumbent_in(self, stage: Stage, columns: Columns) -> IntArray | None:
        """Columns of the best plan, and nothing for servers it leaves out, shape (n,) of the active servers.

        None where that breaks a limit, or is not all there.
        """
        active = np.flatnonzero(stage.active)
        empty = np.flatnonzero(columns.replicas.sizes == 0)
        result = np.full(self.servers.count, -1, dtype=np.int64)
        result[columns.server[empty]] = empty
        result[self.incumbent.server] = places(columns, self.incumbent)
        found = result[active]
        if (found < 0).any() or not self.fits(stage, columns.take(found)):
            return None
        return found

    def adopt(self, plan: Plan) -> None:
        """Take a plan that is better than the best one so far."""
        worth = score(self.problem, plan)
        if precedes(worth, self.score):
            self._accept(plan, worth)

    def fits(self, stage: Stage, columns: Columns) -> bool:
        """Whether these columns together keep the limits."""
        return bool((stage.usage(columns).sum(axis=0) <= stage.limits).all())

    @cached_property
    def most_cost_per_h(self) -> FloatArray:
        """Cost that no plan of a server without a superfluous replica exceeds, shape (S,)."""
        problem, servers = self.problem, self.servers
        cost = servers.replica_cost_per_h
        most = cost * np.maximum(problem.min_replicas[problem.option_server], 1)
        # Without the last replica the demand is not met, so the others cost at most the dearest share.
        rest = cost / servers.share if self.mixes else cost * np.maximum(servers.most - 1, 0)
        dearest, last = np.zeros(servers.count), np.zeros(servers.count)
        np.maximum.at(dearest, problem.option_server, rest)
        np.maximum.at(last, problem.option_server, most)
        return dearest + last + servers.leaving_per_h

    @cached_property
    def money_room(self) -> float:
        """What the cost may count at a service level."""
        return _MONEY_SHARE * float(self.problem.weight.min())

    def whole_steps(self, weight: FloatArray, bound: float, *, by_share: bool) -> float:
        """Raise a bound on a sum of weights of whole servers to the next sum there is."""
        unit = float(weight.min())
        if not self.steps_are_whole(weight, by_share=by_share):
            return bound
        return float(np.ceil(bound / unit - HOLD_TOLERANCE)) * unit

    def steps_are_whole(self, weight: FloatArray, *, by_share: bool) -> bool:
        """Whether every sum of the weights of whole servers is a multiple of the least weight."""
        whole = not by_share or not self.problem.policy.partial
        steps = weight / float(weight.min())
        return whole and not (np.abs(steps - np.rint(steps)) > 0).any()

    def is_listed(self, columns: Columns) -> bool:
        """Whether the relaxation over these is solved at once: they are all there are, and not too many."""
        return not self.mixes and len(columns) <= _MOST_SOLVED

    @property
    def is_closable(self) -> bool:
        """Whether the fleet is so small that many columns are within the gap, and it may be closed."""
        return self.servers.count <= _CLOSABLE


def lagrangian(lower: FloatArray, duals: FloatArray, limits: FloatArray) -> float:
    """Sum of the servers' least values less the worth of the limits, rounded down."""
    worth = duals * limits
    error = _SUM_ERROR * (float(np.abs(lower).sum()) + float(np.abs(worth).sum()))
    return float(lower.sum()) - float(worth.sum()) - error


def keys(columns: Columns) -> IntArray:
    """Return a number for each column that equal columns share, shape (C,)."""
    with np.errstate(over="ignore"):
        keys: IntArray = columns.replicas.hashed(rows.factors(columns.replicas.width)) + columns.server
    return keys


def places(columns: Columns, wanted: Columns) -> IntArray:
    """Return where each wanted column is in `columns`, shape of `wanted`; -1 where it is not."""
    return rows.places(keys(columns), keys(wanted))


def distinct(columns: Columns) -> Columns:
    """Return each column once, sorted by server."""
    servers = int(columns.server.max(initial=-1)) + 1
    return columns.take(rows.firsts(keys(columns), columns.server, servers))
