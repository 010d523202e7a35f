"""The decomposition agrees with brute force and with the direct method, and its bounds are bounds."""

import itertools
import shutil
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
from fleets import fleet

from solver import (
    assignment,
    backends,
    bounding,
    closing,
    entries_numpy,
    planning,
    pricing,
    rows,
    selection,
    stepping,
)
from solver import decompose as decomposition
from solver import search as searching
from solver.backends.greedy import greedy
from solver.check import score, violations
from solver.decompose import decompose
from solver.formulate import formulate, program
from solver.milp import Milp, RawSolution, SolveOptions, Termination
from solver.prices import Listed
from solver.pricing import Columns, Servers, single_type
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Plan, Policy
from solver.reduce import dominated, keep
from solver.search import Priced, Search
from solver.solve import solve
from solver.stage import Stage

EXACT = SolveOptions(relative_gap=1e-9, time_limit_s=30.0)


compiled = pytest.mark.skipif(not assignment.IS_COMPILED, reason="installed without a C compiler")


def values(problem: AllocationProblem, plan: Plan) -> tuple[float, ...]:
    return score(problem, plan).levels


def test_decomposition_finds_the_brute_force_optimum() -> None:
    driver = backends.get("highs")
    for seed in range(500):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == [], seed
        assert solved.termination is Termination.OPTIMAL, seed
        assert values(problem, solved.plan) == pytest.approx(best.values, rel=1e-5, abs=1e-5), seed
        for found, value in zip(solved.levels, best.values, strict=True):
            assert found.bound <= value + 1e-5 * max(1.0, abs(value)), seed


@pytest.fixture
def without_knapsacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed without a C compiler: small fleets with one type are closed as large ones are."""
    monkeypatch.setattr(assignment, "IS_COMPILED", False)


@pytest.mark.usefixtures("without_knapsacks")
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param([(searching, "_MOST_SOLVED")], id="prices by Newton's method"),
        pytest.param([(closing, "_STARTED")], id="a row asks for a better plan"),
        pytest.param([(searching, "_CLOSABLE")], id="programs are widened"),
        pytest.param([(searching, "_CLOSABLE"), (planning, "_MANY")], id="two programs make the plan"),
        pytest.param([(searching, "_CLOSABLE"), (closing, "_FAR")], id="every plan is far from the bound"),
    ],
)
def test_what_large_fleets_are_solved_by_finds_the_optimum_of_small_ones(
    limits: list[tuple[ModuleType, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, limit in limits:
        monkeypatch.setattr(module, limit, 0)
    driver = backends.get("highs")
    for seed in range(200):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem).values
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == [], seed
        assert values(problem, solved.plan) == pytest.approx(best, rel=1e-5, abs=1e-5), seed
        for found, value in zip(solved.levels, best, strict=True):
            assert found.bound <= value + 1e-5 * max(1.0, abs(value)), seed


def test_the_rows_of_a_package_without_a_compiler_make_the_same_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = backends.get("highs")
    problems = [oracle.random_problem(seed) for seed in range(60)]
    found = [decompose(problem, driver, EXACT) for problem in problems]
    monkeypatch.setattr(rows, "entries", entries_numpy)
    for problem, mine in zip(problems, found, strict=True):
        assert np.array_equal(decompose(problem, driver, EXACT).plan.replicas, mine.plan.replicas)


def test_knapsacks_are_compiled_where_there_is_a_compiler() -> None:
    assert assignment.IS_COMPILED or shutil.which("cc") is None


@compiled
def test_rows_of_nodes_are_left_to_integer_programs() -> None:
    """A replica of 2 cards takes of the row of its size and of that of single cards: no knapsack."""
    plain = fleet(8, 0, mix=False, stock=1.0)
    on_nodes = replace(
        plain, inventory=Inventory(np.full(4, 8, dtype=np.int64), ((4, 4), (4, 4), (4, 4), (4, 4)))
    )
    tried = []
    for problem in (plain, on_nodes):
        whole = keep(problem, np.flatnonzero(~dominated(problem)))
        search = Search(whole, backends.get("highs"), EXACT, lambda: 1.0, Plan(np.zeros_like(whole.gpus)))
        stage = Stage(
            search.servers,
            search.coupling,
            np.zeros(8),
            np.zeros(8),
            1.0,
            (),
            np.zeros(8),
            np.ones(8, dtype=bool),
            None,
        )
        tried.append(assignment.is_always_tried(search, stage, search.pool))
    assert tried == [True, False]


@compiled
def test_what_knapsacks_leave_out_are_the_columns_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has options by pool, columns are by server: each comes back to where it was."""

    class Dear:
        def __init__(self, *given: Any) -> None:
            self.cost = given[3]

        def solve(self, value: float, step: float, *_: Any) -> tuple[Any, ...]:
            return None, value, -np.inf, value - step + self.cost - np.median(self.cost), 1

    looked = 0
    tried = closing.assigned

    def checked(search: Search, stage: Stage, priced: Any, value: float, *rest: float) -> tuple[Any, ...]:
        nonlocal looked
        result = tried(search, stage, priced, value, *rest)
        if stage.money == 1.0 and np.isfinite(value):
            looked += 1
            worth = stage.worth(priced.columns)
            clear = np.abs(worth - np.median(worth)) > 1e-6 * worth.max()
            assert (result[2] == (worth < np.median(worth)))[clear].all()
        return result

    monkeypatch.setattr(assignment, "Assignment", Dear)
    monkeypatch.setattr(closing, "assigned", checked)
    for seed in range(4):
        decompose(fleet(14, seed, mix=False, stock=2.0), backends.get("highs"), EXACT)
    assert looked > 1


