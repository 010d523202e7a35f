from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.capacity import (
    HIGHEST_SHARE,
    LOWEST_SHARE,
    THROUGHPUT_SHARE,
    Limit,
    evaluate,
    size,
    unloaded,
)
from models.laws import Candidates, Law, service_time_s
from models.queue import BatchQueue, ServiceTimes

LN20 = np.log(20.0)


@st.composite
def candidate_columns(draw):
    """One candidate of any law, with targets around what it can do."""
    law = draw(st.sampled_from(list(Law)))
    alpha_s = draw(st.floats(1e-3, 0.2))
    beta_s = draw(st.floats(1e-5, 1e-2))
    prefill = law is not Law.DECODE_LINEAR
    return {
        "law": law,
        "alpha_s": alpha_s,
        "beta_s": beta_s,
        "gamma_s": draw(st.just(0.0) | st.floats(1e-3, 1.0)) * {1: 0.0, 2: 1.0, 3: 1e-5}[law],
        "delta_s": draw(st.just(0.0) | st.floats(1e-7, 1e-4)) if law is Law.PREFILL_DECODE else 0.0,
        "in_tokens": draw(st.integers(0, 6000)) if prefill else 0,
        "out_tokens": draw(st.integers(1, 2000)),
        "max_batch": draw(st.integers(1, 300)),
        "max_queue": draw(st.integers(0, 3000)),
        "target_itl_s": draw(st.sampled_from([0.0, 0.9, 1.1, 1.5, 3.0])) * (alpha_s + beta_s),
        "target_ttft_s": draw(st.sampled_from([0.0, 0.01, 0.5, 2.0, 30.0])),
        "throughput_target": draw(st.booleans()),
        "percentile": draw(st.sampled_from([np.nan, 0.5, 0.95, 0.999])),
        "wait_factor": draw(st.sampled_from([1.0, 0.5, 2.25])),
    }


