"""Dynamic programming over servers that choose one column each, against all choices there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from solver.prices import Listed
from solver.selection import IS_COMPILED, selected

if not IS_COMPILED:
    pytest.skip("labels are only of use compiled", allow_module_level=True)

from solver.labels import Labels


def _random(seed: int, *, whole: bool = True) -> Listed:
    """Columns of some servers, the last of each dear and taking nothing of most limits."""
    rng = np.random.default_rng(seed)
    servers, rows = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    sizes = rng.integers(1, 6, servers)
    server = np.repeat(np.arange(servers), sizes)
    usage = rng.integers(0, 6, (len(server), rows)).astype(float)
    if not whole:
        usage *= rng.uniform(0.1, 1.0, usage.shape)
    worth = np.round(20.0 * rng.random(len(server)) + 2.0 * (6.0 * rows - usage.sum(axis=1)), 2)
    limits = np.floor(usage.mean(axis=0) * servers * rng.uniform(0.5, 1.2, rows))
    return Listed(server, worth, usage, limits, float(worth.mean()))


def _best(listed: Listed) -> float:
    """Worth of the best choice of one column of each server, inf for none that keeps the limits."""
    each = [np.flatnonzero(listed.server == s) for s in range(listed.server[-1] + 1)]
    best = np.inf
    for choice in product(*each):
        if (listed.usage[list(choice)].sum(axis=0) <= listed.limits).all():
            best = min(best, float(listed.worth[list(choice)].sum()))
    return best


def _labels(listed: Listed, seed: int) -> Labels:
    rng = np.random.default_rng(seed)
    count, rows = int(listed.server[-1]) + 1, len(listed.limits)
    start = np.searchsorted(listed.server, np.arange(count + 1))
    duals = rng.exponential(2.0, (3, rows)) * rng.integers(0, 2, (3, rows))
    expected = rng.exponential(2.0, (count, rows))
    charge = rng.exponential(1.0, (2, rows))
    return Labels(start, listed.worth, listed.usage, listed.limits, duals, expected, charge)


def _check_plan(listed: Listed, plan: np.ndarray, worth: float) -> None:
    assert listed.server[plan].tolist() == list(range(listed.server[-1] + 1))
    assert (listed.usage[plan].sum(axis=0) <= listed.limits * (1 + 1e-9)).all()
    assert listed.worth[plan].sum() == pytest.approx(worth)


@pytest.mark.parametrize("whole", [True, False])
def test_wide_layers_find_the_best_plan_and_prove_it(whole: bool) -> None:
    found = 0
    for seed in range(200):
        listed = _random(seed, whole=whole)
        best = _best(listed)
        share = np.full(int(listed.server[-1]) + 1, (seed % 3) / 2)
        plan, bound = _labels(listed, seed).search(1e9, 10_000, share, lambda: 1.0)
        if np.isinf(best):
            assert plan is None
            assert bound >= 1e9
            continue
        found += 1
        assert plan is not None
        _check_plan(listed, plan, best)
        assert bound == pytest.approx(best)
    assert 50 < found < 200


def test_narrow_layers_prove_no_more_than_there_is() -> None:
    missed = 0
    for seed in range(300):
        listed = _random(seed)
        best = _best(listed)
        labels = _labels(listed, seed)
        share = np.full(int(listed.server[-1]) + 1, (seed % 3) / 2)
        for _ in range(5):
            plan, bound = labels.search(1e9, 1 + seed % 3, share, lambda: 1.0)
            assert bound <= best * (1 + 1e-9) or min(bound, 1e9) <= best
            if plan is not None:
                _check_plan(listed, plan, float(listed.worth[plan].sum()))
                assert listed.worth[plan].sum() >= best - 1e-6
            missed += plan is None or listed.worth[plan].sum() > best + 1e-6
    # Otherwise the layers were not narrow.
    assert missed > 100


def test_nothing_below_the_cutoff_is_proven_and_something_is_found() -> None:
    for seed in range(100):
        listed = _random(seed)
        best = _best(listed)
        if np.isinf(best):
            continue
        zero = np.zeros(int(listed.server[-1]) + 1)
        plan, bound = _labels(listed, seed).search(best - 0.01, 10_000, zero, lambda: 1.0)
        assert plan is None or listed.worth[plan].sum() >= best - 1e-9
        assert bound >= best - 0.01 - 1e-6
        plan, _ = _labels(listed, seed).search(best + 0.01, 10_000, zero, lambda: 1.0)
        assert plan is not None
        _check_plan(listed, plan, best)


def test_labels_that_take_the_same_are_one() -> None:
    """Forty servers with two equal ways each are 2**40 choices, and one label a layer."""
    server = np.repeat(np.arange(40), 2)
    usage = np.ones((80, 1))
    worth = np.tile([2.0, 1.0], 40)
    start = np.arange(0, 81, 2)
    labels = Labels(
        start, worth, usage, np.array([40.0]), np.zeros((1, 1)), np.zeros((40, 1)), np.zeros((2, 1))
    )
    plan, bound = labels.search(1e9, 2, np.zeros(40), lambda: 1.0)
    assert plan is not None
    assert plan.tolist() == list(range(1, 80, 2))
    assert bound == pytest.approx(40.0)
    assert server[plan].tolist() == list(range(40))


def test_without_time_there_is_no_plan_and_no_proof() -> None:
    listed = _random(1)
    plan, bound = _labels(listed, 1).search(1e9, 10, np.zeros(int(listed.server[-1]) + 1), lambda: 0.0)
    assert plan is None
    assert bound == -np.inf


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 30, 150, 2_000])
def test_what_a_layer_has_no_room_for_counts_in_the_bound(width: int, share: float) -> None:
    """Every choice takes something else, so the labels of a layer are many times what it keeps."""
    proven = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        usage, worth = rng.random((3 * 40, 2)), rng.random(3 * 40)
        listed = Listed(np.repeat(np.arange(3), 40), worth, usage, np.array([0.9, 0.9]), 0.5)
        first, second, third = np.meshgrid(*(np.arange(40) + 40 * s for s in range(3)), indexing="ij")
        fits = (usage[first] + usage[second] + usage[third] <= 0.9).all(axis=-1)
        best = float((worth[first] + worth[second] + worth[third])[fits].min())
        plan, bound = _labels(listed, seed).search(1e9, width, np.full(3, share), lambda: 10.0)
        assert bound <= best + 1e-9
        if plan is not None:
            _check_plan(listed, plan, float(worth[plan].sum()))
            assert worth[plan].sum() >= best - 1e-9
        proven += plan is not None and bound >= worth[plan].sum() - 1e-9
    assert proven == 10 if width == 2_000 else proven < 10 or width > 2


@pytest.mark.parametrize("is_expected", [True, False])
def test_selection_is_a_plan_with_its_bound(is_expected: bool) -> None:
    found = 0
    for seed in range(100):
        listed = _random(seed)
        best = _best(listed)
        rng = np.random.default_rng(seed)
        duals = rng.exponential(2.0, len(listed.limits))
        expected = rng.exponential(2.0, (int(listed.server[-1]) + 1, len(listed.limits)))
        plan, bound = selected(
            listed, duals, 1e9, 0.0, -np.inf, lambda: 1.0, expected if is_expected else None
        )
        if np.isinf(best):
            assert plan is None
            continue
        found += 1
        assert plan is not None
        _check_plan(listed, plan, best)
        assert bound == pytest.approx(best)
    assert found > 20
