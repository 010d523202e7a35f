"""Passes with the real service, and the loop around them; what may go wrong is in test_faults.py."""

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cluster_tools import pod
from controller_tools import NAMESPACE
from loop_tools import KEY, Bench, answers, prometheus_down

from controller.client import HttpOptimizer
from controller.loop import Now, Outcome, State, run
from controller.metrics import VariantMetrics
from controller.record import record_line


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


def test_gpus_that_another_team_takes_are_not_ours(bench: Bench) -> None:
    bench.query = answers(120.0)
    bench.cluster.pods = [pod("training", "other", "n", 5)]
    bench.step()
    assert bench.cluster.replicas == 3
    assert bench.cluster.condition("OptimizationReady") == "True DemandUnserved"


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


@pytest.mark.parametrize(("replicas", "shown"), [(1, 2), (6, 6)])
def test_new_leader_that_knows_nothing_yet_takes_nothing_away(
    bench: Bench, replicas: int, shown: int
) -> None:
    """While nobody led, somebody else may have added replicas; what was wanted before is still wanted."""
    bench.step()
    bench.metrics, bench.query = VariantMetrics(), prometheus_down
    bench.cluster.replicas = replicas
    bench.step()
    assert bench.gauges()["inferno_desired_replicas"] == shown


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

    def wait(seconds: float, settle_s: float) -> bool:
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

    run(step, lambda *_: len(seen) == 2)
    assert seen[0] == State()
    assert seen[1].memory.recommended.keys() == {KEY}


def test_now_is_written_as_kubernetes_wants_it() -> None:
    now = Now(0.0, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))
    assert now.rfc3339 == "2026-01-02T03:04:05Z"
    assert replace(now, steady_s=1.0).steady_s == 1.0
