"""The queue against theory: closed forms first, brute force second, a simulation last."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import blocks
from models.capacity import LOWEST_SHARE, LOWEST_STATES
from models.queue import BatchQueue, ServiceTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models.laws import FloatArray, IntArray
    from models.queue import State


@pytest.fixture(
    autouse=True,
    scope="module",
    params=[
        pytest.param(
            True,
            marks=pytest.mark.skipif(not blocks.IS_COMPILED, reason="installed without a C compiler"),
            id="compiled",
        ),
        pytest.param(False, id="arrays"),
    ],
)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything with both ways to add up weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "IS_COMPILED", request.param)
        yield


def build(service_s: list[FloatArray], max_queue: list[int]) -> BatchQueue:
    """Servers from a service time for n = 1..N each."""
    width = max(len(times) for times in service_s)
    table = np.array([np.pad(times, (0, width - len(times)), mode="edge") for times in service_s])
    return by_table(
        lambda rows, batch: table[rows, : len(batch)],
        np.array([len(times) for times in service_s]),
        np.array(max_queue),
    )


def by_table(
    table_s: Callable[[IntArray, FloatArray], FloatArray], max_batch: IntArray, max_queue: IntArray
) -> BatchQueue:
    """Servers of any service times."""
    unknown = np.full(len(max_batch), np.nan)
    times = ServiceTimes(unknown, unknown, np.zeros(len(max_batch), dtype=bool), table_s)
    return BatchQueue.build(times, max_batch, max_queue)


def solve(service_s: FloatArray, max_queue: int, arrival_rps: float) -> State:
    return build([service_s], [max_queue]).solve(np.array([arrival_rps]))


def chain(service_s: FloatArray, max_queue: int, arrival_rps: float) -> FloatArray:
    """p(0..N+Q) from the balance equations, in logarithms."""
    n = np.arange(1, len(service_s) + max_queue + 1)
    batch = np.minimum(n, len(service_s))
    log_weight = np.concatenate(([0.0], np.cumsum(np.log(arrival_rps * service_s[batch - 1] / batch))))
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def brute_tail(service_s: FloatArray, max_queue: int, arrival_rps: float, wait_s: float) -> float:
    """P(W > t) of an accepted request, as a sum over the states it may find and over Poisson terms."""
    p = chain(service_s, max_queue, arrival_rps)
    size = len(service_s)
    mean = size / service_s[-1] * wait_s
    poisson, cumulative, tail = math.exp(-mean), 0.0, 0.0
    for k in range(max_queue):
        cumulative += poisson
        poisson *= mean / (k + 1)
        tail += p[size + k] * cumulative
    return tail / p[:-1].sum()


loads = st.floats(-3, 1).map(lambda exponent: 10.0**exponent)
servers = st.lists(st.floats(0.1, 10), min_size=1, max_size=40).map(np.array)


@pytest.mark.parametrize("rho", [1e-3, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 3.0])
@pytest.mark.parametrize("places", [1, 2, 40])
def test_one_server_is_mm1k(rho, places):
    state = solve(np.array([2.0]), places - 1, rho / 2.0)
    p = rho ** np.arange(places + 1) / (rho ** np.arange(places + 1)).sum()
    mean_present = np.arange(places + 1) @ p
    throughput = rho / 2.0 * (1 - p[-1])
    assert state.idle_probability == pytest.approx(p[0], rel=1e-12)
    assert state.loss_probability == pytest.approx(p[-1], rel=1e-12)
    assert state.accepted == pytest.approx(1 - p[-1], rel=1e-12)
    assert state.occupancy == pytest.approx(1 - p[0], rel=1e-12)
    assert state.service_s == pytest.approx(2.0, rel=1e-12)
    assert state.wait_s == pytest.approx(mean_present / throughput - 2.0, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("load", [0.1, 0.9, 1.0, 2.0])
def test_without_a_queue_equal_service_is_erlang_b(size, load):
    offered = size * load
    blocking = 1.0
    for n in range(1, size + 1):
        blocking = offered * blocking / (n + offered * blocking)
    state = solve(np.full(size, 3.0), 0, offered / 3.0)
    assert state.loss_probability == pytest.approx(blocking, rel=1e-11)
    assert state.occupancy == pytest.approx(offered * (1 - blocking), rel=1e-11)
    assert state.wait_s == 0


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("load", [0.3, 0.9, 0.99])
def test_with_a_long_queue_equal_service_is_erlang_c(size, load):
    offered = size * load
    blocking = 1.0
    for n in range(1, size + 1):
        blocking = offered * blocking / (n + offered * blocking)
    waiting = blocking / (1 - load * (1 - blocking))
    state = solve(np.full(size, 3.0), 50_000, offered / 3.0)
    slack_rps = (size - offered) / 3.0
    assert state.waiting_probability == pytest.approx(waiting, rel=1e-11)
    assert state.wait_s == pytest.approx(waiting / slack_rps, rel=1e-11)
    assert state.service_s == pytest.approx(3.0, rel=1e-12)
    # Where the queue has no end the wait of those who wait is exponential.
    for wait_s in (0.0, 0.1, 5.0):
        tail = waiting * math.exp(-slack_rps * wait_s)
        assert state.wait_tail(np.array([wait_s])) == pytest.approx(tail, rel=1e-9)
    for share in (0.5, 0.9, 0.999):
        percentile = max(0.0, math.log(waiting / (1 - share)) / slack_rps)
        assert state.wait_percentile(np.array([share])) == pytest.approx(percentile, rel=1e-8, abs=1e-8)


@given(servers, st.integers(0, 60), loads)
def test_every_figure_is_that_of_the_balance_equations(service_s, max_queue, load):
    size = len(service_s)
    arrival_rps = load * size / service_s[-1]
    state = solve(service_s, max_queue, arrival_rps)
    p = chain(service_s, max_queue, arrival_rps)
    n = np.arange(len(p))
    batch = np.minimum(n, size)
    completions_rps = p[1:] @ (batch[1:] / service_s[batch[1:] - 1])
    close = {"rel": 1e-9, "abs": 1e-290}
    assert state.idle_probability == pytest.approx(p[0], **close)
    assert state.loss_probability == pytest.approx(p[-1], **close)
    # What is accepted is what completes.
    assert arrival_rps * state.accepted == pytest.approx(completions_rps, **close)
    assert state.occupancy == pytest.approx(batch @ p, **close)
    # Little's law for those in service and for those who wait.
    assert state.service_s == pytest.approx(batch @ p / completions_rps, **close)
    assert state.wait_s == pytest.approx((n - batch) @ p / completions_rps, **close)
    assert state.waiting_probability == pytest.approx(p[size:-1].sum() / p[:-1].sum(), **close)


@given(servers, st.integers(0, 40), loads, st.floats(0, 3))
def test_wait_tail_is_the_sum_over_the_states_found(service_s, max_queue, load, queues):
    arrival_rps = load * len(service_s) / service_s[-1]
    wait_s = queues * max(max_queue, 1) * service_s[-1] / len(service_s)
    tail = solve(service_s, max_queue, arrival_rps).wait_tail(np.array([wait_s]))
    assert tail == pytest.approx(brute_tail(service_s, max_queue, arrival_rps, wait_s), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(
    "load", [1 - 1e-3, 1 - 3e-6, 1 - 1e-7, 1 - 1e-9, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 1e-9, 1 + 1e-3]
)
def test_wait_tail_at_full_load(load):
    service_s = np.array([1.0, 1.5, 1.8])
    arrival_rps = load * 3 / 1.8
    state = solve(service_s, 30, arrival_rps)
    for wait_s in (0.0, 1.0, 10.0, 20.0):
        expected = brute_tail(service_s, 30, arrival_rps, wait_s)
        assert state.wait_tail(np.array([wait_s])) == pytest.approx(expected, rel=1e-8)


def test_wait_tail_in_overload_where_the_gamma_function_underflows():
    # A long queue that is full: the request waits for about Q completions, here 1000 at 10 a second.
    state = solve(np.array([0.1]), 1000, 20.0)
    p_full_minus = 0.5 ** np.arange(1, 1001)  # an accepted request finds Q-1-i waiting with weight 2^-i
    for wait_s in (80.0, 95.0, 100.0, 105.0):
        log_poisson = np.arange(1000) * math.log(10 * wait_s) - 10 * wait_s
        log_poisson -= np.array([math.lgamma(k + 1) for k in range(1000)])
        expected = p_full_minus @ np.cumsum(np.exp(log_poisson))[::-1]
        assert state.wait_tail(np.array([wait_s])) == pytest.approx(expected, rel=1e-9)


@given(servers, st.integers(0, 40), loads, st.floats(0.5, 0.999))
def test_wait_percentile_inverts_the_tail(service_s, max_queue, load, share):
    state = solve(service_s, max_queue, load * len(service_s) / service_s[-1])
    percentile = state.wait_percentile(np.array([share]))
    if state.waiting_probability[0] <= 1 - share:
        assert percentile == 0
    else:
        assert state.wait_tail(percentile) == pytest.approx(1 - share, rel=1e-6)


@given(
    st.integers(1, 60), st.floats(0.01, 10), st.floats(0, 1), st.integers(0, 60), loads, st.floats(1.0001, 3)
)
def test_monotone_in_load(size, base_s, slope_s, max_queue, load, factor):
    service_s = base_s + slope_s * np.arange(1, size + 1)
    arrival_rps = load * len(service_s) / service_s[-1]
    now, more = solve(service_s, max_queue, arrival_rps), solve(service_s, max_queue, arrival_rps * factor)
    slack = 1 + 1e-9
    assert more.service_s * slack >= now.service_s
    assert more.wait_s * slack >= now.wait_s
    assert more.occupancy * slack >= now.occupancy
    assert more.loss_probability * slack >= now.loss_probability
    assert more.idle_probability <= now.idle_probability * slack
    assert more.accepted * arrival_rps * factor * slack >= now.accepted * arrival_rps
    wait_s = np.array([max(max_queue, 1) * service_s[-1] / len(service_s) / 2])
    assert more.wait_tail(wait_s) + 1e-9 >= now.wait_tail(wait_s)


def test_extremes_stay_finite_and_conserve():
    size, max_queue, rate = (
        grid.ravel()
        for grid in np.meshgrid(
            [1, 2, 15, 16, 17, 256, 4096], [0, 1, 10, 50_000], [0.0, *10.0 ** np.arange(-6, 7)], indexing="ij"
        )
    )
    table = 0.02 + 0.0004 * np.arange(1, 4097)
    queue = by_table(
        lambda rows, batch: np.tile(table[: len(batch)], (len(rows), 1)),
        size.astype(int),
        max_queue.astype(int),
    )
    state = queue.solve(rate)
    for name in ("idle_probability", "loss_probability", "accepted", "waiting_probability"):
        value = getattr(state, name)
        assert np.all((value >= 0) & (value <= 1 + 1e-12)), name
    assert np.all(np.isfinite(state.wait_s)) and np.all(state.wait_s >= 0)
    assert np.all(state.occupancy <= size * (1 + 1e-12))
    assert np.all(state.service_s >= table[0] * (1 - 1e-9))
    assert np.all(state.service_s <= table[size.astype(int) - 1] * (1 + 1e-9))
    np.testing.assert_allclose(state.accepted + state.loss_probability, 1.0, rtol=1e-12)
    # In heavy overload the server is full and completes mu(N) whatever the excess.
    heavy = rate > 1e4 * queue.full_rate_rps
    assert heavy.any()
    np.testing.assert_allclose((rate * state.accepted)[heavy], queue.full_rate_rps[heavy], rtol=1e-3)
    for share in (0.5, 0.95, 0.999):
        percentile = state.wait_percentile(np.full(len(rate), share))
        assert np.all(np.isfinite(percentile))
        assert np.all(state.wait_tail(percentile) <= (1 - share) * (1 + 1e-6))


@pytest.mark.parametrize("load", [0.02, 0.3, 0.5, 0.9])
def test_a_wide_server_whose_likeliest_state_is_far_from_both_ends(load):
    """Weights exceed those of the first and the last state by up to exp(2000), and nobody is lost."""
    size = 5_000
    state = solve(np.ones(size), 0, load * size)
    assert state.loss_probability[0] < 1e-9
    assert state.occupancy[0] == pytest.approx(load * size, rel=1e-9)
    assert state.service_s[0] == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("size", [1, 20, 300])
def test_at_a_low_rate_the_first_states_are_all(size):
    queue = build([1.0 + 0.05 * np.arange(size)], [7])
    rate = np.array([LOWEST_SHARE])
    first, whole = queue.first_states(LOWEST_STATES).solve(rate), queue.solve(rate)
    for name, value in vars(whole).items():
        assert vars(first)[name] == pytest.approx(value, rel=1e-13), name
    # It does leave states out: at a high rate the figures differ.
    high = np.array([0.9 * queue.full_rate_rps[0]])
    same = queue.first_states(LOWEST_STATES).solve(high).occupancy == pytest.approx(
        queue.solve(high).occupancy
    )
    assert same == (size <= LOWEST_STATES)


@pytest.mark.parametrize("max_queue", [1, 10, 50_000])
def test_no_jump_at_full_load(max_queue):
    service_s = 0.02 + 0.0004 * np.arange(1, 257)
    distance = np.array([-1e-5, -1e-7, -1e-9, -1e-12, 0.0, 1e-12, 1e-9, 1e-7, 1e-5]) / max_queue
    queue = build([service_s] * len(distance), [max_queue] * len(distance))
    wait_s = queue.solve(queue.full_rate_rps * (1 + distance)).wait_s
    assert np.all(np.diff(wait_s) >= -1e-10 * wait_s[1:])
    np.testing.assert_allclose(wait_s, wait_s[4], rtol=1e-3)


def test_servers_of_any_size_solved_together_or_alone_are_the_same(monkeypatch):
    monkeypatch.setattr("models.queue.BLOCK_ELEMENTS", 100)
    rng = np.random.default_rng(3)
    services = [np.sort(rng.uniform(0.1, 2.0, size)) for size in rng.integers(1, 60, 40)]
    queues = rng.integers(0, 30, 40).tolist()
    queue = build(services, queues)
    rate = queue.full_rate_rps * rng.uniform(0.1, 1.5, 40)
    together = queue.solve(rate)
    index = np.array([33, 2, 17, 5])
    some = queue.take(index).take(np.array([2, 0])).solve(rate[index][[2, 0]])
    for i, (service_s, max_queue) in enumerate(zip(services, queues, strict=True)):
        alone = solve(service_s, max_queue, rate[i])
        for name in ("idle_probability", "loss_probability", "occupancy", "service_s", "wait_s"):
            assert getattr(together, name)[i] == pytest.approx(getattr(alone, name)[0], rel=1e-12), name
    np.testing.assert_allclose(some.wait_s, together.take(index[[2, 0]]).wait_s, rtol=1e-12)


def test_lines_and_tables_are_the_same():
    """Some servers by their line, some by a table, with states left out and servers dropped, too."""
    rng = np.random.default_rng(5)
    size, room = rng.integers(1, 400, 60), rng.integers(0, 500, 60)
    base_s, slope_s = 10.0 ** rng.uniform(-6, 2, (2, 60))
    base_s[:5], slope_s[5:10] = 0.0, 0.0
    straight = rng.random(60) < 0.6

    def table_s(rows: IntArray, batch: FloatArray) -> FloatArray:
        return base_s[rows, np.newaxis] + np.multiply.outer(slope_s[rows], batch)

    mixed = BatchQueue.build(ServiceTimes(base_s, slope_s, straight, table_s), size, room)
    table = by_table(table_s, size, room)
    np.testing.assert_allclose(mixed.full_rate_rps, table.full_rate_rps, rtol=1e-14)
    np.testing.assert_allclose(mixed.log_full, table.log_full, rtol=1e-12, atol=1e-12)
    kept = rng.permutation(60)[:30]
    for load in (1e-6, 0.02, 0.7, 0.99, 1.0, 3.0):
        for here, there in (
            (mixed, table),
            (mixed.take(kept), table.take(kept)),
            (mixed.first_states(8), table.first_states(8)),
        ):
            one, other = (queue.solve(load * queue.full_rate_rps) for queue in (here, there))
            for name, value in vars(other).items():
                np.testing.assert_allclose(vars(one)[name], value, rtol=1e-10, atol=1e-290, err_msg=name)


@pytest.mark.parametrize("load", [0.9, 1.1])
def test_simulated_waits_have_the_mean_and_the_percentiles(load):
    service_s = 1.0 + 0.2 * np.arange(1, 5)
    max_queue, completions_rps = 12, 4 / service_s[-1]
    arrival_rps = load * completions_rps
    rng = np.random.default_rng(11)
    waits: list[float] = []
    waiting: deque[float] = deque()
    now, busy = 0.0, 0
    steps = 400_000
    for gap, draw in zip(rng.exponential(size=steps), rng.random(steps), strict=True):
        service_rps = busy / service_s[busy - 1] if busy else 0.0
        now += gap / (arrival_rps + service_rps)
        if draw * (arrival_rps + service_rps) < arrival_rps:
            if busy < 4:
                busy += 1
                waits.append(0.0)
            elif len(waiting) < max_queue:
                waiting.append(now)
        elif waiting:
            waits.append(now - waiting.popleft())
        else:
            busy -= 1
    observed = np.array(waits[1000:])
    state = solve(service_s, max_queue, arrival_rps)
    assert state.wait_s == pytest.approx(observed.mean(), rel=0.03)
    for share in (0.5, 0.9, 0.99):
        assert state.wait_percentile(np.array([share])) == pytest.approx(
            np.quantile(observed, share), rel=0.04
        )
        wait_s = np.quantile(observed, share)
        assert state.wait_tail(np.array([wait_s])) == pytest.approx(1 - share, rel=0.1)
