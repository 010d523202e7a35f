"""Every fault: replicas stay unless rightly so, a condition says why, and it recovers by itself."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from controller_tools import COSTS, MODEL, NAMESPACE
from loop_tools import Bench, answers, as_prometheus, prometheus_down
from prometheus_tools import answering, needs_prometheus, prometheus, reply

from controller.errors import ClusterError
from controller.loop import Edges, Now, reconcile
from controller.prometheus import Vector


@pytest.fixture
def bench(optimizer_url: str) -> Bench:
    return Bench(optimizer_url)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


# --- what to break ---


def garbage(promql: str) -> Vector:
    return [{"metric": {}}]


def respond(status: int, body: object) -> Callable[[BaseHTTPRequestHandler], None]:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda handler: reply(handler, status, text, "application/json")


def silence(stack: ExitStack) -> str:
    """Address of a server that answers nobody for half a minute."""
    over = threading.Event()
    url = stack.enter_context(answering(lambda _: bool(over.wait(30.0)) and None))
    stack.callback(over.set)
    return url


REPORT = {"termination": "optimal", "backend": "x", "solver": "x", "version": "x", "objective": 0, "bound": 0}
REPORT |= {"gap": 0, "cost": 0, "switchingPenalty": 0}


def answer(
    *, accelerator: str = "A100", replicas: int = 2, name: str = f"vllm:{NAMESPACE}"
) -> dict[str, Any]:
    """An answer of the service with one allocation."""
    allocation = {"accelerator": accelerator, "numReplicas": replicas, "maxBatch": 4, "cost": 0}
    allocation |= {"itlAverage": 0, "ttftAverage": 0, "load": {}}
    return {"allocations": {name: allocation}, "report": REPORT}


def asks(query: Callable[[str], Vector]) -> Callable[[Bench, ExitStack], None]:
    return lambda bench, stack: setattr(bench, "query", query)


def asks_at(handler: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[Bench, ExitStack], None]:
    def strike(bench: Bench, stack: ExitStack) -> None:
        bench.real_connect = True
        bench.environ["PROMETHEUS_BASE_URL"] = stack.enter_context(answering(handler))
        bench.environ["PROMETHEUS_BEARER_TOKEN"] = "not-the-one"

    return strike


def slow_prometheus(bench: Bench, stack: ExitStack) -> None:
    bench.real_connect = True
    bench.environ |= {"PROMETHEUS_BASE_URL": silence(stack), "FLEETOPT_PROMETHEUS_TIMEOUT": "300ms"}


def slow_optimizer(bench: Bench, stack: ExitStack) -> None:
    bench.url, bench.timeout_s = silence(stack), 0.3


def served(status: int, body: object) -> Callable[[Bench, ExitStack], None]:
    return lambda bench, stack: setattr(bench, "url", stack.enter_context(answering(respond(status, body))))


def without(name: str) -> Callable[[Bench, ExitStack], None]:
    return lambda bench, stack: bench.cluster.config_maps.pop(name) and None


def with_entry(name: str, key: str, text: str) -> Callable[[Bench, ExitStack], None]:
    def strike(bench: Bench, stack: ExitStack) -> None:
        bench.cluster.config_maps[name] = {**bench.cluster.config_maps[name], key: text}

    return strike


@dataclass(frozen=True)
class Fault:
    """What strikes, and the condition meanwhile: its type, its status and reason, words of its message."""

    strike: Callable[[Bench, ExitStack], None]
    condition: str
    expected: str
    says: str


FAULTS = {
    "Prometheus down": Fault(
        asks(prometheus_down), "MetricsAvailable", "False PrometheusError", "connection refused"
    ),
    "Prometheus slow": Fault(
        slow_prometheus, "MetricsAvailable", "False PrometheusError", "read timeout=0.3"
    ),
    "Prometheus empty": Fault(
        asks(lambda promql: []), "MetricsAvailable", "False MetricsMissing", "are its pods scraped"
    ),
    "Prometheus NaN": Fault(
        asks(answers(float("nan"))), "MetricsAvailable", "False MetricsMissing", "are its pods scraped"
    ),
    "Prometheus stale": Fault(
        asks(answers(40.0, **{"time() - max": 900.0})),
        "MetricsAvailable",
        "False MetricsStale",
        "are its pods still scraped",
    ),
    "Prometheus garbage": Fault(
        asks(garbage), "MetricsAvailable", "False PrometheusError", "no instant vector"
    ),
    "Prometheus starting": Fault(
        asks_at(respond(503, "starting")), "MetricsAvailable", "False PrometheusError", "503"
    ),
    "wrong token": Fault(
        asks_at(respond(401, "who are you?")), "MetricsAvailable", "False PrometheusError", "401"
    ),
    "optimizer down": Fault(
        lambda bench, stack: setattr(bench, "url", "http://127.0.0.1:9"),
        "OptimizationReady",
        "False OptimizationFailed",
        "does not answer",
    ),
    "optimizer slow": Fault(
        slow_optimizer, "OptimizationReady", "False OptimizationFailed", "read timeout=0.3"
    ),
    "optimizer busy": Fault(
        served(503, {"error": "busy", "problems": []}),
        "OptimizationReady",
        "False OptimizationFailed",
        "503: busy",
    ),
    "optimizer refuses": Fault(
        served(422, {"error": "bad", "problems": [{"path": "$.x", "value": "", "expected": "y"}]}),
        "OptimizationReady",
        "False OptimizationFailed",
        "bad; $.x: y",
    ),
    "answer without a server": Fault(
        served(200, {"allocations": {}, "report": REPORT}),
        "OptimizationReady",
        "False NotInAnswer",
        f"says nothing about vllm:{NAMESPACE}",
    ),
    "answer over inventory": Fault(
        served(200, answer(replicas=9)),
        "OptimizationReady",
        "False OptimizationFailed",
        "takes 9 NVIDIA-A100-PCIE-80GB, there are 8",
    ),
    "answer below zero": Fault(
        served(200, answer(replicas=-1)), "OptimizationReady", "False OptimizationFailed", "-1 replicas"
    ),
    "answer on hardware that is not there": Fault(
        served(200, answer(accelerator="B200")), "OptimizationReady", "False OptimizationFailed", "'B200'"
    ),
    "answer malformed": Fault(
        served(200, "no json"), "OptimizationReady", "False OptimizationFailed", "is malformed"
    ),
    "answer without a report": Fault(
        served(200, {"allocations": {}}), "OptimizationReady", "False OptimizationFailed", "report"
    ),
    "Deployment deleted and made anew": Fault(
        lambda bench, stack: setattr(bench.cluster, "has_target", False),
        "TargetResolved",
        "False TargetNotFound",
        "there is no Deployment vllm",
    ),
    "no ConfigMap of classes": Fault(
        without("service-classes-config"), "OptimizationReady", "False ClassMissing", "no service class"
    ),
    "no ConfigMap of prices": Fault(
        without("accelerator-unit-costs"),
        "OptimizationReady",
        "False AcceleratorUnknown",
        "accelerator-unit-costs has no usable entry for A100",
    ),
    "bad price among good ones": Fault(
        with_entry("accelerator-unit-costs", "A100", "{"),
        "OptimizationReady",
        "False AcceleratorUnknown",
        "accelerator-unit-costs has no usable entry for A100",
    ),
    "bad class among good ones": Fault(
        with_entry("service-classes-config", "premium.yaml", "name: ["),
        "OptimizationReady",
        "False ClassMissing",
        f"no service class lists the model {MODEL}",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_changes_nothing_says_why_and_recovers(name: str, bench: Bench) -> None:
    bench.step()
    assert bench.cluster.replicas == 2
    desired = bench.gauges()["inferno_desired_replicas"]
    healthy = (bench.url, bench.timeout_s, dict(bench.environ), dict(bench.cluster.config_maps))
    fault = FAULTS[name]

    with ExitStack() as stack:
        fault.strike(bench, stack)
        # More arrives meanwhile, yet nobody can tell.
        outcome = bench.step()
        assert bench.cluster.scaled == [2]
        assert bench.cluster.condition(fault.condition) == fault.expected
        assert fault.says in bench.cluster.message(fault.condition)
        assert bench.cluster.condition("OptimizationReady").startswith("False")
        assert outcome.problems
        assert "not-the-one" not in str(outcome.problems)
        assert bench.gauges()["inferno_desired_replicas"] == desired

        # It lasts: nothing more is written, and the log has nothing new to say.
        writes = bench.cluster.writes
        again = bench.step()
        assert again.problems == outcome.problems
        assert bench.cluster.writes == writes

    bench.url, bench.timeout_s, bench.environ, bench.cluster.config_maps = healthy
    bench.cluster.has_target, bench.real_connect, bench.query = True, False, answers(120.0)
    outcome = bench.step()
    assert bench.cluster.scaled == [2, 5]
    assert bench.cluster.condition(fault.condition).startswith("True")
    assert outcome.problems == ()


def test_rotated_token(bench: Bench, tmp_path: Path, stack: ExitStack) -> None:
    """The file has the old token for a while."""
    file, right = tmp_path / "token", ["one"]
    file.write_text("one\n")
    rate_rpm = [40.0]
    handler = as_prometheus(
        lambda promql: answers(rate_rpm[0])(promql), lambda given: given == f"Bearer {right[0]}"
    )
    bench.real_connect = True
    bench.environ["PROMETHEUS_BASE_URL"] = stack.enter_context(answering(handler))
    bench.environ["PROMETHEUS_TOKEN_PATH"] = str(file)
    bench.step()
    assert bench.cluster.scaled == [2]

    right[0], rate_rpm[0] = "two", 120.0
    bench.step()
    assert bench.cluster.scaled == [2]
    assert bench.cluster.condition("MetricsAvailable") == "False PrometheusError"

    file.write_text("two\n")
    assert bench.step().problems == ()
    assert bench.cluster.scaled == [2, 5]


def test_bad_entry_of_others_and_a_bad_interval_stop_nothing(bench: Bench) -> None:
    """They belong to no variant: the log says what they are, and the default interval counts meanwhile."""
    bench.cluster.config_maps["accelerator-unit-costs"] = {**COSTS, "B200": "{"}
    bench.cluster.config_maps["x-variantautoscaling-config"] = {"GLOBAL_OPT_INTERVAL": "sometimes"}
    outcome = bench.step()
    assert bench.cluster.scaled == [2]
    assert bench.cluster.condition("OptimizationReady") == "True OptimizationSucceeded"
    assert outcome.settings.interval_s == 60
    assert ["B200" in p or "GLOBAL_OPT_INTERVAL" in p for p in outcome.problems] == [True, True]

    bench.cluster.config_maps["accelerator-unit-costs"] = COSTS
    bench.cluster.config_maps["x-variantautoscaling-config"] = {"GLOBAL_OPT_INTERVAL": "90s"}
    outcome = bench.step()
    assert outcome.settings.interval_s == 90
    assert outcome.problems == ()


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


def test_api_server_that_is_away(bench: Bench) -> None:
    """Not even a condition can be written; what was known is kept."""
    bench.step()
    bench.cluster.is_down = True
    with pytest.raises(ClusterError):
        bench.step()
    assert bench.gauges()["inferno_desired_replicas"] == 2
    bench.cluster.is_down, bench.query = False, answers(120.0)
    assert bench.step().problems == ()
    assert bench.cluster.scaled == [2, 5]


def test_variant_deleted_during_a_pass(bench: Bench) -> None:
    bench.step()
    there = bench.cluster.variants

    def query(promql: str) -> Vector:
        bench.cluster.variants = []
        return answers(40.0)(promql)

    bench.query = query
    assert bench.step().problems == ()
    assert bench.cluster.scaled == [2]
    bench.query = answers(120.0)
    assert bench.step().plan.decisions == ()
    assert bench.gauges() == {}
    bench.cluster.variants = there
    bench.step()
    assert bench.cluster.scaled == [2, 5]


@pytest.mark.parametrize("year", [2016, 2036])
def test_clock_of_people_may_jump(bench: Bench, year: int) -> None:
    """The window of a scale-down goes by a clock that does not jump."""
    bench.environ["FLEETOPT_SCALE_DOWN_WINDOW"] = "5m"
    bench.step()
    bench.query = answers(1.0)
    edges = Edges(
        bench.cluster, bench.cluster, bench.metrics, bench.connect, lambda _: bench.optimizer(), bench.environ
    )
    reconcile(edges, bench.state, Now(120.0, datetime(year, 1, 1, tzinfo=UTC)))
    assert bench.cluster.replicas == 2


@needs_prometheus
def test_counters_reset_by_a_pod_restart(bench: Bench, tmp_path: Path, stack: ExitStack) -> None:
    """A pod with 300 requests in flight restarts: they are neither arrivals nor the lack of them."""
    labels, now_s = f'{{model_name="{MODEL}",namespace="{NAMESPACE}"}}', time.time() - 1.0
    history = []
    for step in range(41):
        at_s, before = now_s - 600.0 + 15.0 * step, step < 38
        done = 10.0 * step if before else 10.0 * (step - 38)
        values = {
            "vllm:request_success_total": done,
            "vllm:num_requests_running": 300.0 if before else 2.0,
            "vllm:num_requests_waiting": 0.0,
            "vllm:request_prompt_tokens_sum": 128.0 * done,
            "vllm:request_prompt_tokens_count": done,
            "vllm:request_generation_tokens_sum": 178.0 * done,
            "vllm:request_generation_tokens_count": done,
        }
        history += [(name + labels, at_s, value) for name, value in values.items()]
    bench.step()
    bench.real_connect = True
    bench.environ["PROMETHEUS_BASE_URL"] = stack.enter_context(prometheus(tmp_path, history=history))
    outcome = bench.step()
    assert outcome.problems == ()
    assert bench.cluster.scaled == [2]
    assert outcome.plan.decisions[0].recommended == 2
