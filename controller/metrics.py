"""What autoscalers and dashboards read: the reference's gauges and counter under both names, and our own.

Values are kept in one object that is replaced pass by pass, so a series goes with its variant or accelerator.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.core import Metric

    from controller.actuate import Decision
    from controller.crd import VariantKey
    from controller.latency import Compared

# The names of 2025 and of 2026.
PREFIXES = ("inferno", "wva")

_VARIANT_LABELS = ("variant_name", "namespace", "accelerator_type")
_SCALING_LABELS = ("variant_name", "namespace", "direction", "reason")


@dataclass(frozen=True)
class Row:
    """What is published about a variant."""

    accelerator: str
    current: int
    desired: int

    @property
    def ratio(self) -> float:
        """Desired by current replicas; from zero it is the desired number, as the reference has it."""
        return self.desired / self.current if self.current else float(self.desired)


@dataclass(frozen=True)
class PassFigures:
    """Figures of a pass.

    Attributes
    ----------
    ok : bool
        Whether it came to decisions.
    at_unix_s : float
        When it ended.
    seconds : mapping of str to float
        By stage.
    held : mapping of str to int
        Variants that are held, by reason.
    failed_writes : int
    gap : float or None
        Of the optimizer's answer; None: not proven.
    inventory_known : bool
    latencies : mapping of VariantKey to Compared
        Of the variants that run.
    """

    ok: bool
    at_unix_s: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    failed_writes: int = 0
    gap: float | None = None
    inventory_known: bool = True
    latencies: Mapping[VariantKey, Compared] = field(default_factory=dict)


class VariantMetrics(Collector):
    """The metrics of a controller; a `controller.actuate.Publisher`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[VariantKey, Row] = {}
        self._scalings: Counter[tuple[VariantKey, str, str]] = Counter()
        self._passes: Counter[str] = Counter()
        self._failed_writes = 0
        self._last: PassFigures | None = None
        self._last_ok_unix_s = 0.0

    def publish(self, decisions: Sequence[Decision]) -> None:
        """Show the decisions of a pass.

        A variant that is held keeps what was published; where nothing was, since this process has just begun
        to lead, its status says what was decided last. That is no reason to end replicas which others have
        added since. Nothing of a variant that is gone stays.
        """
        with self._lock:
            rows: dict[VariantKey, Row] = {}
            for decision in decisions:
                key = decision.variant.key
                row = _row(decision, self._rows.get(key))
                if row is None:
                    continue
                rows[key] = row
                if decision.changes and row.desired != _known_before(decision, self._rows.get(key)):
                    direction = "up" if row.desired > row.current else "down"
                    self._scalings[key, direction, "optimization"] += 1
            there = {decision.variant.key for decision in decisions}
            self._scalings = Counter({k: n for k, n in self._scalings.items() if k[0] in there})
            self._rows = rows

    def passed(self, figures: PassFigures) -> None:
        """Show the figures of a pass."""
        with self._lock:
            self._passes["ok" if figures.ok else "failed"] += 1
            self._failed_writes += figures.failed_writes
            self._last = figures
            if figures.ok:
                self._last_ok_unix_s = figures.at_unix_s

    def clear(self) -> None:
        """Show nothing of variants any more: another controller leads."""
        with self._lock:
            self._rows = {}
            self._scalings.clear()
            if self._last is not None:
                self._last = replace(self._last, latencies={})

    def collect(self) -> Iterable[Metric]:
        """Yield the metric families."""
        with self._lock:
            rows, scalings = dict(self._rows), Counter(self._scalings)
            passes, last = Counter(self._passes), self._last
            failed_writes, last_ok_unix_s = self._failed_writes, self._last_ok_unix_s
        for prefix in PREFIXES:
            yield from _variant_families(prefix, rows, scalings)
        yield from _own_families(passes, failed_writes, last, last_ok_unix_s)
        yield from _latency_families(last.latencies if last else {})


def _row(decision: Decision, before: Row | None) -> Row | None:
    if decision.desired is not None:
        return Row(decision.accelerator, decision.current or 0, decision.desired)
    if before is not None:
        return Row(before.accelerator, decision.current or 0, before.desired)
    told = decision.variant.status.get("desiredOptimizedAlloc") or {}
    if "numReplicas" not in told:
        return None
    current = decision.current or 0
    return Row(told.get("accelerator", ""), current, max(int(told["numReplicas"]), current))


