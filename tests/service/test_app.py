"""The real service: real solves over real HTTP."""

import json
import re
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families
from service_tools import metric, problems, wait_until

from solver.backends import listing
from solver.example import example_system
from solver.optimize import RequestOptions, optimize
from solver.schema import AnalyzeResponse, Response, parse_system

FORM = {"content-type": "application/x-www-form-urlencoded"}


def changed(path: str, value: object) -> bytes:
    """The example with one value replaced; `path` such as ``serverData.servers.0.model``."""
    system = example_system()
    *steps, last = [int(step) if step.isdigit() else step for step in f"system.{path}".split(".")]
    node = system
    for step in steps:
        node = node[step]
    node[last] = value
    return json.dumps(system).encode()


@pytest.mark.parametrize("path", ["/optimize", "/optimizeOne"])
def test_optimize_answers_what_the_library_answers(service: httpx.Client, sample: bytes, path: str):
    reply = service.post(path, content=sample)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    answered = Response.model_validate_json(reply.content)
    expected = optimize(parse_system(sample), RequestOptions())
    assert answered.allocations == expected.allocations
    assert answered.report.objective == expected.report.objective
    assert answered.report.termination == "optimal"


def test_the_content_type_does_not_matter(service: httpx.Client, sample: bytes):
    as_curl_sends_it = service.post("/optimize", content=sample, headers=FORM)
    assert as_curl_sends_it.status_code == 200


def test_query_options_win_over_the_document(service: httpx.Client):
    body = changed("optimizerData.optimizer.backend", "greedy")
    assert service.post("/optimize", content=body).json()["report"]["backend"] == "greedy"
    chosen = service.post("/optimize", params={"backend": "highs"}, content=body)
    assert chosen.json()["report"]["backend"] == "highs"


def test_explanations_can_be_left_out(service: httpx.Client, sample: bytes):
    def explanations(value: str) -> dict[str, object]:
        reply = service.post("/optimize", params={"explain": value}, content=sample)
        return reply.json()["report"]["explanations"]

    assert explanations("true")
    assert not explanations("false")


def test_scarcity_is_an_answer(service: httpx.Client):
    body = changed("capacityData.count", [{"type": "A100", "count": 0}, {"type": "H100", "count": 0}])
    reply = service.post("/optimize", content=body)
    assert reply.status_code == 200
    unserved = {entry["server"] for entry in reply.json()["report"]["unserved"]}
    assert unserved == {"chat", "batch"}


@pytest.mark.parametrize(
    ("query", "path", "phrase"),
    [
        ("time_limit=0", "?time_limit", "greater than 0"),
        ("time_limit=nan", "?time_limit", "greater than 0|finite"),
        ("time_limit=1e9", "?time_limit", "at most 300 seconds"),
        ("time_limit=soon", "?time_limit", "number"),
        ("gap=-1", "?gap", "greater than or equal to 0"),
        ("strict=perhaps", "?strict", "boolean"),
        ("bakend=highs", "?bakend", r"one of the options .*did you mean 'backend'"),
        ("backend=gurobi", "backend", "highs"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_expected(
    service: httpx.Client, sample: bytes, query: str, path: str, phrase: str
):
    reply = service.post(f"/optimize?{query}", content=sample)
    assert reply.status_code == 422
    found = problems(reply)
    assert list(found) == [path]
    assert re.search(phrase, found[path])


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"{", "$"),
        (b"[]", "$"),
        (b"\xff\xfe", "$"),
        (changed("serverData.servers.0.model", "lama"), "$.system.serverData.servers[0].model"),
        (changed("modelData.models.1.accCount", -1), "$.system.modelData.models[1].accCount"),
    ],
)
def test_a_wrong_body_is_named_by_its_path(service: httpx.Client, body: bytes, path: str):
    reply = service.post("/optimize", content=body)
    assert reply.status_code == 422
    assert path in problems(reply)


def test_unknown_keys_are_warnings_and_with_strict_errors(service: httpx.Client):
    body = changed("serverData.servers.0.colour", "blue")
    warnings = service.post("/optimize", content=body).json()["report"]["warnings"]
    assert any("colour" in warning for warning in warnings)
    refused = service.post("/optimize?strict=true", content=body)
    assert refused.status_code == 422
    assert any("colour" in path for path in problems(refused))


def test_analyze_gives_the_metrics_of_every_candidate_at_a_rate(service: httpx.Client):
    body = json.dumps(example_system())
    reply = service.post("/analyze", params={"server": "chat", "rate": 30}, content=body)
    found = AnalyzeResponse.model_validate_json(reply.content).candidates
    assert [c.accelerator for c in found] == ["A100", "H100"]
    assert all(c.arrival_rate_per_replica_rpm == pytest.approx(30.0) for c in found)


def test_size_gives_the_largest_rate_that_meets_the_targets(service: httpx.Client):
    body = json.dumps(example_system())
    reply = service.post("/size", params={"server": "chat", "accelerator": "H100"}, content=body)
    (found,) = AnalyzeResponse.model_validate_json(reply.content).candidates
    assert found.throughput_rpm == pytest.approx(found.capacity_rpm, rel=1e-6)
    assert found.ttft_average_ms == pytest.approx(1000.0, rel=1e-3)  # the target that binds


@pytest.mark.parametrize("path", ["/analyze", "/size"])
def test_a_server_that_is_not_there_is_an_error(service: httpx.Client, path: str):
    reply = service.post(path, params={"server": "chatt"}, content=json.dumps(example_system()))
    assert reply.status_code == 422
    assert "chat" in problems(reply)["?server"]


