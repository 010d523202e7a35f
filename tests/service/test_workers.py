import asyncio
import math
import operator
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import service_workloads as workloads
from service_tools import is_alive

from solver.errors import InputError, NoAnswerError
from solver.workers import (
    BusyError,
    CrashError,
    DeadlineError,
    WorkerDiedError,
    WorkerEvent,
    WorkerPool,
)

LONG_S = 30.0


class Pool(WorkerPool):
    """A pool that keeps what it reports."""

    def __init__(self, size: int = 1, max_waiting: int = 8, **options) -> None:
        self.events: list[WorkerEvent] = []
        options.setdefault("warm_up", workloads.nothing)
        super().__init__(
            size, max_waiting=max_waiting, report=lambda event, _: self.events.append(event), **options
        )

    async def call(self, function, *args, deadline_s=LONG_S, wait_s=LONG_S):
        return await self.run(function, *args, deadline_s=deadline_s, wait_s=wait_s)


@asynccontextmanager
async def started(pool: Pool) -> AsyncIterator[Pool]:
    pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("it did not happen within 30 s")


def test_a_worker_returns_the_value_and_stays_for_the_next_call():
    async def scenario():
        async with started(Pool()) as pool:
            assert await pool.call(math.hypot, 3, 4) == 5.0
            assert len({await pool.call(os.getpid) for _ in range(5)}) == 1
            assert await pool.call(os.getpid) != os.getpid()
            assert pool.events == [WorkerEvent.READY]

    asyncio.run(scenario())


def test_a_body_of_megabytes_passes_in_both_directions():
    async def scenario():
        async with started(Pool()) as pool:
            body = os.urandom(8_000_000)
            assert await pool.call(operator.add, body, b"!") == body + b"!"

    asyncio.run(scenario())


def test_calls_run_side_by_side_in_as_many_workers(tmp_path: Path):
    async def scenario():
        async with started(Pool(size=2)) as pool:
            pids = await asyncio.gather(*(pool.call(workloads.meet, str(tmp_path), 2) for _ in range(2)))
            assert len(set(pids)) == 2

    asyncio.run(scenario())


def test_errors_raised_on_purpose_come_back_whole():
    async def scenario():
        async with started(Pool()) as pool:
            with pytest.raises(InputError) as caught:
                await pool.call(workloads.raise_error, "input")
            assert caught.value.problems == workloads.ERRORS["input"].problems
            with pytest.raises(NoAnswerError, match="no point"):
                await pool.call(workloads.raise_error, "no-answer")

    asyncio.run(scenario())


def test_any_other_error_is_a_crash_with_its_traceback_and_costs_no_worker():
    async def scenario():
        async with started(Pool()) as pool:
            pid = await pool.call(os.getpid)
            with pytest.raises(CrashError, match="ValueError: math domain error") as caught:
                await pool.call(math.sqrt, -1)
            assert "Traceback" in caught.value.trace
            assert await pool.call(os.getpid) == pid

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("function", "args", "ending"),
    [
        (os._exit, (3,), "exit code 3"),
        (os.abort, (), "SIGABRT"),
        (sys.exit, (0,), "exit code 0"),
        (signal.raise_signal, (signal.SIGKILL,), "out of memory"),
    ],
)
def test_a_worker_that_dies_costs_its_call_and_is_replaced(function, args, ending):
    async def scenario():
        async with started(Pool()) as pool:
            pid = await pool.call(os.getpid)
            with pytest.raises(WorkerDiedError, match=ending):
                await pool.call(function, *args)
            assert await pool.call(os.getpid) != pid
            assert pool.events == [WorkerEvent.READY, WorkerEvent.DIED, WorkerEvent.READY]

    asyncio.run(scenario())


def test_a_call_beyond_its_deadline_is_killed_and_its_worker_replaced():
    async def scenario():
        async with started(Pool()) as pool:
            pid = await pool.call(os.getpid)
            with pytest.raises(DeadlineError, match=r"0\.2 s"):
                await pool.call(time.sleep, 300, deadline_s=0.2)
            assert not is_alive(pid)
            assert await pool.call(os.getpid) != pid
            assert pool.events == [WorkerEvent.READY, WorkerEvent.DEADLINE, WorkerEvent.READY]

    asyncio.run(scenario())


def test_a_stopped_worker_that_reads_nothing_meets_its_deadline_too():
    async def scenario():
        async with started(Pool()) as pool:
            os.kill(await pool.call(os.getpid), signal.SIGSTOP)
            with pytest.raises(DeadlineError):
                # More than a pipe holds: the sender waits for the reader.
                await pool.call(len, b"x" * 1_000_000, deadline_s=0.3)
            assert await pool.call(len, b"abc") == 3

    asyncio.run(scenario())


