"""Processes that solve, so that no solve can block the service or take it down.

A worker that overruns its deadline is killed and replaced; a worker that dies costs the one request
it was working on. Each worker has a pipe of its own: a pool whose workers share one pipe and its lock
breaks as a whole when a worker is killed while it holds the lock or has read half a message (observed
with the common process pools when the out-of-memory killer strikes). Nothing polls: a call costs two
pipe transfers and two thread switches, well under a millisecond.

::

    FleetoptError
    └── WorkerError
        ├── BusyError         no worker came free in time, or too many requests wait (HTTP 503)
        ├── DeadlineError     the call overran its deadline; its worker was killed (HTTP 503)
        ├── WorkerDiedError   the worker ended during the call, for instance out of memory (HTTP 500)
        └── CrashError        the function raised something that is no FleetoptError (HTTP 500)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any

from solver.errors import FleetoptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection


_PATIENCE_S = 1.0


class WorkerError(FleetoptError):
    """Base of what goes wrong around a call rather than in it."""


class BusyError(WorkerError):
    """Every worker is taken and stayed so."""


class DeadlineError(WorkerError):
    """The call overran its deadline and its worker was killed."""


class WorkerDiedError(WorkerError):
    """The worker process ended during the call."""


class CrashError(WorkerError):
    """The function raised an error nobody meant to raise.

    Parameters
    ----------
    summary : str
        Type and message of the error.
    trace : str
        Its traceback in the worker.
    """

    def __init__(self, summary: str, trace: str) -> None:
        super().__init__(summary)
        self.trace = trace


class WorkerEvent(StrEnum):
    """What happens to workers, as told to the `report` argument of `WorkerPool`."""

    READY = "ready"
    START_FAILED = "start_failed"
    DEADLINE = "deadline"
    DIED = "died"


class WorkerPool:
    """A fixed number of warm worker processes, used from one asyncio event loop.

    Parameters
    ----------
    size : int
        Worker processes, >= 1.
    warm_up : callable
        Runs once in every new worker before it takes calls: imports what calls need. Must be picklable by
        reference; what it raises makes the start count as failed.
    max_waiting : int
        Calls that may wait for a worker, >= 0; one more raises `BusyError` at once.
    report : callable
        Called in the event loop with a `WorkerEvent` and a text for the log.
    start_limit_s : float
        A worker that is not warm after this long is killed.
    retry_s : float
        Pause after a failed start.
    """

    def __init__(
        self,
        size: int,
        *,
        warm_up: Callable[[], object],
        max_waiting: int,
        report: Callable[[WorkerEvent, str], None],
        start_limit_s: float = 60.0,
        retry_s: float = 1.0,
    ) -> None:
        self.size = size
        self.ready = 0
        self._warm_up = warm_up
        self._max_waiting = max_waiting
        self._report = report
        self._start_limit_s = start_limit_s
        self._retry_s = retry_s
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._open: set[_Job] = set()
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="fleetopt-pipe")
        self._workers: set[_Worker] = set()
        self._slots: list[asyncio.Task[None]] = []

    @property
    def pending(self) -> int:
        """Calls that run or wait."""
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether `run` would raise `BusyError` now."""
        return self.pending >= self.size + self._max_waiting

    def busy(self) -> BusyError:
        """Return the error of a call that finds the pool full."""
        return BusyError(f"{self.pending} requests run or wait, the most this service takes at once")

    def start(self) -> None:
        """Start the workers; returns before they are warm. Calls made meanwhile wait."""
        self._slots = [asyncio.create_task(self._keep_a_worker()) for _ in range(self.size)]

    async def run(self, function: Callable[..., Any], *args: object, deadline_s: float, wait_s: float) -> Any:
        """Call ``function(*args)`` in a worker and return what it returns.

        A cancelled call that waits is dropped; one that runs is left to finish, and its result is discarded.

        Parameters
        ----------
        function : callable
            Picklable by reference, like its arguments and its result.
        deadline_s : float
            The worker is killed when the call has run for this long.
        wait_s : float
            Longest wait for a free worker.

        Raises
        ------
        FleetoptError
            What the function raised, when it is one; otherwise one of this module's errors.
        """
        if self.full:
            raise self.busy()
        loop = asyncio.get_running_loop()
        job = _Job(function, args, deadline_s, loop.create_future())
        give_up = loop.call_later(wait_s, job.give_up, wait_s)
        self._open.add(job)
        self._jobs.put_nowait(job)
        try:
            return await job.result
        finally:
            self._open.discard(job)
            give_up.cancel()

    async def stop(self) -> None:
        """Kill the workers; calls that still run or wait raise."""
        for slot in self._slots:
            slot.cancel()
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*self._slots, return_exceptions=True)
        for job in self._open:
            job.fail(BusyError("the service is stopping"))
        # The pipes of killed workers are at their end, so no thread waits any more.
        self._threads.shutdown()
        for worker in self._workers:
            worker.join()
        self._workers.clear()
        self.ready = 0

    async def _keep_a_worker(self) -> None:
        """Run one worker after another, each until it dies."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                worker = _Worker(self._warm_up)
            except OSError as error:
                self._report(WorkerEvent.START_FAILED, f"no process to be had: {error}")
                await asyncio.sleep(self._retry_s)
                continue
            self._workers.add(worker)
            warm = False
            try:
                await self._await_warm_up(worker)
                warm = True
                self.ready += 1
                self._report(WorkerEvent.READY, f"worker {worker.pid} is warm")
                await self._serve(worker)
            except FleetoptError as error:
                self._report(WorkerEvent.START_FAILED, str(error))
            finally:
                self.ready -= warm
                worker.kill()
            await loop.run_in_executor(self._threads, worker.join)
            self._workers.discard(worker)
            if not warm:
                await asyncio.sleep(self._retry_s)

    async def _await_warm_up(self, worker: _Worker) -> None:
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._start_limit_s, worker.expire)
        try:
            reply = await loop.run_in_executor(self._threads, worker.receive)
        except Exception as error:
            raise WorkerDiedError(f"worker {worker.pid} ended while it started ({error!r})") from error
        finally:
            alarm.cancel()
        reply.unwrap()

    async def _serve(self, worker: _Worker) -> None:
        """Hand jobs to a warm worker until it is gone."""
        while not worker.expired:
            job = await self._next_job(worker)
            if job is None:
                self._report(WorkerEvent.DIED, f"worker {worker.pid} ended while idle")
                return
            if job.result.done():
                continue
            job.started = True
            try:
                await self._carry_out(worker, job)
            except asyncio.CancelledError:
                job.fail(WorkerDiedError("the service stopped during this request"))
                raise
            except WorkerError as error:
                event = WorkerEvent.DEADLINE if isinstance(error, DeadlineError) else WorkerEvent.DIED
                self._report(event, str(error))
                job.fail(error)
                return

    async def _next_job(self, worker: _Worker) -> _Job | None:
        """Return the next job; None when the idle worker ended first."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(worker.sentinel, ended.set)
        next_job = asyncio.ensure_future(self._jobs.get())
        worker_ends = asyncio.ensure_future(ended.wait())
        try:
            await asyncio.wait({next_job, worker_ends}, return_when=asyncio.FIRST_COMPLETED)
            return next_job.result() if next_job.done() else None
        finally:
            loop.remove_reader(worker.sentinel)
            next_job.cancel()
            worker_ends.cancel()

    async def _carry_out(self, worker: _Worker, job: _Job) -> None:
        """Let the worker do the job and settle the job's result; raise when the worker is lost."""
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(job.deadline_s, worker.expire)
        try:
            reply = await loop.run_in_executor(self._threads, worker.exchange, job.function, job.args)
        except Exception as error:
            # Whatever goes wrong between two processes ends with a new worker.
            await loop.run_in_executor(self._threads, worker.join)
            if worker.expired:
                text = f"the request ran into its hard deadline of {job.deadline_s:g} s and was stopped"
                raise DeadlineError(text) from error
            raise WorkerDiedError(f"the worker process ended during the request ({worker.ending})") from error
        finally:
            alarm.cancel()
        job.settle(reply)


