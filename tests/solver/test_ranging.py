"""The range in which the value of a GPU holds, against linear programs solved again by scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from solver import backends
from solver.decompose import decompose
from solver.formulate import formulate, is_whole, program
from solver.milp import Milp, RawSolution, SolveOptions
from solver.problem import NO_LIMIT, AllocationProblem, Inventory, Policy
from solver.ranging import on_the_line, ranges_of_rows
from solver.reduce import dominated, keep
from solver.solve import solve

EXACT = SolveOptions(relative_gap=1e-4, time_limit_s=30.0)
HIGHS = backends.get("highs")


def fleet(servers: int, seed: int, *, mix: bool = False, stock: float) -> AllocationProblem:
    """Servers on three GPU types, one of them in replicas of 1 and 2 cards."""
    rng = np.random.default_rng(seed)
    gpu_type, gpus = np.array([0, 0, 1, 2]), np.array([1, 2, 1, 1])
    server, accelerator = np.divmod(np.arange(servers * 4), 4)
    return AllocationProblem(
        servers=tuple(f"s{i:03d}" for i in range(servers)),
        accelerators=("a", "b", "c", "d"),
        gpu_types=("A", "C", "D"),
        arrival_rps=rng.uniform(1.0, 12.0, servers),
        min_replicas=np.zeros(servers, dtype=np.int64),
        max_replicas=np.full(servers, NO_LIMIT),
        priority=np.ones(servers, dtype=np.int64),
        weight=np.ones(servers),
        option_server=server,
        option_accelerator=accelerator,
        option_batch=np.ones(len(server), dtype=np.int64),
        capacity_rps=(gpus * rng.uniform(0.8, 1.6, (servers, 4))).ravel(),
        gpu_type=gpu_type[accelerator],
        gpus=gpus[accelerator],
        cost_per_h=np.tile(gpus * rng.uniform(1.0, 3.0, 4), servers),
        current_server=np.zeros(0, dtype=np.int64),
        current_accelerator=np.zeros(0, dtype=np.int64),
        current_cost_per_h=np.zeros(0),
        inventory=Inventory(np.full(3, int(stock * servers), dtype=np.int64), (None,) * 3),
        policy=Policy(max_types=None if mix else 1),
    )


def optimum(milp: Milp, row: int, limit: float) -> float:
    """Optimum of the linear program with another limit of a row, by scipy; inf where there is no point."""
    matrix = csr_matrix((milp.value, milp.column, milp.row_start), shape=(milp.rows, milp.columns))
    upper = milp.row_upper.copy()
    upper[row] = limit
    above, below = np.isfinite(upper), np.isfinite(milp.row_lower)
    found = linprog(
        milp.objective,
        A_ub=np.vstack([matrix[above].toarray(), -matrix[below].toarray()]),
        b_ub=np.r_[upper[above], -milp.row_lower[below]],
        bounds=np.column_stack([milp.column_lower, milp.column_upper]),
    )
    return float(found.fun) + milp.offset if found.status == 0 else np.inf


def assert_holds(milp: Milp, row: int, worth: float, ends: tuple[float, float]) -> None:
    """The optimum is on the line inside the range, and above it just outside."""
    limit = float(milp.row_upper[row])
    value = optimum(milp, row, limit)
    least, most = ends
    assert least <= limit <= most
    exactly = 1e-6 * max(1.0, abs(value))
    for inside in np.linspace(least, most, 5):
        assert optimum(milp, row, inside) == pytest.approx(value - worth * (inside - limit), abs=exactly)
    step = 0.5 + 0.02 * limit
    for outside in (least - step, most + step):
        if outside >= 0:
            assert optimum(milp, row, outside) > value - worth * (outside - limit) + exactly


def relaxed_program(problem: AllocationProblem) -> tuple[Milp, np.ndarray]:
    """The cost level with everything served, and the row of each type."""
    whole = is_whole(problem, serve_all=True)
    options = np.flatnonzero(~dominated(problem, whole=whole))
    formulation = formulate(keep(problem, options), serve_all=True)
    return program(formulation, len(formulation.objectives) - 1), formulation.inventory_row


@pytest.mark.parametrize("mix", [False, True])
def test_the_range_of_the_direct_method_is_where_the_relaxation_is_linear(mix: bool) -> None:
    held = 0
    for seed in range(25):
        problem = fleet(8, seed, mix=mix, stock=2.5)
        solved = solve(problem, HIGHS, EXACT)
        worth = solved.value_of_gpu
        if solved.levels[0].value > 0:
            continue
        milp, rows = relaxed_program(problem)
        for t in np.flatnonzero(worth.cost_per_h > 0).tolist():
            assert_holds(milp, int(rows[t]), worth.cost_per_h[t], tuple(worth.cost_range[t]))
            held += 1
        assert np.isnan(worth.cost_range[worth.cost_per_h == 0]).all()
        assert np.isnan(worth.unserved_range).all()
    assert held >= 15


def test_where_not_all_is_served_the_share_served_has_a_range() -> None:
    held = 0
    for seed in range(20):
        problem = fleet(8, seed, stock=1.0)
        solved = solve(problem, HIGHS, EXACT)
        if solved.levels[0].value == 0:
            continue
        options = np.flatnonzero(~dominated(problem, whole=is_whole(problem, serve_all=False)))
        formulation = formulate(keep(problem, options), serve_all=False)
        milp = program(formulation, 0)
        worth = solved.value_of_gpu
        for t in np.flatnonzero(worth.unserved > 0).tolist():
            row = int(formulation.inventory_row[t])
            assert_holds(milp, row, worth.unserved[t], tuple(worth.unserved_range[t]))
            held += 1
    assert held >= 10


def test_the_range_of_the_decomposition_is_where_its_relaxation_is_linear() -> None:
    """With one type its relaxation is that over all columns, which the whole program has as well."""
    held = 0
    for seed in range(12):
        problem = fleet(12, seed, stock=2.5)
        solved = decompose(problem, HIGHS, SolveOptions(relative_gap=1e-9, time_limit_s=20.0))
        worth = solved.value_of_gpu
        if solved.levels[0].value > 0 or not (worth.cost_per_h > 0).any():
            continue
        milp, rows = relaxed_program(problem)
        for t in np.flatnonzero(worth.cost_per_h > 0).tolist():
            assert_holds(milp, int(rows[t]), worth.cost_per_h[t], tuple(worth.cost_range[t]))
            held += 1
    assert held >= 8


def range_of(milp: Milp, row: int, worth: float, value: float) -> tuple[float, float]:
    """Range of one row."""
    [ends] = ranges_of_rows(milp, np.array([row]), np.array([worth]), value, HIGHS, SolveOptions())
    return float(ends[0]), float(ends[1])


def two_ways() -> Milp:
    """Minimise 3 x + 5 y + 9 z, x + y + z = 10, x <= 4 (the row asked about), y <= 3."""
    return Milp(
        objective=np.array([3.0, 5.0, 9.0]),
        row_start=np.array([0, 3, 4]),
        column=np.array([0, 1, 2, 0]),
        value=np.ones(4),
        row_lower=np.array([10.0, -np.inf]),
        row_upper=np.array([10.0, 4.0]),
        column_lower=np.zeros(3),
        column_upper=np.array([np.inf, 3.0, np.inf]),
        integer=np.zeros(3, dtype=bool),
    )


def test_a_range_by_hand() -> None:
    milp = two_ways()  # x = 4, y = 3, z = 3: one more of x saves 6 as long as there is z, so up to 7
    assert range_of(milp, 1, 6.0, 54.0) == pytest.approx((-4.0, 3.0), abs=1e-5)
    raw = HIGHS.solve(milp, SolveOptions(relax=True))
    assert raw.x is not None and raw.reduced_cost is not None
    line, place = on_the_line(milp, raw.x, raw.reduced_cost)
    assert line.columns == 2, "y stays at its limit"
    ends = range_of(line, int(place[1]), 6.0, raw.objective)
    assert ends == pytest.approx((-4.0, 3.0), abs=1e-5)


def test_ranges_of_several_rows_are_those_of_each() -> None:
    milp = two_ways()
    limited = replace(
        milp,
        row_start=np.array([0, 3, 4, 5]),
        column=np.array([0, 1, 2, 0, 1]),
        value=np.ones(5),
        row_lower=np.array([10.0, -np.inf, -np.inf]),
        row_upper=np.array([10.0, 4.0, 3.0]),
        column_upper=np.full(3, np.inf),
    )
    rows, worths = np.array([1, 2]), np.array([6.0, 4.0])
    ends = ranges_of_rows(limited, rows, worths, 54.0, HIGHS, SolveOptions())
    assert ends == pytest.approx(np.array([[-4.0, 3.0], [-3.0, 3.0]]), abs=1e-5)
    assert ranges_of_rows(limited, rows[:0], worths[:0], 54.0, HIGHS, SolveOptions()).shape == (0, 2)


def test_a_small_program_that_ends_without_a_point_is_solved_again_with_presolve() -> None:
    asked: list[bool] = []

    class Failing:
        name = "failing"

        def solve(self, milp: Milp, options: SolveOptions) -> RawSolution:
            asked.append(options.presolve)
            raw = HIGHS.solve(milp, options)
            return raw if options.presolve else replace(raw, x=None)

    row, worth = np.array([1]), np.array([6.0])
    ends = ranges_of_rows(two_ways(), row, worth, 54.0, Failing(), SolveOptions())
    assert asked == [False, True]
    assert ends == pytest.approx(np.array([[-4.0, 3.0]]), abs=1e-5)


def test_a_column_alone_in_an_equation_stays_on_the_line() -> None:
    milp = replace(
        two_ways(),
        objective=np.array([3.0, 5.0, 9.0, 2.0]),
        row_start=np.array([0, 3, 4, 5]),
        column=np.array([0, 1, 2, 0, 3]),
        value=np.array([1.0, 1.0, 1.0, 1.0, 2.0]),
        row_lower=np.array([10.0, -np.inf, 8.0]),
        row_upper=np.array([10.0, 4.0, 8.0]),
        column_lower=np.zeros(4),
        column_upper=np.array([np.inf, 3.0, np.inf, np.inf]),
        integer=np.zeros(4, dtype=bool),
    )
    raw = HIGHS.solve(milp, SolveOptions(relax=True))
    assert raw.x is not None and raw.reduced_cost is not None
    line, place = on_the_line(milp, raw.x, raw.reduced_cost)
    assert (line.columns, place.tolist(), line.offset) == (2, [0, 1, -1], 15.0 + 8.0)
    assert range_of(line, int(place[1]), 6.0, raw.objective) == pytest.approx((-4.0, 3.0), abs=1e-5)


def test_a_row_whose_columns_all_stay_is_a_limit_still() -> None:
    line, place = on_the_line(two_ways(), np.array([4.0, 3.0, 3.0]), np.array([-6.0, -4.0, 0.0]))
    assert range_of(line, int(place[1]), 6.0, 54.0) == pytest.approx((0, 0), abs=1e-5)


def test_at_a_kink_the_range_has_one_side() -> None:
    kink = replace(two_ways(), row_upper=np.array([10.0, 7.0]))  # z is just out of use: then y gives way
    assert range_of(kink, 1, 6.0, 36.0) == pytest.approx((-7.0, 0.0), abs=1e-5)
    assert range_of(kink, 1, 2.0, 36.0) == pytest.approx((0.0, 3.0), abs=1e-5)


def test_types_known_by_node_and_unlimited_ones_have_no_range() -> None:
    problem = fleet(8, 3, stock=2.5)
    gpus = problem.inventory.gpus
    by_node = replace(problem, inventory=Inventory(gpus, tuple((4,) * (int(g) // 4) for g in gpus)))
    free = replace(problem, inventory=Inventory(np.full(3, NO_LIMIT), (None,) * 3))
    for method in (solve, decompose):
        for case in (by_node, free):
            assert np.isnan(method(case, HIGHS, EXACT).value_of_gpu.cost_range).all()
