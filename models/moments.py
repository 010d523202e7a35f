"""Law on moments: law 3 with the spread of the token counts, the gated prefill and the wait for a slot.

Law 3 works on means and spreads a request's prefill evenly over its iterations. This model keeps what
continuous batching does (see `models.replica`, its referee): a prompt enters at the end of the running
iteration, all prompts that arrived meanwhile enter with it, the iteration of the own prefill yields the first
token, and b - 1 iterations of decode follow. `docs/accuracy.md` says how close it comes.

Work of one request, with moments of a and b, which are taken as independent:

    w = (beta_prefill + gamma (c + 1) / 2) a                                   prefill, c = max(1, a / M)
    w_dec = beta (b - 1) + gamma (E[a (b - 1)] + E[b (b - 1)] / 2)             decode, over b - 1 iterations

Number in service: the birth-death chain of `models.queue` with the service time B alpha + n (w + w_dec),
B = b + c - 1, which is what n requests that share a replica need. N is at most what the token budget M keeps
busy, M B / (a + b - 1). The rate that cannot be exceeded is mu(N) = N / (B alpha + N (w + w_dec)).

Iterations: prefill work arrives at rate rho = lambda w, so with n in service, of which n (b - 1) / B decode,
the mean iteration is C = (alpha + n_dec d) / (1 - rho), d = w_dec / (b - 1). Each one prefills the arrivals
of the one before (a gated server), so that

    Var C = lambda C E[w^2] / (1 - rho^2)
    third cumulant of C = (lambda C E[w^3] + 3 rho lambda E[w^2] Var C) / (1 - rho^3),

to the first of which the spread of n_dec is added. An arrival finds an iteration of mean E[C^2] / E[C], waits
half of it and shares the next one with the others that arrived in it:

    TTFT = E[C^2] / (2 E[C]) + alpha + n_dec d + rho E[C^2] / E[C] + w.

A longer own iteration lengthens those after it by rho, rho^2, ... of its excess, which the ITL pays.

With experts and a floor of the prefill, alpha above is the time of an iteration without its work: alpha +
epsilon (1 - (1 - f)^tokens) + what the floor asks for beyond the work of the prompts.

Wait for a slot: that of the chain, times Cs^2 + (1 - Cs^2) f for the spread of the service time, f being the
ratio of the mean waits of M/D/N and M/M/N after Cosmetatos, plus (Ca^2 - 1) / 2 for bursty arrivals.

References
----------
Takagi, Queueing Analysis, Volume 1 (1991), chapter 5 (gated service).
Kimura, Approximations for multi-server queues: system interpolations, Queueing Systems 17 (1994),
https://doi.org/10.1007/BF01158699 (the interpolation between M/D/N and M/M/N, and Cosmetatos' ratio).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import gammaincc, ndtr, ndtri

from models.capacity import (
    HIGHEST_SHARE,
    LOWEST_SHARE,
    THROUGHPUT_SHARE,
    Limit,
    Metrics,
    Sizing,
    groups,
    put,
)
from models.laws import TOKEN_BUDGET
from models.queue import BatchQueue, ServiceTimes

if TYPE_CHECKING:
    from models.laws import Candidates, FloatArray, IntArray
    from models.queue import State

# Below these a rate, a probability and a relative variance count as zero; all keep a quotient finite.
LEAST_LOAD = 1e-9
LEAST_PROBABILITY = 1e-250
LEAST_VARIANCE = 1e-8

# The prefill load at which the formulas for open arrivals end. The batch limit binds before.
HIGHEST_PREFILL_LOAD = 0.999

PERCENTILE_HALVINGS = 50

# The search of `size` ends where the rate is known to this relative precision or the excess is this small.
RATE_TOLERANCE = 1e-6
ROOT_TOLERANCE = 1e-9
SECANT_STEPS = 30


@dataclass(frozen=True)
class Detail:
    """What this model takes beside law 3's candidates; every array of shape (n,).

    Attributes
    ----------
    in_cov, out_cov : float
        Coefficients of variation of the token counts, >= 0; 0 = all equal.
    arrival_burstiness : float
        Squared coefficient of variation of the gaps between arrivals, > 0; 1 = Poisson.
    overhead_s : float
        Added to every TTFT (network, tokenizer), >= 0.
    """

    in_cov: FloatArray
    out_cov: FloatArray
    arrival_burstiness: FloatArray
    overhead_s: FloatArray

    def take(self, index: Any) -> Detail:
        """Return the rows at an index, mask or slice, in its order."""
        return Detail(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def full_rate_rps(candidates: Candidates, detail: Detail) -> FloatArray:
    """Return mu(N), the rate of one replica whose batch or token budget is always full."""
    work = _Work.of(candidates, detail)
    return work.max_batch / work.full_s


def evaluate(candidates: Candidates, detail: Detail, arrival_rps: FloatArray) -> Metrics:
    """Figures of one replica at an arrival rate.

    Parameters
    ----------
    candidates : Candidates
        Of law 3, n of them; `wait_factor` is not used, since `detail` says what it stands for.
    detail : Detail
    arrival_rps : (n,) float
        >= 0; above mu(N) the queue fills and the excess is lost.

    Returns
    -------
    Metrics
        `wait_s` and `wait_percentile_s` are those of the wait for a slot, to which the rest of the running
        iteration comes; `ttft_percentile_s` is that of the whole TTFT. The ITL is the mean over all gaps
        between tokens.
    """
    metrics = Metrics(*np.zeros((len(fields(Metrics)), len(candidates))))
    for _, index, rows in groups(candidates):
        put(metrics, index, _evaluate_group(rows, detail.take(index), arrival_rps[index]))
    return metrics


def _evaluate_group(candidates: Candidates, detail: Detail, arrival_rps: FloatArray) -> Metrics:
    work = _Work.of(candidates, detail)
    figures = _figures(work, _queue(work, candidates.max_queue), arrival_rps)
    beyond = 1.0 - candidates.percentile
    longer = np.log(np.maximum(figures.waiting_probability, beyond) / beyond)
    return Metrics(
        itl_s=figures.itl_s,
        ttft_s=figures.ttft_s,
        wait_s=figures.waiting_probability * figures.slot_wait_s,
        occupancy=figures.occupancy,
        throughput_rps=arrival_rps * figures.accepted,
        idle_probability=figures.idle_probability,
        loss_probability=figures.loss_probability,
        wait_percentile_s=figures.slot_wait_s * longer,
        ttft_percentile_s=figures.percentile_s(beyond),
    )


def size(candidates: Candidates, detail: Detail) -> Sizing:
    """Find the largest arrival rate of one replica that meets every target.

    As `capacity.size`: rates from `LOWEST_SHARE` mu(1) to `HIGHEST_SHARE` mu(N), with a throughput target
    `THROUGHPUT_SHARE` of the latter; the ITL target holds for the mean, the TTFT target for the mean or,
    where one is asked for, the percentile.

    Parameters
    ----------
    candidates : Candidates
        Of law 3, n of them.
    detail : Detail
    """
    n = len(candidates)
    sizing = Sizing(np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n))
    for _, index, rows in groups(candidates):
        put(sizing, index, _size_group(rows, detail.take(index)))
    return sizing


def _size_group(candidates: Candidates, detail: Detail) -> Sizing:
    work = _Work.of(candidates, detail)
    queue = _queue(work, candidates.max_queue)
    share = np.where(candidates.throughput_target, THROUGHPUT_SHARE, 1.0)
    high = HIGHEST_SHARE * share * work.max_batch / work.full_s
    low = np.minimum(LOWEST_SHARE / work.lone_s, high)
    lowest, highest = _figures(work, queue, low), _figures(work, queue, high)
    excess_low, missed_low = _excess(candidates, lowest)
    excess_high, missed = _excess(candidates, highest)
    never, always = excess_low > 0.0, excess_high <= 0.0
    arrival, accepted = np.where(always, high, low), np.where(always, highest.accepted, lowest.accepted)
    unbound = np.where(candidates.throughput_target, Limit.THROUGHPUT, Limit.STABILITY)
    limit = np.where(always, unbound, missed)

    row = np.flatnonzero(~never & ~always)
    low, high, excess_low, excess_high = low[row], high[row], excess_low[row], excess_high[row]
    kept = np.zeros(len(row))  # the end that stayed in the last step: -1 low, 1 high
    step = 0
    while len(row):
        secant = (low * excess_high - high * excess_low) / (excess_high - excess_low)
        rate = secant if step < SECANT_STEPS else 0.5 * (low + high)
        figures = _figures(work.take(row), queue.take(row), rate)
        excess, tightest = _excess(candidates.take(row), figures)
        met = excess <= 0.0
        arrival[row[met]], accepted[row[met]] = rate[met], figures.accepted[met]
        limit[row[~met]] = tightest[~met]
        # An end that stays twice counts half, so that both ends close in (the Illinois method).
        low, high = np.where(met, rate, low), np.where(met, high, rate)
        excess_low = np.where(met, excess, np.where(kept < 0, 0.5, 1.0) * excess_low)
        excess_high = np.where(met, np.where(kept > 0, 0.5, 1.0) * excess_high, excess)
        kept = np.where(met, 1.0, -1.0)
        step += 1

        going = (high - low > RATE_TOLERANCE * low) & (excess_low < -ROOT_TOLERANCE)
        row, low, high, kept = row[going], low[going], high[going], kept[going]
        excess_low, excess_high = excess_low[going], excess_high[going]

    lowest_s = lowest.percentile_s(1.0 - candidates.percentile)
    return Sizing(
        capacity_rps=np.where(never, 0.0, arrival * accepted),
        arrival_rps=np.where(never, 0.0, arrival),
        limit=np.where(never, missed_low, limit),
        lowest_itl_s=lowest.itl_s,
        lowest_ttft_s=np.where(np.isnan(lowest_s), lowest.ttft_s, lowest_s),
    )


@dataclass(frozen=True)
class _Work:
    """What a request asks of the replica, and the replica's limits; every array of shape (n,)."""

    alpha_s: FloatArray
    epsilon_s: FloatArray
    untouched: FloatArray  # 1 - f, the chance that a token leaves an expert alone
    floor_s: FloatArray  # least prefill work of an iteration that has any
    prompt_tokens: FloatArray  # a
    max_batch: FloatArray  # N, or less where the token budget binds
    iterations: FloatArray  # B
    gaps: FloatArray  # b - 1
    prefill_s: FloatArray  # w
    prefill_second: FloatArray  # E[w^2]
    prefill_third: FloatArray  # E[w^3] of a Gamma distribution
    decode_s: FloatArray  # w_dec
    step_s: FloatArray  # d
    out_deviation_tokens: FloatArray
    in_deviation_s: FloatArray  # of the prefill work
    burstiness: FloatArray
    overhead_s: FloatArray

    @classmethod
    def of(cls, candidates: Candidates, detail: Detail) -> _Work:
        # A prompt has a token, and so has every answer.
        a, b = np.maximum(candidates.in_tokens, 1.0), np.maximum(candidates.out_tokens, 1.0)
        in_square, out_square = 1.0 + detail.in_cov**2, 1.0 + detail.out_cov**2
        gaps = b - 1.0
        chunks = np.maximum(1.0, a / TOKEN_BUDGET)
        iterations = gaps + chunks
        prefill_s = (candidates.beta_prefill_s + candidates.gamma_s * (chunks + 1.0) / 2.0) * a
        # E[b (b - 1)], 0 for b = 1.
        pairs = np.maximum(b * b * out_square - b, 0.0)
        decode_s = candidates.beta_s * gaps + candidates.gamma_s * (a * gaps + pairs / 2.0)
        step_s = decode_s / np.where(gaps > 0, gaps, 1.0)
        budget_batch = np.floor(TOKEN_BUDGET * iterations / (a + gaps))
        max_batch = np.clip(budget_batch, 1.0, candidates.max_batch)
        return cls(
            alpha_s=candidates.alpha_s,
            epsilon_s=candidates.epsilon_s,
            untouched=1.0 - candidates.expert_fraction,
            floor_s=candidates.prefill_floor_s,
            prompt_tokens=a,
            max_batch=max_batch,
            iterations=iterations,
            gaps=gaps,
            prefill_s=prefill_s,
            prefill_second=prefill_s**2 * in_square,
            prefill_third=prefill_s**3 * in_square * (2.0 * in_square - 1.0),
            decode_s=decode_s,
            step_s=step_s,
            out_deviation_tokens=b * detail.out_cov,
            in_deviation_s=prefill_s * detail.in_cov,
            burstiness=detail.arrival_burstiness,
            overhead_s=detail.overhead_s,
        )

    def base_s(self, tokens: FloatArray, prompts: FloatArray) -> FloatArray:
        """Time of an iteration without its work: that many tokens, and a Poisson number of prompts.

        Parameters
        ----------
        tokens, prompts : (n,) or (n, w) float
            The second is the mean of that number.
        """
        rows = (slice(None),) + (np.newaxis,) * (tokens.ndim - 1)
        base = np.broadcast_to(self.alpha_s[rows], tokens.shape)
        # Most models have no experts and no floor, and powers take long.
        if self.epsilon_s.any():
            untouched = self.untouched[rows]
            by_prompt = 1.0 - untouched ** self.prompt_tokens[rows]
            base = base + self.epsilon_s[rows] * (1.0 - untouched**tokens * np.exp(-prompts * by_prompt))
        if self.floor_s.any():
            # What a floor of the prefill asks for beyond the work of the prompts.
            below_s = -np.expm1(-prompts) * self.floor_s[rows] - prompts * self.prefill_s[rows]
            base = base + np.maximum(below_s, 0.0)
        return base

    def own_base_s(self, decode_batch: FloatArray, others: FloatArray) -> FloatArray:
        """Return `base_s` of an iteration with one's own prompt and a mean number of others; shape (n,)."""
        touched = 1.0 - self.untouched ** (decode_batch + self.prompt_tokens * (1.0 + others))
        below_s = self.floor_s - (1.0 + others) * self.prefill_s
        base: FloatArray = self.alpha_s + self.epsilon_s * touched + np.maximum(below_s, 0.0)
        return base

    def service_s(self, batch: FloatArray) -> FloatArray:
        """Time in service when so many requests always share the replica; both of shape (n, w)."""
        iterations = self.iterations[:, np.newaxis]
        base_s = self.base_s(batch * self.decoding[:, np.newaxis], batch / iterations)
        return iterations * base_s + batch * (self.prefill_s + self.decode_s)[:, np.newaxis]

    @property
    def full_s(self) -> FloatArray:
        """Return the time in service in a full batch."""
        return self.service_s(self.max_batch[:, np.newaxis])[:, 0]

    @property
    def lone_s(self) -> FloatArray:
        """Return the time in service alone."""
        return self.service_s(np.ones((len(self.gaps), 1)))[:, 0]

    @property
    def slot_spread(self) -> FloatArray:
        """Return Cs^2 of the time in a full batch: a token costs an iteration there, a prompt its work."""
        others = (self.max_batch - 1.0) / self.iterations
        base_s = self.base_s(others * self.gaps + 1.0, others)
        iteration_s = base_s + self.max_batch * self.step_s + others * self.prefill_s
        out_deviation_s = iteration_s * self.out_deviation_tokens
        return (out_deviation_s**2 + self.in_deviation_s**2) / self.full_s**2

    @property
    def decoding(self) -> FloatArray:
        """Return the share of its iterations in which a request decodes."""
        return self.gaps / self.iterations

    @property
    def slot_first_s(self) -> FloatArray:
        """Return the own prefill iteration in a full batch, of which the others prefill at the mean rate."""
        decode_batch = (self.max_batch - 1.0) * self.decoding
        others = (self.max_batch - 1.0) / self.iterations
        work_s = decode_batch * self.step_s + (others + 1.0) * self.prefill_s
        return self.own_base_s(decode_batch, others) + work_s

    def take(self, index: IntArray) -> _Work:
        return _Work(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True)
