"""The HTTP service: reads requests, has them solved in worker processes, answers and says what it did.

::

    request -> read_body -> WorkerPool.run -> optimize_json in a worker -> bytes -> answer
               413          503 busy, 503 deadline, 500 worker died     422, 500, 503

docs/http.md is the contract: endpoints, options, codes, limits, metrics, log fields.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from solver import backends, schema
from solver.analyze import analyze_json, size_json
from solver.curves import Curves
from solver.edge import (
    BodyTooLargeError,
    ClientLeftError,
    Observer,
    answer_error,
    read_body,
    unless_client_leaves,
)
from solver.errors import FleetoptError, InputError, Problem
from solver.example import example_body, example_system
from solver.method import Method
from solver.optimize import Answered, Defaults, RequestOptions, optimize_json
from solver.starts import Answers
from solver.telemetry import LOGGER, Metrics, configure_logging
from solver.workers import WorkerEvent, WorkerPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from solver.settings import Settings

# Types of the request are apart from those of the answer, some of which have the same names.
_REQUEST_TYPE = "#/components/schemas/Input{model}"

_ERRORS = {
    413: "The body is larger than the service takes.",
    422: "The system or an option is wrong; `problems` says where.",
    500: "A defect, or a worker that died.",
    503: "Busy (`Retry-After`), no answer in time, or a backend that is not installed.",
}


@dataclass(frozen=True)
class Work:
    """The functions that run in worker processes; each must be picklable by reference.

    Attributes
    ----------
    warm_up : callable
        ``(backend)``: loads what requests need and solves something small; raises when it cannot.
    optimize : callable
        As `solver.optimize.optimize_json`.
    analyze, size : callable
        As in `solver.analyze`.
    """

    warm_up: Callable[[str], object]
    optimize: Callable[..., Answered]
    analyze: Callable[..., bytes]
    size: Callable[..., bytes]


def warm_up(backend: str) -> None:
    """Solve the example system with `backend`: what a worker does before its first request."""
    optimize_json(example_body(), RequestOptions(backend))


@cache
def _curves() -> Curves:
    """Return the sizings that this worker process remembers between requests."""
    return Curves()


@cache
def _answers() -> Answers:
    """Return the answers that this worker process remembers between requests."""
    return Answers()


def optimize_remembering(body: bytes, options: RequestOptions, defaults: Defaults) -> Answered:
    """As `optimize_json`, with the sizings and answers of this process's earlier requests."""
    return optimize_json(body, options, defaults, _curves(), _answers())


REAL_WORK = Work(warm_up, optimize_remembering, analyze_json, size_json)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    strict: bool = Field(False, description="Take an unknown key for an error instead of a warning.")


class OptimizeQuery(_Options):
    """Query options of ``/optimize``; they win over the document's ``optimizerData``."""

    backend: str | None = Field(None, description="Solver; see `/backends`.")
    time_limit: float | None = Field(None, gt=0, allow_inf_nan=False, description="Seconds for the solver.")
    gap: float | None = Field(None, ge=0, allow_inf_nan=False, description="Relative gap to stop at.")
    method: Method = Field(Method.AUTO, description="How to solve: auto, direct or decompose.")
    explain: bool = Field(True, description="Say for each server why not the other accelerators.")
    verify: Literal["simulation"] | None = Field(None, description="How to verify the answer: simulation.")


class SizeQuery(_Options):
    """Query options of ``/size``."""

    server: str | None = Field(None, description="Only this server.")
    accelerator: str | None = Field(None, description="Only this accelerator.")


class AnalyzeQuery(SizeQuery):
    """Query options of ``/analyze``."""

    rate: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Requests/min at a replica; absent: the server's load over the replicas it needs.",
    )


_OPTIONS = {
    path: tuple(query.model_fields)
    for path, query in (
        ("/optimize", OptimizeQuery),
        ("/optimizeOne", OptimizeQuery),
        ("/analyze", AnalyzeQuery),
        ("/size", SizeQuery),
    )
}

PATHS = frozenset({*_OPTIONS, "/backends", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})


