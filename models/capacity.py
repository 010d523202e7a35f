"""How much one replica carries: the largest arrival rate that meets every target, for many candidates.

Nothing here loops over candidates: those of one law are sized together, and the search drops each one as it
ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from models.laws import (
    Candidates,
    Law,
    is_line,
    latencies_s,
    lone_latencies_s,
    service_line_s,
    service_time_s,
)
from models.queue import BatchQueue, ServiceTimes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.laws import FloatArray, IntArray
    from models.queue import State

# The search runs over [LOWEST_SHARE mu(1), HIGHEST_SHARE mu(N)], as in the reference.
LOWEST_SHARE = 0.001
HIGHEST_SHARE = 0.999

# States that are looked at for the lowest rate: each is less likely than the one before by about that share,
# so those beyond do not change the last bit.
LOWEST_STATES = 8

# With a throughput target a replica takes at most this share of its highest rate, as in the reference.
THROUGHPUT_SHARE = 0.9

# Law 1 compares ln(20) x mean wait with its target: the 95th percentile of an exponential wait.
LAW1_WAIT_MARGIN = math.log(20.0)

# A target counts as met up to this relative excess, which absorbs rounding: with N = 1 the service time does
# not depend on the load, and a target equal to it must not be missed by the last bit.
TARGET_TOLERANCE = 1e-8

# The search ends where the tightest target is met this closely, or where the rate is known to this relative
# precision. The first is far below the tolerance: a latency that equals its target at every rate is no root.
ROOT_TOLERANCE = 1e-9
RATE_TOLERANCE = 1e-6
SECANT_STEPS = 30

# States (candidates x batch limit) that are in memory at once: 32 MiB of float64.
GROUP_STATES = 1 << 22


class Limit(IntEnum):
    """What sets a capacity, or which target is missed even at the lowest rate."""

    STABILITY = 0
    ITL = 1
    TTFT = 2
    THROUGHPUT = 3


@dataclass(frozen=True)
class Sizing:
    """Capacity of one replica of each candidate, every array of shape (n,).

    Attributes
    ----------
    capacity_rps : float
        The rate that counts: the arrival rate for law 1, the throughput at that arrival rate for laws 2 and 3
        (less than the arrival rate by what is lost). 0 where a target is missed even at the lowest rate.
    arrival_rps : float
        The arrival rate at capacity; 0 where a target is missed even at the lowest rate.
    limit : int
        A `Limit`: what sets the capacity, or the target that is missed.
    lowest_itl_s, lowest_ttft_s : float
        What the targets are compared with, at the lowest rate: the mean ITL; the mean TTFT or its percentile,
        for law 1 without a percentile ln 20 times the mean wait. No number of replicas gets below these.
    """

    capacity_rps: FloatArray
    arrival_rps: FloatArray
    limit: IntArray
    lowest_itl_s: FloatArray
    lowest_ttft_s: FloatArray


@dataclass(frozen=True)
class Metrics:
    """Figures of one replica of each candidate at an arrival rate, every array of shape (n,).

    Attributes
    ----------
    itl_s, ttft_s, wait_s : float
        Means of the accepted requests. For law 1 the TTFT is the wait.
    occupancy : float
        Mean number of requests in service, 0..N.
    throughput_rps : float
        Completed requests.
    idle_probability, loss_probability : float
        Shares of the time without a request, and of the arrivals that are lost.
    wait_percentile_s, ttft_percentile_s : float
        At the candidate's percentile, NaN without one. The second is the percentile of the wait plus the mean
        of the rest.
    """

    itl_s: FloatArray
    ttft_s: FloatArray
    wait_s: FloatArray
    occupancy: FloatArray
    throughput_rps: FloatArray
    idle_probability: FloatArray
    loss_probability: FloatArray
    wait_percentile_s: FloatArray
    ttft_percentile_s: FloatArray


def evaluate(candidates: Candidates, arrival_rps: FloatArray) -> Metrics:
    """Figures of one replica at an arrival rate.

    Parameters
    ----------
    candidates : Candidates
    arrival_rps : (n,) float
        >= 0; above mu(N) the queue fills and the excess is lost. A rate of 0 gives the limit of a vanishing
        rate; for the figures of a replica without load see `unloaded`.
    """
    metrics = Metrics(*np.zeros((len(fields(Metrics)), len(candidates))))
    for law, index, rows in groups(candidates):
        state = _queue(law, rows).solve(arrival_rps[index])
        put(metrics, index, _metrics(law, rows, state, arrival_rps[index]))
    return metrics


def unloaded(candidates: Candidates) -> Metrics:
    """Figures of a single request in an empty replica: nobody waits and the batch is 1.

    They exist for any number of output tokens, also 0, and the TTFT is 0 where there is no input.
    """
    n = len(candidates)
    itl_s, first_s = np.zeros(n), np.zeros(n)
    for law in Law:
        mine = candidates.law == law
        itl_s[mine], first_s[mine] = lone_latencies_s(law, candidates.take(mine))
    none = np.isnan(candidates.percentile)
    return Metrics(
        itl_s=itl_s,
        ttft_s=first_s,
        wait_s=np.zeros(n),
        occupancy=np.zeros(n),
        throughput_rps=np.zeros(n),
        idle_probability=np.ones(n),
        loss_probability=np.zeros(n),
        wait_percentile_s=np.where(none, np.nan, 0.0),
        ttft_percentile_s=np.where(none, np.nan, first_s),
    )


def size(candidates: Candidates) -> Sizing:
    """Find the largest arrival rate of one replica that meets every target.

    The rates considered are `LOWEST_SHARE` mu(1) to `HIGHEST_SHARE` mu(N), with a throughput target
    `THROUGHPUT_SHARE` of the latter. The ITL target is compared with the mean, the TTFT target with the mean
    or, where one is asked for, with the percentile. The latencies grow with the rate, with one exception:
    where law 3 cuts prompts into one chunk more its ITL steps down. The rate found is then one at which every
    target is met and just above which one is missed.

    Returns
    -------
    Sizing
        Rates are exact to about `RATE_TOLERANCE`, and every target is met at them up to `TARGET_TOLERANCE`.
    """
    n = len(candidates)
    sizing = Sizing(np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n))
    for law, index, rows in groups(candidates):
        put(sizing, index, _size_group(law, rows))
    return sizing


def _size_group(law: Law, candidates: Candidates) -> Sizing:
    """Size candidates of one law by a bracketed secant method, all in step.

    Two rates bracket the capacity. Each step takes the smallest secant root of the targets that are missed at
    the higher rate, and replaces one of the two. Where the same one stays twice its excesses are reduced, so
    that both ends close in (Anderson and Björck, BIT 13 (1973), https://doi.org/10.1007/BF01951936).
    """
    queue = _queue(law, candidates)
    share = np.where(candidates.throughput_target, THROUGHPUT_SHARE * HIGHEST_SHARE, HIGHEST_SHARE)
    high = share * queue.full_rate_rps
    low = np.minimum(LOWEST_SHARE / service_time_s(law, candidates, np.ones(1))[:, 0], high)
    near_idle = queue.first_states(LOWEST_STATES) if (low < high).all() else queue
    lowest, highest = near_idle.solve(low), queue.solve(high)
    excess_low, excess_high = _excess(law, candidates, lowest), _excess(law, candidates, highest)
    at_lowest = _metrics(law, candidates, lowest, low)
    worst_low, worst_high = excess_low.max(axis=0), excess_high.max(axis=0)

    never, always = worst_low > ROOT_TOLERANCE, worst_high <= ROOT_TOLERANCE
    arrival = np.select([never, always], [0.0, high], low)
    accepted = np.where(always, highest.accepted, lowest.accepted)
    unbound = np.where(candidates.throughput_target, Limit.THROUGHPUT, Limit.STABILITY)
    limit = np.select([never, always], [_tightest(excess_low), unbound], _tightest(excess_high))

    row = np.flatnonzero((worst_low < -ROOT_TOLERANCE) & ~always)
    rows, queue, low, high = candidates.take(row), queue.take(row), low[row], high[row]
    excess_low, excess_high = excess_low[:, row], excess_high[:, row]
    kept = np.zeros(len(row))  # the end that stayed in the last step: -1 low, 1 high
    step = 0
    while len(row):
        missed = excess_high > 0
        span = np.where(missed, excess_high - excess_low, 1.0)
        secant = np.where(missed, low - excess_low * (high - low) / span, np.inf).min(axis=0)
        # Halving after many secant steps bounds the search; law 3, whose chunks are steps, can need it.
        rate = secant if step < SECANT_STEPS else 0.5 * (low + high)
        state = queue.solve(rate)
        excess = _excess(law, rows, state)
        worst = excess.max(axis=0)
        met = worst <= ROOT_TOLERANCE
        arrival[row[met]], accepted[row[met]] = rate[met], state.accepted[met]
        limit[row[~met]] = _tightest(excess[:, ~met])

        reduction = 1.0 - excess / np.where(met, excess_low, excess_high)
        reduction = np.where(reduction > 0, reduction, 0.5)
        low, high = np.where(met, rate, low), np.where(met, high, rate)
        excess_low = np.where(met, excess, np.where(kept < 0, reduction, 1.0) * excess_low)
        excess_high = np.where(met, np.where(kept > 0, reduction, 1.0) * excess_high, excess)
        kept = np.where(met, 1.0, -1.0)
        step += 1

        going = np.flatnonzero((high - low > RATE_TOLERANCE * low) & (np.abs(worst) > ROOT_TOLERANCE))
        if len(going) == len(row):
            continue
        row, rows, queue, low, high = row[going], rows.take(going), queue.take(going), low[going], high[going]
        excess_low, excess_high, kept = excess_low[:, going], excess_high[:, going], kept[going]

    return Sizing(
        capacity_rps=arrival if law is Law.DECODE_LINEAR else arrival * accepted,
        arrival_rps=arrival,
        limit=limit,
        lowest_itl_s=at_lowest.itl_s,
        lowest_ttft_s=np.where(
            np.isnan(candidates.percentile), _margin(law) * at_lowest.ttft_s, at_lowest.ttft_percentile_s
        ),
    )


def _excess(law: Law, candidates: Candidates, state: State) -> FloatArray:
    """By how much latencies exceed their targets: <= 0 where met, shape (2, g), rows ITL and TTFT.

    Of the value v and the target T it is 1 - T / v for the ITL and 1 - sqrt(T / v) for the TTFT. These are
    close to linear in the rate, the second also where the wait grows like 1 / (mu(N) - lambda). A percentile
    is not computed: the share of the requests above the target is compared with the share allowed.
    """
    itl_s, first_s = latencies_s(law, candidates, state.service_s, state.occupancy)
    value = _margin(law) * (candidates.wait_factor * state.wait_s + first_s)
    target = candidates.target_ttft_s
    asked = np.flatnonzero(~np.isnan(candidates.percentile) & (target > 0))
    if len(asked):
        rows, left_s = candidates.take(asked), (target - first_s)[asked]
        share = state.take(asked).wait_tail(np.maximum(left_s / rows.wait_factor, 0.0))
        value[asked] = np.where(left_s >= 0, share, 1.0)
        target = target.copy()
        target[asked] = 1.0 - rows.percentile
    return np.stack(
        (1.0 - _quotient(candidates.target_itl_s, itl_s), 1.0 - np.sqrt(_quotient(target, value)))
    )


def _quotient(target: FloatArray, value: FloatArray) -> FloatArray:
    """Return target / value, at most 50, which is as good as infinite; 2 where there is no target."""
    bound = target * (1.0 + TARGET_TOLERANCE)
    return np.where(target > 0, bound / np.maximum(value, np.where(target > 0, 0.02 * bound, 1.0)), 2.0)


def _tightest(excess: FloatArray) -> IntArray:
    return np.where(excess[0] >= excess[1], Limit.ITL, Limit.TTFT)


def _margin(law: Law) -> float:
    """Return the factor on the mean TTFT that is compared with its target."""
    return LAW1_WAIT_MARGIN if law is Law.DECODE_LINEAR else 1.0


def _metrics(law: Law, candidates: Candidates, state: State, arrival_rps: FloatArray) -> Metrics:
    itl_s, first_s = latencies_s(law, candidates, state.service_s, state.occupancy)
    wait_s = candidates.wait_factor * state.wait_s
    wait_percentile_s = np.full(len(candidates), np.nan)
    asked = np.flatnonzero(~np.isnan(candidates.percentile))
    if len(asked):
        percentile_s = state.take(asked).wait_percentile(candidates.percentile[asked])
        wait_percentile_s[asked] = candidates.wait_factor[asked] * percentile_s
    return Metrics(
        itl_s=itl_s,
        ttft_s=wait_s + first_s,
        wait_s=wait_s,
        occupancy=state.occupancy,
        throughput_rps=arrival_rps * state.accepted,
        idle_probability=state.idle_probability,
        loss_probability=state.loss_probability,
        wait_percentile_s=wait_percentile_s,
        ttft_percentile_s=wait_percentile_s + first_s,
    )


def _queue(law: Law, candidates: Candidates) -> BatchQueue:
    times = ServiceTimes(
        *service_line_s(law, candidates),
        is_line(law, candidates, candidates.max_batch),
        lambda rows, batch: service_time_s(law, candidates.take(rows), batch),
    )
    return BatchQueue.build(times, candidates.max_batch, candidates.max_queue)


def groups(candidates: Candidates) -> Iterator[tuple[Law, IntArray, Candidates]]:
    """Cut candidates into groups of one law and a bounded number of states: law, index and rows of each."""
    # By size as well, so that what a block of the queue needs lies side by side in memory.
    order = np.lexsort((-candidates.max_batch, candidates.law))
    law = candidates.law[order]
    share = np.cumsum(candidates.max_batch[order]) // GROUP_STATES
    cuts = np.flatnonzero((np.diff(law) != 0) | (np.diff(share) != 0)) + 1
    for index in np.split(order, cuts):
        if len(index):
            yield Law(candidates.law[index[0]]), index, candidates.take(index)


def put(whole: Sizing | Metrics, index: IntArray, part: Sizing | Metrics) -> None:
    """Write the figures of a part into the rows `index` of the whole."""
    for field in fields(whole):
        getattr(whole, field.name)[index] = getattr(part, field.name)
