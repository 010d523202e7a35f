"""Signals from a real Prometheus, and everything that may go wrong on the way."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from controller_tools import COSTS, MODEL, NAMESPACE, law1, snapshot, va
from fake_vllm import Engine, FakeServing
from prometheus_tools import Sample, answering, needs_prometheus, prometheus, reply, wait_until

from controller.collect import (
    View,
    arrival_promql,
    escaped,
    lengths_promql,
    models_on_moments,
    queries,
    read_configuration,
    read_traffic,
    snapshot_of,
)
from controller.crd import VariantKey
from controller.errors import PrometheusError
from controller.prometheus import Vector, connect
from controller.settings import Prometheus, Settings
from controller.snapshot import Signal, Traffic
from solver.schema import ModelProfile

NASTY = 'a"b\\c.d|e (f)'
LABELS = f'model_name="{MODEL}",namespace="{NAMESPACE}"'


def overload(
    pod: str, now_s: float, *, arrivals: float, served: float, old_names: bool = False
) -> list[Sample]:
    """Ten minutes of a replica that gets `arrivals` and serves `served` requests/s: its queue grows.

    Where Prometheus asks for OpenMetrics, newer versions of vLLM write an underscore for their colon.
    """
    itl = "vllm:time_per_output_token_seconds" if old_names else "vllm:inter_token_latency_seconds"
    labels = f'{LABELS},pod="{pod}"'
    found: list[Sample] = []
    for step in range(41):
        t = 15.0 * step
        at_s = now_s - 600.0 + t
        done = served * t
        values = {
            f'vllm:request_success_total{{{labels},finished_reason="stop"}}': 0.75 * done,
            f'vllm:request_success_total{{{labels},finished_reason="length"}}': 0.25 * done,
            f"vllm:num_requests_running{{{labels}}}": 32.0,
            f"vllm:num_requests_waiting{{{labels}}}": (arrivals - served) * t,
            f"vllm:request_prompt_tokens_sum{{{labels}}}": 900.0 * done,
            f"vllm:request_prompt_tokens_count{{{labels}}}": done,
            f"vllm:request_generation_tokens_sum{{{labels}}}": 250.0 * done,
            f"vllm:request_generation_tokens_count{{{labels}}}": done,
            f"vllm:time_to_first_token_seconds_sum{{{labels}}}": 0.8 * done,
            f"vllm:time_to_first_token_seconds_count{{{labels}}}": done,
            f"{itl}_sum{{{labels}}}": 0.024 * 250 * done,
            f"{itl}_count{{{labels}}}": 250 * done,
        }
        prefix = "vllm:" if old_names else "vllm_"
        found += [(series.replace("vllm:", prefix), at_s, value) for series, value in values.items()]
    return found


def gauge(series: str, value: float, now_s: float) -> list[Sample]:
    return [(series, now_s - 15.0 * step, value) for step in range(5)]


def counter(series: str, rate: float, now_s: float) -> list[Sample]:
    return [(series, now_s - 15.0 * step, rate * (600.0 - 15.0 * step)) for step in range(20)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has seen an overload: 3 requests/s came to two replicas, 2 were served."""
    # Whole steps of the scrape, a moment ago: the newest sample is in every window.
    now_s = time.time() - 1.0
    restarted = f'{LABELS},pod="again"'
    history = [
        *overload("new", now_s, arrivals=2.0, served=1.2),
        *overload("old", now_s, arrivals=1.0, served=0.8, old_names=True),
        # A pod that restarted 30 s ago with 300 requests in flight, which are lost.
        *[
            (f"vllm:request_success_total{{{restarted}}}", now_s - t, v)
            for t, v in ((45, 90), (30, 5), (15, 10), (0, 15))
        ],
        *[
            (f"vllm:num_requests_running{{{restarted}}}", now_s - t, v)
            for t, v in ((45, 300), (30, 0), (15, 0), (0, 0))
        ],
        *[(f"vllm:num_requests_waiting{{{restarted}}}", now_s - t, 0.0) for t in (45, 30, 15, 0)],
        # Nothing ended: means are 0 / 0.
        *gauge('vllm:request_success_total{model_name="idle",namespace="x"}', 7.0, now_s),
        *gauge('vllm:request_prompt_tokens_sum{model_name="idle",namespace="x"}', 7.0, now_s),
        *gauge('vllm:request_prompt_tokens_count{model_name="idle",namespace="x"}', 7.0, now_s),
        # The newest sample of this model is two minutes old.
        *[
            ('vllm:num_requests_running{model_name="old",namespace="x"}', now_s - 120.0 - t, 1.0)
            for t in (0, 15)
        ],
        *gauge(f'inference_extension_flow_control_queue_size{{target_model_name="{MODEL}"}}', 9.0, now_s),
        *counter(f'gateway_requests_total{{model_name="{MODEL}"}}', 2.5, now_s),
        *counter('gateway_requests_total{model_name="not ours"}', 100.0, now_s),
        *counter(
            'gateway_requests_total{model_name="' + NASTY.replace("\\", "\\\\").replace('"', '\\"') + '"}',
            4.0,
            now_s,
        ),
    ]
    with prometheus(tmp_path_factory.mktemp("prometheus"), history=history) as url:
        yield url


