"""The gap that is left: programs over all columns near the bound, widened until they make a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from solver.assignment import assigned
from solver.cuts import with_serving_rows
from solver.formulate import formulate, program
from solver.listed import below, with_columns
from solver.milp import Milp, Termination
from solver.mixtures import mixtures
from solver.problem import HOLD_TOLERANCE
from solver.proving import proven
from solver.search import MOST_COLUMNS
from solver.selection import is_selected
from solver.stepping import stepped

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.formulate import Formulation
    from solver.milp import BoolArray, FloatArray
    from solver.pricing import Columns
    from solver.problem import Plan
    from solver.search import Priced, Search
    from solver.stage import Stage

# Share of the time left that a program of the columns near the bound may take while there are wider ones, and
# what all of them leave to the whole program.
_TIME_TO_TRY, _TIME_AFTER_WIDENING = 0.25, 0.6

# How far above the bound the search for a better plan begins, in steps worth taking: at the cost level, and
# at the others. A plan so many steps from the bound is near enough to look at once for all that betters it.
# A step counts at least so much of the value there.
_FIRST_REACH_OF_COST, _FIRST_REACH_OF_SERVICE, _FIRST_REACH_OF_MIX, _NEARLY = 0.125, 0.01, 0.01, 3.0
_LEAST_STEP = 1e-4

# With one type, a plan so many steps from the bound is far from the best. A program of all columns betters
# it: at once, or with a level that is held, once one of the columns near the bound does not end in time.
_FAR = 8.0

# Programs of fleets with one type and at most so many servers start from their plan: mostly there is a better
# one. In larger fleets a row that asks for a better one proves sooner that there is none.
_STARTED = 700

# Columns of the first program; most mixes of a server to list.
_FIRST_COLUMNS, _MOST_LISTED = 1_000, 500

# Relative differences below this are rounding.
_TINY = 1e-9

# What a reach is widened by, relatively: the rounding of reduced costs.
_ROUNDING = 1e-6


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
    start : (n,) float or None
        Point of the incumbent, where it has one.
    """

    milp: Milp | None
    reach: float
    shift: float
    read: Callable[[FloatArray], Plan]
    start: FloatArray | None = None


def close(
    search: Search,
    stage: Stage,
    priced: Priced,
    value: float,
    bound: float,
    step: float,
    unit: float | None = None,
) -> tuple[bool, float]:
    """Narrow the gap to a plan of this `value` (inf: none); whether there is a plan, and the bound.

    `step` is the least improvement worth looking for; plans are worth multiples of `unit`, if it is given.
    """
    if not (search.mixes or search.servers.is_listed):
        # What the listed columns do not make, others might.
        return bool(np.isfinite(value)), bound
    if stage.money == 1.0 and is_selected(search, serves_all=not stage.held):
        value, bound = proven(search, stage, priced, value, bound, step, _until_s(search, stage, value))
        if bound >= value - step - _TINY * max(1.0, abs(bound)):
            return bool(np.isfinite(value)), bound
    if unit is not None:
        value, bound, near = stepped(search, stage, priced, value, bound, unit)
    else:
        value, bound, near = assigned(search, stage, priced, value, bound, step)
    if not near.any():
        return bool(np.isfinite(value)), bound
    if not near.all():
        priced = replace(priced, columns=priced.columns.take(near), reduced=priced.reduced[near])
    compact = search.mixes and search.is_closable
    until_s = _until_s(search, stage, value)
    widen_s = until_s + _TIME_AFTER_WIDENING * (search.left_s() - until_s) if compact else until_s
    if not search.mixes or stage.money == 1.0:
        # Without money too many mixes are worth the same.
        value, bound = _widen(search, stage, priced, value, bound, step, widen_s)
    if compact and bound < value - step and search.left_s() > until_s:
        nobody = np.zeros(search.servers.count, dtype=bool)
        milp, formulation, shift = _compact(search, stage, priced, nobody, value - priced.bound)
        start = formulation.point(search.plan) if np.isfinite(value) else None
        raw = search.solve(milp, relax=False, seconds=search.left_s() - until_s, start=start)
        if raw.termination is not Termination.INFEASIBLE:
            bound = max(bound, min(raw.bound + shift, value))
        if raw.x is not None and raw.objective + shift < value:
            value = raw.objective + shift
            search.adopt(formulation.read_plan(raw.x))
    return bool(np.isfinite(value)), bound


