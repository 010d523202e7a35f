"""The command ``fleetopt``.

Exit codes: 0 an answer, 1 a defect or an expectation that does not hold, 2 bad input, 3 no answer in time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from solver.catalog_cli import add_parsers
from solver.errors import BackendMissingError, FleetoptError, InputError, NoAnswerError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

OK, FAILED, BAD_INPUT, NO_ANSWER, INTERRUPTED = 0, 1, 2, 3, 130

# Beyond its own time limit a service may spend this on a request before the client gives up.
_SERVICE_SLACK_S = 60.0


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        if given and given[0] in (further := _further_commands()):
            code = _run_further(further[given[0]], given[1:])
        else:
            args = _parser().parse_args(given)
            code = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`fleetopt ... | head`). What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except NoAnswerError as error:
        return _fail(NO_ANSWER, error)
    except (InputError, BackendMissingError) as error:
        return _fail(BAD_INPUT, error)
    except FleetoptError as error:
        return _fail(FAILED, error)
    return code


def _further_commands() -> dict[str, EntryPoint]:
    """Commands that other packages of this distribution add, by name."""
    return {entry.name: entry for entry in entry_points(group="fleetopt.commands")}


def _run_further(entry: EntryPoint, argv: list[str]) -> int:
    try:
        run: Callable[[list[str]], int] = entry.load()
    except ImportError as error:
        missing = FleetoptError(
            f"{entry.name} needs more packages: pip install 'fleetopt[{entry.name}]' ({error})"
        )
        return _fail(BAD_INPUT, missing)
    return run(argv)


def _fail(code: int, error: Exception) -> int:
    first, *rest = str(error).splitlines()
    lines = [f"fleetopt: {first}", *(f"          {line}" for line in rest)]
    print("\n".join(lines), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetopt",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fleetopt {version('fleetopt')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_optimize(commands)
    _add_analyze(commands)
    _add_serve(commands)
    _add_request(commands)
    _add_scenario(commands)
    _add_backends(commands)
    add_parsers(commands)
    for name in _further_commands():
        commands.add_parser(name, help=f"See `fleetopt {name} --help`.")
    return parser


_DESCRIPTION = """\
Decides which GPUs serve which language models: accelerator, replicas and batch
size of every model server, so that every latency target is met at the least cost.
"""

_EPILOG = """\
examples:
  fleetopt optimize system.json                    solve a system, show the answer as tables
  fleetopt optimize system.json --explain          ... and why not otherwise
  fleetopt optimize - --output json < system.json  as JSON, from a pipe
  fleetopt analyze system.json --server chat       what every accelerator could do for one server
  fleetopt serve --port 8080                       the HTTP service; its API is at /docs
  fleetopt request http://127.0.0.1:8080 system.json
  fleetopt scenario run scenarios/                 what-if files, with what is expected of them
  fleetopt catalog                                 measured profiles, GPUs and prices that ship with it
  fleetopt system new --help                       a system from the catalogue, without measuring first
  fleetopt fit measurements.csv                    a profile from your own measurements

exit codes:
  0 an answer; 1 a defect, or an expectation that does not hold; 2 bad input; 3 no answer in time
