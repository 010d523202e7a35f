"""What the controller serves: metrics and wake-ups on one address, health on another.

=================  ====================================================================================
``GET /metrics``   what autoscalers and dashboards read
``POST /wake``     ``?namespace=N&model=M``: a request waits for a model without replicas
``GET /healthz``   200 while the loop lives, however long a pass takes; 503 once it is dead or far overdue
``GET /readyz``    200 once the cluster and the resource were seen, leader or not; else 503
=================  ====================================================================================
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from prometheus_client.registry import CollectorRegistry

    from controller.health import Health

LOGGER = logging.getLogger("fleetopt.controller")

# Longest that a client may take to send a request, TLS handshake included.
_CLIENT_LIMIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """A status code, a body and its content type, and further headers."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


# From a query to the answer, by method and path.
Routes = Mapping[tuple[str, str], Callable[[Mapping[str, list[str]]], Answer]]
# From the header ``Authorization``, a method and a path to the refusal; None: it is allowed.
Gate = Callable[[str, str, str], Answer | None]


class Signals:
    """What happens between passes: wake-ups, changes, the end. All of it may come from other threads."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._woken: set[tuple[str, str]] = set()
        self.stop = threading.Event()

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


def metric_routes(registry: CollectorRegistry, signals: Signals) -> Routes:
    """Return what is served to autoscalers and gateways."""

    def wake(query: Mapping[str, list[str]]) -> Answer:
        if not (query.get("namespace") and query.get("model")):
            return Answer(400, b"namespace and model are needed\n")
        signals.wake(query["namespace"][0], query["model"][0])
        return Answer(202, b"ok\n")

    return {
        ("GET", "/metrics"): lambda _: Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST),
        ("POST", "/wake"): wake,
    }


def probe_routes(health: Health) -> Routes:
    """Return what is served to the kubelet."""

    def alive(_: Mapping[str, list[str]]) -> Answer:
        failure = health.failure
        return Answer(503, f"{failure}\n".encode()) if failure else Answer(200, b"ok\n")

    def ready(_: Mapping[str, list[str]]) -> Answer:
        return Answer(200, b"ok\n") if health.ready else Answer(503, b"the cluster was not seen yet\n")

    return {("GET", "/healthz"): alive, ("GET", "/readyz"): ready}


@contextmanager
def serving(
    at: tuple[str, int],
    routes: Routes,
    *,
    context: Callable[[], ssl.SSLContext] | None = None,
    gate: Gate | None = None,
) -> Iterator[int]:
    """Serve in threads of their own, and give the port.

    Parameters
    ----------
    at : (str, int)
        Host and port; an empty host is every address of IPv4 and IPv6, port 0 any free one.
    routes : mapping
    context : callable, optional
        The TLS context of the next connection; without, plain HTTP.
    gate : callable, optional
        Who may have an answer; without, everybody.

    Raises
    ------
    OSError
        When nothing can listen there.
    """
    server = _Server(_listener(at), _handler(routes, gate), context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listener(at: tuple[str, int]) -> socket.socket:
    host, port = at
    if host:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server(at, family=family)
    try:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except (OSError, ValueError):
        # A machine without IPv6.
        return socket.create_server(at)


class _Server(ThreadingHTTPServer):
    """Answers on a socket that listens already, each connection in a thread, over TLS with a context."""

    daemon_threads = True

    def __init__(
        self,
        listener: socket.socket,
        handler: type[BaseHTTPRequestHandler],
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_port = listener.getsockname()[1]
        self._context = context

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake is left to its thread, where a slow client holds up nobody."""
        connection, client = super().get_request()
        if self._context is None:
            return connection, client
        secure = self._context().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return secure, client

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that break off or speak no TLS are no news."""
        LOGGER.debug("a request from %s failed", client_address, exc_info=True)


def _handler(routes: Routes, gate: Gate | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_LIMIT_S

        def do_GET(self) -> None:
            self._reply(self._answer())

        def do_POST(self) -> None:
            self._reply(self._answer())

        def _answer(self) -> Answer:
            url = urlsplit(self.path)
            route = routes.get((self.command, url.path))
            if route is None:
                return Answer(404, b"not found\n")
            if gate is not None:
                refusal = gate(self.headers.get("Authorization", ""), self.command, url.path)
                if refusal is not None:
                    return refusal
            try:
                return route(parse_qs(url.query))
            except Exception:
                LOGGER.exception("%s %s failed", self.command, url.path)
                return Answer(500, b"a defect; the log says more\n")

        def _reply(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes and scrapes are no news."""

    return Handler
