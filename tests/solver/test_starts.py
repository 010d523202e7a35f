"""Starts break no rule, make no answer worse, and follow from what runs and from the previous answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest

from solver import backends, schema
from solver.check import score, served_share, violations
from solver.convert import running_now, to_problem
from solver.decompose import decompose
from solver.method import Method, completed, solve_by
from solver.milp import RawSolution, SolveOptions, Termination
from solver.optimize import RequestOptions, optimize_json
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Plan, Policy, ReplicaLimit
from solver.reduce import dominated, onto
from solver.sizing import size_fleet
from solver.solve import solve
from solver.starts import Answers, Running, best_start, fitted, is_better

EXACT = SolveOptions(relative_gap=1e-9, time_limit_s=30.0)
SAMPLE = Path(__file__).parents[1] / "data" / "inferno_sample" / "law3-large.system.json"


def rows(*of: tuple[int, int, int, int]) -> Running:
    """Server, accelerator, batch, replicas."""
    return Running(*np.array(of, dtype=np.int64).reshape(-1, 4).T)


def anything(problem: AllocationProblem, seed: int) -> Running:
    """Replicas that may break any rule."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 8))
    return rows(
        *zip(
            rng.integers(0, len(problem.servers), count).tolist(),
            rng.integers(0, len(problem.accelerators), count).tolist(),
            rng.integers(0, 130, count).tolist(),
            rng.integers(0, 9, count).tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("method", list(Method))
def test_answers_with_any_start_are_those_of_brute_force(method: Method) -> None:
    highs = backends.get("highs")
    made = 0
    for seed in range(150):
        problem = oracle.random_problem(seed)
        start = best_start(problem, [anything(problem, seed), anything(problem, seed + 1000)])
        if start is None:
            continue
        made += 1
        assert violations(problem, start) == [], seed
        found = solve_by(method, problem, highs, EXACT, start=start)
        assert violations(problem, found.plan) == [], seed
        best = oracle.best(problem).values
        assert score(problem, found.plan).levels == pytest.approx(best, rel=1e-5, abs=1e-5), seed
        assert all(r.bound <= v + 1e-5 * max(1.0, abs(v)) for r, v in zip(found.levels, best, strict=True))
    assert made > 75


@pytest.mark.parametrize("method", list(Method))
def test_the_optimum_as_a_start_stays_the_optimum(method: Method) -> None:
    highs = backends.get("highs")
    for seed in range(60):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        found = solve_by(method, problem, highs, EXACT, start=best.plan)
        assert score(problem, found.plan).levels == pytest.approx(best.values, rel=1e-6, abs=1e-6), seed


def test_a_plan_that_breaks_a_rule_is_no_start() -> None:
    problem = oracle.two_by_two(Policy())
    too_many = Plan(np.full(len(problem.option_server), 1000))
    for method in (Method.DIRECT, Method.DECOMPOSE):
        found = solve_by(method, problem, backends.get("highs"), EXACT, start=too_many)
        assert violations(problem, found.plan) == []
        assert not found.led_by_start


class FirstPoint:
    """HiGHS without time: what it is given is what it has."""

    name = "first point"

    def solve(self, milp, options: SolveOptions) -> RawSolution:
        if options.relax:
            return backends.get("highs").solve(milp, options)
        nothing = (Termination.TIME_LIMIT, None, np.nan, -np.inf)
        return RawSolution(*nothing, solver="none", version="", seconds=0.0)


@pytest.mark.parametrize("scarce", [False, True])
def test_the_direct_method_falls_back_on_the_start_where_it_beats_the_baseline(scarce: bool) -> None:
    led = 0
    for seed in range(300):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        if scarce != (best.values[0] > 0):
            continue
        found = solve(problem, FirstPoint(), EXACT, start=best.plan)
        if found.led_by_start:
            led += 1
            assert score(problem, found.plan).levels == pytest.approx(best.values, abs=1e-6), seed
    assert led > 5


def test_a_solver_that_ignores_the_start_does_not_lose_it() -> None:
    kept = 0
    for seed in range(100):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        poor = solve(problem, FirstPoint(), EXACT)
        answer = completed(problem, poor, best.plan)
        kept += is_better(problem, best.plan, completed(problem, poor).plan)
        assert not is_better(problem, best.plan, answer.plan), seed
        assert all(level.bound <= level.value + 1e-9 * abs(level.value) for level in answer.levels)
    assert kept > 5


def test_a_start_that_takes_more_gpus_than_there_are_is_dropped() -> None:
    problem = replace(oracle.two_by_two(Policy()), inventory=Inventory(np.array([1, 1]), (None, None)))
    plenty = replace(problem, inventory=Inventory(np.full(2, NO_LIMIT), (None, None)))
    start = oracle.best(plenty).plan
    assert violations(problem, start) and is_better(problem, start, oracle.best(problem).plan)
    assert violations(problem, solve(problem, FirstPoint(), EXACT, start=start).plan) == []


def test_a_dominated_option_of_a_start_gives_way_to_the_one_that_replaces_it() -> None:
    problem = two_servers()
    start = Plan(np.array([5, 0, 0, 0, 0, 2, 0, 0]))
    for whole in (False, True):
        kept = np.flatnonzero(~dominated(problem, whole=whole))
        replaced = onto(problem, kept, start, whole=whole)
        found = np.zeros(8, dtype=np.int64)
        found[kept] = replaced.replicas
        assert found.tolist() == [0, 3 if whole else 5, 0, 0, 0, 2, 0, 0]


def two_servers(**changes: object) -> AllocationProblem:
    """Demands 10 and 6; accelerators of types A and B at batches 8 and 64: 2 and 4, 3 and 5 requests/s."""
    problem = AllocationProblem(
        servers=("s", "t"),
        accelerators=("a", "b"),
        gpu_types=("A", "B"),
        arrival_rps=np.array([10.0, 6.0]),
        min_replicas=np.zeros(2, dtype=np.int64),
        max_replicas=np.full(2, NO_LIMIT),
        priority=np.array([1, 2]),
        weight=np.ones(2),
        option_server=np.repeat([0, 1], 4),
        option_accelerator=np.tile([0, 0, 1, 1], 2),
        option_batch=np.tile([8, 64], 4),
        capacity_rps=np.tile([2.0, 4.0, 3.0, 5.0], 2),
        gpu_type=np.tile([0, 0, 1, 1], 2),
        gpus=np.ones(8, dtype=np.int64),
        cost_per_h=np.tile([1.0, 1.0, 5.0, 5.0], 2),
        current_server=np.zeros(0, dtype=np.int64),
        current_accelerator=np.zeros(0, dtype=np.int64),
        current_cost_per_h=np.zeros(0),
        inventory=Inventory(np.array([5, 5]), (None, None)),
        policy=Policy(),
    )
    return replace(problem, **changes)


def plan_of(problem: AllocationProblem, *of: tuple[int, int, int, int]) -> list[int] | None:
    plan = fitted(problem, rows(*of))
    return None if plan is None else plan.replicas.tolist()


def test_what_runs_takes_the_nearest_batch_and_the_replicas_of_the_demand() -> None:
    idle = two_servers(arrival_rps=np.array([10.0, 0.0]))
    assert plan_of(idle, (0, 0, 60, 1)) == [0, 3, 0, 0, 0, 0, 0, 0]
    assert plan_of(idle, (0, 0, 20, 9)) == [5, 0, 0, 0, 0, 0, 0, 0]
    assert plan_of(idle, (0, 0, 36, 1)) == [5, 0, 0, 0, 0, 0, 0, 0], "of two as near the smaller"
    assert plan_of(idle, (0, 1, 9999, 1)) == [0, 0, 0, 2, 0, 0, 0, 0]
    assert plan_of(idle) is None
    assert plan_of(idle, (0, 0, 64, 0)) is None


def test_the_ceiling_forgives_rounding_as_elsewhere() -> None:
    problem = two_servers(arrival_rps=np.array([0.1 * 3, 0.0]), capacity_rps=np.tile([0.1, 0.2, 3.0, 5.0], 2))
    assert 0.1 * 3 / 0.1 > 3
    assert plan_of(problem, (0, 0, 8, 7)) == [3, 0, 0, 0, 0, 0, 0, 0]


def test_of_a_mix_the_cheapest_change_is_made() -> None:
    problem = two_servers(arrival_rps=np.array([10.0, 0.0]), policy=Policy(max_types=None))
    assert plan_of(problem, (0, 0, 64, 1), (0, 1, 64, 1)) == [0, 2, 0, 1, 0, 0, 0, 0]
    assert plan_of(problem, (0, 0, 64, 2), (0, 1, 64, 2)) == [0, 2, 0, 1, 0, 0, 0, 0]
    one_type = replace(problem, policy=Policy(max_types=1))
    assert plan_of(one_type, (0, 0, 64, 1), (0, 1, 64, 2)) == [0, 0, 0, 2, 0, 0, 0, 0]


def test_where_gpus_are_short_the_least_important_makes_way_and_takes_what_is_left() -> None:
    problem = two_servers(inventory=Inventory(np.array([4, 5]), (None, None)))
    replicas = plan_of(problem, (0, 0, 64, 3), (1, 0, 64, 2))
    assert replicas is not None
    assert replicas[:4] == [0, 3, 0, 0]
    assert replicas[4:6] == [0, 0] and sum(replicas[6:]) == 2


def test_on_nodes_too() -> None:
    problem = two_servers(
        gpus=np.tile([2, 2, 1, 1], 2), inventory=Inventory(np.array([9, 0]), ((3, 3, 3), None))
    )
    assert plan_of(problem, (0, 0, 64, 3), (1, 0, 64, 2)) == [0, 3, 0, 0, 0, 0, 0, 0]


def test_limits_of_the_server_hold() -> None:
    most = two_servers(max_replicas=np.array([2, NO_LIMIT]))
    replicas = plan_of(most, (0, 0, 64, 3), (1, 0, 64, 2))
    assert replicas is not None and sum(replicas[:2]) == 0 and replicas[4:6] == [0, 2]
    kept = two_servers(limits=(ReplicaLimit(0, 1, 1, 2),), policy=Policy(max_types=None))
    replicas = plan_of(kept, (0, 0, 64, 3))
    assert replicas is not None and replicas[:4] == [0, 3, 1, 0]
    plenty = two_servers(min_replicas=np.array([4, 0]), arrival_rps=np.array([10.0, 0.0]))
    assert plan_of(plenty, (0, 0, 64, 1)) == [0, 4, 0, 0, 0, 0, 0, 0]


def small_fleet() -> dict:
    document = json.loads(SAMPLE.read_bytes())
    document["system"]["optimizerData"]["optimizer"] = {"heterogeneous": True, "saturationPolicy": "None"}
    servers = document["system"]["serverData"]["servers"]
    document["system"]["serverData"]["servers"] = servers[:6]
    for count in document["system"]["capacityData"]["count"]:
        count["count"] = 4
    return document


def answered(document: dict, answers: Answers | None = None, **options: object) -> tuple[dict, bool | None]:
    found = optimize_json(
        json.dumps(document).encode(), RequestOptions(**{"gap": 0.0} | options), answers=answers
    )
    return json.loads(found.body), found.led_by_start


def busier(document: dict, factor: float) -> dict:
    document = json.loads(json.dumps(document))
    for server in document["system"]["serverData"]["servers"]:
        server["currentAlloc"]["load"]["arrivalRate"] *= factor
    return document


def test_what_runs_now_is_read_with_its_parts() -> None:
    document = small_fleet()
    first, _ = answered(document)
    for server in document["system"]["serverData"]["servers"]:
        load = server["currentAlloc"]["load"]
        server["currentAlloc"] = first["allocations"][server["name"]] | {"load": load}
    again, led = answered(document)
    assert led is not None and again["report"]["cost"] == pytest.approx(first["report"]["cost"])
    parsed = schema.parse_system(json.dumps(document).encode())
    fleet = size_fleet(parsed.system)
    problem = to_problem(parsed.system, fleet)
    now = running_now(fleet)
    parts = [p for a in first["allocations"].values() for p in a.get("parts") or [a] if p["numReplicas"]]
    assert sorted(now.replicas.tolist()) == sorted(p["numReplicas"] for p in parts)
    assert sorted(now.batch.tolist()) == sorted(p["maxBatch"] for p in parts)
    start = fitted(problem, now)
    assert start is not None
    unserved = {u["server"] for u in first["report"]["unserved"]}
    assert {problem.servers[s] for s in np.flatnonzero(served_share(problem, start) < 1)} <= unserved
    assert problem.cost_per_h @ start.replicas == pytest.approx(first["report"]["cost"])


@pytest.mark.parametrize("method", [Method.DIRECT, Method.DECOMPOSE])
def test_history_changes_no_cost_and_a_repeated_request_has_its_answer_again(method: Method) -> None:
    answers = Answers()
    document = small_fleet()
    first, led = answered(document, answers, method=method)
    assert led is None, "nothing runs and nothing is remembered"
    again, led = answered(document, answers, method=method)
    assert led is None
    assert again["allocations"] == first["allocations"]
    for factor in (1.05, 0.9, 1.0):
        other = busier(document, factor)
        cold, _ = answered(other, method=method)
        warm, led = answered(other, answers, method=method)
        assert led is not None
        levels = [[level["value"] for level in x["report"]["levels"]] for x in (cold, warm)]
        assert levels[1] == pytest.approx(levels[0], rel=1e-6, abs=1e-6)


def test_an_unproven_answer_is_a_start_for_the_same_request() -> None:
    problem = oracle.two_by_two(Policy())
    plan = solve(problem, backends.get("highs"), EXACT).plan
    answers = Answers()
    answers.remember(problem, plan, b"request", proven=True)
    assert answers.recall(problem, b"request") is None
    found = answers.recall(problem, b"another")
    assert found is not None
    start = best_start(problem, [found])
    assert start is not None and start.replicas.tolist() == plan.replicas.tolist()
    answers.remember(problem, plan, b"request", proven=False)
    assert answers.recall(problem, b"request") is not None


def test_only_the_systems_asked_about_last_are_remembered_and_names_tell_them_apart() -> None:
    problem = two_servers()
    named = [replace(problem, servers=(f"s{i}", "t")) for i in range(3)]
    plan = Plan(np.array([0, 3, 0, 0, 0, 2, 0, 0]))
    answers = Answers(most=2)
    for one in named[:2]:
        answers.remember(one, plan, b"", proven=False)
    assert answers.recall(named[0], b"") is not None
    answers.remember(named[2], plan, b"", proven=False)
    assert len(answers) == 2
    assert [answers.recall(one, b"") is not None for one in named] == [True, False, True]
    assert answers.recall(replace(named[0], accelerators=("a", "c")), b"") is None
    joined = replace(problem, servers=("s0', 't",), accelerators=("a", "b"))
    assert answers.recall(joined, b"") is None


def test_the_decomposition_counts_a_start_that_serves_more_than_the_baseline() -> None:
    highs = backends.get("highs")
    for seed in range(200):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        found = decompose(problem, highs, EXACT, start=best.plan)
        if found.program is None and best.values[0] > 0 and found.led_by_start:
            break
    else:
        pytest.fail("no start was better than the baseline")
    nothing = Plan(np.zeros(len(problem.option_server), dtype=np.int64))
    assert not decompose(problem, highs, EXACT, start=nothing).led_by_start
