"""Answers say why: options not taken, demand not served, what binds and what one more GPU is worth."""

import copy
from typing import Any

import numpy as np
import pytest

from solver import schema
from solver.optimize import RequestOptions, optimize


def base(**optimizer: object) -> dict[str, Any]:
    """Measured capacities only, so that every figure below can be done by hand."""

    def profile(model: str, acc: str, rate: float) -> dict[str, Any]:
        return {"name": model, "acc": acc, "ratePerReplica": rate}

    def server(name: str, klass: str, model: str, rpm: float) -> dict[str, Any]:
        return {"name": name, "class": klass, "model": model, "currentAlloc": {"load": {"arrivalRate": rpm}}}

    return {
        "acceleratorData": {
            "accelerators": [{"name": "H", "cost": 100}, {"name": "L", "cost": 30}, {"name": "S", "cost": 20}]
        },
        "capacityData": {
            "count": [{"type": "H", "count": 4}, {"type": "L", "count": 10}, {"type": "S", "count": 10}]
        },
        "modelData": {"models": [profile("m", "H", 4), profile("m", "L", 2), profile("m", "S", 0.5)]},
        "serviceClassData": {
            "serviceClasses": [
                {"name": "gold", "priority": 1, "modelTargets": [{"model": "m"}]},
                {"name": "iron", "priority": 2, "modelTargets": [{"model": "m"}]},
            ]
        },
        "serverData": {"servers": [server("one", "gold", "m", 480), server("two", "iron", "m", 360)]},
        "optimizerData": {"optimizer": optimizer},
    }


def answer(document: dict[str, Any]) -> schema.Response:
    return optimize(schema.parse_system(copy.deepcopy(document)), RequestOptions(gap=0.0))


def use(response: schema.Response, gpu_type: str) -> schema.InventoryUse:
    return next(u for u in response.report.inventory if u.type == gpu_type)


def test_plenty_takes_the_cheapest_and_says_what_the_next_costs_more() -> None:
    response = answer(base())
    # 8/2 = 4 L for one, 6/2 = 3 L for two: 210.
    assert response.report.cost_cents_per_h == 210.0
    reasons = {r.accelerator: r for r in response.report.explanations["one"]}
    assert reasons["H"].reason == "dearer"
    assert reasons["H"].num_replicas == 2
    assert "dearer by 80 cents/h: 2 replicas" in reasons["H"].detail
    # S looks cheaper by the replica: 20 against 30.
    assert reasons["S"].reason == "dearer"
    assert "dearer by 200 cents/h" in reasons["S"].detail
    assert not use(response, "L").binding
    assert use(response, "L").value_of_one_more_gpu.cost_per_hour == 0.0


def test_a_binding_type_is_named_and_worth_something() -> None:
    document = base()
    document["capacityData"]["count"][1]["count"] = 6
    response = answer(document)
    # Only one of the two has room on L: one keeps 4 L, two takes 2 H (200) rather than one's 2 H.
    assert response.report.cost_cents_per_h == 3 * 30 + 2 * 100
    assert response.allocations["one"].accelerator == "H"
    why = next(r for r in response.report.explanations["one"] if r.accelerator == "L")
    assert why.reason == "inventory"
    assert "save 80 cents/h" in why.detail
    assert use(response, "L").binding
    value = use(response, "L").value_of_one_more_gpu
    # Relaxed, a seventh card moves a quarter of server one from 200 on H to 120 on L.
    assert value.cost_per_hour == pytest.approx(20.0)
    # With 3 only two has room on L, at 36.67 a card; with 7 both have.
    assert value.cost_range == schema.CardRange(least=3, most=7)
    assert value.unserved_range is None
    assert not use(response, "H").binding


def test_the_range_counts_gpus_that_are_held_as_what_is_available_does() -> None:
    document = base()
    document["capacityData"]["count"][1]["count"] = 8
    slow = {"name": "slow", "acc": "L", "alpha": 50, "beta": 1, "maxBatchSize": 4, "atTokens": 100}
    document["modelData"]["models"].append(slow)
    target = {"model": "slow", "slo-itl": 1}
    document["serviceClassData"]["serviceClasses"][0]["modelTargets"].append(target)
    load = {"arrivalRate": 60, "avgLength": 100}
    running = {"accelerator": "L", "numReplicas": 2, "load": load}
    held = {"name": "three", "class": "gold", "model": "slow", "currentAlloc": running}
    document["serverData"]["servers"].append(held)
    found = use(answer(document), "L")
    assert (found.available, found.used) == (8, 5)
    assert found.value_of_one_more_gpu.cost_range == schema.CardRange(least=5, most=9)


