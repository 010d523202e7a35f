"""Does one replica meet its targets at a rate? Asked of the simulator, with confidence intervals.

A trial simulates a few thousand requests and judges; while the intervals leave it open it takes twice as
many. Every figure is a mean over requests, also the share of the requests above a target, with which a
percentile is judged. Its interval comes from the means of consecutive parts of the run (batch means), whose
standard error is widened for the correlation that neighbouring parts still have, as in a first-order
autoregression. A run whose later half is slower than its earlier one has not settled and is left open as
well: near saturation a queue may grow for long before it misses a target.

What is simulated: one replica with a queue without limit and enough KV cache; arrivals with independent gaps,
Gamma distributed, which is a Poisson process unless bursts are asked for; token counts that are all equal
or lognormal. Seeds are fixed, and the same draws serve every rate, so that a replica that holds at a rate all
but surely holds at a lower one.

References
----------
Law, Simulation Modeling and Analysis (5th edition, 2015), sections 9.5.3 (batch means, warm-up) and 11.2
(common random numbers).
Hanley and Lippman-Hand, JAMA 249 (1983), https://doi.org/10.1001/jama.1983.03330370053031 (an event that was
not seen in n trials has a probability of at most 3 / n, at 95 %).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, isnan, nan, sqrt
from typing import TYPE_CHECKING

import numpy as np

from models.arrivals import Requests, gamma_s, lognormal_tokens
from models.laws import TOKEN_BUDGET
from models.replica import BATCHES, IterationLaw, Limits, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.laws import FloatArray, IntArray
    from models.replica import Outcome

CONFIDENCE = 0.95
# Student's t with BATCHES - 1 degrees of freedom, two-sided at CONFIDENCE.
_T = 2.093
# Parts that are still correlated so strongly have a standard error that is not to be had; the run is short.
_MOST_CORRELATION = 0.9
# How many standard errors the later half of a run may be slower than the earlier one.
_TREND = 2.5

LEAST_REQUESTS, MOST_REQUESTS = 8_000, 64_000
# Requests of each step of the search for the largest rate, and where it ends: rates this close, or a figure
# this close below its target.
SEARCH_REQUESTS = 32_000
RATE_TOLERANCE = 0.01
TARGET_SLACK = 0.02
# Below this share of the rate that missed the search gives up.
LEAST_SHARE = 0.01
_FIRST_SHARE = 0.9
WARMUP_SHARE = 0.2
# A rate above this share of saturation counts as unstable: the share that the model of it is uncertain by.
STABLE_SHARE = 0.99

SEED = 20261121

# A target counts as met up to this relative excess: with N = 1 the ITL does not depend on the load.
TARGET_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Service:
    """One replica, the requests it gets and what is promised for them.

    Attributes
    ----------
    law : IterationLaw
    max_batch : int
        N >= 1.
    in_tokens, out_tokens : float
        Means, >= 0; a request has at least one token of each.
    in_cov, out_cov : float
        Coefficients of variation, >= 0; 0 = all equal (for a mean between two whole numbers, those two).
    burstiness : float
        Squared coefficient of variation of the gaps between arrivals, > 0; 1 = Poisson.
    overhead_s : float
        Added to every TTFT, >= 0.
    itl_target_s, ttft_target_s : float
        0 = no target.
    percentile : float, optional
        The TTFT target holds for this share of the requests; None: for the mean.
    saturation_rps : float
        The rate that cannot be exceeded for long, such as `models.moments.full_rate_rps`; no run of bounded
        length can tell a queue just above it from one just below. inf = not known.
    """

    law: IterationLaw
    max_batch: int
    in_tokens: float
    out_tokens: float
    in_cov: float = 0.0
    out_cov: float = 0.0
    burstiness: float = 1.0
    overhead_s: float = 0.0
    itl_target_s: float = 0.0
    ttft_target_s: float = 0.0
    percentile: float | None = None
    saturation_rps: float = inf


class Verdict(StrEnum):
    """What a trial says. OPEN: the time ended before it could say."""

    MET = "met"
    MISSED = "missed"
    OPEN = "unverified"


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its interval; NaN where there is nothing to estimate from."""

    mean: float
    half_width: float

    @property
    def upper(self) -> float:
        """Return the upper end."""
        return self.mean + self.half_width

    @property
    def lower(self) -> float:
        """Return the lower end."""
        return self.mean - self.half_width


