"""A real Prometheus on loopback, with history written beforehand or scraped from a server of the test."""

import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")

needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL),
    reason="needs prometheus and promtool, such as those of Debian's prometheus",
)

Sample = tuple[str, float, float]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def prometheus(
    folder: Path,
    *,
    history: list[Sample] | None = None,
    target: str = "",
    interval: str = "1s",
    web: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Run a Prometheus and give its base URL.

    Parameters
    ----------
    folder : Path
        Empty; it keeps its files there.
    history : list of (series, Unix time, value)
        What it knows from the start.
    target : str
        ``host:port`` that it scrapes every `interval`.
    web : dict
        Its web configuration, such as certificates; the URL is https then.
    """
    assert PROMETHEUS
    assert PROMTOOL
    data = folder / "data"
    if history is not None:
        lines = [f"{series} {value} {at_s:.3f}" for series, at_s, value in sorted(history)]
        text = folder / "history.om"
        text.write_text("\n".join([*lines, "# EOF\n"]))
        command = [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", str(text), str(data)]
        subprocess.run(command, check=True, capture_output=True)
    scrape = [{"job_name": "vllm", "scrape_interval": interval, "static_configs": [{"targets": [target]}]}]
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": scrape if target else []}))
    port = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    if web is not None:
        (folder / "web.yml").write_text(json.dumps(web))
        command.append(f"--web.config.file={folder / 'web.yml'}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: b"Server is ready" in (folder / "log").read_bytes())
        yield f"{'http' if web is None else 'https'}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def answering(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Run a server that answers every request with `answer`, and give its base URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(
    handler: http.server.BaseHTTPRequestHandler, status: int, body: str, kind: str = "text/plain"
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body.encode())))
    handler.end_headers()
    handler.wfile.write(body.encode())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as answer:
        return str(answer.read().decode())


def wait_until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for something that must happen."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        try:
            if condition():
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.05)
    pytest.fail(f"it did not happen within {limit_s:g} s")