def test_scarcity_serves_the_first_class_and_says_what_is_missing() -> None:
    document = base()
    for count, number in zip(document["capacityData"]["count"], (0, 5, 3), strict=True):
        count["count"] = number
    response = answer(document)
    assert response.allocations["one"].num_replicas == 4
    assert response.allocations["two"].num_replicas == 0
    (short,) = response.report.unserved
    assert (short.server, short.service_class, short.priority, short.unserved_share) == (
        "two",
        "iron",
        2,
        1.0,
    )
    assert short.reason == "gpus"
    assert short.detail == (
        "its whole demand needs 2 H (0 left by the others) or 3 L (1 left by the others) "
        "or 12 S (3 left by the others)"
    )
    assert use(response, "L").binding
    assert use(response, "L").value_of_one_more_gpu.unserved_share == pytest.approx(1 / 3)


def test_partial_policies_serve_what_they_can() -> None:
    document = base(saturationPolicy="PriorityExhaustive")
    for count, number in zip(document["capacityData"]["count"], (0, 5, 3), strict=True):
        count["count"] = number
    response = answer(document)
    two = response.allocations["two"]
    # One type per server: 3 S carry 1.5 requests/s, 1 L carries 2.
    assert (two.accelerator, two.num_replicas) == ("L", 1)
    assert two.load.arrival_rate_rpm == pytest.approx(120.0)
    assert response.report.unserved[0].unserved_share == pytest.approx(4 / 6)
    document["optimizerData"]["optimizer"]["heterogeneous"] = True
    mixed = answer(document)
    assert mixed.report.unserved[0].unserved_share == pytest.approx(2.5 / 6)
    assert {p.accelerator for p in mixed.allocations["two"].parts or []} == {"L", "S"}


def test_a_target_that_no_replica_meets_is_told_apart_from_scarcity() -> None:
    document = base()
    document["modelData"]["models"] = [
        {"name": "m", "acc": "H", "alpha": 25.0, "beta": 0.5, "maxBatchSize": 8},
        {"name": "m", "acc": "L", "ratePerReplica": 2},
    ]
    for server in document["serverData"]["servers"]:
        server["currentAlloc"]["load"]["avgLength"] = 128
    document["serviceClassData"]["serviceClasses"][0]["modelTargets"][0]["slo-itl"] = 24
    response = answer(document)
    why = next(r for r in response.report.explanations["one"] if r.accelerator == "H")
    assert why.reason == "targetMissed"
    assert why.num_replicas is None
    assert "target is 24 ms" in why.detail
    document["modelData"]["models"].pop()
    response = answer(document)
    (short,) = response.report.unserved
    assert (short.server, short.reason) == ("one", "targets")
    assert "H: ITL is 25.5" in short.detail
    assert "one" not in response.allocations


def test_no_profile_keep_accelerator_and_max_replicas_have_their_own_reasons() -> None:
    document = base()
    one, two = document["serverData"]["servers"]
    document["modelData"]["models"].append({"name": "x", "acc": "H", "ratePerReplica": 1})
    document["serverData"]["servers"].append({**copy.deepcopy(two), "name": "three", "model": "x"})
    document["acceleratorData"]["accelerators"].append({"name": "Z", "cost": 1, "type": "L"})
    one.update(keepAccelerator=True)
    one["currentAlloc"]["accelerator"] = "Z"
    two["maxNumReplicas"] = 1
    response = answer(document)
    reasons = {u.server: (u.reason, u.detail) for u in response.report.unserved}
    assert reasons["one"] == ("keepAccelerator", "it keeps Z, which has no profile of m")
    assert reasons["two"] == ("maxReplicas", "at least 2 replicas are needed, at most 1 allowed")
    assert reasons["three"][0] == "gpus"


def test_the_switching_penalty_holds_a_server_where_it_is() -> None:
    document = base()
    one = document["serverData"]["servers"][0]
    one["currentAlloc"].update({"accelerator": "H", "numReplicas": 2, "cost": 200})
    document["acceleratorData"]["accelerators"][1]["cost"] = 45
    response = answer(document)
    # 4 L cost 180, but leaving H costs 0.1 x (200 + 180) = 38.
    assert response.allocations["one"].accelerator == "H"
    why = next(r for r in response.report.explanations["one"] if r.accelerator == "L")
    assert why.reason == "switchingPenalty"
    document["optimizerData"]["optimizer"]["switchingPenalty"] = 0.05
    response = answer(document)
    assert response.allocations["one"].accelerator == "L"
    assert response.report.switching_penalty_cents_per_h == pytest.approx(0.05 * 380)
    assert response.report.objective == pytest.approx(response.report.cost_cents_per_h + 0.05 * 380)


