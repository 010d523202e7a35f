"""One type per server: the plan of least worth as a generalised assignment problem, where it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from solver.problem import HOLD_TOLERANCE

try:
    from solver.knapsacks import IS_COMPILED, Assignment
except ModuleNotFoundError:
    # Not compiled, and no Cython to run it without.
    IS_COMPILED = False

if TYPE_CHECKING:
    from solver.milp import BoolArray, FloatArray, IntArray
    from solver.pricing import Columns
    from solver.search import Priced, Search
    from solver.stage import Stage

# Larger fleets are nearer to their linear relaxation than to what is left of the pools, unless their plan is
# so many steps from the bound; and the largest even then.
_MOST_SERVERS, _FAR, _MOST_SERVERS_FAR = 500, 3.0, 1_500

# Nodes of the branch and bound with a level of service, and with the cost; share of the time left.
_NODES_OF_SERVICE, _NODES_OF_COST, _TIME = 10, 400, 0.35


def is_always_tried(search: Search, stage: Stage, columns: Columns) -> bool:
    """Whether `assigned` looks at these columns however near the plan is to the bound."""
    return _is_tried(search, is_far=False) and _limited(stage, columns) is not None


def assigned(
    search: Search, stage: Stage, priced: Priced, value: float, bound: float, step: float
) -> tuple[float, float, BoolArray]:
    """Better a plan of this `value` and its `bound` by branch and bound over the knapsacks of the limits.

    Returns
    -------
    value : float
        Of the incumbent now.
    bound : float
        inf where it is proven that there is no plan.
    near : (C,) bool
        Columns that a plan worth less than ``value - step`` may have; none where there is no such plan.
    """
    near = np.ones(len(priced.columns), dtype=bool)
    is_far = stage.money == 1.0 and _FAR * step < value - bound < np.inf
    problem, order = _problem(search, stage, priced, is_far=is_far)
    if problem is None:
        return value, bound, near
    nodes = _NODES_OF_COST if stage.money == 1.0 else _NODES_OF_SERVICE
    most = np.zeros(search.servers.count)
    np.maximum.at(most, priced.columns.server, stage.worth(priced.columns))
    # Without a plan, more than any is worth.
    known = min(value, float(most.sum()) + 1.0 + 2.0 * step)
    until_s = (1.0 - _TIME) * search.left_s()
    plan, found, proven, at_least, _ = problem.solve(known, step, nodes, lambda: search.left_s() - until_s)
    if plan is not None:
        search.adopt(search.plan_of(priced.columns.take(order[plan])))
        value = min(value, found)
    near[order] = (at_least < found - step) & (proven < found - step)
    bound = max(bound, min(proven, value) if np.isfinite(value) or near.any() else np.inf)
    return value, bound, near


def excluded(
    search: Search, stage: Stage, priced: Priced, value: float, step: float
) -> tuple[float, float, FloatArray] | None:
    """Look at the knapsacks once; None where the columns are no assignment problem.

    Returns
    -------
    found : float
        What the plan is worth that was found on the way, which is the incumbent; inf for none below `value`.
    bound : float
        No plan is worth less than the lesser of this and ``value - step``.
    least : (C,) float
        No plan with the column is, than the lesser of its entry and ``value - step``.
    """
    problem, order = _problem(search, stage, priced, is_far=False)
    if problem is None:
        return None
    plan, found, bound, at_least, _ = problem.solve(value, step, 1, search.left_s)
    if plan is not None:
        search.adopt(search.plan_of(priced.columns.take(order[plan])))
    least = np.empty(len(order))
    least[order] = np.maximum(at_least, bound)
    return np.inf if plan is None else found, bound, least


def _problem(
    search: Search, stage: Stage, priced: Priced, *, is_far: bool
) -> tuple[Assignment | None, IntArray]:
    """Return the assignment problem of the columns, None where they are none, and their order in it."""
    limited = _limited(stage, priced.columns) if _is_tried(search, is_far=is_far) else None
    servers, place = np.unique(priced.columns.server, return_inverse=True)
    if limited is None or len(servers) < stage.active.sum() or not len(servers):
        return None, np.arange(0)
    row, weight, capacity = limited
    order = np.argsort(row, kind="stable")
    problem = Assignment(
        place[order],
        np.searchsorted(row[order], np.arange(len(capacity) + 1)),
        weight[order],
        stage.worth(priced.columns)[order],
        capacity,
        priced.lower[servers],
    )
    return problem, order


def _is_tried(search: Search, *, is_far: bool) -> bool:
    is_small = search.servers.count <= (_MOST_SERVERS_FAR if is_far else _MOST_SERVERS)
    return IS_COMPILED and not search.mixes and is_small


def _limited(stage: Stage, columns: Columns) -> tuple[IntArray, IntArray, IntArray] | None:
    """Limit that each column takes of, the last one for none, how much, and the limits, in whole units.

    None where a column takes of several limits, or one limit not in whole units.
    """
    usage = stage.usage(columns)
    takes = usage > 0
    if (takes.sum(axis=1) > 1).any():
        return None
    # The unit of a held level is the least weight in it.
    unit = np.where(takes, usage, np.inf).min(axis=0, initial=np.inf)
    unit[: len(stage.coupling.limit)] = 1.0
    unit[~np.isfinite(unit)] = 1.0
    units = usage / unit
    if (units != np.rint(units)).any():
        return None
    row = np.column_stack([takes, np.ones(len(takes), dtype=bool)]).argmax(axis=1)
    capacity = np.r_[np.floor(stage.limits / unit + HOLD_TOLERANCE), 1.0]
    return row, np.rint(units.max(axis=1, initial=0.0)).astype(np.int64), capacity.astype(np.int64)
