"""What the tests of the service share."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import service_workloads as workloads
import uvicorn

from solver.app import REAL_WORK, Work, create_app, listen
from solver.settings import Settings

# A service whose answers are what the body of the request tells the worker to do.
ACTING = Work(workloads.nothing, workloads.act, workloads.nothing, workloads.nothing)


@contextmanager
def running(settings: Settings, work: Work = REAL_WORK) -> Iterator[httpx.Client]:
    """A service in a thread, on a port of its own, and a client for it."""
    listener = listen(settings.host, 0)
    config = uvicorn.Config(
        create_app(settings, work), log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
            wait_until(lambda: is_ready(client))
            yield client
    finally:
        server.should_exit = True
        thread.join()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; half a minute without it is a failure."""
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it did not happen within 30 s")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def metric(client: httpx.Client, line: str) -> float:
    """Value of the line of ``/metrics`` that begins with `line`; 0 when there is none."""
    text = client.get("/metrics").text
    return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line)), 0.0)


def problems(reply: httpx.Response) -> dict[str, str]:
    """The problems of an error answer: path to what is expected."""
    body: dict[str, Any] = json.loads(reply.text)
    assert set(body) == {"error", "problems"}
    assert body["error"]
    assert all(set(problem) == {"path", "value", "expected"} for problem in body["problems"])
    return {problem["path"]: problem["expected"] for problem in body["problems"]}
