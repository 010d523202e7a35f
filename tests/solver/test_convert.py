"""System to problem and plan to allocation: units, batch limits, inventory, what runs now."""

import copy
from typing import Any

import numpy as np
import pytest

from solver import schema
from solver.convert import held_gpus, to_allocations, to_problem
from solver.errors import InputError
from solver.limits import limit_warnings
from solver.problem import NO_LIMIT, AllocationProblem, Plan, ReplicaLimit, SaturationPolicy
from solver.sizing import size_fleet


def system(**optimizer: object) -> dict[str, Any]:
    """One server of a measured capacity and one of law 2, on two accelerators of one GPU type."""
    return {
        "acceleratorData": {
            "accelerators": [
                {"name": "A100", "type": "ampere", "multiplicity": 1, "cost": 40},
                {"name": "4xA100", "type": "ampere", "multiplicity": 4, "cost": 160},
            ]
        },
        "capacityData": {"count": [{"type": "ampere", "count": 24}]},
        "modelData": {
            "models": [
                {"name": "m", "acc": "A100", "accCount": 2, "ratePerReplica": 1.5, "maxBatchSize": 16},
                {
                    "name": "n",
                    "acc": "4xA100",
                    "maxBatchSize": 64,
                    "atTokens": 512,
                    "decodeParms": {"alpha": 8.0, "beta": 0.2},
                    "prefillParms": {"gamma": 20.0, "delta": 0.01},
                },
            ]
        },
        "serviceClassData": {
            "serviceClasses": [
                {
                    "name": "gold",
                    "priority": 1,
                    "modelTargets": [{"model": "n", "slo-itl": 30, "slo-ttft": 800}],
                },
                {"name": "iron", "priority": 7, "modelTargets": [{"model": "m"}]},
            ]
        },
        "serverData": {
            "servers": [
                {"name": "z", "class": "iron", "model": "m", "currentAlloc": {"load": {"arrivalRate": 180}}},
                {
                    "name": "b",
                    "class": "gold",
                    "model": "n",
                    "minNumReplicas": 1,
                    "currentAlloc": {"load": {"arrivalRate": 600, "avgInTokens": 300, "avgOutTokens": 200}},
                },
            ]
        },
        "optimizerData": {"optimizer": optimizer},
    }


def problem_of(document: dict[str, Any]) -> AllocationProblem:
    parsed = schema.parse_system(copy.deepcopy(document))
    return to_problem(parsed.system, size_fleet(parsed.system))


def server(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in document["serverData"]["servers"] if s["name"] == name)


