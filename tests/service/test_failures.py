"""What the service does when workers die, hang, crash, or are all taken."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from service_tools import ACTING, is_alive, is_ready, metric, problems, running, wait_until

from solver.settings import Settings

SETTINGS = Settings(
    workers=1, max_waiting=1, time_limit_s=20, max_time_limit_s=20, grace_s=0.5, max_body_mib=0.1
)


@pytest.fixture(scope="module")
def acting() -> Iterator[httpx.Client]:
    """A service with one worker, which does what the body of the request says."""
    with running(SETTINGS, ACTING) as client:
        yield client


def do(client: httpx.Client, what: str, **query: float) -> httpx.Response:
    return client.post("/optimize", params=query, content=what)


def pid(client: httpx.Client) -> int:
    return do(client, "answer").json()["pid"]


def in_flight(client: httpx.Client) -> float:
    return metric(client, "fleetopt_requests_in_flight")


def test_a_worker_killed_during_a_request_costs_that_request_alone(acting: httpx.Client):
    line = 'fleetopt_workers_lost_total{reason="died"}'
    before, lost = pid(acting), metric(acting, line)
    reply = do(acting, "die")
    assert reply.status_code == 500
    assert "SIGKILL" in reply.json()["error"]
    assert problems(reply) == {}
    assert pid(acting) != before
    wait_until(lambda: metric(acting, line) == lost + 1)


def test_a_solve_beyond_its_deadline_is_stopped_and_says_what_to_do(acting: httpx.Client):
    line = 'fleetopt_workers_lost_total{reason="deadline"}'
    before, lost = pid(acting), metric(acting, line)
    reply = do(acting, "sleep 300", time_limit=0.1)
    assert reply.status_code == 503
    assert "0.6 s" in reply.json()["error"]
    assert "greedy" in reply.json()["error"]
    assert pid(acting) != before
    wait_until(lambda: metric(acting, line) == lost + 1)


def test_a_crash_is_a_500_whose_trace_is_in_the_log_only(
    acting: httpx.Client, caplog: pytest.LogCaptureFixture
):
    before = pid(acting)
    with caplog.at_level("INFO", "fleetopt"):
        reply = do(acting, "divide")
        # The line is written after the answer is sent; lines about other requests may come between.
        wait_until(lambda: any("trace" in getattr(r, "fields", {}) for r in caplog.records))
    assert reply.status_code == 500
    assert "Traceback" not in reply.text
    (record,) = [r for r in caplog.records if "trace" in getattr(r, "fields", {})]
    assert "1 / 0" in record.fields["trace"]
    assert record.levelname == "ERROR"
    assert pid(acting) == before


@pytest.mark.parametrize(
    ("name", "status"), [("input", 422), ("missing", 503), ("no-answer", 503), ("check", 500)]
)
def test_every_error_has_its_status(acting: httpx.Client, name: str, status: int):
    reply = do(acting, f"raise {name}")
    assert reply.status_code == status
    assert problems(reply) == ({"$.system": "an object"} if name == "input" else {})


def test_a_defect_in_the_service_itself_is_a_500_too(acting: httpx.Client):
    reply = do(acting, "nonsense")
    assert reply.status_code == 500
    assert reply.headers["x-request-id"] in reply.json()["error"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_is_refused(acting: httpx.Client, chunked: bool):
    size = int(0.15 * 2**20)
    body = (b"x" * 1000 for _ in range(size // 1000)) if chunked else b"x" * size
    reply = acting.post("/optimize", content=body)
    assert reply.status_code == 413
    assert "0.1 MiB" in reply.json()["error"]


def test_a_body_of_the_largest_size_is_taken(acting: httpx.Client):
    body = b"answer".ljust(int(0.1 * 2**20))
    assert acting.post("/optimize", content=body).status_code == 200


@contextmanager
def busy(client: httpx.Client, gate: Path) -> Iterator[ThreadPoolExecutor]:
    """Keep the only worker at work until the end of the block; gives threads for more clients."""
    with ThreadPoolExecutor(4) as threads:
        request = threads.submit(do, client, f"wait {gate}")
        try:
            wait_until(lambda: in_flight(client) == 1)
            yield threads
        finally:
            gate.touch()
        assert request.result().status_code == 200


def test_a_request_too_many_is_told_to_come_back(acting: httpx.Client, tmp_path: Path):
    with busy(acting, tmp_path / "gate") as threads:
        waiting = threads.submit(do, acting, "answer")
        wait_until(lambda: in_flight(acting) == 2)
        refused = do(acting, "answer")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert problems(refused) == {}
    assert waiting.result().status_code == 200


def test_a_client_that_leaves_while_it_waits_is_not_worked_for(acting: httpx.Client, tmp_path: Path):
    flag = tmp_path / "ran"
    with busy(acting, tmp_path / "gate"):
        with pytest.raises(httpx.ReadTimeout):
            acting.post("/optimize", content=f"touch {flag}", timeout=0.5)
        wait_until(lambda: in_flight(acting) == 1)
    assert do(acting, "answer").status_code == 200
    assert not flag.exists()


def test_the_service_is_alive_while_all_workers_are_taken(acting: httpx.Client, tmp_path: Path):
    with busy(acting, tmp_path / "gate"):
        assert acting.get("/healthz").status_code == 200
        assert is_ready(acting)


def test_many_clients_at_once_all_get_their_own_answer():
    settings = Settings(workers=2, max_waiting=64)
    with running(settings, ACTING) as client, ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda i: do(client, f"raise {'input' if i % 2 else 'check'}"), range(64)))
    assert [reply.status_code for reply in replies] == [500, 422] * 32


def test_nothing_is_left_running_after_the_service():
    before = threading.active_count()
    with running(Settings(workers=1), ACTING) as client:
        worker = pid(client)
    assert not is_alive(worker)
    wait_until(lambda: threading.active_count() <= before)
