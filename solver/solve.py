"""Solve an `AllocationProblem` exactly, level by level of its objective, within a deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from solver.backends.greedy import greedy
from solver.check import carried_rps, score, served_share, violations
from solver.errors import SolverError
from solver.formulate import formulate, is_whole, program
from solver.milp import Milp, SolveOptions, Termination
from solver.problem import DEMAND_TOLERANCE, HOLD_TOLERANCE, Level, LevelKind, Plan
from solver.ranging import on_the_line, ranges_of_rows
from solver.reduce import dominated, keep, onto
from solver.starts import is_better

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from solver.formulate import Formulation
    from solver.milp import Backend, BoolArray, FloatArray, IntArray, RawSolution
    from solver.problem import AllocationProblem

# Seconds after the time limit in which further levels are still begun: a small program has its answer at
# once, and a large one takes longer than that only to be read.
_OVERTIME_S = 0.5


@dataclass(frozen=True)
class LevelResult:
    """What is known of one level of the objective.

    Attributes
    ----------
    level : Level
    value : float
        Of the plan.
    bound : float
        Proven lower bound, given the values of the levels before; -inf when nothing is proven.
    termination : Termination
    """

    level: Level
    value: float
    bound: float
    termination: Termination


@dataclass(frozen=True)
class GpuValue:
    """Duals of the inventory rows in the linear relaxation of the last programs solved.

    Attributes
    ----------
    cost_per_h : (T,) float
        Cost per hour that one more GPU of the type would save, >= 0; NaN where the type is unlimited.
    unserved : (T,) float
        Unserved share that it would serve at the first level that is not fully served; zeros when all is
        served, NaN where the type is unlimited.
    cost_range, unserved_range : (T, 2) float
        GPUs of the type from and to which that is so, with those of the other types as they are; NaN where
        it is not known, and where the value is 0.
    """

    cost_per_h: FloatArray
    unserved: FloatArray
    cost_range: FloatArray
    unserved_range: FloatArray

    @classmethod
    def unknown(cls, types: int) -> GpuValue:
        """Return that nothing is known of so many types."""
        value, ends = np.full(types, np.nan), np.full((types, 2), np.nan)
        return cls(value, value, ends, ends)

    @classmethod
    def of(cls, cost: Duals, short: Duals | None) -> GpuValue:
        """Join what the cost level and the first level that is not fully served say; None where all is."""
        if short is None:
            nothing = np.where(np.isnan(cost.per_gpu), np.nan, 0.0)
            short = Duals(nothing, np.full_like(cost.ranges, np.nan))
        return cls(cost.per_gpu, short.per_gpu, cost.ranges, short.ranges)


class Duals(NamedTuple):
    """Fall of a relaxed optimum per GPU of each type, shape (T,), and where it holds, shape (T, 2)."""

    per_gpu: FloatArray
    ranges: FloatArray


@dataclass(frozen=True)
class Solved:
    """A plan and how good it is.

    Attributes
    ----------
    plan : Plan
        Over all options of the problem.
    levels : tuple of LevelResult
        Most important first, cost last.
    dominated : (J,) bool
        Options left out of the program because another one replaces them at no loss.
    value_of_gpu : GpuValue
    solver, version : str
    program : Milp or None
        The last program solved, for a model file; None when there was nothing to decide.
    led_by_start : bool
        Whether the start that was given was better than what there was otherwise before the search.
    """

    plan: Plan
    levels: tuple[LevelResult, ...]
    dominated: BoolArray
    value_of_gpu: GpuValue
    solver: str
    version: str
    program: Milp | None
    led_by_start: bool = False

    @property
    def termination(self) -> Termination:
        """Optimal when every level is; otherwise why the first one that is not stopped."""
        return next(
            (r.termination for r in self.levels if r.termination is not Termination.OPTIMAL),
            Termination.OPTIMAL,
        )


class _Clock:
    """What is left of the time limit."""

    def __init__(self, limit_s: float, now: Callable[[], float]) -> None:
        self._now = now
        self._end = now() + limit_s

    def left_s(self, share: float = 1.0) -> float:
        # A solver asked for no time at all may not even look at a start.
        return max(share * (self._end - self._now()), 0.01)

    @property
    def is_overdue(self) -> bool:
        """Whether the limit is past by so much that not even a look at a start is worth it."""
        return self._now() > self._end + _OVERTIME_S


def solve(
    problem: AllocationProblem,
    backend: Backend,
    options: SolveOptions,
    *,
    names: bool = False,
    start: Plan | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Solved:
    """Find the best plan for `problem`.

    Everything served at the least cost is tried first: where that is possible every service level is
    zero at once. Otherwise the levels are solved in their order, each with those before it held.

    Parameters
    ----------
    problem : AllocationProblem
    backend : Backend
    options : SolveOptions
        Time limit and gap for the whole of it.
    names : bool
        Name the columns and rows of `Solved.program`.
    start : Plan or None
        A plan to better, if it breaks no rule; the solver starts from it or from the baseline's plan,
        whichever is better.
    now : callable
        Monotonic clock in seconds.

    Raises
    ------
    SolverError
        From the backend, or when it calls a program infeasible that has a feasible point.
    """
    clock = _Clock(options.time_limit_s, now)
    out = dominated(problem)
    if out.all():
        return _nothing_to_decide(problem, out)
    if start is not None and violations(problem, start):
        start = None
    first = _stage(problem, serve_all=True, names=names)
    guess = first.guess(start)
    found = _everything(first, guess, backend, options, clock)
    if found is None:
        stage = _stage(problem, serve_all=False, names=names)
        guess = stage.guess(start)
        plan, results, raw, milp = _by_level(stage, guess.plan, backend, options, clock)
        value = _value_of_gpu(stage, results, backend, options, clock)
        return Solved(plan, results, out, value, raw.solver, raw.version, milp, guess.is_start)
    raw, relaxed, milp = found
    if raw.x is None:
        raise ValueError("a point is needed")
    results = _all_served(first.formulation, raw)
    value = GpuValue.of(_duals(first, milp, relaxed, backend, options, clock), None)
    plan = first.plan(raw.x)
    return Solved(plan, results, out, value, raw.solver, raw.version, milp, guess.is_start)


def _everything(
    stage: _Stage, guess: _Guess, backend: Backend, options: SolveOptions, clock: _Clock
) -> tuple[RawSolution, RawSolution, Milp] | None:
    """Serve everything at the least cost: what the solver found, the relaxation, and the program.

    The relaxation comes first: it says at once where not everything can be served, and with a plan that
    serves all in hand, columns whose reduced cost alone exceeds the gap between the two are zero in every
    better plan. None where not everything can be served, or no such plan was found in time.
    """
    problem, formulation = stage.problem, stage.formulation
    index = len(formulation.objectives) - 1
    milp = program(formulation, index)
    relaxed = backend.solve(milp, replace(options, time_limit_s=clock.left_s(0.5), relax=True))
    if relaxed.termination is Termination.INFEASIBLE:
        return None
    worth = score(problem, guess.plan)
    serves_all = bool((worth.served_share == 1.0).all())
    fixed = milp
    if serves_all and relaxed.reduced_cost is not None:
        margin = HOLD_TOLERANCE * max(1.0, abs(worth.levels[index]))
        out = relaxed.objective + relaxed.reduced_cost > worth.levels[index] + margin
        fixed = replace(milp, column_upper=np.where(out, milp.column_lower, milp.column_upper))
    raw = backend.solve(
        fixed,
        replace(
            options,
            # Without a plan in hand half of the time is kept for the levels.
            time_limit_s=clock.left_s(1.0 if serves_all else 0.5),
            start=stage.start(guess.plan) if serves_all else None,
        ),
    )
    if raw.x is None and serves_all:
        # The plan in hand is the answer; the relaxation bounds it.
        start = stage.start(guess.plan)
        raw = replace(raw, x=start, objective=worth.levels[index], bound=max(raw.bound, relaxed.bound))
    return None if raw.x is None else (raw, relaxed, milp)


@dataclass(frozen=True)
class _Guess:
    """A plan to begin with, and whether it is the start that was given rather than the baseline's."""

    plan: Plan
    is_start: bool


