"""Scenarios: the file, changes, sweeps and expectations, on a system small enough to know by heart."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from solver.errors import InputError
from solver.scenario import (
    Outcome,
    build,
    build_sweeps,
    check_sweep,
    find,
    load,
    render,
    run_case,
    run_paths,
)
from solver.scenario_document import Across, Change, Expect
from solver.scenario_expect import Answer, better_than_proven

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def tiny(**optimizer: Any) -> dict[str, Any]:
    """Two servers of 4 requests/s each; a small card serves 1 request/s at 10 cents/h, a big one 4 at 30.

    With capacity measured there is no queueing: the least cost of a server is 30 on one big card, and 40
    on four small ones.
    """
    servers = [
        {
            "name": name,
            "class": service_class,
            "model": "m",
            "currentAlloc": {"load": {"arrivalRate": 240, "AvgInTokens": 100, "avgOutTokens": 100}},
        }
        for name, service_class in (("gold-1", "Gold"), ("tin-1", "Tin"))
    ]
    return {
        "system": {
            "acceleratorData": {
                "accelerators": [
                    {"name": "small", "type": "S", "cost": 10},
                    {"name": "big", "type": "B", "cost": 30},
                ]
            },
            "capacityData": {"count": [{"type": "S", "count": 8}, {"type": "B", "count": 1}]},
            "modelData": {
                "models": [
                    {"name": "m", "acc": "small", "ratePerReplica": 1},
                    {"name": "m", "acc": "big", "ratePerReplica": 4},
                ]
            },
            "serviceClassData": {
                "serviceClasses": [
                    {"name": "Gold", "priority": 1, "modelTargets": [{"model": "m"}]},
                    {"name": "Tin", "priority": 9, "modelTargets": [{"model": "m"}]},
                ]
            },
            "serverData": {"servers": servers},
            "optimizerData": {"optimizer": {"gap": 0, **optimizer}},
        }
    }


def write(folder: Path, document: dict[str, Any] | str, system: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "system.json").write_text(json.dumps(system or tiny()))
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    (folder / "scenario.yaml").write_text(text)
    return folder


def changed(tmp_path: Path, *changes: dict[str, Any], system: dict[str, Any] | None = None) -> dict[str, Any]:
    document = {
        "description": "d",
        "base": "system.json",
        "changes": list(changes),
        "expect": {"nothing_unserved": True},
    }
    (case,) = build(load(write(tmp_path / "s", document, system)))
    return case.system.get("system", case.system)


def outcome(
    tmp_path: Path, expect: dict[str, Any], *changes: dict[str, Any], backend: str = "highs"
) -> Outcome:
    document = {"description": "d", "base": "system.json", "changes": list(changes), "expect": expect}
    (case,) = build(load(write(tmp_path / "s", document)))
    return run_case(case, backend)


def rates(system: dict[str, Any]) -> dict[str, float]:
    return {s["name"]: s["currentAlloc"]["load"]["arrivalRate"] for s in system["serverData"]["servers"]}


def cards(system: dict[str, Any]) -> dict[str, int]:
    return {row["type"]: row["count"] for row in system["capacityData"]["count"]}


def costs(system: dict[str, Any]) -> dict[str, float]:
    return {a["name"]: a["cost"] for a in system["acceleratorData"]["accelerators"]}


# --- changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, {"gold-1": 480, "tin-1": 480}),
        ({"server": "gold-*"}, {"gold-1": 480, "tin-1": 240}),
        ({"class": "Tin"}, {"gold-1": 240, "tin-1": 480}),
        ({"model": "m", "class": "T*", "server": "*-1"}, {"gold-1": 240, "tin-1": 480}),
    ],
)
def test_scale_load_multiplies_the_servers_that_match(
    tmp_path: Path, where: dict[str, str], expected: dict[str, float]
) -> None:
    assert rates(changed(tmp_path, {"scale_load": {"factor": 2, **where}})) == expected


def test_set_load_replaces_fields_whatever_their_case(tmp_path: Path) -> None:
    system = changed(tmp_path, {"set_load": {"gold-*": {"arrivalRate": 60, "avgInTokens": 7}}})
    gold, tin = (server["currentAlloc"]["load"] for server in system["serverData"]["servers"])
    assert gold == {"arrivalRate": 60, "AvgInTokens": 7, "avgOutTokens": 100}
    assert tin == tiny()["system"]["serverData"]["servers"][1]["currentAlloc"]["load"]


def test_gpus_are_added_taken_away_and_set(tmp_path: Path) -> None:
    assert cards(changed(tmp_path, {"add_gpus": {"S": -8, "B": 32}})) == {"S": 0, "B": 33}
    assert cards(changed(tmp_path, {"set_gpus": {"S": 5}})) == {"S": 5, "B": 1}


def test_a_type_without_a_count_starts_at_none(tmp_path: Path) -> None:
    system = tiny()
    del system["system"]["capacityData"]
    assert cards(changed(tmp_path, {"add_gpus": {"S": 3}}, system=system)) == {"S": 3}


def test_a_change_adds_no_part_that_it_does_not_concern(tmp_path: Path) -> None:
    system = tiny()
    del system["system"]["capacityData"]
    assert "capacityData" not in changed(tmp_path, {"price": {"set": {"big": 1}}}, system=system)


def test_a_withdrawn_accelerator_has_no_profile_and_stays_known(tmp_path: Path) -> None:
    system = changed(tmp_path, {"withdraw_accelerator": ["b*"]})
    assert [p["acc"] for p in system["modelData"]["models"]] == ["small"]
    assert set(costs(system)) == {"small", "big"}


def test_prices_are_set_and_scaled(tmp_path: Path) -> None:
    system = changed(tmp_path, {"price": {"set": {"small": 12}, "scale": {"b*": 0.5}}})
    assert costs(system) == {"small": 12, "big": 15}


def test_optimizer_options_are_merged(tmp_path: Path) -> None:
    changes = ({"optimizer": {"SaturationPolicy": "RoundRobin"}}, {"optimizer": {"unlimited": True}})
    merged = {"gap": 0, "SaturationPolicy": "RoundRobin", "unlimited": True}
    assert changed(tmp_path, *changes)["optimizerData"]["optimizer"] == merged


def test_server_fields_are_merged(tmp_path: Path) -> None:
    system = changed(tmp_path, {"server": {"*": {"maxQueueSize": 0}, "tin-1": {"class": "Gold"}}})
    found = [(s["maxQueueSize"], s["class"]) for s in system["serverData"]["servers"]]
    assert found == [(0, "Gold"), (0, "Gold")]


def test_changes_are_made_in_order_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    changes = ({"set_gpus": {"B": 2}}, {"add_gpus": {"B": 3}}, {"scale_load": {"factor": 0.5}})
    system = changed(tmp_path, *changes)
    assert (cards(system)["B"], rates(system)["gold-1"]) == (5, 120)
    assert json.loads((tmp_path / "s" / "system.json").read_text()) == tiny()


def test_a_document_without_the_outer_system_and_with_keys_in_any_case(tmp_path: Path) -> None:
    text = json.dumps(tiny()["system"])
    lowered = json.loads(text.replace("Data", "DATA").replace("arrivalRate", "arrivalrate"))
    system = changed(tmp_path, {"scale_load": {"factor": 2}}, {"add_gpus": {"S": 1}}, system=lowered)
    assert system["serverDATA"]["servers"][0]["currentAlloc"]["load"]["arrivalrate"] == 480
    assert system["capacityDATA"]["count"][0]["count"] == 9
    assert "capacityData" not in system


# --- errors ----------------------------------------------------------------------------------------------

GOOD = {"description": "d", "base": "system.json", "expect": {"nothing_unserved": True}}
CHEAP = {"cost_at_most": 1}


def with_change(**change: Any) -> dict[str, Any]:
    return {**GOOD, "changes": [change]}


def with_sweep(**sweep: Any) -> dict[str, Any]:
    plain = {"name": "w", "change": {"add_gpus": {"S": "$value"}}, "values": [0, 1]}
    return {**GOOD, "sweeps": [plain | sweep]}


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        ({"base": "system.json"}, "description", "required"),
        ({"description": "d", "base": "system.json"}, "", "shows nothing"),
        ({"description": "d", "expect": {"unserved": ["x"]}}, "", "base is missing"),
        ({**GOOD, "expects": {}}, "expects", "not permitted"),
        ({**GOOD, "expect": {"exact_only": False}}, "expect", "at least one of"),
        ({**GOOD, "expect": {"cost_atmost": 3}}, "expect.cost_atmost", "not permitted"),
        ({**GOOD, "expect": {"nothing_unserved": False}}, "expect.nothing_unserved", "True"),
        (with_change(add_gpus={"S": 1}, set_gpus={"S": 1}), "changes[0]", "exactly one"),
        (with_change(), "changes[0]", "exactly one"),
        (with_change(scale_load={"factor": -1}), "changes[0].scale_load.factor", "greater than"),
        (with_change(scale_load={"factor": 1, "server": "x*"}), "changes[0].scale_load.server", "gold-1"),
        (with_change(scale_load={"factor": 1, "class": "Tim"}), "changes[0].scale_load.class", "mean Tin?"),
        (with_change(set_load={"gold": {}}), "changes[0].set_load", "did you mean gold-1?"),
        (with_change(server={"xyz": {}}), "changes[0].server", "one of gold-1, tin-1"),
        (with_change(price={}), "changes[0].price", "set, scale"),
        (with_change(price={"scale": {"bigg": 2}}), "changes[0].price.scale", "did you mean big?"),
        (with_change(set_gpus={"S": -1}), "changes[0].set_gpus.S", "greater than"),
        (with_change(add_gpus={"S": -9}), "changes[0].add_gpus.S", "-8 or more"),
        (with_change(add_gpus={"SS": 1}), "changes[0].add_gpus.SS", "did you mean S?"),
        (with_change(withdraw_accelerator=["big", "s*"]), "changes[0].withdraw_accelerator[1]", "m would"),
        ({**GOOD, "base": "none.json"}, "base", "readable JSON"),
        ({**GOOD, "base": "elsewhere"}, "base", "the name of a scenario beside this one"),
        ({**GOOD, "base": "s"}, "base", "does not build on this one"),
        ({**GOOD, "cases": [{"name": "base", "expect": CHEAP}]}, "", "given twice"),
        ({**GOOD, "cases": [{"name": "a"}]}, "cases[0].expect", "required"),
        (
            {**GOOD, "cases": [{"name": "a", "changes": [{"set_gpus": {"X": 1}}], "expect": CHEAP}]},
            "cases[0].changes[0].set_gpus.X",
            "one of B, S",
        ),
        (with_sweep(), "sweeps[0]", "expect, expect_at, across"),
        (with_sweep(values=[0], expect=CHEAP), "sweeps[0].values", "at least 2"),
        (with_sweep(change={"add_gpus": {"S": 1}}, expect=CHEAP), "sweeps[0]", "$value"),
        (with_sweep(values=[0, -9], expect=CHEAP), "sweeps[0] with -9, change.add_gpus.S", "-8 or more"),
        (
            with_sweep(change={"scale_load": {"factor": "$value"}}, values=[1, "much"], expect=CHEAP),
            'sweeps[0] with "much", change.scale_load.factor',
            "valid number",
        ),
        (with_sweep(expect_at=[{"value": 2, "expect": CHEAP}]), "sweeps[0]", "not among the values"),
        (with_sweep(across={"cost_flat_from": 0}), "sweeps[0]", "not an inner value"),
        (with_sweep(across={}), "sweeps[0].across", "at least one of"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(
    tmp_path: Path, document: dict[str, Any], path: str, expected: str
) -> None:
    folder = write(tmp_path / "s", document)
    with pytest.raises(InputError) as caught:
        scenario = load(folder)
        build(scenario)
        build_sweeps(scenario)
    problems = {problem.path: problem.expected for problem in caught.value.problems}
    at = f"{folder / 'scenario.yaml'}: {path}".rstrip(" ")
    assert at in problems, problems
    assert expected in problems[at]


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("acceleratorData", {"accelerators": 3}, "a list of objects"),
        ("acceleratorData", [], "a list of objects"),
        ("acceleratorData", {"accelerators": [{"name": "small", "cost": "much"}]}, "cost is a number"),
    ],
)
def test_a_change_to_what_is_no_system(tmp_path: Path, part: str, value: Any, expected: str) -> None:
    system = tiny()
    system["system"][part] = value
    with pytest.raises(InputError, match=expected):
        changed(tmp_path, {"price": {"scale": {"small": 2}}}, system=system)


@pytest.mark.parametrize("text", ["a: [", "\tx", "- 1"])
def test_a_file_that_is_no_document(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"scenario\.yaml"):
        load(write(tmp_path / "s", text))


def test_a_folder_without_scenarios(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder that holds some"):
        find([tmp_path])


def test_an_invalid_system_names_scenario_and_case(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s, base: \$\.system\.serverData\.servers\[0\]"):
        outcome(tmp_path, {"nothing_unserved": True}, {"server": {"gold-1": {"model": "none"}}})


# --- cases and sweeps ------------------------------------------------------------------------------------


def test_a_scenario_builds_on_another_with_its_changes(tmp_path: Path) -> None:
    write(tmp_path / "first", {**GOOD, "changes": [{"add_gpus": {"B": 1}}]})
    second = write(tmp_path / "second", {**GOOD, "base": "first", "changes": [{"add_gpus": {"B": 5}}]})
    (case,) = build(load(second))
    assert cards(case.system["system"])["B"] == 7


def test_cases_have_their_own_base_and_changes_on_top(tmp_path: Path) -> None:
    other = tiny()
    other["system"]["capacityData"]["count"][1]["count"] = 50
    document = {
        **GOOD,
        "changes": [{"add_gpus": {"B": 1}}],
        "cases": [
            {"name": "more", "changes": [{"add_gpus": {"B": 10}}], "expect": {"cost_at_most": 1}},
            {"name": "other", "base": "other.json", "expect": {"cost_at_most": 1}},
        ],
    }
    folder = write(tmp_path / "s", document)
    (folder / "other.json").write_text(json.dumps(other))
    found = {case.name: cards(case.system["system"])["B"] for case in build(load(folder))}
    assert found == {"base": 2, "more": 12, "other": 51}


SWEEP = {
    "name": "B",
    "change": {"set_gpus": {"B": "$value"}},
    "values": [0, 1, 2, 3],
    "expect": {"nothing_unserved": True},
}


def test_a_sweep_makes_a_case_for_each_value(tmp_path: Path) -> None:
    at = [{"value": 2, "expect": {"cost_at_most": 60}}]
    (sweep,) = build_sweeps(load(write(tmp_path / "s", {**GOOD, "sweeps": [{**SWEEP, "expect_at": at}]})))
    assert [case.name for case in sweep.cases] == ["B=0", "B=1", "B=2", "B=3"]
    assert [cards(case.system["system"])["B"] for case in sweep.cases] == [0, 1, 2, 3]
    assert [len(case.expect) for case in sweep.cases] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("across", "found"),
    [
        ({"cost_monotone": "decreasing"}, None),
        ({"cost_monotone": "increasing"}, "80, 70, 60, 60"),
        ({"cost_flat_from": 2}, None),
        ({"cost_flat_from": 1}, "80, 70, 60, 60"),
        ({"gpus_used_monotone": {"B": "increasing", "S": "decreasing"}}, None),
        ({"gpus_used_monotone": {"B": "decreasing"}}, "0, 1, 2, 2"),
        ({"unserved_monotone": "increasing"}, "0, 0, 0, 0"),
    ],
)
def test_what_holds_along_a_sweep(tmp_path: Path, across: dict[str, Any], found: str | None) -> None:
    folder = write(tmp_path / "s", {**GOOD, "sweeps": [{**SWEEP, "across": across}]})
    *cases, whole = run_paths([folder])
    assert all(case.passed for case in cases)
    assert [failure.found for failure in whole.failures] == ([] if found is None else [found])


def test_a_flat_cost_must_begin_where_it_is_said_to(tmp_path: Path) -> None:
    sweep = {**SWEEP, "values": [2, 3, 4], "across": {"cost_flat_from": 3}}
    *_, whole = run_paths([write(tmp_path / "s", {**GOOD, "sweeps": [sweep]})])
    assert [failure.found for failure in whole.failures] == ["60, 60, 60"]


def test_unserved_demand_along_a_sweep(tmp_path: Path) -> None:
    sweep = {
        "name": "gone",
        "change": {"set_gpus": {"S": "$value"}},
        "values": [8, 3, 0],
        "across": {"unserved_monotone": "increasing"},
        "expect_at": [{"value": 3, "expect": {"unserved": ["tin-1"], "unserved_only_in_class": ["Tin"]}}],
    }
    outcomes = run_paths([write(tmp_path / "s", {**GOOD, "sweeps": [sweep]})])
    assert [str(f) for o in outcomes for f in o.failures] == []


# --- expectations ----------------------------------------------------------------------------------------

# On the plain system the one big card goes to one server (30), four small ones to the other (40).
HOLDS: list[dict[str, Any]] = [
    {"cost_at_most": 70},
    {"cost_at_least": 70},
    {"total_cost_approx": {"value": 70}},
    {"total_cost_approx": {"value": 77, "rel": 0.1}},
    {"gap_at_most": 0},
    {"nothing_unserved": True},
    {"accelerator_of": {"gold-1": ["small", "big"], "tin-1": "*"}},
    {"cheapest_type": {"gold-1": "B", "tin-1": "B"}},
    {"gpus_used_at_most": {"S": 4, "B": 1}},
    {"gpus_used_at_least": {"S": 4, "B": 1}},
    {"binding": ["B"]},
    {"value_of_one_more_gpu_positive": ["B"]},
    {"value_of_one_more_gpu_zero": ["S"]},
]

FAILS: list[tuple[dict[str, Any], str]] = [
    ({"cost_at_most": 69}, "expected cost_at_most: 69.0; found 70"),
    ({"cost_at_least": 71}, "expected cost_at_least: 71.0; found 70"),
    ({"total_cost_approx": {"value": 71}}, 'expected total_cost_approx: {"value": 71.0}; found 70'),
    ({"unserved": ["tin-1"]}, 'expected unserved: ["tin-1"]; found all is served'),
    ({"unserved_only_in_class": ["Tin"]}, 'expected unserved_only_in_class: ["Tin"]; found all is served'),
    ({"accelerator_of": {"gold-1": "medium", "nobody": "*"}}, "nobody on nothing"),
    ({"replicas_of": {"gold-1": 9, "nobody": 1}}, "nobody 0"),
    ({"allocation": {"gold-1": {"fields": {"numReplicas": 7}}}}, "gold-1 numReplicas"),
    ({"allocation": {"nobody": {"fields": {"accelerator": "big"}}}}, "nobody accelerator None"),
    ({"cheapest_type": {"gold-1": "S"}}, 'expected cheapest_type: {"gold-1": "S"}; found gold-1 B'),
    ({"gpus_used_at_most": {"S": 3}}, 'expected gpus_used_at_most: {"S": 3}; found S 4'),
    ({"gpus_used_at_least": {"X": 1}}, 'expected gpus_used_at_least: {"X": 1}; found X 0'),
    ({"binding": []}, "expected binding: []; found B"),
    ({"binding": ["B", "S"]}, 'expected binding: ["B", "S"]; found B'),
    ({"value_of_one_more_gpu_positive": ["S"]}, "S is worth nothing"),
    ({"value_of_one_more_gpu_zero": ["B"]}, "costPerHour"),
]


@pytest.mark.parametrize("expect", HOLDS, ids=lambda expect: next(iter(expect)))
def test_what_holds(tmp_path: Path, expect: dict[str, Any]) -> None:
    assert [str(failure) for failure in outcome(tmp_path, expect).failures] == []


@pytest.mark.parametrize(("expect", "text"), FAILS, ids=lambda value: next(iter(value)) if value else "")
def test_what_does_not_hold_says_what_was_found(tmp_path: Path, expect: dict[str, Any], text: str) -> None:
    result = outcome(tmp_path, expect)
    (failure,) = result.failures
    assert text in str(failure)
    assert str(failure) in render([result])


def test_every_expectation_is_shown_to_hold_and_to_fail(tmp_path: Path) -> None:
    names = {next(iter(expect)) for expect, _ in FAILS}
    document = (Path(__file__).parents[1] / "docs" / "scenarios.md").read_text()
    assert set(Expect.model_fields) - names == {"exact_only", "gap_at_most", "nothing_unserved"}
    for model in (Change, Expect, Across):
        assert [name for name in model.model_fields if f"`{name}" not in document] == []


def test_scarcity_fails_what_wants_everything_served(tmp_path: Path) -> None:
    result = outcome(tmp_path, {"nothing_unserved": True}, {"set_gpus": {"B": 0, "S": 5}})
    assert [failure.found for failure in result.failures] == ["tin-1 100.0%"]


def test_allocation_fields_agree_within_their_tolerance(tmp_path: Path) -> None:
    change = {"set_gpus": {"B": 2}}
    fields = {"accelerator": "big", "numReplicas": 1, "cost": 30.02}
    near = {"allocation": {"gold-1": {"fields": fields, "rel": 1e-3, "abs": 0}}}
    assert outcome(tmp_path, near, change).passed
    nearer = {"allocation": {"gold-1": {"fields": fields, "rel": 1e-4, "abs": 0}}}
    assert [failure.found for failure in outcome(tmp_path, nearer, change).failures] == ["gold-1 cost 30.0"]


def test_a_backend_without_proof_is_held_against_the_proven_optimum(tmp_path: Path) -> None:
    result = outcome(tmp_path, {"gap_at_most": 0, "cost_at_most": 1}, backend="greedy")
    assert (result.passed, result.skipped) == (True, 2)
    assert "hold, 2 skipped" in render([result])
    result = outcome(tmp_path, {"exact_only": False, "gap_at_most": 0}, backend="greedy")
    assert [failure.found for failure in result.failures] == ["inf"]


def test_an_answer_better_than_the_proven_optimum_is_a_failure(tmp_path: Path) -> None:
    proven = outcome(tmp_path, {"cost_at_most": 70}).answer
    assert proven is not None
    found = json.loads(json.dumps(proven.response))
    found["report"]["levels"][-1]["value"] -= 1
    failure = better_than_proven(Answer(proven.system, found), proven)
    assert failure is not None
    assert failure.found == "69"
    found["report"]["levels"][0]["value"] += 1
    assert better_than_proven(Answer(proven.system, found), proven) is None


# --- the whole -------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_outcome(tmp_path: Path) -> None:
    sweep = {**SWEEP, "across": {"cost_monotone": "increasing"}}
    write(tmp_path / "a", {**GOOD, "expect": {"cost_at_most": 1}})
    write(tmp_path / "b", {"description": "d", "base": "system.json", "sweeps": [sweep]})
    outcomes = run_paths([tmp_path])
    assert [(o.scenario, o.name, o.passed) for o in outcomes] == [
        ("a", "base", False),
        *(("b", f"B={value}", True) for value in range(4)),
        ("b", "B (sweep)", False),
    ]
    lines = render(outcomes).splitlines()
    assert re.fullmatch(r"a +base +70\.00 +0 +0\.00% +B 1, S 4 +\d+\.\d\d +1 FAILED", lines[1])
    assert lines[-2:] == [
        "a, base: expected cost_at_most: 1.0; found 70",
        "b, B (sweep): expected cost_monotone: increasing; found 80, 70, 60, 60",
    ]


def test_a_sweep_without_all_its_answers_fails(tmp_path: Path) -> None:
    (sweep,) = build_sweeps(load(write(tmp_path / "s", {**GOOD, "sweeps": [SWEEP]})))
    outcomes = [run_case(case) for case in sweep.cases]
    lost = Outcome("s", "B=1", "", None, 0.0, ())
    whole = check_sweep(sweep, [outcomes[0], lost, *outcomes[2:]])
    assert [failure.found for failure in whole.failures] == ["none for B=1"]


def test_pytest_collects_scenarios_and_shows_what_failed(tmp_path: Path) -> None:
    shutil.copy(SCENARIOS.parent / "conftest.py", tmp_path / "backend_option.py")
    shutil.copy(SCENARIOS / "conftest.py", tmp_path / "scenario_files.py")
    sweep = {**SWEEP, "across": {"cost_monotone": "increasing"}}
    write(tmp_path / "good", {**GOOD, "sweeps": [sweep]})
    write(tmp_path / "wrong", {**GOOD, "sweeps": 3})
    options = ["-q", "--continue-on-collection-errors", "-p", "backend_option", "-p", "scenario_files"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 5 passed, 1 error" in run.stdout
    assert "good, B (sweep): expected cost_monotone: increasing; found 80, 70, 60, 60" in run.stdout
    assert "scenario.yaml: sweeps: Input should be a valid list" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr


def test_system_json_is_what_make_system_writes() -> None:
    folder = SCENARIOS / "azure-chat-peak"
    made = runpy.run_path(str(folder / "make_system.py"))["text"]()
    assert made == (folder / "system.json").read_text(encoding="utf-8")


def test_every_shipped_scenario_says_where_its_numbers_come_from() -> None:
    folders = [file.parent for file in find([SCENARIOS])]
    assert len(folders) >= 8
    assert [folder.name for folder in folders if not (folder / "README.md").is_file()] == []
