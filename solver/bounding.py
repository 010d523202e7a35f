"""Prices of the coupling rows and the bound they prove: pricing and restricted master in turns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from solver.prices import along, ascend, parted
from solver.problem import HOLD_TOLERANCE
from solver.search import Mastered, Priced, distinct, lagrangian, places

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.pricing import Columns
    from solver.search import Search
    from solver.stage import Stage

# Most rounds of columns; prices seldom need more than four.
_MOST_ROUNDS = 12

# Share of the time limit that the search for prices leaves to the search for plans.
_TIME_FOR_PLANS = 0.15

# Servers in the sample that the first prices come from.
_SAMPLE = 1000

# Slack of the columns that pricing returns, relative to the mean value of a server: at least this, and
# relative to the value of all servers; where fewer than so many are there, this at the cost level, and at a
# level of service, of which only the next step counts.
_SLACK, _SLACK_OF_ALL = 0.001, 0.5
_FEW, _SLACK_OF_FEW, _SLACK_OF_FEW_SERVED = 40, 0.2, 0.1

# Columns of the restricted master beside the best of each server: at least these, and so many for each.
_MASTER_COLUMNS, _MASTER_COLUMNS_EACH = 600, 1.0

# Smoothing of the bound where the search for prices starts: with no prices yet, along those of the level
# before, and near good ones.
_COLD, _HINTED, _WARM = 0.05, 0.003, 2e-4

# Smoothing where it ends: with few servers every digit of the bound helps to close the gap; along the prices
# of a level before, relative to values that these make large.
_SHARPEST_OF_FEW, _SHARPEST, _SHARPEST_HINTED = 1e-5, 3e-5, 3e-4

# Part of the gap asked for that the bound may stay below the master's value; the rest is left for the plan.
_MET = 0.1

# A round that changes neither the bound nor the master by more, relatively, is the last.
_SMALL_STEP = 1e-7

# Relative differences below this are rounding.
_TINY = 1e-9

# How far from a whole number a solver's answer may be and count as whole.
_INTEGRAL = 1e-6


def converge(search: Search, stage: Stage, *, may_fit: bool = False) -> Priced | None:
    """Find prices whose Lagrangian bound meets the restricted master.

    None where a server has no column, or the prices prove that no columns fit together; with `may_fit` that
    is not tried, and what does not fit is short.
    """
    columns = stage.allowed(search.pool)
    active = np.flatnonzero(stage.active)
    is_cost = stage.money == 1.0
    if not stage.held and (is_cost or not stage.active[search.has_option].all()):
        # With a level held some servers are short, and what they leave has a price. All servers together were
        # tried at the cost level before any other.
        alone, columns = _alone(search, stage, columns)
        if alone is not None:
            return alone
    if len(np.unique(columns.server)) < len(active):
        return None
    if search.is_listed(columns):
        # These are all the columns there are, so this master is the last one.
        master = _master(search, stage, columns)
        if master is not None:
            is_short = master.short > HOLD_TOLERANCE and not has_plan(search, stage)
            if is_short and (_is_proof(search, stage, master.duals) or is_impossible(search, stage)):
                return None
            return _rounds(search, stage, columns, master.duals, master)
    if not (may_fit or has_plan(search, stage)) and is_impossible(search, stage):
        return None
    two_short = len(stage.held) + (stage.money < 1.0) > 1
    guide = stage.allowed(search.pool if two_short else search.guide)
    is_hinted = bool(stage.held) and len(search.hint) + 1 == len(stage.limits)
    hint = np.r_[search.hint, 1.0] if is_hinted else None
    if two_short and hint is not None:
        duals = _near_hint(search, stage, guide, hint)
    else:
        duals = _by_sample(search, stage, guide, hint)
    return _rounds(search, stage, columns, duals, None)


def _by_sample(search: Search, stage: Stage, guide: Columns, hint: FloatArray | None) -> FloatArray:
    """Prices that are good for a sample of the servers first, then for all; `hint` is a direction."""
    few, room = _sample(search, stage, guide)
    sample, most = search.listed(stage, few, room), search.penalty(stage, guide)
    sharpest = _SHARPEST_OF_FEW if search.is_closable else _SHARPEST
    duals, start = np.zeros(len(stage.limits)), _COLD
    if hint is not None:
        duals, start = along(sample, hint, most), _WARM
    duals = ascend(sample, duals, most, start, search.left_s, sharpest)
    if len(few) == len(guide):
        return duals
    return ascend(search.listed(stage, guide), duals, most, _WARM, search.left_s, sharpest)


def _near_hint(search: Search, stage: Stage, guide: Columns, hint: FloatArray) -> FloatArray:
    """Prices where two levels fall short, near those of the first.

    They are so high that parts of a replica count, and a large server of the first level is worth thousands
    of small ones of the second: what is good for a sample is not for all.
    """
    listed, most = search.listed(stage, guide), search.penalty(stage, guide)
    duals = along(listed, hint, most)
    worth = listed.bound(duals)[0] + float(duals @ stage.limits)
    listed = replace(listed, scale=worth / int(stage.active.sum()) + _TINY)
    return ascend(listed, duals, most, _HINTED, search.left_s, _SHARPEST_HINTED)


def has_plan(search: Search, stage: Stage) -> bool:
    """Whether the incumbent is a plan of this stage."""
    plan = stage.allowed(search.incumbent)
    return len(plan) == int(stage.active.sum()) and search.fits(stage, plan)


def is_impossible(search: Search, stage: Stage) -> bool:
    """Whether some prices prove that no columns fit together.

    By Farkas' lemma: where even the columns that take the least at these prices take more than there is.
    """
    limits = stage.limits
    if not len(limits):
        return False
    zero = np.zeros(search.servers.count)
    bare = replace(stage, money=0.0, unserved=zero, unmet=zero)
    most = 1.0 / np.maximum(limits, 1.0)
    columns = stage.allowed(search.pool)
    if search.is_listed(columns):
        excess = _master(search, bare, columns, most)
        return excess is not None and _is_proof(search, stage, excess.duals)
    guide = stage.allowed(search.guide)
    few, room = _sample(search, stage, guide)
    duals = parted(search.listed(bare, few, room), 0.5 * most, most, _COLD, search.left_s)
    if duals is not None and len(few) < len(guide):
        duals = parted(search.listed(bare, guide), duals, most, _WARM, search.left_s)
    return duals is not None and _is_proof(search, stage, duals)


def _is_proof(search: Search, stage: Stage, duals: FloatArray) -> bool:
    """Whether even the columns that take the least at these prices take more than there is."""
    zero = np.zeros(search.servers.count)
    bare = replace(stage, money=0.0, unserved=zero, unmet=zero)
    lower, _ = search.lower(bare, stage.allowed(search.pool), stage.active, duals, zero)
    worth = float(duals @ np.abs(stage.limits))
    return lagrangian(lower[stage.active], duals, stage.limits) > _TINY * worth


def _sample(search: Search, stage: Stage, columns: Columns) -> tuple[Columns, FloatArray]:
    """Columns of some `_SAMPLE` servers of every size, and their share of the limits.

    Where a level is held, the few servers that it leaves short decide what the others pay: then all that
    the incumbent leaves short are there, and the sample has what the incumbent gives it.
    """
    active = np.flatnonzero(stage.active)
    if len(active) <= 2 * _SAMPLE:
        return columns, stage.limits
    size = search.size[active]
    by_size = np.argsort(size, kind="stable")[:: len(active) // _SAMPLE]
    sample = np.zeros(search.servers.count, dtype=bool)
    sample[active[by_size]] = True
    if not stage.held:
        share = float(size[by_size].sum() / size.sum())
        return columns.take(sample[columns.server]), share * stage.limits
    now = search.incumbent
    sample[now.server[now.unserved > 0]] = True
    others = now.take(stage.active[now.server] & ~sample[now.server])
    sample &= stage.active
    return columns.take(sample[columns.server]), stage.limits - stage.usage(others).sum(axis=0)


def _alone(search: Search, stage: Stage, columns: Columns) -> tuple[Priced | None, Columns]:
    """Each server's best column at no prices if all fit together; the columns with those found."""
    free = np.zeros(len(stage.limits))
    lower, columns = search.lower(stage, columns, stage.active, free, _slack(search, stage, columns, free))
    reduced = columns.value(stage.prices(free)) - lower[columns.server]
    chosen = search.least(columns, reduced)
    best = columns.take(chosen[chosen >= 0])
    if len(best) < stage.active.sum() or not search.fits(stage, best):
        return None, columns
    bound = lagrangian(lower[stage.active], free, stage.limits)
    split = np.zeros(search.servers.count, dtype=bool)
    return Priced(columns, lower, reduced, free, bound, chosen, split, 0.0), columns


