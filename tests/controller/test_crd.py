"""Both generations of the object, and the rules of its status."""

import re

import pytest
from controller_tools import MODEL, profile, va

from controller.crd import (
    ClassRef,
    Condition,
    CurrentAlloc,
    DesiredAlloc,
    Status,
    TargetRef,
    VariantKey,
    number,
    parse_variant,
    status_patch,
)

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def test_object_of_mid_2025() -> None:
    variant = parse_variant(va(profiles=[profile("A100"), profile("MI300X", "7.77", "0.15", atTokens=128)]))

    assert variant.key == VariantKey("llm-d-sim", "vllm")
    assert variant.target == TargetRef("apps/v1", "Deployment", "vllm")
    assert variant.class_ref == ClassRef("premium-slo", "opt-125m")
    assert variant.accelerator_label == "A100"
    first, second = variant.profiles
    assert (first.acc, first.law, first.alpha_ms, first.beta_ms, first.max_batch_size) == (
        "A100",
        1,
        20.58,
        0.41,
        4,
    )
    assert (second.acc, second.at_tokens) == ("MI300X", 128)
    assert variant.problems == ()


def test_object_of_autumn_2025() -> None:
    parms = {
        "decodeParms": {"alpha": "6.958", "beta": "0.042"},
        "prefillParms": {"gamma": "2.0", "delta": "0.02"},
    }
    entry = {"acc": "H100", "accCount": 2, "maxBatchSize": 512, "perfParms": parms}
    (found,) = parse_variant(va(profiles=[entry])).profiles

    assert (found.law, found.acc_count, found.max_batch_size) == (2, 2, 512)
    assert found.decode_parms is not None
    assert found.prefill_parms is not None
    assert (found.decode_parms.beta_ms, found.prefill_parms.delta_ms) == (0.042, 0.02)


def test_profile_of_2026_has_law_3() -> None:
    entry = {"acc": "H100", "maxBatchSize": 64, "perfParms": {"alpha": "5", "beta": "0.1", "gamma": "0.001"}}
    assert parse_variant(va(profiles=[entry])).profiles[0].law == 3


def test_object_of_2026() -> None:
    ref = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "big"}
    variant = parse_variant(va(scaleTargetRef=ref, variantCost="15.5", minReplicas=0, maxReplicas=6))

    assert variant.target == TargetRef("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "big")
    assert not variant.target.is_deployment
    assert variant.cost_cents_per_h == 15.5
    assert (variant.min_replicas, variant.max_replicas) == (0, 6)
    assert variant.profiles == ()


def test_cost_that_the_crd_filled_in_is_no_price() -> None:
    assert parse_variant(va(variantCost="10.0")).cost_cents_per_h is None


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"variantCost": "NaN"}, "spec.variantCost is not a cost"),
        ({"minReplicas": -1}, "spec.minReplicas is not a number of replicas"),
        ({"minReplicas": 5, "maxReplicas": 2}, "spec.minReplicas 5 is above spec.maxReplicas 2"),
        ({"modelID": ""}, "spec.modelID is empty"),
        (
            {"profiles": [profile("A100"), profile("H100", alpha="fast")]},
            "accelerators[1] is left out: alpha",
        ),
        ({"profiles": [profile("A100"), profile("A100")]}, "A100 is there twice"),
        ({"profiles": [profile("A100"), {"acc": "H100"}]}, "exactly one of"),
    ],
)
def test_bad_part_costs_that_part_alone(spec: dict[str, object], problem: str) -> None:
    document = va(**{name: value for name, value in spec.items() if name != "modelID"})  # type: ignore[arg-type]
    if "modelID" in spec:
        document["spec"]["modelID"] = spec["modelID"]
    variant = parse_variant(document)

    assert problem in "; ".join(variant.problems)
    if "profiles" in spec:
        assert [p.acc for p in variant.profiles] == ["A100"]


@pytest.mark.parametrize(
    "value", [0.0, 1 / 3, 1e-9, 1e15, 123456.789, -1.0, float("nan"), float("inf"), -0.001]
)
def test_numbers_of_a_status_match_the_pattern(value: float) -> None:
    assert re.fullmatch(r"\d+(\.\d+)?", number(value))