def traffic(url: str, **settings: object) -> Traffic:
    given = Settings(prometheus=Prometheus(base_url=url), **settings)  # type: ignore[arg-type]
    with connect(given.prometheus) as query:
        return read_traffic(query, given, [(NAMESPACE, MODEL)])


def of_pod(found: Traffic, pod: str) -> Signal:
    return next(signal for signal in found.signals if signal.pod == pod)


@needs_prometheus
def test_arrivals_in_overload_are_right_where_completions_are_not(recorded: str) -> None:
    found = traffic(recorded)
    both = [of_pod(found, pod) for pod in ("new", "old")]

    assert sum(s.completed_rpm + s.growth_rpm for s in both) == pytest.approx(180.0, rel=0.02)
    assert sum(s.completed_rpm for s in both) == pytest.approx(120.0, rel=0.02)


@needs_prometheus
@pytest.mark.parametrize("pod", ["new", "old"])
def test_sizes_and_latencies_under_old_names_and_new(recorded: str, pod: str) -> None:
    signal = of_pod(traffic(recorded), pod)
    assert (signal.model, signal.namespace) == (MODEL, NAMESPACE)
    assert signal.input_tokens == pytest.approx(900.0)
    assert signal.output_tokens == pytest.approx(250.0)
    assert signal.ttft_ms == pytest.approx(800.0)
    assert signal.itl_ms == pytest.approx(24.0)
    assert signal.in_flight > 32.0
    assert 0.0 <= signal.age_s < 60.0


@needs_prometheus
def test_restart_of_a_pod_is_no_drop_of_arrivals(recorded: str) -> None:
    signal = of_pod(traffic(recorded), "again")
    assert signal.growth_rpm == 0.0
    assert signal.completed_rpm > 0.0


@needs_prometheus
def test_what_is_not_a_number_is_not_there(recorded: str) -> None:
    (idle,) = (signal for signal in traffic(recorded).signals if signal.model == "idle")
    assert (idle.completed_rpm, idle.input_tokens, idle.itl_ms) == (0.0, None, None)


@needs_prometheus
def test_requests_that_the_gateway_holds_back(recorded: str) -> None:
    (demand,) = traffic(recorded).demands
    assert (demand.model, demand.namespace, demand.queued, demand.arrival_rpm) == (MODEL, "", 9.0, None)
    assert demand.growth_rpm == pytest.approx(0.0)


@needs_prometheus
def test_growth_of_what_the_gateway_holds_back(tmp_path: Path) -> None:
    now_s = time.time() - 1.0
    series = f'inference_extension_flow_control_queue_size{{target_model_name="{MODEL}",priority="%d"}}'
    history = [
        (series % priority, now_s - 120.0 + 15.0 * step, rate * 15.0 * step)
        for step in range(9)
        for priority, rate in ((0, 2.0), (1, 0.5))
    ]
    with prometheus(tmp_path, history=history) as url:
        (demand,) = traffic(url).demands
    assert demand.growth_rpm == pytest.approx(150.0)
    assert demand.queued == pytest.approx(300.0)