def _rounds(
    search: Search, stage: Stage, columns: Columns, duals: FloatArray, master: Mastered | None
) -> Priced:
    """Alternate pricing and restricted master, from these prices, those of `master` if there is one."""
    active = stage.active
    best_bound, best_duals, best_lower = -np.inf, duals, np.zeros(search.servers.count)
    near: Columns | None = None
    cheaper = True
    for _ in range(_MOST_ROUNDS):
        slack = _slack(search, stage, columns, duals)
        lower, columns = search.lower(stage, columns, active, duals, slack)
        reduced = columns.value(stage.prices(duals)) - lower[columns.server]
        columns, reduced = _worth_keeping(search, columns, reduced, float(slack.max(initial=0.0)))
        bound = lagrangian(lower[active], duals, stage.limits)
        better = bound - best_bound > _SMALL_STEP * abs(bound)
        if bound > best_bound:
            best_bound, best_duals, best_lower = bound, duals, lower
        if not better and not cheaper:
            break
        late = search.left_s() < _TIME_FOR_PLANS * search.options.time_limit_s
        if _met(search, stage, master, best_bound) or (late and master is not None):
            break
        before = 0 if near is None else len(near)
        nearer = _near(search, stage, columns, reduced, duals, int(active.sum()))
        if near is None:
            # With a plan among them the master keeps its limits.
            near = stage.allowed(search.basis).joined(stage.allowed(search.incumbent))
        near = distinct(nearer.joined(near))
        solved = _master(search, stage, near)
        if solved is None:
            break
        cheaper = master is None or master.value - solved.value > _SMALL_STEP * abs(solved.value)
        master = solved
        # Prices of the master overshoot where it has few columns: halfway to them is better then.
        duals = solved.duals if better else 0.5 * (best_duals + solved.duals)
        if _met(search, stage, master, best_bound) or len(near) == before:
            break
    if search.mixes and master is not None:
        columns = distinct(columns.joined(master.columns))
    reduced = columns.value(stage.prices(best_duals)) - best_lower[columns.server]
    if master is None:
        # Out of time: the bound is good, what the prices like best need not fit.
        chosen = search.least(columns, reduced)
        split = chosen >= 0
        return Priced(columns, best_lower, reduced, best_duals, best_bound, chosen, split, np.inf)
    search.basis = master.columns.take(master.x > 0)
    chosen, split = _read(search, columns, master)
    short = master.short
    return Priced(columns, best_lower, reduced, best_duals, best_bound, chosen, split, short, master)