@compiled
def test_programs_after_one_node_over_knapsacks_keep_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the node leaves out is in no better plan."""
    monkeypatch.setattr(assignment, "_NODES_OF_COST", 1)
    monkeypatch.setattr(assignment, "_NODES_OF_SERVICE", 1)
    left: list[float] = []
    tried = closing.assigned

    def counted(*given: Any) -> tuple[float, float, Any]:
        result = tried(*given)
        left.append(float(result[2].mean()))
        return result

    monkeypatch.setattr(closing, "assigned", counted)
    driver = backends.get("highs")
    for stock, seed in itertools.product((0.8, 1.2, 1.6, 2.0), range(12)):
        problem = fleet(14, seed, mix=False, stock=stock)
        exact = solve(problem, driver, EXACT)
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == []
        assert values(problem, solved.plan) == pytest.approx(values(problem, exact.plan), rel=1e-5, abs=1e-5)
        assert solved.termination is Termination.OPTIMAL
    assert sum(0.0 < share < 1.0 for share in left) > 5


@pytest.mark.usefixtures("without_knapsacks")
@pytest.mark.parametrize("started", [0, 700])
def test_bounds_of_coarse_answers_are_below_the_optimum(
    started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "_STARTED", started)
    driver = backends.get("highs")
    for stock, seed in itertools.product((1.6, 2.0, 2.5), range(12)):
        problem = fleet(12, seed, mix=False, stock=stock)
        exact = solve(problem, driver, EXACT)
        for gap in (0.01, 0.03):
            solved = decompose(problem, driver, replace(EXACT, relative_gap=gap))
            for found, best in zip(solved.levels, exact.levels, strict=True):
                small = 1e-5 * max(1.0, abs(best.value))
                assert found.bound <= best.value + small, (stock, seed, gap)
                if found.value > best.value + small:
                    break  # the bounds of later levels are those of a worse earlier one


@pytest.mark.usefixtures("without_knapsacks")
def test_a_far_plan_is_bettered_where_programs_near_the_bound_do_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(searching, "_CLOSABLE", 0)
    monkeypatch.setattr(closing, "_FAR", 0)
    monkeypatch.setattr(closing, "_STARTED", 0)
    monkeypatch.setattr(planning, "_PLAN_COLUMNS", ())
    monkeypatch.setattr(planning, "MOST_COLUMNS", 0)
    late = 0
    solved_by = Search.solve

    def unfinished(search: Search, milp: Milp, **how: Any) -> RawSolution:
        nonlocal late
        raw = solved_by(search, milp, **how)
        if how["relax"] or how.get("start") is not None or not (search.incumbent.unserved > 0).any():
            return raw
        late += 1
        return replace(raw, termination=Termination.TIME_LIMIT, x=None, objective=np.nan, bound=-np.inf)

    monkeypatch.setattr(Search, "solve", unfinished)
    driver = backends.get("highs")
    for seed in range(8):
        problem = fleet(12, seed, mix=False, stock=0.7)
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == []
        assert solved.levels[-1].termination is Termination.OPTIMAL, seed
    assert late > 5


def test_a_start_with_options_that_whole_servers_leave_out_is_taken_over() -> None:
    for seed in range(8):
        problem = fleet(8, seed, mix=False, stock=1.5)
        one_type = replace(
            problem,
            gpu_types=problem.gpu_types[:1],
            gpu_type=np.zeros_like(problem.gpu_type),
            inventory=Inventory(np.array([NO_LIMIT]), (None,)),
        )
        out = dominated(one_type, whole=True) & ~dominated(one_type)
        _, first = np.unique(one_type.option_server[out], return_index=True)
        used = np.flatnonzero(out)[first]
        replicas = np.zeros_like(one_type.option_server)
        replicas[used] = one_type.replicas_needed[used]
        cards = int((replicas * one_type.gpus).sum())
        limited = replace(one_type, inventory=Inventory(np.array([cards]), (None,)))
        assert len(used) > 1 and violations(limited, Plan(replicas)) == []
        exact = solve(limited, backends.get("highs"), EXACT)
        solved = decompose(limited, backends.get("highs"), EXACT, start=Plan(replicas))
        assert violations(limited, solved.plan) == []
        assert values(limited, solved.plan) == pytest.approx(values(limited, exact.plan), rel=1e-5)


def test_beam_searches_on_small_systems_break_no_rule_and_keep_the_optimum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "_MATCHED_FROM", 1)
    monkeypatch.setattr(planning, "_MATCHED_ONE_TYPE_FROM", 1)
    found = []
    search = planning.matched

    def recorded(*args: Any) -> Any:
        found.append(search(*args))
        return found[-1]

    monkeypatch.setattr(planning, "matched", recorded)
    driver = backends.get("highs")
    for seed in range(200):
        problem = oracle.random_problem(seed)
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == [], seed
        best = oracle.best(problem).values
        assert values(problem, solved.plan) == pytest.approx(best, rel=1e-5, abs=1e-5), seed
    assert sum(plan is not None for plan in found) > 10


def test_beam_searches_alone_prove_a_fleet_with_a_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_COLUMNS", 0)
    options = SolveOptions(relative_gap=1e-4, time_limit_s=60.0)
    for seed in range(3):
        problem = fleet(400, seed, mix=True, stock=2.0)
        solved = decompose(problem, backends.get("highs"), options)
        assert violations(problem, solved.plan) == []
        assert solved.termination is Termination.OPTIMAL


@pytest.mark.parametrize("mix", [False, True])
def test_prices_of_a_held_level_start_near_the_best_ones(mix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a sample, along the prices of the level before: the bound of the whole relaxation is not far."""
    monkeypatch.setattr(bounding, "_SAMPLE", 20)
    monkeypatch.setattr(searching, "_MOST_SOLVED", 0)
    starts: list[float] = []
    search = bounding.ascend

    def recorded(listed: Listed, duals: np.ndarray, *args: Any) -> Any:
        best = search(listed, duals, *args)
        # A level is held, and these are all servers: how far the sample's prices are from the best ones.
        if len(listed.limits) > 4 and len(np.unique(listed.server)) == 120:
            starts.append((listed.bound(best)[0] - listed.bound(duals)[0]) / abs(listed.bound(best)[0]))
        return best

    monkeypatch.setattr(bounding, "ascend", recorded)
    for seed in (0, 2):
        problem = fleet(120, seed, mix=mix, stock=0.8)
        solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=0.02, time_limit_s=30.0))
        assert violations(problem, solved.plan) == []
        assert solved.termination is Termination.OPTIMAL
    assert len(starts) >= 2
    assert max(starts) < 0.5


