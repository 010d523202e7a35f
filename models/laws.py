"""Service-time laws: a measured profile and a request shape give the time a batch of n requests takes.

A law belongs to one (model, accelerator) pair. All times are in seconds, all rates in requests per second.
Symbols: n requests in service, N the batch limit, a mean input tokens, b mean output tokens (K for law 1).

The laws are those of the reference systems, three generations of the same model:
https://github.com/llm-inferno/queue-analysis (``pkg/analyzer/queueanalyzer.go``) and
https://github.com/llm-inferno/optimizer (``pkg/core/allocation.go``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]

# Tokens that one iteration may process (law 3); the reference's and vLLM's default.
TOKEN_BUDGET = 8192


class Law(IntEnum):
    """Which formula turns a profile into a service time."""

    DECODE_LINEAR = 1
    PREFILL_DECODE = 2
    ITERATION = 3


@dataclass(frozen=True)
class Candidates:
    """Replicas to be sized or evaluated, as columns; every array has shape (n,).

    Attributes
    ----------
    law : int
        A `Law`.
    alpha_s, beta_s, gamma_s, delta_s : float
        Parameters of the law, in seconds, >= 0, alpha + beta > 0; 0 where the law has no such parameter.
    beta_prefill_s, prefill_floor_s, epsilon_s : float
        Of law 3, >= 0: compute time of a prompt token, least time of a prompt, time to read the weights of
        all experts. beta_s, 0 and 0: the law without them.
    expert_fraction : float
        f in 0..1: share of the experts that a token uses.
    in_tokens : float
        a >= 0; 0 for law 1.
    out_tokens : float
        b >= 1; K for law 1.
    max_batch : int
        N >= 1, the most requests in service at once.
    max_queue : int
        Q >= 0, the most requests that wait; 0 = no queue, what does not fit is lost.
    target_itl_s, target_ttft_s : float
        0 = no target. For law 1 the second is the target of the wait.
    throughput_target : bool
        Whether the capacity also stays at or below `capacity.THROUGHPUT_SHARE` of the highest rate.
    percentile : float
        0.5..0.999: that share of the requests meets the TTFT target. NaN: the mean meets it, or for law 1 the
        95th percentile of an exponential wait with the mean of this queue (the reference's rule).
    wait_factor : float
        Multiplies the wait, > 0: (Ca^2 + Cs^2) / 2 for bursty arrivals or services, 1 = off.
    """

    law: IntArray
    alpha_s: FloatArray
    beta_s: FloatArray
    gamma_s: FloatArray
    delta_s: FloatArray
    beta_prefill_s: FloatArray
    prefill_floor_s: FloatArray
    epsilon_s: FloatArray
    expert_fraction: FloatArray
    in_tokens: FloatArray
    out_tokens: FloatArray
    max_batch: IntArray
    max_queue: IntArray
    target_itl_s: FloatArray
    target_ttft_s: FloatArray
    throughput_target: BoolArray
    percentile: FloatArray
    wait_factor: FloatArray

    def __len__(self) -> int:
        return len(self.law)

    def take(self, index: Any) -> Candidates:
        """Return the candidates at an index, mask or slice, in its order."""
        return Candidates(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def service_time_s(law: Law, candidates: Candidates, batch: FloatArray) -> FloatArray:
    """Time that one request spends in service when n requests always share the replica.

    =====  ==========================================================================================
    law    time
    =====  ==========================================================================================
    1      K (alpha + beta n)
    2      prefill(n) + (b - 1) (alpha + beta n), prefill(n) = gamma + delta a n, 0 where a = 0;
           a request of one output token takes one decode where prefill takes no time
    3      (c + b) (alpha + epsilon (1 - (1 - f)^n) + n d), with c = `prefill_chunks` and
           d = `work_per_iteration_s`
    =====  ==========================================================================================

    The service rate of the batch is mu(n) = n / time.

    Parameters
    ----------
    law : Law
        The law of every candidate given.
    candidates : Candidates
        g candidates.
    batch : (w,) float
        n >= 1.

    Returns
    -------
    (g, w) float
        Seconds, > 0.
    """
    c = candidates
    service_s = _affine(*service_line_s(law, c), batch)
    if law is not Law.ITERATION:
        return service_s
    if c.epsilon_s.any():
        steps = 1.0 + c.out_tokens[:, np.newaxis]
        service_s += steps * experts_s(c.take((slice(None), np.newaxis)), batch)
    cut = np.flatnonzero(prefill_chunks(c, batch.max(axis=-1)) > 1)
    if len(cut):
        column = c.take(cut).take((slice(None), np.newaxis))
        chunks = prefill_chunks(column, batch)
        service_s[cut] = (chunks + column.out_tokens) * (column.alpha_s + experts_s(column, batch))
        service_s[cut] += batch * (prefill_work_s(column, chunks) + decode_work_s(column))
    return service_s


def service_line_s(law: Law, candidates: Candidates) -> tuple[FloatArray, FloatArray]:
    """Base and slope in n of `service_time_s` where `is_line`, each (g,) float."""
    c = candidates
    if law is Law.DECODE_LINEAR:
        return c.out_tokens * c.alpha_s, c.out_tokens * c.beta_s
    if law is Law.PREFILL_DECODE:
        steps = _decode_steps(c)
        return _prefill_base_s(c) + steps * c.alpha_s, c.delta_s * c.in_tokens + steps * c.beta_s
    steps = 1.0 + c.out_tokens
    return steps * c.alpha_s, steps * work_per_iteration_s(c, np.ones(len(c)))


def is_line(law: Law, candidates: Candidates, batch: FloatArray | IntArray) -> BoolArray:
    """Whether `service_time_s` is affine in n up to n = `batch`, which broadcasts with (g,); (g,) bool.

    Law 3 with experts is not, nor with prompts that are cut into several chunks; most stay whole.
    """
    if law is not Law.ITERATION:
        return np.ones(len(candidates), dtype=bool)
    line: BoolArray = (prefill_chunks(candidates, batch) == 1) & (candidates.epsilon_s == 0)
    return line


def latencies_s(
    law: Law, candidates: Candidates, service_s: FloatArray, occupancy: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean inter-token latency, and mean time from the start of service to the first token.

    =====  ==========================================================================================
    law    ITL and time to the first token, S = mean service time, L = mean number in service
    =====  ==========================================================================================
    1      S / K; 0, for prefill is not modelled
    2      alpha + beta n* and prefill(n*), with n* = (S - gamma - alpha (b - 1)) / (delta a + beta (b - 1)),
           the batch whose service time is S, clamped to 0..N. As in the reference gamma is subtracted even
           where a = 0 and no prefill takes place; then n* is too low by gamma / (beta (b - 1)).
    3      (S - prefill) / b and prefill + ITL, with prefill = c max(alpha + epsilon (1 - (1 - f)^L) +
           (L - 1) d, 0) + w and c the chunks at L rounded to 1..N; w = `prefill_work_s`. Where c steps up the
           ITL steps down a little.
    =====  ==========================================================================================

    Parameters
    ----------
    law : Law
        The law of every candidate given.
    candidates : Candidates
        g candidates.
    service_s : (g,) float
        Mean service time.
    occupancy : (g,) float
        Mean number of requests in service.

    Returns
    -------
    itl_s, first_s : (g,) float
        The TTFT is the wait + `first_s`.
    """
    c = candidates
    if law is Law.DECODE_LINEAR:
        return service_s / c.out_tokens, np.zeros(len(c))
    if law is Law.PREFILL_DECODE:
        steps = _decode_steps(c)
        slope_s = c.delta_s * c.in_tokens + c.beta_s * steps
        # Without a slope the times do not depend on n*.
        batch = (service_s - c.gamma_s - c.alpha_s * steps) / np.where(slope_s > 0, slope_s, np.inf)
        batch = np.clip(batch, 0.0, c.max_batch)
        return c.alpha_s + c.beta_s * batch, _prefill_base_s(c) + c.delta_s * c.in_tokens * batch
    chunks = prefill_chunks(c, np.clip(np.floor(occupancy + 0.5), 1.0, c.max_batch))
    base_s = c.alpha_s + experts_s(c, occupancy)
    others_s = np.maximum(base_s + (occupancy - 1.0) * work_per_iteration_s(c, chunks), 0.0)
    prefill_s = chunks * others_s + prefill_work_s(c, chunks)
    itl_s = (service_s - prefill_s) / c.out_tokens
    return itl_s, prefill_s + itl_s


def lone_latencies_s(law: Law, candidates: Candidates) -> tuple[FloatArray, FloatArray]:
    """`latencies_s` of one request alone in the replica; no first-token time where there is no input.

    Unlike the means this needs no output token, so it also holds for a server that has had no request yet.

    Returns
    -------
    itl_s, first_s : (g,) float
    """
    c = candidates
    if law is Law.DECODE_LINEAR:
        return c.alpha_s + c.beta_s, np.zeros(len(c))
    if law is Law.PREFILL_DECODE:
        return c.alpha_s + c.beta_s, _prefill_base_s(c) + c.delta_s * c.in_tokens
    chunks = prefill_chunks(c, np.ones(len(c)))
    base_s = c.alpha_s + experts_s(c, np.ones(len(c)))
    itl_s = base_s + c.beta_s + c.gamma_s * (c.in_tokens + (c.out_tokens + 1.0) / 2.0)
    first_s = chunks * base_s + prefill_work_s(c, chunks) + itl_s
    return itl_s, np.where(c.in_tokens > 0, first_s, 0.0)


def prefill_chunks(candidates: Candidates, batch: FloatArray | IntArray) -> FloatArray:
    """Chunks c into which law 3 cuts a prompt so that n requests fit the token budget M.

    The least c >= 1 with n <= (c + b) (M - a / c) / (a + b), M = `TOKEN_BUDGET`. Multiplied by c this is a
    quadratic whose only positive root is the bound.

    Parameters
    ----------
    candidates : Candidates
        Of law 3.
    batch : float
        n, of a shape that broadcasts with the columns of `candidates`.
    """
    a, b = candidates.in_tokens, candidates.out_tokens
    linear = b * TOKEN_BUDGET - a - batch * (a + b)
    root = (np.sqrt(linear * linear + 4.0 * TOKEN_BUDGET * a * b) - linear) / (2.0 * TOKEN_BUDGET)
    # The slack keeps a root that is a whole number, but for rounding, from counting one chunk more.
    return np.maximum(np.ceil(root - 1e-9), 1.0)


def prefill_work_s(candidates: Candidates, chunks: FloatArray) -> FloatArray:
    """Return the time that one request's own prefill adds (law 3).

    max(floor, (beta_prefill + gamma (c + 1) / 2) a); 0 without input.
    """
    c = candidates
    work_s = (c.beta_prefill_s + c.gamma_s * (chunks + 1.0) / 2.0) * c.in_tokens
    return np.where(c.in_tokens > 0, np.maximum(work_s, c.prefill_floor_s), 0.0)


def experts_s(candidates: Candidates, batch: FloatArray) -> FloatArray:
    """Return the time to read the experts that n tokens use (law 3): epsilon (1 - (1 - f)^n).

    f is the share of the experts that one token uses, each token's independent of the others'.
    """
    c = candidates
    # Most models have none, and a power takes long.
    if not c.epsilon_s.any():
        return np.zeros(np.broadcast_shapes(c.epsilon_s.shape, batch.shape))
    return c.epsilon_s * (1.0 - (1.0 - c.expert_fraction) ** batch)


def work_per_iteration_s(candidates: Candidates, chunks: FloatArray) -> FloatArray:
    """Return the time d that one request adds to each of its c + b iterations (law 3).

    d = (prefill work + decode work) / (c + b), see `prefill_work_s` and `decode_work_s`.
    """
    c = candidates
    return (prefill_work_s(c, chunks) + decode_work_s(c)) / (chunks + c.out_tokens)


def decode_work_s(candidates: Candidates) -> FloatArray:
    """Return the time that one request's own decode adds (law 3): beta b + gamma b (a + (b + 1) / 2)."""
    c = candidates
    return c.out_tokens * (c.beta_s + c.gamma_s * (c.in_tokens + (c.out_tokens + 1.0) / 2.0))


def _affine(base_s: FloatArray, slope_s: FloatArray, batch: FloatArray) -> FloatArray:
    # A product of matrices passes over the memory once.
    time_s: FloatArray = np.stack((base_s, slope_s), axis=1) @ np.stack((np.ones_like(batch), batch))
    return time_s


def _decode_steps(candidates: Candidates) -> FloatArray:
    """Decode iterations of a request of law 2: the prefill, where there is one, yields the first token."""
    c = candidates
    prefill = (c.in_tokens > 0) & (c.gamma_s + c.delta_s > 0)
    return np.where(prefill | (c.out_tokens > 1), np.maximum(c.out_tokens - 1.0, 0.0), 1.0)


def _prefill_base_s(candidates: Candidates) -> FloatArray:
    return np.where(candidates.in_tokens > 0, candidates.gamma_s, 0.0)
