"""Stationary state of the batch server M/M(n)/1/N+Q, for many servers at once.

Requests arrive as a Poisson process of rate lambda. Up to N are in service together, up to Q more wait in
order of arrival, the rest is lost. With n requests in service they complete at rate mu(n) together. The
number present is a birth-death chain:

    p(n) / p(0) = lambda^n / (mu(1) ... mu(n)) for n <= N,    p(N + k) = p(N) r^k,    r = lambda / mu(N).

The states above N are summed in closed form, so the work is O(N) whatever Q is, and everything is done
in logarithms relative to mu(N), so that neither a large N nor a heavy overload over- or underflows.

References
----------
Kleinrock, Queueing Systems, Volume 1 (1975), chapter 3 (birth-death chains).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaincc, gammainccinv, gammaln

from models import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.blocks import Block
    from models.laws import BoolArray, FloatArray, IntArray

# The load that stands for none: small enough to make no difference, large enough not to underflow.
SMALLEST = 1e-100

# Elements of a block's matrix, 0.5 MiB of float64: it and a copy fit a core's cache.
BLOCK_ELEMENTS = 65_536

# Below this |Q log r| series around r = 1 are used: where their error meets that of the cancellation.
FLAT = 1e-4

# Below this the logarithm of a probability is computed by a continued fraction.
TINY = 1e-290
FRACTION_STEPS = 20

PERCENTILE_HALVINGS = 40


@dataclass(frozen=True)
class State:
    """Stationary figures of g servers at one arrival rate each, every array of shape (g,).

    Attributes
    ----------
    idle_probability : float
        p(0).
    loss_probability : float
        p(N + Q), the share of the arrivals that is lost.
    accepted : float
        1 - p(N + Q), exact even where almost everything is lost.
    occupancy : float
        L, mean number in service, 0..N.
    service_s : float
        Mean time in service of an accepted request, L / throughput.
    waiting_probability : float
        Share of the accepted requests that wait.
    wait_s : float
        Mean wait of the accepted requests.
    max_queue : float
        Q.
    full_rate_rps : float
        mu(N).
    log_load : float
        log(lambda / mu(N)).
    """

    idle_probability: FloatArray
    loss_probability: FloatArray
    accepted: FloatArray
    occupancy: FloatArray
    service_s: FloatArray
    waiting_probability: FloatArray
    wait_s: FloatArray
    max_queue: FloatArray
    full_rate_rps: FloatArray
    log_load: FloatArray

    def take(self, index: IntArray | BoolArray) -> State:
        """Return the servers at an index or mask, in its order."""
        return State(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def wait_tail(self, wait_s: FloatArray) -> FloatArray:
        """Probability that an accepted request waits longer than a time.

        A request that finds k others waiting for service waits for k + 1 completions at rate mu(N), so

            P(W > t) = P(wait) sum_{k<Q} r^k P(Poisson(m) <= k) / sum_{k<Q} r^k,    m = mu(N) t.

        Exchanging the sums and writing G(Q, m) = P(Poisson(m) < Q), a regularised incomplete gamma
        function, the quotient is (e^{-m (1-r)} G(Q, r m) - r^Q G(Q, m)) / (1 - r^Q), and for r = 1 it is
        G(Q, m) - (m / Q) G(Q - 1, m). Where Q grows without bound it becomes e^{-(mu(N) - lambda) t}.
        Computed to about 1e-9.

        Parameters
        ----------
        wait_s : (g,) float
            t >= 0.

        References
        ----------
        https://dlmf.nist.gov/8.4#E10 (the Poisson sum as an incomplete gamma function).
        """
        mean = self.full_rate_rps * wait_s
        return self.waiting_probability * _tail_given_wait(self.max_queue, self.log_load, mean)

    def wait_percentile(self, share: FloatArray) -> FloatArray:
        """Wait that a share of the accepted requests does not exceed.

        Parameters
        ----------
        share : (g,) float
            In [0, 1).

        Returns
        -------
        (g,) float
            Seconds; 0 where at least that share does not wait.
        """
        beyond = 1.0 - share
        some_wait = self.waiting_probability > beyond
        # Who waits does so for at most Q completions, and no longer than in a queue without end.
        beyond_of_waiting = np.where(
            some_wait, beyond / np.where(some_wait, self.waiting_probability, 1.0), 1.0
        )
        slack = np.maximum(-np.expm1(self.log_load), SMALLEST)
        high: FloatArray = gammainccinv(np.maximum(self.max_queue, 1.0), beyond_of_waiting)
        high = np.minimum(high, -np.log(beyond_of_waiting) / slack)
        low = np.zeros_like(high)
        for _ in range(PERCENTILE_HALVINGS):
            middle = 0.5 * (low + high)
            later = _tail_given_wait(self.max_queue, self.log_load, middle) > beyond_of_waiting
            low = np.where(later, middle, low)
            high = np.where(later, high, middle)
        return high / self.full_rate_rps


@dataclass(frozen=True)
class ServiceTimes:
    """Time in service, > 0, when n requests always share one of g servers.

    Attributes
    ----------
    base_s, slope_s : (g,) float
        It is base + slope n,
    straight : (g,) bool
        for these servers.
    table_s : callable
        ``table_s(rows, batch)``: that of any servers `rows`, shape (m,), for n in `batch`, shape (W,); shape
        (m, W).
    """

    base_s: FloatArray
    slope_s: FloatArray
    straight: BoolArray
    table_s: Callable[[IntArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class BatchQueue:
    """g servers of the kind above, ready to be solved at any arrival rate.

    Attributes
    ----------
    max_batch, max_queue : (g,) float
        N and Q, whole numbers.
    full_rate_rps : (g,) float
        mu(N).
    log_full : (g,) float
        log(p(N) / p(0)) at lambda = mu(N).
    blocks : tuple of Block
        The states below N; each server is in one block.
    """

    max_batch: FloatArray
    max_queue: FloatArray
    full_rate_rps: FloatArray
    log_full: FloatArray
    blocks: tuple[Block, ...]

    @classmethod
    def build(cls, times: ServiceTimes, max_batch: IntArray, max_queue: IntArray) -> BatchQueue:
        """Prepare servers from their service times.

        Parameters
        ----------
        times : ServiceTimes
        max_batch, max_queue : (g,) int
            N >= 1, Q >= 0.
        """
        full_rate_rps, log_full = np.empty(len(max_batch)), np.empty(len(max_batch))
        found: list[Block] = []
        # mu(N) / mu(n) is 1 at n = N, so the product up to N - 1 is that up to N.
        straight = times.straight & blocks.is_compiled()
        rows = np.flatnonzero(straight)
        if len(rows):
            base_s, slope_s, size = times.base_s[rows], times.slope_s[rows], max_batch[rows]
            rate = size / (base_s + slope_s * size)
            full_rate_rps[rows] = rate
            block, log_full[rows] = blocks.Lines.of(rows, rate * base_s, rate * slope_s, size - 1)
            found.append(block)
        largest_first = np.argsort(-max_batch, kind="stable")
        largest_first = largest_first[~straight[largest_first]]
        while len(largest_first):
            width = int(max_batch[largest_first[0]])
            rows, largest_first = np.split(largest_first, [max(1, BLOCK_ELEMENTS // width)])
            count = np.arange(1.0, width + 1.0)
            ratio = times.table_s(rows, count)
            last = max_batch[rows] - 1
            full_rate_rps[rows] = max_batch[rows] / ratio[np.arange(len(rows)), last]
            ratio *= full_rate_rps[rows, np.newaxis]
            ratio /= count
            table, log_full[rows] = blocks.block_of(rows, ratio, last)
            found.append(table)
        return cls(
            max_batch.astype(np.float64), max_queue.astype(np.float64), full_rate_rps, log_full, tuple(found)
        )

    def take(self, index: IntArray) -> BatchQueue:
        """Return the servers at distinct indices, in that order."""
        position = np.full(len(self.max_batch), -1)
        position[index] = np.arange(len(index))
        left = []
        for block in self.blocks:
            rows = position[block.rows]
            kept = np.flatnonzero(rows >= 0)
            if len(kept):
                left.append(block.take(rows[kept], kept))
        return BatchQueue(
            self.max_batch[index],
            self.max_queue[index],
            self.full_rate_rps[index],
            self.log_full[index],
            tuple(left),
        )

    def first_states(self, count: int) -> BatchQueue:
        """Return the same servers with the states from `count` + 1 to N - 1 left out.

        A very low rate does not reach them. `count` is at most `ANCHOR_STRIDE`.
        """
        return replace(self, blocks=tuple(block.first(count) for block in self.blocks))

    def solve(self, arrival_rps: FloatArray) -> State:
        """Stationary state at an arrival rate.

        Parameters
        ----------
        arrival_rps : (g,) float
            lambda >= 0, also above mu(N); a rate of 0 gives the limit of a vanishing rate.
        """
        load = np.maximum(arrival_rps / self.full_rate_rps, SMALLEST)
        log_load = np.log(load)
        # The states N..N+Q-1, in which an arrival waits, and N+Q, in which it is lost.
        log_full = self.log_full + self.max_batch * log_load
        log_room, place = _waiting_room(self.max_queue, log_load)
        log_waiting, log_lost = log_full + log_room, log_full + self.max_queue * log_load
        # That of an empty server is log 1.
        log_floor = np.maximum(np.maximum(log_waiting, log_lost), 0.0)
        anchor, sums = np.empty(len(load)), np.empty((2, len(load)))
        for block in self.blocks:
            rows = block.rows
            anchor[rows], sums[:, rows] = block.sums(log_load[rows], log_floor[rows])
        idle, (busy, moment) = np.exp(-anchor), sums
        waiting, lost = np.exp(log_waiting - anchor), np.exp(log_lost - anchor)
        entering = idle + busy + waiting
        total = entering + lost
        in_service = moment + self.max_batch * (waiting + lost)
        waiting_probability = waiting / entering
        return State(
            idle_probability=idle / total,
            loss_probability=lost / total,
            accepted=entering / total,
            occupancy=in_service / total,
            service_s=in_service / (entering * load * self.full_rate_rps),
            waiting_probability=waiting_probability,
            wait_s=waiting_probability * place / self.full_rate_rps,
            max_queue=self.max_queue,
            full_rate_rps=self.full_rate_rps,
            log_load=log_load,
        )


def _waiting_room(count: FloatArray, log_r: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sum up a geometric tail.

    Returns
    -------
    log_sum : (g,) float
        log(1 + r + ... + r^(count - 1)), -inf for count 0.
    place : (g,) float
        Mean of k + 1 under the weights r^k, k = 0..count-1; 1 for count 0.
    """
    places = np.maximum(count, 1.0)
    distance = np.maximum(np.abs(log_r), SMALLEST)
    one, all_ = np.expm1(-distance), np.expm1(-places * distance)
    log_sum = np.maximum((places - 1.0) * log_r, 0.0) + np.log(all_ / one)
    # Counted from the end with the larger weights; near r = 1 the two terms cancel to third order.
    flat = places * distance < FLAT
    series = (places + 1.0) / 2.0 - distance * (places * places - 1.0) / 12.0
    place = np.where(flat, series, places * (1.0 + all_) / all_ - 1.0 / one)
    return np.where(count > 0, log_sum, -np.inf), np.where(log_r > 0, places + 1.0 - place, place)


