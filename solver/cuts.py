"""Rows that tighten the compact program of a mix: no way to serve a server is cheaper than its best one.

At any prices of replicas, every way to serve a server in full is worth at least what exact pricing finds:
``sum_j price[j] n[j] >= lower``. At the best prices of the coupling rows these rows, one a server, lift the
linear relaxation to the Lagrangian bound, and branching goes on from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from solver.formulate import Formulation
    from solver.milp import FloatArray, Milp
    from solver.pricing import Prices, Servers

# What a row is loosened by, relatively: the rounding of `lower`.
_ROUNDING = 1e-9


def with_serving_rows(
    milp: Milp, formulation: Formulation, servers: Servers, prices: Prices, lower: FloatArray
) -> Milp:
    """Add ``sum_j price[j] n[j] + sum_a leave[a] left[s,a] + empty[s] u[s] >= lower[s]`` for each server.

    empty[s] is what is missing when nothing runs and all is left. Valid where a server is served in full or
    not at all.

    Parameters
    ----------
    milp : Milp
        A program of `formulation`.
    formulation : Formulation
        In the integer shape.
    servers : Servers
    prices : Prices
        Of replicas and of the fixed part of the switching penalty.
    lower : (S,) float
        Least value at `prices` of a column that serves all of the server; inf or NaN where it is not known.
    """
    problem = servers.problem
    count = servers.count
    leaving = problem.policy.switching_factor * problem.current_cost_per_h * prices.fixed
    there = formulation.left_column >= 0
    # Accelerators that no option is on are left in any case.
    constant = np.bincount(problem.current_server[~there], leaving[~there], minlength=count)
    all_left = np.bincount(problem.current_server[there], leaving[there], minlength=count)
    least = np.where(np.isfinite(lower), lower - constant, 0.0)
    kept = (least > 0) & (formulation.unserved_column >= 0)
    server = np.r_[problem.option_server, problem.current_server[there], np.flatnonzero(kept)]
    column = np.r_[
        formulation.option_column, formulation.left_column[there], formulation.unserved_column[kept]
    ]
    value = np.r_[prices.replica, leaving[there], np.maximum(least - all_left, 0.0)[kept]]
    mine = kept[server]
    server, column, value = server[mine], column[mine], value[mine] / least[server[mine]]
    order = np.argsort(server, kind="stable")
    sizes = np.bincount(server, minlength=count)[kept]
    rows = int(kept.sum())
    names = tuple(f"serve[{problem.servers[s]}]" for s in np.flatnonzero(kept)) if milp.row_names else ()
    return replace(
        milp,
        row_start=np.r_[milp.row_start, milp.row_start[-1] + np.cumsum(sizes)].astype(np.int64),
        column=np.r_[milp.column, column[order]],
        value=np.r_[milp.value, value[order]],
        row_lower=np.r_[milp.row_lower, np.full(rows, 1.0 - _ROUNDING)],
        row_upper=np.r_[milp.row_upper, np.full(rows, np.inf)],
        row_names=(*milp.row_names, *names),
    )