def test_a_dominated_option_says_so() -> None:
    document = base()
    document["acceleratorData"]["accelerators"].append({"name": "L-old", "type": "L", "cost": 29})
    document["acceleratorData"]["accelerators"].append({"name": "L-new", "type": "L", "cost": 28})
    document["modelData"]["models"].append({"name": "m", "acc": "L-old", "ratePerReplica": 1})
    document["modelData"]["models"].append({"name": "m", "acc": "L-new", "ratePerReplica": 1})
    why = {r.accelerator: r.reason for r in answer(document).report.explanations["one"]}
    assert why["L-old"] == "dominated"
    assert why["L-new"] == "dearer"


def test_options_ruled_out_by_the_input_say_by_what() -> None:
    document = base()
    one, two = document["serverData"]["servers"]
    one.update(keepAccelerator=True)
    one["currentAlloc"].update({"accelerator": "L", "numReplicas": 4, "cost": 120})
    two["maxNumReplicas"] = 2
    for server in (one, two):
        server["currentAlloc"]["load"]["avgOutTokens"] = 100
    document["modelData"]["models"][2].update(weightSize=90, kvBytesPerToken=1)
    document["acceleratorData"]["accelerators"][2]["memSize"] = 80
    response = answer(document)
    assert {name: a.accelerator for name, a in response.allocations.items()} == {"one": "L", "two": "H"}
    found = {
        (server, r.accelerator): (r.reason, r.num_replicas, r.detail)
        for server, reasons in response.report.explanations.items()
        for r in reasons
    }
    assert found["one", "H"] == ("keepAccelerator", None, "the server keeps L")
    assert found["two", "L"] == ("maxReplicas", 3, "3 replicas, at most 2 allowed")
    reason, replicas, detail = found["two", "S"]
    assert (reason, replicas) == ("memory", None)
    assert detail.startswith("its memory does not hold the weights")
    assert found["one", "S"] == found["two", "S"]


def test_what_the_others_leave_counts_what_a_server_has_in_part() -> None:
    document = base(saturationPolicy="PriorityExhaustive", heterogeneous=True)
    for count, number in zip(document["capacityData"]["count"], (0, 5, 3), strict=True):
        count["count"] = number
    response = answer(document)
    assert {p.accelerator: p.num_replicas for p in response.allocations["two"].parts or []} == {
        "L": 1,
        "S": 3,
    }
    assert response.report.unserved[0].detail == (
        "its whole demand needs 2 H (0 left by the others) or 3 L (1 left by the others) "
        "or 12 S (3 left by the others)"
    )


@pytest.mark.parametrize("mix", [False, True])
def test_explanations_belong_to_the_servers_they_are_of(mix: bool) -> None:
    """An explanation is of an accelerator that the server was not given; its figures are the server's."""
    rng = np.random.default_rng(7)
    document = base(heterogeneous=mix, switchingPenalty=0)
    like = document["serverData"]["servers"][1]
    document["serverData"]["servers"] = [
        {**like, "name": f"s{i:02d}", "currentAlloc": {"load": {"arrivalRate": float(rng.integers(1, 600))}}}
        for i in range(30)
    ]
    for count in document["capacityData"]["count"]:
        count["count"] = 40
    response = answer(document)
    rate = {"H": 4, "L": 2, "S": 0.5}
    price = {"H": 100, "L": 30, "S": 20}
    assert len(response.report.explanations) > 10
    for server in document["serverData"]["servers"]:
        given = response.allocations[server["name"]]
        taken = {given.accelerator} | {part.accelerator for part in given.parts or []}
        for why in response.report.explanations.get(server["name"], []):
            assert why.accelerator not in taken
            need = -(-server["currentAlloc"]["load"]["arrivalRate"] / 60 // rate[why.accelerator])
            assert why.num_replicas == need
            assert why.cost_cents_per_h == need * price[why.accelerator]
            if why.reason == "dearer" and "dearer by" in why.detail:
                more = why.cost_cents_per_h - given.cost_cents_per_h
                assert f"dearer by {more:.6g} cents/h" in why.detail
            assert (why.reason == "inventory") == (why.cost_cents_per_h < given.cost_cents_per_h)


def test_explanations_can_be_left_out() -> None:
    parsed = schema.parse_system(base())
    response = optimize(parsed, RequestOptions(explain=False))
    assert response.report.explanations == {}
