"""Model servers that need no GPU: vLLM's series for every pod of a cluster, from a simulated queue.

::

    with FakeServing() as serving:
        serving.follow(api, {("llm", "chat"): Server("llama-8b", Engine(alpha_ms=6.9, beta_ms=0.042, ...))})
        serving.set_rate("llm", "llama-8b", 12.0)
        scrape_configs = [{"job_name": "vllm", "static_configs": [{"targets": [serving.target]}]}]

Requests of a model arrive evenly spaced and go to the pod that is the least full. A pod has room for a batch;
the others wait there, first come first served, so an overload is a queue that grows and not more completions.
One page has the series of all pods with the labels that a PodMonitor gives them: namespace, pod, model_name.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from kubernetes import client
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_LABELS = ("namespace", "pod", "model_name")

# Edges of vLLM's histograms.
# fmt: off
_SECONDS_TO_FIRST = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
_SECONDS_BETWEEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)
# fmt: on
_TOKENS = tuple(float(digit * 10**power) for power in range(5) for digit in (1, 2, 5))

# Steps of this spread over 0..1 as evenly as any (the golden ratio), so sizes need no random numbers.
_EVEN_STEP = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Engine:
    """How fast one replica is, by the law of a prefill and decodes.

    While n requests are in service a token takes alpha + beta n, and the first token of a request with a
    input tokens gamma + delta a n.

    Attributes
    ----------
    alpha_ms, beta_ms : float
        alpha + beta > 0.
    max_batch : int
        Most requests in service at once.
    gamma_ms, delta_ms : float
    """

    alpha_ms: float
    beta_ms: float
    max_batch: int
    gamma_ms: float = 0.0
    delta_ms: float = 0.0

    def itl_s(self, batch: int) -> float:
        """Return the time between tokens while `batch` requests are in service."""
        return (self.alpha_ms + self.beta_ms * batch) / 1000

    def prefill_s(self, batch: int, input_tokens: int) -> float:
        """Return the time from the start of a request to its first token."""
        return (self.gamma_ms + self.delta_ms * input_tokens * batch) / 1000

    def capacity_rps(self, input_tokens: int, output_tokens: int) -> float:
        """Return the rate of completions with a full batch."""
        n = self.max_batch
        return n / (self.prefill_s(n, input_tokens) + (output_tokens - 1) * self.itl_s(n))


@dataclass(frozen=True)
class Server:
    """What the pods of a workload are.

    Attributes
    ----------
    model : str
        Label model_name of their series.
    engine : Engine
    """

    model: str
    engine: Engine


@dataclass(frozen=True)
class Totals:
    """Where all requests of a model are; `arrived` is the sum of the others.

    Attributes
    ----------
    arrived : int
    completed : int
        By pods that are there and by those that have gone.
    given_up : int
        Requests that waited too long.
    running, waiting : int
        In pods.
    held : int
        Waiting for a first pod.
    """

    arrived: int
    completed: int
    given_up: int
    running: int
    waiting: int
    held: int


@dataclass
class _Histogram:
    edges: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        edges = [*(str(edge) for edge in self.edges), "+Inf"]
        return list(zip(edges, itertools.accumulate(self.counts), strict=True))


@dataclass(order=True)
class _Request:
    """Ordered by the end of its service, once that has begun."""

    end_tokens: float
    number: int
    arrived_s: float = field(compare=False)
    input_tokens: int = field(compare=False)
    output_tokens: int = field(compare=False)
    first_token_s: float = field(compare=False, default=0.0)


class _Replica:
    """One pod: a batch, a queue, and what vLLM counts about them.

    All requests of a batch get a token in each iteration, so one clock in tokens says when each is done.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.tokens = 0.0
        self.completed = {"stop": 0, "abort": 0}
        self.prompt, self.generation = _Histogram(_TOKENS), _Histogram(_TOKENS)
        self.ttft, self.itl = _Histogram(_SECONDS_TO_FIRST), _Histogram(_SECONDS_BETWEEN)

    @property
    def fill(self) -> float:
        """Requests here for each place of a batch."""
        return (len(self.running) + len(self.waiting)) / self.engine.max_batch

    def take(self, request: _Request, now_s: float) -> None:
        self.waiting.append(request)
        self._fill(now_s)

    def advance(self, now_s: float, step_s: float, patience_s: float) -> None:
        if self.running:
            self.tokens += step_s / self.engine.itl_s(len(self.running))
        while self.running and self.running[0].end_tokens <= self.tokens:
            self._complete(heapq.heappop(self.running), now_s)
        while self.waiting and now_s - self.waiting[0].arrived_s > patience_s:
            self.waiting.popleft()
            self.completed["abort"] += 1
        self._fill(now_s)

    def _fill(self, now_s: float) -> None:
        while self.waiting and len(self.running) < self.engine.max_batch:
            request = self.waiting.popleft()
            batch = len(self.running) + 1
            prefill_s = self.engine.prefill_s(batch, request.input_tokens)
            request.first_token_s = now_s + prefill_s
            self.ttft.observe(request.first_token_s - request.arrived_s)
            request.end_tokens = (
                self.tokens + prefill_s / self.engine.itl_s(batch) + max(request.output_tokens - 1, 1)
            )
            heapq.heappush(self.running, request)

    def _complete(self, request: _Request, now_s: float) -> None:
        self.completed["stop"] += 1
        self.prompt.observe(request.input_tokens)
        self.generation.observe(request.output_tokens)
        between = max(request.output_tokens - 1, 1)
        self.itl.observe(max(now_s - request.first_token_s, 0.0) / between, between)