"""

_Commands = Any  # argparse gives the type of its subcommands no public name


def _add(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=run)
    return parser


def _add_solve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", help="solver, such as highs; `fleetopt backends` lists them")
    parser.add_argument("--time-limit", type=_above_0, metavar="S", help="seconds to solve (default: 30)")
    parser.add_argument(
        "--gap", type=_not_below_0, metavar="G", help="relative gap to stop at (default: 1e-4)"
    )
    parser.add_argument(
        "--method",
        choices=("auto", "direct", "decompose"),
        help="the program as a whole, or server by server for large fleets (default: by size)",
    )
    parser.add_argument(
        "--verify",
        choices=("simulation",),
        help="simulate what is chosen, cut what misses its targets, and solve again until all hold",
    )
    parser.add_argument("--strict", action="store_true", help="take an unknown key for an error")
    parser.add_argument(
        "--explain",
        action=argparse.BooleanOptionalAction,
        help="say why not otherwise (default: in JSON only)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", choices=("table", "json"), default="table", help="default: table")


# --- optimize ---


def _add_optimize(commands: _Commands) -> None:
    parser = _add(commands, "optimize", _optimize, "Solve a system and show the allocation.")
    parser.add_argument("file", metavar="FILE", help="system JSON; - for standard input")
    _add_solve_options(parser)
    _add_output(parser)
    parser.add_argument(
        "--write-model", type=Path, metavar="FILE", help="also write the program solved, as .lp or .mps"
    )


def _optimize(args: argparse.Namespace) -> int:
    from solver import table
    from solver.catalog import read_system
    from solver.method import Method
    from solver.optimize import Defaults, RequestOptions, optimize, write_model
    from solver.settings import read_settings

    explain = args.explain if args.explain is not None else args.output == "json"
    method = Method(args.method or Method.AUTO)
    options = RequestOptions(
        args.backend, args.time_limit, args.gap, args.strict, explain, method, args.verify
    )
    settings = read_settings(os.environ, {})
    defaults = Defaults(settings.backend, settings.time_limit_s)
    with _elapsed(sys.stderr, "solving"):
        parsed = read_system(_read(args.file), strict=args.strict)
        if args.write_model:
            response = write_model(parsed, options, args.write_model, defaults)
        else:
            response = optimize(parsed, options, defaults)
    if args.output == "json":
        print(response.model_dump_json(indent=2))
    else:
        _show(table.answer(response, parsed.system, explain=explain))
    return OK


# --- analyze ---


def _add_analyze(commands: _Commands) -> None:
    text = "Show what one replica of every candidate (server, accelerator, batch limit) can do."
    parser = _add(commands, "analyze", _analyze, text)
    parser.add_argument("file", metavar="FILE", help="system JSON; - for standard input")
    parser.add_argument("--server", metavar="NAME", help="only this server")
    parser.add_argument("--accelerator", metavar="NAME", help="only this accelerator")
    parser.add_argument(
        "--rate",
        type=_not_below_0,
        metavar="R",
        help="requests/min at one replica (default: the server's load over the replicas it needs)",
    )
    parser.add_argument("--strict", action="store_true", help="take an unknown key for an error")
    _add_output(parser)


def _analyze(args: argparse.Namespace) -> int:
    from solver import table
    from solver.analyze import analyze
    from solver.catalog import read_system

    parsed = read_system(_read(args.file), strict=args.strict)
    found = analyze(parsed, rate_rpm=args.rate, server=args.server, accelerator=args.accelerator)
    if args.output == "json":
        print(found.model_dump_json(indent=2))
    else:
        _show(table.candidates(found))
    return OK


# --- serve ---


def _add_serve(commands: _Commands) -> None:
    text = "Run the HTTP service until SIGTERM or Ctrl-C. Flags win over FLEETOPT_* variables."
    parser = _add(commands, "serve", _serve, text)
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 for any (default: 8080)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="solving processes (default: a core each, to 4)"
    )
    parser.add_argument("--backend", help="solver for requests that name none (default: highs)")
    parser.add_argument("--time-limit", type=_above_0, metavar="S", help="for requests that name none")
    parser.add_argument("--max-time-limit", type=_above_0, metavar="S", help="longest a request may name")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (default: info)")


def _serve(args: argparse.Namespace) -> int:
    from solver.app import serve
    from solver.settings import read_settings

    flags = {
        "host": args.host,
        "port": args.port,
        "workers": args.workers,
        "backend": args.backend,
        "time_limit_s": args.time_limit,
        "max_time_limit_s": args.max_time_limit,
        "log_level": args.log_level,
    }
    serve(read_settings(os.environ, flags))
    return OK


# --- request ---


def _add_request(commands: _Commands) -> None:
    parser = _add(commands, "request", _request, "Have a running service solve a system; show its answer.")
    parser.add_argument("url", metavar="URL", help="of the service, such as http://127.0.0.1:8080")
    parser.add_argument("file", metavar="FILE", help="system JSON; - for standard input")
    _add_solve_options(parser)
    parser.add_argument(
        "--wait",
        type=_not_below_0,
        default=0.0,
        metavar="S",
        help="wait up to S seconds for a service that starts",
    )
    _add_output(parser)


def _request(args: argparse.Namespace) -> int:
    from solver import schema, table
    from solver.catalog import read_system

    explain = args.explain if args.explain is not None else args.output == "json"
    parsed = read_system(body := _read(args.file), strict=args.strict)
    query = {
        "backend": args.backend,
        "time_limit": args.time_limit,
        "gap": args.gap,
        "method": args.method,
        "verify": args.verify,
    }
    flags = {"strict": args.strict, "explain": explain}
    options = {name: value for name, value in {**query, **flags}.items() if value is not None}
    with _elapsed(sys.stderr, f"waiting for {args.url}"):
        _await_ready(args.url, args.wait)
        status, text = _post(args.url, options, body, _SERVICE_SLACK_S + 2 * (args.time_limit or 300.0))
    if status != 200:
        return _refused(status, text)
    response = schema.Response.model_validate_json(text)
    if args.output == "json":
        print(response.model_dump_json(indent=2))
    else:
        _show(table.answer(response, parsed.system, explain=explain))
    return OK


def _await_ready(url: str, limit_s: float) -> None:
    """Return when the service at `url` is ready, or after `limit_s` seconds."""
    probe = urllib.parse.urlsplit(url)._replace(path="/readyz", query="").geturl()
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with suppress(OSError, ValueError), urllib.request.urlopen(probe, timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(0.1)


def _post(url: str, options: dict[str, object], body: bytes, timeout_s: float) -> tuple[int, bytes]:
    """Send `body` to a service and return the status code and what it answers.

    Raises
    ------
    InputError
        When `url` is none.
    NoAnswerError
        When nothing answers.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            [Problem("URL", json.dumps(url), "the address of a service, such as http://127.0.0.1:8080")]
        )
    path = parts.path if parts.path.strip("/") else "/optimize"
    address = parts._replace(path=path, query=urllib.parse.urlencode(options)).geturl()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError as error:
        raise NoAnswerError(f"{url} does not answer: {error}") from error


