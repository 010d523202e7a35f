"""One pass, and the loop around it.

::

    read -> snapshot -> analyze -> optimize -> plan -> apply, every interval, for all variants at once

A pass that fails changes nothing: every variant says why in a condition, and the log says it once.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from controller.actuate import Failure, Plan, apply, hold_all, plan
from controller.analyze import Analysis, analyze
from controller.collect import models_on_moments, read_configuration, read_traffic, snapshot_of
from controller.crd import Hold
from controller.errors import ClusterError, OptimizerError, PrometheusError
from controller.latency import compared, running_system
from controller.metrics import PassFigures
from controller.settings import Settings
from controller.snapshot import Traffic
from controller.stability import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from controller.actuate import Publisher, Writer
    from controller.collect import View
    from controller.crd import VariantKey
    from controller.inventory import Inventory
    from controller.latency import Compared
    from controller.prometheus import Query
    from controller.settings import Prometheus
    from controller.snapshot import Snapshot
    from solver.schema import AnalyzeResponse, Response, System

LOGGER = logging.getLogger("fleetopt.controller")


class Reader(Protocol):
    """Where a pass sees the cluster."""

    def read(self) -> View:
        """Return what there is; raises ClusterError."""


class Optimizer(Protocol):
    """Who decides."""

    def optimize(self, system: System) -> Response:
        """Return the allocation of a system; raises OptimizerError."""

    def analyze(self, system: System) -> AnalyzeResponse:
        """Return what one replica of each server does at its load; raises OptimizerError."""


@dataclass(frozen=True)
class Edges:
    """What a pass talks to.

    Attributes
    ----------
    reader : Reader
    writer : Writer
    publisher : Publisher
    connect : callable
        Opens the queries of a pass.
    optimizer : callable
        The optimizer of these settings.
    environ : mapping
        Environment variables, which win over the ConfigMap.
    """

    reader: Reader
    writer: Writer
    publisher: Publisher
    connect: Callable[[Prometheus], AbstractContextManager[Query]]
    optimizer: Callable[[Settings], Optimizer]
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Now:
    """The time of a pass, on a clock that does not jump and on that of people."""

    steady_s: float
    wall: datetime

    @property
    def rfc3339(self) -> str:
        """As Kubernetes writes times."""
        return self.wall.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class State:
    """What one pass leaves to the next."""

    memory: Memory = field(default_factory=Memory)
    inventory: Inventory | None = None


@dataclass(frozen=True)
class Outcome:
    """What a pass came to.

    Attributes
    ----------
    state : State
        For the next pass.
    settings : Settings
        That it went by.
    plan : Plan
    figures : PassFigures
    problems : tuple of str
        What a person should look at, in words.
    system : System or None
    response : Response or None
    """

    state: State
    settings: Settings
    plan: Plan
    figures: PassFigures
    problems: tuple[str, ...]
    system: System | None = None
    response: Response | None = None


def reconcile(
    edges: Edges, state: State, now: Now, woken: frozenset[tuple[str, str]] = frozenset()
) -> Outcome:
    """Do one pass over all variants.

    Parameters
    ----------
    edges : Edges
    state : State
        Of the pass before.
    now : Now
    woken : frozenset of (str, str)
        Namespace and model of which a wake-up was asked for.

    Raises
    ------
    ClusterError
        When the cluster cannot be read: then not even a condition can be written.
    """
    watch = _Stopwatch()
    with watch.stage("collect"):
        view = edges.reader.read()
        configuration = read_configuration(view.config_maps, edges.environ)
        snapshot = snapshot_of(view, configuration, Traffic(), state.inventory, woken, now.steady_s)
    settings = configuration.settings
    analysis: Analysis | None = None
    response: Response | None = None
    failure = ""
    try:
        with watch.stage("collect"):
            snapshot = replace(snapshot, traffic=_traffic(edges, snapshot))
        with watch.stage("analyze"):
            analysis = analyze(snapshot, state.memory, now.steady_s)
        with watch.stage("optimize"):
            if analysis.system is not None:
                response = edges.optimizer(settings).optimize(analysis.system)
        decided = plan(analysis, response, snapshot, now.steady_s)
    except PrometheusError as error:
        failure = str(error)
        decided = hold_all(snapshot, state.memory, Hold("MetricsAvailable", "PrometheusError", failure))
    except OptimizerError as error:
        failure = str(error)
        decided = hold_all(snapshot, state.memory, Hold("OptimizationReady", "OptimizationFailed", failure))
    with watch.stage("actuate"):
        failures = apply(decided.decisions, edges.writer, edges.publisher, now.rfc3339)
    with watch.stage("predict"):
        latencies, unpredicted = _latencies(edges, analysis, snapshot, failure)
    return Outcome(
        state=State(decided.memory, snapshot.inventory),
        settings=settings,
        plan=decided,
        figures=replace(
            _figures(decided, failures, failure, watch.seconds, response, snapshot, now), latencies=latencies
        ),
        problems=(*_problems(snapshot, decided, failures, failure), *unpredicted),
        system=analysis.system if analysis else None,
        response=response,
    )


def run(
    step: Callable[[State, Now], Outcome],
    wait: Callable[[float, float], bool],
    default: Settings | None = None,
) -> None:
    """Do passes until `wait` says that it is over.

    Parameters
    ----------
    step : callable
        One pass, with what it reports.
    wait : callable
        Waits so many seconds, less when something wakes it, lets changes settle for so many, and returns
        whether to stop.
    default : Settings, optional
        What counts until a pass could read the settings.
    """
    state, settings, said = State(), default or Settings(), frozenset[str]()
    while True:
        start_s = time.monotonic()
        try:
            outcome = step(state, Now(start_s, datetime.now(UTC)))
            state, settings, problems = outcome.state, outcome.settings, outcome.problems
        except ClusterError as error:
            problems = (str(error),)
        said = _say_once(frozenset(problems), said)
        if wait(max(settings.interval_s - (time.monotonic() - start_s), 0.0), settings.settle_s):
            return


def _traffic(edges: Edges, snapshot: Snapshot) -> Traffic:
    if not snapshot.variants:
        return Traffic()
    settings = snapshot.configuration.settings
    models = [(variant.key.namespace, variant.model_id) for variant in snapshot.variants]
    with edges.connect(settings.prometheus) as query:
        return read_traffic(query, settings, models, models_on_moments(snapshot))


def _latencies(
    edges: Edges, analysis: Analysis | None, snapshot: Snapshot, failure: str
) -> tuple[dict[VariantKey, Compared], tuple[str, ...]]:
    """Compare latencies after everything was done: a service that fails now costs the predictions alone."""
    if analysis is None:
        return {}, ()
    system = None if failure else running_system(analysis, snapshot)
    if system is None:
        return compared(analysis, snapshot, None), ()
    try:
        answer = edges.optimizer(snapshot.configuration.settings).analyze(system)
    except OptimizerError as error:
        return compared(analysis, snapshot, None), (f"latencies are not predicted: {error}",)
    return compared(analysis, snapshot, answer), ()


def _say_once(problems: frozenset[str], said: frozenset[str]) -> frozenset[str]:
    """Log problems that are new and those that are over, and return what has been said."""
    for problem in sorted(problems - said):
        LOGGER.warning("%s", problem)
    for problem in sorted(said - problems):
        LOGGER.info("over: %s", problem)
    return problems


def _problems(
    snapshot: Snapshot, decided: Plan, failures: tuple[Failure, ...], failure: str
) -> tuple[str, ...]:
    found = [*snapshot.configuration.problems, *snapshot.traffic.problems]
    found += [f"{variant.key}: {problem}" for variant in snapshot.variants for problem in variant.problems]
    found += [entry.message for entry in failures]
    if failure:
        found.append(failure)
    else:
        found += [f"{d.variant.key} is held: {d.why}" for d in decided.decisions if d.held_reason]
    return tuple(found)


def _figures(
    decided: Plan,
    failures: tuple[Failure, ...],
    failure: str,
    seconds: Mapping[str, float],
    response: Response | None,
    snapshot: Snapshot,
    now: Now,
) -> PassFigures:
    held = Counter(d.held_reason for d in decided.decisions if d.held_reason)
    return PassFigures(
        ok=not failure,
        at_unix_s=now.wall.timestamp(),
        seconds=seconds,
        held=held,
        failed_writes=len(failures),
        gap=response.report.gap if response and not failure else None,
        inventory_known=snapshot.nodes_readable,
    )


@dataclass(frozen=True)
class _Stopwatch:
    """Time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start_s
