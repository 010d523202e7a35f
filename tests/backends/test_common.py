"""What `common.solve` makes of what a library says; the library here is a function."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from backends.programs import INF, program

from solver.backends.common import Outcome, solve
from solver.errors import SolverError
from solver.milp import Milp, RawSolution, SolveOptions, Termination

MILP = program([-1.0], [({0: 1.0}, -INF, 3.5)])
POINT = np.array([3.0])


def answer(drive: Callable[[Milp, SolveOptions], Outcome], **options: float) -> RawSolution:
    return solve(MILP, replace(SolveOptions(), **options), drive, solver="library", version="1")


def test_bound_above_the_point_is_an_error() -> None:
    with pytest.raises(SolverError, match="above the objective"):
        answer(lambda *_: Outcome(Termination.OPTIMAL, POINT, bound=-2.9))


def test_bound_above_the_point_by_rounding_is_the_objective() -> None:
    assert answer(lambda *_: Outcome(Termination.OPTIMAL, POINT, bound=-3.0 + 1e-9)).bound == -3.0


def test_failure_with_a_point_keeps_the_point() -> None:
    solution = answer(lambda *_: Outcome(Termination.ERROR, POINT, bound=-4.0))
    assert solution.termination is Termination.ERROR
    assert solution.objective == -3.0


def test_failure_without_a_point_is_an_error() -> None:
    with pytest.raises(SolverError, match="library failed: numerical trouble"):
        answer(lambda *_: Outcome(Termination.ERROR, message="numerical trouble"))


def test_failure_on_an_unbounded_program_is_found_by_its_relaxation() -> None:
    def drive(milp: Milp, options: SolveOptions) -> Outcome:
        if not milp.objective.any():
            return Outcome(Termination.OPTIMAL, POINT, 0.0)
        return Outcome(Termination.UNBOUNDED if options.relax else Termination.ERROR)

    solution = answer(drive)
    assert solution.termination is Termination.UNBOUNDED
    assert solution.x is POINT
    assert solution.bound == -INF


@pytest.mark.parametrize("said", [Termination.INFEASIBLE, Termination.UNBOUNDED])
def test_infeasible_or_unbounded_without_a_point_is_infeasible(said: Termination) -> None:
    solution = answer(lambda milp, _: Outcome(Termination.UNBOUNDED if milp.objective.any() else said))
    assert solution.termination is Termination.INFEASIBLE
    assert solution.bound == INF


def test_infeasible_or_unbounded_stays_open_when_time_is_up() -> None:
    def drive(milp: Milp, options: SolveOptions) -> Outcome:
        # The bound of the program without its objective proves nothing about the program.
        return Outcome(Termination.UNBOUNDED if milp.objective.any() else Termination.TIME_LIMIT, bound=0.0)

    for limit_s in (1e-9, 10.0):
        solution = answer(drive, time_limit_s=limit_s)
        assert solution.termination is Termination.TIME_LIMIT
        assert solution.x is None
        assert solution.bound == -INF