def current(**more: object) -> CurrentAlloc:
    values = {
        "accelerator": "A100",
        "replicas": 2,
        "max_batch": 4,
        "cost_cents_per_h": 80.0,
        "itl_ms": float("nan"),
        "ttft_ms": 69.7666,
        "arrival_rate_rpm": 40.0,
        "input_tokens": 128.0,
        "output_tokens": 178.0,
    }
    return CurrentAlloc(**{**values, **more})  # type: ignore[arg-type]


READY = Condition("OptimizationReady", True, "OptimizationSucceeded", "2 replicas")


def test_status_as_the_crd_of_2025_wants_it() -> None:
    status = Status((READY,), current(), DesiredAlloc("A100", 2), applied=True)
    patch = status_patch(parse_variant(va()), status, NOW)

    assert patch == {
        "status": {
            "currentAlloc": {
                "accelerator": "A100",
                "numReplicas": 2,
                "maxBatch": 4,
                "variantCost": "80.00",
                "itlAverage": "0.00",
                "ttftAverage": "69.77",
                "load": {"arrivalRate": "40.00", "avgInputTokens": "128.00", "avgOutputTokens": "178.00"},
            },
            "desiredOptimizedAlloc": {"numReplicas": 2, "accelerator": "A100", "lastRunTime": NOW},
            "actuation": {"applied": True},
            "conditions": [
                {
                    "type": "OptimizationReady",
                    "status": "True",
                    "reason": "OptimizationSucceeded",
                    "message": "2 replicas",
                    "observedGeneration": 1,
                    "lastTransitionTime": NOW,
                }
            ],
        }
    }


def test_no_write_where_nothing_changed() -> None:
    status = Status((READY,), current(), DesiredAlloc("A100", 2), applied=True)
    patch = status_patch(parse_variant(va()), status, NOW)
    assert patch is not None
    after = parse_variant(va(status=patch["status"]))

    assert status_patch(after, status, LATER) is None


def test_only_what_changed_is_written_and_times_move_with_it() -> None:
    status = Status((READY,), current(), DesiredAlloc("A100", 2))
    first = status_patch(parse_variant(va()), status, NOW)
    assert first is not None
    other = Condition("OptimizationReady", True, "DemandUnserved", "3 more H100")
    patch = status_patch(
        parse_variant(va(status=first["status"])), Status((other,), current(), DesiredAlloc("A100", 3)), LATER
    )

    assert patch is not None
    assert set(patch["status"]) == {"desiredOptimizedAlloc", "conditions"}
    assert patch["status"]["desiredOptimizedAlloc"]["lastRunTime"] == LATER
    # The reason is another, the status is not: the transition was then.
    assert patch["status"]["conditions"][0]["lastTransitionTime"] == NOW


def test_accelerator_name_that_the_crd_refuses_is_never_written() -> None:
    status = Status((), current(accelerator=""), DesiredAlloc("", 0))
    patch = status_patch(parse_variant(va()), status, NOW)
    assert patch == {"status": {"desiredOptimizedAlloc": {"numReplicas": 0, "lastRunTime": NOW}}}

    before = {"desiredOptimizedAlloc": {"numReplicas": 1, "accelerator": "A100", "lastRunTime": NOW}}
    patch = status_patch(parse_variant(va(status=before)), status, LATER)
    assert patch is not None
    assert patch["status"]["desiredOptimizedAlloc"]["accelerator"] == "A100"


def test_conditions_of_others_stay() -> None:
    theirs = {"type": "Paused", "status": "False", "reason": "No", "lastTransitionTime": NOW}
    patch = status_patch(parse_variant(va(status={"conditions": [theirs]})), Status((READY,)), LATER)

    assert patch is not None
    assert [entry["type"] for entry in patch["status"]["conditions"]] == ["Paused", "OptimizationReady"]


def test_model_of_profiles_is_that_of_the_object() -> None:
    assert parse_variant(va(profiles=[profile("A100")])).profiles[0].name == MODEL