def test_two_short_levels_are_proven_short_from_a_sample_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is taken to be short exactly where no mixture of the columns meets it."""
    monkeypatch.setattr(bounding, "_SAMPLE", 20)
    monkeypatch.setattr(searching, "_MOST_SOLVED", 0)
    said: list[tuple[int, bool, bool]] = []
    is_impossible = decomposition.is_impossible

    def recorded(search: Search, stage: Stage) -> bool:
        milp, _ = search.program_of(stage, stage.allowed(search.pool), price=None, integer=False)
        infeasible = search.solve(milp, relax=True).termination is Termination.INFEASIBLE
        said.append((len(stage.held), is_impossible(search, stage), infeasible))
        return said[-1][1]

    monkeypatch.setattr(decomposition, "is_impossible", recorded)
    for seed in range(6):
        problem = fleet(120, seed, stock=0.25 + 0.1 * seed)
        solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=0.02, time_limit_s=30.0))
        assert violations(problem, solved.plan) == []
    assert {(held > 0, infeasible) for held, _, infeasible in said} >= {(False, True), (True, True)}
    assert [impossible for _, impossible, _ in said] == [infeasible for *_, infeasible in said]


def test_no_prices_prove_what_is_possible_to_be_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the relaxation prove what is not, and no others say more than it does."""
    said: list[bool] = []
    converge = decomposition.converge

    def asked(search: Search, stage: Stage, **kinds: Any) -> Any:
        milp, _ = search.program_of(stage, stage.allowed(search.pool), price=None, integer=False)
        infeasible = search.solve(milp, relax=True).termination is Termination.INFEASIBLE
        rng = np.random.default_rng(len(said))
        for _ in range(5):
            proven = bounding._is_proof(search, stage, rng.uniform(0.0, 1.0, len(stage.limits)))
            assert not proven or infeasible
        assert bounding.is_impossible(search, stage) == infeasible
        said.append(infeasible)
        return converge(search, stage, **kinds)

    monkeypatch.setattr(decomposition, "converge", asked)
    for seed in range(10):
        decompose(fleet(30, seed, stock=0.25 + 0.2 * seed), backends.get("highs"), EXACT)
    assert set(said) == {False, True}


