"""Prices found by Newton steps: as good as those of the linear program, and never outside their box."""

import numpy as np
import pytest
from choices import program
from numpy.random import default_rng

from solver import backends, prices
from solver.milp import SolveOptions
from solver.prices import Listed, along, ascend, parted

compiled = pytest.mark.skipif(not prices.IS_COMPILED, reason="installed without a C compiler")


@pytest.fixture(params=[pytest.param(True, marks=compiled), False], ids=["compiled", "arrays"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "IS_COMPILED", request.param)


def listed(servers: int, each: int, rows: int, seed: int, *, stock: float = 0.5) -> Listed:
    """Random columns; `stock` is the share of the mean take of all servers that there is."""
    rng = default_rng(seed)
    usage = rng.integers(0, 5, (servers * each, rows)).astype(float)
    usage[::each] = 0.0  # A way out for every server, so that something always fits.
    worth = rng.uniform(1.0, 10.0, servers * each)
    worth[::each] = 50.0
    limits = stock * servers * usage.mean(axis=0)
    return Listed(np.repeat(np.arange(servers), each), worth, usage, limits, float(worth.mean()))


def relaxed(columns: Listed) -> float:
    """Value of the linear program over the columns: what the best prices reach, computed another way."""
    return backends.get("highs").solve(program(columns, integer=False), SolveOptions(relax=True)).objective


@pytest.mark.parametrize("stock", [0.3, 0.6, 0.9])
def test_prices_reach_the_linear_program(way: None, stock: float) -> None:
    for seed in range(10):
        columns = listed(200, 8, 5, seed, stock=stock)
        best = ascend(columns, np.zeros(5), np.full(5, 1e4), 0.05, lambda: 1.0)
        bound, reduced = columns.bound(best)
        exact = relaxed(columns)
        assert bound <= exact + 1e-6 * abs(exact)
        assert bound == pytest.approx(exact, rel=1e-3), seed
        assert reduced.min() == 0.0
        assert (best >= 0.0).all()


def test_prices_never_get_worse_and_stay_in_their_box(way: None) -> None:
    columns = listed(100, 6, 4, 3)
    good = ascend(columns, np.zeros(4), np.full(4, 1e4), 0.05, lambda: 1.0)
    again = ascend(columns, good, np.full(4, 1e4), 0.05, lambda: 1.0)
    assert columns.bound(again)[0] >= columns.bound(good)[0]
    low = ascend(columns, np.zeros(4), np.full(4, 0.1), 0.05, lambda: 1.0)
    assert low.max() <= 0.1
    assert columns.bound(low)[0] >= columns.bound(np.zeros(4))[0]


def test_without_time_the_prices_are_those_given(way: None) -> None:
    columns = listed(50, 6, 4, 1)
    given = np.array([1.0, 0.0, 2.0, 0.5])
    assert (ascend(columns, given, np.full(4, 1e4), 0.05, lambda: 0.0) == given).all()


@compiled
def test_compiled_steps_are_those_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    most = np.full(4, 1e4)
    for seed in range(20):
        columns = listed(60, 7, 4, seed)
        start = default_rng(seed).uniform(0.0, 2.0, 4)
        found = []
        for is_compiled in (True, False):
            monkeypatch.setattr(prices, "IS_COMPILED", is_compiled)
            # A second step looks at columns near the prices of the first one.
            found.append([ascend(columns, start, most, 0.05, lambda: 1.0, end) for end in (0.05, 0.0125)])
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6, abs=1e-9), seed
        assert found[0][1] == pytest.approx(found[1][1], rel=1e-6, abs=1e-9), seed


@compiled
def test_without_columns_there_is_no_bound() -> None:
    nothing = listed(5, 3, 2, 0).take(np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="without columns"):
        ascend(nothing, np.zeros(2), np.ones(2), 0.05, lambda: 1.0)


def test_distance_is_the_change_of_prices_that_makes_a_column_best() -> None:
    columns = listed(30, 5, 3, 2)
    duals = np.array([0.4, 0.2, 0.3])
    _, reduced = columns.bound(duals)
    main = np.flatnonzero(reduced == 0.0)
    distance = columns.distance(duals, reduced, main)
    assert np.isneginf(distance[main]).all()
    other = np.setdiff1d(np.arange(len(reduced)), main)
    moved = np.abs(columns.usage[other] - columns.usage[main[columns.server[other]]]) @ duals
    assert distance[other] * moved == pytest.approx(reduced[other], abs=1e-6)


def test_the_best_prices_along_a_line_are_those_of_a_fine_grid() -> None:
    for seed in range(5):
        columns = listed(100, 6, 4, seed)
        direction = default_rng(seed).uniform(0.0, 1.0, 4)
        best = columns.bound(along(columns, direction, np.full(4, 1e4)))[0]
        grid = max(columns.bound(length * direction)[0] for length in np.geomspace(1e-6, 1e4, 5000))
        assert best == pytest.approx(grid, rel=1e-3)


@pytest.mark.parametrize("stock", [0.3, 0.7, 0.75, 0.8, 2.0])
def test_prices_part_what_does_not_fit_from_what_does(way: None, stock: float) -> None:
    for seed in range(8):
        columns = listed(60, 5, 3, seed, stock=stock)
        # Without the way out some systems fit and some do not; the linear program knows.
        kept = columns.usage.any(axis=1)
        usage, server = columns.usage[kept], columns.server[kept]
        bare = Listed(server, np.zeros(len(server)), usage, columns.limits, 1.0)
        fits = np.isfinite(relaxed(bare))
        most = 1.0 / np.maximum(columns.limits, 1.0)
        found = parted(bare, 0.5 * most, most, 0.05, lambda: 1.0)
        if fits:
            assert found is None
        else:
            assert found is not None
            assert bare.bound(found)[0] > 0.0
            assert ((found >= 0.0) & (found <= most)).all()
