"""The exact method for large fleets: only the GPUs that exist couple the servers.

1. Each server alone: if the inventory holds what they would like best, that is the proven optimum.
2. Otherwise the coupling rows get prices (duals). At any prices, the sum of the servers' best columns less
   the worth of the inventory is a lower bound (the Lagrangian bound). Newton's method finds prices that are
   good for one-type columns, or for fractional mixes (`prices`); a restricted master program over the columns
   near the bound finds the last digits (Dantzig-Wolfe).
3. The columns that the master takes nearly fit. A few servers are changed to make them fit (`repair`), or
   small integer programs over the columns nearest to changing choose.
4. Where that leaves a gap: programs over all columns whose reduced cost is below a reach, which is widened
   until they make a plan. What they do not make is not there, so each of them lifts the bound by its reach.
   With a mix, servers with too many such columns stand in them in compact form (`listed`, `cuts`).

The levels of the objective are solved in their order. Prices of the cards alone tell at once which levels
cannot be met in full. A level that is held takes a row of its own, unless it is held at the least any plan
can have: then it limits the columns of each server. What this module leaves to the method of `solve`: node
rows for replica sizes that do not divide each other; the largest unserved share (round robin) and, with a
limit of two or more types per server, servers that their own limits keep from full service, when not every
server can be served.

References
----------
G. B. Dantzig, P. Wolfe (1960), Decomposition principle for linear programs, https://doi.org/10.1287/opre.8.1.101
A. M. Geoffrion (1974), Lagrangean relaxation for integer programming, https://doi.org/10.1007/BFb0120690
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from solver.backends.greedy import greedy
from solver.beam import Effort, matched
from solver.between import mixes_between
from solver.check import score, violations
from solver.cuts import with_serving_rows
from solver.errors import SolverError
from solver.formulate import formulate, program
from solver.listed import below, with_columns
from solver.milp import Milp, SolveOptions, Termination
from solver.packing import is_chain
from solver.prices import Listed, along, ascend, parted
from solver.pricing import Columns, Servers, fractional, mixtures, single_type
from solver.problem import LevelKind, Plan, levels
from solver.ranging import on_the_line, range_of_row
from solver.reduce import dominated, keep, onto
from solver.repair import repaired
from solver.solve import Duals, GpuValue, LevelResult, Solved, solve
from solver.stage import Coupling, Held, Stage
from solver.starts import is_better

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.formulate import Formulation
    from solver.milp import Backend, BoolArray, FloatArray, IntArray, RawSolution
    from solver.problem import AllocationProblem, Level

# Most rounds of columns; prices seldom need more than four.
_MOST_ROUNDS = 12

# Largest fleet that is told for how many GPUs a price holds: two linear programs for each type.
_MOST_RANGED = 2_000

# Share of the time limit that the search for prices leaves to the search for plans.
_TIME_FOR_PLANS = 0.15

# Share of the time limit that is kept for the baseline, and for what is done with the answer.
_TIME_AFTER = 0.15

# Share of the time left that a program of the columns near the bound may take while there are wider ones, and
# what all of them leave to the whole program.
_TIME_TO_TRY, _TIME_AFTER_WIDENING = 0.25, 0.6

# Share of the time left that making a plan fit may take.
_TIME_TO_REPAIR = 0.12

# Servers in the sample that the first prices come from.
_SAMPLE = 1000

# Fleets of at most so many servers: where many columns are within the gap, and it may be closed; where the
# columns nearest to changing rarely make a better plan than one so many gaps from the bound.
_CLOSABLE, _FEW, _NEAR = 300, 100, 12.0

# Columns beside those of the master's solution in the integer programs that make a plan of it, one after
# the other.
_PLAN_COLUMNS = (500, 2000, 6000)

# Columns beside those of the master's solution that a repair chooses from.
_REPAIR_COLUMNS = 30_000

# Beam searches for a plan, one after the other: with a mix, with a mix of few servers, and with one type; and
# from how many servers on. The best plan of a smaller fleet is farther from the bound than they look.
_EFFORTS = (
    Effort(0.05, 0.1, 100, 200),
    Effort(0.01, 0.03, 100, 200),
    Effort(0.1, 0.3, 300, 500),
    Effort(0.01, 0.1, 300, 500),
)
_EFFORTS_OF_FEW = (
    Effort(0.3, 0.5, 100, 200),
    Effort(0.1, 0.3, 300, 500, room=3.0),
    Effort(0.3, 0.5, 100, 200, room=10.0),
)
_EFFORTS_OF_ONE_TYPE = (Effort(0.01, 0.03, 300, 500), _EFFORTS[2])
_MATCHED_FROM, _MATCHED_ONE_TYPE_FROM = 40, 3_000

# Mixes of a divided server that a beam search chooses from: how far above its best, in parts of what the plan
# may be above the bound, and how many at most.
_DIVIDED_REACH, _DIVIDED_COLUMNS = 0.6, 1_000

# Most mixes of a server that pricing returns, and of all servers where these are few.
_NEAR_COLUMNS, _NEAR_COLUMNS_OF_ALL = 20, 3_000

# How far above the bound the search for a better plan begins, in steps worth taking: at the cost level, and
# at the others. A plan so many steps from the bound is near enough to look at once for all that betters it.
# A step counts at least so much of the value there.
_FIRST_REACH_OF_COST, _FIRST_REACH_OF_SERVICE, _FIRST_REACH_OF_MIX, _NEARLY = 0.125, 0.01, 0.01, 3.0
_LEAST_STEP = 1e-4

# Columns of the first program that is to close the gap, and of any; most mixes of a server to list there.
_FIRST_CLOSING_COLUMNS, _MOST_CLOSING_COLUMNS, _MOST_LISTED = 1_000, 60_000, 500

# How far a later level may worsen an earlier one: the feasibility tolerance of the solvers.
_HOLD_TOLERANCE = 1e-6

# Share of the least important server's weight that the cost of the whole fleet counts at a service level.
_MONEY_SHARE = 0.05

# Slack of the columns that pricing returns, relative to the mean value of a server: at least this, and
# relative to the value of all servers.
_SLACK, _SLACK_OF_ALL = 0.001, 0.5

# Columns of the restricted master beside the best of each server: at least these, and so many for each.
_MASTER_COLUMNS = 2_000
_MASTER_COLUMNS_EACH = 1.0

# Smoothing of the bound where the search for prices starts: with no prices yet, and near good ones.
_COLD, _WARM = 0.05, 2e-4

# Smoothing where it ends: with few servers every digit of the bound helps to close the gap.
_SHARPEST_OF_FEW, _SHARPEST = 1e-5, 3e-5

# A round that changes neither the bound nor the master by more, relatively, is the last.
_SMALL_STEP = 1e-7

# Relative rounding error allowed for in a sum of column values.
_SUM_ERROR = 1e-12

# Relative differences below this are rounding: of sums, and between value and bound of a solved program.
_TINY, _SOLVED = 1e-9, 1e-8

# A bound above the value of a plan by more, relatively, is a mistake.
_CONTRADICTION = 1e-5

# How far from a whole number a solver's answer may be and count as whole.
_INTEGRAL = 1e-6


def decompose(
    problem: AllocationProblem,
    backend: Backend,
    options: SolveOptions,
    *,
    start: Plan | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Solved:
    """Find the best plan for `problem`, with bounds.

    Parameters
    ----------
    problem : AllocationProblem
    backend : Backend
        Solves the linear and the small integer programs.
    options : SolveOptions
        Time limit and gap for the whole of it.
    start : Plan or None
        A plan to better, if it breaks no rule.
    now : callable
        Monotonic clock in seconds.

    Returns
    -------
    Solved
        Without a program: no single program describes what was solved.

    Raises
    ------
    SolverError
        From the backend, or when a bound contradicts a plan.
    """
    end = now() + (1.0 - _TIME_AFTER) * options.time_limit_s
    out = dominated(problem)
    kept = np.flatnonzero(~out)
    reduced = keep(problem, kept)

    def left_s() -> float:
        return max(end - now(), 0.0)

    def direct() -> Solved:
        rest = replace(options, time_limit_s=max(left_s(), 0.01))
        return solve(problem, backend, rest, start=start, now=now)

    if not kept.size or not _node_sizes_are_chains(reduced):
        return direct()
    first = Plan(np.zeros(len(kept), dtype=np.int64))
    if start is not None and not violations(problem, start):
        first = onto(problem, kept, start)
    led = bool((score(reduced, first).served_share == 1.0).all())

    def baseline() -> Plan:
        nonlocal led
        plan = onto(problem, kept, greedy(problem))
        led = is_better(reduced, first, plan)
        return plan

    search = _Search(reduced, backend, options, left_s, first, baseline)
    if np.isnan(search.servers.least_unserved).any():
        return direct()
    found = search.run()
    if found is None:
        return direct()
    replicas = np.zeros(len(problem.option_server), dtype=np.int64)
    replicas[kept] = found.plan.replicas
    return Solved(
        Plan(replicas),
        found.levels,
        out,
        found.value_of_gpu,
        search.solver,
        search.version,
        program=None,
        led_by_start=led,
    )


def _node_sizes_are_chains(problem: AllocationProblem) -> bool:
    return all(
        nodes is None or is_chain(np.unique(problem.gpus[problem.gpu_type == t]).tolist())
        for t, nodes in enumerate(problem.inventory.nodes)
    )


@dataclass(frozen=True)
class _Priced:
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
    worth : float
        The stage's objective without money at the master's solution.
    short : float
        Violation of rows that the master could not avoid.
    master : _Mastered or None
        None where no prices were needed, or there was no time for it.
    """

    columns: Columns
    lower: FloatArray
    reduced: FloatArray
    duals: FloatArray
    bound: float
    chosen: IntArray
    split: BoolArray
    worth: float
    short: float
    master: _Mastered | None = None


