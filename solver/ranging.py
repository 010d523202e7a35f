"""For how many GPUs a dual holds: the interval of a row's limit on which the optimum falls at that rate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from solver.milp import Milp, Termination
from solver.rows import starts

if TYPE_CHECKING:
    from solver.milp import Backend, FloatArray, IntArray, SolveOptions

# How far above the line the optimum may be and count as on it, relatively: rounding.
_ON_THE_LINE = 1e-9

# Columns whose reduced cost is above this, relative to the usual cost, stay where they are along the line.
_OFF_THE_LINE = 1e-6

# Columns of a small program.
_SMALL = 500


def ranges_of_rows(
    milp: Milp, rows: IntArray, worths: FloatArray, value: float, backend: Backend, options: SolveOptions
) -> FloatArray:
    """Changes of each row's limit between which the optimum of a linear program falls at the row's rate.

    The optimum is convex in the limit b of a row and nowhere below the line value - worth (b' - b), as a dual
    is a lower bound for every limit. So it is on the line just where some point costs no more: two linear
    programs, the least and the largest b' with a point on the line. Unlike the range in which a basis stays
    optimal, which ends at every degenerate vertex, this one ends where the rate changes. The programs of all
    rows are solved as one, in blocks: most are so small that solving each takes longer to begin than to do.

    Parameters
    ----------
    milp : Milp
        Taken without integrality.
    rows : (k,) int
        With an upper limit b.
    worths : (k,) float
        Their duals with the sign turned, > 0.
    value : float
        The optimum at b.
    backend : Backend
    options : SolveOptions
        Time limit of all of it.

    Returns
    -------
    (k, 2) float
        Least and largest b' - b, around 0; NaN where they were not found in time.
    """
    if not len(rows):
        return np.zeros((0, 2))
    moved, worth = np.repeat(rows, 2), np.repeat(worths, 2)
    blocks, count = len(moved), 2 * len(rows) * milp.columns
    block, priced = np.arange(blocks), np.flatnonzero(milp.objective)
    # Of each block: the program's rows; the change of the limit, after all other columns; the line.
    first, last, line = block * milp.columns, count + block, blocks * milp.rows + block
    entries: list[tuple[IntArray, IntArray, FloatArray]] = [
        (block[:, None] * milp.rows + milp.row_of_entry, first[:, None] + milp.column, milp.value),
        (block * milp.rows + moved, last, np.full(blocks, -1.0)),
        (line[:, None], first[:, None] + priced, milp.objective[priced] / worth[:, None]),
        (line, last, np.ones(blocks)),
    ]
    row, column, entry = (
        np.concatenate([part.ravel() for part in parts])
        for parts in zip(*(np.broadcast_arrays(*entry) for entry in entries), strict=True)
    )
    order = np.argsort(row, kind="stable")
    most = (value - milp.offset) / worth
    most += _ON_THE_LINE * np.maximum(1.0, np.abs(most))
    together = Milp(
        objective=np.concatenate([np.zeros(count), np.tile([1.0, -1.0], len(rows))]),
        row_start=starts(np.bincount(row, minlength=blocks * (milp.rows + 1))),
        column=column[order],
        value=entry[order],
        row_lower=np.concatenate([np.tile(milp.row_lower, blocks), np.full(blocks, -np.inf)]),
        row_upper=np.concatenate([np.tile(milp.row_upper, blocks), most]),
        column_lower=np.concatenate([np.tile(milp.column_lower, blocks), np.full(blocks, -np.inf)]),
        column_upper=np.concatenate([np.tile(milp.column_upper, blocks), np.full(blocks, np.inf)]),
        integer=np.zeros(count + blocks, dtype=bool),
    )
    # A third of the time of a small one is presolve, without which some large ones end a little off.
    for presolve in (False, True) if together.columns <= _SMALL else (True,):
        found = backend.solve(together, replace(options, relax=True, start=None, presolve=presolve))
        if found.termination is Termination.OPTIMAL and found.x is not None:
            break
    else:
        return np.full((len(rows), 2), np.nan)
    ends = found.x[count:].reshape(-1, 2)
    return np.column_stack([np.minimum(ends[:, 0], 0.0), np.maximum(ends[:, 1], 0.0)])


def on_the_line(milp: Milp, x: FloatArray, reduced_cost: FloatArray) -> tuple[Milp, IntArray]:
    """Leave out what is the same as long as the duals hold, and rows of only that.

    Those are the columns that stay at `x`, and then the columns that are alone in an equation.

    Parameters
    ----------
    milp : Milp
    x, reduced_cost : (n,) float
        An optimum of the linear program and its reduced costs.

    Returns
    -------
    Milp
    (m,) int
        Place of each row in it; -1 where it was left out, which no row without a lower limit is.
    """
    costs = np.abs(milp.objective[milp.objective != 0])
    stays = np.abs(reduced_cost) > _OFF_THE_LINE * (float(np.median(costs)) if costs.size else 0.0)
    row = milp.row_of_entry
    moves = ~stays[milp.column]
    alone = (np.bincount(row[moves], minlength=milp.rows) == 1) & (milp.row_lower == milp.row_upper)
    stays[milp.column[moves & alone[row]]] = True
    moves = ~stays[milp.column]
    taken = milp.row_activity(np.where(stays, x, 0.0))
    sizes = np.bincount(row[moves], minlength=milp.rows)
    empty = sizes == 0
    kept = ~empty | np.isneginf(milp.row_lower)
    upper = milp.row_upper - taken
    program = Milp(
        objective=milp.objective[~stays],
        row_start=starts(sizes[kept]),
        column=(np.cumsum(~stays) - 1)[milp.column[moves]],
        value=milp.value[moves],
        row_lower=(milp.row_lower - taken)[kept],
        # A row without columns is met; only rounding says otherwise.
        row_upper=np.where(empty, np.maximum(upper, 0.0), upper)[kept],
        column_lower=milp.column_lower[~stays],
        column_upper=milp.column_upper[~stays],
        integer=milp.integer[~stays],
        offset=milp.offset + float(milp.objective[stays] @ x[stays]),
    )
    return program, np.where(kept, np.cumsum(kept) - 1, -1)