def test_backends_are_listed(service: httpx.Client):
    names = {entry["name"]: entry["installed"] for entry in service.get("/backends").json()}
    assert names["highs"] is True
    assert set(names) == {info.name for info in listing()}


def test_health_and_readiness(service: httpx.Client):
    assert service.get("/healthz").json()["status"] == "ok"
    assert service.get("/readyz").json() == {"status": "ready", "workers": 1, "workersReady": 1}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/optimize", 405)])
def test_errors_of_the_framework_have_the_same_shape(
    service: httpx.Client, method: str, path: str, status: int
):
    reply = service.request(method, path)
    assert reply.status_code == status
    assert problems(reply) == {}


def test_the_documented_example_can_be_sent_as_it_is(service: httpx.Client):
    description = service.get("/openapi.json").json()
    for path in ("/optimize", "/optimizeOne", "/analyze", "/size"):
        content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        reply = service.post(f"{path}?strict=true", json=content["example"])
        assert reply.status_code == 200
        if path == "/optimize":
            report = reply.json()["report"]
            assert report["termination"] == "optimal"
            assert report["warnings"] == []


def test_every_reference_of_the_description_leads_somewhere(service: httpx.Client):
    description = service.get("/openapi.json").json()
    references = set(re.findall(r'"\$ref": "#/([^"]*)"', json.dumps(description)))
    assert "components/schemas/InputSystemRequest" in references
    for reference in references:
        node = description
        for step in reference.split("/"):
            assert step in node, reference
            node = node[step]
    assert service.get("/docs").status_code == 200


def test_metrics_count_requests_and_say_how_good_the_latest_answer_is(service: httpx.Client):
    line = 'fleetopt_requests_total{backend="highs",code="200",path="/optimize"}'
    before = metric(service, line)
    sums_before = metric(service, 'fleetopt_stage_seconds_count{backend="highs",stage="solve"}')
    body = changed("capacityData.count", [{"type": "A100", "count": 32}, {"type": "H100", "count": 0}])
    service.post("/optimize", content=changed("serverData.servers.0.model", "lama"))
    service.post("/nope")
    reply = service.post("/optimize", content=body)
    # Counted after the answer is sent.
    wait_until(lambda: metric(service, line) == before + 1)
    assert metric(service, 'fleetopt_stage_seconds_count{backend="highs",stage="solve"}') == sums_before + 1
    text = service.get("/metrics").text
    assert 'fleetopt_gap_ratio{backend="highs"} ' in text
    assert 'fleetopt_unserved_servers{backend="highs"} ' in text
    assert metric(service, 'fleetopt_gap_ratio{backend="highs"}') == reply.json()["report"]["gap"]
    assert metric(service, 'fleetopt_unserved_servers{backend="highs"}') == len(
        reply.json()["report"]["unserved"]
    )
    assert metric(service, "fleetopt_workers_ready") == 1
    wait_until(lambda: metric(service, "fleetopt_requests_in_flight") == 0)
    wait_until(
        lambda: metric(service, 'fleetopt_requests_total{backend="",code="422",path="/optimize"}') >= 1
    )
    wait_until(lambda: metric(service, 'fleetopt_requests_total{backend="",code="404",path="other"}') >= 1)


def test_metrics_parse_in_both_formats(service: httpx.Client):
    plain = service.get("/metrics", headers={"accept": "text/plain"})
    assert plain.headers["content-type"].startswith("text/plain")
    names = {family.name for family in text_families(plain.text)}
    openmetrics = service.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in open_families(openmetrics.text)} <= names | {
        name.removesuffix("_total") for name in names
    }
    assert {"fleetopt_gap_ratio", "fleetopt_stage_seconds", "fleetopt_workers_lost"} <= names


def lines_of(caplog: pytest.LogCaptureFixture, request_id: str) -> list[dict[str, Any]]:
    fields = [getattr(r, "fields", {}) for r in caplog.records if r.name == "fleetopt"]
    return [f for f in fields if f.get("request_id") == request_id]


def test_a_request_has_one_log_line_and_the_id_its_client_gave(
    service: httpx.Client, sample: bytes, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO", "fleetopt"):
        reply = service.post("/optimize", content=sample, headers={"x-request-id": "cycle-17"})
        # The line is written after the answer is sent; lines about other requests may come between.
        wait_until(lambda: bool(lines_of(caplog, "cycle-17")))
    assert reply.headers["x-request-id"] == "cycle-17"
    (fields,) = lines_of(caplog, "cycle-17")
    assert fields["request_id"] == "cycle-17"
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/optimize", 200)
    assert (fields["backend"], fields["termination"], fields["unserved"]) == ("highs", "optimal", 0)
    assert fields["bytes_in"] == len(sample)
    assert fields["bytes_out"] == len(reply.content)
    assert fields["gap"] == reply.json()["report"]["gap"]
    assert fields["warnings"] == len(reply.json()["report"]["warnings"])
    assert fields["seconds"] > 0


def test_an_id_that_could_break_a_log_is_not_taken_over(service: httpx.Client):
    reply = service.get("/healthz", headers={"x-request-id": 'a"\tb' * 100})
    assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])


def test_probes_do_not_fill_the_log(service: httpx.Client, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "fleetopt"):
        for path in ("/healthz", "/readyz", "/metrics"):
            service.get(path)
    assert caplog.records == [] or all(r.name != "fleetopt" for r in caplog.records)
