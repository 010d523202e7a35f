"""The rows from pricing cut off no plan, and lift the relaxation to the Lagrangian bound."""

from dataclasses import replace

import numpy as np
import oracle
import pytest

from solver import backends
from solver.cuts import with_serving_rows
from solver.formulate import formulate, program
from solver.milp import Milp, SolveOptions, Termination
from solver.mixtures import mixtures
from solver.pricing import Prices, Servers
from solver.problem import AllocationProblem, SaturationPolicy
from solver.reduce import dominated, keep

EXACT = SolveOptions(relative_gap=1e-9, time_limit_s=30.0)


def mixes() -> list[AllocationProblem]:
    """Random problems with a mix, all or nothing, without dominated options."""
    found = []
    for seed in range(400):
        problem = oracle.random_problem(seed)
        if problem.policy.max_types != 1 and len(problem.option_server):
            policy = replace(problem.policy, saturation=SaturationPolicy.NONE)
            problem = replace(problem, policy=policy)
            found.append(keep(problem, np.flatnonzero(~dominated(problem))))
    return found


def tightened(problem: AllocationProblem, seed: int) -> tuple[Milp, Milp]:
    """The cost level without levels before it, without and with the rows, at random prices of cards."""
    formulation = formulate(problem, serve_all=False)
    plain = replace(
        program(formulation, 0),
        objective=formulation.objectives[-1].cost,
        offset=formulation.objectives[-1].offset,
    )
    servers = Servers(problem)
    count = servers.count
    cards = np.random.default_rng(seed).uniform(0.0, 5.0, len(problem.gpu_types))
    prices = Prices(
        servers.replica_cost_per_h + cards[problem.gpu_type] * problem.gpus,
        1.0,
        np.zeros(count),
        np.zeros(count),
    )
    searched = np.unique(problem.option_server)
    lower = mixtures(servers, searched, prices, np.zeros(count), np.zeros(count), lambda: 1.0).lower
    return plain, with_serving_rows(plain, formulation, servers, prices, lower)


def test_no_plan_is_cut_off() -> None:
    """The best plan of every level order stays feasible: it is the optimum with the rows too."""
    driver = backends.get("highs")
    tighter = 0
    for seed, problem in enumerate(mixes()):
        formulation = formulate(problem, serve_all=False)
        best = oracle.best(problem)
        plain, rows = tightened(problem, seed)
        assert rows.rows >= plain.rows
        tighter += rows.rows > plain.rows
        point = formulation.point(best.plan)
        held = ~np.isnan(point)
        fixed = replace(
            rows,
            column_lower=np.where(held, point, rows.column_lower),
            column_upper=np.where(held, point, rows.column_upper),
        )
        answer = driver.solve(fixed, EXACT)
        assert answer.x is not None, seed
        assert answer.objective == pytest.approx(best.values[-1], rel=1e-6, abs=1e-6), seed
    assert tighter > 100


def test_the_relaxation_reaches_the_lagrangian_bound() -> None:
    """At its own prices the rows lift the relaxation to the servers' best less the worth of the cards."""
    driver = backends.get("highs")
    lifted = 0
    for problem in mixes():
        formulation = formulate(problem, serve_all=True)
        plain = program(formulation, len(formulation.objectives) - 1)
        relaxed = driver.solve(plain, replace(EXACT, relax=True))
        if any(nodes is not None for nodes in problem.inventory.nodes) or relaxed.row_dual is None:
            continue
        there = formulation.inventory_row >= 0
        worth = np.zeros(len(problem.gpu_types))
        worth[there] = np.maximum(-relaxed.row_dual[formulation.inventory_row[there]], 0.0)
        servers, count = Servers(problem), len(problem.servers)
        prices = Prices(
            servers.replica_cost_per_h + worth[problem.gpu_type] * problem.gpus,
            1.0,
            np.zeros(count),
            np.zeros(count),
        )
        searched = np.unique(problem.option_server)
        lower = mixtures(servers, searched, prices, np.zeros(count), np.zeros(count), lambda: 1.0).lower
        if not np.isfinite(lower[searched]).all():
            continue
        idle = np.setdiff1d(np.arange(count), searched)
        bound = lower[searched].sum() + servers.leaving_per_h[idle].sum()
        bound -= worth[there] @ problem.inventory.gpus[there]
        rows = driver.solve(
            with_serving_rows(plain, formulation, servers, prices, lower), replace(EXACT, relax=True)
        )
        assert rows.bound >= bound - 1e-6 * abs(bound)
        if rows.termination is Termination.INFEASIBLE:
            assert driver.solve(plain, EXACT).termination is Termination.INFEASIBLE
        lifted += rows.bound > relaxed.objective * (1.0 + 1e-6)
    assert lifted > 10
