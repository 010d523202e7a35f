"""Whether the process is ready, and whether it still lives."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Longest that one pass may take. Each of its requests has a time-out of seconds, so a pass beyond this hangs,
# or meets nothing but time-outs; a new process is the cure of the one and no harm in the other.
PASS_LIMIT_S = 900.0


class Health:
    """What the probes are told. All of it may come from other threads.

    Parameters
    ----------
    clock : callable
        Seconds on a clock that does not jump.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready = threading.Event()
        self._due_s: float | None = None
        self._failure = ""

    def become_ready(self) -> None:
        """Say that everything is set up that does not need the lead."""
        self._ready.set()

    def promise(self, within_s: float) -> None:
        """Promise to be here again within so many seconds: another promise, or it is a failure."""
        self._due_s = self._clock() + within_s

    def fail(self, reason: str) -> None:
        """Say that the loop has ended and will not come back."""
        self._failure = reason

    @property
    def ready(self) -> bool:
        """Whether the set-up is over."""
        return self._ready.is_set()

    @property
    def failure(self) -> str:
        """Why the process does no more work; empty while it does, however long a pass takes within its limit.

        A process that has promised nothing yet, such as one that waits for the lead, is alive.
        """
        due_s = self._due_s
        if not self._failure and due_s is not None and self._clock() > due_s:
            return f"the loop is overdue by {self._clock() - due_s:.0f} s"
        return self._failure
