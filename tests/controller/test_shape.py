"""The variation of request lengths from vLLM's buckets, against samples whose variation is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.shape import LEAST_REQUESTS, MOST, coefficient_of_variation

FloatArray = NDArray[np.float64]


def ends(longest: int) -> list[float]:
    """vLLM's: 1, 2, 5, 10, ... up to the longest context."""
    return [float(d * 10**e) for e in range(7) for d in (1, 2, 5) if d * 10**e <= longest]


def binned(lengths: FloatArray, longest: int) -> dict[float, float]:
    counts = {end: float(np.count_nonzero(lengths <= end)) for end in ends(longest)}
    return counts | {math.inf: float(len(lengths))}


def lognormal(mean: float, cov: float, longest: int, count: int = 50_000) -> FloatArray:
    variance = math.log1p(cov * cov)
    normal = np.random.default_rng(1).standard_normal(count)
    lengths = np.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * normal)
    return np.clip(np.rint(lengths), 1, longest)


def estimated(lengths: FloatArray, longest: int) -> float:
    found = coefficient_of_variation(binned(lengths, longest), float(lengths.sum()))
    assert found is not None
    return found


@pytest.mark.parametrize("longest", [4096, 8192, 131_072])
@pytest.mark.parametrize("cov", [0.5, 0.7, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("mean", [60.0, 130.0, 300.0, 700.0, 1500.0])
def test_wide_distributions_are_known_well(mean: float, cov: float, longest: int) -> None:
    lengths = lognormal(mean, cov, longest)
    true = float(lengths.std() / lengths.mean())
    assert estimated(lengths, longest) == pytest.approx(true, rel=0.16)


def test_the_typical_error_is_a_few_percent() -> None:
    errors = []
    for mean in (60.0, 130.0, 250.0, 300.0, 700.0, 1000.0, 1500.0, 3000.0):
        for cov in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0):
            lengths = lognormal(mean, cov, 131_072)
            errors.append(abs(estimated(lengths, 131_072) / float(lengths.std() / lengths.mean()) - 1))
    assert float(np.mean(errors)) < 0.04


@pytest.mark.parametrize("cov", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("mean", [60.0, 250.0, 700.0, 3000.0])
def test_narrow_distributions_are_taken_as_somewhat_wider(mean: float, cov: float) -> None:
    lengths = lognormal(mean, cov, 8192)
    true = float(lengths.std() / lengths.mean())
    assert -0.02 <= estimated(lengths, 8192) - true <= 0.18


@pytest.mark.parametrize("length", [1.0, 3.0, 128.0, 199.0, 2000.0, 8000.0])
def test_equal_lengths_vary_no_more_than_a_bucket_is_wide(length: float) -> None:
    assert estimated(np.full(1000, length), 8192) <= 0.3


def test_sharp_edges_and_long_tails() -> None:
    random = np.random.default_rng(3)
    pareto = np.clip(np.rint(200 * (1 + random.pareto(2.5, 20_000))), 1, 32_768)
    uniform = np.rint(random.uniform(100, 1000, 20_000))
    for lengths, longest, within in ((pareto, 32_768, 0.15), (uniform, 8192, 0.2)):
        true = float(lengths.std() / lengths.mean())
        assert estimated(lengths, longest) == pytest.approx(true, rel=within)


def test_two_kinds_of_requests() -> None:
    lengths = np.r_[np.full(900, 100.0), np.full(100, 4000.0)]
    true = float(lengths.std() / lengths.mean())
    assert estimated(lengths, 8192) == pytest.approx(true, rel=0.1)


def test_scale_does_not_matter() -> None:
    """A factor of ten moves every length by three buckets, and leaves the variation."""
    lengths = lognormal(3000.0, 1.0, 10**6)
    assert estimated(lengths * 10, 10**6) == pytest.approx(estimated(lengths, 10**6), rel=0.01)


@pytest.mark.parametrize(
    ("counts", "total"),
    [
        ({}, 0.0),
        ({math.inf: 100.0}, 100.0),
        ({1.0: 0.0, 2.0: LEAST_REQUESTS - 1, math.inf: LEAST_REQUESTS - 1}, 50.0),
        ({1.0: 0.0, 2.0: 100.0, math.inf: 100.0}, 0.0),
        ({1.0: 0.0, 2.0: 100.0, math.inf: 100.0}, math.inf),
    ],
)
def test_what_says_nothing_is_not_known(counts: dict[float, float], total: float) -> None:
    assert coefficient_of_variation(counts, total) is None


@pytest.mark.parametrize("total", [1.0, 1e3, 1e9])
def test_sum_that_contradicts_the_buckets_stays_within_bounds(total: float) -> None:
    lengths = lognormal(300.0, 1.0, 8192)
    found = coefficient_of_variation(binned(lengths, 8192), total)
    assert found is not None
    assert 0.0 <= found <= MOST


def test_counts_that_fall_a_little_do_no_harm() -> None:
    counts = binned(lognormal(300.0, 1.0, 8192), 8192)
    counts[500.0] = counts[200.0] - 1.0
    found = coefficient_of_variation(counts, 300.0 * 50_000)
    assert found is not None
    assert 0.5 < found < 1.5
