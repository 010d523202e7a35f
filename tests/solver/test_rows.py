"""Sparse rows: every operation as with the whole array."""

import numpy as np
import pytest
from numpy.random import Generator, default_rng

from solver import entries_numpy, rows
from solver.rows import Rows, firsts, places


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(
            rows.entries,
            id="compiled",
            marks=pytest.mark.skipif(not rows.IS_COMPILED, reason="installed without a C compiler"),
        ),
        pytest.param(entries_numpy, id="arrays"),
    ],
)
def made_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operations are made of."""
    monkeypatch.setattr(rows, "entries", request.param)


def random_rows(rng: Generator, rows: int, width: int) -> tuple[Rows, np.ndarray]:
    """Rows without any order of their columns, some of them empty; and the whole array."""
    array = rng.integers(1, 9, (rows, width)) * (rng.random((rows, width)) < 0.3)
    row, column = np.nonzero(array)
    order = np.lexsort((rng.random(len(row)), row))
    row, column = row[order], column[order]
    return Rows.of(row, column, array[row, column], array.shape), array


@pytest.mark.parametrize("seed", range(40))
def test_operations_are_those_of_the_whole_array(seed: int) -> None:
    rng = default_rng(seed)
    count, width, depth = (int(n) for n in rng.integers(0, 8, 3))
    mine, array = random_rows(rng, count, width)
    other, other_array = random_rows(rng, int(rng.integers(0, 5)), width)
    factor, factor_array = random_rows(rng, width, depth)
    which = rng.integers(0, max(count, 1), 5 if count else 0)
    mask = rng.random(count) < 0.5
    weight = rng.normal(size=count)

    assert len(mine) == count
    assert np.array_equal(mine.toarray(), array)
    assert np.array_equal(mine.sizes, (array > 0).sum(axis=1))
    assert np.array_equal(mine.take(which).toarray(), array[which])
    assert np.array_equal(mine.take(mask).toarray(), array[mask])
    assert np.array_equal(mine.joined(other).toarray(), np.vstack([array, other_array]))
    vector = rng.normal(size=width)
    assert mine.times(vector) == pytest.approx(array @ vector)
    assert np.array_equal(mine.weighted_sum(), array.sum(axis=0))
    assert mine.weighted_sum(weight) == pytest.approx(array.T @ weight)
    assert np.array_equal(mine.times_rows(factor), array @ factor_array)
    for product in (mine.times(vector), mine.weighted_sum(), mine.times_rows(factor), mine.toarray()):
        assert product.dtype == np.float64


def test_products_with_large_numbers_wrap_around() -> None:
    rng = default_rng(0)
    mine, array = random_rows(rng, 20, 6)
    factor = rng.integers(1, 2**62, 6)
    exact = [sum(int(a) * int(f) for a, f in zip(row, factor, strict=True)) for row in array]
    assert [int(h) % 2**64 for h in mine.hashed(factor)] == [e % 2**64 for e in exact]
    assert max(exact) > 2**64


def test_a_row_that_is_not_there_is_an_error() -> None:
    mine, _ = random_rows(default_rng(0), 20, 6)
    with pytest.raises(IndexError):
        mine.take(np.array([3, 20]))


def test_keys_are_found_where_they_stand_first() -> None:
    for seed in range(50):
        rng = default_rng(seed)
        count, groups = int(rng.integers(0, 200)), int(rng.integers(1, 6))
        # Some keys differ in their high bits only, some have no pattern.
        key = rng.integers(0, 1 + count // 2, count) << int(rng.choice([0, 40]))
        key = np.where(rng.random(count) < 0.5, key, key * -(2**61 - 1))
        group = key % groups
        seen: set[int] = set()
        expected: list[list[int]] = [[] for _ in range(groups)]
        for place, (k, g) in enumerate(zip(key.tolist(), group.tolist(), strict=True)):
            if k not in seen:
                seen.add(k)
                expected[g].append(place)
        assert firsts(key, group, groups).tolist() == [place for places in expected for place in places]
        wanted = np.concatenate([rng.choice(key, 20) if count else key, rng.integers(0, 50, 20)])
        first = [key.tolist().index(k) if k in seen else -1 for k in wanted.tolist()]
        assert places(key, wanted).tolist() == first
