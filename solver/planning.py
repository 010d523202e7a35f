"""A plan of the columns that prices like best: repair, beam searches, small integer programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from solver.beam import Effort, matched
from solver.between import mixes_between
from solver.pricing import mixtures
from solver.repair import repaired
from solver.search import MOST_COLUMNS, keys

if TYPE_CHECKING:
    from solver.milp import FloatArray, IntArray
    from solver.pricing import Columns
    from solver.search import Priced, Search
    from solver.stage import Stage

# Share of the time left that making a plan fit may take.
_TIME_TO_REPAIR = 0.12

# Fleets of at most so many servers, where the columns nearest to changing rarely make a better plan than one
# so many gaps from the bound.
_FEW, _NEAR = 100, 12.0

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


def find_plan(search: Search, stage: Stage, priced: Priced, good: float) -> Columns | None:
    """Find one column of each active server that together are worth at most `good`, or near it.

    None if no columns were found that fit together.
    """
    limits = stage.limits
    chosen = priced.chosen[priced.chosen >= 0]
    if len(chosen) < stage.active.sum():
        # Out of time before every server had a column.
        return None
    known = _incumbent_in(search, stage, priced.columns, limits)
    best = None if known is None else priced.columns.take(known)
    value = np.inf if best is None else float(stage.worth(best).sum())
    listed = search.listed(stage, priced.columns)
    distance = listed.distance(priced.duals, priced.reduced, chosen)
    # What has to be found is columns that move the last few GPUs to where they fit, at little cost; a
    # column beyond what the plan may cost above the bound is a last resort.
    far = (priced.reduced > good - priced.bound) & (distance > 0)
    distance[far] += distance.max(initial=0.0)
    nearest = np.argsort(distance, kind="stable")
    # Leaving a server out takes away excess wherever that is allowed.
    empty = np.flatnonzero(np.diff(priced.columns.replicas.indptr) == 0)
    until_s = (1.0 - _TIME_TO_REPAIR) * search.left_s()
    for count in (_REPAIR_COLUMNS, len(nearest)):
        which = np.union1d(nearest[: count + len(chosen)], empty)
        repair = repaired(
            listed.take(which),
            priced.reduced[which],
            priced.duals,
            np.searchsorted(which, chosen),
            lambda: search.left_s() - until_s,
        )
        found = None if repair is None else which[repair]
        best, value = _better(search, stage, priced.columns, found, best, value)
        if repair is not None or count >= len(nearest):
            break
    for effort in _efforts(search) if stage.money == 1.0 else ():
        if value <= good or search.left_s() <= 0:
            break
        best, value = _better(search, stage, *_matched(search, stage, priced, good, effort), best, value)
    gap = (good - priced.bound) / abs(good) if good > 0 else 0.0
    is_cost, closable = stage.money == 1.0, not search.mixes or search.is_closable
    # A compact program is the better last resort where it is small enough.
    sizes = _PLAN_COLUMNS[:-1] if search.mixes and closable else (*_PLAN_COLUMNS, len(nearest))
    for count in sizes:
        if count > MOST_COLUMNS:
            break
        near = value - priced.bound <= _NEAR * (good - priced.bound)
        tried = search.servers.count <= _FEW and near if search.mixes else count > _PLAN_COLUMNS[0]
        enough = is_cost and closable and tried
        if value <= good or (best is not None and enough):
            break
        if best is not None and search.left_s() <= 0:
            break
        which = np.sort(nearest[: count + len(chosen)])
        found = _choose(search, stage, priced.columns, which, limits, 0.3 * search.left_s(), gap)
        best, value = _better(search, stage, priced.columns, found, best, value)
        if count >= len(nearest):
            break
    if best is not None:
        search.adopt(search.plan_of(best))
    return best


def _better(
    search: Search, stage: Stage, columns: Columns, which: IntArray | None, best: Columns | None, value: float
) -> tuple[Columns | None, float]:
    """Return these columns and what they are worth if that is less than `value`, or else `best`."""
    if which is not None:
        found = columns.take(which)
        worth = float(stage.worth(found).sum())
        if worth < value:
            return found, worth
    return best, value


def _efforts(search: Search) -> tuple[Effort, ...]:
    count = search.servers.count
    if not search.mixes:
        return _EFFORTS_OF_ONE_TYPE if count >= _MATCHED_ONE_TYPE_FROM else ()
    if count < _MATCHED_FROM:
        return ()
    return _EFFORTS_OF_FEW if search.is_closable else _EFFORTS


def _matched(
    search: Search, stage: Stage, priced: Priced, good: float, effort: Effort
) -> tuple[Columns, IntArray | None]:
    """Choose one column of each active server by a beam search, among columns that it returns too."""
    master, columns, room = priced.master, priced.columns, good - priced.bound
    if master is None:
        return columns, None
    split = np.flatnonzero(priced.split)
    reduced, usage = priced.reduced, stage.usage(master.columns)
    expected = np.zeros((search.servers.count, len(stage.limits)))
    np.add.at(expected, master.columns.server, master.x[:, None] * usage)
    if search.mixes:
        # A server that is divided runs many replicas: which of the many ways fits is what matters most.
        reach = np.full(search.servers.count, _DIVIDED_REACH * effort.room * room)
        prices = stage.prices(priced.duals)
        tally = search.tally(stage)
        near = mixtures(
            search.servers,
            split,
            prices,
            stage.largest_unserved,
            reach,
            search.left_s,
            most_columns=_DIVIDED_COLUMNS,
            tally=tally,
        ).columns
        mine = priced.split[master.columns.server]
        mean = master.columns.replicas[mine].T @ master.x[mine]
        between = mixes_between(
            search.servers,
            split,
            mean,
            prices,
            reach,
            search.left_s,
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
    listed = search.listed(stage, columns)
    divided = priced.split[active]
    taken = np.where(divided[:, None], expected[active], listed.usage[chosen])
    found = matched(listed, reduced, priced.duals, chosen, taken, divided, room, effort, search.left_s)
    if found is not None and not search.fits(stage, columns.take(found), stage.limits):
        return columns, None
    return columns, found


def _incumbent_in(search: Search, stage: Stage, columns: Columns, limits: FloatArray) -> IntArray | None:
    """Columns of the last plan, and nothing for servers it left out; None where that breaks a limit."""
    active = np.flatnonzero(stage.active)
    empty = np.flatnonzero(np.diff(columns.replicas.indptr) == 0)
    mine, wanted = keys(columns), keys(search.incumbent)
    order = np.argsort(mine, kind="stable")
    spot = np.minimum(np.searchsorted(mine[order], wanted), len(order) - 1)
    there = mine[order[spot]] == wanted
    result = np.full(search.servers.count, -1, dtype=np.int64)
    result[columns.server[empty]] = empty
    result[search.incumbent.server] = np.where(there, order[spot], -1)
    found = result[active]
    if (found < 0).any() or not search.fits(stage, columns.take(found), limits):
        return None
    return found


def _choose(
    search: Search,
    stage: Stage,
    columns: Columns,
    which: IntArray,
    limits: FloatArray,
    seconds: float,
    gap: float,
) -> IntArray | None:
    """Choose one column of each server among `which`; None for no plan."""
    few = columns.take(which)
    milp, free = search.program_of(stage, few, limits, price=np.inf, integer=True)
    raw = search.solve(milp, relax=False, seconds=seconds, gap=gap)
    if raw.x is None:
        return None
    taken = np.ones(len(few), dtype=bool)
    taken[free] = raw.x[: len(free)] > 0.5
    return which[taken]
