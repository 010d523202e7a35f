"""Sparse rows: every operation as with the whole array."""

import numpy as np
import pytest
from numpy.random import Generator, default_rng

from solver.rows import Rows


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
