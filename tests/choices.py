"""The program that chooses one of the listed columns of each server."""

import numpy as np

from solver.milp import Milp
from solver.prices import Listed


def program(columns: Listed, *, integer: bool) -> Milp:
    """One column of each server, within the limits."""
    count, rows = columns.usage.shape
    servers = int(columns.server[-1]) + 1
    row, column = np.nonzero(columns.usage.T)
    starts = np.searchsorted(row, np.arange(rows))
    return Milp(
        objective=columns.worth,
        row_start=np.r_[starts, len(row), len(row) + np.cumsum(np.bincount(columns.server))],
        column=np.r_[column, np.arange(count)],
        value=np.r_[columns.usage.T[row, column], np.ones(count)],
        row_lower=np.r_[np.full(rows, -np.inf), np.ones(servers)],
        row_upper=np.r_[columns.limits, np.ones(servers)],
        column_lower=np.zeros(count),
        column_upper=np.ones(count),
        integer=np.full(count, integer),
    )
