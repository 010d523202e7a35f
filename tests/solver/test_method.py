"""The method is picked by size, can be forced, and two answers are joined without claiming too much."""

from dataclasses import replace

import numpy as np
import oracle
import pytest

from solver import backends
from solver.check import score, violations
from solver.method import Method, completed, solve_by
from solver.milp import SolveOptions, Termination
from solver.problem import Inventory, Policy
from solver.solve import solve

EXACT = SolveOptions(relative_gap=1e-9, time_limit_s=30.0)


@pytest.mark.parametrize("method", list(Method))
def test_every_method_finds_the_optimum(method: Method) -> None:
    highs = backends.get("highs")
    for seed in range(60):
        problem = oracle.random_problem(seed)
        found = solve_by(method, problem, highs, EXACT)
        assert violations(problem, found.plan) == [], seed
        assert score(problem, found.plan).levels == pytest.approx(
            oracle.best(problem).values, rel=1e-5, abs=1e-5
        ), seed


def test_only_the_direct_method_keeps_a_program() -> None:
    problem = oracle.two_by_two(Policy())
    highs = backends.get("highs")
    assert solve_by(Method.DECOMPOSE, problem, highs, EXACT).program is None
    assert solve_by(Method.DECOMPOSE, problem, highs, EXACT, names=True).program is not None
    assert solve_by(Method.AUTO, problem, highs, EXACT).program is not None


def test_an_answer_that_ran_out_of_time_is_completed_with_what_is_left() -> None:
    problem = oracle.two_by_two(Policy())
    best = solve(problem, backends.get("highs"), EXACT)
    stopped = tuple(replace(level, termination=Termination.TIME_LIMIT) for level in best.levels)
    empty = replace(best, plan=replace(best.plan, replicas=best.plan.replicas * 0), levels=stopped)
    answer = completed(problem, empty)
    assert violations(problem, answer.plan) == []
    assert answer.levels[0].value == answer.levels[1].value == 0.0
    assert all(level.bound <= level.value for level in answer.levels)
    # A server that has its plan keeps it, and what is proven stays as it is.
    half = replace(empty, plan=replace(best.plan, replicas=np.array([4, 0, 0, 0])))
    assert completed(problem, half).plan.replicas[0] == 4
    assert completed(problem, best) is best


def test_what_does_not_fit_is_not_added() -> None:
    problem = replace(oracle.two_by_two(Policy()), inventory=Inventory(np.array([3, 2]), (None, (2,))))
    best = solve(problem, backends.get("highs"), EXACT)
    stopped = tuple(replace(level, termination=Termination.TIME_LIMIT) for level in best.levels)
    empty = replace(best, plan=replace(best.plan, replicas=best.plan.replicas * 0), levels=stopped)
    answer = completed(problem, empty)
    assert violations(problem, answer.plan) == []
    assert answer.plan.replicas.tolist() == [0, 0, 3, 0]
