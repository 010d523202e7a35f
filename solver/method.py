"""Which method solves: the program as a whole, or the decomposition by server."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from solver.check import score, violations
from solver.decompose import decompose
from solver.errors import SolverError
from solver.milp import Termination
from solver.solve import Solved, solve
from solver.starts import filled, is_better

if TYPE_CHECKING:
    from collections.abc import Callable

    from solver.milp import Backend, SolveOptions
    from solver.problem import AllocationProblem, Plan

# From so many servers on the decomposition is the faster one (`benchmarks/fleet.py`).
_DECOMPOSED_FROM = 20


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
    start: Plan | None = None,
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
    start : Plan or None
        A plan to better; see `starts`.
    now : callable
        Monotonic clock in seconds.

    Raises
    ------
    SolverError
        As `solve` and `decompose`.
    """
    solved = _solve(method, problem, backend, options, names=names, start=start, now=now)
    return completed(problem, solved, start)


def _solve(
    method: Method,
    problem: AllocationProblem,
    backend: Backend,
    options: SolveOptions,
    *,
    names: bool,
    start: Plan | None,
    now: Callable[[], float],
) -> Solved:
    servers = len(problem.servers)
    small = servers < _DECOMPOSED_FROM
    # The decomposition has no replicas that run whatever the demand.
    special = bool(problem.least.any())
    if names or method is Method.DIRECT or special or (method is Method.AUTO and small):
        return solve(problem, backend, options, names=names, start=start, now=now)
    if method is Method.DECOMPOSE:
        return decompose(problem, backend, options, start=start, now=now)
    end = now() + options.time_limit_s
    try:
        return decompose(problem, backend, options, start=start, now=now)
    except SolverError:
        # Its bounds are checked against its plans; where they contradict each other neither is believed.
        left = replace(options, time_limit_s=max(end - now(), 1.0))
        return solve(problem, backend, left, start=start, now=now)


def completed(problem: AllocationProblem, solved: Solved, start: Plan | None = None) -> Solved:
    """Give servers that an unproven answer leaves with nothing what is left of the GPUs.

    Where the time ended at an important level, the plan may not have come to the others. A start that is
    better after all takes its place: solvers may ignore it.
    """
    if solved.termination is Termination.OPTIMAL:
        return solved
    plan = filled(problem, solved.plan)
    if start is not None and not violations(problem, start) and is_better(problem, start, plan):
        plan = start
    worth = score(problem, plan).levels
    if worth >= score(problem, solved.plan).levels:
        return solved
    levels = (
        replace(level, value=value, bound=min(level.bound, value))
        for level, value in zip(solved.levels, worth, strict=True)
    )
    return replace(solved, plan=plan, levels=tuple(levels))
