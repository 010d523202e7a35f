from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.laws import (
    TOKEN_BUDGET,
    Law,
    is_line,
    latencies_s,
    lone_latencies_s,
    prefill_chunks,
    service_line_s,
    service_time_s,
)

BATCH = np.array([1.0, 2.0, 10.0, 64.0])


def test_law_1_time_by_hand(make):
    candidates = make(alpha_s=0.02058, beta_s=0.00041, out_tokens=178, max_batch=64, max_queue=0)
    time_s = service_time_s(Law.DECODE_LINEAR, candidates, BATCH)
    np.testing.assert_allclose(time_s, [178 * (0.02058 + 0.00041 * BATCH)], rtol=1e-14)


@pytest.mark.parametrize(
    ("in_tokens", "out_tokens", "expected"),
    [
        (128, 1024, 0.1372 + 1.0625e-5 * 128 * BATCH + 1023 * (0.01715 + 0.00034 * BATCH)),
        (0, 1024, 1023 * (0.01715 + 0.00034 * BATCH)),  # no prompt, no prefill
        (128, 1, 0.1372 + 1.0625e-5 * 128 * BATCH),  # the prefill yields the only token
        (0, 1, 0.01715 + 0.00034 * BATCH),  # neither: one decode
    ],
)
def test_law_2_time_by_hand(make, in_tokens, out_tokens, expected):
    columns = {
        "law": Law.PREFILL_DECODE,
        "alpha_s": 0.01715,
        "beta_s": 0.00034,
        "max_batch": 64,
        "max_queue": 0,
    }
    candidates = make(
        **columns, gamma_s=0.1372, delta_s=1.0625e-5, in_tokens=in_tokens, out_tokens=out_tokens
    )
    np.testing.assert_allclose(service_time_s(Law.PREFILL_DECODE, candidates, BATCH), [expected], rtol=1e-14)
    # A profile whose prefill takes no time cannot serve one token in no time either.
    free_prefill = make(**columns, in_tokens=128, out_tokens=1)
    time_s = service_time_s(Law.PREFILL_DECODE, free_prefill, BATCH)
    np.testing.assert_allclose(time_s, [0.01715 + 0.00034 * BATCH], rtol=1e-14)


def iteration(make, in_tokens, out_tokens, max_batch=64):
    return make(
        law=Law.ITERATION,
        alpha_s=0.008,
        beta_s=3.3e-5,
        gamma_s=3.33e-7,
        in_tokens=in_tokens,
        out_tokens=out_tokens,
        max_batch=max_batch,
        max_queue=0,
    )


def test_law_3_time_by_hand(make):
    # 7 of 10 prompts of 4096 tokens would take 28,672 tokens with 64 output tokens each: several chunks.
    time_s = service_time_s(Law.ITERATION, iteration(make, 4096, 64, 200), np.array([1.0, 200.0]))
    for n, seconds in zip((1, 200), time_s[0], strict=True):
        chunks = next(c for c in range(1, 1000) if n <= (c + 64) * (8192 - 4096 / c) / (4096 + 64))
        prefill_s = (3.3e-5 + 3.33e-7 * (chunks + 1) / 2) * 4096
        decode_s = 64 * 3.3e-5 + 3.33e-7 * 64 * (4096 + 65 / 2)
        assert seconds == pytest.approx((chunks + 64) * 0.008 + n * (prefill_s + decode_s), rel=1e-13)
    assert chunks > 1


@given(
    st.sampled_from(list(Law)),
    st.integers(0, 20_000),
    st.integers(1, 2000),
    st.integers(1, 600),
    st.sampled_from([0.0, 0.012]),
)
def test_where_the_time_is_a_line_it_is_that_line(make, law, in_tokens, out_tokens, batch, epsilon_s):
    third = law is Law.ITERATION
    candidates = make(
        law=law,
        alpha_s=0.008,
        beta_s=3.3e-5,
        gamma_s=3.33e-7,
        delta_s=1e-5,
        epsilon_s=epsilon_s if third else 0.0,
        expert_fraction=0.03,
        in_tokens=in_tokens,
        out_tokens=out_tokens,
        max_batch=batch,
        max_queue=0,
    )
    n = np.arange(1.0, batch + 1.0)
    base_s, slope_s = service_line_s(law, candidates)
    same = service_time_s(law, candidates, n)[0] == pytest.approx(base_s + slope_s * n, rel=1e-12)
    # Law 1 and 2 always are; law 3 bends where a prompt is cut, or experts are read.
    bent = third and (prefill_chunks(candidates, n).max() > 1 or epsilon_s > 0)
    assert is_line(law, candidates, np.array([batch])).tolist() == [not bent]
    assert same == (not bent)


