"""Levels of service with one type per server: a plan is sought at each value that one can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from solver.assignment import excluded
from solver.selection import is_compiled, selected

if TYPE_CHECKING:
    from solver.milp import BoolArray
    from solver.search import Priced, Search
    from solver.stage import Stage

# Values that are tried, from the bound on.
_TRIED = 4

# Part of a unit that is rounding.
_ROUNDING = 1e-4


def stepped(
    search: Search, stage: Stage, priced: Priced, value: float, bound: float, unit: float
) -> tuple[float, float, BoolArray]:
    """Better a plan of this `value` (inf: none) and its `bound`, where plans are worth multiples of `unit`.

    What no plan of some value has is excluded by knapsacks. Among the columns that are left dynamic
    programming finds plans that it does not find among all.

    Returns
    -------
    value, bound : float
    near : (C,) bool
        Columns that a better plan may have.
    """
    near = np.ones(len(priced.columns), dtype=bool)
    active = int(stage.active.sum())
    if not is_compiled() or priced.master is None or value <= bound + _ROUNDING * unit:
        return value, bound, near
    step = (1.0 - _ROUNDING) * unit
    most = min(value, bound + _TRIED * unit)
    known = excluded(search, stage, priced, most, step)
    if known is None:
        return value, bound, near
    found, lowest, least = known
    # Beyond that they say nothing.
    most -= step
    value = min(value, found)
    bound = max(bound, float(np.ceil(lowest / unit - _ROUNDING)) * unit)
    taken = np.zeros((search.servers.count, len(stage.limits)))
    columns, x = priced.master.columns, priced.master.x
    np.add.at(taken, columns.server, x[:, None] * stage.usage(columns))
    for tried in bound + unit * np.arange(_TRIED):
        cutoff = tried + _ROUNDING * unit
        if cutoff >= value or tried > most or search.left_s() <= 0:
            break
        columns = priced.columns.take(least < cutoff)
        lower = np.inf
        if len(np.unique(columns.server)) == active:
            listed, expected = search.listed(stage, columns), taken[stage.active]
            plan, lower = selected(
                listed,
                priced.duals,
                cutoff,
                0.0,
                cutoff,
                search.left_s,
                expected,
                largest_first=True,
                tries=1,
            )
            if plan is not None and search.fits(stage, columns.take(plan)):
                value = float(stage.worth(columns.take(plan)).sum())
                search.adopt(search.plan_of(columns.take(plan)))
                break
        if lower >= cutoff:
            bound = tried + unit
    if value - step <= most:
        near = least < value - step
        if len(np.unique(priced.columns.server[near])) < active:
            # There is no better plan.
            bound = value
    return value, bound, near