@needs_prometheus
def test_arrival_query_counts_the_models_that_are_asked_for(recorded: str) -> None:
    template = 'sum by (model_name) (rate(gateway_requests_total{model_name=~"$models"}[1m]))'
    settings = Settings(prometheus=Prometheus(base_url=recorded), arrival_query=template)
    with connect(settings.prometheus) as query:
        found = read_traffic(query, settings, [("a", MODEL), ("b", NASTY), ("b", MODEL)])
    rates = {demand.model: demand.arrival_rpm for demand in found.demands}
    assert rates == {MODEL: pytest.approx(150.0), NASTY: pytest.approx(240.0)}


@needs_prometheus
def test_arrival_query_that_is_wrong_costs_itself_alone(recorded: str) -> None:
    found = traffic(recorded, arrival_query="sum by (")
    assert found.signals
    assert "ARRIVAL_QUERY is not used" in found.problems[0]


@needs_prometheus
def test_every_query_is_one_that_prometheus_takes(recorded: str) -> None:
    with connect(Prometheus(base_url=recorded)) as query:
        for promql in queries("1m").values():
            query(promql)


def test_values_are_escaped_for_the_pattern_and_for_the_string() -> None:
    assert escaped('a.b"\\') == 'a\\\\.b\\"\\\\\\\\'
    assert arrival_promql('x{m=~"$models",n=~"$namespaces"}', [("n", "b"), ("n", "a")]) == (
        '(x{m=~"a|b",n=~"n"}) * 60'
    )


def test_queries_fit_into_a_url_however_many_models() -> None:
    template = 'sum by (model_name) (rate(x{model_name=~"$models",namespace=~"$namespaces"}[1m]))'
    for count, expected in ((3, "m0|m1|m2"), (1000, ".+")):
        variants = [("n", f"m{i}") for i in range(count)]
        promql = arrival_promql(template, variants)
        assert f'model_name=~"{expected}",namespace=~"n"' in promql
        lengths = lengths_promql("prompt", {model for _, model in variants}, "10m")
        assert f'model_name=~"{expected}"' in lengths


def test_lengths_that_cannot_be_asked_for_cost_themselves_alone() -> None:
    def query(promql: str) -> Vector:
        if "tokens_(bucket|sum)" in promql:
            raise PrometheusError("too many samples")
        one: Vector = [{"metric": {"model_name": "m"}, "value": [0, "1"]}]
        return one

    found = read_traffic(query, Settings(), [("n", "m")], {"m"})
    assert found.signals
    assert found.spreads == ()
    assert found.problems == ("how much lengths of requests vary is not known: too many samples",)


@pytest.mark.parametrize("count", [1, 1000])
def test_few_queries_however_many_variants(count: int) -> None:
    asked: list[str] = []

    def query(promql: str) -> Vector:
        asked.append(promql)
        return []

    variants = [(f"n{i % 20}", f"m{i}") for i in range(count)]
    read_traffic(query, Settings(arrival_query="up"), variants)
    assert len(asked) == 10
    read_traffic(query, Settings(arrival_query="up"), variants, {model for _, model in variants})
    assert len(asked) == 10 + 12


def lengths(pod: str, what: str, counts: dict[int, int], total: float, now_s: float) -> list[Sample]:
    """A histogram that grew evenly from nothing to these counts in ten minutes."""
    labels = f'model_name="{NASTY_LABEL}",namespace="{NAMESPACE}",pod="{pod}"'
    reached, ends = 0, []
    for end, count in counts.items():
        reached += count
        ends.append((str(float(end)), reached))
    ends.append(("+Inf", reached))
    found = []
    for step in range(41):
        at_s, share = now_s - 600.0 + 15.0 * step, step / 40
        name = f"vllm:request_{what}_tokens"
        found += [(f'{name}_bucket{{{labels},le="{end}"}}', at_s, share * count) for end, count in ends]
        found.append((f"{name}_sum{{{labels}}}", at_s, share * total))
    return found


NASTY_LABEL = NASTY.replace("\\", "\\\\").replace('"', '\\"')


