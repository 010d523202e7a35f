"""The service verifies an answer where document or query ask for it, in processes of its worker's own."""

import json
from typing import Any

import httpx


def document(**optimizer: Any) -> dict[str, Any]:
    load = {"arrivalRate": 1200, "avgInTokens": 500, "avgOutTokens": 60}
    targets = [{"model": "m", "slo-itl": 40, "slo-ttft": 600}]
    return {
        "acceleratorData": {"accelerators": [{"name": "H100", "cost": 688}]},
        "modelData": {
            "models": [
                {
                    "name": "m",
                    "acc": "H100",
                    "maxBatchSize": 64,
                    "perfParms": {"alpha": 14, "beta": 0.07, "gamma": 2e-5},
                }
            ]
        },
        "serviceClassData": {
            "serviceClasses": [{"name": name, "modelTargets": targets} for name in ("gold", "silver")]
        },
        "serverData": {
            "servers": [
                {
                    "name": name,
                    "class": name,
                    "model": "m",
                    "currentAlloc": {"load": load | {"arrivalRate": rate}},
                }
                for name, rate in (("gold", 1200), ("silver", 2000))
            ]
        },
        "optimizerData": {"optimizer": {"unlimited": True} | optimizer},
    }


def test_by_the_document_and_by_the_query(service: httpx.Client) -> None:
    plain = service.post("/optimize", json=document())
    assert plain.status_code == 200 and "verification" not in plain.json()["report"]
    by_document = service.post("/optimize", json=document(verify="simulation")).json()
    by_query = service.post("/optimize?verify=simulation", json=document()).json()
    found = by_document["report"]["verification"]
    assert found == by_query["report"]["verification"]
    assert [option["verdict"] for option in found["options"]] == ["met", "met"]
    assert {option["server"] for option in found["options"]} == {"gold", "silver"}
    for option in found["options"]:
        assert option["simulated"]["ttftP95"] > option["simulated"]["ttftAverage"] > 0
        assert option["simulated"]["itlAverage"] + option["itlHalfWidth"] <= 40


def test_a_way_to_verify_that_there_is_not(service: httpx.Client) -> None:
    refused = service.post("/optimize?verify=guess", content=json.dumps(document()))
    assert refused.status_code == 422
    assert refused.json()["problems"][0]["path"] == "?verify"
