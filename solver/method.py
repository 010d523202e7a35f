"""Which method solves: the program as a whole, or the decomposition by server."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from solver.backends.greedy import greedy
from solver.check import score
from solver.decompose import decompose
from solver.errors import SolverError
from solver.milp import Termination
from solver.problem import NO_LIMIT, Inventory, Plan
from solver.reduce import keep
from solver.solve import Solved, solve

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import Backend, SolveOptions
    from solver.problem import AllocationProblem

# From so many servers on the decomposition is the faster one, with a mix and with one type per server
# (`benchmarks/fleet.py`).
_MIX_FROM = 20
_ONE_TYPE_FROM = 200


class Method(StrEnum):
    """How to solve; `AUTO` picks by size."""

    AUTO = "auto"
    DIRECT = "direct"
    DECOMPOSE = "decompose"


def solve_by(
    method: Method,
    problem: AllocationProblem,
    backend: Backend,
    options: SolveOptions,
    *,
    names: bool = False,
    now: Callable[[], float] = time.monotonic,
) -> Solved:
    """Find the best plan for `problem` by a method.

    Parameters
    ----------
    method : Method
    problem : AllocationProblem
    backend : Backend
    options : SolveOptions
    names : bool
        Keep the program, with names: the direct method alone has one.
    now : callable
        Monotonic clock in seconds.

    Raises
    ------
    SolverError
        As `solve` and `decompose`.
    """
    return completed(problem, _solve(method, problem, backend, options, names=names, now=now))


def _solve(
    method: Method,
    problem: AllocationProblem,
    backend: Backend,
    options: SolveOptions,
    *,
    names: bool,
    now: Callable[[], float],
) -> Solved:
    servers = len(problem.servers)
    small = servers < (_ONE_TYPE_FROM if problem.policy.max_types == 1 else _MIX_FROM)
    # The decomposition has no replicas that run whatever the demand.
    special = bool(problem.least.any())
    if names or method is Method.DIRECT or special or (method is Method.AUTO and small):
        return solve(problem, backend, options, names=names, now=now)
    if method is Method.DECOMPOSE:
        return decompose(problem, backend, options, now=now)
    end = now() + options.time_limit_s
    try:
        return decompose(problem, backend, options, now=now)
    except SolverError:
        # Its bounds are checked against its plans; where they contradict each other neither is believed.
        return solve(problem, backend, replace(options, time_limit_s=max(end - now(), 1.0)), now=now)


def completed(problem: AllocationProblem, solved: Solved) -> Solved:
    """Give servers that an unproven answer leaves with nothing what is left of the GPUs.

    Where the time ended at an important level, the plan may not have come to the others. What the baseline
    still finds room for worsens no level of service. Types known node by node are left as they are.
    """
    if solved.termination is Termination.OPTIMAL:
        return solved
    plan, stock = solved.plan, problem.inventory.gpus
    idle = np.flatnonzero((problem.per_server(plan.replicas) == 0)[problem.option_server])
    left = np.where(stock == NO_LIMIT, NO_LIMIT, stock - problem.cards(plan))
    left[[nodes is not None for nodes in problem.inventory.nodes]] = 0
    rest = replace(keep(problem, idle), inventory=Inventory(left, (None,) * len(left)))
    replicas = plan.replicas.copy()
    replicas[idle] += greedy(rest).replicas
    filled = Plan(replicas)
    worth = score(problem, filled).levels
    if worth >= score(problem, plan).levels:
        return solved
    levels = (
        replace(level, value=value, bound=min(level.bound, value))
        for level, value in zip(solved.levels, worth, strict=True)
    )
    return replace(solved, plan=filled, levels=tuple(levels))