@needs_prometheus
def test_variation_of_lengths_from_the_buckets_of_all_pods(tmp_path: Path) -> None:
    """Nine of ten prompts have 100 tokens and one has 4000, whichever pod they went to."""
    now_s = time.time() - 1.0
    history = [
        *lengths("a", "prompt", {50: 0, 100: 900, 200: 0, 500: 0, 2000: 0, 5000: 0}, 90_000.0, now_s),
        *lengths("b", "prompt", {50: 0, 100: 0, 200: 0, 500: 0, 2000: 0, 5000: 100}, 400_000.0, now_s),
        *lengths("a", "generation", {100: 0, 200: 10, 500: 0}, 1500.0, now_s),
    ]
    settings = Settings(shape_window="10m")
    with (
        prometheus(tmp_path, history=history) as url,
        connect(Prometheus(base_url=url)) as query,
    ):
        found = read_traffic(query, settings, [(NAMESPACE, NASTY)], {NASTY, "other"})
        assert read_traffic(query, settings, [(NAMESPACE, NASTY)], {"other"}).spreads == ()
        assert read_traffic(query, settings, [(NAMESPACE, NASTY)]).spreads == ()
    (spread,) = found.spreads
    assert (spread.model, spread.namespace) == (NASTY, NAMESPACE)
    true = (0.9 * 0.1 * 3900.0**2) ** 0.5 / 490.0
    assert spread.input_cov == pytest.approx(true, rel=0.1)
    # Ten requests are too few to say anything.
    assert spread.output_cov is None


def test_models_whose_variation_is_asked_for_are_those_with_a_law_on_moments() -> None:
    def law3(name: str, **more: object) -> ModelProfile:
        parms = {"alpha": 7.0, "beta": 0.03, "gamma": 1e-5}
        given = {"name": name, "acc": "A100", "maxBatchSize": 8, "perfParms": parms, **more}
        return ModelProfile.model_validate(given)

    profiles = (
        law1("A100", "law1", queueModel="moments"),
        law3("as-set"),
        law3("on-moments", queueModel="moments"),
        law3("reference", queueModel="reference"),
    )
    seen = snapshot(profiles=profiles)
    assert models_on_moments(seen) == {"on-moments"}
    seen = snapshot(profiles=profiles, settings=Settings(queue_model="moments"))
    assert models_on_moments(seen) == {"on-moments", "as-set"}


@needs_prometheus
def test_queue_that_grows_before_the_first_completion_counts(tmp_path: Path) -> None:
    """Before the first request ends there is no counter of those that did."""
    now_s = time.time() - 1.0
    labels = f'{{{LABELS},pod="new"}}'
    history = [
        sample
        for step in range(9)
        for sample in (
            (f"vllm:num_requests_running{labels}", now_s - 120.0 + 15.0 * step, 4.0),
            (f"vllm:num_requests_waiting{labels}", now_s - 120.0 + 15.0 * step, 30.0 * step),
        )
    ]
    with prometheus(tmp_path, history=history) as url:
        signal = of_pod(traffic(url), "new")
    assert signal.completed_rpm == 0.0
    assert signal.growth_rpm == pytest.approx(120.0, rel=0.02)


class Replica:
    """vLLM's metrics of a server that gets 40 requests/s and serves 24 from its start on."""

    def __init__(self) -> None:
        self.start_s = time.monotonic()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        t = time.monotonic() - self.start_s
        labels = f'{{{LABELS},pod="live"}}'
        values = {
            "vllm:request_success_total": 24.0 * t,
            "vllm:num_requests_running": 8.0,
            "vllm:num_requests_waiting": 16.0 * t,
        }
        reply(handler, 200, "".join(f"{name}{labels} {value}\n" for name, value in values.items()))


@needs_prometheus
def test_arrivals_from_a_scraped_replica_in_overload(tmp_path: Path) -> None:
    with (
        answering(Replica()) as exporter,
        prometheus(tmp_path, target=exporter.removeprefix("http://"), interval="250ms") as url,
        connect(Prometheus(base_url=url)) as query,
    ):
        enough = "count_over_time(vllm:num_requests_running[5s]) >= 20"
        wait_until(lambda: bool(query(enough)))
        found = traffic(url, rate_window="4s")
    signal = of_pod(found, "live")
    assert signal.completed_rpm + signal.growth_rpm == pytest.approx(2400.0, rel=0.02)
    assert signal.completed_rpm == pytest.approx(1440.0, rel=0.02)


