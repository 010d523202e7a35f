"""Time of `POST /optimize` for the inferno-large samples, against a real service on loopback.

    python benchmarks/latency.py [--requests 200] [--workers 1]

Starts `fleetopt serve` on a free port, warms it up, posts each sample in turn over one connection, and
prints the median, the 95th percentile and the stages of the median request. Requests follow each other: the
figure is latency, not throughput.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "inferno_sample"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service did not become ready")


def post(connection: http.client.HTTPConnection, body: bytes) -> tuple[float, dict[str, float]]:
    start = time.perf_counter()
    connection.request("POST", "/optimize", body)
    response = connection.getresponse()
    answer = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
        raise SystemExit(f"HTTP {response.status}: {answer.decode()[:500]}")
    return seconds, json.loads(answer)["report"]["seconds"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--workers", type=int, default=1)
    options = arguments.parse_args()
    port = free_port()
    service = subprocess.Popen(
        [
            Path(sys.executable).with_name("fleetopt"),
            "serve",
            "--port",
            str(port),
            "--workers",
            str(options.workers),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(port)
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        packages = f"highspy {version('highspy')}, numpy {version('numpy')}"
        print(
            f"{machine}, Python {platform.python_version()}, {packages}; {options.requests} requests a sample"
        )
        print("sample       median ms  p95 ms  stages of the median request, ms")
        for name in ("law1-large", "law2-large", "law3-large"):
            body = (SAMPLES / f"{name}.system.json").read_bytes()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            for _ in range(20):
                post(connection, body)
            taken = sorted((post(connection, body) for _ in range(options.requests)), key=lambda t: t[0])
            seconds = [t[0] for t in taken]
            p95 = statistics.quantiles(seconds, n=20)[-1]
            stages = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in taken[len(taken) // 2][1].items())
            print(f"{name:12} {1e3 * statistics.median(seconds):9.1f} {1e3 * p95:7.1f}  {stages}")
    finally:
        service.terminate()
        service.wait(60)


if __name__ == "__main__":
    main()
