"""Trials against queueing theory, and their intervals against series whose mean is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from models import trial
from models.replica import BATCHES, IterationLaw
from models.trial import Service, Verdict, hold, largest_rate

# One request at a time and only the fixed time of an iteration: service 10 iterations of 10 ms, the first
# token after the first one.
LAW = IterationLaw(alpha_s=0.01, beta_s=0.0, gamma_s=0.0)
SERVICE_S, FIRST_S = 0.1, 0.01
ONE = Service(LAW, max_batch=1, in_tokens=50, out_tokens=10)


def m_d_1_wait_s(rate_rps):
    """Pollaczek and Khinchine."""
    return rate_rps * SERVICE_S**2 / (2.0 * (1.0 - rate_rps * SERVICE_S))


def m_d_1_rate_rps(wait_s):
    """The rate at which M/D/1 has this mean wait."""
    return 2.0 * wait_s / (SERVICE_S * (SERVICE_S + 2.0 * wait_s))


@pytest.mark.parametrize("rate", [2.0, 7.0])
@pytest.mark.parametrize(("share", "verdict"), [(1.15, Verdict.MET), (0.85, Verdict.MISSED)])
def test_the_mean_is_held_against_its_target(rate, share, verdict):
    expected_s = m_d_1_wait_s(rate) + FIRST_S
    found = hold(replace(ONE, ttft_target_s=share * expected_s), rate)
    assert found.verdict is verdict
    assert found.ttft_s.mean == pytest.approx(expected_s, abs=1.5 * found.ttft_s.half_width)
    assert found.ttft_s.half_width < 0.2 * expected_s


def test_what_lies_on_its_target_is_missed_unless_it_is_shown_to_be_met():
    expected_s = m_d_1_wait_s(7.0) + FIRST_S
    found = hold(replace(ONE, ttft_target_s=expected_s), 7.0)
    assert found.verdict is Verdict.MISSED
    assert found.requests == trial.MOST_REQUESTS


def test_itl_is_held_against_its_target():
    assert hold(replace(ONE, itl_target_s=0.01), 5.0).verdict is Verdict.MET
    assert hold(replace(ONE, itl_target_s=0.0099), 5.0).verdict is Verdict.MISSED
    found = hold(replace(ONE, itl_target_s=0.01), 5.0)
    assert found.itl_s.mean == pytest.approx(0.01)
    assert found.itl_s.half_width == pytest.approx(0.0, abs=1e-9)


def test_a_single_token_has_no_itl():
    found = hold(replace(ONE, out_tokens=1, itl_target_s=0.001, ttft_target_s=1.0), 5.0)
    assert found.verdict is Verdict.MET
    assert math.isnan(found.itl_s.mean)


def test_overhead_is_part_of_the_ttft():
    plain = hold(replace(ONE, ttft_target_s=10.0), 5.0)
    slower = hold(replace(ONE, ttft_target_s=10.0, overhead_s=0.25), 5.0)
    assert slower.ttft_s.mean - plain.ttft_s.mean == pytest.approx(0.25)
    assert hold(replace(ONE, ttft_target_s=0.2, overhead_s=0.25), 0.5).verdict is Verdict.MISSED


def m_d_1_tail(rate_rps, time_s):
    """P(wait > t) of M/D/1 (Erlang 1909)."""
    whole = int(time_s / SERVICE_S)
    left = [rate_rps * (time_s - k * SERVICE_S) for k in range(whole + 1)]
    terms = [(-x) ** k / math.factorial(k) * math.exp(x) for k, x in enumerate(left)]
    return 1.0 - (1.0 - rate_rps * SERVICE_S) * math.fsum(terms)


@pytest.mark.parametrize("percentile", [0.9, 0.99])
def test_a_percentile_is_held_against_its_share(percentile):
    rate, low, high = 6.0, 0.0, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if m_d_1_tail(rate, middle) > 1 - percentile else (low, middle)
    met = hold(replace(ONE, ttft_target_s=FIRST_S + 1.25 * low, percentile=percentile), rate)
    missed = hold(replace(ONE, ttft_target_s=FIRST_S + 0.8 * low, percentile=percentile), rate)
    assert met.beyond.upper <= 1.0 - percentile < missed.beyond.lower
    assert (met.verdict, missed.verdict) == (Verdict.MET, Verdict.MISSED)
    exact = m_d_1_tail(rate, 1.25 * low)
    assert met.beyond.mean == pytest.approx(exact, abs=1.5 * met.beyond.half_width)


def test_a_target_that_nobody_misses_in_a_short_run_needs_enough_requests():
    # None of n requests misses: that says at most 3 / n, which is not yet 0.001.
    found = hold(replace(ONE, ttft_target_s=60.0, percentile=0.999), 5.0)
    assert found.beyond.mean == 0.0
    assert 0.0 < found.beyond.half_width <= 0.001
    assert found.verdict is Verdict.MET


@pytest.mark.parametrize("load", [0.995, 1.005, 1.02])
def test_a_queue_that_grows_for_ever_does_not_hold_however_patient_the_target(load):
    # Its waits reach the target after hours only.
    patient = replace(ONE, ttft_target_s=1000.0, saturation_rps=1.0 / SERVICE_S)
    found = hold(patient, load / SERVICE_S)
    assert (found.verdict, found.settled) == (Verdict.MISSED, False)
    assert 0.95 / SERVICE_S < largest_rate(patient, found) < 1.0 / SERVICE_S


def test_a_run_that_does_not_settle_is_not_taken_for_one_that_holds():
    # Without the saturation it shows in the run itself, and no target is needed for it.
    found = hold(ONE, 1.05 / SERVICE_S)
    assert (found.verdict, found.settled) == (Verdict.MISSED, False)


@pytest.mark.parametrize("wait_s", [0.02, 0.1, 0.3])
def test_the_largest_rate_is_that_of_m_d_1(wait_s):
    service = replace(ONE, ttft_target_s=wait_s + FIRST_S)
    exact = m_d_1_rate_rps(wait_s)
    missed = hold(service, 1.2 * exact)
    assert missed.verdict is Verdict.MISSED
    found = largest_rate(service, missed)
    assert 0.9 * exact < found < 1.02 * exact
    assert hold(service, found).verdict is Verdict.MET


def test_the_largest_rate_of_a_target_on_the_itl():
    # alpha + beta n: the ITL grows with the number in the batch.
    service = Service(
        IterationLaw(0.008, 2e-4, 0.0), 64, in_tokens=200, out_tokens=100, itl_target_s=0.012, out_cov=0.8
    )
    missed = hold(service, 20.0)
    assert missed.verdict is Verdict.MISSED
    found = largest_rate(service, missed)
    assert 0.0 < found < 20.0
    assert hold(service, found).verdict is Verdict.MET
    assert hold(service, 1.1 * found).verdict is Verdict.MISSED


def test_no_rate_is_low_enough():
    service = replace(ONE, ttft_target_s=0.5 * FIRST_S)
    assert largest_rate(service, hold(service, 5.0)) == 0.0


def test_nothing_begins_after_the_deadline():
    expected_s = m_d_1_wait_s(7.0) + FIRST_S
    service = replace(ONE, ttft_target_s=expected_s)
    found = hold(service, 7.0, deadline_s=1.0, now=lambda: 2.0)
    assert (found.verdict, found.requests) == (Verdict.OPEN, trial.LEAST_REQUESTS)
    missed = hold(service, 9.0)
    assert largest_rate(service, missed, deadline_s=1.0, now=lambda: 2.0) is None


def test_the_same_question_has_the_same_answer():
    service = replace(ONE, in_cov=1.0, out_cov=0.8, burstiness=4.0, ttft_target_s=1.0)
    assert hold(service, 3.0) == hold(service, 3.0)


def test_bursts_and_spread_wait_longer():
    plain = hold(replace(ONE, ttft_target_s=100.0), 5.0)
    bursts = hold(replace(ONE, ttft_target_s=100.0, burstiness=8.0), 5.0)
    spread = hold(replace(ONE, ttft_target_s=100.0, out_cov=1.5), 5.0)
    assert bursts.ttft_s.lower > 2 * plain.ttft_s.upper
    assert spread.ttft_s.lower > 1.3 * plain.ttft_s.upper


def test_a_mean_between_two_numbers_of_tokens_is_kept():
    tokens = trial._tokens(2.3, 0.0, 100_000, 1)
    assert set(tokens) == {2, 3}
    assert tokens.mean() == pytest.approx(2.3, abs=0.01)
    assert trial._tokens(0.0, 0.0, 10, 1).tolist() == [1] * 10


# Intervals


@pytest.mark.parametrize(("memory", "length"), [(0.0, 2_000), (0.9, 2_000), (0.99, 8_000), (0.995, 8_000)])
def test_intervals_cover_the_mean_of_a_series_with_memory(memory, length):
    # First-order autoregressions, started in their stationary state; their mean is 0.
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        noise = random.normal(size=length)
        values = np.empty(length)
        values[0] = noise[0] / math.sqrt(1 - memory**2)
        for i in range(1, length):
            values[i] = memory * values[i - 1] + noise[i]
        estimate = trial._mean(values)
        covered += estimate.lower <= 0.0 <= estimate.upper
    assert covered >= 0.88 * 200


def test_the_interval_of_a_ratio_is_that_of_its_linearisation():
    random = np.random.default_rng(1)
    weights = random.integers(1, 20, 20_000)
    values = 3.0 * weights + random.normal(size=20_000)
    estimate = trial._ratio(values, weights)
    assert estimate.mean == pytest.approx(3.0, rel=1e-3)
    # Var(ratio) = Var(noise) / n / E[weight]^2.
    assert estimate.half_width == pytest.approx(2.09 / math.sqrt(20_000) / 10.0, rel=0.5)


def test_equal_values_have_no_interval():
    assert trial._mean(np.full(BATCHES * 5, 2.0)).half_width == 0.0
