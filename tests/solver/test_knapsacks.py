"""Branch and bound over knapsacks against every assignment there is."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from solver.assignment import IS_COMPILED
from solver.backends import get
from solver.milp import Milp, SolveOptions, Termination

if TYPE_CHECKING or IS_COMPILED:
    from solver.knapsacks import Assignment

if TYPE_CHECKING:
    from solver.milp import FloatArray, IntArray

pytestmark = pytest.mark.skipif(not IS_COMPILED, reason="installed without a C compiler")


class System(NamedTuple):
    server: IntArray
    pool: IntArray
    weight: IntArray
    cost: FloatArray
    capacity: IntArray

    @property
    def servers(self) -> int:
        return int(self.server.max()) + 1

    def assignment(self, multipliers: FloatArray | None = None) -> Assignment:
        start = np.searchsorted(self.pool, np.arange(len(self.capacity) + 1))
        u = np.zeros(self.servers) if multipliers is None else multipliers
        return Assignment(self.server, start, self.weight, self.cost, self.capacity, u)

    def keeps(self, plan: tuple[int, ...] | IntArray) -> bool:
        chosen = list(plan)
        taken = np.bincount(self.pool[chosen], self.weight[chosen], len(self.capacity))
        return bool((taken <= self.capacity).all())

    def plans(self) -> list[tuple[float, tuple[int, ...]]]:
        """Every plan within the capacities."""
        ways = [np.flatnonzero(self.server == j).tolist() for j in range(self.servers)]
        return [(float(self.cost[list(p)].sum()), p) for p in itertools.product(*ways) if self.keeps(p)]


def random_system(seed: int) -> System:
    """Up to seven servers and four pools, some with two options in one, ties, and costs of either sign."""
    rng = np.random.default_rng(seed)
    servers, pools = int(rng.integers(1, 8)), int(rng.integers(1, 5))
    rows = [
        (j, p)
        for j in range(servers)
        for p in rng.choice(
            pools, size=int(rng.integers(1, min(pools, 3) + 1)), replace=bool(rng.random() < 0.2)
        )
    ]
    rows.sort(key=lambda row: row[1])
    server, pool = (np.array(x, dtype=np.int64) for x in zip(*rows, strict=True))
    unit = int(rng.choice([1, 2, 8]))
    weight = unit * rng.integers(1, 10, len(rows))
    cost = rng.integers(-3, 30, len(rows)) * float(rng.choice([1e-3, 1.0, 1e4]))
    capacity = unit * rng.integers(1, 25, pools) + rng.integers(0, unit, pools)
    return System(server, pool, weight, cost, capacity)


def ceiling(system: System) -> float:
    """More than any plan costs."""
    most = np.full(system.servers, -np.inf)
    np.maximum.at(most, system.server, system.cost)
    return float(most.sum()) + 1.0 + abs(float(most.sum()))


@pytest.mark.parametrize("seed", range(400))
def test_finds_the_best_assignment(seed: int) -> None:
    system = random_system(seed)
    every = system.plans()
    best = min((worth for worth, _ in every), default=np.inf)
    known = ceiling(system)
    size = max(abs(known), 1.0)
    rng = np.random.default_rng(seed)
    problem = system.assignment(rng.normal(scale=abs(system.cost).mean() + 1e-9, size=system.servers))
    plan, value, bound, _, _ = problem.solve(known, 0.0, 100_000, lambda: 1.0)
    assert bound <= value
    if not every:
        assert plan is None
        assert bound == pytest.approx(known, abs=1e-7 * size)
        return
    assert plan is not None
    assert system.server[plan].tolist() == list(range(system.servers))
    assert system.keeps(plan)
    assert system.cost[plan].sum() == pytest.approx(value, abs=1e-9 * size)
    assert value == pytest.approx(best, abs=1e-7 * size)
    assert bound == pytest.approx(best, abs=1e-7 * size)


def tight_system(seed: int) -> System:
    """Eighteen servers and four pools with hardly more than they take, so that a plan is hard to find."""
    rng = np.random.default_rng(seed)
    servers, pools = 18, 4
    server, pool = np.tile(np.arange(servers), pools), np.repeat(np.arange(pools), servers)
    weight = rng.integers(5, 40, servers * pools)
    cost = 100.0 - weight + rng.integers(0, 20, servers * pools)
    capacity = np.full(pools, int(weight.sum() * (0.6 + 0.25 * (seed % 2)) / pools / pools))
    return System(server, pool, weight, cost, capacity)


def least_by_highs(system: System, option: int | None = None) -> float:
    """Optimum by an integer program, of the plans with an option if one is given; infinite for no plan."""
    count, pools = len(system.server), len(system.capacity)
    rows = np.r_[system.pool, pools + system.server]
    order = np.argsort(rows, kind="stable")
    rights = np.r_[system.capacity.astype(np.float64), np.ones(system.servers)]
    lower = np.zeros(count)
    if option is not None:
        lower[option] = 1.0
    milp = Milp(
        objective=system.cost,
        row_start=np.r_[0, np.cumsum(np.bincount(rows, minlength=pools + system.servers))],
        column=np.tile(np.arange(count), 2)[order],
        value=np.r_[system.weight.astype(np.float64), np.ones(count)][order],
        row_lower=np.r_[np.full(pools, -np.inf), np.ones(system.servers)],
        row_upper=rights,
        column_lower=lower,
        column_upper=np.ones(count),
        integer=np.ones(count, dtype=bool),
    )
    raw = get("highs").solve(milp, SolveOptions(relative_gap=0.0))
    assert raw.termination in (Termination.OPTIMAL, Termination.INFEASIBLE)
    return np.inf if raw.x is None else float(np.rint(raw.objective))  # costs are whole


@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_an_integer_program(seed: int) -> None:
    system = tight_system(seed)
    best = least_by_highs(system)
    known = ceiling(system)
    # Costs are whole: half a unit less is a better plan.
    plan, value, bound, _, _ = system.assignment().solve(known, 0.5, 100_000, lambda: 1.0)
    if np.isinf(best):
        assert plan is None
        assert bound >= known - 0.5
        return
    assert value == pytest.approx(best)
    assert best - 0.5 - 1e-6 <= bound <= best + 1e-6
    # What is left out for being no better by the step is no proof that there is nothing better at all.
    for step in (5.0, 20.0):
        _, value, bound, _, _ = system.assignment().solve(best + 30.0, step, 100_000, lambda: 1.0)
        assert value - step - 1e-6 <= bound <= best + 1e-6
    # Asked for a better plan than there is, nothing but the bounds ends the search.
    plan, _, bound, _, _ = system.assignment().solve(best, 0.5, 100_000, lambda: 1.0)
    assert plan is None
    assert bound >= best - 0.5 - 1e-6


def by_dynamic_programming(system: System, multipliers: FloatArray) -> float:
    """Lagrangian bound: what the servers are charged less the best of each pool, over all capacities."""
    total = float(multipliers.sum())
    for pool, capacity in enumerate(system.capacity.tolist()):
        best = np.zeros(capacity + 1)
        for k in np.flatnonzero((system.pool == pool) & (system.weight <= capacity)):
            w = system.weight[k]
            profit = multipliers[system.server[k]] - system.cost[k]
            best[w:] = np.maximum(best[w:], best[: capacity + 1 - w] + profit)
        total -= float(best.max())
    return total


def with_option(system: System, option: int) -> tuple[System, float]:
    """What is left to decide once a server takes an option, and the cost of that."""
    others = system.server != system.server[option]
    capacity = system.capacity.copy()
    capacity[system.pool[option]] -= system.weight[option]
    rest = System(
        system.server[others], system.pool[others], system.weight[others], system.cost[others], capacity
    )
    return rest, float(system.cost[option])


@pytest.mark.parametrize("seed", range(60))
def test_bounds_are_those_of_the_best_knapsacks(seed: int) -> None:
    """Also with profits in proportion to the weights, where many knapsacks are nearly the best."""
    system = tight_system(seed)
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        system = system._replace(
            cost=100.0 - system.weight * rng.uniform(1.0, 1.0 + 1e-3, len(system.weight))
        )
    for spread in (0.0, 3.0, 30.0):
        u = 100.0 + rng.normal(scale=spread, size=system.servers)
        bound, least = system.assignment().bounds(u)
        assert bound == pytest.approx(by_dynamic_programming(system, u), rel=1e-9)
        for option in range(0, len(least), 5):
            rest, cost = with_option(system, option)
            others = np.where(np.arange(system.servers) == system.server[option], 0.0, u)
            assert least[option] == pytest.approx(cost + by_dynamic_programming(rest, others), rel=1e-9)


@pytest.mark.parametrize("seed", range(300))
def test_bounds_hold_of_servers_with_two_options_in_a_pool(seed: int) -> None:
    system = random_system(seed)
    every = system.plans()
    rng = np.random.default_rng(seed)
    scale = float(np.abs(system.cost).mean()) + 1e-9
    for spread in (0.5, 2.0):
        bound, least = system.assignment().bounds(rng.normal(scale, spread * scale, system.servers))
        assert bound <= min((worth for worth, _ in every), default=np.inf) + 1e-9 * scale
        for option, at_least in enumerate(least):
            assert at_least <= min((w for w, p in every if option in p), default=np.inf) + 1e-9 * scale


def test_options_of_a_server_in_one_pool_are_missed_once() -> None:
    """Without either of two options of 1 card the pool still has 1.9 by another server, not 1.8."""
    system = System(
        server=np.array([0, 0, 1, 0, 1]),
        pool=np.array([0, 0, 0, 1, 1]),
        weight=np.array([1, 1, 2, 1, 1]),
        cost=np.array([9.0, 9.0, 8.1, 10.0, 20.0]),
        capacity=np.array([2, 1]),
    )
    bound, least = system.assignment().bounds(np.array([10.0, 10.0]))
    assert bound == pytest.approx(20.0 - 2.0)
    assert least[3] == pytest.approx(20.0 - 1.9)


@pytest.mark.parametrize("seed", range(60))
def test_plans_keep_the_capacities_with_several_options_in_a_pool(seed: int) -> None:
    rng = np.random.default_rng(seed)
    servers = 25
    server, pool = np.tile(np.arange(servers), 6), np.repeat([0, 1], 3 * servers)
    weight = rng.integers(1, 30, 6 * servers)
    cost = 60.0 - weight + rng.integers(0, 25, 6 * servers)
    system = System(server, pool, weight, cost, np.full(2, int(weight.sum() * 0.08)))
    plan, value, bound, _, _ = system.assignment().solve(ceiling(system), 0.0, 10, lambda: 1.0)
    assert plan is not None
    assert system.keeps(plan)
    assert system.cost[plan].sum() == pytest.approx(value)
    assert bound <= value


@pytest.mark.parametrize("seed", range(100))
def test_bound_holds_wherever_the_search_ends(seed: int) -> None:
    system = random_system(seed)
    best = min((worth for worth, _ in system.plans()), default=np.inf)
    known = ceiling(system)
    for nodes, step in ((1, 0.0), (2, 0.0), (3, 0.1 * known), (100_000, 0.3 * known)):
        plan, value, bound, _, used = system.assignment().solve(known, step, nodes, lambda: 1.0)
        assert used <= nodes
        assert bound <= min(best, value) + 1e-9 * known
        assert plan is None or value >= best - 1e-9 * known
        if nodes == 100_000:
            assert value - bound <= step + 1e-7 * known or bound >= known - step


def test_knapsacks_see_what_is_left_of_a_pool() -> None:
    """Two servers of 6 cards in a pool of 10: the relaxation serves 10/6 there, and no plan more than one."""
    system = System(
        server=np.array([0, 1, 0, 1]),
        pool=np.array([0, 0, 1, 1]),
        weight=np.array([6, 6, 1, 1]),
        cost=np.array([0.0, 0.0, 9.0, 9.0]),
        capacity=np.array([10, 2]),
    )
    _, value, bound, _, nodes = system.assignment().solve(18.0, 0.1, 1, lambda: 1.0)
    assert (value, nodes) == (9.0, 1)
    assert bound > 8.8


def test_no_time_leaves_the_bound_of_the_root() -> None:
    system = tight_system(3)
    best = least_by_highs(system)
    *_, bound, _, nodes = system.assignment().solve(ceiling(system), 0.0, 1000, lambda: 0.0)
    assert nodes == 1
    assert bound <= best


def test_large_knapsacks_are_bounded_by_their_relaxation() -> None:
    """Weights of prices and capacities that need more states than are kept still give a bound."""
    rng = np.random.default_rng(7)
    count = 3_000
    weight = rng.integers(10**6, 10**7, count)
    gain = weight * rng.uniform(1.0, 1.0 + 1e-7, count)
    system = System(
        server=np.tile(np.arange(count), 2),
        pool=np.repeat([0, 1], count),
        weight=np.r_[weight, np.ones(count, dtype=np.int64)],
        cost=np.r_[np.zeros(count), gain],
        capacity=np.array([int(weight.sum() // 2) + 1, count]),
    )
    known = float(gain.sum())
    plan, value, bound, _, _ = system.assignment(gain).solve(known, 1e-9 * known, 1, lambda: 1.0)
    ratio = np.sort(gain / weight)
    assert plan is not None
    assert system.keeps(plan)
    assert bound <= value
    assert bound >= known - ratio[-1] * system.capacity[0] - 1e-6 * known
