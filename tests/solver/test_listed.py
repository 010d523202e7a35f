"""Servers given by the list of their columns: the same optimum, and plans that keep every rule."""

from dataclasses import replace

import numpy as np
import oracle
import pytest

from solver import backends
from solver.check import score, violations
from solver.formulate import formulate, program
from solver.listed import below, with_columns
from solver.milp import SolveOptions, Termination
from solver.mixtures import mixtures
from solver.packing import is_chain
from solver.pricing import Columns, Prices, Servers
from solver.problem import AllocationProblem, SaturationPolicy
from solver.reduce import dominated, keep
from solver.stage import Coupling

EXACT = SolveOptions(relative_gap=1e-9, time_limit_s=30.0)
EVERYTHING = 1e6


def mixes() -> list[AllocationProblem]:
    """Random problems with a mix, all or nothing, that decomposition takes, without dominated options."""
    found = []
    for seed in range(400):
        problem = oracle.random_problem(seed)
        if problem.policy.max_types != 1 and len(problem.option_server) and not problem.limits:
            problem = replace(problem, policy=replace(problem.policy, saturation=SaturationPolicy.NONE))
            problem = keep(problem, np.flatnonzero(~dominated(problem)))
            sizes = [np.unique(problem.gpus[problem.gpu_type == t]) for t in range(len(problem.gpu_types))]
            nodes = problem.inventory.nodes
            if all(n is None or is_chain(s.tolist()) for n, s in zip(nodes, sizes, strict=True)):
                found.append(problem)
    return found


def prices_of(servers: Servers, seed: int) -> Prices:
    """Random prices of cards that are limited, and of leaving a server out."""
    problem, count = servers.problem, servers.count
    rng = np.random.default_rng(seed)
    cards = rng.uniform(0.0, 5.0, len(problem.gpu_types))
    cards[np.setdiff1d(np.arange(len(cards)), Coupling.of(problem).row_type)] = 0.0
    replica = servers.replica_cost_per_h + cards[problem.gpu_type] * problem.gpus
    return Prices(replica, 1.0, rng.uniform(0.0, 20.0, count), np.zeros(count))


def all_columns(servers: Servers, seed: int, *, best_of_equals: bool) -> Columns:
    searched = np.unique(servers.problem.option_server)
    columns = mixtures(
        servers,
        searched,
        prices_of(servers, seed),
        np.ones(servers.count),
        np.full(servers.count, EVERYTHING),
        lambda: 1.0,
        most_columns=100_000,
        tally=Coupling.of(servers.problem).tally if best_of_equals else None,
    ).columns
    return columns.take(np.argsort(columns.server, kind="stable"))


@pytest.mark.parametrize("best_of_equals", [False, True])
def test_listed_servers_change_no_optimum(best_of_equals: bool) -> None:
    driver = backends.get("highs")
    solved = 0
    for seed, problem in enumerate(mixes()):
        servers = Servers(problem)
        columns = all_columns(servers, seed, best_of_equals=best_of_equals)
        some = np.random.default_rng(seed).random(servers.count) < 0.6
        listed = columns.take(some[columns.server])
        for serve_all in (False, True):
            formulation = formulate(problem, serve_all=serve_all)
            of_all = listed.take(listed.unserved == 0) if serve_all else listed
            index = len(formulation.objectives) - 1 if serve_all else 0
            plain = program(formulation, index)
            program_of_columns, back = with_columns(plain, formulation, servers, of_all)
            assert program_of_columns.rows <= plain.rows + some.sum()
            expected = driver.solve(plain, EXACT)
            found = driver.solve(program_of_columns, EXACT)
            assert found.termination is expected.termination, (seed, serve_all)
            if found.x is None:
                continue
            assert found.objective == pytest.approx(expected.objective, rel=1e-6, abs=1e-6), (seed, serve_all)
            plan = formulation.read_plan(back @ found.x)
            assert violations(problem, plan) == [], seed
            shift = formulation.objectives[index].shift
            value = score(problem, plan).levels[index] - shift
            assert value <= expected.objective + 1e-6 * max(1.0, abs(expected.objective)), (seed, serve_all)
            solved += bool(some.any()) and len(of_all) > 0
    assert solved > 200


def best_of_each(columns: Columns, prices: Prices, tally: np.ndarray) -> dict[tuple[int, int, bool], float]:
    """Least worth by server, tally, and whether something is unserved."""
    worth: dict[tuple[int, int, bool], float] = {}
    keys = zip(columns.server, columns.replicas.hashed(tally), columns.unserved > 0, strict=True)
    for key, value in zip(keys, columns.value(prices), strict=True):
        worth[key] = min(worth.get(key, np.inf), float(value))
    return worth


def test_of_mixes_that_take_the_same_the_best_is_found() -> None:
    fewer = 0
    for seed, problem in enumerate(mixes()):
        servers = Servers(problem)
        prices, tally = prices_of(servers, seed), Coupling.of(problem).tally
        every = all_columns(servers, seed, best_of_equals=False)
        few = all_columns(servers, seed, best_of_equals=True)
        assert len(best_of_each(few, prices, tally)) == len(few)
        assert best_of_each(few, prices, tally) == pytest.approx(best_of_each(every, prices, tally))
        fewer += len(few) < len(every)
    assert fewer > 50


def test_nothing_below_the_optimum() -> None:
    driver = backends.get("highs")
    problem = next(p for p in mixes() if oracle.best(p).values[0] == 0 and oracle.best(p).values[-1] > 0)
    formulation = formulate(problem, serve_all=True)
    milp = program(formulation, len(formulation.objectives) - 1)
    best = driver.solve(milp, EXACT).objective
    assert driver.solve(below(milp, best * 1.001), EXACT).objective == pytest.approx(best)
    assert driver.solve(below(milp, best * 0.999), EXACT).termination is Termination.INFEASIBLE


def test_no_column_within_reach_has_more_replicas() -> None:
    limited = 0
    for seed, problem in enumerate(mixes()):
        servers, rng = Servers(problem), np.random.default_rng(seed)
        prices = prices_of(servers, seed)
        columns = all_columns(servers, seed, best_of_equals=False)
        columns = columns.take(columns.unserved == 0)
        if not len(columns):
            continue
        worth, value = rng.uniform(0.0, 40.0, servers.count), columns.value(prices)
        near = columns.take(value < worth[columns.server])
        most = servers.most_below(prices, worth)
        used = near.replicas
        assert (used.value <= most[used.column]).all(), seed
        limited += bool((most < servers.most).any())
    assert limited > 50
