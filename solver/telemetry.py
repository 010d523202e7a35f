"""What the service says about itself: metrics for Prometheus and one JSON log line per request."""

from __future__ import annotations

import json
import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from solver.workers import WorkerEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOGGER = "fleetopt"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The service's metrics in a registry of their own; the table is in docs/http.md.

    Label values come from closed sets (known paths, installed backends), so their number is bounded whatever
    clients send.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fleetopt_requests",
            "Requests answered, by path, backend that solved (empty where none did) and status code.",
            ["path", "backend", "code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "fleetopt_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "fleetopt_stage_seconds",
            "Seconds of an optimisation by stage and backend.",
            ["stage", "backend"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.gap = Gauge(
            "fleetopt_gap_ratio",
            "Relative gap of the latest optimisation by backend; NaN where no bound is proven.",
            ["backend"],
            registry=self.registry,
        )
        self.unserved = Gauge(
            "fleetopt_unserved_servers",
            "Servers not fully served in the latest optimisation by backend.",
            ["backend"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "fleetopt_requests_in_flight", "Requests that run or wait for a worker.", registry=self.registry
        )
        self.workers_ready = Gauge(
            "fleetopt_workers_ready", "Worker processes that are warm.", registry=self.registry
        )
        self.workers_lost = Counter(
            "fleetopt_workers_lost",
            "Worker processes replaced, by reason: deadline (killed for overrunning), died, start_failed.",
            ["reason"],
            registry=self.registry,
        )
        self.curves = Counter(
            "fleetopt_curves",
            "Candidates by whether their sizing was remembered from an earlier request: hit or miss.",
            ["result"],
            registry=self.registry,
        )
        self.starts = Counter(
            "fleetopt_starts",
            "Plans to start from, by whether they were better than the baseline: used or unused.",
            ["result"],
            registry=self.registry,
        )
        for result in ("used", "unused"):
            self.starts.labels(result)
        for event in WorkerEvent:
            if event is not WorkerEvent.READY:
                self.workers_lost.labels(event.value)

    def observe_request(self, path: str, backend: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests.labels(path, backend, str(status)).inc()
        self.request_seconds.labels(path).observe(seconds)

    def observe_answer(
        self, backend: str, gap: float | None, unserved: int, seconds: Mapping[str, float]
    ) -> None:
        """Count an optimisation.

        Parameters
        ----------
        backend : str
            That solved.
        gap : float or None
            Relative; None when nothing is proven.
        unserved : int
            Servers not fully served.
        seconds : mapping
            By stage.
        """
        self.gap.labels(backend).set(math.nan if gap is None else gap)
        self.unserved.labels(backend).set(unserved)
        for stage, value in seconds.items():
            self.stage_seconds.labels(stage, backend).observe(value)

    def observe_curves(self, hits: int, misses: int) -> None:
        """Count candidates whose sizing was remembered, and that had to be sized."""
        self.curves.labels("hit").inc(hits)
        self.curves.labels("miss").inc(misses)

    def observe_start(self, led: bool | None) -> None:
        """Count a start by whether it was better than the baseline; None: there was none."""
        if led is not None:
            self.starts.labels("used" if led else "unused").inc()

    def observe_pool(self, pending: Callable[[], float], ready: Callable[[], float]) -> None:
        """Read the two worker gauges from these functions whenever the metrics are scraped."""
        self.in_flight.set_function(pending)
        self.workers_ready.set_function(ready)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that the header `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, message, and the mapping in the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, stream: TextIO) -> None:
    """Send every log record of the process to `stream` as JSON lines.

    Parameters
    ----------
    level : str
        A name such as ``info``.
    stream : text file
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
