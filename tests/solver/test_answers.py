"""Answers are documents that clients read back with the schema, whatever is not known in them."""

import json
from typing import Any

import pytest

from solver import schema
from solver.optimize import RequestOptions, optimize_json


def system(**server: Any) -> dict[str, Any]:
    """One server whose profile is a measured capacity: its latencies are not known."""
    return {
        "acceleratorData": {
            "accelerators": [
                {"name": "A100", "type": "ampere", "multiplicity": 1, "cost": 40},
                {"name": "H100", "type": "hopper", "multiplicity": 1, "cost": 90},
            ]
        },
        "capacityData": {"count": [{"type": "ampere", "count": 2}, {"type": "hopper", "count": 9}]},
        "modelData": {
            "models": [
                {"name": "m", "acc": "A100", "accCount": 1, "ratePerReplica": 1.0, "maxBatchSize": 16},
                {"name": "m", "acc": "H100", "accCount": 1, "ratePerReplica": 1.5, "maxBatchSize": 16},
            ]
        },
        "serviceClassData": {
            "serviceClasses": [{"name": "gold", "priority": 1, "modelTargets": [{"model": "m"}]}]
        },
        "serverData": {
            "servers": [
                {
                    "name": "z",
                    "class": "gold",
                    "model": "m",
                    "currentAlloc": {"load": {"arrivalRate": 240}},
                    **server,
                }
            ]
        },
        "optimizerData": {"optimizer": {"heterogeneous": True}},
    }


@pytest.mark.parametrize("backend", ["highs", "greedy"])
def test_unknown_figures_are_null_and_can_be_read_back(backend: str) -> None:
    body = json.dumps(system()).encode()
    answered = optimize_json(body, RequestOptions(backend=backend))
    response = schema.Response.model_validate_json(answered.body)
    (found,) = response.allocations.values()
    assert (found.itl_average_ms, found.ttft_average_ms) == (None, None)
    if backend == "highs":
        assert [part.itl_average_ms for part in found.parts or []] == [None, None]

    # The allocation that was given is the current one of the next request.
    document = system(currentAlloc=json.loads(answered.body)["allocations"]["z"])
    again = optimize_json(json.dumps(document).encode(), RequestOptions(backend=backend))
    assert json.loads(again.body)["allocations"] == json.loads(answered.body)["allocations"]