def test_a_level_that_nearly_everything_meets_is_proven_without_a_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three servers of two cards each and two types of three: the relaxation serves all, a plan two."""
    problem = fleet(3, 0)
    kept = np.flatnonzero(np.isin(problem.option_accelerator, [0, 2]))
    problem = replace(
        keep(problem, kept),
        arrival_rps=np.ones(3),
        capacity_rps=np.full(6, 0.5),
        cost_per_h=np.arange(1.0, 7.0),
        priority=np.ones(3, dtype=np.int64),
        inventory=Inventory(np.array([3, 3, 0, 0]), (None,) * 4),
    )
    levels: list[bool] = []
    converge = decomposition.converge

    def counted(search: Search, stage: Stage) -> object:
        levels.append(stage.money < 1.0)
        return converge(search, stage)

    monkeypatch.setattr(decomposition, "converge", counted)
    solved = decompose(problem, backends.get("highs"), EXACT)
    assert [(r.value, r.bound) for r in solved.levels[:-1]] == [(1.0, 1.0)]
    assert solved.termination is Termination.OPTIMAL
    assert solved.levels[-1].value == oracle.best(problem).values[-1]
    # A third of a server more would not make a whole one.
    assert np.nan_to_num(solved.value_of_gpu.unserved).tolist() == [0.0] * 4
    assert any(levels) != assignment.IS_COMPILED


def test_the_first_level_that_is_short_says_what_a_gpu_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first one that had to be solved."""
    solved_levels: dict[int, Any] = {}
    converge = decomposition.converge

    def recorded(search: Search, stage: Stage, **kinds: Any) -> Any:
        priced = converge(search, stage, **kinds)
        if stage.money < 1.0 and stage.reached is not None:
            solved_levels[len(stage.reached)] = priced
        return priced

    monkeypatch.setattr(decomposition, "converge", recorded)
    compared = 0
    for seed in range(60):
        solved_levels.clear()
        problem = fleet(12, seed, stock=1.0 + 0.25 * (seed % 4))
        found = decompose(problem, backends.get("highs"), EXACT)
        short = next((i for i, level in enumerate(found.levels[:-1]) if level.value > 0), None)
        if short in solved_levels and min(solved_levels) < short:
            priced = solved_levels[short]
            duals = priced.duals if priced.master is None else priced.master.duals
            assert found.value_of_gpu.unserved == pytest.approx(duals[:4])
            compared += bool(duals[:4].any())
    assert compared > 3


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("stock", [1.0, 3.0, 20.0])
def test_decomposition_equals_the_direct_method_on_a_small_fleet(mix: bool, stock: float) -> None:
    driver = backends.get("highs")
    options = SolveOptions(relative_gap=1e-3, time_limit_s=20.0)
    for seed in range(3):
        problem = fleet(8, seed, mix=mix, stock=stock)
        found, direct = decompose(problem, driver, options), solve(problem, driver, options)
        assert violations(problem, found.plan) == []
        assert found.termination is Termination.OPTIMAL
        ours, theirs = values(problem, found.plan), values(problem, direct.plan)
        assert ours[:-1] == pytest.approx(theirs[:-1], abs=1e-5)
        assert ours[-1] == pytest.approx(theirs[-1], rel=2e-3)
        assert found.levels[-1].bound <= theirs[-1] * (1.0 + 1e-9)


