"""From load to replicas on a real control plane, with the product as its chart installs it.

The tests share a cluster and run in this order: who serves external metrics changes within.
"""

import pytest
from cluster import Cluster
from e2e_tools import (
    A100,
    ENGINE_2025,
    FREEMIUM,
    GAUDI,
    H100,
    H200,
    L40S,
    MI300X,
    MODEL_2025,
    PREMIUM,
    Fleet,
    deployment,
    variant_2025,
    variant_2026,
)
from processes import missing

_MISSING = [*Cluster.binaries_missing(), *Cluster.binaries_missing("keda"), *missing(["helm"])]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(_MISSING), reason="needs " + "; ".join(sorted(set(_MISSING)))),
]


def test_hpa_scales_an_object_of_2025_out_and_in(fleet: Fleet) -> None:
    fleet.serve("hpa", MODEL_2025, {"vllm": A100}, engine=ENGINE_2025)
    fleet.cluster.apply(variant_2025("hpa", "vllm", "A100", actuate="metrics"))
    # A replica does 6.4 requests/s of 20 tokens within the targets.
    fleet.load("hpa", MODEL_2025, 2.5, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(1), "one replica for little load", "hpa")

    fleet.load("hpa", MODEL_2025, 16.0, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(3), "three replicas for more", "hpa")
    assert fleet.condition("hpa", "vllm", "OptimizationReady") == "True OptimizationSucceeded"

    fleet.load("hpa", MODEL_2025, 2.5, output_tokens=20)
    fleet.until(lambda: fleet.numbers("hpa", "vllm").are(1), "one replica again", "hpa")


def test_controller_scales_an_object_of_2026_to_zero_and_back(fleet: Fleet) -> None:
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
    waiting = fleet.serving.totals("zero", PREMIUM)
    assert waiting.held == 0
    fleet.load("zero", PREMIUM, 0.0)


def test_two_variants_share_a_load_that_one_type_cannot_carry(fleet: Fleet) -> None:
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


def test_lower_class_yields_when_gpus_are_short(fleet: Fleet) -> None:
    for namespace, model in (("gold", PREMIUM), ("lead", FREEMIUM)):
        fleet.serve(namespace, model, {"vllm": GAUDI})
        fleet.cluster.apply(variant_2026(namespace, "vllm", "G2", model))
    fleet.load("gold", PREMIUM, 5.0)
    fleet.load("lead", FREEMIUM, 25.0)

    def shared(gold: int, lead: int) -> bool:
        return fleet.numbers("gold", "vllm").are(gold) and fleet.numbers("lead", "vllm").are(lead)

    fleet.until(lambda: shared(1, 3), "all four GPUs in use", "gold", "lead")
    fleet.load("gold", PREMIUM, 25.0)
    fleet.until(lambda: shared(3, 1), "the better class has what it needs", "gold", "lead")
    assert fleet.condition("gold", "vllm", "OptimizationReady") == "True OptimizationSucceeded"
    assert fleet.condition("lead", "vllm", "OptimizationReady") == "True DemandUnserved"
    fleet.load("gold", PREMIUM, 5.0)
    fleet.until(lambda: shared(1, 3), "the lower class has them back", "gold", "lead")
    for namespace, model in (("gold", PREMIUM), ("lead", FREEMIUM)):
        fleet.load(namespace, model, 0.0)


def test_gpus_that_another_team_takes_are_not_planned_with(fleet: Fleet) -> None:
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
    fleet.until(lambda: fleet.numbers("ours", "vllm").are(2), "what they leave", "ours")
    assert fleet.condition("ours", "vllm", "OptimizationReady") == "True DemandUnserved"
    fleet.cluster.delete(fleet.cluster.path(theirs))
    fleet.until(lambda: fleet.numbers("ours", "vllm").are(4), "what is needed, once they are gone", "ours")
    fleet.load("ours", PREMIUM, 0.0)