def _known_before(decision: Decision, before: Row | None) -> int | None:
    """Replicas that were desired already, as published or as an earlier process wrote it down."""
    if before is not None:
        return before.desired
    told = (decision.variant.status.get("desiredOptimizedAlloc") or {}).get("numReplicas")
    return int(told) if told is not None else None


def _variant_families(
    prefix: str, rows: Mapping[VariantKey, Row], scalings: Mapping[tuple[VariantKey, str, str], int]
) -> Iterable[Metric]:
    desired = GaugeMetricFamily(
        f"{prefix}_desired_replicas", "Replicas that a variant is to have", labels=_VARIANT_LABELS
    )
    current = GaugeMetricFamily(
        f"{prefix}_current_replicas", "Replicas that a variant is asked to have now", labels=_VARIANT_LABELS
    )
    ratio = GaugeMetricFamily(
        f"{prefix}_desired_ratio", "Desired by current replicas", labels=_VARIANT_LABELS
    )
    for key, row in sorted(rows.items()):
        labels = (key.name, key.namespace, row.accelerator)
        desired.add_metric(labels, row.desired)
        current.add_metric(labels, row.current)
        ratio.add_metric(labels, row.ratio)
    scaling = CounterMetricFamily(
        f"{prefix}_replica_scaling", "Decisions to change the replicas of a variant", labels=_SCALING_LABELS
    )
    for (key, direction, reason), count in sorted(scalings.items()):
        scaling.add_metric((key.name, key.namespace, direction, reason), count)
    yield from (desired, current, ratio, scaling)


def _latency_families(latencies: Mapping[VariantKey, Compared]) -> Iterable[Metric]:
    labels = (*_VARIANT_LABELS, "kind")
    ttft = GaugeMetricFamily(
        "fleetopt_controller_ttft_milliseconds",
        "Mean time to first token of what runs (law 1: predicted is the wait)",
        labels=labels,
    )
    itl = GaugeMetricFamily(
        "fleetopt_controller_itl_milliseconds", "Mean inter-token latency of what runs", labels=labels
    )
    for key, found in sorted(latencies.items()):
        for kind, latency in (("predicted", found.predicted), ("observed", found.observed)):
            values = (key.name, key.namespace, found.accelerator, kind)
            # What is not known has no series: a zero or a NaN would be taken for a figure.
            if latency.ttft_ms is not None:
                ttft.add_metric(values, latency.ttft_ms)
            if latency.itl_ms is not None:
                itl.add_metric(values, latency.itl_ms)
    yield from (ttft, itl)


def _own_families(
    passes: Mapping[str, int], failed_writes: int, last: PassFigures | None, last_ok_unix_s: float
) -> Iterable[Metric]:
    name = "fleetopt_controller"
    results = CounterMetricFamily(f"{name}_passes", "Passes by result", labels=("result",))
    for result in ("ok", "failed"):
        results.add_metric((result,), passes.get(result, 0))
    yield results
    yield CounterMetricFamily(
        f"{name}_failed_writes", "Writes to the Kubernetes API that failed", value=failed_writes
    )
    yield GaugeMetricFamily(
        f"{name}_last_success_timestamp_seconds",
        "When a pass last came to decisions; 0: never",
        value=last_ok_unix_s,
    )
    if last is None:
        return
    seconds = GaugeMetricFamily(f"{name}_pass_seconds", "Time of the last pass by stage", labels=("stage",))
    for stage, value in last.seconds.items():
        seconds.add_metric((stage,), value)
    yield seconds
    held = GaugeMetricFamily(
        f"{name}_held_variants", "Variants that keep what they run, by reason", labels=("reason",)
    )
    for reason, count in sorted(last.held.items()):
        held.add_metric((reason,), count)
    yield held
    yield GaugeMetricFamily(
        f"{name}_inventory_known",
        "Whether the GPUs of the cluster are known",
        value=float(last.inventory_known),
    )
    if last.gap is not None:
        yield GaugeMetricFamily(
            f"{name}_optimizer_gap", "Proven relative gap of the last answer", value=last.gap
        )
