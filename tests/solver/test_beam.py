"""Plans by a beam search: within the limits, and as good as brute force and integer programs say."""

from itertools import product

import numpy as np
import pytest
from choices import program
from numpy.random import default_rng

from solver import backends
from solver.beam import Effort, matched
from solver.milp import SolveOptions
from solver.prices import Listed, ascend

WIDE = Effort(0.01, 0.03, 20_000, 20_000)
USUAL = Effort(0.01, 0.03, 300, 500)


def listed(servers: int, each: int, rows: int, seed: int, *, stock: float = 1.1) -> Listed:
    """Random columns of servers of very different sizes; `stock` is what there is, over the mean take."""
    rng = default_rng(seed)
    size = np.ceil(np.exp(rng.normal(1.0, 1.0, servers)))
    usage = np.zeros((servers * each, rows))
    usage[np.arange(servers * each), rng.integers(0, rows, servers * each)] = np.repeat(size, each)
    worth = np.repeat(size, each) * rng.uniform(1.0, 2.0, servers * each)
    limits = np.floor(stock * usage.sum(axis=0) / each) + 3.0
    return Listed(np.repeat(np.arange(servers), each), worth, usage, limits, float(worth.mean()))


def searched(columns: Listed, effort: Effort, most: float = np.inf) -> tuple[np.ndarray | None, float]:
    """Find a plan from the relaxation's solution; the columns and the bound."""
    raw = backends.get("highs").solve(program(columns, integer=False), SolveOptions(relax=True))
    assert raw.x is not None
    assert raw.row_dual is not None
    rows, servers = columns.usage.shape[1], int(columns.server[-1]) + 1
    duals = np.maximum(-raw.row_dual[:rows], 0.0)
    bound, reduced = columns.bound(duals)
    by_share = np.lexsort((-raw.x, columns.server))
    chosen = by_share[np.searchsorted(columns.server, np.arange(servers))]
    split = raw.x[chosen] < 1.0 - 1e-6
    expected = np.zeros((servers, rows))
    np.add.at(expected, columns.server, raw.x[:, None] * columns.usage)
    expected = np.where(split[:, None], expected, columns.usage[chosen])
    plan = matched(columns, reduced, duals, chosen, expected, split, most, effort, lambda: 1.0)
    return plan, bound


@pytest.mark.parametrize("seed", range(12))
def test_a_wide_beam_finds_the_best_plan_of_a_small_system(seed: int) -> None:
    columns = listed(6, 4, 3, seed)
    best = min(
        (
            float(columns.worth[list(choice)].sum())
            for choice in product(*(np.flatnonzero(columns.server == s) for s in range(6)))
            if (columns.usage[list(choice)].sum(axis=0) <= columns.limits).all()
        ),
        default=np.inf,
    )
    plan, bound = searched(columns, WIDE, 1e6 if np.isinf(best) else best - bound_of(columns) + 1e-9)
    if np.isinf(best):
        assert plan is None
        return
    assert plan is not None
    assert columns.worth[plan].sum() == pytest.approx(best)
    assert bound <= best + 1e-9


def bound_of(columns: Listed) -> float:
    return backends.get("highs").solve(program(columns, integer=False), SolveOptions(relax=True)).objective


@pytest.mark.parametrize("seed", range(6))
def test_plans_keep_the_limits_and_come_near_the_integer_program(seed: int) -> None:
    columns = listed(300, 6, 5, seed)
    exact = backends.get("highs").solve(program(columns, integer=True), SolveOptions(time_limit_s=20.0))
    room = 3.0 * (exact.objective - bound_of(columns)) + 1e-3 * abs(exact.objective)
    plan, bound = searched(columns, USUAL, room)
    assert plan is not None
    assert (columns.server[plan] == np.arange(300)).all()
    assert (columns.usage[plan].sum(axis=0) <= columns.limits).all()
    assert columns.worth[plan].sum() <= bound + room + 1e-6


def test_without_time_or_room_there_is_no_plan() -> None:
    columns = listed(50, 5, 3, 1)
    duals = ascend(columns, np.zeros(3), np.full(3, 1e3), 0.05, lambda: 1.0)
    _, reduced = columns.bound(duals)
    chosen = np.flatnonzero(reduced == 0.0)
    chosen = chosen[np.unique(columns.server[chosen], return_index=True)[1]]
    split = np.zeros(50, dtype=bool)
    args = (columns, reduced, duals, chosen, columns.usage[chosen], split)
    assert matched(*args, np.inf, USUAL, lambda: 0.0) is None
    none = Listed(columns.server, columns.worth, columns.usage, np.full(3, -1.0), columns.scale)
    assert matched(none, *args[1:], np.inf, USUAL, lambda: 1.0) is None
