"""The service's workers remember sizings between requests, and /metrics says how often it helps."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from service_tools import running

from solver.settings import Settings


def curves(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for family in families if family.name == "fleetopt_curves" for s in family.samples]
    return {s.labels["result"]: s.value for s in samples if s.name == "fleetopt_curves_total"}


def test_a_second_request_finds_its_sizings_and_metrics_count_them(sample: bytes) -> None:
    with running(Settings(workers=1)) as client:
        assert client.post("/optimize", content=sample).status_code == 200
        first = curves(client)
        assert client.post("/optimize", content=sample).status_code == 200
        second = curves(client)
    assert first["miss"] > 0
    assert second["miss"] == first["miss"]
    assert second["hit"] == first["hit"] + first["hit"] + first["miss"]
