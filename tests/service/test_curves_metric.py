"""The service's workers remember sizings and answers; /metrics says how often it helps."""

import json

import httpx
from prometheus_client.parser import text_string_to_metric_families
from service_tools import running

from solver.settings import Settings


def counted(client: httpx.Client, name: str) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for family in families if family.name == name for s in family.samples]
    return {s.labels["result"]: s.value for s in samples if s.name == f"{name}_total"}


def curves(client: httpx.Client) -> dict[str, float]:
    return counted(client, "fleetopt_curves")


def test_a_second_request_finds_its_sizings_and_metrics_count_them(sample: bytes) -> None:
    with running(Settings(workers=1)) as client:
        assert client.post("/optimize", content=sample).status_code == 200
        first = curves(client)
        assert client.post("/optimize", content=sample).status_code == 200
        second = curves(client)
    assert first["miss"] > 0
    assert second["miss"] == first["miss"]
    assert second["hit"] == first["hit"] + first["hit"] + first["miss"]


def test_the_last_answer_is_a_start_for_another_load_and_metrics_count_it(sample: bytes) -> None:
    document = json.loads(sample)
    for server in document["system"]["serverData"]["servers"]:
        # Nothing runs: what is counted is remembered.
        server["currentAlloc"] = {"load": server["currentAlloc"]["load"]}
    quiet = json.dumps(document)
    for server in document["system"]["serverData"]["servers"]:
        server["currentAlloc"]["load"]["arrivalRate"] *= 1.1
    busy = json.dumps(document)
    with running(Settings(workers=1)) as client:
        assert sum(counted(client, "fleetopt_starts").values()) == 0
        first = client.post("/optimize", content=quiet).json()
        again = client.post("/optimize", content=quiet).json()
        assert sum(counted(client, "fleetopt_starts").values()) == 0
        assert again["allocations"] == first["allocations"]
        assert client.post("/optimize", content=busy).status_code == 200
        assert sum(counted(client, "fleetopt_starts").values()) == 1
