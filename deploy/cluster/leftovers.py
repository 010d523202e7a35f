"""Which processes a demo is made of, so that its end can be asked for from elsewhere.

The demo writes its own id and start time to a file: an id that was given to another process since is not it.
Its children carry a variable in their environment, so they are found even where the demo itself was killed.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from processes import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable

_VARIABLE = "FLEETOPT_CLUSTER_RUN"


def run_folder() -> Path:
    """Return where a demo keeps its keys, data and logs."""
    return cache_folder() / "run"


def mark(folder: Path) -> None:
    """Say that this process and those that it starts from now on are the demo of a folder."""
    (folder / "pid").write_text(f"{os.getpid()} {_started(os.getpid())}")
    os.environ[_VARIABLE] = str(folder)


def running(folder: Path) -> int | None:
    """Return the id of the demo's main process; None: it has ended, whatever the file says."""
    try:
        pid, started = (int(word) for word in (folder / "pid").read_text().split())
    except (OSError, ValueError):
        return None
    return pid if _started(pid) == started else None


def children(folder: Path) -> list[int]:
    """Return the ids of the processes that a demo of a folder has started and that are there still."""
    entry = f"{_VARIABLE}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if entry in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            # It has ended meanwhile, or belongs to somebody else.
            continue
    return sorted(set(found) - {os.getpid()})


def end(folder: Path, limit_s: float = 60.0) -> int:
    """End the demo of a folder and what it may have left; return how many processes were there.

    The main process is asked first: it ends the others in order.
    """
    main, its = running(folder), children(folder)
    if main is not None:
        _send(main, signal.SIGTERM)
        _wait(lambda: running(folder) is None, limit_s)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in children(folder):
            _send(pid, number)
        _wait(lambda: not children(folder), 10.0)
    (folder / "pid").unlink(missing_ok=True)
    return len({*its, main} - {None})


def _started(pid: int) -> int | None:
    """Start time of a process in ticks since boot; None: there is none, or only its entry is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may have spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else int(fields[19])


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It has ended by itself.
        return


def _wait(condition: Callable[[], bool], limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.1)
