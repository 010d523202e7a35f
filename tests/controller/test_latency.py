"""Predicted against observed latencies: of what runs, at the load it was seen to have."""

from dataclasses import replace

import pytest
from controller_tools import MODEL, NAMESPACE, key, law1, profile, signal, snapshot, va
from loop_tools import Bench, answers, prometheus_down

from controller.analyze import analyze
from controller.client import HttpOptimizer
from controller.latency import Compared, Latency, compared, running_system
from controller.settings import Settings
from controller.snapshot import Demand, Snapshot, Workload
from controller.stability import Memory
from solver import schema
from solver.analyze import analyze_json


def comparison(seen: Snapshot) -> dict[str, Compared]:
    """With the real answer of the service."""
    analysis = analyze(seen, Memory(), 100.0)
    system = running_system(analysis, seen)
    answer = None
    if system is not None:
        body = schema.SystemRequest(system=system).model_dump_json(exclude_none=True).encode()
        answer = schema.AnalyzeResponse.model_validate_json(analyze_json(body))
    return {found.name: values for found, values in compared(analysis, seen, answer).items()}


def test_published_figures_are_predicted_for_what_runs_not_for_what_is_wanted() -> None:
    """40 requests/min of 178 tokens: the reference wants 2 replicas and predicts 21.49 ms and 69.77 ms."""
    for ready, load in ((2, 40.0), (4, 80.0)):
        seen = snapshot(
            va(profiles=[profile("A100")]),
            signals=(signal(load),),
            workloads={"vllm": Workload(9, ready)},
        )
        found = comparison(seen)["vllm"]
        assert found.accelerator == "A100"
        assert found.predicted.itl_ms == pytest.approx(21.49347, rel=1e-5)
        assert found.predicted.ttft_ms == pytest.approx(69.7666, rel=1e-4)
        assert found.observed == Latency(ttft_ms=120.0, itl_ms=21.5)


def test_variants_that_share_a_load_have_their_own_figures_by_their_pods() -> None:
    seen = snapshot(
        va("a", label="A100"),
        va("h", label="H100"),
        profiles=(law1("A100"), law1("H100", alpha="6", beta="0.04")),
        workloads={
            "a": Workload(2, 2, pods=frozenset({"a1", "a2"})),
            "h": Workload(1, 1, pods=frozenset({"h1"})),
        },
        signals=(
            signal(20.0, pod="a1", itl_ms=22.0),
            signal(20.0, pod="a2", itl_ms=23.0),
            signal(30.0, pod="h1", itl_ms=6.5),
        ),
    )
    found = comparison(seen)
    assert found["a"].predicted.itl_ms == pytest.approx(21.49347, rel=1e-5)
    assert found["a"].observed.itl_ms == pytest.approx(22.5)
    assert found["h"].observed.itl_ms == pytest.approx(6.5)
    assert found["h"].predicted.itl_ms is not None
    assert 6.0 < found["h"].predicted.itl_ms < 6.5


def test_variant_alone_has_its_load_where_series_have_no_pods() -> None:
    seen = snapshot(
        va("a", namespace="one", profiles=[profile("A100")]),
        va("b", namespace="two", profiles=[profile("A100")]),
        signals=(signal(20.0, namespace="one"), signal(25.0, namespace="two", itl_ms=23.0)),
    )
    found = comparison(seen)
    assert {name: values.observed.itl_ms for name, values in found.items()} == {"a": 21.5, "b": 23.0}
    assert found["a"].predicted.itl_ms == pytest.approx(21.49347, rel=1e-5)


def test_variants_that_series_do_not_tell_apart_have_none() -> None:
    seen = snapshot(
        va("a", label="A100"),
        va("h", label="H100"),
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(9),),
    )
    assert comparison(seen) == {}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # More arrives than a replica can serve at all: there is no steady state.
        (snapshot(va(profiles=[profile("A100")]), signals=(signal(4000.0),)), Latency()),
        # Nothing arrives.
        (snapshot(va(profiles=[profile("A100")]), signals=(signal(0.0),)), Latency()),
        # A measured capacity says nothing about latencies.
        (
            snapshot(
                va(),
                profiles=(
                    schema.ModelProfile.model_validate(
                        {"name": MODEL, "acc": "A100", "ratePerReplica": 1.0, "maxBatchSize": 4}
                    ),
                ),
                signals=(signal(30.0),),
            ),
            Latency(),
        ),
    ],
)
def test_what_cannot_be_predicted_is_absent(seen: Snapshot, expected: Latency) -> None:
    assert comparison(seen)["vllm"].predicted == expected