class _Traffic:
    """One model in one namespace: what arrives, the pods it goes to, and what waits for a first pod."""

    def __init__(self) -> None:
        self.rate_rps = 0.0
        self.input_tokens, self.output_tokens = 128, 128
        self.replicas: dict[str, _Replica] = {}
        self.held: deque[_Request] = deque()
        self.arrived = self.completed_before = self.given_up = 0
        self._due = 0.0

    def set_pods(self, engines: Mapping[str, Engine], now_s: float) -> None:
        """Start and end pods; a pod's requests go with it to the others, oldest first."""
        back: list[_Request] = []
        for name in self.replicas.keys() - engines.keys():
            gone = self.replicas.pop(name)
            self.completed_before += gone.completed["stop"]
            self.given_up += gone.completed["abort"]
            back += [*gone.running, *gone.waiting]
        self.held = deque(sorted((*self.held, *back), key=lambda request: request.number))
        for name in sorted(engines.keys() - self.replicas.keys()):
            self.replicas[name] = _Replica(engines[name])
        self._dispatch(now_s)

    def advance(self, now_s: float, step_s: float, patience_s: float) -> None:
        self._due += self.rate_rps * step_s
        for _ in range(int(self._due)):
            self.arrived += 1
            self.held.append(self._request(now_s))
        self._due %= 1
        self._dispatch(now_s)
        for replica in self.replicas.values():
            replica.advance(now_s, step_s, patience_s)
        while self.held and now_s - self.held[0].arrived_s > patience_s:
            self.held.popleft()
            self.given_up += 1

    def totals(self) -> Totals:
        replicas = self.replicas.values()
        return Totals(
            arrived=self.arrived,
            completed=self.completed_before + sum(replica.completed["stop"] for replica in replicas),
            given_up=self.given_up + sum(replica.completed["abort"] for replica in replicas),
            running=sum(len(replica.running) for replica in replicas),
            waiting=sum(len(replica.waiting) for replica in replicas),
            held=len(self.held),
        )

    def _request(self, now_s: float) -> _Request:
        """Return a request of average input and half to one and a half times the average output."""
        size = 0.5 + (self.arrived * _EVEN_STEP) % 1
        output_tokens = max(round(self.output_tokens * size), 1)
        return _Request(0.0, self.arrived, now_s, self.input_tokens, output_tokens)

    def _dispatch(self, now_s: float) -> None:
        while self.held and self.replicas:
            replica = min(self.replicas.values(), key=lambda replica: replica.fill)
            replica.take(self.held.popleft(), now_s)