@dataclass(frozen=True)
class _Stage:
    """A formulation over some options of a problem."""

    problem: AllocationProblem
    options: IntArray
    whole: bool
    formulation: Formulation

    def plan(self, x: FloatArray) -> Plan:
        """Plan of a point, over all options of the problem."""
        return self._widen(self.formulation.read_plan(x))

    def guess(self, start: Plan | None) -> _Guess:
        """Return the better of the baseline's plan and a start, both with these options only."""
        plan = self._widen(greedy(keep(self.problem, self.options)))
        if start is not None and not (self.whole and _is_partial(self.problem, start)):
            mine = self._widen(onto(self.problem, self.options, start, whole=self.whole))
            if is_better(self.problem, mine, plan):
                return _Guess(mine, is_start=True)
        return _Guess(plan, is_start=False)

    def start(self, plan: Plan) -> FloatArray:
        """`plan`, which uses these options only, as a start for the solver."""
        return self.formulation.point(Plan(plan.replicas[self.options]))

    def _widen(self, plan: Plan) -> Plan:
        replicas = np.zeros(len(self.problem.option_server), dtype=np.int64)
        replicas[self.options] = plan.replicas
        return Plan(replicas)


def _is_partial(problem: AllocationProblem, plan: Plan) -> bool:
    """Whether a plan serves a part of some demand, which the whole program has no column for."""
    share = served_share(problem, plan)
    return bool(((share > 0) & (share < 1)).any())