@dataclass(frozen=True)
class Trial:
    """What was found at a rate.

    Attributes
    ----------
    verdict : Verdict
        MET: the upper end of every interval is within its target, and the run has settled. MISSED: a lower
        end is beyond its target, the rate is too close to saturation, or the longest run could not show that
        the targets are met.
    rate_rps : float
    requests : int
        Simulated; a fifth of them is not counted.
    itl_s, ttft_s : Estimate
        Means over gaps between tokens and over requests.
    ttft_p95_s : float
    beyond : Estimate
        Share of the requests whose TTFT is above its target; NaN without one.
    settled : bool
        Whether the rate leaves a margin below saturation, and the later half of the run was no slower than
        the earlier one.
    """

    verdict: Verdict
    rate_rps: float
    requests: int
    itl_s: Estimate
    ttft_s: Estimate
    ttft_p95_s: float
    beyond: Estimate
    settled: bool


def hold(
    service: Service,
    rate_rps: float,
    deadline_s: float = inf,
    now: Callable[[], float] = time.monotonic,
) -> Trial:
    """Say whether a replica meets its targets at a rate.

    Parameters
    ----------
    service : Service
    rate_rps : float
        > 0.
    deadline_s : float
        By the clock `now`; no run begins after it.
    """
    requests = LEAST_REQUESTS
    while True:
        trial = _run(service, rate_rps, requests)
        if trial.verdict is not Verdict.OPEN:
            return trial
        if requests >= MOST_REQUESTS:
            return replace(trial, verdict=Verdict.MISSED)
        if now() >= deadline_s:
            return trial
        requests *= 2


def largest_rate(
    service: Service,
    missed: Trial,
    deadline_s: float = inf,
    now: Callable[[], float] = time.monotonic,
) -> float | None:
    """Find the largest rate at which a replica meets its targets.

    Parameters
    ----------
    service : Service
    missed : Trial
        One that says that it does not.
    deadline_s : float
        By the clock `now`; no run begins after it.

    Returns
    -------
    float or None
        A rate at which the targets were met, within `RATE_TOLERANCE` of one at which they were not, or with a
        figure within `TARGET_SLACK` of its target; 0 where they are not met at `LEAST_SHARE` of the rate that
        missed; None when the time ended.
    """

    def excess_at(rate_rps: float) -> float:
        if now() >= deadline_s:
            raise _TimeUpError
        return _excess(service, _run(service, rate_rps, SEARCH_REQUESTS))

    try:
        high, excess_high = missed.rate_rps, max(_excess(service, missed), TARGET_SLACK)
        share = _FIRST_SHARE
        while (excess := excess_at(share * missed.rate_rps)) > 0.0:
            high, excess_high = share * missed.rate_rps, excess
            share *= share
            if share < LEAST_SHARE:
                return 0.0
        low, excess_low = share * missed.rate_rps, excess
        kept = 0  # the end that stayed in the last step: -1 low, 1 high
        while high > low * (1.0 + RATE_TOLERANCE) and excess_low < -TARGET_SLACK:
            rate = (low * excess_high - high * excess_low) / (excess_high - excess_low)
            # A step onto an end would leave the other one where it is.
            margin = 0.5 * RATE_TOLERANCE * low
            rate = min(max(rate, low + margin), high - margin)
            excess = excess_at(rate)
            # An end that stays twice counts half, so that both ends close in (the Illinois method).
            if excess <= 0.0:
                low, excess_low = rate, excess
                excess_high *= 0.5 if kept == 1 else 1.0
                kept = 1
            else:
                high, excess_high = rate, excess
                excess_low *= 0.5 if kept == -1 else 1.0
                kept = -1
    except _TimeUpError:
        return None
    return low


class _TimeUpError(Exception):
    """The deadline is over."""


def _run(service: Service, rate_rps: float, requests: int) -> Trial:
    """Simulate so many requests and judge them."""
    arrivals = gamma_s(rate_rps, requests, SEED, service.burstiness)
    in_tokens = _tokens(service.in_tokens, service.in_cov, requests, SEED + 1)
    out_tokens = _tokens(service.out_tokens, service.out_cov, requests, SEED + 2)
    limits = Limits(min(service.max_batch, TOKEN_BUDGET))
    outcome = simulate(service.law, limits, Requests(arrivals, in_tokens, out_tokens))
    return _judge(service, rate_rps, outcome)


