"""A cluster in memory, a Prometheus of given answers, and passes over them one minute apart."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cluster_tools import deployment, node
from controller_tools import CLASSES, COSTS, MODEL, NAMESPACE, profile, va
from prometheus_tools import reply

from controller.client import HttpOptimizer
from controller.collect import View
from controller.crd import Variant, VariantKey
from controller.errors import ClusterError, PrometheusError
from controller.loop import Edges, Now, Outcome, State, reconcile
from controller.metrics import VariantMetrics
from controller.prometheus import Query, Vector, connect
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

    def own(self, variant: Variant, reference: dict[str, Any]) -> None:
        self.writes += 1
        for document in self.variants:
            if document["metadata"]["name"] == variant.key.name:
                document["metadata"]["ownerReferences"] = [reference]

    def record(self, variant: Variant, reason: str, message: str) -> None:
        self.writes += 1

    def condition(self, kind: str) -> str:
        found = {c["type"]: c for c in self.variants[0]["status"].get("conditions", [])}
        return f"{found[kind]['status']} {found[kind]['reason']}"

    def message(self, kind: str) -> str:
        return next(c["message"] for c in self.variants[0]["status"]["conditions"] if c["type"] == kind)


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

    def optimizer(self) -> HttpOptimizer:
        return HttpOptimizer(self.url, self.timeout_s)

    def step(self, woken: frozenset[tuple[str, str]] = frozenset()) -> Outcome:
        edges = Edges(
            reader=self.cluster,
            writer=self.cluster,
            publisher=self.metrics,
            connect=connect if self.real_connect else self.connect,
            optimizer=lambda _: self.optimizer(),
            environ=self.environ,
        )
        self.minute += 1
        now = Now(60.0 * self.minute, datetime(2026, 1, 1, 0, self.minute, tzinfo=UTC))
        outcome = reconcile(edges, self.state, now, woken)
        self.state = outcome.state
        self.metrics.passed(outcome.figures)
        return outcome

    def gauges(self) -> dict[str, float]:
        return {
            sample.name: sample.value
            for family in self.metrics.collect()
            for sample in family.samples
            if sample.labels.get("variant_name") == "vllm"
        }


def as_prometheus(query: Query, is_welcome: Callable[[str], bool] = lambda _: True) -> Any:
    """A handler that answers as Prometheus does, to those whose Authorization is welcome."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if not is_welcome(handler.headers.get("Authorization", "")):
            reply(handler, 401, "who are you?")
            return
        (promql,) = parse_qs(urlsplit(handler.path).query)["query"]
        data = {"resultType": "vector", "result": query(promql)}
        reply(handler, 200, json.dumps({"status": "success", "data": data}), "application/json")

    return answer


def prometheus_down(promql: str) -> Vector:
    raise PrometheusError("connection refused")