def _until_s(search: Search, stage: Stage, value: float) -> float:
    """Seconds to leave: where not everything can be served there are other stages to come."""
    is_last = stage.money == 1.0 and (np.isfinite(value) or stage.reached is not None)
    return 0.0 if is_last else 0.5 * search.left_s()


def _widen(
    search: Search, stage: Stage, priced: Priced, value: float, bound: float, step: float, until_s: float
) -> tuple[float, float]:
    """Solve programs over all columns near the bound, more each time; the best value and the bound.

    A plan worth less than ``priced.bound + reach`` has only columns of reduced cost below `reach`. Where
    these do not make such a plan, that is the new bound, and the reach is widened; otherwise the best
    plan they make is the best of all. Ends when `until_s` seconds are left.
    """
    is_cost = stage.money == 1.0
    pace = max(step, _LEAST_STEP * abs(priced.bound), _TINY)
    reach = (_FIRST_REACH_OF_COST if is_cost else _FIRST_REACH_OF_SERVICE) * pace + bound - priced.bound
    most = _FIRST_COLUMNS
    is_one_program = False
    is_far = is_cost and not search.mixes and _FAR * pace < value - priced.bound < np.inf
    if not search.mixes:
        most = MOST_COLUMNS
        is_one_program = search.is_closable or (is_far and not stage.held)
        if is_one_program or value - priced.bound <= _NEARLY * pace:
            reach = np.inf
    elif is_cost:
        reach = min(reach, _FIRST_REACH_OF_MIX * abs(priced.bound) / search.servers.count)
    while search.left_s() > until_s and bound < value - step - _TINY * max(1.0, abs(bound)):
        rest = value - step - priced.bound
        if not is_one_program:
            reach = min(reach, rest)
        near = _within(search, stage, priced, reach, most)
        if near is None:
            break
        end = priced.bound + near.reach
        raw = None
        if near.milp is not None:
            milp, start, most_worth = near.milp, None, np.inf
            is_started = is_one_program or (search.servers.count <= _STARTED and end + step >= value)
            if is_cost and is_started and near.start is not None:
                start = near.start
            else:
                # A plan worth more than `end` by no more than a step is good enough with that as the bound.
                most_worth = end + step if end + step < value else value - step
            if np.isfinite(most_worth):
                milp = below(milp, most_worth - near.shift)
                end = min(end, most_worth)
            # With a mix, a wider program is often the easier one; with one type, the whole one from the plan.
            is_tried = reach < rest if search.mixes else is_far and not is_one_program
            share = _TIME_TO_TRY if is_tried else 1.0
            seconds = share * (search.left_s() - until_s)
            # With a level of service it is cuts that prove, and presolve only takes its time.
            presolve = is_cost or search.mixes
            raw = search.solve(milp, relax=False, seconds=seconds, start=start, presolve=presolve)
        if raw is None or raw.termination is Termination.INFEASIBLE:
            bound = max(bound, min(end, value))
        else:
            bound = max(bound, min(raw.bound + near.shift, end, value))
        if raw is not None and raw.x is not None:
            value = min(value, raw.objective + near.shift)
            search.adopt(near.read(raw.x))
        if is_far and not is_one_program and raw is not None and raw.termination is Termination.TIME_LIMIT:
            is_one_program, reach = True, np.inf
            continue
        if near.reach >= rest or (near.reach < reach and most == MOST_COLUMNS):
            break
        most = min(2 * most, MOST_COLUMNS)
        if near.reach == reach:
            reach = 2.0 * reach if is_cost else rest
    return value, bound