@dataclass(eq=False)
class _Job:
    """A call on its way through the pool; `result` is done when nobody waits for it any more."""

    function: Callable[..., Any]
    args: tuple[object, ...]
    deadline_s: float
    result: asyncio.Future[Any]
    started: bool = False

    def give_up(self, waited_s: float) -> None:
        if not self.started:
            self.fail(BusyError(f"no worker came free within {waited_s:g} s"))

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)

    def settle(self, reply: _Reply) -> None:
        try:
            value = reply.unwrap()
        except FleetoptError as error:
            self.fail(error)
        else:
            if not self.result.done():
                self.result.set_result(value)


class _Ending(Enum):
    VALUE = 1
    RAISED = 2
    CRASHED = 3


@dataclass(frozen=True)
class _Reply:
    """What a worker sends back: a value, the FleetoptError raised, or (summary, traceback) of a crash."""

    ending: _Ending
    value: Any

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple[object, ...]) -> _Reply:
        try:
            return cls(_Ending.VALUE, function(*args))
        except FleetoptError as error:
            return cls(_Ending.RAISED, error)
        except Exception as error:
            return cls(_Ending.CRASHED, (f"{type(error).__name__}: {error}", traceback.format_exc()))

    def unwrap(self) -> Any:
        if self.ending is _Ending.RAISED:
            raise self.value
        if self.ending is _Ending.CRASHED:
            raise CrashError(*self.value)
        return self.value


class _Worker:
    """One worker process as its parent sees it."""

    def __init__(self, warm_up: Callable[[], object]) -> None:
        # "spawn": forking a process that has threads copies locks that nobody will release.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, warm_up), name="fleetopt-worker", daemon=True
        )
        self._process.start()
        theirs.close()
        self.expired = False
        self._joined = False

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the process ends."""
        return self._process.sentinel

    @property
    def ending(self) -> str:
        """How the process ended, as a phrase."""
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"

    def receive(self) -> _Reply:
        reply: _Reply = self._connection.recv()
        return reply

    def exchange(self, function: Callable[..., Any], args: tuple[object, ...]) -> _Reply:
        self._connection.send((function, args))
        return self.receive()

    def expire(self) -> None:
        self.expired = True
        self.kill()

    def kill(self) -> None:
        """End the process and what it started (a Pyomo solver is a process of its own)."""
        if self._joined:
            return  # its number may be another process's by now
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def join(self) -> None:
        """Wait for the end of the process, and see to it that it comes."""
        # A process that ends closes its pipe first; its exit code says why it ends, if it is left to.
        multiprocessing.connection.wait([self.sentinel], _PATIENCE_S)
        self.kill()
        self._process.join()
        self._joined = True
        self._connection.close()


def _work(connection: Connection, warm_up: Callable[[], object]) -> None:
    """Run in a worker: warm up, then answer calls until the parent closes the pipe."""
    # A group of its own: Ctrl-C in a terminal reaches the service alone, which then stops in order.
    os.setpgrp()
    connection.send(_Reply.of(warm_up, ()))
    with suppress(EOFError):
        while True:
            function, args = connection.recv()
            connection.send(_Reply.of(function, args))
