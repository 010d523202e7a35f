"""What the controller serves: metrics, health and wake-ups.

======================  =====================================================================
``GET /metrics``        what autoscalers and dashboards read
``GET /healthz``        200 while the process runs, however long a pass takes
``GET /readyz``         200 once the cluster and the resource were seen, leader or not; else 503
``POST /wake``          ``?namespace=N&model=M``: a request waits for a model without replicas
======================  =====================================================================
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.registry import CollectorRegistry


class Signals:
    """What happens between passes: wake-ups, changes, the end. All of it may come from other threads."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._woken: set[tuple[str, str]] = set()
        self.stop = threading.Event()
        self.ready = threading.Event()

    def change(self) -> None:
        """Say that the next pass should not wait."""
        self._changed.set()

    def wake(self, namespace: str, model: str) -> None:
        """Ask for a replica of a model that has none."""
        with self._lock:
            self._woken.add((namespace, model))
        self.change()

    def end(self) -> None:
        """Say that no more passes are wanted."""
        self.stop.set()
        self.change()

    def take_woken(self) -> frozenset[tuple[str, str]]:
        """Return the wake-ups since the last call."""
        with self._lock:
            woken = frozenset(self._woken)
            self._woken.clear()
        return woken

    def keep_woken(self, woken: frozenset[tuple[str, str]]) -> None:
        """Put back wake-ups of a pass that failed, for the next one."""
        with self._lock:
            self._woken |= woken

    def wait(self, seconds: float, settle_s: float = 1.0) -> bool:
        """Wait for the time or a change, let further changes settle, and return whether it is over.

        Parameters
        ----------
        seconds : float
        settle_s : float
            Changes come in bunches: one pass answers those of this time together.
        """
        if self._changed.wait(seconds) and not self.stop.is_set():
            self.stop.wait(settle_s)
        self._changed.clear()
        return self.stop.is_set()


def address(text: str) -> tuple[str, int] | None:
    """Read an address such as ``:8080`` or ``127.0.0.1:8080``; ``0`` is none.

    Raises
    ------
    ValueError
        When it is neither.
    """
    if text == "0":
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"{text!r} is no address such as :8080")
    return host.strip("[]"), int(port)


@contextmanager
def serving(at: tuple[str, int], registry: CollectorRegistry, signals: Signals) -> Iterator[int]:
    """Serve in threads of their own, and give the port.

    Parameters
    ----------
    at : (str, int)
        Host and port; an empty host is every address, port 0 any free one.
    registry : CollectorRegistry
    signals : Signals
    """
    server = ThreadingHTTPServer(at, _handler(registry, signals))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(registry: CollectorRegistry, signals: Signals) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                self._answer(200, b"ok\n")
            elif path == "/readyz":
                ready = signals.ready.is_set()
                self._answer(200 if ready else 503, b"ok\n" if ready else b"the cluster was not seen yet\n")
            else:
                self._answer(404, b"not found\n")

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if url.path != "/wake":
                self._answer(404, b"not found\n")
            elif not (query.get("namespace") and query.get("model")):
                self._answer(400, b"namespace and model are needed\n")
            else:
                signals.wake(query["namespace"][0], query["model"][0])
                self._answer(202, b"ok\n")

        def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes and scrapes are no news."""

    return Handler
