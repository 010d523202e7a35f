"""What breaks in the autoscaler whose place this takes, each weakness by its name, and does not break here.

Tests on parts are beside their parts; these see a whole pass.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from controller_tools import COSTS, MODEL, NAMESPACE, law1, nodes, profile, signal, snapshot, solved, va
from loop_tools import Bench, answers, as_prometheus, prometheus_down
from prometheus_tools import answering, reply

from controller.actuate import Plan, plan
from controller.analyze import analyze
from controller.loop import Now, Outcome, State, run
from controller.prometheus import Vector
from controller.settings import Settings
from controller.stability import Memory


@pytest.fixture
def bench(optimizer_url: str) -> Bench:
    return Bench(optimizer_url)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def passed(*documents: dict[str, Any], rate_rpm: float, **more: Any) -> Plan:
    """A pass over variants on A100 and H100, 3 cards of each, with the real solver."""
    more.setdefault("inventory", nodes(A100=3, H100=3))
    seen = snapshot(
        *documents,
        profiles=(law1("A100"), law1("H100")),
        signals=(signal(rate_rpm),),
        settings=Settings(scale_down_window_s=0.0),
        **more,
    )
    analysis = analyze(seen, Memory(), 100.0)
    return plan(analysis, solved(analysis.system) if analysis.system else None, seen, 100.0)


def test_every_variant_triggers_a_pass_over_all_of_them(bench: Bench) -> None:
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
    assert len(bench.step().plan.decisions) == 50
    assert len(asked) <= 12


def test_an_empty_list_ends_the_loop(bench: Bench) -> None:
    there, bench.cluster.variants = bench.cluster.variants, []
    found: list[int] = []

    def step(state: State, now: Now) -> Outcome:
        outcome = bench.step()
        found.append(len(outcome.plan.decisions))
        bench.cluster.variants = there
        return outcome

    run(step, lambda *_: len(found) == 2)
    assert found == [0, 1]


def test_one_bad_cost_entry_blocks_all(bench: Bench) -> None:
    bench.cluster.config_maps["accelerator-unit-costs"] = {**COSTS, "B200": "{", "L40S": '{"cost": "x"}'}
    assert len(bench.step().problems) == 2
    assert bench.cluster.scaled == [2]


def test_a_prometheus_outage_is_a_silent_hold_with_no_condition(bench: Bench) -> None:
    bench.step()
    bench.query = prometheus_down
    outcome = bench.step()
    assert bench.cluster.condition("MetricsAvailable") == "False PrometheusError"
    assert outcome.problems == ("connection refused",)
    assert (outcome.figures.ok, dict(outcome.figures.held)) == (False, {"PrometheusError": 1})


def test_each_variant_of_a_model_receives_its_whole_load() -> None:
    # 120 requests/min need 5 replicas of 25.3: not 5 of each variant.
    found = passed(va("a", label="A100"), va("h", label="H100"), rate_rpm=120.0)
    assert [decision.desired for decision in found.decisions] == [3, 2]


def test_the_accelerator_is_pinned_whatever_is_configured() -> None:
    annotations = {"inference.optimization/keep-accelerator": "false"}
    free = va(label="H100", profiles=[profile("A100"), profile("H100")], annotations=annotations)
    (found,) = passed(free, rate_rpm=40.0, inventory=nodes(A100=8, H100=8)).decisions
    assert (found.desired, found.accelerator) == (2, "A100")


def test_the_inventory_is_unlimited_whatever_is_configured() -> None:
    (found,) = passed(va(), rate_rpm=400.0).decisions
    assert (found.desired, "of the demand is not served" in found.why) == (3, True)


@pytest.mark.parametrize("how", ["queue of the endpoint picker", "ARRIVAL_QUERY", "wake"])
def test_scale_to_zero_cannot_come_back(bench: Bench, how: str) -> None:
    bench.environ |= {"WVA_SCALE_TO_ZERO": "true", "FLEETOPT_SCALE_TO_ZERO_RETENTION": "2m"}
    seen = []
    for rate_rpm in (40.0, 0.0, 0.0, 0.0):
        bench.query = answers(rate_rpm)
        bench.step()
        seen.append(bench.cluster.replicas)
    # Nothing runs, so there are no series; and nothing comes back without a reason.
    bench.query = lambda promql: []
    bench.step()
    seen.append(bench.cluster.replicas)
    assert seen == [2, 1, 0, 0, 0]

    def held_back(promql: str) -> Vector:
        one = [{"metric": {"model_name": MODEL, "namespace": NAMESPACE}, "value": [0, "12"]}]
        name = {"ARRIVAL_QUERY": "gateway", "wake": "none"}.get(how, "flow_control_queue_size")
        return one if name in promql else []

    bench.query = held_back
    if how == "ARRIVAL_QUERY":
        bench.environ["ARRIVAL_QUERY"] = "gateway"
    bench.step(frozenset({(NAMESPACE, MODEL)}) if how == "wake" else frozenset())
    assert bench.cluster.replicas >= 1


def test_a_token_file_is_read_once(bench: Bench, tmp_path: Path, stack: ExitStack) -> None:
    file, right = tmp_path / "token", ["one"]
    file.write_text("one")
    handler = as_prometheus(answers(40.0), lambda given: given == f"Bearer {right[0]}")
    bench.real_connect = True
    bench.environ["PROMETHEUS_BASE_URL"] = stack.enter_context(answering(handler))
    bench.environ["PROMETHEUS_TOKEN_PATH"] = str(file)
    assert bench.step().problems == ()
    right[0] = "two"
    file.write_text("two")
    assert bench.step().problems == ()


def test_the_scaling_counter_never_counts(bench: Bench) -> None:
    for rate_rpm in (40.0, 120.0, 1.0):
        bench.query = answers(rate_rpm)
        bench.step()
    counts = {
        (sample.name, sample.labels["direction"]): sample.value
        for family in bench.metrics.collect()
        for sample in family.samples
        if "direction" in sample.labels
    }
    assert counts == {
        (f"{name}_replica_scaling_total", direction): count
        for name in ("inferno", "wva")
        for direction, count in (("up", 2), ("down", 1))
    }


def test_a_server_absent_from_an_answer_is_scaled_to_zero(bench: Bench) -> None:
    bench.step()
    report = {"termination": "optimal", "backend": "x", "solver": "x", "version": "x", "objective": 0}
    report |= {"bound": 0, "gap": 0, "cost": 0, "switchingPenalty": 0}
    text = json.dumps({"allocations": {}, "report": report})
    with answering(lambda handler: reply(handler, 200, text)) as url:
        bench.url = url
        bench.step()
    assert bench.cluster.replicas == 2
    assert bench.cluster.condition("OptimizationReady") == "False NotInAnswer"


def test_scaling_up_stops_silently_when_the_inventory_cannot_be_read(bench: Bench) -> None:
    bench.step()
    bench.cluster.nodes = None
    bench.query = answers(120.0)
    bench.step()
    assert bench.cluster.replicas == 5
    assert bench.cluster.condition("InventoryKnown") == "False NodesUnreadable"
    # With the last count too old there is no limit, and that is said as well.
    bench.minute += 20
    bench.query = answers(400.0)
    bench.step()
    assert bench.cluster.replicas > 8
    assert "unlimited" in bench.cluster.message("InventoryKnown")