def test_units_and_order() -> None:
    problem = problem_of(system())
    assert problem.servers == ("b", "z")
    assert problem.accelerators == ("4xA100", "A100")
    assert problem.arrival_rps.tolist() == [10.0, 3.0]
    assert problem.priority.tolist() == [1, 7]
    assert problem.gpus.tolist() == [4, 2]
    assert problem.cost_per_h.tolist() == [160.0, 80.0]
    assert problem.capacity_rps[1] == 1.5
    assert problem.option_batch.tolist() == [64 * 512 // 200, 16]
    assert problem.inventory.gpus.tolist() == [24]
    assert problem.policy.saturation is SaturationPolicy.NONE


def test_batch_limit_of_the_server_wins_and_batch_sizes_are_options() -> None:
    document = system()
    document["modelData"]["models"][1]["batchSizes"] = [16, 32, 4096]
    assert problem_of(document).option_batch.tolist() == [16, 32, 163, 16]
    server(document, "b")["maxBatchSize"] = 24
    assert problem_of(document).option_batch.tolist() == [16, 24, 16]


def test_without_at_tokens_the_batch_limit_holds_at_any_length() -> None:
    document = system()
    del document["modelData"]["models"][1]["atTokens"]
    assert problem_of(document).option_batch[0] == 64


def test_policy_and_modes() -> None:
    assert problem_of(system()).policy.max_types == 1
    assert problem_of(system(heterogeneous=True)).policy.max_types is None
    assert problem_of(system(heterogeneous=True, maxTypesPerServer=2)).policy.max_types == 2
    policy = problem_of(system(saturationPolicy="roundrobin", delayedBestEffort=True)).policy
    assert policy.saturation is SaturationPolicy.ROUND_ROBIN
    assert policy.delayed_best_effort
    assert problem_of(system(unlimited=True)).inventory.gpus.tolist() == [NO_LIMIT]


def test_throughput_target_is_the_demand() -> None:
    document = system()
    document["serviceClassData"]["serviceClasses"][0]["modelTargets"][0]["slo-tps"] = 4000
    assert problem_of(document).arrival_rps[0] == pytest.approx(4000 / 200)


def test_keep_accelerator_leaves_only_the_current_one() -> None:
    document = system()
    document["modelData"]["models"].append({"name": "n", "acc": "A100", "ratePerReplica": 9})
    assert len(problem_of(document).option_server) == 3
    server(document, "b")["keepAccelerator"] = True
    server(document, "b")["currentAlloc"]["accelerator"] = "A100"
    problem = problem_of(document)
    assert [problem.accelerators[a] for a in problem.option_accelerator] == ["A100", "A100"]


def test_no_load_needs_the_minimum_or_nothing() -> None:
    document = system()
    server(document, "b")["currentAlloc"]["load"]["arrivalRate"] = 0
    server(document, "z")["currentAlloc"]["load"]["arrivalRate"] = 0
    problem = problem_of(document)
    assert problem.option_server.tolist() == [0]
    assert np.isinf(problem.capacity_rps).all()
    assert problem.replicas_needed.tolist() == [1]
    fleet = size_fleet(schema.parse_system(document).system)
    allocations = to_allocations(fleet, problem, Plan(np.array([1])))
    assert allocations["z"].num_replicas == 0
    assert allocations["z"].accelerator == ""
    assert allocations["b"].num_replicas == 1
    # One request alone: decode 8.2 ms, prefill 20 + 0.01 x 300 ms.
    assert allocations["b"].itl_average_ms == pytest.approx(8.2)
    assert allocations["b"].ttft_average_ms == pytest.approx(23.0)


def test_nodes_and_counts_both_hold() -> None:
    document = system()
    document["capacityData"]["nodes"] = [
        {"name": "n1", "type": "ampere", "count": 8},
        {"name": "n2", "type": "ampere", "count": 5},
    ]
    inventory = problem_of(document).inventory
    assert inventory.gpus.tolist() == [24]
    assert inventory.nodes == ((8, 5),)
    del document["capacityData"]["count"]
    assert problem_of(document).inventory.gpus.tolist() == [13]


def test_current_allocation_with_parts_and_without_cost() -> None:
    document = system()
    server(document, "z")["currentAlloc"].update({"accelerator": "A100", "numReplicas": 3})
    server(document, "b")["currentAlloc"]["parts"] = [
        {"accelerator": "4xA100", "numReplicas": 2, "cost": 320},
        {"accelerator": "A100", "numReplicas": 1, "cost": 40},
    ]
    problem = problem_of(document)
    assert problem.current_server.tolist() == [0, 0, 1]
    assert problem.current_cost_per_h.tolist() == [320.0, 40.0, 240.0]
    assert problem.option_is_current.all()


def test_a_server_that_nothing_serves_keeps_its_gpus() -> None:
    document = system()
    document["serviceClassData"]["serviceClasses"][0]["modelTargets"][0]["slo-itl"] = 1
    server(document, "b")["currentAlloc"].update({"accelerator": "4xA100", "numReplicas": 2})
    parsed = schema.parse_system(document)
    fleet = size_fleet(parsed.system)
    problem = to_problem(parsed.system, fleet)
    assert held_gpus(fleet).tolist() == [8]
    assert problem.inventory.gpus.tolist() == [16]
    assert set(to_allocations(fleet, problem, Plan(np.array([2])))) == {"z"}


def test_a_mix_is_split_by_capacity_and_joined_at_the_top() -> None:
    document = system(heterogeneous=True)
    document["modelData"]["models"].append({"name": "m", "acc": "4xA100", "ratePerReplica": 4.5})
    parsed = schema.parse_system(document)
    fleet = size_fleet(parsed.system)
    problem = to_problem(parsed.system, fleet)
    rows = [
        (problem.servers[s], problem.accelerators[a])
        for s, a in zip(problem.option_server, problem.option_accelerator, strict=True)
    ]
    replicas = np.array([1 if row[0] == "z" else 5 for row in rows])
    allocation = to_allocations(fleet, problem, Plan(replicas))["z"]
    assert allocation.parts is not None
    assert {p.accelerator: p.load.arrival_rate_rpm for p in allocation.parts} == pytest.approx(
        {"4xA100": 135.0, "A100": 45.0}
    )
    assert (allocation.accelerator, allocation.num_replicas, allocation.cost_cents_per_h) == (
        "4xA100",
        2,
        240.0,
    )


def test_latencies_of_a_partial_answer_are_those_of_the_load_it_carries() -> None:
    document = system(saturationPolicy="PriorityExhaustive")
    server(document, "b")["currentAlloc"]["load"]["arrivalRate"] = 1800
    parsed = schema.parse_system(document)
    fleet = size_fleet(parsed.system)
    problem = to_problem(parsed.system, fleet)
    b = problem.option_server == 0
    partial = to_allocations(fleet, problem, Plan(np.where(b, 1, 2)))["b"]
    capacity = float(problem.capacity_rps[b][0])
    assert capacity < 30.0
    assert partial.load.arrival_rate_rpm == pytest.approx(60.0 * capacity)
    # One replica at its capacity, at the limit of a target, not at 30 requests/s.
    assert partial.itl_average_ms <= 30.0 * 1.001
    assert partial.ttft_average_ms <= 800.0 * 1.001


def with_limits(*limits: dict[str, Any], **server_fields: object) -> dict[str, Any]:
    document = system(heterogeneous=True)
    server(document, "z").update({"replicaLimits": list(limits), **server_fields})
    return document


def test_limits_of_replicas_on_an_accelerator() -> None:
    problem = problem_of(with_limits({"accelerator": "A100", "min": 2, "max": 5}, maxTypes=1))
    assert problem.limits == (ReplicaLimit(server=1, accelerator=1, least=2, most=5),)
    assert problem.own_max_types == ((1, 1),)
    assert problem.max_types.tolist() == [NO_LIMIT, 1]
    assert (problem.least.tolist(), problem.most.tolist()) == ([0, 2], [NO_LIMIT, 5])
    assert problem.min_replicas.tolist() == [1, 2]


def test_minima_are_cut_to_the_gpus_in_the_order_of_classes() -> None:
    document = with_limits({"accelerator": "A100", "min": 4})
    document["capacityData"] = {"nodes": [{"name": "x", "type": "ampere", "count": 8}]}
    server(document, "b")["replicaLimits"] = [{"accelerator": "4xA100", "min": 1}]
    problem = problem_of(document)
    assert [limit.least for limit in problem.limits] == [1, 2]
    parsed = schema.parse_system(document)
    fleet = size_fleet(parsed.system)
    assert limit_warnings(fleet, problem) == ["z: 4 replicas on A100 are wanted, the GPUs left hold 2"]


def test_minimum_on_an_accelerator_that_meets_no_target_is_said() -> None:
    document = with_limits({"accelerator": "4xA100", "min": 1})
    problem = problem_of(document)
    assert problem.limits == ()
    fleet = size_fleet(schema.parse_system(document).system)
    assert limit_warnings(fleet, problem) == [
        "z: 1 replicas on 4xA100 are wanted, but none meets the targets there"
    ]


@pytest.mark.parametrize(
    ("limits", "fields", "message"),
    [
        ([{"accelerator": "A100", "min": 3, "max": 2}], {}, "at most 2, the max"),
        ([{"accelerator": "A100", "min": 3}], {"maxNumReplicas": 2}, "at most 2, the maxNumReplicas"),
        (
            [{"accelerator": "A100", "min": 1}, {"accelerator": "4xA100", "min": 1}],
            {"maxTypes": 1},
            "on at most 1 accelerators, the maxTypes",
        ),
        ([{"accelerator": "A10"}], {}, "the name of an accelerator"),
        ([{"accelerator": "A100"}, {"accelerator": "A100"}], {}, "a server and accelerator of its own"),
    ],
)
def test_limits_that_cannot_hold(limits: list[dict[str, Any]], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schema.parse_system(with_limits(*limits, **fields))