class _Figures:
    """Stationary figures, every array of shape (n,).

    A share `waiting_probability` of the requests waits for a slot, exponentially with mean `slot_wait_s`, and
    has its first token `slot_first_s` after that; the others' time to it has `free_mean_s` and
    `free_variance` and is taken as Gamma distributed. The overhead comes on top of both.
    """

    itl_s: FloatArray
    occupancy: FloatArray
    accepted: FloatArray
    idle_probability: FloatArray
    loss_probability: FloatArray
    waiting_probability: FloatArray
    slot_wait_s: FloatArray
    slot_first_s: FloatArray
    free_mean_s: FloatArray
    free_variance: FloatArray
    overhead_s: FloatArray

    def take(self, index: IntArray) -> _Figures:
        return _Figures(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def ttft_s(self) -> FloatArray:
        """Return the mean TTFT."""
        waited_s = self.slot_wait_s + self.slot_first_s
        return self.overhead_s + self.free_mean_s + self.waiting_probability * (waited_s - self.free_mean_s)

    def tail(self, ttft_s: FloatArray) -> FloatArray:
        """Return the share of the requests whose TTFT exceeds a time."""
        left_s = np.maximum(ttft_s - self.overhead_s, 0.0)
        scale_s = self.free_variance / self.free_mean_s
        free = gammaincc(self.free_mean_s / scale_s, left_s / scale_s)
        waited = np.exp(-np.maximum(left_s - self.slot_first_s, 0.0) / self.slot_wait_s)
        share: FloatArray = free + self.waiting_probability * (waited - free)
        return share

    def percentile_s(self, beyond: FloatArray) -> FloatArray:
        """Return the TTFT that a share `beyond`, in (0, 1), of the requests exceeds; NaN for NaN."""
        asked = np.flatnonzero(~np.isnan(beyond))
        found = np.full(len(beyond), np.nan)
        found[asked] = self.take(asked)._percentile_s(beyond[asked])
        return found

    def _percentile_s(self, beyond: FloatArray) -> FloatArray:
        low = np.zeros_like(beyond)
        # A Gamma distribution with k its squared mean over variance has next to nothing beyond this.
        spread_s = np.sqrt(self.free_variance) + self.free_variance / self.free_mean_s
        high = self.free_mean_s + (10.0 - 2.0 * np.log(beyond)) * spread_s
        high = np.maximum(high, self.slot_first_s - self.slot_wait_s * np.log(beyond)) + self.overhead_s
        for _ in range(PERCENTILE_HALVINGS):
            middle = 0.5 * (low + high)
            later = self.tail(middle) > beyond
            low, high = np.where(later, middle, low), np.where(later, high, middle)
        return high


def _queue(work: _Work, max_queue: IntArray) -> BatchQueue:
    def service_s(rows: IntArray, batch: FloatArray) -> FloatArray:
        return work.take(rows).service_s(np.broadcast_to(batch, (len(rows), len(batch))))

    straight = (work.epsilon_s == 0) & (work.floor_s == 0)
    base_s, slope_s = work.iterations * work.alpha_s, work.prefill_s + work.decode_s
    times = ServiceTimes(base_s, slope_s, straight, service_s)
    return BatchQueue.build(times, work.max_batch.astype(np.int64), max_queue)


def _figures(work: _Work, queue: BatchQueue, arrival_rps: FloatArray) -> _Figures:
    n, w, d = work.max_batch, work.prefill_s, work.step_s
    full_rate = n / work.full_s
    arrival = np.maximum(arrival_rps, LEAST_LOAD * full_rate)
    state = queue.solve(arrival)
    admitted = arrival * state.accepted
    rho = np.minimum(admitted * w, HIGHEST_PREFILL_LOAD)

    waiting = state.waiting_probability
    given_wait_s = np.where(
        waiting > LEAST_PROBABILITY, state.wait_s / np.maximum(waiting, LEAST_PROBABILITY), 1.0 / full_rate
    )
    dispersion = _dispersion(work, admitted, rho)
    waiting = np.where(n > 1, _wider_tail(waiting, dispersion), waiting)

    # What an arrival finds: an idle replica, an iteration under way and a free slot, or no free slot.
    busy = 1.0 - state.idle_probability
    free = np.maximum(1.0 - waiting, LEAST_PROBABILITY)
    joins = np.clip((busy - waiting) / free, 0.0, 1.0)  # an iteration under way, given a free slot
    found = np.maximum(state.occupancy - n * waiting, 0.0) / free  # in service, given a free slot

    in_service = state.occupancy / np.maximum(busy, LEAST_PROBABILITY)
    found_s, found_second = _running_iteration(work, admitted, rho, in_service * work.decoding)

    # Time to the first token with a free slot: the rest of that iteration, then the own.
    decode_batch = found * work.decoding
    base_s = work.own_base_s(decode_batch, joins * admitted * found_s)
    own_s = base_s + decode_batch * d + joins * rho * found_s + w
    free_mean_s = joins * found_s / 2.0 + own_s
    rest_variance = joins * found_second / 3.0 - (joins * found_s / 2.0) ** 2
    found_variance = np.maximum(found_second - found_s**2, 0.0)
    own_variance = (
        work.prefill_second
        - w * w
        + joins * (admitted * found_s * work.prefill_second + rho**2 * found_variance)
        + d * d * np.minimum(state.occupancy, n) * work.decoding
    )
    common = joins * rho * found_variance / 2.0  # a long iteration delays twice
    free_variance = rest_variance + own_variance + 2.0 * common

    deterministic = _deterministic_ratio(n, np.minimum(arrival / full_rate, 1.0))
    factor = deterministic + work.slot_spread * (1.0 - deterministic) + (work.burstiness - 1.0) / 2.0
    first_s = own_s + waiting * (work.slot_first_s - own_s)

    return _Figures(
        itl_s=_itl_s(work, state, arrival, rho, waiting, dispersion, found_s, first_s),
        occupancy=state.occupancy,
        accepted=state.accepted,
        idle_probability=state.idle_probability,
        loss_probability=state.loss_probability,
        waiting_probability=waiting,
        slot_wait_s=given_wait_s * factor,
        slot_first_s=work.slot_first_s,
        free_mean_s=free_mean_s,
        free_variance=np.maximum(free_variance, LEAST_VARIANCE * free_mean_s**2),
        overhead_s=work.overhead_s,
    )


def _running_iteration(
    work: _Work, rate_rps: FloatArray, rho: FloatArray, decode_batch: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """First and second moment of the iteration that an arrival finds: E[C^2] / E[C] and E[C^3] / E[C]."""
    # An iteration that decodes nothing has a prompt, or it would not take place.
    prompt_s = np.maximum(1.0 - decode_batch, 0.0) * work.prefill_s
    base_s = work.base_s(decode_batch, decode_batch / np.maximum(work.gaps, 1.0))
    mean_s = (base_s + decode_batch * work.step_s + prompt_s) / (1.0 - rho)
    gated = work.prefill_second + (work.burstiness - 1.0) * work.prefill_s**2
    variance = rate_rps * mean_s * gated / (1.0 - rho**2)
    skew = mean_s * work.prefill_third + 3.0 * rho * work.prefill_second * variance
    third = rate_rps * skew / (1.0 - rho**3)
    variance = variance + work.step_s**2 * decode_batch
    return (mean_s**2 + variance) / mean_s, (mean_s**3 + 3.0 * mean_s * variance + third) / mean_s


def _itl_s(
    work: _Work,
    state: State,
    arrival_rps: FloatArray,
    rho: FloatArray,
    waiting: FloatArray,
    dispersion: FloatArray,
    found_s: FloatArray,
    first_s: FloatArray,
) -> FloatArray:
    """Mean time between two tokens.

    Parameters
    ----------
    waiting : (n,) float
        Share of the requests that wait for a slot.
    dispersion : (n,) float
        Of `_dispersion`.
    found_s, first_s : (n,) float
        The iteration that an arrival finds, and the one that yields the first token.
    """
    n, w, d = work.max_batch, work.prefill_s, work.step_s
    gaps = np.maximum(work.gaps, 1.0)
    in_service = state.occupancy / np.maximum(1.0 - state.idle_probability, LEAST_PROBABILITY)

    # Open arrivals: what a request that does not fill the batch finds, itself, and what a wider spread of the
    # number in service adds, since the rate grows less than in proportion to that number.
    fills = np.clip(
        waiting * n / (work.full_s * arrival_rps), waiting, 1.0
    )  # share that makes the batch full
    others = state.occupancy - n * waiting - (n - 1.0) * (fills - waiting)
    others = np.clip(others / np.maximum(1.0 - fills, LEAST_PROBABILITY), 0.0, n - 1.0)
    base_s = work.base_s(others * work.decoding + 1.0, others / work.iterations)
    weight = (w + work.decode_s) / np.maximum(work.iterations * base_s, LEAST_LOAD * work.lone_s)
    shift = np.minimum((dispersion - 1.0) * weight * in_service, np.maximum(n - in_service, 0.0))
    iteration_s = (base_s + ((others + shift) * work.decoding + 1.0) * d) / (1.0 - rho)
    own_base_s = work.own_base_s(others * work.decoding, arrival_rps * found_s)
    excess_s = own_base_s + others * work.decoding * d + rho * found_s + w - iteration_s
    open_s = iteration_s + rho / (1.0 - rho) * (1.0 - rho**gaps) * excess_s / gaps
    open_s = np.minimum(open_s, (work.full_s - work.slot_first_s) / gaps)

    # Where the batch is often full the chain's time in service says it. That the root of the share weighs the
    # two is a guess that the simulator supports: who does not fill the batch may see it full later.
    shared_s = (state.occupancy / (arrival_rps * state.accepted) - first_s) / gaps
    lone_s = work.base_s(np.ones_like(d), np.zeros_like(d)) + d
    return np.maximum(open_s + np.sqrt(fills) * (shared_s - open_s), lone_s)


def _dispersion(work: _Work, rate_rps: FloatArray, rho: FloatArray) -> FloatArray:
    """How much wider the number in service spreads than in the chain, as a ratio of variances, at least 1.

    A prompt holds up the requests that decode while more requests arrive. Seen from the decode work, arrivals
    come in clusters: the requests of a busy period of M/G/1 with service w, of index of dispersion
    I = (Ca^2 - rho^2 + lambda^2 E[w^2]) / (1 - rho)^2, which spreads the number in service by (1 + I) / 2;
    relative to the chain, whose decode is slower by 1 - rho at all times, that is (1 - rho) (1 + I) / 2.
    """
    clusters = (work.burstiness - rho**2 + rate_rps**2 * work.prefill_second) / (1.0 - rho) ** 2
    return np.maximum((1.0 - rho) * (1.0 + clusters) / 2.0, 1.0)


def _wider_tail(probability: FloatArray, variance: FloatArray) -> FloatArray:
    """Probability that a normal variable exceeds its mean that far if its variance grows by a factor."""
    deviations = ndtri(np.clip(probability, LEAST_PROBABILITY, 0.5))
    return np.where(probability < 0.5, ndtr(deviations / np.sqrt(variance)), probability)


def _deterministic_ratio(servers: FloatArray, load: FloatArray) -> FloatArray:
    """Mean wait of M/D/N over that of M/M/N (Cosmetatos), at most 1."""
    light = (1.0 - load) * (servers - 1.0) * (np.sqrt(4.0 + 5.0 * servers) - 2.0) / (16.0 * load * servers)
    return np.minimum((1.0 + light) / 2.0, 1.0)


def _excess(candidates: Candidates, figures: _Figures) -> tuple[FloatArray, IntArray]:
    """How far a figure exceeds its target, 1 - target / figure, at the tightest; and which that is."""
    itl = _relative_excess(figures.itl_s, candidates.target_itl_s)
    ttft = _relative_excess(figures.ttft_s, candidates.target_ttft_s)
    # A percentile is not computed: the share of the requests above the target is compared with the share
    # allowed.
    asked = np.flatnonzero(~np.isnan(candidates.percentile) & (candidates.target_ttft_s > 0))
    share = figures.take(asked).tail(candidates.target_ttft_s[asked])
    ttft[asked] = _relative_excess(share, 1.0 - candidates.percentile[asked])
    return np.maximum(itl, ttft), np.where(itl >= ttft, Limit.ITL, Limit.TTFT)


def _relative_excess(value: FloatArray, target: FloatArray) -> FloatArray:
    # Far below the target the exact excess does not matter, but it must stay finite.
    excess = 1.0 - target / np.maximum(value, np.where(target > 0, 0.02 * target, 1.0))
    return np.where(target > 0, excess, -1.0)
