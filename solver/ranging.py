"""For how many GPUs a dual holds: the interval of a row's limit on which the optimum falls at that rate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import bmat, coo_matrix, csr_matrix, diags, identity, kron

from solver.milp import Milp, Termination

if TYPE_CHECKING:
    from solver.milp import Backend, FloatArray, IntArray, SolveOptions

# How far above the line the optimum may be and count as on it, relatively: rounding.
_ON_THE_LINE = 1e-9

# Columns whose reduced cost is above this, relative to the usual cost, stay where they are along the line.
_OFF_THE_LINE = 1e-6


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
    row, worth = np.repeat(rows, 2), np.repeat(worths, 2)
    blocks, count = len(row), 2 * len(rows) * milp.columns
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    block = np.arange(blocks)
    change = coo_matrix(
        (np.full(blocks, -1.0), (block * milp.rows + row, block)), shape=(blocks * milp.rows, blocks)
    )
    lines = kron(diags(1.0 / worth), csr_matrix(milp.objective[None, :]))
    every = bmat([[kron(identity(blocks), matrix), change], [lines, identity(blocks)]], format="csr")
    most = (value - milp.offset) / worth
    found = backend.solve(
        Milp(
            objective=np.r_[np.zeros(count), np.tile([1.0, -1.0], len(rows))],
            row_start=every.indptr.astype(np.int64),
            column=every.indices.astype(np.int64),
            value=every.data,
            row_lower=np.r_[np.tile(milp.row_lower, blocks), np.full(blocks, -np.inf)],
            row_upper=np.r_[
                np.tile(milp.row_upper, blocks), most + _ON_THE_LINE * np.maximum(1.0, np.abs(most))
            ],
            column_lower=np.r_[np.tile(milp.column_lower, blocks), np.full(blocks, -np.inf)],
            column_upper=np.r_[np.tile(milp.column_upper, blocks), np.full(blocks, np.inf)],
            integer=np.zeros(count + blocks, dtype=bool),
        ),
        replace(options, relax=True, start=None),
    )
    if found.termination is not Termination.OPTIMAL or found.x is None:
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
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    rest = matrix @ diags(np.where(stays, 0.0, 1.0))
    rest.eliminate_zeros()
    alone = (np.diff(rest.indptr) == 1) & (milp.row_lower == milp.row_upper)
    stays[rest.indices[rest.indptr[:-1][alone]]] = True
    taken = matrix @ np.where(stays, x, 0.0)
    matrix = matrix[:, ~stays]
    empty = np.diff(matrix.indptr) == 0
    kept = ~empty | np.isneginf(milp.row_lower)
    matrix = matrix[kept]
    upper = milp.row_upper - taken
    program = Milp(
        objective=milp.objective[~stays],
        row_start=matrix.indptr.astype(np.int64),
        column=matrix.indices.astype(np.int64),
        value=matrix.data,
        row_lower=(milp.row_lower - taken)[kept],
        # A row without columns is met; only rounding says otherwise.
        row_upper=np.where(empty, np.maximum(upper, 0.0), upper)[kept],
        column_lower=milp.column_lower[~stays],
        column_upper=milp.column_upper[~stays],
        integer=milp.integer[~stays],
        offset=milp.offset + float(milp.objective[stays] @ x[stays]),
    )
    return program, np.where(kept, np.cumsum(kept) - 1, -1)
