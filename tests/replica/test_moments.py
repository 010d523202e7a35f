"""The law on moments against closed forms, its own limits and, where no closed form exists, the simulator."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from models import capacity, moments
from models.arrivals import Requests, poisson_s
from models.capacity import Limit
from models.laws import Candidates, Law
from models.replica import IterationLaw, Limits, simulate

ALPHA_S, BETA_S, GAMMA_S = 8e-3, 4e-5, 2e-8


def candidates(
    a=500.0, b=120.0, n=16, percentile=np.nan, itl_s=0.0, ttft_s=0.0, gamma_s=GAMMA_S, queue=10**7, **beyond
):
    size = np.broadcast(a, b, n, percentile, itl_s, ttft_s, gamma_s).size

    def column(value, kind=float):
        return np.broadcast_to(value, size).astype(kind)

    return Candidates(
        law=column(Law.ITERATION, int),
        alpha_s=column(ALPHA_S),
        beta_s=column(BETA_S),
        gamma_s=column(gamma_s),
        delta_s=column(0),
        beta_prefill_s=column(beyond.get("beta_prefill_s", BETA_S)),
        prefill_floor_s=column(beyond.get("prefill_floor_s", 0.0)),
        epsilon_s=column(beyond.get("epsilon_s", 0.0)),
        expert_fraction=column(beyond.get("expert_fraction", 0.0)),
        in_tokens=column(a),
        out_tokens=column(b),
        max_batch=column(n, int),
        max_queue=column(queue, int),
        target_itl_s=column(itl_s),
        target_ttft_s=column(ttft_s),
        throughput_target=column(False, bool),
        percentile=column(percentile),
        wait_factor=column(1.0),
    )


def spread(c, in_cov=0.0, out_cov=0.0, burstiness=1.0, overhead_s=0.0):
    one = np.ones(len(c))
    return moments.Detail(in_cov * one, out_cov * one, burstiness * one, overhead_s * one)


def lone_s(a, b, gamma_s=GAMMA_S):
    steps = b - 1
    return b * ALPHA_S + (a + steps) * BETA_S + gamma_s * (a + steps * a + b * steps / 2)


def test_without_load_a_request_has_the_replica_for_itself():
    c = candidates(a=900.0, b=80.0, n=[1, 8, 256])
    metrics = moments.evaluate(c, spread(c), np.zeros(3))
    np.testing.assert_allclose(metrics.ttft_s, ALPHA_S + 900 * (BETA_S + GAMMA_S), rtol=1e-6)
    np.testing.assert_allclose(metrics.itl_s, ALPHA_S + BETA_S + GAMMA_S * (900 + 80 / 2), rtol=1e-6)
    np.testing.assert_allclose(metrics.idle_probability, 1.0, atol=1e-6)


@pytest.mark.parametrize("load", [0.2, 0.8, 0.95])
@pytest.mark.parametrize(("in_cov", "out_cov"), [(0.0, 0.0), (1.0, 0.8)])
def test_a_batch_of_one_is_m_g_1(load, in_cov, out_cov):
    # Without gamma the time in service is linear in the tokens, so its variance is known exactly.
    a, b = 700.0, 90.0
    c = candidates(a, b, 1, gamma_s=0.0)
    mean_s = lone_s(a, b, 0.0)
    variance = (b * out_cov * (ALPHA_S + BETA_S)) ** 2 + (a * in_cov * BETA_S) ** 2
    rate = load / mean_s
    metrics = moments.evaluate(c, spread(c, in_cov, out_cov), np.array([rate]))
    assert metrics.wait_s[0] == pytest.approx(rate * (mean_s**2 + variance) / (2 * (1 - load)), rel=1e-4)
    assert metrics.itl_s[0] == pytest.approx(ALPHA_S + BETA_S, rel=1e-6)
    assert metrics.ttft_s[0] == pytest.approx(metrics.wait_s[0] + ALPHA_S + a * BETA_S, rel=1e-4)


def test_full_rate_in_closed_form():
    a, b, n = 500.0, 120.0, 16
    c = candidates(a, b, n)
    work_s = lone_s(a, b) - b * ALPHA_S
    assert moments.full_rate_rps(c, spread(c))[0] == pytest.approx(n / (b * ALPHA_S + n * work_s), rel=1e-12)


def test_decode_work_grows_with_the_second_moment_of_the_output():
    a, b, n, cov = 100.0, 1000.0, 64, 0.8
    c = candidates(a, b, n)
    extra_s = GAMMA_S * (cov * b) ** 2 / 2
    gap = 1 / moments.full_rate_rps(c, spread(c, out_cov=cov)) - 1 / moments.full_rate_rps(c, spread(c))
    assert gap[0] == pytest.approx(extra_s, rel=1e-9)


def test_the_token_budget_limits_the_full_rate():
    # An iteration has room for the tokens of 8192 / 2075 requests, whatever the batch limit.
    a, b, n, alpha_s = 2048.0, 28.0, 512, 0.1
    c = replace(candidates(a, b, n), alpha_s=np.array([alpha_s]))
    law = IterationLaw(alpha_s, BETA_S, GAMMA_S)
    predicted = moments.full_rate_rps(c, spread(c))[0]
    arrival_s = poisson_s(1.3 * predicted, 6000, 1)
    tokens = np.full(6000, int(a)), np.full(6000, int(b))
    outcome = simulate(law, Limits(n), Requests(arrival_s, *tokens))
    assert predicted == pytest.approx(outcome.summary(2000).throughput_rps, rel=0.02)
    unlimited = n / (b * alpha_s + n * (lone_s(a, b) - b * ALPHA_S))
    assert predicted < 0.9 * unlimited


def test_experts_and_floor_of_a_lone_request():
    beyond = {"beta_prefill_s": 9e-5, "prefill_floor_s": 0.02, "epsilon_s": 0.01, "expert_fraction": 0.03}
    c = candidates(a=40.0, b=80.0, n=[1, 64], **beyond)
    s = spread(c)
    metrics = moments.evaluate(c, s, np.zeros(2))
    np.testing.assert_allclose(metrics.ttft_s, ALPHA_S + 0.02 + 0.01 * (1 - 0.97**40), rtol=1e-6)
    token_s = ALPHA_S + BETA_S + GAMMA_S * (40 + 80 / 2) + 0.01 * 0.03
    np.testing.assert_allclose(metrics.itl_s, token_s, rtol=1e-3)


@pytest.mark.parametrize(
    "beyond",
    [
        {"epsilon_s": 9e-3, "expert_fraction": 0.03},
        {"beta_prefill_s": 8e-5, "epsilon_s": 9e-3, "expert_fraction": 0.03},
        {"beta_prefill_s": 8e-5, "prefill_floor_s": 0.01},
    ],
)
def test_terms_beyond_law_3_agree_with_the_simulator(beyond):
    a, b, n, count = 700, 150, 64, 8000
    c = candidates(float(a), float(b), n, **beyond)
    s = spread(c)
    full = moments.full_rate_rps(c, s)
    law = IterationLaw(ALPHA_S, BETA_S, GAMMA_S, **beyond)
    tokens = np.full(count, a), np.full(count, b)
    saturated = simulate(law, Limits(n), Requests(poisson_s(1.3 * full[0], count, 1), *tokens)).summary(3000)
    assert full[0] == pytest.approx(saturated.throughput_rps, rel=0.03)
    outcome = simulate(law, Limits(n), Requests(poisson_s(0.6 * full[0], count, 2), *tokens)).summary(1000)
    metrics = moments.evaluate(c, s, 0.6 * full)
    assert metrics.itl_s[0] == pytest.approx(outcome.itl_mean_s, rel=0.02)
    assert metrics.ttft_s[0] == pytest.approx(outcome.ttft_mean_s, rel=0.05)


def test_latencies_grow_with_the_load():
    c = candidates(a=[128, 1024, 4000], b=[1024, 128, 300], n=64, percentile=0.95)
    s = spread(c, 1.0, 0.8)
    full = moments.full_rate_rps(c, s)
    points = [moments.evaluate(c, s, load * full) for load in (0.01, 0.2, 0.5, 0.8, 0.95, 0.99)]
    for low, high in pairwise(points):
        assert (low.ttft_s < high.ttft_s).all()
        assert (low.itl_s < high.itl_s).all()
        assert (low.ttft_percentile_s < high.ttft_percentile_s).all()
        assert (low.occupancy < high.occupancy).all()


def test_bursts_and_overhead_add_to_the_ttft():
    c = candidates(n=8)
    rate = 0.8 * moments.full_rate_rps(c, spread(c))
    plain = moments.evaluate(c, spread(c), rate)
    assert moments.evaluate(c, spread(c, burstiness=4.0), rate).ttft_s > 1.5 * plain.ttft_s
    late = moments.evaluate(c, spread(c, overhead_s=0.015), rate)
    np.testing.assert_allclose(late.ttft_s, plain.ttft_s + 0.015, rtol=1e-12)


@pytest.mark.parametrize("percentile", [np.nan, 0.9, 0.99])
@pytest.mark.parametrize("n", [1, 8, 64, 512])
def test_size_and_evaluate_are_inverse(n, percentile):
    c = candidates(a=[128, 1024, 2048], b=[1024, 128, 28], n=n, percentile=percentile)
    s = spread(c, 1.0, 0.8)
    figure = "ttft_s" if np.isnan(percentile) else "ttft_percentile_s"
    rate = 0.7 * moments.full_rate_rps(c, s)
    target_s = getattr(moments.evaluate(c, s, rate), figure)
    sizing = moments.size(replace(c, target_ttft_s=target_s), s)
    np.testing.assert_allclose(sizing.arrival_rps, rate, rtol=1e-4)
    np.testing.assert_allclose(sizing.capacity_rps, rate, rtol=1e-4)
    assert (sizing.limit == Limit.TTFT).all()


def test_the_tightest_target_sets_the_capacity():
    base = candidates(n=32)
    rate = 0.6 * moments.full_rate_rps(base, spread(base))
    itl_s = moments.evaluate(base, spread(base), rate).itl_s
    c = candidates(n=32, itl_s=[itl_s[0], itl_s[0], 0.0, 0.0, 1e-3], ttft_s=[0.0, 10.0, 0.0, 1e-3, 0.0])
    sizing = moments.size(c, spread(c))
    np.testing.assert_allclose(sizing.arrival_rps[:2], rate[0], rtol=1e-4)
    assert sizing.limit.tolist() == [Limit.ITL, Limit.ITL, Limit.STABILITY, Limit.TTFT, Limit.ITL]
    full = moments.full_rate_rps(c, spread(c))
    assert sizing.arrival_rps[2] == pytest.approx(capacity.HIGHEST_SHARE * full[2])
    assert (sizing.capacity_rps[3:] == 0.0).all()
    assert sizing.lowest_ttft_s[3] == pytest.approx(ALPHA_S + 500 * (BETA_S + GAMMA_S), rel=0.01)


def test_a_throughput_target_leaves_a_tenth():
    c = replace(candidates(n=32), throughput_target=np.array([True]))
    sizing = moments.size(c, spread(c))
    share = capacity.THROUGHPUT_SHARE * capacity.HIGHEST_SHARE
    assert sizing.arrival_rps[0] == pytest.approx(share * moments.full_rate_rps(c, spread(c))[0])
    assert sizing.limit[0] == Limit.THROUGHPUT


@pytest.mark.parametrize("queue", [0, 5, 160])
def test_above_saturation_a_bounded_queue_loses_the_excess(queue):
    c = candidates(n=16, queue=queue, percentile=0.95)
    full = moments.full_rate_rps(c, spread(c))
    metrics = moments.evaluate(c, spread(c), 3.0 * full)
    assert metrics.throughput_rps[0] <= full[0]
    assert metrics.loss_probability[0] > 0.6
    for field in fields(metrics):
        assert np.isfinite(getattr(metrics, field.name)).all(), field.name


@pytest.mark.parametrize("group_states", [None, 64])
def test_rows_do_not_depend_on_each_other(monkeypatch, group_states):
    if group_states is not None:
        monkeypatch.setattr("models.capacity.GROUP_STATES", group_states)
    c = candidates(
        a=[128, 0, 20_000, 4000],
        b=[1024, 64, 1, 300],
        n=[1, 8, 64, 512],
        percentile=[0.95, np.nan, 0.95, 0.9],
        ttft_s=9.0,
        epsilon_s=[0.0, 2e-3, 0.0, 0.0],
        expert_fraction=0.03,
        prefill_floor_s=[0.0, 0.0, 0.1, 0.0],
    )
    s = spread(c, 1.0, 0.8)
    rate = 0.6 * moments.full_rate_rps(c, s)
    together, sized = moments.evaluate(c, s, rate), moments.size(c, s)
    for row in range(4):
        index = np.array([row])
        alone = moments.evaluate(c.take(index), s.take(index), rate[index])
        for field in fields(alone):
            value = getattr(together, field.name)[row]
            known = not np.isnan(c.percentile[row]) or "percentile" not in field.name
            assert np.isfinite(value) == known, field.name
            assert getattr(alone, field.name)[0] == pytest.approx(value, rel=1e-12, nan_ok=True), field.name
        size = moments.size(c.take(index), s.take(index))
        assert size.capacity_rps[0] == pytest.approx(sized.capacity_rps[row], rel=1e-9)