def _stage(problem: AllocationProblem, *, serve_all: bool, names: bool) -> _Stage:
    whole = is_whole(problem, serve_all=serve_all)
    options = np.flatnonzero(~dominated(problem, whole=whole))
    return _Stage(
        problem, options, whole, formulate(keep(problem, options), serve_all=serve_all, names=names)
    )


def _all_served(formulation: Formulation, raw: RawSolution) -> tuple[LevelResult, ...]:
    """Every level but the last is zero."""
    results = [LevelResult(o.level, 0.0, 0.0, Termination.OPTIMAL) for o in formulation.objectives[:-1]]
    return (
        *results,
        LevelResult(formulation.objectives[-1].level, raw.objective, raw.bound, raw.termination),
    )


def _by_level(
    stage: _Stage, plan: Plan, backend: Backend, options: SolveOptions, clock: _Clock
) -> tuple[Plan, tuple[LevelResult, ...], RawSolution, Milp]:
    """Solve level after level; where a level finds no point in time, the best `plan` so far stands in."""
    results: list[LevelResult] = []
    objectives = stage.formulation.objectives
    for index, objective in enumerate(objectives):
        if results and clock.is_overdue:
            value = score(stage.problem, plan).levels[index]
            results.append(LevelResult(objective.level, value, -np.inf, Termination.TIME_LIMIT))
            continue
        milp = program(stage.formulation, index, _limits(results))
        share = 1.0 if index == len(objectives) - 1 else 0.5
        raw = backend.solve(milp, replace(options, time_limit_s=clock.left_s(share), start=stage.start(plan)))
        if raw.termination in (Termination.INFEASIBLE, Termination.UNBOUNDED):
            raise SolverError(
                f"{raw.solver} calls level {objective.level.name} {raw.termination}; it has a point"
            )
        if raw.x is not None:
            plan = stage.plan(raw.x)
            value = raw.objective + objective.shift
        else:
            value = score(stage.problem, plan).levels[index]
        results.append(LevelResult(objective.level, value, raw.bound + objective.shift, raw.termination))
    return plan, tuple(results), raw, milp


def _limits(results: Sequence[LevelResult]) -> tuple[float, ...]:
    """How large each level solved so far may be in the next one."""
    return tuple(r.value + HOLD_TOLERANCE * max(1.0, abs(r.value)) for r in results)


