"""``fleetopt replay``: solve the passes of a controller's decision record again, and say what differs.

::

    file, file.1, ... -> read_passes -> [Pass] -> solve here, or at a service -> compare -> lines, a summary

The record is one JSON document a line (docs/controller.md). This needs ``at``, ``system`` and
``response`` of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from solver import backends
from solver.curves import Curves
from solver.errors import BackendMissingError, FleetoptError, InputError, NoAnswerError, Problem
from solver.optimize import Defaults, RequestOptions, optimize_json
from solver.replay_compare import Comparison, Verdict, compare, dollars
from solver.schema import ErrorResponse, Response
from solver.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import TextIO

# Longest silence of a service that is waited for, s; it ends a solve that takes too long by itself.
_SERVICE_LIMIT_S = 700.0


class ServiceAwayError(NoAnswerError):
    """Nothing answers at the URL, so no pass can be solved."""


@dataclass(frozen=True)
class Pass:
    """One pass of a record.

    Attributes
    ----------
    where : str
        File and line.
    at : str
        When it was.
    system : dict or None
        What was asked; None: nothing.
    response : Response or None
        What was answered; None: nothing.
    problems : tuple of str
        What the controller said was wrong.
    """

    where: str
    at: str
    system: dict[str, Any] | None
    response: Response | None
    problems: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when nothing differs, 1 when something does.

    Raises
    ------
    InputError
        When a file or a line cannot be read, with the line's number.
    ServiceAwayError
        When nothing answers at the URL.
    """
    args = _parser().parse_args(argv)
    solve = _service(args.url, args.backend) if args.url else _solver_here(args.backend)
    found: Counter[Verdict] = Counter()
    before = now = 0.0
    passes = read_passes(args.file)
    for entry in passes:
        comparison = replay(entry, solve)
        found[comparison.verdict] += 1
        before += comparison.cost_before_cents_per_h
        now += comparison.cost_now_cents_per_h
        if comparison.verdict is not Verdict.SAME:
            summary = f": {comparison.summary}" if comparison.summary else ""
            print(f"{entry.where}  {entry.at}  {comparison.verdict}{summary}")
            print("".join(f"    {detail}\n" for detail in comparison.details), end="")
    if not found:
        raise InputError([Problem(args.file, "", "one pass at least")])
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in Verdict if found[verdict])
    print(f"{found.total()} passes: {counts}; cost in all {dollars(before)} -> {dollars(now)} $/h")
    return 1 if found[Verdict.DIFFERS] or found[Verdict.FAILED] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetopt replay",
        description="Solve the passes of a controller's record again, and print what differs.",
        epilog="exit codes: 0 nothing differs; 1 something does; 2 a line is no pass; 3 no service",
    )
    parser.add_argument(
        "file", metavar="FILE", help="record; FILE.1, FILE.2, ... before it are read too; - standard input"
    )
    parser.add_argument("--backend", help="solver to use instead of that of the record")
    parser.add_argument("--url", help="service that solves, such as http://127.0.0.1:8080 (default: here)")
    return parser


# --- reading ---


def read_passes(file: str) -> Iterator[Pass]:
    """Read a record, the oldest pass first.

    Parameters
    ----------
    file : str
        Path of the record; the files it was rotated to are read before it. ``-`` is standard input.

    Raises
    ------
    InputError
        When a file cannot be read, or a line is no pass.
    """
    for name, source in _sources(file):
        try:
            with source as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _read(line, f"{name}:{number}")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError([Problem(name, "", f"a text file that can be read ({error})")]) from error


def _sources(file: str) -> Iterator[tuple[str, AbstractContextManager[TextIO]]]:
    if file == "-":
        yield "standard input", nullcontext(sys.stdin)
        return
    path = Path(file)
    rotated = [p for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdecimal()]
    for part in (*sorted(rotated, key=lambda p: -int(p.suffix[1:])), path):
        try:
            yield str(part), part.open(encoding="utf-8")
        except OSError as error:
            raise InputError(
                [Problem(str(part), "", f"a file that can be read ({error.strerror})")]
            ) from error


def _read(line: str, where: str) -> Pass:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise InputError([Problem(where, _shortened(line), f"a JSON document ({error})")]) from error
    if not isinstance(document, dict) or not {"at", "system", "response"} <= document.keys():
        raise InputError([Problem(where, _shortened(line), "an object with at, system and response")])
    system, answered = document["system"], document["response"]
    if not isinstance(system, dict | None):
        raise InputError([Problem(f"{where}: system", _shortened(json.dumps(system)), "an object or null")])
    try:
        response = None if answered is None else Response.model_validate(answered)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("response", *first["loc"]))
        raise InputError([Problem(f"{where}: {key}", "", first["msg"])]) from error
    problems = tuple(str(problem) for problem in document.get("problems") or ())
    return Pass(where, str(document["at"]), system, response, problems)


def _shortened(text: str) -> str:
    stripped = text.strip()
    return stripped if len(stripped) <= 60 else f"{stripped[:60]}..."


# --- solving ---


def _solver_here(backend: str | None) -> Callable[[bytes], Response]:
    if backend is not None and backend != backends.GREEDY:
        # Said once, not of every pass.
        backends.get(backend)
    settings = read_settings(os.environ, {})
    options = RequestOptions(backend=backend, explain=False)
    defaults, curves = Defaults(settings.backend, settings.time_limit_s), Curves()

    def solve(body: bytes) -> Response:
        return Response.model_validate_json(optimize_json(body, options, defaults, curves).body)

    return solve


def _service(url: str, backend: str | None) -> Callable[[bytes], Response]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        expected = "the address of a service, such as http://127.0.0.1:8080"
        raise InputError([Problem("--url", json.dumps(url), expected)])
    query = {"explain": "false"} | ({"backend": backend} if backend else {})
    path = f"{parts.path.rstrip('/')}/optimize"
    address = parts._replace(path=path, query=urllib.parse.urlencode(query)).geturl()

    def solve(body: bytes) -> Response:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_SERVICE_LIMIT_S) as answer:
                return Response.model_validate_json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise FleetoptError(f"the service answers {error.code}: {_reason(error.read())}") from error
        except ValidationError as error:
            raise FleetoptError("the service's answer is no allocation") from error
        except OSError as error:
            raise ServiceAwayError(f"{url} does not answer: {error}") from error

    return solve


def _reason(body: bytes) -> str:
    try:
        refusal = ErrorResponse.model_validate_json(body)
    except ValidationError:
        return _shortened(body.decode(errors="replace"))
    return "; ".join([refusal.error, *(f"{p.path}: {p.expected}" for p in refusal.problems)])


def replay(entry: Pass, solve: Callable[[bytes], Response]) -> Comparison:
    """Solve a pass again and compare.

    Parameters
    ----------
    entry : Pass
    solve : callable
        From the body of a request to the answer; raises FleetoptError without one.

    Raises
    ------
    BackendMissingError
        When the pass's own backend is not installed.
    ServiceAwayError
        When there is no service.
    """
    why = f" ({'; '.join(entry.problems)})" if entry.problems else ""
    if entry.system is None:
        return Comparison(Verdict.SKIPPED, f"nothing was asked{why}")
    if entry.response is None:
        return Comparison(Verdict.SKIPPED, f"there was no answer{why}")
    try:
        again = solve(json.dumps({"system": entry.system}).encode())
    except (BackendMissingError, ServiceAwayError):
        raise
    except FleetoptError as error:
        return Comparison(Verdict.FAILED, str(error))
    return compare(entry.response, again)
