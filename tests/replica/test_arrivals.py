"""Arrival processes and token counts have the moments asked for."""

from pathlib import Path

import numpy as np
import pytest

from models.arrivals import (
    at_rate_s,
    deterministic_s,
    gamma_s,
    lognormal_tokens,
    poisson_s,
    read_trace,
)
from models.replica import IterationLaw, Limits, simulate

AZURE = Path(__file__).parents[2] / "data" / "azure2023"


def test_deterministic():
    np.testing.assert_allclose(deterministic_s(4.0, 3), [0.25, 0.5, 0.75])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, 16.0])
def test_gamma_gaps(burstiness):
    gaps = np.diff(gamma_s(5.0, 200_000, 1, burstiness))
    assert gaps.mean() == pytest.approx(0.2, rel=0.04)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.06)


def test_burstiness_is_the_index_of_dispersion():
    arrival_s = gamma_s(5.0, 400_000, 1, 4.0)
    counts = np.histogram(arrival_s, bins=np.arange(0.0, arrival_s[-1], 60.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(4.0, rel=0.15)


def test_the_same_seed_gives_the_same_requests():
    np.testing.assert_array_equal(poisson_s(2.0, 50, 7), poisson_s(2.0, 50, 7))
    assert (poisson_s(2.0, 50, 7) != poisson_s(2.0, 50, 8)).any()
    np.testing.assert_array_equal(lognormal_tokens(90, 1.0, 50, 7), lognormal_tokens(90, 1.0, 50, 7))


def test_lognormal_tokens():
    tokens = lognormal_tokens(1000, 0.8, 200_000, 1)
    assert tokens.mean() == pytest.approx(1000, rel=0.01)
    assert tokens.std() / tokens.mean() == pytest.approx(0.8, rel=0.02)
    assert (lognormal_tokens(30, 0.0, 5, 1) == 30).all()
    short = lognormal_tokens(2, 3.0, 1000, 1, most=40)
    assert short.min() == 1
    assert short.max() == 40


def test_a_trace_is_stretched_to_a_rate():
    np.testing.assert_allclose(at_rate_s(np.array([3.0, 4.0, 9.0]), 0.5), [0.0, 4 / 6, 4.0])


@pytest.mark.parametrize("make", [poisson_s, lambda rate, *_: deterministic_s(rate, 3)])
def test_a_rate_must_be_positive(make):
    with pytest.raises(ValueError, match="rate_rps must be above 0"):
        make(0.0, 3, 1)


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("time,in,out\n0,1,1\n")
    with pytest.raises(ValueError, match="must begin with"):
        read_trace(path)


def test_an_hour_of_azure_conversation_on_ten_replicas():
    trace = read_trace(AZURE / "azure2023_conv_requests.csv.gz")
    assert len(trace) == 19_366
    assert trace.in_tokens.mean() == pytest.approx(1154.7, abs=0.1)
    law = IterationLaw(alpha_s=14.156e-3, beta_s=7.3805e-5, gamma_s=2.1673e-8)
    outcome = simulate(law, Limits(64), trace, replicas=10, policy="least_outstanding")
    summary = outcome.summary(warmup=1000)
    assert np.isfinite(outcome.completion_s).all()
    # Ten replicas have next to no queue: about the time of a lone prompt and token.
    assert summary.ttft_mean_s == pytest.approx(14.156e-3 + 1154.7 * 7.38e-5, rel=0.15)
    assert summary.itl_mean_s == pytest.approx(14.3e-3, rel=0.1)
    assert summary.token_throughput_per_s == pytest.approx(5.53 * 211.1, rel=0.03)