def _value_of_gpu(
    stage: _Stage,
    results: tuple[LevelResult, ...],
    backend: Backend,
    options: SolveOptions,
    clock: _Clock,
) -> GpuValue:
    """Duals of the relaxed programs: of the cost level, and of the first level that is not fully served."""
    if clock.is_overdue:
        return GpuValue.unknown(len(stage.problem.gpu_types))

    def duals(index: int) -> Duals:
        milp = program(stage.formulation, index, _limits(results[:index]))
        relax = replace(options, time_limit_s=clock.left_s(), relax=True, start=None)
        return _duals(stage, milp, backend.solve(milp, relax), backend, options, clock)

    short = next((i for i, r in enumerate(results[:-1]) if r.value > HOLD_TOLERANCE), None)
    return GpuValue.of(duals(len(results) - 1), None if short is None else duals(short))


def _duals(
    stage: _Stage,
    milp: Milp,
    relaxed: RawSolution,
    backend: Backend,
    options: SolveOptions,
    clock: _Clock,
) -> Duals:
    """Fall of the relaxed optimum per GPU of each type, NaN where unlimited or not known, and its ranges.

    Types known node by node have more rows than one that a GPU adds to, and no range.
    """
    formulation = stage.formulation
    per_gpu = np.full(len(formulation.inventory_row), np.nan)
    ranges = np.full((len(per_gpu), 2), np.nan)
    if relaxed.row_dual is None:
        return Duals(per_gpu, ranges)
    for rows in (formulation.inventory_row, formulation.single_card_row):
        there = rows >= 0
        per_gpu[there] = np.nan_to_num(per_gpu[there]) + np.maximum(-relaxed.row_dual[rows[there]], 0.0)
    if relaxed.x is None or relaxed.reduced_cost is None:
        return Duals(per_gpu, ranges)
    types = np.flatnonzero(stage.problem.inventory.is_pool & (per_gpu > 0))
    line, place = on_the_line(milp, relaxed.x, relaxed.reduced_cost)
    rows = place[formulation.inventory_row[types]]
    limits = replace(options, time_limit_s=clock.left_s())
    change = ranges_of_rows(line, rows, per_gpu[types], relaxed.objective, backend, limits)
    ranges[types] = stage.problem.inventory.gpus[types, None] + change
    return Duals(per_gpu, ranges)


def _nothing_to_decide(problem: AllocationProblem, out: BoolArray) -> Solved:
    """No server has an option: the empty plan is the only one."""
    plan = Plan(np.zeros(len(problem.option_server), dtype=np.int64))
    worth = score(problem, plan).levels[-1]
    level = Level(LevelKind.COST, np.ones(len(problem.servers), dtype=bool), "cost")
    return Solved(
        plan,
        (LevelResult(level, worth, worth, Termination.OPTIMAL),),
        out,
        GpuValue.unknown(len(problem.gpu_types)),
        "none",
        "",
        None,
    )


def prefer_small_batches(problem: AllocationProblem, plan: Plan) -> Plan:
    """Move each used option to the smallest batch limit that still carries its load with its replicas.

    Of equal plans (same accelerator, replicas and cost) this is the robust one: the queue waits in front of
    the replica instead of slowing every token.
    """
    replicas = plan.replicas.copy()
    carried = carried_rps(problem, plan)
    pair = problem.option_server * max(len(problem.accelerators), 1) + problem.option_accelerator
    used = np.flatnonzero(plan.replicas > 0)
    firsts, ends = np.searchsorted(pair, pair[used]), np.searchsorted(pair, pair[used], side="right")
    for j, first, end in zip(
        used[ends - firsts > 1], firsts[ends - firsts > 1], ends[ends - firsts > 1], strict=True
    ):
        enough = problem.capacity_rps[first:end] * plan.replicas[j] >= carried[j] * (1.0 - DEMAND_TOLERANCE)
        smallest = first + int(np.argmax(enough))
        replicas[j] = 0
        replicas[smallest] = plan.replicas[j]
    return Plan(replicas)