@pytest.mark.parametrize("mix", [False, True])
def test_without_limits_every_server_gets_its_own_best(mix: bool) -> None:
    problem = fleet(40, 1, mix=mix)
    free = replace(problem, inventory=Inventory(np.full(4, NO_LIMIT), (None,) * 4))
    solved = decompose(free, backends.get("highs"), EXACT)
    alone = 0.0
    for s in range(40):
        mine = np.flatnonzero(free.option_server == s)
        if mix:
            one = replace(
                keep(free, mine),
                option_server=np.zeros(len(mine), dtype=np.int64),
                servers=("s",),
                arrival_rps=free.arrival_rps[s : s + 1],
                min_replicas=free.min_replicas[:1],
                max_replicas=free.max_replicas[:1],
                priority=free.priority[s : s + 1],
                weight=free.weight[:1],
            )
            alone += solve(one, backends.get("highs"), EXACT).levels[-1].value
        else:
            alone += float((free.cost_per_h * free.replicas_needed)[mine].min())
    assert solved.termination is Termination.OPTIMAL
    assert solved.levels[-1].value == pytest.approx(alone, rel=1e-6)


def test_bound_is_that_of_the_whole_program_for_one_type() -> None:
    """The relaxation of the whole program is a bound computed another way; the Lagrangian bound equals it."""
    problem = fleet(700, 3, stock=4.0)
    driver = backends.get("highs")
    solved = decompose(problem, driver, SolveOptions(relative_gap=1e-2, time_limit_s=30.0))
    formulation = formulate(keep(problem, np.flatnonzero(~dominated(problem))), serve_all=True)
    relaxed = driver.solve(program(formulation, len(formulation.objectives) - 1), SolveOptions(relax=True))
    assert solved.termination is Termination.OPTIMAL
    assert solved.levels[-1].bound <= solved.levels[-1].value
    assert solved.levels[-1].bound == pytest.approx(relaxed.objective, rel=1e-3)
    assert solved.levels[-1].bound <= relaxed.objective * (1.0 + 1e-9)


def test_single_type_columns_of_a_float_ceiling() -> None:
    problem = fleet(1, 0)
    problem = replace(
        problem, arrival_rps=np.array([40.0]), capacity_rps=np.full(len(problem.capacity_rps), 0.4)
    )
    problem = replace(problem, inventory=Inventory(np.full(4, NO_LIMIT), (None,) * 4))
    columns: Columns = single_type(Servers(problem))
    assert columns.replicas.value.max() == columns.replicas.value.min() == 100
    mixed = replace(problem, policy=Policy(max_types=None))
    solved = decompose(mixed, backends.get("highs"), EXACT)
    assert solved.plan.replicas.sum() == 100


@pytest.mark.parametrize("mix", [False, True])
def test_equal_servers_and_equal_accelerators(mix: bool) -> None:
    """Ties everywhere: the bound must still meet a plan, which is easy to name."""
    problem = fleet(60, 0, mix=mix)
    same = replace(
        problem,
        arrival_rps=np.full(60, 3.0),
        capacity_rps=problem.gpus.astype(float),
        cost_per_h=2.0 * problem.gpus,
        inventory=Inventory(np.full(4, 60, dtype=np.int64), (None,) * 4),
    )
    solved = decompose(same, backends.get("highs"), EXACT)
    # 180 cards of 240 at 2 each; with one type per server 4-card replicas waste one card, none need it.
    assert solved.termination is Termination.OPTIMAL
    assert solved.levels[-1].value == pytest.approx(360.0)
    assert violations(same, solved.plan) == []


@pytest.mark.parametrize("mix", [False, True])
def test_costs_and_capacities_over_six_orders_of_magnitude(mix: bool) -> None:
    problem = fleet(30, 5, mix=mix, stock=200.0)
    rng = np.random.default_rng(5)
    wide = replace(
        problem,
        arrival_rps=10.0 ** rng.uniform(-2, 4, 30),
        cost_per_h=problem.cost_per_h * 10.0 ** rng.uniform(-3, 3, len(problem.cost_per_h)),
    )
    wide = replace(
        wide, capacity_rps=wide.arrival_rps[wide.option_server] / rng.uniform(0.5, 8.0, len(wide.gpus))
    )
    driver = backends.get("highs")
    solved = decompose(wide, driver, SolveOptions(relative_gap=1e-4, time_limit_s=20.0))
    direct = solve(wide, driver, SolveOptions(relative_gap=1e-4, time_limit_s=20.0))
    assert violations(wide, solved.plan) == []
    assert solved.levels[-1].bound <= direct.levels[-1].value * (1.0 + 1e-6)
    assert solved.levels[-1].value == pytest.approx(direct.levels[-1].value, rel=1e-3)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize("stock", [2.0, 5.0])
