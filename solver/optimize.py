"""The pipeline: system JSON in, proven allocation out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter

from solver import backends, schema, verify_report
from solver.backends.greedy import greedy
from solver.catalog import read_system
from solver.check import score, violations
from solver.convert import running_now, to_allocations, to_problem
from solver.curves import Curves
from solver.errors import CheckError, InputError, Problem
from solver.explain import details, memory_warnings, not_served, not_taken, type_use
from solver.limits import limit_warnings
from solver.method import Method, solve_by
from solver.milp import SolveOptions, Termination
from solver.problem import LevelKind
from solver.report import Judged, to_report
from solver.sizing import size_fleet
from solver.solve import GpuValue, LevelResult, Solved, prefer_small_batches
from solver.starts import Answers, best_start
from solver.verify import Decided, verified
from solver.wire_parse import collector_paused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from solver.problem import AllocationProblem, Plan
    from solver.sizing import Fleet
    from solver.starts import Running
    from solver.verify import Verification

DEFAULT_BACKEND = "highs"
DEFAULT_TIME_LIMIT_S = 30.0
DEFAULT_GAP = 1e-4

_RESPONSE = TypeAdapter(schema.Response)

# Of the time, for the first program when its answer is to be verified.
SHARE_BEFORE_VERIFYING = 0.5


@dataclass(frozen=True)
class RequestOptions:
    """What a request or a command line asks for; None leaves it to the document, then to the defaults.

    Attributes
    ----------
    backend : str or None
    time_limit_s : float or None
        > 0.
    gap : float or None
        Relative, >= 0.
    strict : bool
        An unknown key is an error.
    explain : bool
        Say for each server why not the other options.
    method : Method
    verify : str or None
        ``"simulation"``: as `verify` of the document.
    """

    backend: str | None = None
    time_limit_s: float | None = None
    gap: float | None = None
    strict: bool = False
    explain: bool = True
    method: Method = Method.AUTO
    verify: Literal["simulation"] | None = None


@dataclass(frozen=True)
class Defaults:
    """What holds where neither the request nor the document says; the service sets it.

    Attributes
    ----------
    backend : str
    time_limit_s : float
    max_time_limit_s : float
        A longer limit in a document is cut to it.
    """

    backend: str = DEFAULT_BACKEND
    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    max_time_limit_s: float = np.inf


@dataclass(frozen=True)
class Answered:
    """An answer as JSON bytes and what a log line says of it.

    `gap` is None when nothing is proven; the curves are candidates whose sizing was remembered, and that
    had to be sized; `led_by_start` says whether a start was better than the baseline, None without one.
    """

    body: bytes
    backend: str
    termination: str
    gap: float | None
    unserved: int
    seconds: dict[str, float]
    warnings: int
    curve_hits: int = 0
    curve_misses: int = 0
    led_by_start: bool | None = None


class _Stopwatch:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self.seconds["total"] = now - self._start
        self._last = now


@dataclass(frozen=True)
class _Result:
    fleet: Fleet
    problem: AllocationProblem
    solved: Solved
    plan: Plan
    backend: str
    watch: _Stopwatch = field(default_factory=_Stopwatch)
    led_by_start: bool | None = None
    verification: Verification | None = None


@collector_paused()
def optimize_json(
    body: bytes,
    options: RequestOptions,
    defaults: Defaults | None = None,
    curves: Curves | None = None,
    answers: Answers | None = None,
) -> Answered:
    """Answer a system JSON with an allocation JSON.

    Parameters
    ----------
    body : bytes
    options : RequestOptions
    defaults : Defaults or None
    curves : Curves or None
        Remembers sizings between calls.
    answers : Answers or None
        Remembers the last answers between calls, to start from.

    Raises
    ------
    InputError
        The document or an option is wrong.
    BackendMissingError
        The backend's library is not installed.
    SolverError, CheckError
        A solver failed, or an answer broke a rule.
    """
    watch = _Stopwatch()
    curves = curves or Curves()
    hits, misses = curves.hits, curves.misses
    parsed = read_system(body, strict=options.strict)
    watch.lap("parse")
    defaults = defaults or Defaults()
    request = blake2b(body + repr((options, defaults)).encode(), digest_size=16).digest()

    def recalled(problem: AllocationProblem) -> Running | None:
        return None if answers is None else answers.recall(problem, request)

    result = _solve(parsed, options, defaults, watch, curves, recalled, names=False)
    if answers is not None:
        proven = result.solved.termination is Termination.OPTIMAL
        answers.remember(result.problem, result.plan, request, proven=proven)
    response = _answer(parsed, result, options)
    text = _RESPONSE.dump_json(response)
    report = response.report
    watch.lap("write")
    return Answered(
        body=text,
        backend=report.backend,
        termination=report.termination,
        gap=report.gap,
        unserved=len(report.unserved),
        seconds=watch.seconds,
        warnings=len(report.warnings),
        curve_hits=curves.hits - hits,
        curve_misses=curves.misses - misses,
        led_by_start=result.led_by_start,
    )


def optimize(
    parsed: schema.Parsed, options: RequestOptions, defaults: Defaults | None = None
) -> schema.Response:
    """As `optimize_json`, from a parsed system to the response object."""
    result = _solve(
        parsed, options, defaults or Defaults(), _Stopwatch(), Curves(), _nothing_recalled, names=False
    )
    return _answer(parsed, result, options)


def write_model(
    parsed: schema.Parsed, options: RequestOptions, path: Path, defaults: Defaults | None = None
) -> schema.Response:
    """Optimize, and write the last program solved as LP or MPS, by the suffix of `path`.

    Raises
    ------
    InputError
        Also when there is no program: no server has an option, or the backend is greedy.
    """
    result = _solve(
        parsed, options, defaults or Defaults(), _Stopwatch(), Curves(), _nothing_recalled, names=True
    )
    if result.solved.program is None:
        raise InputError(
            [Problem("--write-model", str(path), "a system and a backend with a program to write")]
        )
    backends.write_model(result.solved.program, path)
    return _answer(parsed, result, options)


def _nothing_recalled(_: AllocationProblem) -> None:
    """Remember no answer: every command line run is the first."""


@collector_paused()
def _solve(
    parsed: schema.Parsed,
    options: RequestOptions,
    defaults: Defaults,
    watch: _Stopwatch,
    curves: Curves,
    recalled: Callable[[AllocationProblem], Running | None],
    *,
    names: bool,
) -> _Result:
    """Size, solve, check; verify where it is asked for."""
    start_s = time.monotonic()
    optimizer = parsed.system.optimizer_data.optimizer
    backend = options.backend or optimizer.backend or defaults.backend
    limit_s = options.time_limit_s or optimizer.time_limit_s or defaults.time_limit_s
    gap = next((g for g in (options.gap, optimizer.gap) if g is not None), DEFAULT_GAP)
    driver = None if backend == backends.GREEDY else backends.get(backend)
    limit_s = min(limit_s, defaults.max_time_limit_s)
    led_by_start: bool | None = None

    def decide(problem: AllocationProblem, left_s: float) -> Decided:
        nonlocal led_by_start
        if driver is None:
            solved = _baseline(problem)
        else:
            limits = SolveOptions(time_limit_s=left_s, relative_gap=gap)
            start = best_start(problem, running)
            solved = solve_by(options.method, problem, driver, limits, names=names, start=start)
            led_by_start = None if start is None else solved.led_by_start
        plan = prefer_small_batches(problem, solved.plan)
        broken = violations(problem, plan)
        if broken:
            raise CheckError(
                f"{backend} gave a plan that breaks {len(broken)} rules: " + "; ".join(broken[:5])
            )
        return Decided(problem, solved, plan)

    fleet = size_fleet(parsed.system, curves)
    problem = to_problem(parsed.system, fleet)
    watch.lap("size")
    running = [rows for rows in (recalled(problem), running_now(fleet)) if rows is not None]
    verify = options.verify or optimizer.verify
    decided = decide(problem, limit_s if verify is None else SHARE_BEFORE_VERIFYING * limit_s)
    watch.lap("solve")
    verification = None
    if verify is not None:
        fleet, decided, verification = verified(
            fleet,
            decided,
            lambda cut, left_s: decide(to_problem(parsed.system, cut), left_s),
            curves.findings,
            start_s + limit_s,
        )
        watch.lap("verify")
    return _Result(fleet, *decided, backend, watch, led_by_start, verification)


def _baseline(problem: AllocationProblem) -> Solved:
    """Return what greedy finds: a plan, and no proof."""
    plan = greedy(problem)
    worth = score(problem, plan).levels
    unknown = GpuValue.unknown(len(problem.gpu_types))
    results = tuple(
        LevelResult(level, value, 0.0 if level.kind is not LevelKind.COST else -np.inf, Termination.FEASIBLE)
        for level, value in zip(problem.levels, worth, strict=True)
    )
    nothing_out = np.zeros(len(problem.option_server), dtype=bool)
    return Solved(plan, results, nothing_out, unknown, "fleetopt", "", None)


def _answer(parsed: schema.Parsed, result: _Result, options: RequestOptions) -> schema.Response:
    fleet, problem, plan = result.fleet, result.problem, result.plan
    allocations = to_allocations(fleet, problem, plan)
    short = not_served(fleet, problem, plan)
    unconfirmed = [] if result.verification is None else verify_report.warnings(fleet, result.verification)
    reasons = not_taken(fleet, problem, result.solved, plan)
    judged = Judged(
        unserved=short,
        reasons=reasons if options.explain else None,
        details=details(fleet, problem, reasons) if options.explain else [],
        types=type_use(fleet, problem, result.solved, plan, reasons, short),
        warnings=[*memory_warnings(fleet, plan), *limit_warnings(fleet, problem), *unconfirmed],
        score=score(problem, plan),
    )
    result.watch.lap("explain")
    report = to_report(parsed, fleet, result.solved, judged, result.backend, result.watch.seconds)
    if result.verification is not None:
        report = report.model_copy(update={"verification": verify_report.to_wire(fleet, result.verification)})
    return schema.Response(allocations=allocations, report=report)