def _tail_given_wait(count: FloatArray, log_r: FloatArray, mean: FloatArray) -> FloatArray:
    """Return the quotient of `State.wait_tail`, the tail among the requests that wait; Q = 0 counts as 1."""
    count = np.maximum(count, 1.0)
    r = np.exp(log_r)
    full = gammaincc(count, mean)
    flat = np.abs(count * log_r) < FLAT
    x = np.where(flat, 1.0, count * log_r)
    # Numerator and denominator are divided by max(1, r^Q), which keeps both in range in overload.
    log_open = (r - 1.0) * mean + _log_gammaincc(count, r * mean) - np.maximum(x, 0.0)
    difference = np.exp(log_open) - np.exp(np.minimum(x, 0.0)) * full
    quotient = np.sign(x) * difference / np.expm1(-np.abs(x))
    # Near r = 1 the two terms cancel; this is the quotient to second order in log r.
    one_less, two_less = (gammaincc(np.maximum(count - i, SMALLEST), mean) for i in (1.0, 2.0))
    slope = ((count - 1.0) * one_less - mean * two_less) / 2.0
    series = full + (log_r * slope - one_less) * mean / count
    tail: FloatArray = np.clip(np.where(flat, series, quotient), 0.0, 1.0)
    return tail


def _log_gammaincc(a: FloatArray, x: FloatArray) -> FloatArray:
    """Logarithm of the regularised upper incomplete gamma function, also where that underflows.

    Far above a its continued fraction converges in a few steps (https://dlmf.nist.gov/8.9#E2).
    """
    value = gammaincc(a, x)
    tiny = value < TINY
    result = np.log(np.where(tiny, 1.0, value))
    if tiny.any():
        a, x = a[tiny], x[tiny]
        fraction = x - a + 2.0 * FRACTION_STEPS + 1.0
        for step in range(FRACTION_STEPS, 0, -1):
            fraction = x - a + 2.0 * step - 1.0 - step * (step - a) / fraction
        result[tiny] = a * np.log(x) - x - gammaln(a) - np.log(fraction)
    return result
