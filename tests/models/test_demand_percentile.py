"""The demand that a window exceeds only so often, against counts of simulated arrivals and limits."""

import numpy as np
import pytest
from scipy.stats import norm, poisson

from models.arrivals import gamma_s
from models.headroom import percentile_rps


def planned(rate, percentile, dispersion=1.0, window_s=60.0):
    columns = (np.array([float(value)]) for value in (rate, percentile, dispersion, window_s))
    return float(percentile_rps(*columns)[0])


@pytest.mark.parametrize("percentile", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("rate", [0.5, 5.0, 100.0])
def test_a_poisson_count_is_within_it_as_often_as_asked(rate, percentile):
    whole = planned(rate, percentile) * 60.0
    # A continuous law in place of whole numbers: off by a request or so.
    assert poisson.cdf(np.ceil(whole), rate * 60.0) >= percentile
    assert poisson.cdf(np.floor(whole) - 2, rate * 60.0) < percentile


@pytest.mark.parametrize("burstiness", [4.0, 16.0])
def test_counts_of_bursts_are_within_it_as_often_as_asked(burstiness):
    # Gamma gaps: a renewal process, whose index of dispersion is that of the gaps over long windows.
    arrival_s = gamma_s(20.0, 2_000_000, seed=5, burstiness=burstiness)
    counts = np.bincount((arrival_s // 60.0).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(burstiness, rel=0.15)
    within = np.mean(counts <= 60.0 * planned(20.0, 0.95, burstiness))
    assert within == pytest.approx(0.95, abs=0.015)


def test_many_requests_are_normal():
    rate, dispersion, window_s = 1000.0, 3.0, 30.0
    normal = rate + norm.ppf(0.95) * np.sqrt(dispersion * rate / window_s)
    assert planned(rate, 0.95, dispersion, window_s) == pytest.approx(normal, rel=1e-3)


def test_longer_windows_and_fewer_bursts_need_less():
    assert planned(10, 0.95, 1, 600) < planned(10, 0.95, 1, 60) < planned(10, 0.95, 4, 60)
    assert planned(10, 0.9) < planned(10, 0.99)


def test_never_less_than_the_mean():
    # In most windows nothing arrives; at 0.5 the median of a skewed law is below its mean.
    assert planned(1e-3, 0.95, 10.0, 1.0) == 1e-3
    assert planned(10.0, 0.5) == 10.0
    assert planned(0.0, 0.95) == 0.0


def test_large_rates_stay_finite():
    assert planned(1e12, 0.999, 1.0, 1e6) == pytest.approx(1e12, rel=1e-6)
    assert planned(1e9, 0.95, 1e6, 1e-3) >= 1e9