def compared(candidates: Candidates, arrival_rps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ITL and TTFT as they are compared with their targets."""
    metrics = evaluate(candidates, arrival_rps)
    mean = np.where(candidates.law == Law.DECODE_LINEAR, LN20 * metrics.ttft_s, metrics.ttft_s)
    return metrics.itl_s, np.where(np.isnan(candidates.percentile), mean, metrics.ttft_percentile_s)


def meets(candidate: Candidates, arrival_rps: np.ndarray, slack: float) -> bool:
    """Whether one candidate meets its targets; a percentile is checked by the share that misses it."""
    itl_s, ttft_s = compared(candidate, arrival_rps)
    itl_met = candidate.target_itl_s == 0 or itl_s <= candidate.target_itl_s * (1 + slack)
    if candidate.target_ttft_s == 0 or np.isnan(candidate.percentile):
        return itl_met and (candidate.target_ttft_s == 0 or ttft_s <= candidate.target_ttft_s * (1 + slack))
    law, metrics = Law(candidate.law[0]), evaluate(candidate, arrival_rps)
    times = ServiceTimes(
        np.zeros(1),
        np.zeros(1),
        np.zeros(1, dtype=bool),
        lambda _, batch: service_time_s(law, candidate, batch),
    )
    queue = BatchQueue.build(times, candidate.max_batch, candidate.max_queue)
    left_s = (candidate.target_ttft_s - (metrics.ttft_s - metrics.wait_s)) / candidate.wait_factor
    if left_s < 0:
        return False
    return itl_met and queue.solve(arrival_rps).wait_tail(left_s) <= (1 - candidate.percentile) * (1 + slack)


def rate_range(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    law = Law(candidates.law[0])
    batch = np.array([1.0, candidates.max_batch[0]])
    rate = batch / service_time_s(law, candidates, batch)[0]
    share = THROUGHPUT_SHARE if candidates.throughput_target[0] else 1.0
    return LOWEST_SHARE * rate[[0]], HIGHEST_SHARE * share * rate[[1]]


@given(candidate_columns())
def test_capacity_is_where_a_target_begins_to_be_missed(make, columns):
    candidates = make(**columns)
    lowest, highest = rate_range(candidates)
    sizing = size(candidates)
    itl_s, ttft_s = compared(candidates, lowest)
    assert sizing.lowest_itl_s == pytest.approx(itl_s, rel=1e-9)
    assert sizing.lowest_ttft_s == pytest.approx(ttft_s, rel=1e-9, abs=1e-12)
    limit = Limit(sizing.limit[0])
    if sizing.arrival_rps == 0:
        assert sizing.capacity_rps == 0
        assert not meets(candidates, lowest, 0.0)
        value, target = {
            Limit.ITL: (itl_s, candidates.target_itl_s),
            Limit.TTFT: (ttft_s, candidates.target_ttft_s),
        }[limit]
        assert value > target > 0
        return
    assert lowest * (1 - 1e-9) <= sizing.arrival_rps <= highest * (1 + 1e-9)
    assert meets(candidates, sizing.arrival_rps, 1e-6)
    if limit in (Limit.STABILITY, Limit.THROUGHPUT):
        assert sizing.arrival_rps == pytest.approx(highest, rel=1e-12)
        assert (limit is Limit.THROUGHPUT) == columns["throughput_target"]
    else:
        assert not meets(candidates, sizing.arrival_rps * (1 + 1e-4), 0.0)
    throughput = evaluate(candidates, sizing.arrival_rps).throughput_rps
    counted = sizing.arrival_rps if columns["law"] is Law.DECODE_LINEAR else throughput
    assert sizing.capacity_rps == pytest.approx(counted, rel=1e-6)


def test_limits_are_named(make):
    candidates = make(
        alpha_s=0.02,
        beta_s=0.001,
        out_tokens=100,
        max_batch=[16, 16, 16, 16, 16, 1],
        max_queue=144,
        target_itl_s=[0.0, 0.0, 0.025, 0.0, 0.020, 0.0],
        target_ttft_s=[0.0, 0.0, 0.0, 0.1, 0.0, 1e-3],
        throughput_target=[False, True, False, False, False, False],
    )
    sizing = size(candidates)
    full_rps = 16 / (100 * 0.036)
    expected = [Limit.STABILITY, Limit.THROUGHPUT, Limit.ITL, Limit.TTFT, Limit.ITL, Limit.TTFT]
    assert sizing.limit.tolist() == expected
    assert sizing.capacity_rps[0] == pytest.approx(0.999 * full_rps)
    assert sizing.capacity_rps[1] == pytest.approx(0.9 * 0.999 * full_rps)
    assert sizing.capacity_rps[4:].tolist() == [0, 0]
    # "The ITL is 21 ms even for one request, the target is 20 ms."
    assert sizing.lowest_itl_s[4] == pytest.approx(0.021, rel=1e-3)


@pytest.mark.parametrize(("target_itl_s", "feasible"), [(0.0210001, True), (0.021, True), (0.0209999, False)])
def test_with_a_batch_of_one_the_service_time_decides(make, target_itl_s, feasible):
    # The ITL is 21 ms at every rate; equal to its target it must leave the wait to set the capacity.
    candidates = make(
        alpha_s=0.02,
        beta_s=0.001,
        out_tokens=100,
        max_batch=1,
        max_queue=9,
        target_itl_s=target_itl_s,
        target_ttft_s=LN20 * 1.0,
    )
    sizing = size(candidates)
    assert (sizing.capacity_rps[0] > 0) == feasible
    if feasible:
        assert sizing.limit == Limit.TTFT
        assert evaluate(candidates, sizing.arrival_rps).wait_s == pytest.approx(1.0, rel=1e-5)
    else:
        assert sizing.limit == Limit.ITL


def test_an_itl_that_equals_its_target_at_every_rate_leaves_the_ttft_to_decide(make):
    columns = {
        "law": Law.PREFILL_DECODE,
        "alpha_s": 0.03,
        "beta_s": 0.0,
        "gamma_s": 0.1,
        "delta_s": 1e-5,
        "in_tokens": 500,
        "out_tokens": 200,
        "max_batch": 32,
        "max_queue": 320,
        "target_ttft_s": 1.0,
    }
    bound, free = size(make(**columns, target_itl_s=0.03)), size(make(**columns, target_itl_s=0.0))
    assert bound.limit == free.limit == Limit.TTFT
    assert bound.capacity_rps == pytest.approx(free.capacity_rps, rel=1e-5)


@pytest.mark.parametrize("law", list(Law))
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_percentile_target_is_met_by_exactly_that_share(make, law, share):
    columns = {
        "law": law,
        "alpha_s": 0.02,
        "beta_s": 0.0005,
        "gamma_s": {1: 0.0, 2: 0.1, 3: 1e-7}[law],
        "in_tokens": 0 if law is Law.DECODE_LINEAR else 256,
        "out_tokens": 200,
        "max_batch": 32,
        "max_queue": 320,
        "target_ttft_s": 0.8,
    }
    candidates = make(**columns, percentile=share)
    sizing = size(candidates)
    assert sizing.limit == Limit.TTFT
    metrics = evaluate(candidates, sizing.arrival_rps)
    assert metrics.ttft_percentile_s == pytest.approx(0.8, rel=1e-4)
    assert metrics.ttft_percentile_s - metrics.wait_percentile_s == pytest.approx(
        metrics.ttft_s - metrics.wait_s
    )
    # Those who wait may do so longer where fewer have to meet the target.
    stricter = size(make(**columns, percentile=min(share + 0.0005, 0.999)))
    assert stricter.capacity_rps <= sizing.capacity_rps


def test_bursty_waits_are_longer_and_capacity_smaller(make):
    columns = {
        "alpha_s": 0.02,
        "beta_s": 0.001,
        "out_tokens": 100,
        "max_batch": 16,
        "max_queue": 144,
        "target_ttft_s": 0.5,
    }
    smooth, bursty = make(**columns), make(**columns, wait_factor=2.25)
    rate = np.array([4.0])
    assert evaluate(bursty, rate).wait_s == pytest.approx(2.25 * evaluate(smooth, rate).wait_s)
    assert evaluate(bursty, rate).itl_s == evaluate(smooth, rate).itl_s
    capacity = size(bursty).capacity_rps
    assert capacity < size(smooth).capacity_rps
    assert LN20 * evaluate(bursty, capacity).wait_s == pytest.approx(0.5, rel=1e-4)


def test_without_a_queue_laws_2_and_3_count_what_is_not_lost(make):
    columns = {"alpha_s": 0.02, "beta_s": 0.001, "gamma_s": 1e-4, "in_tokens": 100, "out_tokens": 100}
    for law in (Law.PREFILL_DECODE, Law.ITERATION):
        candidates = make(law=law, **columns, max_batch=4, max_queue=0)
        sizing = size(candidates)
        metrics = evaluate(candidates, sizing.arrival_rps)
        assert metrics.wait_s == 0
        assert metrics.loss_probability > 0.1
        assert sizing.capacity_rps == pytest.approx(sizing.arrival_rps * (1 - metrics.loss_probability))


def test_candidates_of_all_laws_keep_their_order(sample, monkeypatch):
    monkeypatch.setattr("models.capacity.GROUP_STATES", 1000)
    systems = [sample(law, "small", 10) for law in Law]
    joined = Candidates(
        **{
            field.name: np.concatenate([getattr(system.candidates, field.name) for system in systems])
            for field in fields(Candidates)
        }
    )
    order = np.random.default_rng(5).permutation(len(joined))
    shuffled = size(joined.take(order))
    apart = [size(system.candidates) for system in systems]
    rates = np.concatenate([system.arrival_rps for system in systems]) / 50
    metrics = evaluate(joined.take(order), rates[order])
    metrics_apart = [evaluate(system.candidates, system.arrival_rps / 50) for system in systems]
    for whole, parts in ((shuffled, apart), (metrics, metrics_apart)):
        for field in fields(whole):
            expected = np.concatenate([getattr(part, field.name) for part in parts])[order]
            np.testing.assert_allclose(getattr(whole, field.name), expected, rtol=2e-6, err_msg=field.name)


def test_no_candidates(make):
    nobody = make(alpha_s=1.0, beta_s=1.0, out_tokens=1.0, max_batch=1, max_queue=0).take(slice(0, 0))
    assert len(size(nobody).capacity_rps) == 0
    assert len(evaluate(nobody, np.zeros(0)).itl_s) == 0
    assert len(unloaded(nobody).itl_s) == 0


@pytest.mark.parametrize("law", list(Law))
def test_any_rate_can_be_evaluated(make, law):
    rates = np.array([0.0, 1e-6, 1e-3, 1.0, 1e3, 1e6])
    candidates = make(
        law=law,
        alpha_s=0.02,
        beta_s=0.001,
        gamma_s=1e-5,
        in_tokens=0 if law is Law.DECODE_LINEAR else 3000,
        out_tokens=100,
        max_batch=np.full(len(rates), 256),
        max_queue=2560,
        percentile=0.95,
    )
    metrics = evaluate(candidates, rates)
    for field in fields(metrics):
        assert np.all(np.isfinite(getattr(metrics, field.name))), field.name
    assert (metrics.throughput_rps[0], metrics.wait_s[0] < 1e-9, metrics.idle_probability[0]) == (0, True, 1)
    for increasing in ("itl_s", "ttft_s", "occupancy", "throughput_rps", "loss_probability"):
        assert np.all(np.diff(getattr(metrics, increasing)) >= -1e-9), increasing
    # A full queue: the last accepted waits for all before it.
    assert metrics.wait_s[-1] == pytest.approx(2560 / metrics.throughput_rps[-1], rel=1e-3)