def _tokens(mean: float, cov: float, count: int, seed: int) -> IntArray:
    """Token counts of this mean: lognormal, or without spread the whole numbers on both sides of it."""
    mean = max(mean, 1.0)
    if cov > 0:
        return lognormal_tokens(mean, cov, count, seed)
    return np.floor(mean + np.random.default_rng(seed).random(count)).astype(np.int64)


def _judge(service: Service, rate_rps: float, outcome: Outcome) -> Trial:
    first = int(WARMUP_SHARE * len(outcome.requests))
    ttft_s = outcome.ttft_s[first:] + service.overhead_s
    decode_s = (outcome.completion_s - outcome.first_token_s)[first:]
    gaps = outcome.requests.out_tokens[first:] - 1
    stable = rate_rps <= STABLE_SHARE * service.saturation_rps
    beyond = Estimate(nan, nan)
    if service.ttft_target_s > 0:
        seen = _mean((ttft_s > service.ttft_target_s).astype(np.float64))
        beyond = Estimate(seen.mean, max(seen.half_width, 3.0 / len(ttft_s)))
    trial = Trial(
        verdict=Verdict.OPEN,
        rate_rps=rate_rps,
        requests=len(outcome.requests),
        itl_s=_ratio(decode_s, gaps),
        ttft_s=_mean(ttft_s),
        ttft_p95_s=float(np.percentile(ttft_s, 95)),
        beyond=beyond,
        settled=stable and _settled(ttft_s),
    )
    figures = _figures(service, trial)
    if not stable or any(estimate.lower > target for estimate, target in figures):
        return replace(trial, verdict=Verdict.MISSED)
    if trial.settled and all(estimate.upper <= target for estimate, target in figures):
        return replace(trial, verdict=Verdict.MET)
    return trial


def _figures(service: Service, trial: Trial) -> list[tuple[Estimate, float]]:
    """Every figure that has a target, with the most that it may be."""
    figures = []
    if service.itl_target_s > 0 and not isnan(trial.itl_s.mean):
        figures.append((trial.itl_s, service.itl_target_s * (1.0 + TARGET_TOLERANCE)))
    if service.ttft_target_s > 0:
        if service.percentile is None:
            figures.append((trial.ttft_s, service.ttft_target_s * (1.0 + TARGET_TOLERANCE)))
        else:
            figures.append((trial.beyond, 1.0 - service.percentile))
    return figures


def _excess(service: Service, trial: Trial) -> float:
    """How far the tightest figure is above its target, as 1 - target / upper end; <= 0 where all are met."""
    figures = _figures(service, trial)
    excess = max([-1.0, *(1.0 - target / estimate.upper for estimate, target in figures)])
    return excess if trial.settled else max(excess, TARGET_SLACK)


def _mean(values: FloatArray) -> Estimate:
    parts = np.array([part.mean() for part in np.array_split(values, BATCHES)])
    return Estimate(float(values.mean()), _half_width(parts))


def _ratio(numerators: FloatArray, denominators: IntArray) -> Estimate:
    """Ratio of two sums over requests, linearised for its interval; NaN where the second is 0."""
    total = int(denominators.sum())
    if total == 0:
        return Estimate(nan, nan)
    ratio = float(numerators.sum()) / total
    residuals = (numerators - ratio * denominators) * (len(denominators) / total)
    return Estimate(ratio, _mean(residuals).half_width)


def _half_width(parts: FloatArray) -> float:
    """Half the width of the interval of the mean of parts of a run, which may be correlated."""
    apart = parts - parts.mean()
    square = float(apart @ apart)
    if square == 0.0:
        return 0.0
    correlation = min(max(float(apart[1:] @ apart[:-1]) / square, 0.0), _MOST_CORRELATION)
    variance = square / (len(parts) - 1) / len(parts) * (1.0 + correlation) / (1.0 - correlation)
    return _T * sqrt(variance)


def _settled(values: FloatArray) -> bool:
    """Whether the later half is no slower than the earlier one, as far as the parts of the run can tell."""
    parts = np.array([part.mean() for part in np.array_split(values, BATCHES)])
    earlier, later = parts[: BATCHES // 2], parts[BATCHES // 2 :]
    error = sqrt((earlier.var(ddof=1) + later.var(ddof=1)) / (BATCHES // 2))
    return bool(later.mean() - earlier.mean() <= _TREND * error)
