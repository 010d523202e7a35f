"""The exact method for large fleets: only the GPUs that exist couple the servers.

1. Each server alone: if the inventory holds what they would like best, that is the proven optimum.
2. Otherwise the coupling rows get prices (duals). At any prices, the sum of the servers' best columns less
   the worth of the inventory is a lower bound (the Lagrangian bound). Newton's method finds prices that are
   good for one-type columns, or for fractional mixes (`prices`); a restricted master program over the columns
   near the bound finds the last digits (Dantzig-Wolfe; `bounding`).
3. The columns that the master takes nearly fit. A few servers are changed to make them fit (`repair`), or
   dynamic programming, a beam search or small integer programs choose among columns near the bound
   (`selection`, `beam`, `between`, `planning`). With one type, plans are sought at each value of a level of
   service, among what knapsacks leave (`stepping`).
4. Dynamic programming over all columns near the bound proves the plan, or finds a better one (`proving`).
   Where that leaves a gap: programs over all columns whose reduced cost is below a reach, which is widened
   until they make a plan. What they do not make is not there, so each of them lifts the bound by its reach.
   With a mix, servers with too many such columns stand in them in compact form (`closing`, `listed`, `cuts`).

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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from solver.assignment import is_always_tried
from solver.backends.greedy import greedy
from solver.bounding import converge, has_plan, is_impossible
from solver.check import score, violations
from solver.closing import close
from solver.errors import SolverError
from solver.formulate import is_whole
from solver.milp import SolveOptions, Termination
from solver.packing import is_chain
from solver.planning import find_plan
from solver.problem import HOLD_TOLERANCE, LevelKind, Plan
from solver.ranging import on_the_line, ranges_of_rows
from solver.reduce import dominated, keep, onto
from solver.search import Priced, Search, distinct, lagrangian
from solver.selection import is_compiled, is_selected
from solver.solve import Duals, GpuValue, LevelResult, Solved, solve
from solver.stage import Held, Stage
from solver.starts import is_better

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from solver.milp import Backend, FloatArray
    from solver.problem import AllocationProblem, Level

# Share of the time limit that is kept for the baseline, and for what is done with the answer.
_TIME_AFTER = 0.15

# Without a time limit it is so long: there are shares of what is left.
_LONGEST_S = 1e7

# Branch and bound for so few servers finds its first plan as soon as any other way; for more, dynamic
# programming does.
_FEW = 100

# Share of the time that must be left where a level is taken to reach its bound: if it does not, all is done
# again.
_TIME_AFTER_DEFERRING = 2.0 / 3.0

# Relative differences below this are rounding: of sums, and between value and bound of a solved program.
_TINY, _SOLVED = 1e-9, 1e-8

# A level of whole steps below the value of a plan begins at so much of a step less.
_NEXT = 1.0 - 1e-4

# A bound above the value of a plan by more, relatively, is a mistake.
_CONTRADICTION = 1e-5


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
    options = replace(options, time_limit_s=min(options.time_limit_s, _LONGEST_S))
    end = now() + (1.0 - _TIME_AFTER) * options.time_limit_s
    out = dominated(problem)
    whole = is_whole(problem, serve_all=False)
    kept = np.flatnonzero(~(dominated(problem, whole=True) if whole else out))
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
        first = onto(problem, kept, start, whole=whole)
    led = bool((score(reduced, first).served_share == 1.0).all())

    def baseline() -> Plan:
        nonlocal led
        plan = onto(problem, kept, greedy(problem), whole=whole)
        led = is_better(reduced, first, plan)
        return plan

    search = Search(reduced, backend, options, left_s, first)
    if np.isnan(search.servers.least_unserved).any():
        return direct()
    found = _Levels(search, baseline).run()
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
class _Found:
    plan: Plan
    levels: tuple[LevelResult, ...]
    value_of_gpu: GpuValue


@dataclass(frozen=True)
class _Levels:
    """The levels of the objective, solved in their order."""

    search: Search
    baseline: Callable[[], Plan]

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.search.problem.levels

    def run(self) -> _Found | None:
        """Solve every level; None where a case is left to the direct method."""
        is_deferring = self.search.mixes and is_compiled()
        to_bound_s = _TIME_AFTER_DEFERRING * self.search.left_s() if is_deferring else np.inf
        self.search.pool = distinct(self.search.pool.joined(self.search.incumbent))
        best = self.search.servers.least_unserved
        floors = tuple(self._floor(level) for level in self.levels[:-1])
        stage = self._cost_stage((), best, floors if best.any() else None)
        priced = converge(self.search, stage)
        is_nearly = False
        if priced is not None and not self._is_short(priced):
            found, bound = self._cheapest(stage, priced)
            is_nearly = bound == np.inf
            if found:
                return self._found(floors, bound, self._value(priced, None))
        if any(level.kind is LevelKind.WORST_SHARE for level in self.levels):
            return None
        # Levels are held at what the best plan so far makes of them.
        self.search.adopt(self.baseline())
        self.search.pool = distinct(self.search.pool.joined(self.search.incumbent))
        found_by_level = None
        if priced is None or self.search.left_s() > to_bound_s:
            found_by_level = self._by_level(
                to_floor=priced is None, to_bound_s=to_bound_s, is_nearly=is_nearly
            )
        return found_by_level or self._by_level(is_nearly=is_nearly)

    def _cost_stage(
        self, held: tuple[Held, ...], largest_unserved: FloatArray, reached: tuple[float, ...] | None
    ) -> Stage:
        zero = np.zeros(self.search.servers.count)
        return Stage(
            self.search.servers,
            self.search.coupling,
            zero,
            zero,
            1.0,
            held,
            largest_unserved,
            self.search.has_option,
            reached,
        )

    def _floor(self, level: Level) -> float:
        """Least value of a service level, each server at the least unserved share it can have."""
        least = self.search.servers.least_unserved
        share = least if level.kind is not LevelKind.UNMET else (least > 0).astype(np.float64)
        if level.kind is LevelKind.WORST_SHARE:
            return float(share[level.servers].max())
        return float((self.search.problem.weight * share)[level.servers].sum())

    def _unit(self, level: Level) -> float:
        """What the value of a service level rises by at least when it is above the floor."""
        weight, by_share = self.search.problem.weight[level.servers], level.kind is LevelKind.UNSERVED
        return float(weight.min()) if self.search.steps_are_whole(weight, by_share=by_share) else 0.0

    def _everything(self, level: Level) -> float:
        """Value of a service level when nothing is served."""
        worst = level.kind is LevelKind.WORST_SHARE
        return 1.0 if worst else float(self.search.problem.weight[level.servers].sum())

    def _found(self, bounds: Sequence[float], cost_per_h: float, value: GpuValue) -> _Found:
        """Return the incumbent, with the bounds of the levels of service and of what options decide."""
        idle = ~self.search.has_option
        cost_per_h += float(self.search.servers.leaving_per_h[idle].sum())
        results = tuple(self._result(index, proven) for index, proven in enumerate((*bounds, cost_per_h)))
        return _Found(self.search.plan, results, value)

    def _result(self, index: int, bound: float) -> LevelResult:
        value = self.search.score.levels[index]
        if bound > value + _CONTRADICTION * max(1.0, abs(value)):
            raise SolverError(f"level {self.levels[index].name}: bound {bound} above the plan's {value}")
        # A bound is a sum in another order than the value; between equals only rounding is left.
        bound = min(bound, value)
        # A gap at a level of service is relative to what is served.
        size = abs(value) if index == len(self.levels) - 1 else self._everything(self.levels[index]) - value
        small = self.search.options.relative_gap * size + _SOLVED * max(1.0, abs(value))
        if value - bound <= small:
            ended = Termination.OPTIMAL
        else:
            ended = Termination.TIME_LIMIT if self.search.left_s() <= 0 else Termination.FEASIBLE
        return LevelResult(self.levels[index], value, bound, ended)

    def _by_level(
        self, *, to_floor: bool = False, to_bound_s: float = np.inf, is_nearly: bool = False
    ) -> _Found | None:
        """Solve the levels in their order.

        With `to_floor`, a level is taken to reach the least that any plan can have unless prices prove the
        opposite; as long as more than `to_bound_s` seconds are left, a level that plans can meet exactly is
        taken to reach its bound where a repair finds no plan that does. Both are left to the plan of a later
        level, whose prices make all limits count: None where no such plan was found. With `is_nearly`, the
        relaxation can serve everything, and it is proven that no plan can.
        """
        least = self.search.servers.least_unserved
        largest = np.ones(len(least))
        held: tuple[Held, ...] = ()
        active = np.zeros(len(least), dtype=bool)
        zero = np.zeros(len(least))
        bounds: list[float] = []
        reached: list[float] = []
        first_short: Priced | None = None
        deferred = served = False
        for level in self.levels[:-1]:
            weight = np.where(level.servers, self.search.problem.weight, 0.0)
            active |= level.servers
            by_share = level.kind is LevelKind.UNSERVED
            unserved, unmet = (weight, zero) if by_share else (zero, weight)
            floor = self._floor(level)
            bounds.append(floor)
            reached.append(floor)
            if not (level.servers & (largest > least)).any():
                continue
            most = float(self.search.most_cost_per_h[active].sum())
            money = self.search.money_room / most if most > 0 else 0.0
            stage = Stage(
                self.search.servers,
                self.search.coupling,
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
            if has_plan(self.search, all_met):
                largest = best
                continue
            if is_nearly and (best == least).all():
                # A server more is short than has to be: that is known without a search, and no GPU more
                # makes a difference to the relaxation.
                bounds[-1] += self._unit(level)
                value = self.search.score.levels[len(bounds) - 1]
                if value <= bounds[-1] + HOLD_TOLERANCE:
                    reached[-1] = value
                    held = (*held, Held(unserved, unmet, value + HOLD_TOLERANCE))
                    self.search.hint = np.zeros(0)
                    continue
            priced: Priced | None = None
            if to_floor and not (best == least).all() and self.search.left_s() > 0:
                if self.search.is_listed(stage.allowed(self.search.pool)):
                    priced = converge(self.search, stage)
                    is_open = priced is not None and priced.bound <= floor + self.search.money_room
                else:
                    is_open = not is_impossible(self.search, all_met)
                if is_open:
                    # No plan so far is known to meet it: one of a later level has to. Not all levels can be.
                    deferred, served, largest = True, False, best
                    continue
            if priced is None and self.search.left_s() > 0:
                # There is a plan, or a level before is deferred and one that is short ends this.
                priced = converge(self.search, stage, may_fit=True)
            if deferred and not served and self._is_short(priced):
                return None
            found, bound = False, bounds[-1]
            # A plan reaches the bound exactly only where values are sums of weights.
            is_exact = priced is not None and self._unit(level) > 0
            quick = is_exact and self.search.left_s() > to_bound_s
            if priced is not None:
                found, bound = self._serve(stage, priced, len(bounds) - 1, quick=quick)
            if quick and not found:
                deferred, served, value = True, False, bound
            elif deferred and not (found or served):
                return None
            else:
                served = served or found
                value = self.search.score.levels[len(bounds) - 1]
            reached[-1] = value
            if value <= floor + HOLD_TOLERANCE:
                largest = best
            else:
                first_short = first_short or priced
                held = (*held, Held(unserved, unmet, value + HOLD_TOLERANCE))
                self.search.hint = np.zeros(0) if priced is None else priced.duals
            bounds[-1] = max(bounds[-1], bound)
            self.search.pool = distinct(self.search.pool.joined(self.search.incumbent))
        stage = self._cost_stage(held, largest, tuple(reached))
        priced = converge(self.search, stage) if self.search.left_s() > 0 else None
        if deferred and not served and self._is_short(priced):
            return None
        found, bound = False, -np.inf
        if priced is not None:
            found, bound = self._cheapest(stage, priced, quick=deferred and not served)
        if deferred and not (found or served):
            return None
        if priced is None:
            bound = self._alone_per_h(stage)
        return self._found(bounds, bound, self._value(priced, first_short))

    def _is_short(self, priced: Priced | None) -> bool:
        """Whether the master could not keep its limits, in time to do something about it."""
        return priced is not None and priced.short > HOLD_TOLERANCE and self.search.left_s() > 0

    def _alone_per_h(self, stage: Stage) -> float:
        """Sum of the servers' least costs, each with all the cards: the bound without any prices."""
        columns, free = stage.allowed(self.search.pool), np.zeros(len(stage.limits))
        lower, _ = self.search.lower(stage, columns, stage.active, free, np.zeros(self.search.servers.count))
        bound = lagrangian(lower[stage.active], free, stage.limits)
        return bound if np.isfinite(bound) else 0.0

    def _serve(self, stage: Stage, priced: Priced, index: int, *, quick: bool) -> tuple[bool, float]:
        """Better the incumbent at service level `index`; whether a plan was found, and the level's bound.

        With `quick`, by a repair only; what does not reach the bound is no plan then.
        """
        level = self.levels[index]
        by_share = level.kind is LevelKind.UNSERVED
        weight = self.search.problem.weight[level.servers]
        if quick:
            bound = self.search.whole_steps(weight, priced.bound - self.search.money_room, by_share=by_share)
            room = self.search.money_room + self.search.options.relative_gap * bound
            columns = find_plan(self.search, stage, priced, bound + room, quick=True)
            value = np.inf if columns is None else float(stage.service(columns).sum())
            return self._close_enough(value, bound), bound
        bare = replace(stage, money=0.0)
        lower, _ = self.search.lower(
            bare, priced.columns, stage.active, priced.duals, np.zeros(self.search.servers.count)
        )
        bare_bound = lagrangian(lower[stage.active], priced.duals, stage.limits)
        bound = self.search.whole_steps(weight, bare_bound, by_share=by_share)
        money = max(priced.bound - bare_bound, 0.0)
        room = self.search.money_room + self.search.options.relative_gap * bound
        columns = find_plan(self.search, stage, priced, bound + money + room)
        value = np.inf if columns is None else float(stage.service(columns).sum())
        if self._close_enough(value, bound):
            return True, bound
        reduced = priced.columns.value(bare.prices(priced.duals)) - lower[priced.columns.server]
        bare_priced = replace(priced, lower=lower, reduced=reduced, bound=bare_bound)
        step = self.search.options.relative_gap * float(weight.sum() - value) if np.isfinite(value) else 0.0
        unit = float(weight.min()) if self.search.steps_are_whole(weight, by_share=by_share) else None
        if unit is not None:
            step = max(step, _NEXT * unit)
        found, bound = close(self.search, bare, bare_priced, value, bound, step, unit)
        return found, self.search.whole_steps(weight, bound, by_share=by_share)

    def _value(self, cost: Priced | None, short: Priced | None) -> GpuValue:
        if cost is None:
            return GpuValue.unknown(len(self.search.problem.gpu_types))
        return GpuValue.of(self._duals(cost), None if short is None else self._duals(short))

    def _duals(self, priced: Priced) -> Duals:
        """Prices of a GPU of each type, and the ranges in which they are the restricted master's."""
        count = len(self.search.problem.gpu_types)
        per_gpu, ranges = np.full(count, np.nan), np.full((count, 2), np.nan)
        per_gpu[self.search.coupling.row_type] = 0.0
        master = priced.master if priced.short <= HOLD_TOLERANCE else None
        duals = priced.duals if master is None else master.duals
        rows = np.flatnonzero(self.search.coupling.counts_cards)
        np.add.at(per_gpu, self.search.coupling.row_type[rows], duals[rows])
        raw = None if master is None else master.raw
        if master is None or raw is None or raw.x is None or raw.reduced_cost is None:
            return Duals(per_gpu, ranges)
        is_ranged = self.search.problem.inventory.is_pool & (per_gpu > 0)
        rows = rows[is_ranged[self.search.coupling.row_type[rows]]]
        types = self.search.coupling.row_type[rows]
        line, place = on_the_line(master.milp, raw.x, raw.reduced_cost)
        limits = replace(self.search.options, time_limit_s=max(self.search.left_s(), 0.01))
        change = ranges_of_rows(line, place[rows], per_gpu[types], raw.objective, self.search.backend, limits)
        ranges[types] = self.search.coupling.limit[rows, None] + change
        return Duals(per_gpu, ranges)

    def _cheapest(self, stage: Stage, priced: Priced, *, quick: bool = False) -> tuple[bool, float]:
        """Better the incumbent at the cost level; whether a plan was found, and the bound.

        With `quick`, none is sought by integer programs.
        """
        bound = priced.bound
        step = self.search.options.relative_gap * abs(bound)
        few = self.search.servers.count <= _FEW and is_always_tried(self.search, stage, priced.columns)
        if few or (not self.search.mixes and is_selected(self.search, serves_all=not stage.held)):
            known = self.search.incumbent_in(stage, priced.columns)
            columns = None if known is None else priced.columns.take(known)
        else:
            columns = find_plan(self.search, stage, priced, bound + 0.99 * step, quick=quick)
        if quick and columns is None:
            return False, bound
        value = np.inf if columns is None else float(stage.worth(columns).sum())
        return close(self.search, stage, priced, value, bound, step)

    def _close_enough(self, value: float, bound: float) -> bool:
        if np.isinf(value):
            return False
        return value - bound <= self.search.options.relative_gap * abs(value) + _TINY * max(1.0, abs(value))