def test_a_short_deadline_still_gives_a_plan_and_a_true_bound(mix: bool, stock: float) -> None:
    problem = fleet(300, 7, mix=mix, stock=stock)
    driver = backends.get("highs")
    short = decompose(problem, driver, SolveOptions(time_limit_s=0.05))
    long = decompose(problem, driver, SolveOptions(relative_gap=1e-3, time_limit_s=10.0))
    assert violations(problem, short.plan) == []
    assert short.levels[0].bound <= long.levels[0].value + 1e-6
    same = [r.value for r in short.levels[:-1]] == pytest.approx(
        [r.value for r in long.levels[:-1]], abs=1e-6
    )
    if same:
        assert short.levels[-1].bound <= long.levels[-1].value * (1.0 + 1e-9)
        assert short.levels[-1].value >= long.levels[-1].bound * (1.0 - 1e-9)


def test_a_given_start_is_never_made_worse() -> None:
    problem = fleet(300, 7, stock=4.0)
    driver = backends.get("highs")
    good = decompose(problem, driver, SolveOptions(relative_gap=1e-3, time_limit_s=10.0))
    again = decompose(problem, driver, SolveOptions(time_limit_s=1e-3), start=good.plan)
    assert values(problem, again.plan) <= tuple(v + 1e-9 for v in values(problem, good.plan))


def test_value_of_a_gpu_is_what_one_more_would_save() -> None:
    """The dual is a derivative of the bound: the bound with more cards falls by about as much."""
    problem = fleet(400, 11, stock=4.0)
    driver = backends.get("highs")
    options = SolveOptions(relative_gap=1e-3, time_limit_s=20.0)
    solved = decompose(problem, driver, options)
    worth = solved.value_of_gpu.cost_per_h
    assert (worth >= 0).all() and worth.max() > 0
    t = int(worth.argmax())
    more = problem.inventory.gpus.copy()
    more[t] += 20
    bound = (
        decompose(replace(problem, inventory=Inventory(more, (None,) * 4)), driver, options).levels[-1].bound
    )
    assert solved.levels[-1].bound - bound == pytest.approx(20 * worth[t], rel=0.2)


def test_unlimited_types_have_no_value() -> None:
    problem = fleet(20, 2)
    gpus = np.array([NO_LIMIT, 1000, 1000, 1000])
    problem = replace(problem, inventory=Inventory(gpus, (None,) * 4))
    worth = decompose(problem, backends.get("highs"), EXACT).value_of_gpu.cost_per_h
    assert np.isnan(worth[0])
    assert (worth[1:] == 0).all()


def least_costs(problem: AllocationProblem, price: np.ndarray, *, grid: int, up: bool) -> np.ndarray:
    """Least price of covering each server's demand, shape (S,), by dynamic programming on a grid of shares.

    With shares rounded `up` to the grid no server costs less, rounded down none costs more.
    """
    count = len(problem.servers)
    width = np.bincount(problem.option_server).max()
    exact = grid * problem.capacity_rps / problem.arrival_rps[problem.option_server]
    steps = (np.ceil(exact - 1e-6) if up else np.floor(exact + 1e-6)).astype(np.int64).reshape(count, width)
    each = np.where(steps > 0, price.reshape(count, width), np.inf)
    steps = np.maximum(steps, 1)
    least = np.zeros((grid + 1, count))
    for x in range(1, grid + 1):
        before = least[np.maximum(x - steps, 0), np.arange(count)[:, None]]
        least[x] = (before + each).min(axis=1)
    return least[grid]


def test_the_bound_of_a_mix_is_that_of_an_independent_recomputation() -> None:
    """At the values of the cards that it reports, summed over servers priced by dynamic programming."""
    problem = fleet(320, 4, mix=True, stock=2.5)
    solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=1e-3, time_limit_s=30.0))
    assert solved.termination is Termination.OPTIMAL
    assert all(level.value == 0.0 for level in solved.levels[:-1])
    worth = solved.value_of_gpu.cost_per_h
    price = problem.cost_per_h + worth[problem.gpu_type] * problem.gpus
    stock = float(worth @ problem.inventory.gpus)
    low, high = (least_costs(problem, price, grid=2000, up=up).sum() - stock for up in (True, False))
    assert low <= solved.levels[-1].value
    assert low * (1.0 - 1e-9) <= solved.levels[-1].bound <= high * (1.0 + 1e-9)
    assert high - low < 0.01 * low


