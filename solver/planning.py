"""A plan of the columns that prices like best: repair, beam searches, small integer programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from solver.assignment import is_always_tried
from solver.beam import Effort, matched
from solver.between import mixes_between
from solver.mixtures import mixtures
from solver.repair import repaired
from solver.search import MOST_COLUMNS, places
from solver.selection import is_compiled, is_selected, selected

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.prices import Listed
    from solver.pricing import Columns
    from solver.search import Mastered, Priced, Search
    from solver.stage import Stage

# Share of the time left that making a plan fit may take.
_TIME_TO_REPAIR = 0.12

# Fleets of at most so many servers, where the columns nearest to changing rarely make a better plan than one
# so many gaps from the bound.
_FEW, _NEAR = 100, 12.0

# Columns beside those of the master's solution in the integer programs that make a plan of it, one after
# the other. With one type the first is enough, as what closes the gap looks at all columns at once; with more
# than so many servers that takes so long that the second is tried as well.
_PLAN_COLUMNS, _MANY = (500, 2000, 6000), 1_500

# Columns beside those of the master's solution that a repair chooses from.
_REPAIR_COLUMNS = 30_000

# Beam searches for a plan, one after the other: with a mix, and with one type; and from how many servers on.
# The best plan of a smaller fleet is farther from the bound than they look.
_EFFORTS = (
    Effort(0.05, 0.1, 100, 200),
    Effort(0.01, 0.03, 100, 200),
    Effort(0.1, 0.3, 300, 500),
    Effort(0.01, 0.1, 300, 500),
)
_EFFORTS_OF_ONE_TYPE = (Effort(0.01, 0.03, 300, 500), _EFFORTS[2])
_MATCHED_FROM, _MATCHED_ONE_TYPE_FROM = 40, 3_000

# A plan is sought by dynamic programming so many gaps above the bound, among mixes of divided servers for one
# so many gaps above it; farther only where there is none. Fleets of fewer than so many servers better it by
# less than a gap, too: the farther it is, the more columns are listed to prove it.
_SELECTED = ((3.0, 0.5), (9.0, 3.0))
_BETTERED_BELOW, _BETTERED = 40, 0.1

# Mixes of a divided server that a beam search chooses from: how far above its best, in parts of what the plan
# may be above the bound, and how many at most.
_DIVIDED_REACH, _DIVIDED_COLUMNS = 0.6, 1_000


def find_plan(
    search: Search, stage: Stage, priced: Priced, good: float, *, quick: bool = False
) -> Columns | None:
    """Find one column of each active server that together are worth at most `good`, or near it.

    None if no columns were found that fit together. With `quick`, by a repair only at levels of service, and
    without integer programs at the cost level.
    """
    chosen = priced.chosen[priced.chosen >= 0]
    if len(chosen) < stage.active.sum():
        # Out of time before every server had a column.
        return None
    known = search.incumbent_in(stage, priced.columns)
    best = None if known is None else priced.columns.take(known)
    value = np.inf if best is None else float(stage.worth(best).sum())
    is_cost = stage.money == 1.0
    selects = is_selected(search, serves_all=is_cost and not stage.held)
    # Without the master's solution there is nothing to search from.
    master = priced.master if is_cost or not quick else None
    # With one type, what closes the gap looks at all columns at once at the cost level. Of few servers a
    # repair rarely makes a plan that is good enough.
    first = is_cost and search.servers.count < _BETTERED_BELOW if search.mixes else not is_cost
    if master is not None and selects and first:
        best, value = _by_selection(search, stage, priced, master, good, best, value)
        if best is not None and (value <= good or (is_cost and _is_near(priced, value, good))):
            search.adopt(search.plan_of(best))
            return best
    nearest = _Nearest(priced, search.listed(stage, priced.columns), good)
    best, value = _by_repair(search, stage, priced, nearest, best, value)
    if master is not None and selects and search.mixes and not first:
        best, value = _by_selection(search, stage, priced, master, good, best, value)
    elif master is not None and is_cost and not selects:
        best, value = _by_beams(search, stage, priced, master, good, best, value)
    if not quick:
        best, value = _by_programs(search, stage, priced, nearest, good, best, value)
    if best is not None:
        search.adopt(search.plan_of(best))
    return best


def _is_near(priced: Priced, value: float, good: float) -> bool:
    return value - priced.bound <= _NEAR * (good - priced.bound)


@dataclass(frozen=True)
class _Nearest:
    """Columns in the order in which a change of prices makes them the best.

    What has to be found is columns that move the last few GPUs to where they fit, at little cost; a column
    beyond what a `good` plan may cost above the bound is a last resort.
    """

    priced: Priced
    listed: Listed
    good: float

    @cached_property
    def order(self) -> IntArray:
        priced = self.priced
        chosen = priced.chosen[priced.chosen >= 0]
        distance = self.listed.distance(priced.duals, priced.reduced, chosen)
        far = (priced.reduced > self.good - priced.bound) & (distance > 0)
        distance[far] += distance.max(initial=0.0)
        if priced.master is not None:
            # With all that the master takes there is a mixture at least that keeps the limits.
            taken = priced.master.columns.take(priced.master.x > 0)
            distance[places(priced.columns, taken)] = -np.inf
        return np.argsort(distance, kind="stable")

    def first(self, count: int) -> IntArray:
        """Return so many of them, in the order of the columns."""
        if count >= len(self.priced.columns):
            return np.arange(len(self.priced.columns))
        return np.sort(self.order[:count])


def _by_repair(
    search: Search,
    stage: Stage,
    priced: Priced,
    nearest: _Nearest,
    best: Columns | None,
    value: float,
) -> tuple[Columns | None, float]:
    """Better a plan by exchanges that make the master's solution fit, among more and more columns."""
    chosen = priced.chosen[priced.chosen >= 0]
    # Leaving a server out takes away excess wherever that is allowed.
    empty = np.flatnonzero(priced.columns.replicas.sizes == 0)
    until_s = (1.0 - _TIME_TO_REPAIR) * search.left_s()
    for count in (_REPAIR_COLUMNS, len(priced.columns)):
        which = nearest.first(count + len(chosen))
        if len(which) < len(priced.columns):
            which = np.union1d(which, empty)
        repair = repaired(
            nearest.listed.take(which),
            priced.reduced[which],
            priced.duals,
            np.searchsorted(which, chosen),
            lambda: search.left_s() - until_s,
        )
        found = None if repair is None else which[repair]
        best, value = _better(stage, priced.columns, found, best, value)
        if repair is not None or count >= len(priced.columns):
            break
    return best, value


