"""Trials in processes of their own, as many at once as there are cores.

A trial is pure Python, so threads would take turns. The processes are plain children that speak pickle over
their pipes: a worker of the service may not start processes of `multiprocessing`, and a caller's main module
is not to be imported again. They end with the `with` block, and with this process, whose death closes their
input.

::

    Simulators.run([task]) -> threads, one a child -> pickle -> child: models.trial -> pickle -> [Finding]
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

from models.trial import LEAST_SHARE, Service, Trial, Verdict, hold, largest_rate
from solver.errors import SolverError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# As many as the service has workers by default; a container may see far more cores than it may use.
MOST_PROCESSES = 4

# A finding takes about 2 kB.
MOST_FINDINGS = 10_000


@dataclass(frozen=True)
class Task:
    """A replica and the rate at which it is to hold."""

    service: Service
    rate_rps: float


@dataclass(frozen=True)
class Finding:
    """What came out of a task.

    Attributes
    ----------
    trial : Trial
    largest_rps : float or None
        Where the trial missed, the largest rate that holds; None where it did not, or in want of time.
    lowest : Trial or None
        Where no rate holds, what was found at the lowest one.
    """

    trial: Trial
    largest_rps: float | None = None
    lowest: Trial | None = None

    @property
    def complete(self) -> bool:
        """Whether more time would find no more."""
        missed = self.trial.verdict is Verdict.MISSED
        return self.trial.verdict is not Verdict.OPEN and missed == (self.largest_rps is not None)


def carry_out(task: Task, limit_s: float) -> Finding | None:
    """Try, and search the largest rate where the trial misses; None where there is no time.

    When `limit_s` seconds have passed no run of the simulator begins any more.
    """
    if limit_s <= 0:
        return None
    deadline_s = time.monotonic() + limit_s
    trial = hold(task.service, task.rate_rps, deadline_s)
    if trial.verdict is not Verdict.MISSED:
        return Finding(trial)
    largest_rps = largest_rate(task.service, trial, deadline_s)
    if largest_rps != 0.0:
        return Finding(trial, largest_rps)
    return Finding(trial, largest_rps, hold(task.service, LEAST_SHARE * task.rate_rps, deadline_s))


class Simulators:
    """Child processes that carry out tasks; a context manager. They start with the first tasks.

    Parameters
    ----------
    processes : int or None
        Most children; None: one for each core, to `MOST_PROCESSES`.
    """

    def __init__(self, processes: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._most = processes or min(cores, MOST_PROCESSES)
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Simulators:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the children."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.communicate()

    def run(self, tasks: Sequence[Task], limit_s: float) -> list[Finding | None]:
        """Carry out tasks, and return what came out in their order.

        Parameters
        ----------
        tasks : sequence of Task
        limit_s : float
            After so many seconds no run of the simulator begins; the findings still missing are None.

        Raises
        ------
        SolverError
            If a child ended.
        """
        end_s = time.monotonic() + limit_s
        count = min(self._most, len(tasks))
        if count <= 1:
            return [carry_out(task, end_s - time.monotonic()) for task in tasks]
        while len(self._children) < count:
            self._children.append(_start())
        free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for child in self._children[:count]:
            free.put(child)

        def ask(task: Task) -> Finding | None:
            if time.monotonic() >= end_s:
                return None
            child = free.get()
            try:
                return _exchange(child, task, end_s - time.monotonic())
            finally:
                free.put(child)

        with ThreadPoolExecutor(count, thread_name_prefix="fleetopt-trial") as threads:
            return list(threads.map(ask, tasks))


class Findings:
    """What was simulated, remembered by all that it depends on.

    When `most` are remembered the older half is forgotten.
    """

    def __init__(self, most: int = MOST_FINDINGS) -> None:
        self._most = most
        self._known: dict[Task, Finding] = {}

    def of(self, tasks: Sequence[Task], simulators: Simulators, limit_s: float) -> list[Finding | None]:
        """Return what comes out of tasks; None where there was no time."""
        known = {task: self._known[task] for task in tasks if task in self._known}
        new = list(dict.fromkeys(task for task in tasks if task not in known))
        for task, finding in zip(new, simulators.run(new, limit_s), strict=True):
            if finding is None:
                continue
            known[task] = finding
            if finding.complete:
                self._known[task] = finding
        if len(self._known) > self._most:
            for task in list(islice(self._known, len(self._known) - self._most // 2)):
                del self._known[task]
        return [known.get(task) for task in tasks]


def _start() -> subprocess.Popen[bytes]:
    # The child finds the packages where this process found them, and nothing in the working directory.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-c", "from solver.simulators import work; work()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _exchange(child: subprocess.Popen[bytes], task: Task, limit_s: float) -> Finding | None:
    try:
        _send(child.stdin, (task, limit_s))
        finding: Finding | None = pickle.load(_there(child.stdout))
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise SolverError(f"a process that simulates ended with exit code {child.poll()}") from error
    return finding


def _send(stream: IO[bytes] | None, message: object) -> None:
    pipe = _there(stream)
    pickle.dump(message, pipe)
    pipe.flush()


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("a pipe is needed")
    return stream


def work() -> None:
    """Carry out in a child the tasks that come in, until the input ends."""
    # Ctrl-C in a terminal reaches the whole group; the parent ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            message: Any = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, carry_out(*message))