class _Service(FastAPI):
    """FastAPI, with the types of the request in its description: it does not see them, as bodies are raw."""

    def openapi(self) -> dict[str, Any]:
        """Return the description for ``/openapi.json``."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        request = schema.json_schema(schema.SystemRequest, ref_template=_REQUEST_TYPE)
        types = {**request.pop("$defs"), "SystemRequest": request}
        document["components"]["schemas"].update({f"Input{name}": part for name, part in types.items()})
        return document


def create_app(settings: Settings, work: Work = REAL_WORK) -> FastAPI:
    """Return the service as an ASGI application; its workers live from startup to shutdown.

    Parameters
    ----------
    settings : Settings
    work : Work
        What the workers run.
    """
    metrics = Metrics()
    pool = WorkerPool(
        settings.workers,
        warm_up=partial(work.warm_up, settings.backend),
        max_waiting=settings.max_waiting,
        report=partial(_report, metrics),
    )
    metrics.observe_pool(lambda: pool.pending, lambda: pool.ready)
    defaults = Defaults(settings.backend, settings.time_limit_s, settings.max_time_limit_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool.start()
        yield
        await pool.stop()

    app = _Service(
        title="fleetopt",
        version=version("fleetopt"),
        description="Which accelerator, how many replicas and what batch size for every model server.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(Observer, metrics=metrics, paths=PATHS)
    for error in (FleetoptError, RequestValidationError, HTTPException, BodyTooLargeError, ClientLeftError):
        app.add_exception_handler(error, partial(answer_error, _OPTIONS))
    errors = {code: {"model": schema.ErrorResponse, "description": text} for code, text in _ERRORS.items()}
    takes_a_system: dict[str, Any] = {
        "responses": errors,
        "openapi_extra": {"requestBody": _request_body()},
    }

    async def in_worker(request: Request, limit_s: float, function: Callable[..., Any], *args: object) -> Any:
        room = not pool.full
        body = await read_body(request, settings.max_body_bytes, keep=room)
        if not room:
            raise pool.busy()
        deadline_s, wait_s = limit_s + settings.grace_s, settings.time_limit_s
        return await unless_client_leaves(
            request, pool.run(function, body, *args, deadline_s=deadline_s, wait_s=wait_s)
        )

    @app.post("/optimize", response_model=schema.Response, **takes_a_system)
    @app.post("/optimizeOne", response_model=schema.Response, **takes_a_system)
    async def optimize(request: Request, query: Annotated[OptimizeQuery, Query()]) -> Response:
        """Decide accelerator, replicas and batch size of every server: all targets met at the least cost.

        Demand that the GPUs cannot serve is part of the answer (`report.unserved`), not an error.
        """
        most_s = settings.max_time_limit_s
        if query.time_limit is not None and query.time_limit > most_s:
            raise InputError([Problem("?time_limit", f"{query.time_limit:g}", f"at most {most_s:g} seconds")])
        options = RequestOptions(
            query.backend,
            query.time_limit,
            query.gap,
            query.strict,
            query.explain,
            query.method,
            query.verify,
        )
        # Without an option the document may name any limit up to the largest.
        answered = await in_worker(request, query.time_limit or most_s, work.optimize, options, defaults)
        metrics.observe_answer(answered.backend, answered.gap, answered.unserved, answered.seconds)
        metrics.observe_curves(answered.curve_hits, answered.curve_misses)
        metrics.observe_start(answered.led_by_start)
        request.state.facts.update(
            backend=answered.backend,
            termination=answered.termination,
            gap=answered.gap,
            unserved=answered.unserved,
            warnings=answered.warnings,
        )
        return Response(answered.body, media_type="application/json")

    @app.post("/analyze", response_model=schema.AnalyzeResponse, **takes_a_system)
    async def analyze(request: Request, query: Annotated[AnalyzeQuery, Query()]) -> Response:
        """Compute latencies and use of one replica of every candidate (server, accelerator, batch limit)."""
        function = partial(work.analyze, rate_rpm=query.rate, **_which(query))
        body = await in_worker(request, settings.time_limit_s, function)
        return Response(body, media_type="application/json")

    @app.post("/size", response_model=schema.AnalyzeResponse, **takes_a_system)
    async def size(request: Request, query: Annotated[SizeQuery, Query()]) -> Response:
        """As `/analyze`, each replica at the largest rate at which it meets its targets."""
        body = await in_worker(request, settings.time_limit_s, partial(work.size, **_which(query)))
        return Response(body, media_type="application/json")

    @app.get("/backends")
    def list_backends() -> list[dict[str, Any]]:
        """List the solvers, and which are installed."""
        return [asdict(info) for info in backends.listing()]

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the service runs."""
        return {"status": "ok", "version": app.version}

    @app.get("/readyz", responses={503: {"model": schema.ErrorResponse, "description": "No worker is warm."}})
    async def readyz() -> dict[str, Any]:
        """Say whether a worker is warm: it has solved the example system with the service's backend."""
        if not pool.ready:
            raise HTTPException(503, "no worker is warm yet; if this lasts, the log says why")
        return {"status": "ready", "workers": pool.size, "workersReady": pool.ready}

    @app.get("/metrics", response_class=Response)
    async def render_metrics(request: Request) -> Response:
        """Metrics for Prometheus."""
        text, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return app


def serve(settings: Settings, work: Work = REAL_WORK) -> None:
    """Run the service until SIGTERM or SIGINT.

    It then takes no new request, lets running ones finish for `Settings.stop_s` and ends its workers.

    Raises
    ------
    InputError
        When the address cannot be listened on, or there is no backend of the name in `settings`.
    BackendMissingError
        When that backend is not installed.
    SystemExit
        With code 0, after a signal.
    """
    if settings.backend != backends.GREEDY:
        backends.get(settings.backend)  # Without it no worker would ever be ready.
    configure_logging(settings.log_level, sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops in order on a signal, and then raises it again for the handler that was there before.
        signal.signal(number, lambda *_: sys.exit(0))
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    logging.getLogger(LOGGER).info(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    config = uvicorn.Config(
        create_app(settings, work),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.stop_s,
    )
    uvicorn.Server(config).run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address, port 0 for any free one.

    Raises
    ------
    InputError
        When the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where it sees the protocol TCP, which `socket.create_server`
    # leaves out; with the algorithm on, an answer of several packets takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        expected = f"an address that this machine can listen on ({error.strerror})"
        raise InputError([Problem("host and port", f"{host}:{port}", expected)]) from error
    listener.listen()
    return listener


def _which(query: SizeQuery) -> dict[str, Any]:
    return {"server": query.server, "accelerator": query.accelerator, "strict": query.strict}


def _report(metrics: Metrics, event: WorkerEvent, text: str) -> None:
    """Log and count what happens to workers."""
    if event is WorkerEvent.READY:
        logging.getLogger(LOGGER).info(text)
    else:
        logging.getLogger(LOGGER).warning(text, extra={"fields": {"event": event.value}})
        metrics.workers_lost.labels(event.value).inc()


def _request_body() -> dict[str, Any]:
    """Describe the body of a request for OpenAPI, with an example that can be sent as it is."""
    content = {"schema": {"$ref": _REQUEST_TYPE.format(model="SystemRequest")}, "example": example_system()}
    return {"required": True, "content": {"application/json": content}}