@dataclass(frozen=True)
class _Mastered:
    """Solution of a restricted master: `x` and `columns` are those it had, of the program `milp`."""

    milp: Milp
    raw: RawSolution
    columns: Columns
    x: FloatArray
    duals: FloatArray
    value: float
    short: float


@dataclass(frozen=True)
class _Near:
    """A program of all the plans near the bound.

    Attributes
    ----------
    milp : Milp or None
        None where a server has no such column.
    reach : float
        It has every plan worth less than this above the bound.
    shift : float
        Subtracted from the value of a plan in `milp`.
    read : callable
        Plan of a point.
    """

    milp: Milp | None
    reach: float
    shift: float
    read: Callable[[FloatArray], Plan]


@dataclass(frozen=True)
class _Found:
    plan: Plan
    levels: tuple[LevelResult, ...]
    value_of_gpu: GpuValue


@dataclass
class _Search:
    """One decomposition of one problem without dominated options."""

    problem: AllocationProblem
    backend: Backend
    options: SolveOptions
    left_s: Callable[[], float]
    start: Plan
    baseline: Callable[[], Plan]
    solver: str = ""
    version: str = ""
    pool: Columns = field(init=False)
    incumbent: Columns = field(init=False)
    basis: Columns = field(init=False)
    # Prices of the last stage that fell short, where its level is now held: a direction for the next ones.
    hint: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.pool = single_type(self.servers)
        self.basis = self.pool.take(np.zeros(0, dtype=np.int64))
        self.hint = np.zeros(0)

    @cached_property
    def servers(self) -> Servers:
        return Servers(self.problem)

    @cached_property
    def coupling(self) -> Coupling:
        return Coupling.of(self.problem)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        return levels(self.problem)

    @cached_property
    def has_option(self) -> BoolArray:
        result = np.zeros(len(self.problem.servers), dtype=bool)
        result[self.problem.option_server] = True
        return result

    @property
    def mixes(self) -> bool:
        return self.problem.policy.max_types != 1

    # ---------------------------------------------------------------- levels

    def run(self) -> _Found | None:
        """Solve every level; None where a case is left to the direct method."""
        self.incumbent = self._columns_of(self.start)
        self.pool = _distinct(self.pool.joined(self.incumbent))
        best = self.servers.least_unserved
        floors = tuple(self._floor(level) for level in self.levels[:-1])
        stage = self._cost_stage((), best, floors if best.any() else None)
        priced = self._converge(stage)
        if priced is not None and (priced.short <= _HOLD_TOLERANCE or self.left_s() <= 0):
            found, bound = self._cheapest(stage, priced)
            if found:
                plan = self._plan_of(self.incumbent)
                results = [self._result(index, plan, floor) for index, floor in enumerate(floors)]
                results.append(self._cost_level(plan, bound))
                return _Found(plan, tuple(results), self._value(priced, None))
        if any(level.kind is LevelKind.WORST_SHARE for level in self.levels):
            return None
        # Levels are held at what the best plan so far makes of them.
        self._adopt(self.baseline())
        self.pool = _distinct(self.pool.joined(self.incumbent))
        found_by_level = self._by_level(defer=True) if priced is None else None
        return found_by_level or self._by_level(defer=False)

    def _cost_stage(
        self, held: tuple[Held, ...], largest_unserved: FloatArray, reached: tuple[float, ...] | None
    ) -> Stage:
        zero = np.zeros(self.servers.count)
        return Stage(
            self.servers, self.coupling, zero, zero, 1.0, held, largest_unserved, self.has_option, reached
        )

    def _floor(self, level: Level) -> float:
        """Least value of a service level, each server at the least unserved share it can have."""
        least = self.servers.least_unserved
        share = least if level.kind is not LevelKind.UNMET else (least > 0).astype(np.float64)
        if level.kind is LevelKind.WORST_SHARE:
            return float(share[level.servers].max())
        return float((self.problem.weight * share)[level.servers].sum())

    def _everything(self, level: Level) -> float:
        """Value of a service level when nothing is served."""
        worst = level.kind is LevelKind.WORST_SHARE
        return 1.0 if worst else float(self.problem.weight[level.servers].sum())

    def _cost_level(self, plan: Plan, bound: float) -> LevelResult:
        idle = ~self.has_option
        bound += float(self.servers.leaving_per_h[idle].sum())
        return self._result(len(self.levels) - 1, plan, bound)

    def _result(self, index: int, plan: Plan, bound: float) -> LevelResult:
        value = score(self.problem, plan).levels[index]
        if bound > value + _CONTRADICTION * max(1.0, abs(value)):
            raise SolverError(f"level {self.levels[index].name}: bound {bound} above the plan's {value}")
        # A bound is a sum in another order than the value; between equals only rounding is left.
        bound = min(bound, value)
        # A gap at a level of service is relative to what is served.
        size = abs(value) if index == len(self.levels) - 1 else self._everything(self.levels[index]) - value
        small = self.options.relative_gap * size + _SOLVED * max(1.0, abs(value))
        if value - bound <= small:
            ended = Termination.OPTIMAL
        else:
            ended = Termination.TIME_LIMIT if self.left_s() <= 0 else Termination.FEASIBLE
        return LevelResult(self.levels[index], value, bound, ended)

    def _by_level(self, *, defer: bool) -> _Found | None:
        """Solve the levels in their order.

        With `defer`, a level is taken to reach the least that any plan can have unless prices prove the
        opposite, and is left to the plan of a later level; None where no such plan was found.
        """
        least = self.servers.least_unserved
        largest = np.ones(len(least))
        held: tuple[Held, ...] = ()
        active = np.zeros(len(least), dtype=bool)
        zero = np.zeros(len(least))
        bounds: list[float] = []
        reached: list[float] = []
        first_short: _Priced | None = None
        deferred = served = False
        for level in self.levels[:-1]:
            weight = np.where(level.servers, self.problem.weight, 0.0)
            active |= level.servers
            by_share = level.kind is LevelKind.UNSERVED
            unserved, unmet = (weight, zero) if by_share else (zero, weight)
            bounds.append(self._floor(level))
            reached.append(bounds[-1])
            if not (level.servers & (largest > least)).any():
                continue
            most = float(self._most_cost_per_h[active].sum())
            money = self._money_room / most if most > 0 else 0.0
            stage = Stage(
                self.servers,
                self.coupling,
                unserved,
                unmet,
                money,
                held,
                largest,
                active.copy(),
                tuple(reached[:-1]),
            )
            best = np.where(level.servers & (by_share | (least == 0)), least, largest)
            all_met = replace(stage, largest_unserved=best)
            if defer and self.left_s() > 0 and (self._has_plan(all_met) or not self._impossible(all_met)):
                deferred, largest = True, best
                continue
            priced = self._converge(stage) if self.left_s() > 0 else None
            found, bound = (
                (False, bounds[-1]) if priced is None else self._serve(stage, priced, len(bounds) - 1)
            )
            if deferred and not (found or served):
                return None
            first_short, served = first_short or priced, served or found
            value = score(self.problem, self._plan_of(self.incumbent)).levels[len(bounds) - 1]
            reached[-1] = value
            if value <= bounds[-1] + _HOLD_TOLERANCE:
                largest = best
            else:
                held = (*held, Held(unserved, unmet, value + _HOLD_TOLERANCE))
                self.hint = np.zeros(0) if priced is None else priced.duals
            bounds[-1] = max(bounds[-1], bound)
            self.pool = _distinct(self.pool.joined(self.incumbent))
        stage = Stage(
            self.servers, self.coupling, zero, zero, 1.0, held, largest, self.has_option, tuple(reached)
        )
        priced = self._converge(stage) if self.left_s() > 0 else None
        found, bound = (False, self._alone_per_h(stage)) if priced is None else self._cheapest(stage, priced)
        if deferred and not (found or served):
            return None
        plan = self._plan_of(self.incumbent)
        results = [self._result(index, plan, proven) for index, proven in enumerate(bounds)]
        return _Found(plan, (*results, self._cost_level(plan, bound)), self._value(priced, first_short))

    def _alone_per_h(self, stage: Stage) -> float:
        """Sum of the servers' least costs, each with all the cards: the bound without any prices."""
        columns, free = stage.allowed(self.pool), np.zeros(len(stage.limits))
        lower, _ = self._lower(stage, columns, stage.active, free, np.zeros(self.servers.count))
        bound = _lagrangian(lower[stage.active], free, stage.limits)
        return bound if np.isfinite(bound) else 0.0

    @cached_property
    def _most_cost_per_h(self) -> FloatArray:
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

    def _serve(self, stage: Stage, priced: _Priced, index: int) -> tuple[bool, float]:
        """Better the incumbent at service level `index`; whether a plan was found, and the level's bound."""
        level = self.levels[index]
        by_share = level.kind is LevelKind.UNSERVED
        weight = self.problem.weight[level.servers]
        bare = replace(stage, money=0.0)
        lower, _ = self._lower(bare, priced.columns, stage.active, priced.duals, np.zeros(self.servers.count))
        bare_bound = _lagrangian(lower[stage.active], priced.duals, stage.limits)
        bound = self._whole_steps(weight, bare_bound, by_share=by_share)
        money = max(priced.bound - bare_bound, 0.0)
        room = self._money_room + self.options.relative_gap * bound
        columns = self._plan(stage, priced, bound + money + room)
        value = np.inf if columns is None else float(stage.service(columns).sum())
        if self._close_enough(value, bound):
            return True, bound
        reduced = priced.columns.value(bare.prices(priced.duals)) - lower[priced.columns.server]
        bare_priced = replace(priced, lower=lower, reduced=reduced, bound=bare_bound)
        step = self.options.relative_gap * float(weight.sum() - value) if np.isfinite(value) else 0.0
        if self._steps_are_whole(weight, by_share=by_share):
            step = max(step, 0.5 * float(weight.min()))
        found, bound = self._close(bare, bare_priced, value, bound, step)
        return found, self._whole_steps(weight, bound, by_share=by_share)

    def _whole_steps(self, weight: FloatArray, bound: float, *, by_share: bool) -> float:
        """Raise a bound on a sum of weights of whole servers to the next sum there is."""
        unit = float(weight.min())
        if not self._steps_are_whole(weight, by_share=by_share):
            return bound
        return float(np.ceil(bound / unit - _HOLD_TOLERANCE)) * unit

    def _steps_are_whole(self, weight: FloatArray, *, by_share: bool) -> bool:
        """Whether every sum of the weights of whole servers is a multiple of the least weight."""
        whole = not by_share or not self.problem.policy.partial
        steps = weight / float(weight.min())
        return whole and not (np.abs(steps - np.rint(steps)) > 0).any()

    def _value(self, cost: _Priced | None, short: _Priced | None) -> GpuValue:
        if cost is None:
            return GpuValue.unknown(len(self.problem.gpu_types))
        return GpuValue.of(self._duals(cost), None if short is None else self._duals(short))

    def _duals(self, priced: _Priced) -> Duals:
        """Prices of a GPU of each type, and the ranges in which they are the restricted master's."""
        types = len(self.problem.gpu_types)
        per_gpu, ranges = np.full(types, np.nan), np.full((types, 2), np.nan)
        per_gpu[self.coupling.row_type] = 0.0
        master = priced.master if priced.short <= _HOLD_TOLERANCE else None
        duals = priced.duals if master is None else master.duals
        rows = np.flatnonzero(self.coupling.counts_cards)
        np.add.at(per_gpu, self.coupling.row_type[rows], duals[rows])
        raw = None if master is None else master.raw
        many = self.servers.count > _MOST_RANGED
        if many or master is None or raw is None or raw.x is None or raw.reduced_cost is None:
            return Duals(per_gpu, ranges)
        line, place = on_the_line(master.milp, raw.x, raw.reduced_cost)
        for row, t in zip(rows.tolist(), self.coupling.row_type[rows].tolist(), strict=True):
            if per_gpu[t] > 0 and self.problem.inventory.nodes[t] is None:
                limits = replace(self.options, time_limit_s=max(self.left_s(), 0.01))
                change = range_of_row(line, int(place[row]), per_gpu[t], raw.objective, self.backend, limits)
                ranges[t] = self.coupling.limit[row] + np.array(change)
        return Duals(per_gpu, ranges)

    # ---------------------------------------------------------------- prices

    def _converge(self, stage: Stage) -> _Priced | None:
        """Find prices whose Lagrangian bound meets the restricted master.

        None where a server has no column, or the prices prove that no columns fit together.
        """
        limits = stage.limits
        columns = stage.allowed(self.pool)
        active = np.flatnonzero(stage.active)
        alone, columns = self._alone(stage, columns, limits)
        if alone is not None:
            return alone
        if len(np.unique(columns.server)) < len(active):
            return None
        if not self._has_plan(stage) and self._impossible(stage):
            return None
        guide = stage.allowed(self.guide)
        most = np.full(len(limits), self._penalty(stage.worth(guide)))
        few, room = self._sample(stage, guide)
        sample = self._listed(stage, few, room)
        sharpest = _SHARPEST_OF_FEW if self.servers.count <= _CLOSABLE else _SHARPEST
        if stage.held and len(self.hint) + 1 == len(limits):
            duals = along(sample, np.r_[self.hint, 1.0], most)
            duals = ascend(sample, duals, most, _WARM, self.left_s, sharpest)
        else:
            duals = ascend(sample, np.zeros(len(limits)), most, _COLD, self.left_s, sharpest)
        if len(few) < len(guide):
            duals = ascend(self._listed(stage, guide), duals, most, _WARM, self.left_s, sharpest)
        return self._rounds(stage, columns, stage.active, limits, duals)

    @cached_property
    def guide(self) -> Columns:
        """Columns with good prices: with a mix, fractional ones, as those of one type may not serve all."""
        return fractional(self.servers) if self.mixes else single_type(self.servers)

    def _has_plan(self, stage: Stage) -> bool:
        """Whether the incumbent is a plan of this stage."""
        plan = stage.allowed(self.incumbent)
        return len(plan) == int(stage.active.sum()) and self._fits(stage, plan, stage.limits)

    def _impossible(self, stage: Stage) -> bool:
        """Whether some prices prove that no columns fit together.

        By Farkas' lemma: where even the columns that take the least at these prices take more than there is.
        """
        limits = stage.limits
        if not len(limits):
            return False
        zero = np.zeros(self.servers.count)
        bare = replace(stage, money=0.0, unserved=zero, unmet=zero)
        guide = stage.allowed(self.guide)
        most = 1.0 / np.maximum(limits, 1.0)
        few, room = self._sample(stage, guide)
        duals = parted(self._listed(bare, few, room), 0.5 * most, most, _COLD, self.left_s)
        if duals is None:
            return False
        listed = np.full(self.servers.count, np.inf)
        np.minimum.at(listed, guide.server, guide.value(bare.prices(duals)))
        if float(listed[np.isfinite(listed)].sum()) <= float(duals @ limits):
            return False
        lower, _ = self._lower(bare, stage.allowed(self.pool), stage.active, duals, zero)
        return _lagrangian(lower[stage.active], duals, limits) > _TINY * float(duals @ np.abs(limits))

    def _sample(self, stage: Stage, columns: Columns) -> tuple[Columns, FloatArray]:
        """Columns of some `_SAMPLE` servers of every size, and their share of the limits.

        Where a level is held, the few servers that it leaves short decide what the others pay: then all that
        the incumbent leaves short are there, and the sample has what the incumbent gives it.
        """
        active = np.flatnonzero(stage.active)
        if len(active) <= 2 * _SAMPLE:
            return columns, stage.limits
        size = self._size[active]
        by_size = np.argsort(size, kind="stable")[:: len(active) // _SAMPLE]
        sample = np.zeros(self.servers.count, dtype=bool)
        sample[active[by_size]] = True
        if not stage.held:
            share = float(size[by_size].sum() / size.sum())
            return columns.take(sample[columns.server]), share * stage.limits
        now = self.incumbent
        sample[now.server[now.unserved > 0]] = True
        others = now.take(stage.active[now.server] & ~sample[now.server])
        sample &= stage.active
        return columns.take(sample[columns.server]), stage.limits - stage.usage(others).sum(axis=0)

    @cached_property
    def _size(self) -> FloatArray:
        """Least share of the limits that serves each server, the rows added up, shape (S,)."""
        taken = (self.guide.replicas @ self.coupling.usage) @ (1.0 / np.maximum(self.coupling.limit, 1.0))
        size = np.full(self.servers.count, np.inf)
        served = self.guide.unserved == 0
        np.minimum.at(size, self.guide.server[served], taken[served])
        return np.where(np.isfinite(size), size, 0.0)

    def _listed(self, stage: Stage, columns: Columns, limits: FloatArray | None = None) -> Listed:
        """Return these columns for the search for prices, with other limits if given."""
        limits = stage.limits if limits is None else limits
        usage, worth = stage.usage(columns), stage.worth(columns)
        scale = (
            float(worth.mean()) + _TINY if worth.any() else float((usage / np.maximum(limits, 1.0)).mean())
        )
        return Listed(columns.server, worth, usage, limits, scale)

    def _penalty(self, worth: FloatArray) -> float:
        """Price of a unit beyond a limit: more than many columns are worth, so prices stay finite."""
        return 100.0 * float(worth.max(initial=0.0)) + _TINY

    def _alone(self, stage: Stage, columns: Columns, limits: FloatArray) -> tuple[_Priced | None, Columns]:
        """Each server's best column at no prices if all fit together; the columns with those found."""
        free = np.zeros(len(limits))
        lower, columns = self._lower(stage, columns, stage.active, free, self._slack(stage, columns, free))
        reduced = columns.value(stage.prices(free)) - lower[columns.server]
        chosen = self._least(columns, reduced)
        best = columns.take(chosen[chosen >= 0])
        if len(best) < stage.active.sum() or not self._fits(stage, best, limits):
            return None, columns
        bound = _lagrangian(lower[stage.active], free, limits)
        split = np.zeros(self.servers.count, dtype=bool)
        worth = float(stage.service(best).sum())
        return _Priced(columns, lower, reduced, free, bound, chosen, split, worth, 0.0), columns

    def _rounds(
        self, stage: Stage, columns: Columns, active: BoolArray, limits: FloatArray, duals: FloatArray
    ) -> _Priced:
        """Alternate pricing and restricted master over the `active` servers."""
        best_bound, best_duals, best_lower = -np.inf, duals, np.zeros(self.servers.count)
        master: _Mastered | None = None
        near: Columns | None = None
        cheaper = True
        for _ in range(_MOST_ROUNDS):
            slack = self._slack(stage, columns, duals)
            lower, columns = self._lower(stage, columns, active, duals, slack)
            reduced = columns.value(stage.prices(duals)) - lower[columns.server]
            columns, reduced = self._worth_keeping(columns, reduced, float(slack.max(initial=0.0)))
            bound = _lagrangian(lower[active], duals, limits)
            better = bound - best_bound > _SMALL_STEP * abs(bound)
            if bound > best_bound:
                best_bound, best_duals, best_lower = bound, duals, lower
            if not better and not cheaper:
                break
            late = self.left_s() < _TIME_FOR_PLANS * self.options.time_limit_s
            if self._met(stage, master, best_bound) or (late and master is not None):
                break
            before = 0 if near is None else len(near)
            nearer = self._near(stage, columns, reduced, duals, int(active.sum()))
            near = _distinct(nearer.joined(stage.allowed(self.basis) if near is None else near))
            solved = self._master(stage, near, limits)
            if solved is None:
                break
            cheaper = master is None or master.value - solved.value > _SMALL_STEP * abs(solved.value)
            master = solved
            # Prices of the master overshoot where it has few columns: halfway to them is better then.
            duals = solved.duals if better else 0.5 * (best_duals + solved.duals)
            if self._met(stage, master, best_bound) or len(near) == before:
                break
        if self.mixes and master is not None:
            columns = _distinct(columns.joined(master.columns))
        reduced = columns.value(stage.prices(best_duals)) - best_lower[columns.server]
        if master is None:
            # Out of time: the bound is good, what the prices like best need not fit.
            chosen = self._least(columns, reduced)
            split = chosen >= 0
            return _Priced(
                columns, best_lower, reduced, best_duals, best_bound, chosen, split, np.inf, np.inf
            )
        self.basis = master.columns.take(master.x > 0)
        chosen, split = self._read(columns, master)
        worth = float(stage.service(master.columns) @ master.x)
        short = master.short
        return _Priced(
            columns, best_lower, reduced, best_duals, best_bound, chosen, split, worth, short, master
        )

    def _met(self, stage: Stage, master: _Mastered | None, bound: float) -> bool:
        """Whether the bound is near enough to the master's value, the least it could be."""
        if master is None:
            return False
        # With few servers every digit of the bound helps to close the gap.
        share = 0.25 if self.servers.count <= _CLOSABLE else 0.6
        close = share * self.options.relative_gap * abs(master.value) + _TINY * max(1.0, abs(master.value))
        if stage.money < 1.0:
            close += 0.01 * self._money_room
            # Where servers are served whole, only the next sum of weights counts.
            weight = np.maximum(stage.unserved, stage.unmet)
            bound = self._whole_steps(weight[weight > 0], bound, by_share=bool(stage.unserved.any()))
        return master.value - bound <= close

    @cached_property
    def _money_room(self) -> float:
        """What the cost may count at a service level."""
        return _MONEY_SHARE * float(self.problem.weight.min())

    def _slack(self, stage: Stage, columns: Columns, duals: FloatArray) -> FloatArray:
        """How far above its best a server's mixes are of interest, shape (S,)."""
        values = columns.value(stage.prices(duals))
        least = np.full(self.servers.count, np.inf)
        np.minimum.at(least, columns.server, values)
        known = least[np.isfinite(least)]
        if not len(known):
            return np.zeros(self.servers.count)
        share = min(max(_SLACK, _SLACK_OF_ALL / len(known)), 1.0)
        # Prices far too high make values that no plan has.
        most = self._most_worth(stage) / stage.active.sum()
        return np.full(self.servers.count, share * min(float(known.mean()), most))

    def _most_worth(self, stage: Stage) -> float:
        """Objective that no plan without a superfluous replica exceeds."""
        worth = stage.money * self._most_cost_per_h + stage.unserved + stage.unmet
        return float(worth[stage.active].sum())

    def _lower(
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
        return priced.lower, _distinct(columns.joined(priced.columns)) if slack.any() else columns

    def _worth_keeping(
        self, columns: Columns, reduced: FloatArray, slack: float
    ) -> tuple[Columns, FloatArray]:
        """Drop mixes far from the bound, to bound memory; the columns of one type are few enough to stay."""
        if not self.mixes:
            return columns, reduced
        kept = (reduced <= 4.0 * slack) | (np.diff(columns.replicas.indptr) <= 1)
        least = self._least(columns, reduced)
        kept[least[least >= 0]] = True
        return columns.take(kept), reduced[kept]

    def _near(
        self, stage: Stage, columns: Columns, reduced: FloatArray, duals: FloatArray, servers: int
    ) -> Columns:
        """Return the columns that the least change of prices makes best, and the best of every server."""
        most = servers + max(_MASTER_COLUMNS, int(_MASTER_COLUMNS_EACH * servers))
        if len(columns) <= most:
            return columns
        least = self._least(columns, reduced)
        best = least[least >= 0]
        distance = self._listed(stage, columns).distance(duals, reduced, best)
        return columns.take(np.sort(np.argpartition(distance, most)[:most]))

    def _least(self, columns: Columns, reduced: FloatArray) -> IntArray:
        """Column of least reduced cost of each server, shape (S,); -1 where it has none."""
        result = np.full(self.servers.count, -1, dtype=np.int64)
        least = np.full(self.servers.count, np.inf)
        np.minimum.at(least, columns.server, reduced)
        best = np.flatnonzero(reduced == least[columns.server])[::-1]
        result[columns.server[best]] = best
        return result

    # ---------------------------------------------------------------- masters

    def _program(
        self, stage: Stage, columns: Columns, limits: FloatArray, *, price: float, integer: bool
    ) -> tuple[Milp, IntArray]:
        """One column of each server within the limits, or at `price` beyond them (inf: not at all).

        Servers with one column only are put into the limits and the offset. Returns the program, and the
        columns that its first variables stand for.
        """
        choices = np.bincount(columns.server, minlength=self.servers.count)[columns.server]
        free = np.flatnonzero(choices > 1)
        fixed = np.flatnonzero(choices == 1)
        worth, usage = stage.worth(columns), stage.usage(columns)
        left = limits - usage[fixed].sum(axis=0)
        count, rows = len(free), len(limits)
        _, position = np.unique(columns.server[free], return_inverse=True)
        groups = int(position.max(initial=-1)) + 1
        relaxed = rows if np.isfinite(price) else 0
        take_column, take_row = np.nonzero(usage[free])
        row = np.concatenate([take_row, np.arange(relaxed), rows + position])
        column = np.concatenate([take_column, count + np.arange(relaxed), np.arange(count)])
        value = np.concatenate([usage[free][take_column, take_row], np.full(relaxed, -1.0), np.ones(count)])
        order = np.argsort(row, kind="stable")
        milp = Milp(
            objective=np.r_[worth[free], np.full(relaxed, price)],
            row_start=np.r_[0, np.cumsum(np.bincount(row, minlength=rows + groups))],
            column=column[order],
            value=value[order],
            row_lower=np.r_[np.full(rows, -np.inf), np.ones(groups)],
            row_upper=np.r_[left, np.ones(groups)],
            column_lower=np.zeros(count + relaxed),
            column_upper=np.r_[np.ones(count), np.full(relaxed, np.inf)],
            integer=np.r_[np.full(count, integer), np.zeros(relaxed, dtype=bool)],
            offset=float(worth[fixed].sum()),
        )
        return milp, free

    def _master(self, stage: Stage, columns: Columns, limits: FloatArray) -> _Mastered | None:
        """Solve the relaxation, with a price for what is beyond the limits."""
        price = self._penalty(stage.worth(columns))
        milp, free = self._program(stage, columns, limits, price=price, integer=False)
        raw = self._solve(milp, relax=True)
        if raw.x is None or raw.row_dual is None:
            return None
        x = np.ones(len(columns))
        x[free] = raw.x[: len(free)]
        duals = np.maximum(-raw.row_dual[: len(limits)], 0.0)
        short = float(raw.x[len(free) :].max(initial=0.0))
        return _Mastered(milp, raw, columns, x, duals, raw.objective, short)

    def _solve(
        self,
        milp: Milp,
        *,
        relax: bool,
        seconds: float | None = None,
        gap: float | None = None,
        start: FloatArray | None = None,
    ) -> RawSolution:
        options = replace(
            self.options,
            time_limit_s=max(self.left_s() if seconds is None else seconds, 0.01),
            relax=relax,
            relative_gap=self.options.relative_gap if gap is None else gap,
            start=start,
        )
        raw = self.backend.solve(milp, options)
        self.solver, self.version = raw.solver, raw.version
        return raw

    def _read(self, columns: Columns, master: _Mastered) -> tuple[IntArray, BoolArray]:
        """Each server's main column of the master's solution in `columns`, and whether it has others."""
        main = self._least(master.columns, -master.x)
        there = np.flatnonzero(main >= 0)
        most = np.zeros(self.servers.count)
        most[there] = master.x[main[there]]
        split = np.zeros(self.servers.count, dtype=bool)
        split[there] = most[there] < 1.0 - _INTEGRAL
        keys, wanted = _keys(columns), _keys(master.columns)[main[there]]
        order = np.argsort(keys, kind="stable")
        chosen = np.full(self.servers.count, -1, dtype=np.int64)
        chosen[there] = order[np.searchsorted(keys[order], wanted)]
        return chosen, split

    # ---------------------------------------------------------------- plans

    def _plan(self, stage: Stage, priced: _Priced, good: float) -> Columns | None:
        """Find one column of each active server that together are worth at most `good`, or near it.

        None if no columns were found that fit together.
        """
        limits = stage.limits
        chosen = priced.chosen[priced.chosen >= 0]
        if len(chosen) < stage.active.sum():
            # Out of time before every server had a column.
            return None
        known = self._incumbent_in(stage, priced.columns, limits)
        best = None if known is None else priced.columns.take(known)
        value = np.inf if best is None else float(stage.worth(best).sum())
        listed = self._listed(stage, priced.columns)
        distance = listed.distance(priced.duals, priced.reduced, chosen)
        # What has to be found is columns that move the last few GPUs to where they fit, at little cost; a
        # column beyond what the plan may cost above the bound is a last resort.
        far = (priced.reduced > good - priced.bound) & (distance > 0)
        distance[far] += distance.max(initial=0.0)
        nearest = np.argsort(distance, kind="stable")
        # Leaving a server out takes away excess wherever that is allowed.
        empty = np.flatnonzero(np.diff(priced.columns.replicas.indptr) == 0)
        until_s = (1.0 - _TIME_TO_REPAIR) * self.left_s()
        for count in (_REPAIR_COLUMNS, len(nearest)):
            which = np.union1d(nearest[: count + len(chosen)], empty)
            repair = repaired(
                listed.take(which),
                priced.reduced[which],
                priced.duals,
                np.searchsorted(which, chosen),
                lambda: self.left_s() - until_s,
            )
            found = None if repair is None else which[repair]
            best, value = self._better(stage, priced.columns, found, best, value)
            if repair is not None or count >= len(nearest):
                break
        for effort in self._efforts if stage.money == 1.0 else ():
            if value <= good or self.left_s() <= 0:
                break
            best, value = self._better(stage, *self._matched(stage, priced, good, effort), best, value)
        gap = (good - priced.bound) / abs(good) if good > 0 else 0.0
        is_cost, closable = stage.money == 1.0, not self.mixes or self.servers.count <= _CLOSABLE
        # A compact program is the better last resort where it is small enough.
        sizes = _PLAN_COLUMNS[:-1] if self.mixes and closable else (*_PLAN_COLUMNS, len(nearest))
        for count in sizes:
            if count > _MOST_CLOSING_COLUMNS:
                break
            near = value - priced.bound <= _NEAR * (good - priced.bound)
            tried = self.servers.count <= _FEW and near if self.mixes else count > _PLAN_COLUMNS[0]
            enough = is_cost and closable and tried
            if value <= good or (best is not None and enough):
                break
            if best is not None and self.left_s() <= 0:
                break
            which = np.sort(nearest[: count + len(chosen)])
            found = self._choose(stage, priced.columns, which, limits, 0.3 * self.left_s(), gap)
            best, value = self._better(stage, priced.columns, found, best, value)
            if count >= len(nearest):
                break
        if best is not None:
            self._adopt(self._plan_of(best))
        return best

    def _better(
        self, stage: Stage, columns: Columns, which: IntArray | None, best: Columns | None, value: float
    ) -> tuple[Columns | None, float]:
        """Return these columns and what they are worth if that is less than `value`, or else `best`."""
        if which is not None:
            found = columns.take(which)
            worth = float(stage.worth(found).sum())
            if worth < value:
                return found, worth
        return best, value

    @property
    def _efforts(self) -> tuple[Effort, ...]:
        count = self.servers.count
        if not self.mixes:
            return _EFFORTS_OF_ONE_TYPE if count >= _MATCHED_ONE_TYPE_FROM else ()
        if count < _MATCHED_FROM:
            return ()
        return _EFFORTS_OF_FEW if count < _CLOSABLE else _EFFORTS

    def _matched(
        self, stage: Stage, priced: _Priced, good: float, effort: Effort
    ) -> tuple[Columns, IntArray | None]:
        """Choose one column of each active server by a beam search, among columns that it returns too."""
        master, columns, room = priced.master, priced.columns, good - priced.bound
        if master is None:
            return columns, None
        split = np.flatnonzero(priced.split)
        reduced, usage = priced.reduced, stage.usage(master.columns)
        expected = np.zeros((self.servers.count, len(stage.limits)))
        np.add.at(expected, master.columns.server, master.x[:, None] * usage)
        if self.mixes:
            # A server that is divided runs many replicas: which of the many ways fits is what matters most.
            reach = np.full(self.servers.count, _DIVIDED_REACH * effort.room * room)
            prices = stage.prices(priced.duals)
            tally = self._tally(stage)
            near = mixtures(
                self.servers,
                split,
                prices,
                stage.largest_unserved,
                reach,
                self.left_s,
                most_columns=_DIVIDED_COLUMNS,
                tally=tally,
            ).columns
            mine = priced.split[master.columns.server]
            mean = master.columns.replicas[mine].T @ master.x[mine]
            between = mixes_between(
                self.servers,
                split,
                mean,
                prices,
                reach,
                self.left_s,
                most_columns=_DIVIDED_COLUMNS,
                tally=tally,
            )
            more = near.joined(between)
            reduced = np.r_[reduced, more.value(prices) - priced.lower[more.server]]
            columns = columns.joined(more)
        order = np.argsort(columns.server, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        columns, reduced = columns.take(order), reduced[order]
        active = np.flatnonzero(priced.chosen >= 0)
        chosen = place[priced.chosen[active]]
        listed = self._listed(stage, columns)
        divided = priced.split[active]
        taken = np.where(divided[:, None], expected[active], listed.usage[chosen])
        found = matched(listed, reduced, priced.duals, chosen, taken, divided, room, effort, self.left_s)
        if found is not None and not self._fits(stage, columns.take(found), stage.limits):
            return columns, None
        return columns, found

    def _adopt(self, plan: Plan) -> None:
        """Take a plan that is better than the best one so far."""
        if is_better(self.problem, plan, self._plan_of(self.incumbent)):
            self.incumbent = self._columns_of(plan)

    def _incumbent_in(self, stage: Stage, columns: Columns, limits: FloatArray) -> IntArray | None:
        """Columns of the last plan, and nothing for servers it left out; None where that breaks a limit."""
        active = np.flatnonzero(stage.active)
        empty = np.flatnonzero(np.diff(columns.replicas.indptr) == 0)
        keys, wanted = _keys(columns), _keys(self.incumbent)
        order = np.argsort(keys, kind="stable")
        spot = np.minimum(np.searchsorted(keys[order], wanted), len(order) - 1)
        there = keys[order[spot]] == wanted
        result = np.full(self.servers.count, -1, dtype=np.int64)
        result[columns.server[empty]] = empty
        result[self.incumbent.server] = np.where(there, order[spot], -1)
        found = result[active]
        if (found < 0).any() or not self._fits(stage, columns.take(found), limits):
            return None
        return found

    def _cheapest(self, stage: Stage, priced: _Priced) -> tuple[bool, float]:
        """Better the incumbent at the cost level; whether a plan was found, and the bound."""
        bound = priced.bound
        columns = self._plan(stage, priced, bound + 0.99 * self.options.relative_gap * abs(bound))
        value = np.inf if columns is None else float(stage.worth(columns).sum())
        return self._close(stage, priced, value, bound, self.options.relative_gap * abs(bound))

    def _close_enough(self, value: float, bound: float) -> bool:
        if np.isinf(value):
            return False
        return value - bound <= self.options.relative_gap * abs(value) + _TINY * max(1.0, abs(value))

    def _fits(self, stage: Stage, columns: Columns, limits: FloatArray) -> bool:
        return bool((stage.usage(columns).sum(axis=0) <= limits).all())

    def _choose(
        self, stage: Stage, columns: Columns, which: IntArray, limits: FloatArray, seconds: float, gap: float
    ) -> IntArray | None:
        """Choose one column of each server among `which`; None for no plan."""
        few = columns.take(which)
        milp, free = self._program(stage, few, limits, price=np.inf, integer=True)
        raw = self._solve(milp, relax=False, seconds=seconds, gap=gap)
        if raw.x is None:
            return None
        taken = np.ones(len(few), dtype=bool)
        taken[free] = raw.x[: len(free)] > 0.5
        return which[taken]

    def _close(
        self, stage: Stage, priced: _Priced, value: float, bound: float, step: float
    ) -> tuple[bool, float]:
        """Narrow the gap to a plan of this `value` (inf: none); whether there is a plan, and the bound.

        `step` is the least improvement worth looking for.
        """
        compact = self.mixes and self.servers.count <= _CLOSABLE
        # Where not everything can be served there are other stages to come.
        last = stage.money == 1.0 and (np.isfinite(value) or stage.reached is not None)
        until_s = 0.0 if last else 0.5 * self.left_s()
        widen_s = until_s + _TIME_AFTER_WIDENING * (self.left_s() - until_s) if compact else until_s
        if not self.mixes or stage.money == 1.0:
            # Without money too many mixes are worth the same.
            value, bound = self._widen(stage, priced, value, bound, step, widen_s)
        if compact and bound < value - step and self.left_s() > until_s:
            nobody = np.zeros(self.servers.count, dtype=bool)
            milp, formulation, shift = self._compact(stage, priced, nobody, value - priced.bound)
            start = formulation.point(self._plan_of(self.incumbent)) if np.isfinite(value) else None
            raw = self._solve(milp, relax=False, seconds=self.left_s() - until_s, start=start)
            if raw.termination is not Termination.INFEASIBLE:
                bound = max(bound, min(raw.bound + shift, value))
            if raw.x is not None and raw.objective + shift < value:
                value = raw.objective + shift
                self._adopt(formulation.read_plan(raw.x))
        return bool(np.isfinite(value)), bound

    def _widen(
        self, stage: Stage, priced: _Priced, value: float, bound: float, step: float, until_s: float
    ) -> tuple[float, float]:
        """Solve programs over all columns near the bound, more each time; the best value and the bound.

        A plan worth less than ``priced.bound + reach`` has only columns of reduced cost below `reach`. Where
        these do not make such a plan, that is the new bound, and the reach is widened; otherwise the best
        plan they make is the best of all. Ends when `until_s` seconds are left.
        """
        is_cost = stage.money == 1.0
        pace = max(step, _LEAST_STEP * abs(priced.bound), _TINY)
        reach = (_FIRST_REACH_OF_COST if is_cost else _FIRST_REACH_OF_SERVICE) * pace + bound - priced.bound
        most = _FIRST_CLOSING_COLUMNS
        if not self.mixes:
            most = _MOST_CLOSING_COLUMNS
            reach = np.inf if value - priced.bound <= _NEARLY * pace else reach
        elif is_cost:
            reach = min(reach, _FIRST_REACH_OF_MIX * abs(priced.bound) / self.servers.count)
        while self.left_s() > until_s and bound < value - step - _TINY * max(1.0, abs(bound)):
            rest = value - step - priced.bound
            reach = min(reach, rest)
            near = self._within(stage, priced, reach, most)
            if near is None:
                break
            end = priced.bound + near.reach
            raw = None
            if near.milp is not None:
                # A plan worth more than `end` by no more than a step is good enough with that as the bound.
                milp = below(near.milp, (end + step if end + step < value else value - step) - near.shift)
                # With a mix, a wider program is often the easier one.
                share = _TIME_TO_TRY if self.mixes and reach < rest else 1.0
                raw = self._solve(milp, relax=False, seconds=share * (self.left_s() - until_s))
            if raw is None or raw.termination is Termination.INFEASIBLE:
                bound = max(bound, min(end, value))
            else:
                bound = max(bound, min(raw.bound + near.shift, end, value))
            if raw is not None and raw.x is not None:
                value = min(value, raw.objective + near.shift)
                self._adopt(near.read(raw.x))
            if near.reach >= rest or (near.reach < reach and most == _MOST_CLOSING_COLUMNS):
                break
            most = min(2 * most, _MOST_CLOSING_COLUMNS)
            if near.reach == reach:
                reach = 2.0 * reach if is_cost else rest
        return value, bound

    def _within(self, stage: Stage, priced: _Priced, reach: float, most: int) -> _Near | None:
        """Write the program of all columns of reduced cost up to `reach`, or less where that is too many."""
        if self.mixes:
            return self._mixes_within(stage, priced, reach, most)
        within = np.flatnonzero(priced.reduced <= reach * (1.0 + _INTEGRAL))
        if len(within) > most:
            reach = float(np.partition(priced.reduced[within], most)[most])
            within = within[priced.reduced[within] <= reach]
        return self._near_program(stage, priced.columns.take(within), reach)

    def _tally(self, stage: Stage) -> IntArray | None:
        """Number of each option for `mixtures`, where a server is served in full or not at all."""
        whole = not self.problem.policy.partial or not stage.largest_unserved.any()
        return self.coupling.tally if whole else None

    def _near_program(self, stage: Stage, columns: Columns, reach: float) -> _Near:
        """Write the program that chooses one of the columns of each server."""
        milp, free = self._program(stage, columns, stage.limits, price=np.inf, integer=True)
        is_short = len(np.unique(columns.server)) < int(stage.active.sum())

        def read(x: FloatArray) -> Plan:
            taken = np.ones(len(columns), dtype=bool)
            taken[free] = x[: len(free)] > 0.5
            return self._plan_of(columns.take(taken))

        return _Near(None if is_short else milp, reach, 0.0, read)

    def _mixes_within(self, stage: Stage, priced: _Priced, reach: float, most: int) -> _Near | None:
        """List the servers with few such mixes; the others in compact form. None for too many servers."""
        active = np.flatnonzero(stage.active)
        prices = stage.prices(priced.duals)
        found = mixtures(
            self.servers,
            active,
            prices,
            stage.largest_unserved,
            np.full(self.servers.count, reach),
            self.left_s,
            most_columns=_MOST_LISTED,
            tally=self._tally(stage),
        )
        reduced = found.columns.value(prices) - priced.lower[found.columns.server]
        if (reduced <= reach).sum() > most:
            reach = float(np.partition(reduced, most)[most])
        is_listed = np.zeros(self.servers.count, dtype=bool)
        is_listed[active] = found.reach[active] >= priced.lower[active] + reach
        near = is_listed[found.columns.server] & (reduced <= reach * (1.0 + _INTEGRAL))
        listed = found.columns.take(near)
        listed = listed.take(np.argsort(listed.server, kind="stable"))
        if len(np.unique(listed.server)) < is_listed.sum() or is_listed[active].all():
            return self._near_program(stage, listed, reach)
        if self.servers.count > _CLOSABLE:
            return None
        milp, formulation, shift = self._compact(stage, priced, is_listed, reach)
        milp, back = with_columns(milp, formulation, self.servers, listed)
        return _Near(milp, reach, shift, lambda x: formulation.read_plan(back @ x))

    def _compact(
        self, stage: Stage, priced: _Priced, is_listed: BoolArray, reach: float
    ) -> tuple[Milp, Formulation, float]:
        """Write the program of all plans within `reach` in compact form, tightened but for listed servers.

        Returns what is subtracted from the value of a plan in it, too.
        """
        everything = stage.reached is None
        reached = () if stage.reached is None else stage.reached
        index = len(self.levels) - 1 if everything else len(reached)
        formulation = formulate(self.problem, serve_all=everything)
        milp = program(formulation, index, tuple(v + _HOLD_TOLERANCE * max(1.0, abs(v)) for v in reached))
        if everything or not self.problem.policy.partial:
            none = np.zeros(self.servers.count)
            full = replace(stage, largest_unserved=none)
            prices = full.prices(priced.duals)
            lower, _ = self._lower(full, priced.columns, self.has_option, priced.duals, none)
            lower[is_listed] = np.nan
            milp = with_serving_rows(milp, formulation, self.servers, prices, lower)
            worth = np.where(stage.active, priced.lower + reach * (1.0 + _INTEGRAL), np.inf)
            upper, option = milp.column_upper.copy(), formulation.option_column
            upper[option] = np.minimum(upper[option], self.servers.most_below(prices, worth))
            milp = replace(milp, column_upper=upper)
        return milp, formulation, formulation.objectives[index].shift

    def _plan_of(self, columns: Columns) -> Plan:
        replicas = np.asarray(columns.replicas.sum(axis=0)).ravel()
        return Plan(np.rint(replicas).astype(np.int64))

    def _columns_of(self, plan: Plan) -> Columns:
        """Return the columns that a plan has, one of each server with an option."""
        problem = self.problem
        used = np.flatnonzero(plan.replicas)
        server = np.flatnonzero(self.has_option)
        row = np.searchsorted(server, problem.option_server[used])
        replicas = csr_matrix(
            (plan.replicas[used], (row, used)), shape=(len(server), len(problem.option_server))
        )
        keeping = np.bincount(row, self.servers.keeping_per_h[used], minlength=len(server))
        unserved = 1.0 - score(problem, plan).served_share[server]
        return Columns(server, replicas, self.servers.leaving_per_h[server] - keeping, unserved)


def _lagrangian(lower: FloatArray, duals: FloatArray, limits: FloatArray) -> float:
    """Sum of the servers' least values less the worth of the limits, rounded down."""
    worth = duals * limits
    error = _SUM_ERROR * (float(np.abs(lower).sum()) + float(np.abs(worth).sum()))
    return float(lower.sum()) - float(worth.sum()) - error


def _keys(columns: Columns) -> IntArray:
    """Return a number for each column that equal columns share, shape (C,)."""
    factor = np.random.default_rng(0).integers(1, 2**62, columns.replicas.shape[1])
    with np.errstate(over="ignore"):
        keys: IntArray = columns.replicas.astype(np.int64) @ factor + columns.server
    return keys


def _distinct(columns: Columns) -> Columns:
    """Return each column once, sorted by server."""
    _, first = np.unique(_keys(columns), return_index=True)
    return columns.take(first[np.argsort(columns.server[first], kind="stable")])
