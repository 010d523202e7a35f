"""What surrounds every request: its id, its log line, its metrics, its body, and errors as answers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from solver.errors import BackendMissingError, InputError, NoAnswerError, Problem
from solver.schema import ErrorResponse, ProblemDetail
from solver.telemetry import LOGGER
from solver.wire_parse import did_you_mean
from solver.workers import BusyError, CrashError, DeadlineError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from solver.telemetry import Metrics

_COME_BACK = {"retry-after": "2"}

# nginx's code for a client that closed its connection before the answer; only the log has it.
NO_ANSWER = 499

# Asked every few seconds; a log line for each would drown the others.
PROBES = frozenset(("/healthz", "/readyz", "/metrics"))

# A request id is taken over when it cannot break a log or a header.
_REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}")

_ADVICE: dict[type[Exception], str] = {
    DeadlineError: "try a wider gap or another backend; backend=greedy is quick and proves nothing",
    NoAnswerError: "try a longer time_limit; backend=greedy is quick and proves nothing",
}


class BodyTooLargeError(Exception):
    """The body is larger than the service takes."""


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to answer."""


class Observer:
    """ASGI middleware: a log line and metrics of every request, and an answer to every crash.

    Endpoints add to the line through ``request.state.facts``, a dict. The answer carries ``X-Request-Id``:
    the client's own, or a new one.

    Parameters
    ----------
    app : ASGI application
    metrics : Metrics
    paths : frozenset of str
        The paths that metrics may name; all others count as ``other``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        seen = {"status": NO_ANSWER, "in": 0, "out": 0}
        request_id = _request_id(scope)

        async def counted_receive() -> Message:
            message = await receive()
            seen["in"] += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            seen["out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        except asyncio.CancelledError:
            facts["error"] = "the service stopped before there was an answer"
            if seen["status"] == NO_ANSWER:
                farewell = _answer(503, "the service is stopping", headers=_COME_BACK)
                await farewell(scope, counted_receive, counted_send)
            raise
        except Exception as error:
            facts["error"] = repr(error)
            facts["trace"] = traceback.format_exc()
            if seen["status"] == NO_ANSWER:
                crash = _answer(500, f"unexpected error; the log has the details under {request_id}")
                await crash(scope, counted_receive, counted_send)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.observe_request(path, facts.get("backend", ""), seen["status"], seconds)
            level = logging.ERROR if seen["status"] == 500 else logging.INFO
            if path in PROBES and seen["status"] == 200:
                level = logging.DEBUG
            line = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": seen["status"],
                "seconds": round(seconds, 6),
                "bytes_in": seen["in"],
                "bytes_out": seen["out"],
                **facts,
            }
            logging.getLogger(LOGGER).log(level, "request", extra={"fields": line})


async def read_body(request: Request, limit_bytes: int, *, keep: bool) -> bytes:
    """Return the body of the request, or nothing when `keep` is false.

    A body that is too large is read on, up to twice the limit, and thrown away, as is one not to be kept:
    a client that is still sending takes an early answer for a broken connection and does not read it.

    Raises
    ------
    BodyTooLargeError
        When it has more than `limit_bytes`.
    ClientLeftError
        When the client closes its connection before the end.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if keep and size <= limit_bytes:
            chunks.append(chunk)
        else:
            chunks.clear()
        if size > 2 * limit_bytes:
            break
    if size > limit_bytes:
        most = f"{limit_bytes / 2**20:.3g} MiB"
        raise BodyTooLargeError(f"the body is larger than {most}, the most this service takes")
    return b"".join(chunks)


async def unless_client_leaves(request: Request, call: Coroutine[Any, Any, Any]) -> Any:
    """Return what `call` returns; cancel it when the client closes its connection first.

    The body of the request must have been read.

    Raises
    ------
    ClientLeftError
        When the client has gone.
    """
    answer = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientLeftError
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer_error(options: Mapping[str, Sequence[str]], request: Request, error: Exception) -> Response:
    """Return the answer to an error: its status code and an `ErrorResponse`.

    Parameters
    ----------
    options : mapping of str to sequence of str
        The query options of each path.
    request : Request
        What goes to the log is added to its ``state.facts``.
    error : FleetoptError, RequestValidationError, HTTPException, BodyTooLargeError or ClientLeftError
    """
    facts: dict[str, Any] = request.state.facts
    if isinstance(error, ClientLeftError):
        facts["error"] = "the client closed its connection"
        return Response(status_code=NO_ANSWER)
    text = str(error)
    headers: Mapping[str, str] = {}
    problems: list[Problem] = []
    match error:
        case RequestValidationError():
            known = options.get(request.url.path, ())
            status, problems = 422, [_option_problem(request, known, details) for details in error.errors()]
            text = "the query is wrong"
        case InputError():
            status, problems = 422, error.problems
            text = "the system or an option is wrong"
        case HTTPException():
            status, text, headers = error.status_code, error.detail, error.headers or {}
        case BodyTooLargeError():
            status = 413
        case BusyError():
            status, headers = 503, _COME_BACK
        case BackendMissingError() | NoAnswerError() | DeadlineError():
            status = 503
        case _:
            status = 500
    facts["error"] = text if not problems else f"{text}: {problems[0]}"
    if isinstance(error, CrashError):
        facts["trace"] = error.trace
    if advice := _ADVICE.get(type(error)):
        text = f"{text}; {advice}"
    return _answer(status, text, problems, headers)


def _answer(
    status: int, text: str, problems: list[Problem] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    details = [ProblemDetail(path=p.path, value=p.value, expected=p.expected) for p in problems or ()]
    body = ErrorResponse(error=text, problems=details)
    return JSONResponse(body.model_dump(mode="json", by_alias=True), status, headers)


def _option_problem(request: Request, known: Sequence[str], details: Mapping[str, Any]) -> Problem:
    """One of FastAPI's findings about a query option, in the shape of every other problem."""
    name = str(details["loc"][-1])
    value = request.query_params.get(name, "")
    if details["type"] == "extra_forbidden":
        expected = f"one of the options {', '.join(known)}{did_you_mean(name, known)}"
    else:
        expected = str(details["msg"]).removeprefix("Input should be ")
    return Problem(f"?{name}", value, expected)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex
