"""docs/http.md names what there is, and nothing else."""

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from solver.settings import VARIABLES

TEXT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_settings():
    assert set(re.findall(r"^\| `(FLEETOPT_\w+)`", TEXT, re.MULTILINE)) == set(VARIABLES.values())


def test_endpoints_and_their_options(service: httpx.Client):
    paths = service.get("/openapi.json").json()["paths"]
    documented = set(re.findall(r"(?:POST|GET) (/\w+)`", TEXT))
    assert documented - {"/docs", "/openapi"} == set(paths)
    table = TEXT[TEXT.index("## Query options") : TEXT.index("## Status codes")]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
    options = {name for row in rows for name in re.findall(r"\w+", row)}
    posts = [paths[path]["post"] for path in paths if "post" in paths[path]]
    assert options == {parameter["name"] for post in posts for parameter in post["parameters"]}


def test_metrics(service: httpx.Client, sample: bytes):
    service.post("/optimize", content=sample)
    text = service.get("/metrics").text
    exposed = {family.name for family in text_string_to_metric_families(text)}
    named = {name.removesuffix("_total") for name in re.findall(r"^\| `(fleetopt_\w+)`", TEXT, re.MULTILINE)}
    assert named == {name for name in exposed if not name.endswith("_created")}


def test_the_error_that_is_shown_is_the_one_that_is_given(service: httpx.Client):
    shown = re.search(r"\$ curl -s -d '(.*)' 'http://[^/]*(/.*)'\n(.*)\n", TEXT)
    assert shown
    body, path, answer = shown.groups()
    assert service.post(path, content=body).text == answer


@pytest.mark.parametrize("file", re.findall(r"(scenarios/\S+?\.json)", TEXT))
def test_files_of_the_examples_are_there(file: str):
    assert (Path(__file__).parents[2] / file).is_file()