def test_scarcity_with_a_mix_serves_more_than_the_baseline_and_proves_it() -> None:
    problem = fleet(400, 2, mix=True, stock=1.0)
    solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=1e-3, time_limit_s=30.0))
    assert violations(problem, solved.plan) == []
    baseline = values(problem, greedy(problem))
    assert values(problem, solved.plan) < baseline
    service = solved.levels[:-1]
    assert sum(level.value for level in service) < 0.8 * sum(baseline[:-1])
    assert all(level.bound == level.value for level in service)


def test_no_time_at_all_gives_the_plan_of_the_baseline() -> None:
    problem = fleet(400, 2, mix=True, stock=1.0)
    solved = decompose(problem, backends.get("highs"), SolveOptions(time_limit_s=1e-6))
    assert values(problem, solved.plan) <= values(problem, greedy(problem))
    assert solved.termination is Termination.TIME_LIMIT
    assert all(level.bound <= level.value for level in solved.levels)


def test_a_plan_with_dominated_options_is_a_start_too() -> None:
    """Servers on a dominated option where they have one: the options that replace them are no worse."""
    problem = fleet(200, 3, mix=True, stock=100.0)
    out = dominated(problem)
    chosen = {int(problem.option_server[j]): j for j in (*np.flatnonzero(~out), *np.flatnonzero(out))}
    options = np.array(list(chosen.values()))
    replicas = np.zeros(len(out), dtype=np.int64)
    replicas[options] = problem.replicas_needed[options]
    start = Plan(replicas)
    assert out[options].any()
    assert violations(problem, start) == []
    solved = decompose(problem, backends.get("highs"), SolveOptions(time_limit_s=1e-6), start=start)
    assert violations(problem, solved.plan) == []
    assert values(problem, solved.plan) <= values(problem, start)


@compiled
def test_dynamic_programming_finds_the_optimum_of_small_systems_with_one_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where all columns are there it makes the plan and the proof: as for fleets of hundreds, and more."""
    monkeypatch.setattr(selection, "_FEWEST", 0)
    closed: list[bool] = []
    whole = closing.proven

    def recorded(
        search: Search, stage: Stage, priced: Priced, value: float, bound: float, step: float, until_s: float
    ) -> tuple[float, float]:
        after, proven = whole(search, stage, priced, value, bound, step, until_s)
        assert after <= value
        assert bound <= proven <= after * (1 + 1e-9) + 1e-9
        closed.append(after - proven <= step + 1e-6 and proven > bound)
        return after, proven

    monkeypatch.setattr(closing, "proven", recorded)
    driver = backends.get("highs")
    for seed in range(700):
        problem = oracle.random_problem(seed)
        best = oracle.best(problem)
        solved = decompose(problem, driver, EXACT)
        assert violations(problem, solved.plan) == [], seed
        assert values(problem, solved.plan) == pytest.approx(best.values, rel=1e-5, abs=1e-5), seed
        for found, value in zip(solved.levels, best.values, strict=True):
            assert found.bound <= value + 1e-5 * max(1.0, abs(value)), seed
    assert sum(closed) > 20


@compiled
@pytest.mark.parametrize("stock", [1.05, 0.7])
def test_dynamic_programming_and_the_rest_agree_on_a_fleet_of_one_type(
    stock: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = fleet(150, 1, mix=False, stock=stock)
    options = SolveOptions(relative_gap=1e-3, time_limit_s=30.0)
    driver = backends.get("highs")
    with_it = decompose(problem, driver, options)
    monkeypatch.setattr(selection, "IS_COMPILED", False)
    without = decompose(problem, driver, options)
    for one, other in zip(with_it.levels, without.levels, strict=True):
        assert one.bound <= other.value + 1e-6 * max(1.0, abs(other.value))
        assert other.bound <= one.value + 1e-6 * max(1.0, abs(one.value))
    assert with_it.termination is Termination.OPTIMAL
    assert violations(problem, with_it.plan) == []


@compiled
@pytest.mark.parametrize("is_lucky", [True, False])
def test_a_plan_is_sought_at_each_value_of_a_level_of_service(
    is_lucky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finds is a plan, and what it proves and excludes holds; also where its searches fail."""
    found: list[bool] = []
    excluded: list[int] = []
    stepped = closing.stepped

    def checked(search: Any, stage: Any, priced: Any, value: float, bound: float, unit: float) -> Any:
        columns = priced.columns
        milp, free = search.program_of(stage, columns, price=None, integer=True)
        exact = search.solve(milp, relax=False, gap=0.0)
        best = np.inf if exact.x is None else exact.objective
        after, proven, near = stepped(search, stage, priced, value, bound, unit)
        assert after <= value
        assert bound <= proven <= min(after, best) + 1e-9
        if after < value:
            plan = search.incumbent.take(stage.active[search.incumbent.server])
            assert stage.service(plan).sum() == pytest.approx(after)
            assert search.fits(stage, plan)
        found.append(after < value)
        if exact.x is not None and not is_lucky:
            taken = np.ones(len(columns), dtype=bool)
            taken[free] = exact.x[: len(free)] > 0.5
            for more in (1, 2):
                with monkeypatch.context() as unchanged:
                    unchanged.setattr(type(search), "adopt", lambda *_: None)
                    at, _, kept = stepped(search, stage, priced, best + more * unit, bound, unit)
                if at > best + 0.5 * unit:
                    assert kept[taken].all()
                    excluded.append(int((~kept).sum()))
        return after, proven, near

    monkeypatch.setattr(closing, "stepped", checked)
    if not is_lucky:
        monkeypatch.setattr(stepping, "selected", lambda *_, **__: (None, -np.inf))
        monkeypatch.setattr(stepping, "_TRIED", 30)
        # The knapsacks find the plan, and prove it, of most fleets.
        monkeypatch.setattr(stepping, "excluded", lambda *a: (np.inf, -np.inf, assignment.excluded(*a)[2]))
    for seed in range(20):
        problem = fleet(60, seed, mix=False, stock=0.8)
        solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=1e-3))
        assert violations(problem, solved.plan) == []
        assert solved.termination is Termination.OPTIMAL
    assert sum(found) > 3 or not is_lucky
    assert is_lucky or sum(excluded) > 100