@needs_prometheus
def test_arrivals_of_simulated_servers_in_overload(tmp_path: Path) -> None:
    """Three pods that serve about 30 requests/s get 45: requests queue, end, and differ in length."""
    rate_rps, engine = 45.0, Engine(alpha_ms=6.0, beta_ms=0.05, max_batch=16)
    with FakeServing() as serving:
        serving.set_rate(NAMESPACE, MODEL, rate_rps, input_tokens=64, output_tokens=224)
        serving.set_pods(NAMESPACE, MODEL, dict.fromkeys(("p1", "p2", "p3"), engine))
        with (
            prometheus(tmp_path, target=serving.target, interval="250ms") as url,
            connect(Prometheus(base_url=url)) as query,
        ):
            # The whole window lies behind the first completions.
            enough = 'count_over_time(vllm:request_success_total{pod="p1"}[2m]) >= 40'
            wait_until(lambda: bool(query(enough)), 60.0)

            def rates_rpm() -> tuple[float, float]:
                """Arrivals as the controller counts them, and completions."""
                found = traffic(url, rate_window="6s")
                served = [of_pod(found, pod) for pod in ("p1", "p2", "p3")]
                completed_rpm = sum(s.completed_rpm for s in served)
                return completed_rpm + sum(s.growth_rpm for s in served), completed_rpm

            # The simulation may stutter on a busy machine, for a moment.
            wait_until(lambda: rates_rpm()[0] == pytest.approx(60.0 * rate_rps, rel=0.02), 60.0)
            # Completions alone are off by what queues.
            assert rates_rpm()[1] < 0.9 * 60.0 * rate_rps


@needs_prometheus
def test_growth_of_a_pod_that_has_just_started_counts_once(tmp_path: Path) -> None:
    """It took in 60 requests in the last 15 of 60 seconds: that is 60 in the minute, not 240."""
    now_s = time.time() - 1.0
    history = [
        (f'{name}{{{LABELS},pod="young"}}', now_s - 15.0 + 5.0 * step, value * step)
        for step in range(4)
        for name, value in (("vllm:num_requests_running", 8.0), ("vllm:num_requests_waiting", 12.0))
    ]
    with prometheus(tmp_path, history=history) as url:
        signal = of_pod(traffic(url), "young")
    assert signal.growth_rpm == pytest.approx(60.0, rel=0.25)


# --- the way to Prometheus ---

EMPTY = json.dumps({"status": "success", "data": {"resultType": "vector", "result": []}})


def ask(settings: Prometheus, promql: str = "up") -> Vector:
    with connect(settings) as query:
        return query(promql)


def test_prometheus_that_is_down() -> None:
    with pytest.raises(PrometheusError, match="does not answer"):
        ask(Prometheus(base_url="http://127.0.0.1:9"))


def test_prometheus_that_is_slow_is_given_up() -> None:
    over = threading.Event()
    with answering(lambda _: bool(over.wait(30.0)) and None) as url:
        with pytest.raises(PrometheusError, match="does not answer"):
            ask(Prometheus(base_url=url, timeout_s=0.3))
        over.set()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, "starting"),
        (200, "<html>"),
        (200, "{}"),
        (200, '{"status": "success", "data": {"result": 5}}'),
        (200, "[]"),
    ],
)
def test_what_answers_is_no_prometheus(status: int, body: str) -> None:
    with answering(lambda handler: reply(handler, status, body)) as url, pytest.raises(PrometheusError):
        ask(Prometheus(base_url=url))


@pytest.mark.parametrize(
    "element", [{"metric": {}}, {"metric": {}, "value": [1, "x"]}, {"value": [1, "1"]}, 3]
)
def test_elements_that_are_no_instant_vector(element: object) -> None:
    def query(promql: str) -> Vector:
        return [element]  # type: ignore[list-item]

    with pytest.raises(PrometheusError, match="no instant vector"):
        read_traffic(query, Settings(), [])


