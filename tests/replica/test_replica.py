"""The simulator against arithmetic, queueing theory and a plain simulator of every iteration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replica.naive import naive_replica

from models.arrivals import Requests, deterministic_s, lognormal_tokens, poisson_s
from models.replica import IterationLaw, Limits, simulate

LAW = IterationLaw(alpha_s=8e-3, beta_s=4e-5, gamma_s=2e-8)


def requests(arrival_s, in_tokens, out_tokens):
    count = len(arrival_s)
    return Requests(
        np.asarray(arrival_s, dtype=float),
        np.broadcast_to(np.asarray(in_tokens), count),
        np.broadcast_to(np.asarray(out_tokens), count),
    )


def service_s(law, a, b):
    """Time in service of a request that is alone, prompt in one chunk."""
    steps = b - 1
    kv_read = a + steps * a + steps * (steps + 1) / 2
    return (1 + steps) * law.alpha_s + (a + steps) * law.beta_s + kv_read * law.gamma_s


# One request


def test_lone_request_takes_the_sum_of_its_iterations():
    outcome = simulate(LAW, Limits(16), requests([5.0], 1000, 200))
    assert outcome.admitted_s[0] == 5.0
    assert outcome.ttft_s[0] == pytest.approx(8e-3 + 1000 * (4e-5 + 2e-8), rel=1e-12)
    assert outcome.completion_s[0] - 5.0 == pytest.approx(service_s(LAW, 1000, 200), rel=1e-12)


def test_a_single_output_token_comes_from_the_prefill():
    outcome = simulate(LAW, Limits(16), requests([0.0], 10, 1))
    assert outcome.completion_s[0] == outcome.first_token_s[0]
    assert np.isnan(outcome.itl_s[0])


def test_a_long_prompt_is_cut_into_chunks_that_read_what_is_there():
    outcome = simulate(LAW, Limits(4, token_budget=400), requests([0.0], 1000, 1))
    kv_read = 400 + 800 + 1000
    assert outcome.ttft_s[0] == pytest.approx(3 * 8e-3 + 1000 * 4e-5 + kv_read * 2e-8, rel=1e-12)


def test_terms_beyond_law_3():
    law = IterationLaw(
        0.01, 1e-5, 0.0, beta_prefill_s=1e-4, prefill_floor_s=0.05, epsilon_s=0.02, expert_fraction=0.1
    )
    outcome = simulate(law, Limits(4), requests([0.0], [100], [2]))
    assert outcome.ttft_s[0] == pytest.approx(0.01 + 0.05 + 0.02 * (1 - 0.9**100), rel=1e-12)
    assert outcome.itl_s[0] == pytest.approx(0.01 + 1e-5 + 0.02 * 0.1, rel=1e-12)
    long_prompt = simulate(law, Limits(4), requests([0.0], [1000], [1]))
    assert long_prompt.ttft_s[0] == pytest.approx(0.01 + 0.1 + 0.02, rel=1e-12)


def test_an_arrival_waits_for_the_end_of_the_iteration():
    # Two requests; the second arrives in the third decode iteration of the first.
    law = IterationLaw(1.0, 0.0, 0.0)
    outcome = simulate(law, Limits(2), requests([0.0, 3.25], 10, 8))
    assert outcome.admitted_s[1] == 4.0
    assert outcome.first_token_s[1] == 5.0
    assert outcome.completion_s.tolist() == [8.0, 12.0]


def test_an_arrival_at_the_end_of_an_iteration_takes_part_in_the_next():
    law = IterationLaw(1.0, 0.0, 0.0)
    outcome = simulate(law, Limits(2), requests([0.0, 3.0], 10, 8))
    assert outcome.admitted_s[1] == 3.0


# Queueing theory


def test_d_d_1_below_saturation_never_waits():
    alone_s = service_s(LAW, 100, 50)
    outcome = simulate(LAW, Limits(1), requests(deterministic_s(0.99 / alone_s, 300), 100, 50))
    np.testing.assert_allclose(outcome.wait_s, 0.0, atol=1e-9)
    np.testing.assert_allclose(outcome.completion_s - outcome.admitted_s, alone_s, rtol=1e-9)


def test_d_d_1_above_saturation_waits_ever_longer():
    alone_s = service_s(LAW, 100, 50)
    outcome = simulate(LAW, Limits(1), requests(deterministic_s(1.25 / alone_s, 300), 100, 50))
    np.testing.assert_allclose(outcome.wait_s, np.arange(300) * 0.2 * alone_s, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_batch_of_one_is_m_g_1(load):
    # Pollaczek and Khinchine: E[W] = lambda E[S^2] / (2 (1 - rho)).
    count = 60_000
    # Prompts of one chunk.
    a, b = lognormal_tokens(500, 1.0, count, 1, most=8000), lognormal_tokens(100, 0.8, count, 2)
    alone_s = service_s(LAW, a.astype(float), b.astype(float))
    rate = load / alone_s.mean()
    outcome = simulate(LAW, Limits(1), Requests(poisson_s(rate, count, 3), a, b))
    np.testing.assert_allclose(outcome.completion_s - outcome.admitted_s, alone_s, rtol=1e-9)
    # The prefill comes on top of the wait and adds next to nothing to its spread.
    half_width = 3.0 * outcome.summary().ttft_standard_error_s
    expected = rate * np.mean(alone_s**2) / (2 * (1 - load))
    assert half_width < 0.15 * expected
    assert outcome.wait_s.mean() == pytest.approx(expected, abs=half_width)


def test_standard_error_of_a_queue_exceeds_that_of_independent_values():
    count = 20_000
    outcome = simulate(LAW, Limits(1), requests(poisson_s(2.0, count, 1), 100, 50))
    independent = outcome.ttft_s.std() / np.sqrt(count)
    assert independent * 2 < outcome.summary().ttft_standard_error_s < independent * 20
    assert np.isnan(simulate(LAW, Limits(1), requests([0.0, 1.0], 9, 9)).summary().ttft_standard_error_s)


def test_full_batch_of_equal_requests_completes_at_the_rate_of_law_3():
    a, b, n, count = 300, 120, 8, 4000
    steps = b - 1
    work_s = (a + steps) * LAW.beta_s + LAW.gamma_s * (a + steps * a + steps * b / 2)
    rate = n / (b * LAW.alpha_s + n * work_s)
    outcome = simulate(LAW, Limits(n), requests(poisson_s(1.5 * rate, count, 4), a, b))
    assert outcome.summary(warmup=1000).throughput_rps == pytest.approx(rate, rel=2e-3)


def test_littles_law():
    count = 20_000
    a, b = lognormal_tokens(800, 1.0, count, 1), lognormal_tokens(150, 0.8, count, 2)
    outcome = simulate(LAW, Limits(64), Requests(poisson_s(6.0, count, 5), a, b))
    summary = outcome.summary(warmup=2000)
    in_service_s = (outcome.completion_s - outcome.admitted_s)[2000:].mean()
    assert summary.occupancy == pytest.approx(6.0 * in_service_s, rel=0.03)
    assert summary.throughput_rps == pytest.approx(6.0, rel=0.03)


# Conservation


@pytest.mark.parametrize("kv_blocks", [None, 400])
def test_every_request_passes_through_once_in_order(kv_blocks):
    count, n = 3000, 16
    a = lognormal_tokens(400, 1.0, count, 1, most=3000)
    b = lognormal_tokens(200, 0.8, count, 2, most=3000)
    outcome = simulate(LAW, Limits(n, kv_blocks=kv_blocks), Requests(poisson_s(4.0, count, 3), a, b))
    assert np.isfinite(outcome.completion_s).all()
    assert (outcome.admitted_s >= outcome.requests.arrival_s).all()
    assert (outcome.first_token_s > outcome.admitted_s).all()
    assert ((outcome.completion_s > outcome.first_token_s) == (b > 1)).all()
    assert (np.diff(outcome.admitted_s) >= 0).all()
    assert (outcome.preemptions.sum() > 0) == (kv_blocks is not None)
    # In service at each admission, with the one admitted: admissions less completions.
    done = np.searchsorted(np.sort(outcome.completion_s), outcome.admitted_s, side="right")
    assert (np.arange(1, count + 1) - done).max() <= n


def test_preemption_recomputes_prompt_and_tokens():
    # Two requests of 4 + 5 tokens and a cache of 12: both start; with 6 tokens each the later one is evicted
    # with 3 tokens given, waits until the other has completed, and computes 4 + 3 tokens again.
    law = IterationLaw(1.0, 0.0, 0.0)
    limits = Limits(2, kv_blocks=12, block_tokens=1)
    outcome = simulate(law, limits, requests([0.0, 0.0], 4, 5))
    assert outcome.preemptions.tolist() == [0, 1]
    assert outcome.completion_s.tolist() == [5.0, 7.0]
    assert outcome.first_token_s.tolist() == [1.0, 1.0]


# The plain simulator


@st.composite
def cases(draw):
    count = draw(st.integers(1, 30))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    a = random.integers(1, draw(st.integers(2, 60)), count)
    b = random.integers(1, draw(st.integers(2, 40)), count)
    arrival_s = np.sort(random.uniform(0.0, draw(st.sampled_from([0.0, 1.0, 20.0, 200.0])), count))
    max_batch = draw(st.integers(1, 12))
    block_tokens = draw(st.integers(1, 8))
    least = -(-int((a + b - 1).max()) // block_tokens)
    kv_blocks = draw(st.one_of(st.none(), st.integers(least, least + 20)))
    budget = draw(st.integers(max_batch, 60))
    alpha, beta, gamma, floor, epsilon = random.uniform(0.001, 1.0, 5) * [1.0, 0.1, 0.01, 0.5, 1.0]
    law = draw(
        st.sampled_from(
            [
                IterationLaw(alpha, beta, gamma),
                IterationLaw(alpha, beta, 0.0),
                IterationLaw(alpha, beta, gamma, beta / 3, floor, epsilon, 0.1),
            ]
        )
    )
    return law, Limits(max_batch, budget, kv_blocks, block_tokens), Requests(arrival_s, a, b)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(cases())
def test_jumping_equals_taking_every_iteration(case):
    law, limits, workload = case
    outcome = simulate(law, limits, workload)
    expected = naive_replica(
        law,
        limits,
        workload.arrival_s.tolist(),
        workload.in_tokens.tolist(),
        workload.out_tokens.tolist(),
    )
    for name, column in (
        ("admitted", "admitted_s"),
        ("first", "first_token_s"),
        ("completion", "completion_s"),
    ):
        times = [getattr(request, name) for request in expected]
        np.testing.assert_allclose(getattr(outcome, column), times, rtol=1e-9, atol=1e-9, err_msg=name)
    assert outcome.preemptions.tolist() == [request.preemptions for request in expected]


# Several replicas


def workload(count=4000, rate=20.0):
    a, b = lognormal_tokens(500, 1.0, count, 1), lognormal_tokens(100, 1.0, count, 2)
    return Requests(poisson_s(rate, count, 3), a, b)


def test_round_robin_is_every_third_request_alone():
    whole = workload()
    outcome = simulate(LAW, Limits(8), whole, replicas=3)
    part = Requests(whole.arrival_s[1::3], whole.in_tokens[1::3], whole.out_tokens[1::3])
    alone = simulate(LAW, Limits(8), part)
    np.testing.assert_array_equal(outcome.completion_s[1::3], alone.completion_s)
    assert (outcome.replica[1::3] == 1).all()


def test_least_outstanding_waits_less_than_round_robin():
    busy = workload(rate=29.0)
    turns = simulate(LAW, Limits(8), busy, replicas=4).summary(400)
    least = simulate(LAW, Limits(8), busy, replicas=4, policy="least_outstanding").summary(400)
    assert least.ttft_mean_s < 0.8 * turns.ttft_mean_s


def test_least_outstanding_takes_the_first_of_the_idle_and_counts_what_waits():
    law = IterationLaw(1.0, 0.0, 0.0)
    arrivals = requests([0.0, 0.1, 0.2, 0.3, 20.0], 1, [9, 9, 2, 2, 1])
    outcome = simulate(law, Limits(1), arrivals, replicas=2, policy="least_outstanding")
    assert outcome.replica.tolist() == [0, 1, 0, 1, 0]


def test_one_replica_needs_no_policy():
    turns = simulate(LAW, Limits(8), workload(500, 4.0))
    least = simulate(LAW, Limits(8), workload(500, 4.0), policy="least_outstanding")
    np.testing.assert_array_equal(turns.completion_s, least.completion_s)


# Summaries and bad input


def test_summary_by_hand():
    law = IterationLaw(1.0, 0.0, 0.0)
    outcome = simulate(law, Limits(1), requests([0.0, 1.0, 10.0], 5, [3, 2, 1]))
    summary = outcome.summary()
    assert outcome.ttft_s.tolist() == [1.0, 3.0, 1.0]
    assert summary.ttft_mean_s == pytest.approx(5 / 3)
    assert summary.ttft_p50_s == 1.0
    assert summary.itl_mean_s == 1.0
    assert summary.wait_mean_s == pytest.approx(2 / 3)
    assert summary.throughput_rps == pytest.approx(2 / 10)
    assert summary.token_throughput_per_s == pytest.approx(5 / 10)
    assert summary.occupancy == pytest.approx(5 / 10)
    with pytest.raises(ValueError, match="warmup 2"):
        outcome.summary(warmup=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IterationLaw(0.0, 0.0, 1e-8), "alpha_s"),
        (lambda: IterationLaw(1e-3, -1e-5, 0.0), "at least 0"),
        (lambda: IterationLaw(1e-3, 0.0, 0.0, expert_fraction=1.5), "expert_fraction"),
        (lambda: Limits(0), "max_batch"),
        (lambda: Limits(9, token_budget=8), "max_batch"),
        (lambda: Limits(4, kv_blocks=0), "kv_blocks"),
        (lambda: requests([1.0, 0.5], 5, 5), "decrease"),
        (lambda: requests([1.0], 0, 5), "in_tokens"),
        (lambda: requests([1.0], 5, 2.5), "out_tokens"),
        (lambda: simulate(LAW, Limits(4, kv_blocks=2), requests([0.0], 30, 4)), "33 KV tokens"),
        (lambda: simulate(LAW, Limits(4), requests([0.0], 30, 4), replicas=0), "replicas"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
