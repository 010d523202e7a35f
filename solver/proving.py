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

# Most mixes of a server to list, and partial plans of it.
_MOST_LISTED, _MOST_STATES = 3_000, 20_000

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
    reach, wider = _FIRST_REACH * pace, 1
    if search.mixes:
        mean = abs(priced.bound) / max(int(stage.active.sum()), 1)
        reach, wider = min(_FIRST_REACH_OF_MIX * pace, _PART_OF_SERVER * mean) + bound - priced.bound, _WIDER
    while search.left_s() > until_s and bound < value - step - _TINY * max(1.0, abs(bound)):
        # With a mix, a little farther there are many more columns; with one type, any better plan helps.
        less = step if search.mixes else 0.0
        wanted = min(reach, value - less - priced.bound)
        columns, whole = _within(search, stage, priced, wanted)
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
        reach *= 2.0
    return value, bound


def _within(search: Search, stage: Stage, priced: Priced, reach: float) -> tuple[Columns, float]:
    """Columns of reduced cost up to `reach`, by server, or less where they are not all known; up to what."""
    columns, reduced = priced.columns, priced.reduced
    if search.mixes:
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
            most_states=_MOST_STATES,
            tally=search.tally(stage),
        )
        columns = found.columns.take(np.argsort(found.columns.server, kind="stable"))
        reduced = columns.value(prices) - priced.lower[columns.server]
        reach = min(reach, float((found.reach[active] - priced.lower[active]).min()))
    return columns.take(reduced <= reach * (1.0 + _ROUNDING)), reach