def _by_programs(
    search: Search,
    stage: Stage,
    priced: Priced,
    nearest: _Nearest,
    good: float,
    best: Columns | None,
    value: float,
) -> tuple[Columns | None, float]:
    """Better a plan by integer programs over more and more of the `nearest` columns, until one is good."""
    gap = (good - priced.bound) / abs(good) if good > 0 else 0.0
    servers = int((priced.chosen >= 0).sum())
    is_cost, closable = stage.money == 1.0, not search.mixes or search.is_closable
    sizes: tuple[int, ...] = (*_PLAN_COLUMNS, len(priced.columns))
    if search.is_closable or (is_cost and is_always_tried(search, stage, priced.columns)):
        # Programs of all columns, or the compact one, are as quick where they are small; and branch and bound
        # over knapsacks is quicker.
        sizes = _PLAN_COLUMNS[:-1] if search.mixes else ()
    most = 2 if search.servers.count > _MANY else 1
    for turn, count in enumerate(sizes):
        if count > MOST_COLUMNS:
            break
        near = _is_near(priced, value, good)
        tried = search.servers.count <= _FEW and near if search.mixes else turn >= most
        enough = is_cost and closable and tried
        if value <= good or (best is not None and enough):
            break
        if best is not None and search.left_s() <= 0:
            break
        which = nearest.first(count + servers)
        found = _choose(search, stage, priced.columns, which, 0.3 * search.left_s(), gap)
        best, value = _better(stage, priced.columns, found, best, value)
        if count >= len(priced.columns):
            break
    return best, value


def _by_beams(
    search: Search,
    stage: Stage,
    priced: Priced,
    master: Mastered,
    good: float,
    best: Columns | None,
    value: float,
) -> tuple[Columns | None, float]:
    """Better a plan by beam searches until one is good, or all were tried.

    The first takes less time than dynamic programming, and mostly finds one; that comes second, with a mix.
    """
    choice: _Choice | None = None
    for turn, effort in enumerate(_efforts(search)):
        if turn == 1 and search.mixes and is_compiled():
            best, value = _by_selection(search, stage, priced, master, good, best, value)
        if value <= good or search.left_s() <= 0:
            break
        choice = choice or _choice(search, stage, priced, master, good - priced.bound)
        found = _matched(search, stage, priced, choice, good, effort)
        best, value = _better(stage, choice.columns, found, best, value)
    return best, value


