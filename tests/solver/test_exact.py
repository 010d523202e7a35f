"""Every exact backend agrees with brute force on random tiny problems of every kind."""

from dataclasses import replace

import numpy as np
import oracle
import pytest

from solver import backends
from solver.backends.greedy import greedy
from solver.check import score, violations
from solver.method import Method, solve_by
from solver.milp import SolveOptions, Termination
from solver.problem import NO_LIMIT
from solver.solve import prefer_small_batches, solve

EXACT = ["highs", "ortools", "pyomo"]
SEEDS = {"highs": 400, "ortools": 400, "pyomo": 100}


@pytest.mark.parametrize("backend", EXACT)
def test_backend_finds_the_brute_force_optimum(backend: str) -> None:
    driver = backends.get(backend)
    for seed in range(SEEDS[backend]):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        solved = solve(problem, driver, SolveOptions(relative_gap=1e-9))
        plan = prefer_small_batches(problem, solved.plan)
        assert violations(problem, plan) == [], seed
        assert solved.termination is Termination.OPTIMAL, seed
        assert score(problem, plan).levels == pytest.approx(best.values, rel=1e-5, abs=1e-5), seed
        for found, value in zip(solved.levels, best.values, strict=True):
            assert found.bound <= value + 1e-5 * max(1, abs(value)), seed


def test_limits_of_replicas_and_types_against_brute_force() -> None:
    binding = 0
    for seed in range(300):
        free = oracle.random_problem(seed)
        problem = oracle.limited(free, seed)
        best = oracle.best(problem)
        solved = solve(problem, backends.get("highs"), SolveOptions(relative_gap=1e-9))
        plan = prefer_small_batches(problem, solved.plan)
        assert violations(problem, plan) == [], seed
        assert score(problem, plan).levels == pytest.approx(best.values, rel=1e-5, abs=1e-5), seed
        assert violations(problem, greedy(problem)) == [], seed
        assert score(problem, greedy(problem)).levels >= tuple(v - 1e-5 for v in best.values), seed
        binding += best.values != oracle.best(free).values
    assert binding > 100


def test_decomposition_with_limits_against_brute_force() -> None:
    """Its columns obey maxima of an accelerator and of a server's types; minima are the direct method's."""
    for seed in range(1000, 1200):
        limited = oracle.limited(oracle.random_problem(seed), seed)
        maxima = tuple(replace(x, least=0) for x in limited.limits if x.most != NO_LIMIT)
        problem = replace(limited, limits=maxima)
        best = oracle.best(problem)
        options = SolveOptions(relative_gap=1e-9)
        solved = solve_by(Method.DECOMPOSE, problem, backends.get("highs"), options)
        assert violations(problem, solved.plan) == [], seed
        assert score(problem, solved.plan).levels == pytest.approx(best.values, rel=1e-5, abs=1e-5), seed
        for found, value in zip(solved.levels, best.values, strict=True):
            assert found.bound <= value + 1e-5 * max(1, abs(value)), seed


def test_oracle_and_check_agree_on_what_a_plan_is_worth() -> None:
    for seed in range(200):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        assert violations(problem, best.plan) == []
        assert score(problem, best.plan).levels == pytest.approx(best.values, abs=1e-6)


def test_random_problems_cover_every_kind() -> None:
    problems = [oracle.random_problem(seed) for seed in range(200)]
    scarce = sum(1 for p in problems if any(v > 1e-6 for v in oracle.best(p).values[:-1]))
    assert 20 < scarce < 180
    assert {p.policy.max_types for p in problems} == {1, 2, None}
    assert len({(p.policy.saturation, p.policy.delayed_best_effort) for p in problems}) == 8
    assert any(n is not None for p in problems for n in p.inventory.nodes)
    assert any(np.isinf(p.capacity_rps).any() for p in problems)
    assert any(len(p.current_server) for p in problems)