def _met(search: Search, stage: Stage, master: Mastered | None, bound: float) -> bool:
    """Whether the bound is near enough to the master's value, the least it could be."""
    if master is None:
        return False
    close = _MET * search.options.relative_gap * abs(master.value) + _TINY * max(1.0, abs(master.value))
    if stage.money < 1.0:
        close += 0.01 * search.money_room
        # Where servers are served whole, only the next sum of weights counts.
        weight = np.maximum(stage.unserved, stage.unmet)
        bound = search.whole_steps(weight[weight > 0], bound, by_share=bool(stage.unserved.any()))
    return master.value - bound <= close


def _slack(search: Search, stage: Stage, columns: Columns, duals: FloatArray) -> FloatArray:
    """How far above its best a server's mixes are of interest, shape (S,)."""
    values = columns.value(stage.prices(duals))
    least = np.full(search.servers.count, np.inf)
    np.minimum.at(least, columns.server, values)
    known = least[np.isfinite(least)]
    if not len(known):
        return np.zeros(search.servers.count)
    of_all = _SLACK_OF_ALL
    if len(known) < _FEW:
        of_all = _SLACK_OF_FEW if stage.money == 1.0 else _SLACK_OF_FEW_SERVED
    share = min(max(_SLACK, of_all / len(known)), 1.0)
    # Prices far too high make values that no plan has.
    most = _most_worth(search, stage) / stage.active.sum()
    return np.full(search.servers.count, share * min(float(known.mean()), most))