@given(st.integers(0, 200_000), st.integers(1, 5000), st.integers(1, 4096))
def test_chunks_are_the_fewest_that_fit_the_token_budget(make, in_tokens, out_tokens, batch):
    a, b = Fraction(in_tokens), Fraction(out_tokens)

    def fits(chunks: int) -> bool:
        return batch <= math.floor((chunks + b) * (TOKEN_BUDGET - a / chunks) / (a + b))

    one = prefill_chunks(iteration(make, in_tokens, out_tokens), np.array([float(batch)]))
    chunks = int(one[0])
    assert chunks == one[0] >= 1
    assert fits(chunks)
    assert chunks == 1 or not fits(chunks - 1)


@given(
    st.sampled_from(list(Law)),
    st.floats(1e-4, 1.0),
    st.floats(0, 1e-2),
    st.floats(0, 1.0),
    st.floats(0, 1e-3),
    st.integers(1, 20_000),
    st.integers(2, 5000),
    st.integers(1, 4096),
)
def test_latencies_of_a_constant_batch_add_up_to_its_service_time(
    make, law, alpha_s, beta_s, gamma_s, delta_s, in_tokens, out_tokens, batch
):
    candidates = make(
        law=law,
        alpha_s=alpha_s,
        beta_s=beta_s,
        gamma_s=gamma_s if law is Law.PREFILL_DECODE else gamma_s * 1e-4,
        delta_s=delta_s,
        in_tokens=in_tokens if law is not Law.DECODE_LINEAR else 0,
        out_tokens=out_tokens,
        max_batch=batch,
        max_queue=0,
    )
    service_s = service_time_s(law, candidates, np.array([float(batch)]))[:, 0]
    itl_s, first_s = latencies_s(law, candidates, service_s, np.array([float(batch)]))
    # After the first token b - 1 follow (law 1: all K, the first included).
    rest = out_tokens if law is Law.DECODE_LINEAR else out_tokens - 1
    assert first_s + rest * itl_s == pytest.approx(service_s, rel=1e-9)


@given(st.sampled_from(list(Law)), st.integers(1, 20_000), st.integers(2, 5000))
def test_a_lone_request_has_the_latencies_of_a_batch_of_one(make, law, in_tokens, out_tokens):
    candidates = make(
        law=law,
        alpha_s=0.01,
        beta_s=1e-4,
        gamma_s=1e-3,
        delta_s=1e-5,
        in_tokens=in_tokens if law is not Law.DECODE_LINEAR else 0,
        out_tokens=out_tokens,
        max_batch=8,
        max_queue=0,
    )
    one = np.ones(1)
    constant = latencies_s(law, candidates, service_time_s(law, candidates, one)[:, 0], one)
    for alone, expected in zip(lone_latencies_s(law, candidates), constant, strict=True):
        assert alone == pytest.approx(expected, rel=1e-9)


def test_law_2_batch_is_clamped(make):
    columns = {"law": Law.PREFILL_DECODE, "alpha_s": 0.02, "beta_s": 0.001, "gamma_s": 0.1, "delta_s": 1e-5}
    candidates = make(**columns, in_tokens=[100, 100], out_tokens=11, max_batch=8, max_queue=0)
    far = np.array([0.0, 1e3])
    itl_s, first_s = latencies_s(Law.PREFILL_DECODE, candidates, far, np.ones(2))
    np.testing.assert_allclose(itl_s, [0.02, 0.028])
    np.testing.assert_allclose(first_s, [0.1, 0.108])


def test_law_2_without_a_slope_has_constant_latencies(make):
    candidates = make(
        law=Law.PREFILL_DECODE,
        alpha_s=0.02,
        beta_s=0.0,
        gamma_s=0.1,
        in_tokens=100,
        out_tokens=11,
        max_batch=8,
        max_queue=0,
    )
    itl_s, first_s = latencies_s(Law.PREFILL_DECODE, candidates, np.array([0.3]), np.ones(1))
    assert (itl_s, first_s) == (0.02, 0.1)


def test_a_lone_request_needs_no_tokens(make):
    for law in Law:
        candidates = make(
            law=law,
            alpha_s=0.02,
            beta_s=0.001,
            gamma_s=1e-6,
            delta_s=1e-5,
            out_tokens=0,
            max_batch=8,
            max_queue=0,
        )
        itl_s, first_s = lone_latencies_s(law, candidates)
        assert itl_s == pytest.approx(0.021, rel=1e-3)
        assert first_s == 0


def test_take_keeps_rows_together(make):
    candidates = make(alpha_s=[1.0, 2.0, 3.0], beta_s=0.1, out_tokens=5, max_batch=[4, 5, 6], max_queue=0)
    taken = candidates.take(np.array([2, 0]))
    assert len(taken) == 2
    assert taken.alpha_s.tolist() == [3.0, 1.0]
    assert taken.max_batch.tolist() == [6, 4]
    assert candidates.take(candidates.alpha_s > 1.5).max_batch.tolist() == [5, 6]
