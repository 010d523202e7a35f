"""For how many GPUs a dual holds: the interval of a row's limit on which the optimum falls at that rate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, hstack, vstack

from solver.milp import Milp, Termination

if TYPE_CHECKING:
    from solver.milp import Backend, FloatArray, IntArray, SolveOptions

# How far above the line the optimum may be and count as on it, relatively: rounding.
_ON_THE_LINE = 1e-9

# Columns whose reduced cost is above this, relative to the usual cost, stay where they are along the line.
_OFF_THE_LINE = 1e-6


def range_of_row(
    milp: Milp, row: int, worth: float, value: float, backend: Backend, options: SolveOptions
) -> tuple[float, float]:
    """Changes of a row's limit between which the optimum of a linear program falls by `worth` for each unit.

    The optimum is convex in the limit b and nowhere below the line value - worth (b' - b), as a dual is a
    lower bound for every limit. So it is on the line just where some point costs no more: two linear
    programs, the least and the largest b' with a point on the line. Unlike the range in which a basis stays
    optimal, which ends at every degenerate vertex, this one ends where the rate changes.

    Parameters
    ----------
    milp : Milp
        Taken without integrality.
    row : int
        With an upper limit b.
    worth : float
        Its dual with the sign turned, > 0.
    value : float
        The optimum at b.
    backend : Backend
    options : SolveOptions
        Time limit of each of the two programs.

    Returns
    -------
    (float, float)
        Least and largest b' - b, around 0; NaN where a program was not solved.
    """
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    change = np.zeros((milp.rows, 1))
    change[row] = -1.0
    line = csr_matrix(np.r_[milp.objective / worth, 1.0][None, :])
    matrix = vstack([hstack([matrix, csr_matrix(change)]), line], format="csr")
    most = (value - milp.offset) / worth
    with_change = replace(
        milp,
        row_start=matrix.indptr.astype(np.int64),
        column=matrix.indices.astype(np.int64),
        value=matrix.data,
        row_lower=np.r_[milp.row_lower, -np.inf],
        row_upper=np.r_[milp.row_upper, most + _ON_THE_LINE * max(1.0, abs(most))],
        column_lower=np.r_[milp.column_lower, -np.inf],
        column_upper=np.r_[milp.column_upper, np.inf],
        integer=np.zeros(milp.columns + 1, dtype=bool),
        objective=np.zeros(milp.columns + 1),
        offset=0.0,
        column_names=(),
        row_names=(),
    )
    ends = []
    for sign in (1.0, -1.0):
        objective = np.r_[np.zeros(milp.columns), sign]
        found = backend.solve(
            replace(with_change, objective=objective), replace(options, relax=True, start=None)
        )
        done = found.termination is Termination.OPTIMAL
        ends.append(found.objective if done else np.nan)
    return min(ends[0], 0.0), max(-ends[1], 0.0)


def on_the_line(milp: Milp, x: FloatArray, reduced_cost: FloatArray) -> tuple[Milp, IntArray]:
    """Leave out what is the same as long as the duals hold: columns that stay at `x`, and rows of only these.

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
    taken = matrix @ np.where(stays, x, 0.0)
    matrix = matrix[:, ~stays]
    empty = np.diff(matrix.indptr) == 0
    kept = ~empty | np.isneginf(milp.row_lower)
    matrix = matrix[kept]
    upper = milp.row_upper - taken
    rest = Milp(
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
    return rest, np.where(kept, np.cumsum(kept) - 1, -1)