def _refused(status: int, text: bytes) -> int:
    """Say what a service answered in place of an allocation, and return the exit code."""
    from pydantic import ValidationError

    from solver.schema import ErrorResponse

    try:
        refusal = ErrorResponse.model_validate_json(text)
    except ValidationError:
        return _fail(FAILED, FleetoptError(f"no fleetopt service there: it answers with status {status}"))
    lines = [refusal.error, *(str(Problem(p.path, p.value, p.expected)) for p in refusal.problems)]
    return _fail(
        {422: BAD_INPUT, 413: BAD_INPUT, 503: NO_ANSWER}.get(status, FAILED), FleetoptError("\n".join(lines))
    )


# --- scenario, backends ---


def _add_scenario(commands: _Commands) -> None:
    text = "Run what-if scenarios and check what is expected of them."
    actions = _add(commands, "scenario", _run_scenarios, text).add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    parser = _add(actions, "run", _run_scenarios, text)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="scenario.yaml, or a folder of them"
    )
    parser.add_argument("--backend", help="solver to use instead of the scenarios' own")


def _run_scenarios(args: argparse.Namespace) -> int:
    from solver.scenario import render, run_paths

    with _elapsed(sys.stderr, "running scenarios"):
        outcomes = run_paths(args.paths, args.backend or os.environ.get("FLEETOPT_BACKEND") or None)
    print(render(outcomes), end="")
    return OK if all(outcome.passed for outcome in outcomes) else FAILED


def _add_backends(commands: _Commands) -> None:
    _add_output(_add(commands, "backends", _backends, "List the solvers, and which are installed."))


def _backends(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from solver import table
    from solver.backends import listing

    infos = listing()
    if args.output == "json":
        print(json.dumps([asdict(info) for info in infos], indent=2))
    else:
        _show(table.solvers(infos))
    return OK


# --- shared ---


def _read(file: str) -> bytes:
    """Return the content of a file, or of standard input for ``-``."""
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputError([Problem(file, "", f"a file that can be read ({error.strerror})")]) from error


def _show(content: RenderableType) -> None:
    from solver.table import console_for

    console_for(sys.stdout).print(content)


@contextmanager
def _elapsed(stream: TextIO, what: str, after_s: float = 2.0) -> Iterator[None]:
    """Show on `stream` how long the body has been running, once that is longer than `after_s`.

    A terminal shows one line that counts, and clears it at the end; elsewhere there is a line every 10 s.
    """
    done = threading.Event()
    start = time.monotonic()
    on_terminal = stream.isatty()
    shape, pause_s = ("\r{}: {:.0f} s", 0.5) if on_terminal else ("{}: {:.0f} s\n", 10.0)

    def show() -> None:
        if done.wait(after_s):
            return
        while True:
            stream.write(shape.format(what, time.monotonic() - start))
            stream.flush()
            if done.wait(pause_s):
                break
        if on_terminal:
            stream.write("\r\x1b[K")
            stream.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _above_0(text: str) -> float:
    value = _not_below_0(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be above 0: {text}")
    return value


def _not_below_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0: {text}")
    return value
