"""Passes with the real service, and every fault: replicas stay, a condition says why, and it recovers."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from cluster_tools import deployment, node, pod
from controller_tools import CLASSES, COSTS, MODEL, NAMESPACE, profile, va
from prometheus_tools import answering, reply

from controller.client import HttpOptimizer
from controller.collect import View
from controller.crd import Variant, VariantKey
from controller.errors import ClusterError, PrometheusError
from controller.loop import Edges, Now, Outcome, State, reconcile, run
from controller.metrics import VariantMetrics
from controller.prometheus import Query, Vector, connect
from controller.record import record_line
from controller.settings import Prometheus

A100 = "NVIDIA-A100-PCIE-80GB"
KEY = VariantKey(NAMESPACE, "vllm")


@dataclass
class Cluster:
    """A cluster in memory: one variant, its Deployment, a node; what is written is kept."""

    variants: list[dict[str, Any]] = field(default_factory=lambda: [va(profiles=[profile("A100")])])
    replicas: int = 1
    nodes: list[dict[str, Any]] | None = field(default_factory=lambda: [node("n", A100)])
    pods: list[dict[str, Any]] = field(default_factory=list)
    config_maps: dict[str, dict[str, str]] = field(
        default_factory=lambda: {"accelerator-unit-costs": COSTS, "service-classes-config": CLASSES}
    )
    has_target: bool = True
    is_down: bool = False
    scaled: list[int] = field(default_factory=list)
    writes: int = 0

    def read(self) -> View:
        if self.is_down:
            raise ClusterError("the Kubernetes API does not answer")
        target = {KEY: deployment("vllm", NAMESPACE, replicas=self.replicas)} if self.has_target else {}
        return View(self.variants, target, self.pods, self.nodes, self.config_maps)

    def patch_status(self, variant: Variant, patch: dict[str, Any]) -> None:
        self.writes += 1
        for document in self.variants:
            if document["metadata"]["name"] == variant.key.name:
                document["status"] = {**document["status"], **patch["status"]}

    def scale(self, variant: Variant, replicas: int) -> None:
        self.scaled.append(replicas)
        self.replicas = replicas

    def record(self, variant: Variant, reason: str, message: str) -> None:
        self.writes += 1

    def condition(self, kind: str) -> str:
        found = {c["type"]: c for c in self.variants[0]["status"].get("conditions", [])}
        return f"{found[kind]['status']} {found[kind]['reason']}"


def answers(rate_rpm: float, **more: float) -> Callable[[str], Vector]:
    """Prometheus of a model with this load, without pod labels."""
    values = {
        "rate(vllm:request_success_total": rate_rpm,
        "rate(vllm:request_prompt_tokens_sum": 128.0,
        "rate(vllm:request_generation_tokens_sum": 178.0,
        **more,
    }

    def query(promql: str) -> Vector:
        labels = {"model_name": MODEL, "namespace": NAMESPACE}
        return [
            {"metric": labels, "value": [0, str(value)]}
            for start, value in values.items()
            if start in promql[:80]
        ]

    return query


class Bench:
    """Passes one minute apart, with edges that can be swapped in between."""

    def __init__(self, url: str) -> None:
        self.cluster = Cluster()
        self.query: Query = answers(40.0)
        self.metrics = VariantMetrics()
        self.url, self.timeout_s = url, 20.0
        self.environ: dict[str, str] = {"FLEETOPT_ACTUATE": "scale", "FLEETOPT_SCALE_DOWN_WINDOW": "0s"}
        self.state, self.minute = State(), 0
        self.real_connect = False

    @contextmanager
    def connect(self, settings: Prometheus) -> Iterator[Query]:
        yield self.query

    def step(self, woken: frozenset[tuple[str, str]] = frozenset()) -> Outcome:
        edges = Edges(
            reader=self.cluster,
            writer=self.cluster,
            publisher=self.metrics,
            connect=connect if self.real_connect else self.connect,
            optimizer=lambda _: HttpOptimizer(self.url, self.timeout_s),
            environ=self.environ,
        )
        self.minute += 1
        now = Now(60.0 * self.minute, datetime(2026, 1, 1, 0, self.minute, tzinfo=UTC))
        outcome = reconcile(edges, self.state, now, woken)
        self.state = outcome.state
        return outcome

    def gauges(self) -> dict[str, float]:
        return {
            sample.name: sample.value
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.labels.get("variant_name") == "vllm"
        }


@pytest.fixture
def bench(optimizer_url: str) -> Bench:
    return Bench(optimizer_url)


def test_load_rises_and_falls(bench: Bench) -> None:
    bench.step()
    assert bench.cluster.replicas == 2
    bench.query = answers(120.0)
    bench.step()
    assert bench.cluster.replicas == 5
    bench.query = answers(1.0)
    bench.step()
    assert bench.cluster.replicas == 1
    assert bench.cluster.scaled == [2, 5, 1]


def test_status_gauge_and_target_agree(bench: Bench) -> None:
    bench.step()
    bench.step()
    status = bench.cluster.variants[0]["status"]
    assert status["desiredOptimizedAlloc"]["numReplicas"] == bench.cluster.replicas == 2
    assert status["currentAlloc"]["numReplicas"] == 2
    gauges = bench.gauges()
    assert gauges["inferno_desired_replicas"] == gauges["wva_desired_replicas"] == 2
    assert gauges["inferno_current_replicas"] == gauges["wva_current_replicas"] == 2
    assert gauges["inferno_desired_ratio"] == 1


def test_quiet_pass_writes_nothing(bench: Bench) -> None:
    bench.step()
    bench.step()
    before = bench.cluster.writes
    bench.step()
    assert bench.cluster.writes == before


def test_no_variants_keep_the_loop_waiting(bench: Bench) -> None:
    """Theirs ends the loop on an empty list."""
    there, bench.cluster.variants = bench.cluster.variants, []
    assert bench.step().plan.decisions == ()
    bench.cluster.variants = there
    assert len(bench.step().plan.decisions) == 1


def prometheus_down(promql: str) -> Vector:
    raise PrometheusError("connection refused")


def garbage(promql: str) -> Vector:
    return [{"metric": {}}]


FAULTS: dict[str, tuple[Callable[[Bench], None], str, str]] = {
    "Prometheus down": (
        lambda b: setattr(b, "query", prometheus_down),
        "MetricsAvailable",
        "False PrometheusError",
    ),
    "Prometheus garbage": (
        lambda b: setattr(b, "query", garbage),
        "MetricsAvailable",
        "False PrometheusError",
    ),
    "Prometheus empty": (
        lambda b: setattr(b, "query", lambda promql: []),
        "MetricsAvailable",
        "False MetricsMissing",
    ),
    "Prometheus NaN": (
        lambda b: setattr(b, "query", answers(float("nan"))),
        "MetricsAvailable",
        "False MetricsMissing",
    ),
    "Prometheus stale": (
        lambda b: setattr(b, "query", answers(40.0, **{"time() - max": 900.0})),
        "MetricsAvailable",
        "False MetricsStale",
    ),
    "optimizer down": (
        lambda b: setattr(b, "url", "http://127.0.0.1:9"),
        "OptimizationReady",
        "False OptimizationFailed",
    ),
    "target deleted": (
        lambda b: setattr(b.cluster, "has_target", False),
        "TargetResolved",
        "False TargetNotFound",
    ),
    "no class ConfigMap": (
        lambda b: b.cluster.config_maps.pop("service-classes-config") and None,
        "OptimizationReady",
        "False ClassMissing",
    ),
    "no price ConfigMap": (
        lambda b: b.cluster.config_maps.pop("accelerator-unit-costs") and None,
        "OptimizationReady",
        "False AcceleratorUnknown",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_changes_nothing_says_why_and_recovers(fault: str, bench: Bench) -> None:
    bench.step()
    assert bench.cluster.replicas == 2
    gauges = bench.gauges()
    healthy = (bench.query, bench.url, dict(bench.cluster.config_maps))
    break_it, condition, expected = FAULTS[fault]

    break_it(bench)
    outcome = bench.step()
    assert bench.cluster.scaled == [2]
    assert bench.cluster.condition(condition) == expected
    assert bench.cluster.condition("OptimizationReady").startswith("False")
    assert outcome.problems
    assert bench.gauges()["inferno_desired_replicas"] == gauges["inferno_desired_replicas"]

    bench.query, bench.url, bench.cluster.config_maps = healthy
    bench.cluster.has_target = True
    bench.query = answers(120.0)
    outcome = bench.step()
    assert bench.cluster.scaled == [2, 5]
    assert bench.cluster.condition(condition).startswith("True")
    assert outcome.problems == ()


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_lasts_is_written_once(fault: str, bench: Bench) -> None:
    bench.step()
    FAULTS[fault][0](bench)
    first = bench.step()
    writes = bench.cluster.writes
    second = bench.step()
    assert bench.cluster.writes == writes
    assert first.problems == second.problems


def respond(status: int, body: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, status, body, "application/json")


REPORT = {"termination": "optimal", "backend": "x", "solver": "x", "version": "x", "objective": 0, "bound": 0}
REPORT |= {"gap": 0, "cost": 0, "switchingPenalty": 0}


def allocation(replicas: int) -> dict[str, Any]:
    return {
        "accelerator": "A100",
        "numReplicas": replicas,
        "maxBatch": 4,
        "cost": 0,
        "itlAverage": 0,
        "ttftAverage": 0,
        "load": {},
    }


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, {"error": "busy", "problems": []}, "OptimizationFailed"),
        (
            422,
            {"error": "bad", "problems": [{"path": "$.x", "value": "", "expected": "y"}]},
            "OptimizationFailed",
        ),
        (200, "no json", "OptimizationFailed"),
        (200, {"allocations": {}}, "OptimizationFailed"),
        (200, {"allocations": {}, "report": REPORT}, "NotInAnswer"),
        (
            200,
            {"allocations": {f"vllm:{NAMESPACE}": allocation(9)}, "report": REPORT},
            "OptimizationFailed",
        ),
        (
            200,
            {"allocations": {f"vllm:{NAMESPACE}": allocation(-1)}, "report": REPORT},
            "OptimizationFailed",
        ),
    ],
)
def test_answers_that_are_none(status: int, body: object, reason: str, bench: Bench) -> None:
    bench.step()
    with answering(respond(status, body if isinstance(body, str) else json.dumps(body))) as url:
        bench.url = url
        bench.step()
    assert bench.cluster.scaled == [2]
    assert bench.cluster.condition("OptimizationReady") == f"False {reason}"


def test_optimizer_that_is_slow_is_given_up(bench: Bench) -> None:
    over = threading.Event()
    with answering(lambda _: over.wait(30.0) and None) as url:  # type: ignore[func-returns-value]
        bench.url, bench.timeout_s = url, 0.3
        outcome = bench.step()
        over.set()
    assert "read timeout=0.3" in outcome.problems[0]
    assert bench.cluster.scaled == []
    assert bench.cluster.condition("OptimizationReady") == "False OptimizationFailed"


def test_wrong_token_is_told(bench: Bench) -> None:
    bench.real_connect = True
    with answering(respond(401, "who are you?")) as url:
        bench.environ |= {"PROMETHEUS_BASE_URL": url, "PROMETHEUS_BEARER_TOKEN": "wrong"}
        bench.step()
    assert bench.cluster.scaled == []
    assert bench.cluster.condition("MetricsAvailable") == "False PrometheusError"
    message = bench.cluster.variants[0]["status"]["conditions"][0]["message"]
    assert "401" in message
    assert "wrong" not in message


def test_bad_entries_cost_themselves_alone(bench: Bench) -> None:
    """Theirs stops everything for one bad cost entry."""
    bench.cluster.config_maps["accelerator-unit-costs"] = {**COSTS, "B200": "{"}
    bench.cluster.config_maps["x-variantautoscaling-config"] = {"GLOBAL_OPT_INTERVAL": "sometimes"}
    outcome = bench.step()
    assert bench.cluster.scaled == [2]
    assert outcome.settings.interval_s == 60
    assert ["B200" in p or "GLOBAL_OPT_INTERVAL" in p for p in outcome.problems] == [True, True]


def test_unreadable_nodes_are_told_and_scaling_goes_on(bench: Bench) -> None:
    bench.step()
    nodes, bench.cluster.nodes = bench.cluster.nodes, None
    bench.query = answers(120.0)
    bench.step()
    assert bench.cluster.replicas == 5
    assert bench.cluster.condition("InventoryKnown") == "False NodesUnreadable"
    bench.step()
    writes = bench.cluster.writes
    bench.step()
    assert bench.cluster.writes == writes
    # The last count of GPUs holds: 16 replicas would be needed, and there are 8 cards.
    bench.query = answers(400.0)
    bench.step()
    assert bench.cluster.replicas == 8
    bench.cluster.nodes = nodes
    bench.step()
    assert bench.cluster.condition("InventoryKnown") == "True NodesRead"


def test_gpus_that_another_team_takes_are_not_ours(bench: Bench) -> None:
    bench.query = answers(120.0)
    bench.cluster.pods = [pod("training", "other", "n", 5)]
    bench.step()
    assert bench.cluster.replicas == 3
    assert bench.cluster.condition("OptimizationReady") == "True DemandUnserved"


def test_scale_to_zero_and_back(bench: Bench) -> None:
    """Theirs cannot come back."""
    bench.environ |= {"WVA_SCALE_TO_ZERO": "true", "FLEETOPT_SCALE_TO_ZERO_RETENTION": "2m"}
    seen = []
    for rate_rpm in (40.0, 0.0, 0.0, 0.0):
        bench.query = answers(rate_rpm)
        bench.step()
        seen.append(bench.cluster.replicas)
    bench.query = lambda promql: []
    bench.step()
    seen.append(bench.cluster.replicas)
    bench.step(frozenset({(NAMESPACE, MODEL)}))
    seen.append(bench.cluster.replicas)
    assert seen == [2, 1, 0, 0, 0, 1]


def test_clock_of_people_may_jump(bench: Bench) -> None:
    bench.environ["FLEETOPT_SCALE_DOWN_WINDOW"] = "5m"
    bench.step()
    bench.query = answers(1.0)
    edges = Edges(
        bench.cluster,
        bench.cluster,
        bench.metrics,
        bench.connect,
        lambda _: HttpOptimizer(bench.url, bench.timeout_s),
        bench.environ,
    )
    for year in (2036, 2016):
        reconcile(edges, bench.state, Now(120.0, datetime(year, 1, 1, tzinfo=UTC)))
    assert bench.cluster.replicas == 2


def test_gauges_go_with_their_variant_and_the_counter_counts(bench: Bench) -> None:
    """Theirs never counts."""
    bench.step()
    bench.query = answers(120.0)
    bench.step()
    gauges = bench.gauges()
    assert gauges["inferno_replica_scaling_total"] == gauges["wva_replica_scaling_total"] == 2
    bench.cluster.variants = []
    bench.step()
    assert bench.gauges() == {}


def test_held_variant_keeps_what_was_published(bench: Bench) -> None:
    bench.step()
    bench.query = prometheus_down
    bench.cluster.variants[0]["status"] = {}
    bench.cluster.replicas = 4
    bench.step()
    gauges = bench.gauges()
    assert (gauges["inferno_desired_replicas"], gauges["inferno_current_replicas"]) == (2, 4)
    labels = {
        sample.labels["accelerator_type"]
        for family in bench.metrics.collect()
        for sample in family.samples
        if sample.name == "wva_desired_replicas"
    }
    assert labels == {"A100"}


def test_new_leader_shows_what_was_decided_and_counts_nothing_twice(bench: Bench) -> None:
    bench.step()
    bench.metrics = VariantMetrics()
    bench.query = prometheus_down
    bench.step()
    gauges = bench.gauges()
    assert gauges["inferno_desired_replicas"] == 2
    assert "inferno_replica_scaling_total" not in gauges


def test_record_of_a_pass_can_be_solved_again(bench: Bench, optimizer_url: str) -> None:
    from solver.schema import parse_system

    outcome = bench.step()
    line = record_line(outcome, Now(0.0, datetime(2026, 1, 1, tzinfo=UTC)))
    assert "\n" not in line
    document = json.loads(line)
    (decision,) = document["decisions"]
    assert (decision["current"], decision["desired"], decision["held"]) == (1, 2, None)
    again = HttpOptimizer(optimizer_url, 20.0).optimize(parse_system(document["system"]).system)
    assert again.allocations[f"vllm:{NAMESPACE}"].num_replicas == 2


# --- the loop ---


def test_run_goes_on_after_a_cluster_that_does_not_answer_and_says_so_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    down = iter((False, True, True, False))
    waits: list[float] = []

    def step(state: State, now: Now) -> Outcome:
        bench.cluster.is_down = next(down)
        return bench.step()

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 4

    bench.environ["GLOBAL_OPT_INTERVAL"] = "45s"
    with caplog.at_level(logging.INFO, logger="fleetopt.controller"):
        run(step, wait)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "the Kubernetes API does not answer",
        "over: the Kubernetes API does not answer",
    ]
    assert all(30.0 < seconds <= 45.0 for seconds in waits)


def test_state_goes_from_pass_to_pass(bench: Bench) -> None:
    seen: list[State] = []

    def step(state: State, now: Now) -> Outcome:
        seen.append(state)
        return bench.step()

    run(step, lambda _: len(seen) == 2)
    assert seen[0] == State()
    assert seen[1].memory.recommended.keys() == {KEY}


def test_one_pass_for_all_variants(bench: Bench) -> None:
    """Theirs does a pass over all variants for every variant."""
    asked: list[str] = []
    inner = bench.query

    def query(promql: str) -> Vector:
        asked.append(promql)
        return inner(promql)

    bench.query = query
    first = bench.cluster.variants[0]
    bench.cluster.variants = [
        {**first, "metadata": {**first["metadata"], "name": f"v{i}", "namespace": f"n{i}"}} for i in range(50)
    ]
    outcome = bench.step()
    assert len(outcome.plan.decisions) == 50
    assert len(asked) <= 12


def test_now_is_written_as_kubernetes_wants_it() -> None:
    now = Now(0.0, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))
    assert now.rfc3339 == "2026-01-02T03:04:05Z"
    assert replace(now, steady_s=1.0).steady_s == 1.0