def _most_worth(search: Search, stage: Stage) -> float:
    """Objective that no plan without a superfluous replica exceeds."""
    worth = stage.money * search.most_cost_per_h + stage.unserved + stage.unmet
    return float(worth[stage.active].sum())


def _worth_keeping(
    search: Search, columns: Columns, reduced: FloatArray, slack: float
) -> tuple[Columns, FloatArray]:
    """Drop mixes far from the bound, to bound memory; the columns of one type are few enough to stay."""
    if not search.mixes:
        return columns, reduced
    kept = (reduced <= 4.0 * slack) | (columns.replicas.sizes <= 1)
    least = search.least(columns, reduced)
    kept[least[least >= 0]] = True
    return columns.take(kept), reduced[kept]


def _near(
    search: Search, stage: Stage, columns: Columns, reduced: FloatArray, duals: FloatArray, servers: int
) -> Columns:
    """Return the columns that the least change of prices makes best, and the best of every server."""
    most = servers + max(_MASTER_COLUMNS, int(_MASTER_COLUMNS_EACH * servers))
    if len(columns) <= most:
        return columns
    least = search.least(columns, reduced)
    best = least[least >= 0]
    distance = search.listed(stage, columns).distance(duals, reduced, best)
    return columns.take(np.sort(np.argpartition(distance, most)[:most]))


def _master(
    search: Search, stage: Stage, columns: Columns, price: FloatArray | None = None
) -> Mastered | None:
    """Solve the relaxation, with a price for what is beyond the limits."""
    price = search.penalty(stage, columns) if price is None else price
    milp, free = search.program_of(stage, columns, price=price, integer=False)
    raw = search.solve(milp, relax=True)
    if raw.x is None or raw.row_dual is None:
        return None
    x = np.ones(len(columns))
    x[free] = raw.x[: len(free)]
    duals = np.maximum(-raw.row_dual[: len(stage.limits)], 0.0)
    short = float(raw.x[len(free) :].max(initial=0.0))
    return Mastered(milp, raw, columns, x, duals, raw.objective, short)


def _read(search: Search, columns: Columns, master: Mastered) -> tuple[IntArray, BoolArray]:
    """Each server's main column of the master's solution in `columns`, and whether it has others."""
    main = search.least(master.columns, -master.x)
    there = np.flatnonzero(main >= 0)
    most = np.zeros(search.servers.count)
    most[there] = master.x[main[there]]
    split = np.zeros(search.servers.count, dtype=bool)
    split[there] = most[there] < 1.0 - _INTEGRAL
    chosen = np.full(search.servers.count, -1, dtype=np.int64)
    taken = main[there]
    chosen[there] = taken if master.columns is columns else places(columns, master.columns.take(taken))
    return chosen, split
