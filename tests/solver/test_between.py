"""Mixes near a mean: they serve everything, keep every limit of the server, and are all of those near it."""

from dataclasses import replace

import numpy as np
import oracle
from numpy.random import default_rng

from solver.between import mixes_between
from solver.check import score
from solver.mixtures import mixtures
from solver.pricing import Columns, Prices, Servers
from solver.problem import AllocationProblem, Plan, SaturationPolicy
from solver.stage import Coupling

EVERYTHING = 1e6


def mixes() -> list[tuple[int, AllocationProblem]]:
    """Random problems with a mix of any number of types."""
    found = []
    for seed in range(300):
        problem = oracle.random_problem(seed)
        policy = replace(problem.policy, saturation=SaturationPolicy.NONE, max_types=None)
        if problem.policy.max_types != 1 and len(problem.option_server):
            # With five times the demand, servers run enough replicas for some to be common to all mixes.
            arrival_rps = problem.arrival_rps * (5.0 if len(problem.option_server) <= 6 else 1.0)
            found.append((seed, replace(problem, policy=policy, arrival_rps=arrival_rps)))
    return found


def searched(problem: AllocationProblem, seed: int) -> tuple[np.ndarray, Columns, Columns, Prices]:
    """Mean of some mixes of each server, the mixes near it and all mixes there are; prices of both."""
    servers = Servers(problem)
    rng = default_rng(seed)
    prices = Prices(
        servers.replica_cost_per_h + rng.uniform(0.0, 5.0, len(problem.gpus)),
        1.0,
        np.full(servers.count, 50.0),
        np.zeros(servers.count),
    )
    which = np.unique(problem.option_server)
    reach = np.full(servers.count, EVERYTHING)
    every = mixtures(
        servers, which, prices, np.zeros(servers.count), reach, lambda: 1.0, most_columns=100_000
    ).columns
    share = rng.uniform(0.0, 1.0, len(every))
    total = np.bincount(every.server, share, minlength=servers.count)
    mean = every.replicas.weighted_sum(share / total[every.server])
    near = mixes_between(servers, which, mean, prices, reach, lambda: 1.0, most_columns=100_000, tally=None)
    return mean, near, every, prices


def needs_all(problem: AllocationProblem, server: int, replicas: np.ndarray) -> bool:
    """Whether the server is not served in full without any one of its replicas."""
    for option in np.flatnonzero(replicas):
        fewer = np.rint(replicas).astype(np.int64)
        fewer[option] -= 1
        if score(problem, Plan(fewer)).served_share[server] == 1.0:
            return False
    return True


def test_every_mix_serves_its_server_and_is_one_that_there_is() -> None:
    count = 0
    for seed, problem in mixes():
        _, near, every, prices = searched(problem, seed)
        known = {
            (int(s), tuple(r)): v
            for s, r, v in zip(every.server, every.replicas.toarray(), every.value(prices), strict=True)
        }
        values = near.value(prices)
        for s, replicas, value in zip(near.server, near.replicas.toarray(), values, strict=True):
            share = score(problem, Plan(np.rint(replicas).astype(np.int64))).served_share
            assert share[s] == 1.0, seed
            if (int(s), tuple(replicas)) in known:
                assert np.isclose(value, known[int(s), tuple(replicas)]), seed
                count += 1
    assert count > 200


def test_no_mix_near_the_mean_is_left_out() -> None:
    count = common = 0
    for seed, problem in mixes():
        mean, near, every, _ = searched(problem, seed)
        limited = {limit.server for limit in problem.limits} | {s for s, _ in problem.own_max_types}
        found = {(int(s), tuple(r)) for s, r in zip(near.server, near.replicas.toarray(), strict=True)}
        for s, replicas in zip(every.server, every.replicas.toarray(), strict=True):
            mine = problem.option_server == s
            close = (np.abs(replicas - mean)[mine] < 1.0).all()
            if close and s not in limited and needs_all(problem, int(s), replicas):
                assert (int(s), tuple(replicas)) in found, (seed, int(s))
                count += 1
                common += bool((mean[mine] >= 3.0).any())
    assert count > 100
    assert common > 20


def test_of_mixes_that_take_the_same_one_is_enough() -> None:
    for seed, problem in mixes()[:20]:
        mean, near, _, prices = searched(problem, seed)
        servers = Servers(problem)
        tally = Coupling.of(problem).tally
        reach = np.full(servers.count, EVERYTHING)
        which = np.unique(problem.option_server)
        few = mixes_between(
            servers, which, mean, prices, reach, lambda: 1.0, most_columns=100_000, tally=tally
        )
        sums = (near.replicas.hashed(tally), few.replicas.hashed(tally))
        assert set(zip(near.server, sums[0], strict=True)) == set(zip(few.server, sums[1], strict=True))
        assert len(few) == len(set(zip(few.server.tolist(), sums[1].tolist(), strict=True)))