class Guarded:
    """Answers whoever has the token of now."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        right = handler.headers.get("Authorization") == f"Bearer {self.token}"
        reply(handler, 200 if right else 401, EMPTY if right else "who are you?")


def test_token_file_is_read_again_when_it_rotates(tmp_path: Path) -> None:
    """Theirs reads it once."""
    file, guarded = tmp_path / "token", Guarded("one")
    file.write_text("one\n")
    with answering(guarded) as url, connect(Prometheus(base_url=url, token_path=str(file))) as query:
        assert query("up") == []
        guarded.token = "two"
        with pytest.raises(PrometheusError, match="401"):
            query("up")
        file.write_text("two\n")
        assert query("up") == []


def test_token_of_the_settings() -> None:
    with answering(Guarded("one")) as url:
        assert ask(Prometheus(base_url=url, bearer_token="one")) == []
        with pytest.raises(PrometheusError, match="401"):
            ask(Prometheus(base_url=url, bearer_token="else"))


def test_token_file_that_is_not_there() -> None:
    with answering(Guarded("one")) as url, pytest.raises(PrometheusError, match="cannot be read"):
        ask(Prometheus(base_url=url, token_path="/nowhere/token"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate for prometheus.internal and one for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", *authority)
    for name, usage in (("prometheus.internal", "serverAuth"), ("client", "clientAuth")):
        (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\nextendedKeyUsage={usage}\n")
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signer)
    return folder


@needs_prometheus
def test_https_with_authority_name_and_client_certificate(certificates: Path, tmp_path: Path) -> None:
    web = {
        "tls_server_config": {
            "cert_file": str(certificates / "prometheus.internal.crt"),
            "key_file": str(certificates / "prometheus.internal.key"),
            "client_ca_file": str(certificates / "ca.crt"),
            "client_auth_type": "RequireAndVerifyClientCert",
        }
    }
    mine = {
        "client_cert_path": str(certificates / "client.crt"),
        "client_key_path": str(certificates / "client.key"),
    }
    ca = {"ca_cert_path": str(certificates / "ca.crt")}
    named = {"server_name": "prometheus.internal"}
    with prometheus(tmp_path, web=web) as url:
        assert ask(Prometheus(base_url=url, **mine, **ca, **named), "vector(1)")  # type: ignore[arg-type]
        assert ask(Prometheus(base_url=url, skip_verify=True, **mine), "vector(1)")  # type: ignore[arg-type]
        for wrong in ({**mine, **ca}, {**mine, **named}, {**ca, **named}):
            with pytest.raises(PrometheusError):
                ask(Prometheus(base_url=url, **wrong))  # type: ignore[arg-type]


# --- Kubernetes objects ---


def pod(
    name: str, namespace: str = NAMESPACE, on: str = "n", gpus: str = "1", **labels: str
) -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": on, "containers": [{"resources": {"limits": {"nvidia.com/gpu": gpus}}}]},
        "status": {"phase": "Running"},
    }


def test_snapshot_of_a_cluster() -> None:
    target = {
        "metadata": {"name": "vllm", "namespace": NAMESPACE},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "vllm"}}, "template": {"spec": {}}},
        "status": {"readyReplicas": 1},
    }
    node = {
        "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-PCIE-80GB"}},
        "status": {"allocatable": {"nvidia.com/gpu": "8"}},
    }
    key = VariantKey(NAMESPACE, "vllm")
    view = View(
        variants=[va("vllm"), va("gone")],
        targets={key: target},
        pods=[
            pod("ours", app="vllm"),
            pod("theirs", gpus="3"),
            pod("ours", namespace="elsewhere", app="vllm"),
        ],
        nodes=[node],
        config_maps={},
    )
    configuration = read_configuration(
        {
            "accelerator-unit-costs": COSTS,
            "workload-variant-autoscaler-variantautoscaling-config": {"GLOBAL_OPT_INTERVAL": "45s"},
        },
        {"PROMETHEUS_BASE_URL": "http://here:1"},
    )
    found = snapshot_of(view, configuration, Traffic(), None, frozenset(), 7.0)

    assert [v.key.name for v in found.variants] == ["gone", "vllm"]
    assert found.workloads[key].pods == {"ours"}
    assert key._replace(name="gone") not in found.workloads
    assert found.foreign_pods == {(NAMESPACE, "theirs"), ("elsewhere", "ours")}
    assert found.inventory is not None
    assert (found.inventory.nodes[0].cards, found.inventory.held, found.inventory.at_s) == (
        4,
        {key: {"n": 1}},
        7.0,
    )
    assert configuration.settings.interval_s == 45
    assert configuration.settings.prometheus.base_url == "http://here:1"
    assert configuration.problems == ("there is no ConfigMap service-classes-config",)

    blind = View(view.variants, view.targets, view.pods, None, {})
    later = snapshot_of(blind, configuration, Traffic(), found.inventory, frozenset(), 9.0)
    assert (later.inventory, later.nodes_readable) == (found.inventory, False)