def test_processes_that_a_killed_call_started_are_killed_with_it(tmp_path: Path):
    async def scenario():
        pid_file = tmp_path / "pid"
        async with started(Pool()) as pool:
            call = asyncio.ensure_future(pool.call(workloads.start_child, str(pid_file), deadline_s=3))
            await until(lambda: pid_file.exists() and pid_file.read_text() != "")
            child = int(pid_file.read_text())
            assert is_alive(child)
            with pytest.raises(DeadlineError):
                await call
            await until(lambda: not is_alive(child))

    asyncio.run(scenario())


def test_a_worker_that_dies_idle_is_replaced_and_costs_no_call():
    async def scenario():
        async with started(Pool()) as pool:
            pid = await pool.call(os.getpid)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: WorkerEvent.DIED in pool.events)
            assert await pool.call(os.getpid) != pid

    asyncio.run(scenario())


def test_a_call_too_many_is_refused_at_once():
    async def scenario():
        async with started(Pool(max_waiting=1)) as pool:
            await pool.call(os.getpid)
            running = asyncio.ensure_future(pool.call(time.sleep, 300))
            waiting = asyncio.ensure_future(pool.call(os.getpid))
            await asyncio.sleep(0)
            assert pool.full
            with pytest.raises(BusyError):
                await pool.call(os.getpid)
            assert not waiting.done()
            running.cancel()
            waiting.cancel()

    asyncio.run(scenario())


def test_a_call_waits_no_longer_than_it_said_and_the_next_one_is_served(tmp_path: Path):
    async def scenario():
        gate = tmp_path / "gate"
        async with started(Pool()) as pool:
            running = asyncio.ensure_future(pool.call(workloads.wait_for, str(gate)))
            patient = asyncio.ensure_future(pool.call(os.getpid))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match=r"0\.1 s"):
                await pool.call(os.getpid, wait_s=0.1)
            gate.touch()
            assert await patient > 0
            await running
            assert pool.pending == 0

    asyncio.run(scenario())


def test_a_cancelled_call_that_waits_is_never_run(tmp_path: Path):
    async def scenario():
        gate, flag = tmp_path / "gate", tmp_path / "ran"
        async with started(Pool()) as pool:
            running = asyncio.ensure_future(pool.call(workloads.wait_for, str(gate)))
            waiting = asyncio.ensure_future(pool.call(workloads.touch, str(flag)))
            await asyncio.sleep(0.1)
            waiting.cancel()
            gate.touch()
            await running
            await pool.call(os.getpid)
            assert pool.pending == 0
        assert not flag.exists()

    asyncio.run(scenario())


def test_a_cancelled_call_that_runs_leaves_its_worker_in_order(tmp_path: Path):
    async def scenario():
        gate, started_flag = tmp_path / "gate", tmp_path / "started"
        async with started(Pool()) as pool:
            pid = await pool.call(os.getpid)
            running = asyncio.ensure_future(pool.call(workloads.touch_and_wait, str(started_flag), str(gate)))
            await until(started_flag.exists)
            running.cancel()
            gate.touch()
            assert await pool.call(os.getpid) == pid

    asyncio.run(scenario())


def test_a_failed_start_is_reported_and_tried_again(tmp_path: Path):
    async def scenario():
        flag = tmp_path / "ready"
        warm_up = partial(workloads.fail_until_exists, str(flag))
        async with started(Pool(warm_up=warm_up, retry_s=0.05)) as pool:
            await until(lambda: WorkerEvent.START_FAILED in pool.events)
            assert pool.ready == 0
            flag.touch()
            assert await pool.call(os.getpid) > 0
            assert pool.ready == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("warm_up", [partial(os._exit, 1), partial(time.sleep, 300)])
def test_a_start_that_dies_or_hangs_is_a_failed_start(warm_up):
    async def scenario():
        async with started(Pool(warm_up=warm_up, start_limit_s=1.0, retry_s=0.05)) as pool:
            await until(lambda: WorkerEvent.START_FAILED in pool.events)
            assert pool.ready == 0

    asyncio.run(scenario())


def test_stop_ends_running_and_waiting_calls_and_every_process():
    async def scenario():
        pool = Pool()
        pool.start()
        pid = await pool.call(os.getpid)
        calls = [asyncio.ensure_future(pool.call(time.sleep, 300)) for _ in range(2)]
        await asyncio.sleep(0.1)
        await pool.stop()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in ended] == [WorkerDiedError, BusyError]
        assert not is_alive(pid)
        assert pool.pending == 0

    asyncio.run(scenario())


def test_stop_right_after_start_leaves_nothing_behind():
    async def scenario():
        pool = Pool(size=2)
        pool.start()
        await asyncio.sleep(0)
        await pool.stop()
        assert pool.ready == 0

    asyncio.run(scenario())