class FakeServing:
    """Simulated model servers and one HTTP page with the series of all of them; a context manager.

    All methods may be called from any thread.

    Parameters
    ----------
    step_s : float
        Of the simulation. It keeps up with the clock, however late its thread runs.
    patience_s : float
        A request that waits longer is given up, which vLLM counts as finished by "abort".
    old_names : bool
        Name the time between tokens as older versions of vLLM do.
    clock : callable
        Seconds; None: time passes only by `advance`.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.01,
        patience_s: float = float("inf"),
        old_names: bool = False,
        clock: Callable[[], float] | None = time.monotonic,
    ) -> None:
        self._step_s, self._patience_s, self._clock = step_s, patience_s, clock
        self._itl_name = "time_per_output_token" if old_names else "inter_token_latency"
        self._lock = threading.Lock()
        self._now_s = 0.0
        self._traffic: dict[tuple[str, str], _Traffic] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> FakeServing:
        registry = CollectorRegistry()
        registry.register(self)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _page_of(registry))
        self._start(self._http.serve_forever, 0.05)
        if self._clock is not None:
            self._start(self._keep_up, self._clock)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.shutdown()
        for thread in self._threads:
            thread.join()
        self._http.server_close()

    @property
    def target(self) -> str:
        """``host:port`` for a scrape configuration."""
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{self.target}/metrics"

    def set_rate(
        self,
        namespace: str,
        model: str,
        rate_rps: float,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """Set what arrives from now on.

        Parameters
        ----------
        namespace, model : str
        rate_rps : float
            Requests/s, >= 0.
        input_tokens, output_tokens : int, optional
            Means of a request, >= 1; absent, as before (128 at first).
        """
        with self._lock:
            traffic = self._of(namespace, model)
            traffic.rate_rps = rate_rps
            traffic.input_tokens = input_tokens or traffic.input_tokens
            traffic.output_tokens = output_tokens or traffic.output_tokens

    def set_pods(self, namespace: str, model: str, engines: Mapping[str, Engine]) -> None:
        """Set the ready pods of a model by name.

        Counters of a new pod begin at 0, those of a gone one vanish, and its requests begin again elsewhere.
        """
        with self._lock:
            self._of(namespace, model).set_pods(engines, self._now_s)

    def totals(self, namespace: str, model: str) -> Totals:
        """Return where the requests of a model are."""
        with self._lock:
            return self._of(namespace, model).totals()

    def advance(self, seconds: float) -> None:
        """Let time pass, in whole steps."""
        with self._lock:
            for _ in range(round(seconds / self._step_s)):
                self._now_s += self._step_s
                for traffic in self._traffic.values():
                    traffic.advance(self._now_s, self._step_s, self._patience_s)

    def follow(
        self, api: client.ApiClient, servers: Mapping[tuple[str, str], Server], interval_s: float = 0.5
    ) -> None:
        """Take the ready pods of a cluster from now on.

        Parameters
        ----------
        api : ApiClient
            Not used elsewhere.
        servers : mapping of (str, str) to Server
            By namespace and label ``app`` of the pods.
        interval_s : float
            Between two readings. While the API does not answer, pods stay as they are.
        """
        self._start(self._follow, client.CoreV1Api(api), dict(servers), interval_s)

    def collect(self) -> Iterator[Any]:
        """Return the series of all pods, for prometheus_client."""
        with self._lock:
            return iter([*self._pod_families(), self._queue_family()])

    def _of(self, namespace: str, model: str) -> _Traffic:
        return self._traffic.setdefault((namespace, model), _Traffic())

    def _start(self, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep_up(self, clock: Callable[[], float]) -> None:
        start_s = clock() - self._now_s
        while not self._stop.wait(self._step_s):
            late_s = clock() - start_s - self._now_s
            if late_s >= self._step_s:
                self.advance(late_s // self._step_s * self._step_s)

    def _follow(
        self, core: client.CoreV1Api, servers: Mapping[tuple[str, str], Server], interval_s: float
    ) -> None:
        while not self._stop.wait(interval_s):
            try:
                pods = core.list_pod_for_all_namespaces(_request_timeout=5).items
            except (client.ApiException, HTTPError, OSError):
                continue
            found: dict[tuple[str, str], dict[str, Engine]] = {
                (namespace, server.model): {} for (namespace, _), server in servers.items()
            }
            for pod in pods:
                place = (pod.metadata.namespace, (pod.metadata.labels or {}).get("app", ""))
                if place in servers and _is_ready(pod):
                    server = servers[place]
                    found[pod.metadata.namespace, server.model][pod.metadata.name] = server.engine
            for (namespace, model), engines in found.items():
                self.set_pods(namespace, model, engines)

    def _pod_families(self) -> list[Any]:
        success = CounterMetricFamily(
            "vllm:request_success", "Finished requests.", labels=(*_LABELS, "finished_reason")
        )
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests in service.", labels=_LABELS)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", labels=_LABELS)
        histograms = {
            name: HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            for name, text in (
                ("request_prompt_tokens", "Input tokens of a request."),
                ("request_generation_tokens", "Output tokens of a request."),
                ("time_to_first_token_seconds", "Time to the first token."),
                (f"{self._itl_name}_seconds", "Time between tokens."),
            )
        }
        for (namespace, model), traffic in self._traffic.items():
            for pod, replica in traffic.replicas.items():
                labels = (namespace, pod, model)
                for reason, count in replica.completed.items():
                    success.add_metric((*labels, reason), count)
                running.add_metric(labels, len(replica.running))
                waiting.add_metric(labels, len(replica.waiting))
                observed = (replica.prompt, replica.generation, replica.ttft, replica.itl)
                for family, histogram in zip(histograms.values(), observed, strict=True):
                    family.add_metric(labels, histogram.buckets(), histogram.total)
        return [success, running, waiting, *histograms.values()]

    def _queue_family(self) -> GaugeMetricFamily:
        """Requests that wait for a first pod, as the endpoint picker in front of the pods shows them."""
        queue = GaugeMetricFamily(
            "inference_extension_flow_control_queue_size",
            "Requests that the gateway holds back.",
            labels=("namespace", "model_name"),
        )
        for labels, traffic in self._traffic.items():
            queue.add_metric(labels, len(traffic.held))
        return queue


def _page_of(registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    """Return what answers every request with the page, in the plain format whatever was asked for.

    In the other one prometheus_client 0.26 writes vllm_ for vllm:.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = generate_latest(registry)
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Page


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or []
    return pod.metadata.deletion_timestamp is None and any(
        condition.type == "Ready" and condition.status == "True" for condition in conditions
    )
