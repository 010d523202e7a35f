"""The public sample systems, candidate by candidate and as a whole, against what was published with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from solver import schema
from solver.analyze import analyze
from solver.check import score
from solver.convert import to_problem
from solver.optimize import RequestOptions, optimize
from solver.problem import Plan
from solver.sizing import size_fleet

SAMPLES = Path(__file__).parents[1] / "data" / "inferno_sample"
NAMES = [f"law{law}-{size}" for law in (1, 2, 3) for size in ("small", "large")]


def document(name: str) -> dict[str, Any]:
    system = json.loads((SAMPLES / f"{name}.system.json").read_text())
    return system.get("system", system)


def published(name: str) -> dict[str, Any]:
    return json.loads((SAMPLES / f"{name}.published-solution.json").read_text())["allocations"]


def without_queue(system: dict[str, Any]) -> dict[str, Any]:
    """The reference solution of law 3 was made with no queue at all."""
    for server in system["serverData"]["servers"]:
        server["maxQueueSize"] = 0
    return system


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("law3")])
def test_published_allocations_agree(name: str) -> None:
    candidates = {
        (c.server, c.accelerator): c for c in analyze(schema.parse_system(document(name))).candidates
    }
    partly = 0
    for server, theirs in published(name).items():
        ours = candidates[server, theirs["accelerator"]]
        assert ours.max_batch == theirs["maxBatch"], server
        if ours.num_replicas != theirs["numReplicas"]:
            # Best effort: fewer replicas than the demand needs.
            assert theirs["numReplicas"] < ours.num_replicas
            partly += 1
            continue
        assert ours.cost_cents_per_h == pytest.approx(theirs["cost"])
        assert ours.itl_average_ms == pytest.approx(theirs["itlAverage"], rel=1e-5), server
        wait = theirs.get("ttftAverage", theirs.get("waitAverage"))
        assert ours.ttft_average_ms == pytest.approx(wait, rel=1e-4, abs=1.0), server
    assert partly <= 1


@pytest.mark.parametrize("name", ["law3-small", "law3-large"])
def test_every_candidate_of_the_reference_agrees(name: str) -> None:
    reference = json.loads((SAMPLES / f"{name}.reference-solution.json").read_text())
    parsed = schema.parse_system(without_queue(document(name)))
    candidates = {(c.server, c.accelerator): c for c in analyze(parsed).candidates}
    assert len(reference["candidates"]) == len(candidates)
    for theirs in reference["candidates"]:
        ours = candidates[theirs["server"], theirs["accelerator"]]
        where = (theirs["server"], theirs["accelerator"])
        assert ours.max_batch == theirs["maxBatch"], where
        if ours.max_batch == 1:
            continue  # there the reference decides by rounding noise
        assert ours.feasible == theirs["feasible"], where
        if not ours.feasible:
            assert "no number of replicas helps" in ours.reason
            continue
        assert ours.num_replicas == theirs["numReplicas"], where
        assert ours.cost_cents_per_h == pytest.approx(theirs["cost"]), where
        assert ours.capacity_rpm == pytest.approx(theirs["maxRPM"], rel=1e-4), where
        assert ours.itl_average_ms == pytest.approx(theirs["itlAverage"], rel=1e-5), where
        assert ours.ttft_average_ms == pytest.approx(theirs["ttftAverage"], rel=1e-4, abs=1.0), where


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("law3")])
def test_never_worse_than_the_published_solution(name: str) -> None:
    """Level by level: theirs may leave demand unserved that ours serves, and only then cost less."""
    parsed = schema.parse_system(document(name))
    fleet = size_fleet(parsed.system)
    problem = to_problem(parsed.system, fleet)
    theirs = published(name)
    replicas = (problem.option_server == -1).astype(int)
    for j, (s, a) in enumerate(zip(problem.option_server, problem.option_accelerator, strict=True)):
        allocation = theirs.get(problem.servers[s], {})
        if allocation.get("accelerator") == problem.accelerators[a]:
            replicas[j] = allocation["numReplicas"]
    levels = score(problem, Plan(replicas)).levels
    ours = optimize(parsed, RequestOptions(gap=1e-9)).report
    assert ours.termination == "optimal"
    assert tuple(level.value for level in ours.levels) <= tuple(v + 1e-6 for v in levels)


@pytest.mark.parametrize("name", ["law3-small", "law3-large"])
def test_never_dearer_than_the_reference(name: str) -> None:
    reference = json.loads((SAMPLES / f"{name}.reference-solution.json").read_text())
    assert reference["unallocated"] == []
    report = optimize(schema.parse_system(without_queue(document(name))), RequestOptions(gap=1e-9)).report
    assert report.unserved == []
    assert report.cost_cents_per_h <= reference["totalCost"]


def greedy_cost(system: dict[str, Any]) -> float:
    return optimize(schema.parse_system(system), RequestOptions(backend="greedy")).report.cost_cents_per_h


@pytest.mark.parametrize("name", ["law3-small", "law3-large"])
def test_greedy_costs_what_the_reference_does(name: str) -> None:
    reference = json.loads((SAMPLES / f"{name}.reference-solution.json").read_text())
    assert greedy_cost(without_queue(document(name))) == reference["totalCost"]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("law3")])
def test_greedy_costs_what_was_published(name: str) -> None:
    assert greedy_cost(document(name)) == sum(a["cost"] for a in published(name).values())


@pytest.mark.parametrize("name", NAMES)
def test_exact_backends_agree_on_the_samples(name: str) -> None:
    parsed = schema.parse_system(document(name))
    costs = {
        backend: optimize(parsed, RequestOptions(backend=backend, gap=1e-9)).report.objective
        for backend in ("highs", "ortools", "pyomo")
    }
    assert costs["ortools"] == pytest.approx(costs["highs"], rel=1e-7)
    assert costs["pyomo"] == pytest.approx(costs["highs"], rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_never_better(name: str) -> None:
    parsed = schema.parse_system(document(name))
    exact = optimize(parsed, RequestOptions(gap=1e-9)).report
    greedy = optimize(parsed, RequestOptions(backend="greedy")).report
    assert greedy.termination == "feasible"
    assert greedy.gap is None
    assert tuple(level.value for level in exact.levels) <= tuple(
        level.value + 1e-6 for level in greedy.levels
    )