def test_targets_do_not_matter_for_what_runs() -> None:
    """Beyond the targets the prediction is what a person wants to see, not that of more replicas."""
    seen = snapshot(
        va(profiles=[profile("A100")]), signals=(signal(80.0),), workloads={"vllm": Workload(2, 2)}
    )
    found = comparison(seen)["vllm"].predicted
    assert found.ttft_ms is not None
    assert found.ttft_ms > 69.7666 * 3


def test_observation_that_is_not_there_is_absent() -> None:
    seen = snapshot(va(profiles=[profile("A100")]), signals=(signal(9.0, ttft_ms=None, itl_ms=None),))
    assert comparison(seen)["vllm"].observed == Latency()
    without_replicas = replace(
        seen,
        workloads={key(): Workload(1, 0)},
        traffic=replace(seen.traffic, signals=(), demands=(Demand(MODEL, NAMESPACE, 30.0),)),
    )
    assert comparison(without_replicas) == {}


def test_law_on_moments_is_asked_with_the_variation_of_lengths() -> None:
    law = {"name": MODEL, "acc": "A100", "maxBatchSize": 32}
    law["perfParms"] = {"alpha": 7.0, "beta": 0.03, "gamma": 1e-5}  # type: ignore[assignment]
    profiles = (schema.ModelProfile.model_validate(law),)
    seen = snapshot(
        va(), profiles=profiles, signals=(signal(60.0),), settings=Settings(queue_model="moments")
    )
    system = running_system(analyze(seen, Memory(), 0.0), seen)
    assert system is not None
    assert system.optimizer_data.optimizer.queue_model == "moments"


# --- as metrics ---


@pytest.fixture
def bench(optimizer_url: str) -> Bench:
    return Bench(optimizer_url)


def latencies(bench: Bench) -> dict[tuple[str, str], float]:
    return {
        (sample.name.removeprefix("fleetopt_controller_"), sample.labels["kind"]): sample.value
        for family in bench.metrics.collect()
        for sample in family.samples
        if "kind" in sample.labels
    }


WITH_LATENCIES = {
    "(sum by (model_name, namespace, pod) (rate(vllm:time_to_first": 90.0,
    "((sum by (model_name, namespace, pod) (rate(vllm:inter_token": 22.0,
}


def test_gauges_show_both_and_go_with_the_variant(bench: Bench) -> None:
    bench.cluster.replicas = 2
    bench.query = answers(40.0, **WITH_LATENCIES)
    assert bench.step().problems == ()
    assert latencies(bench) == {
        ("ttft_milliseconds", "predicted"): pytest.approx(69.7666, rel=1e-3),
        ("ttft_milliseconds", "observed"): 90.0,
        ("itl_milliseconds", "predicted"): pytest.approx(21.49347, rel=1e-5),
        ("itl_milliseconds", "observed"): 22.0,
    }
    # Without traffic means are 0 / 0, and nothing is predicted.
    bench.query = answers(0.0)
    bench.step()
    assert latencies(bench) == {}

    bench.query = answers(40.0, **WITH_LATENCIES)
    bench.step()
    assert latencies(bench)
    bench.query = prometheus_down
    bench.step()
    assert latencies(bench) == {}

    bench.query = answers(40.0, **WITH_LATENCIES)
    bench.step()
    bench.metrics.clear()
    assert latencies(bench) == {}
    bench.cluster.variants = []
    bench.step()
    assert latencies(bench) == {}


class WithoutAnalyze(HttpOptimizer):
    """A service that goes away once it has decided."""

    def analyze(self, system: schema.System) -> schema.AnalyzeResponse:
        return HttpOptimizer("http://127.0.0.1:9", 1.0).analyze(system)


def test_service_that_cannot_predict_costs_the_predictions_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "optimizer", lambda: WithoutAnalyze(bench.url, bench.timeout_s))
    bench.query = answers(40.0, **WITH_LATENCIES)
    (problem,) = bench.step().problems
    assert "latencies are not predicted: the optimizer at http://127.0.0.1:9 does not answer" in problem
    assert bench.cluster.scaled == [2]
    assert set(latencies(bench)) == {("ttft_milliseconds", "observed"), ("itl_milliseconds", "observed")}