def test_columns_that_are_not_listed_are_not_proven_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many numbers of replicas only the ends are listed: enough for the bound, not for a proof."""
    monkeypatch.setattr(pricing, "_MOST_PARTIAL_COLUMNS", 0)
    driver = backends.get("highs")
    seen = 0
    for seed in range(600):
        problem = oracle.random_problem(seed)
        if not problem.policy.partial or problem.policy.max_types != 1:
            continue
        seen += 1
        solved = decompose(problem, driver, EXACT)
        for found, value in zip(solved.levels, oracle.best(problem).values, strict=True):
            if found.value > value + 1e-5 * max(1.0, abs(value)):
                # A level that was not met is held as it is: those after it are of another program.
                assert found.bound <= value + 1e-5 * max(1.0, abs(value)), seed
                break
            assert found.bound <= value + 1e-5 * max(1.0, abs(value)), seed
    assert seen > 100


@compiled
def test_levels_that_are_left_to_the_cost_level_keep_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a repair every level that is short is taken to reach its bound first; some do not."""
    monkeypatch.setattr(planning, "_by_repair", lambda *arguments: arguments[-2:])
    kept: list[bool] = []
    by_level = decomposition._Levels._by_level

    def recorded(self: Any, **how: Any) -> Any:
        found = by_level(self, **how)
        if "to_bound_s" in how:
            kept.append(found is not None)
        return found

    monkeypatch.setattr(decomposition._Levels, "_by_level", recorded)
    driver = backends.get("highs")
    for seed in range(40):
        problem = fleet(7, seed, mix=True, stock=0.9)
        near = SolveOptions(relative_gap=0.03, time_limit_s=30.0)
        solved, exact = decompose(problem, driver, near), solve(problem, driver, EXACT)
        assert violations(problem, solved.plan) == [], seed
        assert solved.termination is Termination.OPTIMAL, seed
        *service, cost_per_h = values(problem, exact.plan)
        assert values(problem, solved.plan)[:-1] == pytest.approx(service), seed
        assert values(problem, solved.plan)[-1] <= cost_per_h * 1.0301 + 1e-9, seed
        for found, value in zip(solved.levels, values(problem, exact.plan), strict=True):
            assert found.bound <= value + 1e-6 * max(1.0, abs(value)), seed
    assert sum(kept) > 5
    assert len(kept) - sum(kept) > 3


@compiled
@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_a_level_is_held_at_its_bound_without_integer_programs(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of a level of service comes with that of the cost level."""

    def missing(*_: object) -> None:
        raise AssertionError("an integer program at a level of service")

    monkeypatch.setattr(planning, "_choose", missing)
    monkeypatch.setattr(planning, "_by_repair", lambda *arguments: arguments[-2:])
    problem = fleet(60, seed, mix=True, stock=0.8)
    solved = decompose(problem, backends.get("highs"), SolveOptions(relative_gap=1e-3, time_limit_s=60.0))
    assert solved.levels[1].value > 0
    assert solved.termination is Termination.OPTIMAL
    assert violations(problem, solved.plan) == []
