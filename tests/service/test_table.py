import io
import json

import pytest
from rich.console import Console

from solver import schema, table
from solver.analyze import analyze
from solver.example import example_system
from solver.optimize import RequestOptions, optimize


def solve(document: dict[str, object]) -> tuple[schema.Response, schema.System]:
    parsed = schema.parse_system(json.dumps(document))
    return optimize(parsed, RequestOptions()), parsed.system


def text(content: object, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(content)
    return stream.getvalue()


def servers(document: dict[str, object]) -> list[dict[str, object]]:
    return document["system"]["serverData"]["servers"]


@pytest.fixture
def scarce() -> dict[str, object]:
    """The example with long names, and too few GPUs for all."""
    document = example_system()
    document["system"]["capacityData"]["count"] = [{"type": "A100", "count": 1}, {"type": "H100", "count": 6}]
    for server in servers(document):
        server["name"] = f"production/{server['name']}-with-quite-a-long-name-for-a-model-server"
    return document


def test_figures_stand_beside_their_targets_in_the_units_of_the_wire():
    response, system = solve(example_system())
    lines = text(table.answer(response, system, explain=False), 200).splitlines()
    (chat,) = [line.split() for line in lines if line.startswith("chat ")]
    given = response.allocations["chat"]
    assert chat[:5] == [
        "chat",
        given.accelerator,
        str(given.num_replicas),
        str(given.max_batch),
        f"{given.cost_cents_per_h / 100:.2f}",
    ]
    assert float(chat[5]) == pytest.approx(given.itl_average_ms, rel=1e-3)
    assert chat[6:8] == ["/", "40"]
    assert float(chat[8]) == pytest.approx(given.ttft_average_ms, abs=0.5)
    assert chat[9:11] == ["/", "1,000"]
    assert chat[11] == "400"


def test_the_proof_and_the_scarce_gpus_are_shown():
    response, system = solve(example_system())
    shown = text(table.answer(response, system, explain=False), 200)
    cost = f"{response.report.cost_cents_per_h / 100:.2f} $/h"
    assert f"Cost {cost}; proven to be at least" in shown
    assert "Optimal, backend highs (HiGHS" in shown
    (h100,) = [line for line in shown.splitlines() if line.startswith("H100 ")]
    assert h100.split()[:4] == ["H100", "6", "6", "0"]
    worth = response.report.inventory[1].value_of_one_more_gpu
    cards = worth.cost_range
    assert cards is not None and cards.least <= 6 <= cards.most
    assert f"{worth.cost_per_hour / 100:.2f} $/h, holds from {cards.least} to {cards.most}" in h100
    assert response.report.inventory[1].basis in shown


def test_what_is_not_served_is_shown_with_the_reason(scarce: dict[str, object]):
    response, system = solve(scarce)
    (short,) = response.report.unserved
    shown = text(table.answer(response, system, explain=False), 1000)
    assert f"{100 * short.unserved_share:.1f} %" in shown
    assert short.detail in shown
    assert " of 2,000" in shown


def test_explanations_are_shown_on_request_only():
    response, system = solve(example_system())
    detail = response.report.explanations["chat"][0].detail
    assert detail in text(table.answer(response, system, explain=True), 1000)
    assert detail not in text(table.answer(response, system, explain=False), 1000)


def test_warnings_are_shown():
    document = example_system()
    servers(document)[0]["colour"] = "blue"
    response, system = solve(document)
    assert response.report.warnings[0] in text(table.answer(response, system, explain=False), 1000)


def test_a_mix_shows_each_accelerator():
    document = example_system()
    document["system"]["optimizerData"]["optimizer"]["heterogeneous"] = True
    servers(document)[0]["currentAlloc"]["load"]["arrivalRate"] = 700.0
    response, system = solve(document)
    parts = response.allocations["chat"].parts
    assert parts, "this system is meant to mix"
    shown = text(table.answer(response, system, explain=False), 200)
    assert "2 types" in shown
    for part in parts:
        (line,) = [line for line in shown.splitlines() if f"+ {part.accelerator}" in line]
        assert str(part.num_replicas) in line.split()


@pytest.mark.parametrize("width", [100, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(scarce: dict[str, object], width: int):
    response, system = solve(scarce)
    shown = text(table.answer(response, system, explain=True), width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "…" not in shown
    squeezed = "".join(shown.split())
    for name in response.allocations:
        assert all(piece in squeezed for piece in (name[:12], name[-12:]))


def test_piped_tables_keep_names_whole_and_have_no_colour(scarce: dict[str, object]):
    response, system = solve(scarce)
    stream = io.StringIO()
    table.console_for(stream).print(table.answer(response, system, explain=True))
    assert "\x1b" not in stream.getvalue()
    for name in response.allocations:
        assert name in stream.getvalue()


def test_candidates_show_capacity_and_what_limits_it():
    document = example_system()
    targets = document["system"]["serviceClassData"]["serviceClasses"][0]["modelTargets"][0]
    targets["slo-itl"] = 20.0  # below what an A100 does even alone
    found = analyze(schema.parse_system(json.dumps(document)), server="chat")
    lines = text(table.candidates(found), 300).splitlines()
    (a100,) = [line for line in lines if "A100" in line]
    (h100,) = [line for line in lines if "H100" in line]
    assert "no number of replicas helps" in a100
    assert f"{found.candidates[1].capacity_rpm:.4g}" in h100
