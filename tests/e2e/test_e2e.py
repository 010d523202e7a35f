"""From load to replicas on a real control plane, with the product as its chart installs it.

The tests share a cluster and run in this order: who serves external metrics changes within. Scenarios that
keep to namespaces and GPUs of their own run at the same time, as the variants of users do.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
import yaml
from e2e_tools import (
    A100,
    ACCOUNT,
    CHART,
    ENGINE_2025,
    FREEMIUM,
    GAUDI,
    H100,
    H200,
    L40S,
    MI300X,
    MISSING,
    MODEL_2025,
    PREMIUM,
    SYSTEM,
    Controller,
    Fleet,
    deployment,
    run,
    variant_2025,
    variant_2026,
)
from processes import binary

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        bool(MISSING) and os.environ.get("E2E") != "required", reason="needs " + "; ".join(MISSING)
    ),
]


def hpa_scales_an_object_of_2025_out_and_in(fleet: Fleet) -> None:
    fleet.serve("hpa", MODEL_2025, {"vllm": A100}, engine=ENGINE_2025)
    fleet.cluster.apply(variant_2025("hpa", "vllm", "A100", actuate="metrics"))
    # A replica does 6.4 requests/s of 20 tokens within the targets.
    fleet.load("hpa", MODEL_2025, 2.5, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(1), "one replica for little load", "hpa")

    fleet.load("hpa", MODEL_2025, 16.0, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(3), "three replicas for more", "hpa")
    assert fleet.condition("hpa", "vllm", "TargetResolved") == "True TargetFound"
    (owner,) = fleet.variant("hpa", "vllm")["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Deployment", "vllm")

    fleet.load("hpa", MODEL_2025, 2.5, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(1), "one replica again", "hpa")


def controller_scales_an_object_of_2026_to_zero_and_back(fleet: Fleet) -> None:
    fleet.serve("zero", PREMIUM, {"llama-decode": H100})
    fleet.cluster.apply(variant_2026("zero", "llama", "H100", PREMIUM, "llama-decode", minReplicas=0))

    def numbers(count: int) -> bool:
        return fleet.numbers("zero", "llama", "llama-decode").are(count)

    fleet.load("zero", PREMIUM, 25.0)
    fleet.until(lambda: numbers(3), "three replicas", "zero")
    fleet.load("zero", PREMIUM, 0.0)
    fleet.until(lambda: numbers(0), "none without traffic", "zero")
    # Requests wait at the gateway, which is all that says that somebody wants the model.
    fleet.load("zero", PREMIUM, 15.0)
    fleet.until(lambda: numbers(2), "two replicas again", "zero")
    assert fleet.serving.totals("zero", PREMIUM).held == 0

    fleet.load("zero", PREMIUM, 0.0)
    fleet.until(lambda: numbers(0), "none without traffic, once more", "zero")
    # A gateway that has no such metric asks.
    deployments = "/apis/apps/v1/namespaces/zero/deployments"
    since = fleet.cluster.get(deployments)["metadata"]["resourceVersion"]
    wake = f"/wake?namespace=zero&model={PREMIUM}"
    assert fleet.controller.ask(wake, "", "POST")[0] == 401
    assert fleet.controller.ask(wake, fleet.reader, "POST")[0] == 403
    assert fleet.controller.ask(wake, fleet.waker, "POST")[0] == 202
    # Nobody comes, so it goes again soon.
    fleet.until(
        lambda: any(d["spec"]["replicas"] == 1 for d in fleet.cluster.changes(deployments, since)),
        "one replica for whoever is about to come",
        "zero",
    )


def two_variants_share_a_load_that_one_type_cannot_carry(fleet: Fleet) -> None:
    fleet.serve("mixed", PREMIUM, {"on-l40s": L40S, "on-mi300x": MI300X})
    for name, accelerator in (("on-l40s", "L40S"), ("on-mi300x", "MI300X")):
        fleet.cluster.apply(variant_2026("mixed", name, accelerator, PREMIUM, minReplicas=0))
    fleet.load("mixed", PREMIUM, 5.0)
    # The cheaper one alone.
    fleet.until(
        lambda: fleet.numbers("mixed", "on-l40s").are(1) and fleet.numbers("mixed", "on-mi300x").are(0),
        "one cheap replica",
        "mixed",
    )
    fleet.load("mixed", PREMIUM, 35.0)
    fleet.until(
        lambda: fleet.numbers("mixed", "on-l40s").are(2) and fleet.numbers("mixed", "on-mi300x").are(2),
        "all of both for a load that two of either cannot carry",
        "mixed",
    )
    fleet.load("mixed", PREMIUM, 0.0)


def lower_class_yields_when_gpus_are_short(fleet: Fleet) -> None:
    for namespace, model in (("gold", PREMIUM), ("lead", FREEMIUM)):
        fleet.serve(namespace, model, {"vllm": GAUDI})
        fleet.cluster.apply(variant_2026(namespace, "vllm", "G2", model))
    fleet.load("gold", PREMIUM, 5.0)
    fleet.load("lead", FREEMIUM, 25.0)

    def shared(gold: int, lead: int) -> bool:
        return fleet.numbers("gold", "vllm").are(gold) and fleet.numbers("lead", "vllm").are(lead)

    fleet.until(lambda: shared(1, 3), "all four GPUs in use", "gold", "lead")
    fleet.load("gold", PREMIUM, 25.0)
    fleet.until(
        lambda: (
            shared(3, 1)
            and fleet.condition("gold", "vllm", "OptimizationReady") == "True OptimizationSucceeded"
            and fleet.condition("lead", "vllm", "OptimizationReady") == "True DemandUnserved"
        ),
        "the better class has what it needs, and the lower one says what it lacks",
        "gold",
        "lead",
    )
    fleet.load("gold", PREMIUM, 5.0)
    fleet.until(lambda: shared(1, 3), "the lower class has them back", "gold", "lead")
    for namespace, model in (("gold", PREMIUM), ("lead", FREEMIUM)):
        fleet.load(namespace, model, 0.0)


def gpus_that_another_team_takes_are_not_planned_with(fleet: Fleet) -> None:
    fleet.serve("ours", PREMIUM, {"vllm": H200})
    fleet.cluster.apply(variant_2026("ours", "vllm", "H200", PREMIUM))
    fleet.namespace("training")
    theirs = deployment("theirs", "training", H200, gpus=2)
    fleet.cluster.apply(theirs)
    fleet.until(
        lambda: fleet.deployment("training", "theirs")["status"].get("readyReplicas") == 1,
        "the other team runs",
        "training",
    )
    fleet.load("ours", PREMIUM, 35.0)
    fleet.until(
        lambda: (
            fleet.numbers("ours", "vllm").are(2)
            and fleet.condition("ours", "vllm", "OptimizationReady") == "True DemandUnserved"
        ),
        "what they leave, and the rest unserved",
        "ours",
    )
    fleet.cluster.delete(fleet.cluster.path(theirs))
    fleet.until(lambda: fleet.numbers("ours", "vllm").are(4), "what is needed, once they are gone", "ours")
    fleet.load("ours", PREMIUM, 0.0)


SCALED_OBJECT = "/apis/keda.sh/v1alpha1/namespaces/keda/scaledobjects/vllm"
KEDA_COOL_DOWN_S = 20

SCENARIOS = (
    hpa_scales_an_object_of_2025_out_and_in,
    controller_scales_an_object_of_2026_to_zero_and_back,
    two_variants_share_a_load_that_one_type_cannot_carry,
    lower_class_yields_when_gpus_are_short,
    gpus_that_another_team_takes_are_not_planned_with,
)
Scenarios = dict[Callable[[Fleet], None], Future[None]]


@pytest.fixture(scope="module")
def scenarios(fleet: Fleet) -> Iterator[Scenarios]:
    with ThreadPoolExecutor(len(SCENARIOS)) as threads:
        yield {scenario: threads.submit(scenario, fleet) for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_scenario(scenario: Callable[[Fleet], None], scenarios: Scenarios) -> None:
    scenarios[scenario].result()


@pytest.fixture
def quiet(fleet: Fleet, scenarios: Scenarios) -> Fleet:
    """The fleet once the scenarios are over, for tests that change what all of them need."""
    wait(scenarios.values())
    return fleet


def test_metrics_are_for_those_who_may_read_them(fleet: Fleet) -> None:
    assert fleet.controller.ask("/metrics", "")[0] == 401
    assert fleet.controller.ask("/metrics", "wrong")[0] == 401
    assert fleet.controller.ask("/metrics", fleet.stranger)[0] == 403
    status, text = fleet.controller.ask("/metrics", fleet.reader)
    assert status == 200
    assert "inferno_desired_replicas{" in text


def test_leader_that_is_killed_and_its_successor_take_no_wrong_step(quiet: Fleet) -> None:
    fleet = quiet
    fleet.load("hpa", MODEL_2025, 16.0, output_tokens=20)
    fleet.load("ours", PREMIUM, 25.0)
    standby = fleet.run(Controller(fleet, "controller-2", fleet.ports[1]))
    fleet.until(
        lambda: fleet.numbers("hpa", "vllm").are(3) and fleet.numbers("ours", "vllm").are(3),
        "three replicas by an HPA, and three by the controller",
        "hpa",
        "ours",
    )
    # Whoever only stands by shows no gauge: an autoscaler would take it for a decision.
    assert standby.metric("inferno_desired_replicas", namespace="hpa") is None

    deployments = "/apis/apps/v1/deployments"
    since = fleet.cluster.get(deployments)["metadata"]["resourceVersion"]
    fleet.controller.daemon.kill()
    fleet.controller = standby
    fleet.until(
        lambda: (standby.metric("fleetopt_controller_passes_total", result="ok") or 0) > 5,
        "the other has taken over, and has been deciding for longer than the scale-down window",
    )
    assert fleet.numbers("hpa", "vllm").are(3)
    assert fleet.numbers("ours", "vllm").are(3)
    steps = {
        (document["metadata"]["namespace"], document["spec"]["replicas"])
        for document in fleet.cluster.changes(deployments, since)
        if document["metadata"]["namespace"] in ("hpa", "ours")
    }
    assert steps <= {("hpa", 3), ("ours", 3)}
    for namespace, model in (("hpa", MODEL_2025), ("ours", PREMIUM)):
        fleet.load(namespace, model, 0.0)


@pytest.fixture(scope="module")
def keda(fleet: Fleet, scenarios: Scenarios) -> Fleet:
    """The fleet once the scenarios are over, with a variant that KEDA scales."""
    wait(scenarios.values())
    fleet.cluster.serve_external_metrics("keda")
    # As the chart has it, but for its times: each of these queries takes 6 s at most until it is given up.
    times = {"pollingInterval": 2, "fallback": {"failureThreshold": 1}, "cooldownPeriod": KEDA_COOL_DOWN_S}
    fleet.cluster.patch(SCALED_OBJECT, {"spec": times})
    fleet.serve("keda", PREMIUM, {"vllm": H100})
    document = variant_2026("keda", "vllm", "H100", PREMIUM, minReplicas=0)
    document["metadata"]["annotations"] = {"inference.optimization/actuate": "metrics"}
    fleet.cluster.apply(document)
    return fleet


def test_keda_scales_to_zero_and_back(keda: Fleet) -> None:
    fleet = keda
    fleet.load("keda", PREMIUM, 25.0)
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(3), "three replicas", "keda")
    fleet.load("keda", PREMIUM, 0.0)
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(0), "none without traffic", "keda")
    fleet.load("keda", PREMIUM, 15.0)
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(2), "two replicas again", "keda")
    fleet.load("keda", PREMIUM, 0.0)


def test_keda_keeps_the_replicas_while_nothing_says_how_many_there_should_be(keda: Fleet) -> None:
    """Neither a controller nor a Prometheus that is away is a reason to end model servers."""
    fleet = keda
    deployments = "/apis/apps/v1/namespaces/keda/deployments"

    def failures() -> int:
        """How many queries in a row have failed."""
        (health,) = fleet.cluster.get(SCALED_OBJECT)["status"]["health"].values()
        return int(health["numberOfFailures"])

    def outlast_the_cool_down() -> None:
        """Wait until KEDA would go to zero if it took failures for a reason."""
        end_s = time.monotonic() + KEDA_COOL_DOWN_S
        fleet.until(lambda: time.monotonic() > end_s, "the cool-down is over", "keda")
        known = failures()
        assert known > 0
        fleet.until(lambda: failures() > known + 2, "KEDA asks in vain after it, too", "keda")

    fleet.load("keda", PREMIUM, 25.0)
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(3), "three replicas", "keda")
    since = fleet.cluster.get(deployments)["metadata"]["resourceVersion"]
    fleet.controller.daemon.kill()
    outlast_the_cool_down()
    fleet.controller = fleet.run(Controller(fleet, "controller-3", fleet.ports[0]))
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(3), "three, said by a new controller", "keda")
    with fleet.cluster.component("prometheus").suspended():
        outlast_the_cool_down()
        steps = {document["spec"]["replicas"] for document in fleet.cluster.changes(deployments, since)}
    assert steps <= {3}
    fleet.until(lambda: fleet.numbers("keda", "vllm").are(3), "three, once Prometheus is back", "keda")
    fleet.load("keda", PREMIUM, 0.0)


VALUES: dict[str, list[str]] = {
    "default": [],
    "one pod": ["--set=mode=onePod"],
    "controller alone": ["--set=optimizer.enabled=false,optimizerUrl=http://elsewhere:8080"],
    "service alone": ["--set=controller.enabled=false"],
    "openshift": [f"--values={CHART / 'values-openshift.yaml'}"],
}


@pytest.mark.parametrize("values", VALUES)
def test_api_server_takes_what_the_chart_renders(fleet: Fleet, values: str) -> None:
    """Beside the values that the fleet is installed with, which have every optional object."""
    run(binary("helm"), "lint", "--strict", str(CHART), *VALUES[values])
    where = f"--namespace={SYSTEM}"
    rendered = run(binary("helm"), "template", "other", str(CHART), where, *VALUES[values])
    documents = [document for document in yaml.safe_load_all(rendered) if document]
    assert documents
    for document in documents:
        fleet.cluster.apply(document, dry_run=True)


def test_every_permission_was_used_and_nothing_was_denied(fleet: Fleet) -> None:
    """The last test: the audit log of all of them."""
    user = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
    allowed: set[tuple[str, str, str, str]] = set()
    too_early: set[tuple[str, str, str, str]] = set()
    denied: set[tuple[str, str, str, str]] = set()
    for event in fleet.cluster.audit():
        if event["user"]["username"] != user or "objectRef" not in event:
            continue
        what = event["objectRef"]
        resource = "/".join(part for part in (what["resource"], what.get("subresource")) if part)
        asked = (what.get("apiGroup", ""), resource, event["verb"], what.get("namespace", ""))
        if event["responseStatus"]["code"] != 403:
            allowed.add(asked)
        elif asked in allowed:
            denied.add(asked)
        else:
            too_early.add(asked)
    # A server refuses for a moment what it has only just been told to allow, and never again.
    assert denied | (too_early - allowed) == set()
    assert {asked[:3] for asked in allowed} == fleet.granted()
