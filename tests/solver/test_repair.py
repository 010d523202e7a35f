"""A choice of columns is made to fit at little cost, and bettered where there is room."""

import itertools

import numpy as np

from solver.prices import Listed
from solver.repair import repaired


def two_ways(limits: list[float]) -> Listed:
    """Three servers: 3 cards of the first type at 1, or 2 cards of the second at 2, or nothing at 10."""
    usage = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]] * 3)
    worth = np.array([1.0, 2.0, 10.0] * 3)
    return Listed(np.repeat([0, 1, 2], 3), worth, usage, np.array(limits), 4.0)


def repair(listed: Listed, duals: list[float]) -> np.ndarray | None:
    prices = np.array(duals)
    return repaired(listed, listed.bound(prices)[1], prices, np.array([0, 3, 6]), lambda: 1.0)


def test_the_servers_that_it_takes_least_to_change_are_changed() -> None:
    listed = two_ways([6.0, 4.0])
    found = repair(listed, [0.1, 0.1])
    assert found is not None
    assert sorted(found % 3) == [0, 0, 1]
    assert listed.worth[found].sum() == 4.0


def test_a_choice_that_fits_is_kept_or_bettered() -> None:
    listed = two_ways([9.0, 9.0])
    found = repaired(listed, listed.bound(np.zeros(2))[1], np.zeros(2), np.array([1, 4, 8]), lambda: 1.0)
    assert found is not None
    assert (found % 3 == 0).all()


def test_nothing_is_claimed_where_nothing_fits() -> None:
    listed = two_ways([0.0, 0.0])
    without_empty = listed.take(np.array([0, 1, 3, 4, 6, 7]))
    prices = np.array([0.1, 0.1])
    reduced = without_empty.bound(prices)[1]
    assert repaired(without_empty, reduced, prices, np.array([0, 2, 4]), lambda: 1.0) is None
    assert repair(listed, [0.1, 0.1]) is not None


def test_what_comes_back_always_keeps_the_limits() -> None:
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        usage = rng.integers(0, 4, (12, 2)).astype(float)
        listed = Listed(
            np.repeat(np.arange(4), 3), rng.uniform(1, 5, 12), usage, rng.integers(2, 9, 2).astype(float), 3.0
        )
        prices = rng.uniform(0, 1, 2)
        answer = repaired(listed, listed.bound(prices)[1], prices, np.array([0, 3, 6, 9]), lambda: 1.0)
        every = [
            np.array(choice)
            for choice in itertools.product(*(range(3 * s, 3 * s + 3) for s in range(4)))
            if (usage[list(choice)].sum(axis=0) <= listed.limits).all()
        ]
        if answer is None:
            continue
        found += 1
        assert any((answer == choice).all() for choice in every)
    assert found > 100
