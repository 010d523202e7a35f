"""The gap that is left: dynamic programming over all columns near the bound, more each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from solver.mixtures import mixtures
from solver.selection import selected

if TYPE_CHECKING:
    from solver.pricing import Columns
    from solver.search import Priced, Search
    from solver.stage import Stage

# How far above the bound it begins, in steps worth taking; with a mix, at most so many times the mean worth
# of a server. A step counts at least so much of the value there.
_FIRST_REACH, _FIRST_REACH_OF_MIX, _PART_OF_SERVER, _LEAST_STEP = 3.0, 0.5, 0.03, 1e-4

# Most mixes to list in all; partial plans of a server the first time, where too many are only the beginning,
# and later. With a reach so many times as far there are about this power of it times as many mixes; where a
# little farther would be too many, it ends.
_MOST_LISTED, _MOST_STATES_AT_FIRST, _MOST_STATES = 250_000, 400_000, 1_000_000
_GROWTH, _LITTLE_FARTHER = 3.0, 1.2

# Where the last reach is so many times the one before at most, there is none between them.
_LAST = 3.0

# Share of the time left that one listing may take.
_TIME_TO_LIST = 0.1

# How many times wider layers are with a mix, and once where all columns were looked at and no more than so
# many steps are left. With a level that is held, it is mostly the bound that is short; this lifts it little.
_WIDER, _LITTLE = 4, 4.0

# What a reach is widened by, relatively: the rounding of reduced costs.
_ROUNDING = 1e-6

# Relative differences below this are rounding.
_TINY = 1e-9


def proven(
    search: Search, stage: Stage, priced: Priced, value: float, bound: float, step: float, until_s: float
) -> tuple[float, float]:
    """Better a plan of this `value` (inf: none) and its `bound`; both as they are then.

    A plan worth less than ``priced.bound + reach`` has only columns of reduced cost below `reach`. Ends when
    the two are within a `step`, when there are too many columns, or when `until_s` seconds are left.
    """
    pace = max(step, _LEAST_STEP * abs(priced.bound), _TINY)
    reach, wider, most_states = _FIRST_REACH * pace, 1, _MOST_STATES_AT_FIRST
    if search.mixes:
        mean = abs(priced.bound) / max(int(stage.active.sum()), 1)
        reach, wider = min(_FIRST_REACH_OF_MIX * pace, _PART_OF_SERVER * mean) + bound - priced.bound, _WIDER
        if value - step - priced.bound <= _LAST * reach:
            reach = value - step - priced.bound
    while search.left_s() > until_s and bound < value - step - _TINY * max(1.0, abs(bound)):
        # With a mix, a little farther there are many more columns; with one type, any better plan helps.
        less = step if search.mixes else 0.0
        wanted = min(reach, value - less - priced.bound)
        columns, whole = _within(search, stage, priced, wanted, most_states)
        cutoff = priced.bound + whole
        if cutoff <= bound:
            break
        plan, lowest = None, np.inf
        if len(np.unique(columns.server)) == int(stage.active.sum()):
            listed = search.listed(stage, columns)
            plan, lowest = selected(
                listed,
                priced.duals,
                cutoff,
                0.0 if search.mixes else step,
                -np.inf,
                lambda: search.left_s() - until_s,
                wider=wider,
                # Where a level is held, what is served takes nearly all there is: hard to prove.
                thorough=bool(stage.held),
            )
        if plan is not None:
            chosen = columns.take(plan)
            worth = float(stage.worth(chosen).sum())
            if worth < value and search.fits(stage, chosen):
                value = worth
                search.adopt(search.plan_of(chosen))
        bound = max(bound, min(lowest, cutoff, value))
        if whole < wanted * (1.0 - _ROUNDING) or (search.mixes and lowest < cutoff):
            break
        is_all = not search.mixes and len(columns) == len(priced.columns)
        if is_all or priced.bound + reach >= value - less:
            if wider > 1 or stage.held or value - bound > _LITTLE * pace:
                break
            wider = _WIDER
        farther = 2.0
        if search.mixes:
            last = (value - less - priced.bound) / reach
            most = (_MOST_LISTED / max(len(columns), 1)) ** (1.0 / _GROWTH)
            farther = min(last if last <= _LAST else 2.0, most)
            if farther < min(last, _LITTLE_FARTHER):
                break
        reach, most_states = reach * farther, _MOST_STATES
    return value, bound


def _within(
    search: Search, stage: Stage, priced: Priced, reach: float, most_states: int
) -> tuple[Columns, float]:
    """Columns of reduced cost up to `reach`, by server, or less where they are not all known; up to what."""
    columns, reduced = priced.columns, priced.reduced
    if search.mixes:
        active = np.flatnonzero(stage.active)
        prices = stage.prices(priced.duals)
        until_s = (1.0 - _TIME_TO_LIST) * search.left_s()
        found = mixtures(
            search.servers,
            active,
            prices,
            stage.largest_unserved,
            np.full(search.servers.count, reach),
            lambda: search.left_s() - until_s,
            most_columns=_MOST_LISTED,
            most_states=most_states,
            tally=search.tally(stage),
        )
        columns = found.columns.take(np.argsort(found.columns.server, kind="stable"))
        reduced = columns.value(prices) - priced.lower[columns.server]
        reach = min(reach, float((found.reach[active] - priced.lower[active]).min()))
    return columns.take(reduced <= reach * (1.0 + _ROUNDING)), reach
