"""Mixes near the best one: both searches find what brute force finds, and what the other one finds."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import oracle
import pytest
from fleets import fleet
from numpy.random import default_rng

from solver import mixtures as searching
from solver.mixtures import Priced, mixtures
from solver.pricing import Prices, Servers
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy, SaturationPolicy
from solver.reduce import dominated, keep
from solver.stage import Coupling

compiled = pytest.mark.skipif(not searching.IS_COMPILED, reason="installed without a C compiler")


@pytest.fixture(params=[pytest.param(True, marks=compiled), False], ids=["compiled", "stepwise"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "IS_COMPILED", request.param)


@pytest.mark.parametrize("partial", [False, True])
def test_they_match_enumeration_at_any_prices(way: None, partial: bool) -> None:
    """Every column of a server is listed by brute force; the search finds the best and all near it."""
    saturation = SaturationPolicy.PRIORITY_EXHAUSTIVE if partial else SaturationPolicy.NONE
    for seed in range(60):
        rng = np.random.default_rng(seed)
        problem = replace(
            fleet(6, seed, mix=True), policy=Policy(max_types=(2, 3, None)[seed % 3], saturation=saturation)
        )
        problem = replace(
            problem,
            min_replicas=rng.integers(0, 4, 6),
            max_replicas=np.where(rng.random(6) < 0.5, rng.integers(4, 7, 6), NO_LIMIT),
            capacity_rps=problem.arrival_rps[problem.option_server] / rng.uniform(0.8, 4.0, 36),
        )
        problem = keep(problem, np.flatnonzero(~dominated(problem)))
        servers = Servers(problem)
        prices = Prices(
            replica=problem.cost_per_h * rng.uniform(0.5, 2.0, len(problem.cost_per_h)),
            fixed=1.0,
            unserved=rng.uniform(0.0, 20.0, 6),
            unmet=rng.uniform(0.0, 1.0, 6),
        )
        found = mixtures(servers, np.arange(6), prices, np.ones(6), np.full(6, 0.3), lambda: 1.0)
        for s in range(6):
            every = enumerate_columns(servers, s, prices)
            mine = np.sort(found.columns.take(found.columns.server == s).value(prices))
            assert found.lower[s] == pytest.approx(every.min(), rel=1e-9, abs=1e-12)
            near = np.sort(every[every < every.min() + 0.3])
            assert set(np.round(near, 9)) <= set(np.round(mine, 9)), (seed, s)


def enumerate_columns(servers: Servers, s: int, prices: Prices) -> np.ndarray:
    """Worth of every column of one server without a superfluous replica, by trying all numbers."""
    problem = servers.problem
    options = np.flatnonzero(problem.option_server == s)

    def unserved(replicas: np.ndarray) -> float:
        share = float(problem.capacity_rps[options] @ replicas) / problem.arrival_rps[s]
        if problem.min_replicas[s]:
            share = min(share, replicas.sum() / problem.min_replicas[s])
        return 0.0 if share > 1.0 - 1e-9 else 1.0 - share

    worth = []
    one_less = np.eye(len(options), dtype=np.int64)
    for number in itertools.product(*(range(n + 1) for n in servers.most[options])):
        replicas = np.array(number)
        types = int((replicas > 0).sum())
        if replicas.sum() > problem.max_replicas[s] or types > (problem.policy.max_types or types):
            continue
        left = unserved(replicas)
        if not problem.policy.partial and types > 0 and left > 0:
            continue
        if left == 0 and any(unserved(replicas - one) == 0 for one in one_less[replicas > 0]):
            continue
        charge = prices.unserved[s] * left + prices.unmet[s] * (left > 0)
        worth.append(float(prices.replica[options] @ replicas) + charge)
    return np.array(worth)


def larger(seed: int) -> AllocationProblem:
    """Six servers that run several replicas, some of them already, with limits and policies of every kind."""
    rng = default_rng(seed)
    problem = fleet(6, seed, mix=True)
    loaded = rng.random(6) > 0.1
    minimum = np.maximum(rng.choice([0, 0, 2, 4], 6), ~loaded)
    here = np.unique(rng.integers(0, 36, 6))
    return replace(
        problem,
        capacity_rps=problem.arrival_rps[problem.option_server] / rng.uniform(0.8, 8.0, 36),
        arrival_rps=problem.arrival_rps * loaded,
        min_replicas=minimum,
        max_replicas=np.where(rng.random(6) < 0.3, minimum + rng.integers(1, 6, 6), NO_LIMIT),
        inventory=Inventory(np.full(4, rng.choice([6, 30])), (None,) * 4),
        policy=Policy(
            max_types=rng.choice(np.array([2, 3, None])),
            saturation=SaturationPolicy.PRIORITY_EXHAUSTIVE if seed % 4 else SaturationPolicy.NONE,
            switching_factor=float(rng.choice([0.0, 0.3])),
        ),
        current_server=problem.option_server[here],
        current_accelerator=problem.option_accelerator[here],
        current_cost_per_h=problem.cost_per_h[here],
    )


class Case(NamedTuple):
    """What a search is asked for."""

    servers: Servers
    prices: Prices
    largest_unserved: np.ndarray
    slack: np.ndarray

    def found(
        self,
        *,
        most_columns: int = 100_000,
        tally: np.ndarray | None = None,
        left_s: Callable[[], float] = lambda: 1.0,
    ) -> Priced:
        which = np.unique(self.servers.problem.option_server)
        return mixtures(
            self.servers,
            which,
            self.prices,
            self.largest_unserved,
            self.slack,
            left_s,
            most_columns=most_columns,
            tally=tally,
        )


def cases(count: int) -> Iterator[tuple[int, Case]]:
    """Random problems of every kind with random prices, limits of what may stay unserved, and slacks."""
    seed = found = 0
    while found < count:
        seed += 1
        rng = default_rng(seed)
        problem = oracle.random_problem(seed) if seed % 2 else larger(seed)
        if problem.policy.max_types == 1 or not len(problem.option_server):
            continue
        servers = Servers(problem)
        size = servers.count
        prices = Prices(
            servers.replica_cost_per_h * rng.uniform(0.5, 2.0, len(problem.gpus)),
            float(rng.choice([0.0, 1.0])),
            rng.uniform(0.0, 50.0, size),
            rng.uniform(0.0, 5.0, size) * (rng.random() < 0.5),
        )
        largest = rng.choice([0.0, 0.4, 1.0], size)
        slack = rng.choice([0.0, 0.5, 5.0], size)
        yield seed, Case(servers, prices, largest, slack)
        found += 1


def both(case: Case, monkeypatch: pytest.MonkeyPatch, **kinds: object) -> list[Priced]:
    found = []
    for is_compiled in (True, False):
        monkeypatch.setattr(searching, "IS_COMPILED", is_compiled)
        found.append(case.found(**kinds))  # type: ignore[arg-type]
    return found


def listed(case: Case, priced: Priced, below: np.ndarray) -> dict[tuple[int, tuple[int, ...]], float]:
    """Worth of each column found that is worth less than this of its server."""
    columns = priced.columns
    worth = columns.value(case.prices)
    inside = worth < below[columns.server] - 1e-9 * (1.0 + np.abs(worth))
    rows = columns.replicas.toarray().tolist()
    return {
        (int(columns.server[k]), tuple(rows[k])): float(worth[k]) for k in np.flatnonzero(inside).tolist()
    }


@compiled
@pytest.mark.parametrize("most_columns", [100_000, 5])
def test_both_searches_find_the_same(most_columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = 0
    for seed, case in cases(150):
        mine, theirs = both(case, monkeypatch, most_columns=most_columns)
        assert mine.lower == pytest.approx(theirs.lower, rel=2e-7), seed
        below = np.minimum(mine.reach, theirs.reach)
        assert listed(case, mine, below) == pytest.approx(listed(case, theirs, below)), seed
        columns += len(mine.columns)
        counts = np.bincount(mine.columns.server, minlength=case.servers.count)
        assert (counts <= most_columns).all(), seed
        searched = np.isfinite(mine.lower) & (case.slack > 0) & (counts < most_columns)
        assert (mine.reach >= mine.lower + case.slack - 1e-9)[searched].all(), seed
    assert columns > (2_000 if most_columns > 5 else 600)


@compiled
def test_with_tallies_both_searches_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, case in cases(200):
        tally = Coupling.of(case.servers.problem).tally
        mine, theirs = both(case, monkeypatch, tally=tally)
        found = []
        for columns in (mine.columns, theirs.columns):
            sums = columns.replicas.hashed(tally)
            keys = zip(columns.server.tolist(), sums.tolist(), (columns.unserved > 0).tolist(), strict=True)
            found.append(dict(zip(keys, columns.value(case.prices).tolist(), strict=True)))
            assert len(found[-1]) == len(columns), seed
        assert mine.lower == pytest.approx(theirs.lower, rel=2e-7), seed
        assert found[0] == pytest.approx(found[1]), seed


def test_what_tallies_leave_out_is_bettered(way: None) -> None:
    """For every mix there is one that is worth no more and takes no more of any row."""
    left_out = 0
    for seed, case in cases(120):
        problem = case.servers.problem
        if problem.policy.partial and case.largest_unserved.any():
            continue
        coupling = Coupling.of(problem)
        every, few = case.found().columns, case.found(tally=coupling.tally).columns
        taken = [columns.replicas.times_rows(coupling.usage) for columns in (every, few)]
        worth = [columns.value(case.prices) for columns in (every, few)]
        for k, server in enumerate(every.server):
            same = few.server == server
            less = (taken[1][same] <= taken[0][k]).all(axis=1) & (worth[1][same] <= worth[0][k] + 1e-9)
            assert less.any(), seed
        left_out += len(every) - len(few)
    assert left_out > 100


def test_without_room_the_bounds_are_bounds(way: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = 0
    for seed, case in cases(60):
        every = case.found()
        with monkeypatch.context() as patch:
            patch.setattr(searching, "_MOST_STATES_EACH", (2, 2))
            few = case.found()
        assert (few.lower <= every.lower + 1e-7 * (1.0 + np.abs(every.lower)))[
            np.isfinite(every.lower)
        ].all(), seed
        below = np.minimum(few.reach, every.reach)
        assert listed(case, few, below) == pytest.approx(listed(case, every, below)), seed
        cut += int((few.reach < every.reach).sum())
    assert cut > 20


def test_without_time_there_is_a_bound(way: None) -> None:
    for seed, case in cases(60):
        every, none = case.found(), case.found(left_s=lambda: 0.0)
        there = np.isfinite(every.lower)
        assert (none.lower <= every.lower + 1e-7 * (1.0 + np.abs(every.lower)))[there].all(), seed
        below = np.minimum(none.reach, every.reach)
        assert listed(case, none, below) == pytest.approx(listed(case, every, below)), seed


@compiled
def test_the_memory_of_a_search_is_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_SPARE", [])
    sizes = []
    for _, case in cases(20):
        case.found()
        [spare] = searching._SPARE
        sizes.append(spare.size())
    # The same memory each time: it grows only with a case of more servers, or of more plans.
    assert 1_000 < sizes[0] < sizes[-1] < searching._MOST_SPARE
    monkeypatch.setattr(searching, "_MOST_SPARE", 1_000)
    case.found()
    assert searching._SPARE == []
