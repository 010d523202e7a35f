"""The service as a process of its own: start, logs, signals, exit code."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from service_tools import is_alive, is_ready, metric, wait_until

from solver.app import listen

HERE = Path(__file__).parent
FLEETOPT = [str(Path(sys.executable).with_name("fleetopt")), "serve", "--port", "0", "--workers", "1"]


def acting(stop_s: int) -> list[str]:
    """Command of a service whose worker does what the body says; running requests have `stop_s` to finish."""
    code = (
        "from service_tools import ACTING, Settings; from solver.app import serve;"
        f"serve(Settings(port=0, workers=1, stop_s={stop_s}), ACTING)"
    )
    return [sys.executable, "-c", code]


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def worker_pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"worker (\d+) is warm", self.log.read_text())]


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[Served]:
    log = folder / "log"
    with log.open("wb") as stderr:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))}
        process = subprocess.Popen(command, stderr=stderr, env=environ)
    try:
        pattern = re.compile(r"http://127\.0\.0\.1:\d+")
        wait_until(lambda: pattern.search(log.read_text()) is not None)
        found = pattern.search(log.read_text())
        assert found
        with httpx.Client(base_url=found[0], timeout=60.0, trust_env=False) as client:
            wait_until(lambda: is_ready(client))
            yield Served(process, client, log)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(tmp_path: Path, sample: bytes, number: signal.Signals):
    with serving(FLEETOPT, tmp_path) as served:
        assert served.client.post("/optimize", content=sample).status_code == 200
        served.process.send_signal(number)
        assert served.process.wait(30) == 0
        lines = served.lines()
        assert all({"ts", "level", "logger", "message"} <= set(line) for line in lines)
        (request,) = [line for line in lines if line.get("path") == "/optimize"]
        assert request["status"] == 200
        (worker,) = served.worker_pids()
        assert not is_alive(worker)


def test_running_requests_finish_after_sigterm(tmp_path: Path):
    gate = tmp_path / "gate"
    with serving(acting(stop_s=60), tmp_path) as served, ThreadPoolExecutor(1) as threads:
        reply = threads.submit(served.client.post, "/optimize", content=f"wait {gate}")
        wait_until(lambda: metric(served.client, "fleetopt_requests_in_flight") == 1)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in served.log.read_text())
        with pytest.raises(httpx.ConnectError):
            httpx.get(served.client.base_url)
        gate.touch()
        assert reply.result().status_code == 200
        assert served.process.wait(30) == 0


def test_a_request_that_outlasts_the_time_to_stop_is_cut_off(tmp_path: Path):
    with serving(acting(stop_s=1), tmp_path) as served, ThreadPoolExecutor(1) as threads:
        call = threads.submit(served.client.post, "/optimize", content="sleep 300")
        wait_until(lambda: metric(served.client, "fleetopt_requests_in_flight") == 1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        assert call.result().status_code == 503
        assert "stopping" in call.result().json()["error"]
        (worker,) = served.worker_pids()
        assert not is_alive(worker)


def test_workers_end_when_the_service_is_killed(tmp_path: Path):
    with serving(acting(stop_s=60), tmp_path) as served:
        (worker,) = served.worker_pids()
        served.process.kill()
        served.process.wait()
        wait_until(lambda: not is_alive(worker))


def test_a_taken_port_is_an_error_that_says_so(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = subprocess.run([*FLEETOPT, "--port", port], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Address already in use" in ended.stderr


def test_answers_are_not_held_back_by_nagles_algorithm():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_a_backend_that_is_none_is_an_error_at_the_start():
    ended = subprocess.run([*FLEETOPT, "--backend", "gurobi"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "one of highs" in ended.stderr


def test_a_wrong_setting_is_an_error_that_names_it():
    environ = {**os.environ, "FLEETOPT_MAX_WAITING": "many"}
    ended = subprocess.run(FLEETOPT, capture_output=True, text=True, env=environ, timeout=60)
    assert ended.returncode == 2
    assert "FLEETOPT_MAX_WAITING" in ended.stderr
    assert "Traceback" not in ended.stderr
