"""Law 3 with its optional terms, against the form that is fitted to measurements."""

from __future__ import annotations

import numpy as np
import pytest

from models.capacity import evaluate, size
from models.fit import Form, predict
from models.laws import Law, latencies_s, lone_latencies_s, service_time_s
from models.measurements import from_rows

SHAPES = ((1024, 1024), (8192, 100), (100, 3000), (15000, 50), (0, 200))
BATCHES = (1, 4, 16, 128, 300)
PARAMETERS = {
    "alpha": 8.0,
    "beta": 0.03,
    "gamma": 2e-5,
    "betaPrefill": 0.07,
    "epsilon": 12.0,
    "expertFraction": 0.03125,
    "prefillFloor": 30.0,
}
ATTRIBUTES = {
    "alpha": "alpha_s",
    "beta": "beta_s",
    "gamma": "gamma_s",
    "betaPrefill": "beta_prefill_s",
    "epsilon": "epsilon_s",
    "prefillFloor": "prefill_floor_s",
}


@pytest.fixture
def points():
    return from_rows(
        {"concurrency": n, "in_tokens": a, "out_tokens": b, "itl_ms": 1.0} for a, b in SHAPES for n in BATCHES
    )


@pytest.fixture
def candidates(make, points):
    return make(
        law=Law.ITERATION,
        **{attribute: PARAMETERS[name] / 1000 for name, attribute in ATTRIBUTES.items()},
        expert_fraction=PARAMETERS["expertFraction"],
        in_tokens=points.in_tokens,
        out_tokens=points.out_tokens,
        max_batch=points.concurrency.astype(np.int64),
        max_queue=50,
    )


def test_latencies_are_those_that_are_fitted(candidates, points):
    service_s = np.array(
        [
            service_time_s(Law.ITERATION, candidates.take(np.array([i])), np.array([n]))[0, 0]
            for i, n in enumerate(points.concurrency)
        ]
    )
    itl_s, first_s = latencies_s(Law.ITERATION, candidates, service_s, points.concurrency)
    itl_ms, ttft_ms = predict(Form.EXPERTS_PREFILL, PARAMETERS, points)
    np.testing.assert_allclose(itl_s * 1000, itl_ms, rtol=1e-9)
    np.testing.assert_allclose(first_s * 1000, ttft_ms, rtol=1e-9)


def test_one_request_alone_is_a_batch_of_one(candidates, points):
    alone = points.concurrency == 1
    with_input = alone & (points.in_tokens > 0)
    itl_s, first_s = lone_latencies_s(Law.ITERATION, candidates)
    itl_ms, ttft_ms = predict(Form.EXPERTS_PREFILL, PARAMETERS, points)
    np.testing.assert_allclose(itl_s[alone] * 1000, itl_ms[alone], rtol=1e-9)
    np.testing.assert_allclose(first_s[with_input] * 1000, ttft_ms[with_input], rtol=1e-9)


def test_more_work_is_less_capacity(make, candidates):
    plain = make(
        law=Law.ITERATION,
        **{
            name: getattr(candidates, name)
            for name in ("alpha_s", "beta_s", "gamma_s", "in_tokens", "out_tokens")
        },
        max_batch=candidates.max_batch,
        max_queue=50,
    )
    assert (size(candidates).capacity_rps < size(plain).capacity_rps).all()


def test_the_rate_rises_with_the_batch_though_experts_are_read(candidates):
    batch = np.arange(1.0, 301.0)
    rate_rps = batch / service_time_s(Law.ITERATION, candidates, batch)
    assert (np.diff(rate_rps[candidates.in_tokens < 8000]) > 0).all()
    sizing = size(candidates)
    metrics = evaluate(candidates, sizing.arrival_rps)
    np.testing.assert_allclose(metrics.throughput_rps, sizing.capacity_rps, rtol=1e-6)