def _by_selection(
    search: Search,
    stage: Stage,
    priced: Priced,
    master: Mastered,
    good: float,
    best: Columns | None,
    value: float,
) -> tuple[Columns | None, float]:
    """Better a plan by dynamic programming, where that is not near enough to the bound."""
    is_cost, step = stage.money == 1.0, good - priced.bound
    least = step * (_BETTERED if search.servers.count < _BETTERED_BELOW else 1.0)
    tried = 0
    for reach, room in _SELECTED:
        if value <= good or search.left_s() <= 0:
            break
        choice = _choice(search, stage, priced, master, room * step)
        near = choice.reduced <= reach * step
        near[choice.chosen] = True
        which = np.flatnonzero(near)
        if len(which) == tried:
            # At levels of service there are no others; programs find more among them.
            break
        tried = len(which)
        listed, cutoff = choice.listed.take(which), min(value, priced.bound + reach * step)
        found, _ = selected(
            listed,
            priced.duals,
            cutoff,
            least,
            good,
            search.left_s,
            choice.expected,
            largest_first=is_cost,
        )
        if found is not None and search.fits(stage, choice.columns.take(which[found])):
            best, value = _better(stage, choice.columns, which[found], best, value)
            break
    return best, value


def _better(
    stage: Stage, columns: Columns, which: IntArray | None, best: Columns | None, value: float
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
    return _EFFORTS if count >= _MATCHED_FROM else ()


@dataclass(frozen=True)
class _Choice:
    """What searches for a plan choose from.

    Attributes
    ----------
    columns : Columns
        By server.
    reduced : (C,) float
        As of `Priced`.
    listed : Listed
        The same columns.
    chosen : (n,) int
        The main column of each active server in the master's solution.
    split : (n,) bool
        As of `Priced`, of the active servers.
    expected : (n, R + H) float
        What these take there.
    """

    columns: Columns
    reduced: FloatArray
    listed: Listed
    chosen: IntArray
    split: BoolArray
    expected: FloatArray


def _choice(search: Search, stage: Stage, priced: Priced, master: Mastered, room: float) -> _Choice:
    """List what a plan at most `room` above the bound is made of."""
    columns, reduced = priced.columns, priced.reduced
    if search.mixes and stage.money == 1.0:
        # At levels of service too many mixes are worth the same.
        more = _of_divided(search, stage, priced, master, _DIVIDED_REACH * room)
        reduced = np.r_[reduced, more.value(stage.prices(priced.duals)) - priced.lower[more.server]]
        columns = columns.joined(more)
    order = np.argsort(columns.server, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    columns, reduced = columns.take(order), reduced[order]
    active = np.flatnonzero(priced.chosen >= 0)
    chosen = place[priced.chosen[active]]
    listed = search.listed(stage, columns)
    taken = np.zeros((search.servers.count, len(stage.limits)))
    np.add.at(taken, master.columns.server, master.x[:, None] * stage.usage(master.columns))
    split = priced.split[active]
    # Others take whole cards, whatever the rounding of the solution.
    expected = np.where(split[:, None], taken[active], listed.usage[chosen])
    return _Choice(columns, reduced, listed, chosen, split, expected)


def _of_divided(search: Search, stage: Stage, priced: Priced, master: Mastered, slack: float) -> Columns:
    """Mixes of the servers that the master divides: those near the bound, and near the mean it takes.

    Such a server runs many replicas: which of the many ways fits is what matters most.
    """
    divided = np.flatnonzero(priced.split)
    prices, reach = stage.prices(priced.duals), np.full(search.servers.count, slack)
    most, tally, left_s = _DIVIDED_COLUMNS, search.tally(stage), search.left_s
    near = mixtures(
        search.servers,
        divided,
        prices,
        stage.largest_unserved,
        reach,
        left_s,
        most_columns=most,
        tally=tally,
    ).columns
    mine = priced.split[master.columns.server]
    mean = master.columns.replicas.take(mine).weighted_sum(master.x[mine])
    between = mixes_between(
        search.servers, divided, mean, prices, reach, left_s, most_columns=most, tally=tally
    )
    return near.joined(between)


def _matched(
    search: Search, stage: Stage, priced: Priced, choice: _Choice, good: float, effort: Effort
) -> IntArray | None:
    """Choose one column of each active server by a beam search; None for no plan."""
    found = matched(
        choice.listed,
        choice.reduced,
        priced.duals,
        choice.chosen,
        choice.expected,
        choice.split,
        good - priced.bound,
        effort,
        search.left_s,
    )
    if found is not None and not search.fits(stage, choice.columns.take(found)):
        return None
    return found


def _choose(
    search: Search, stage: Stage, columns: Columns, which: IntArray, seconds: float, gap: float
) -> IntArray | None:
    """Choose one column of each server among `which`; None for no plan."""
    few = columns.take(which)
    milp, free = search.program_of(stage, few, price=None, integer=True)
    raw = search.solve(milp, relax=False, seconds=seconds, gap=gap)
    if raw.x is None:
        return None
    taken = np.ones(len(few), dtype=bool)
    taken[free] = raw.x[: len(free)] > 0.5
    return which[taken]