def _within(search: Search, stage: Stage, priced: Priced, reach: float, most: int) -> _Near | None:
    """Write the program of all columns of reduced cost up to `reach`, or less where that is too many."""
    if search.mixes:
        return _mixes_within(search, stage, priced, reach, most)
    within = np.flatnonzero(priced.reduced <= reach * (1.0 + _ROUNDING))
    if len(within) > most:
        reach = float(np.partition(priced.reduced[within], most)[most])
        within = within[priced.reduced[within] <= reach]
    return _near_program(search, stage, priced.columns.take(within), reach)


def _near_program(search: Search, stage: Stage, columns: Columns, reach: float) -> _Near:
    """Write the program that chooses one of the columns of each server."""
    milp, free = search.program_of(stage, columns, price=None, integer=True)
    is_short = len(np.unique(columns.server)) < int(stage.active.sum())

    def read(x: FloatArray) -> Plan:
        taken = np.ones(len(columns), dtype=bool)
        taken[free] = x[: len(free)] > 0.5
        return search.plan_of(columns.take(taken))

    known = None if search.mixes else search.incumbent_in(stage, columns)
    start = None if known is None else np.isin(free, known).astype(np.float64)
    return _Near(None if is_short else milp, reach, 0.0, read, start)


def _mixes_within(search: Search, stage: Stage, priced: Priced, reach: float, most: int) -> _Near | None:
    """List the servers with few such mixes; the others in compact form. None for too many servers."""
    active = np.flatnonzero(stage.active)
    prices = stage.prices(priced.duals)
    found = mixtures(
        search.servers,
        active,
        prices,
        stage.largest_unserved,
        np.full(search.servers.count, reach),
        search.left_s,
        most_columns=_MOST_LISTED,
        tally=search.tally(stage),
    )
    reduced = found.columns.value(prices) - priced.lower[found.columns.server]
    if (reduced <= reach).sum() > most:
        reach = float(np.partition(reduced, most)[most])
    is_listed = np.zeros(search.servers.count, dtype=bool)
    is_listed[active] = found.reach[active] >= priced.lower[active] + reach
    near = is_listed[found.columns.server] & (reduced <= reach * (1.0 + _ROUNDING))
    listed = found.columns.take(near)
    listed = listed.take(np.argsort(listed.server, kind="stable"))
    if len(np.unique(listed.server)) < is_listed.sum() or is_listed[active].all():
        return _near_program(search, stage, listed, reach)
    if not search.is_closable:
        return None
    milp, formulation, shift = _compact(search, stage, priced, is_listed, reach)
    milp, back = with_columns(milp, formulation, search.servers, listed)
    return _Near(milp, reach, shift, lambda x: formulation.read_plan(back @ x))


def _compact(
    search: Search, stage: Stage, priced: Priced, is_listed: BoolArray, reach: float
) -> tuple[Milp, Formulation, float]:
    """Write the program of all plans within `reach` in compact form, tightened but for listed servers.

    Returns what is subtracted from the value of a plan in it, too.
    """
    everything = stage.reached is None
    reached = () if stage.reached is None else stage.reached
    index = len(search.problem.levels) - 1 if everything else len(reached)
    formulation = formulate(search.problem, serve_all=everything)
    milp = program(formulation, index, tuple(v + HOLD_TOLERANCE * max(1.0, abs(v)) for v in reached))
    if everything or not search.problem.policy.partial:
        none = np.zeros(search.servers.count)
        full = replace(stage, largest_unserved=none)
        prices = full.prices(priced.duals)
        lower, _ = search.lower(full, priced.columns, search.has_option, priced.duals, none)
        lower[is_listed] = np.nan
        milp = with_serving_rows(milp, formulation, search.servers, prices, lower)
        worth = np.where(stage.active, priced.lower + reach * (1.0 + _ROUNDING), np.inf)
        upper, option = milp.column_upper.copy(), formulation.option_column
        upper[option] = np.minimum(upper[option], search.servers.most_below(prices, worth))
        milp = replace(milp, column_upper=upper)
    return milp, formulation, formulation.objectives[index].shift
